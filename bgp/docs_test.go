package bgp

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Each switch accepts the configuration that docs/operations.md shows for it, and hears all paths with it.
func TestDocumentedSwitches(t *testing.T) {
	lab.Need(t, lab.Tools(lab.OpenBGPD)...)
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind, title string
		before      string // what a switch has beside it
	}{
		{"bird", "BIRD 2:", "log stderr all;\nrouter id 10.0.0.1;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n" +
			"protocol kernel k4 { ipv4 { export where source = RTS_BGP; }; }\nprotocol kernel k6 { ipv6 { export where source = RTS_BGP; }; }\n"},
		{"frr", "FRR \\(.*\\):", "hostname bgpd\n"},
		{"openbgpd", "OpenBGPD:", "socket \"DIR/bgpd.sock\"\nrouter-id 10.0.0.1\nfib-update no\n"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			found := regexp.MustCompile("\n" + tt.title + "\n```\n([^`]*)```\n").FindSubmatch(text)
			if found == nil {
				t.Fatalf("no configuration for %s", tt.kind)
			}
			l := newLAN(t)
			sw := l.router(tt.kind, 1)
			conf := strings.NewReplacer("10.0.10.", "10.0.0.", "DIR", sw.dir).Replace(tt.before + string(found[1]))
			conf = strings.ReplaceAll(conf, "10.0.0.11", "10.0.0.10")
			files := map[string]string{"bird.conf": conf, "bgpd.conf": conf}
			sw.Spec.Port = DefaultPort
			if tt.kind == "bird" {
				delete(files, "bgpd.conf")
			} else {
				delete(files, "bird.conf")
			}
			if tt.kind == "frr" {
				files["zebra.conf"] = "hostname zebra\n"
			}
			if err := sw.StartWith(t.Context(), files); err != nil {
				t.Fatal(err)
			}
			p := peerOf(sw)
			p.ASN, p.LocalASN = 65002, 65010
			s := newTestSpeaker(t)
			mustSync(t, s, Session{Peer: p, Paths: pods(3), Learn: learnList})
			sw.hears(30*time.Second, pods(3))
			if st := becomes(t, s, time.Second, "Established", ""); !st.Restart || len(st.Lacks) != 0 {
				t.Errorf("%+v", st)
			}
			learns(t, s, 20*time.Second) // nothing
			if tt.kind == "frr" {
				if out := lab.Tail(sw.dir+"/bgpd.log", 50); strings.Contains(out, "Unknown command") || strings.Contains(out, "line ") {
					t.Error(out)
				}
			}
		})
	}
}
