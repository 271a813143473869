package bgp

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/switchconf"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Each switch accepts the configuration that edgewayd switch-config writes for it. With it the switch takes the
// pod CIDRs and nothing else, sends nothing, and offers graceful restart.
func TestSwitchConfig(t *testing.T) {
	lab.Need(t, lab.Tools(lab.BIRD, lab.FRR, lab.OpenBGPD)...)
	for _, tt := range []struct {
		vendor string
		before string // what a switch has beside it
		file   string
		check  []string // reads the file, and starts nothing
	}{
		{"bird", "log stderr all;\nrouter id 10.0.0.1;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n" +
			"protocol kernel k4 { ipv4 { export where source = RTS_BGP; }; }\nprotocol kernel k6 { ipv6 { export where source = RTS_BGP; }; }\n",
			"bird.conf", []string{"bird", "-p", "-c"}},
		{"frr", "hostname bgpd\n", "bgpd.conf", []string{"vtysh", "-C", "-f"}},
		{"openbgpd", "socket \"DIR/bgpd.sock\"\nrouter-id 10.0.0.1\nfib-update no\n", "bgpd.conf", []string{"/usr/sbin/bgpd", "-n", "-f"}},
	} {
		t.Run(tt.vendor, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			sw := l.router(tt.vendor, 1)
			paths := pods(3)
			model := switchconf.Switch{Address: sw.addr4, Port: DefaultPort, ASN: 65002, Restart: 600, LongLived: 3600,
				Neighbours: []switchconf.Neighbour{{Node: "node-1.shop", Address: addr("10.0.0.10"), ASN: 65010, Secret: "the test"}}}
			for _, v6 := range []bool{false, true} {
				f := switchconf.Family{IPv6: v6, Most: 16}
				for _, p := range paths {
					if p.Prefix.Addr().Is6() == v6 {
						f.In = append(f.In, switchconf.Exact(p.Prefix))
					}
				}
				model.Families = append(model.Families, f)
			}
			text, err := switchconf.Write(tt.vendor, model)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]string{tt.file: strings.ReplaceAll(tt.before, "DIR", sw.dir) + text}
			if tt.vendor == "frr" {
				files["zebra.conf"] = "hostname zebra\n"
			}
			sw.Spec.Port = DefaultPort
			if err := sw.StartWith(t.Context(), files); err != nil {
				t.Fatal(err)
			}
			check := append(tt.check, sw.dir+"/"+tt.file)
			if out, err := sw.Run(t.Context(), check[0], check[1:]...); err != nil {
				t.Errorf("%v: %v\n%s", check, err, out)
			}
			p := peerOf(sw)
			p.ASN, p.LocalASN, p.Password = 65002, 65010, "PASSWORD"
			p.RestartTime, p.LongLivedTime = 600*time.Second, 0
			s := l.speaker(t)
			stray := Path{Prefix: pfx("192.168.77.0/24"), NextHop: addr("10.0.0.10")}
			mustSync(t, s, Session{Peer: p, Paths: append(paths[:len(paths):len(paths)], stray), Learn: learnList})
			sw.hears(paths)
			if st := becomes(t, s, "Established", ""); !st.Restart || len(st.Lacks) != 0 {
				t.Errorf("%+v", st)
			}
			learns(t, s) // nothing
			if tt.vendor == "frr" {
				if out := lab.Tail(sw.dir+"/bgpd.log", 50); strings.Contains(out, "Unknown command") || strings.Contains(out, "line ") {
					t.Error(out)
				}
			}
		})
	}
}

// The configurations in docs/network-engineers.md are accepted by the programs as they are printed.
func TestConfigurationsOfTheDocs(t *testing.T) {
	lab.Need(t, lab.Tools(lab.BIRD, lab.FRR, lab.OpenBGPD)...)
	page, err := os.ReadFile("../docs/network-engineers.md")
	if err != nil {
		t.Fatal(err)
	}
	for heading, check := range map[string][]string{
		"BIRD 2": {"bird", "-p", "-c"}, "FRR": {"vtysh", "-C", "-f"}, "OpenBGPD": {"/usr/sbin/bgpd", "-n", "-f"}, "SONiC": {"vtysh", "-C", "-f"},
	} {
		_, text, found := strings.Cut(string(page), "\n### "+heading+"\n")
		_, text, printed := strings.Cut(text, "\n```text\n")
		text, _, ended := strings.Cut(text, "\n```\n")
		if !found || !printed || !ended {
			t.Errorf("the page has no configuration for %s", heading)
			continue
		}
		file := t.TempDir() + "/switch.conf"
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(check[0], append(check[1:], file)...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s\n%s", check, err, out, text)
		}
	}
}
