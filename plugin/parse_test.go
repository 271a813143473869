package plugin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/ipam"
)

// What real runtimes passed to the plugins of one chain: testdata/*.jsonl were written by a
// plugin that stood in for each of them.
func TestRealCalls(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded calls: %v", err)
	}
	calls := 0
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var rec struct {
				Plugin string
				Env    map[string]string
				Stdin  json.RawMessage
			}
			if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			calls++
			c, err := parseConf(rec.Stdin)
			if err != nil {
				t.Errorf("%s: %s %s: %v", file, rec.Plugin, rec.Env["CNI_COMMAND"], err)
			}
			a, err := parseArgs(rec.Env["CNI_ARGS"])
			if err != nil {
				t.Errorf("%s: %s: %v", file, rec.Env["CNI_ARGS"], err)
			}
			if strings.Contains(rec.Env["CNI_ARGS"], "K8S_POD_NAMESPACE=default") && a.pod.Namespace != "default" {
				t.Errorf("%s: pod %v of %s", file, a.pod, rec.Env["CNI_ARGS"])
			}
			if previous, err := c.previous(); err != nil || (previous == nil) != (len(c.PrevResult) == 0) {
				t.Errorf("%s: %s: prevResult %s: %v", file, rec.Plugin, c.PrevResult, err)
			}
			if id := rec.Env["CNI_CONTAINERID"]; id != "" && (checkContainerID(id) != nil || checkIfName(rec.Env["CNI_IFNAME"]) != nil) {
				t.Errorf("%s: %s/%s refused", file, id, rec.Env["CNI_IFNAME"])
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d calls", calls)
}

// Names and addresses are functions of the attachment for ever: what an earlier release made must
// be found by this one.
func TestDerivedNames(t *testing.T) {
	a := ipam.Attachment{ContainerID: "64dfdb43", IfName: "eth0"}
	for _, tt := range []struct{ what, got, want string }{
		{"host link", HostLink(a), "ew5ad2bec8615"},
		{"delegated link", delegatedLink("net", a), "ewa08a05ad2bec8"},
		{"host MAC", macOf(a, "host"), "36:90:07:ee:ee:e4"},
		{"pod MAC", macOf(a, "pod"), "a6:c6:7a:15:a0:a1"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.what, tt.got, tt.want)
		}
		if len(tt.got) > maxIfName && tt.what != "host MAC" && tt.what != "pod MAC" {
			t.Errorf("%s %s is too long", tt.what, tt.got)
		}
	}
}

// Each package in the executable costs every pod start (page faults, initialisation).
func TestExecutableIsLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./edgeway").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, dep := range deps {
		for _, heavy := range []string{"net/http", "crypto/tls", "text/template", "html/template", "log/slog", "google.golang.org/", "k8s.io/", "github.com/osrg/", "github.com/prometheus/", "go.opentelemetry.io/"} {
			if dep == heavy || strings.HasSuffix(heavy, "/") && strings.HasPrefix(dep, heavy) {
				t.Errorf("the executable links %s", dep)
			}
		}
	}
	if len(deps) > 170 {
		t.Errorf("%d packages", len(deps))
	}
}

// Whatever comes in on standard input, a conf comes out or an error with a code.
func FuzzConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"net","type":"edgeway","ipam":{"ranges":[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.5"}]],"routes":[{"dst":"::/0","gw":"fe80::1","scope":253}]}}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","name":"n","prevResult":{"ip4":{"ip":"10.0.0.1/24"}},"runtimeConfig":{"ips":["10.0.0.1/8"],"mac":"02:00:00:00:00:01"}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","prevResult":{"ips":[{"address":"10.0.0.1/24","interface":0}],"interfaces":[null]},"cni.dev/valid-attachments":[]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := parseConf(in)
		if err == nil {
			_, err = newOrder(request{conf: c})
		}
		previous, perr := c.previous()
		if perr == nil && previous != nil {
			w := wiring{hostLink: "ewx", ifName: "eth0"}
			if _, err := printed(w.result(previous, c.DNS, "/n"), newestVersion); err != nil {
				t.Errorf("result: %v", err)
			}
			p := inspection{rq: request{conf: c}, previous: previous}
			p.addrs = p.listedAddrs(p.podInterface())
			_, _ = p.wiring()
		}
		_, _, verr := c.valid()
		for _, err := range []error{err, perr, verr} {
			if err != nil && asCNI(err).code == 0 {
				t.Errorf("%v has no code", err)
			}
			if err != nil && bytes.Count(errorReply("", err).Output, []byte("\n")) != 1 {
				t.Errorf("%v is not one line", err)
			}
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.0.1/8;MAC=02:00:00:00:00:01")
	f.Add(";;=")
	f.Fuzz(func(t *testing.T, in string) {
		a, err := parseArgs(in)
		var addrs []netip.Addr
		if err == nil {
			addrs, err = conf{}.requested(a)
		}
		if err != nil && asCNI(err).code != codeEnvironment {
			t.Errorf("%q: %v", in, err)
		}
		if err == nil && strings.HasPrefix(in, "IP=") && !strings.Contains(in, ";") && in != "IP=" && len(addrs) == 0 {
			t.Errorf("%q: no address", in)
		}
	})
}

// The name servers of ipam.resolvConf were ignored.
func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# of the LAN\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n; old\nsearch a.example b.example\ndomain example\noptions ndots:5 edns0\nnameserver\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file := types.DNS{Nameservers: []string{"192.0.2.53", "2001:db8::53"}, Domain: "example", Search: []string{"a.example", "b.example"}, Options: []string{"ndots:5", "edns0"}}
	key := types.DNS{Nameservers: []string{"198.51.100.53"}}
	for _, tt := range []struct {
		name string
		conf conf
		want types.DNS
		bad  bool
	}{
		{"file", conf{IPAM: ipamConf{Resolv: path}}, file, false},
		{"key before file", conf{DNS: key, IPAM: ipamConf{Resolv: path}}, key, false},
		{"no such file", conf{IPAM: ipamConf{Resolv: path + "x"}}, types.DNS{}, true},
	} {
		got, err := tt.conf.dns()
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}
