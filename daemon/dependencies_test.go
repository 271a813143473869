package daemon

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const house = "github.com/edgeway-cni/edgeway/"

// TestDependencies holds who may import whom. One package, one noun, one family of libraries:
// a reader can learn them one at a time, and a pod starts without linking GoBGP.
func TestDependencies(t *testing.T) {
	rules := []struct {
		pkg  string
		ours []string // the packages of ours that it may import directly
		// never: prefixes that it must not even reach through others, and why.
		never map[string]string
	}{
		{"ipam", nil, map[string]string{
			"github.com/vishvananda/": "whether an attachment lives is told by the caller", "github.com/containernetworking/": "the store serves any caller", "k8s.io/": "no API on the way of an ADD"}},
		{"routes", nil, map[string]string{
			"k8s.io/": "mechanism knows no policy", "go.etcd.io/bbolt": "the kernel is asked, not remembered", "github.com/osrg/": "routes and bgp do not know each other"}},
		{"bgp", nil, map[string]string{
			"k8s.io/client-go": "mechanism knows no policy", "go.etcd.io/": "what switches hear follows from the World alone"}},
		{"daemon/api", nil, map[string]string{"github.com/": "each import costs every pod start", "golang.org/": "each import costs every pod start", "net/http": "each import costs every pod start"}},
		{"daemon/durable", nil, map[string]string{"github.com/": "it replaces files, for anybody"}},
		{"daemon/cluster", []string{"daemon/durable"}, map[string]string{
			"github.com/vishvananda/": "the cluster says what should be, not what is", "github.com/osrg/": "the cluster says what should be, not how"}},
		{"daemon/report", []string{"daemon/cluster"}, map[string]string{
			"github.com/vishvananda/": "it tells what others found", "github.com/osrg/": "it tells what others found", "k8s.io/client-go/kubernetes": "see daemon/edgewayd"}},
		{"daemon/rollout", []string{"daemon/cluster"}, map[string]string{
			"github.com/vishvananda/": "it replaces pods, and touches no node", "github.com/osrg/": "it replaces pods", "k8s.io/client-go/kubernetes": "see daemon/edgewayd"}},
		{"daemon/cloud", nil, map[string]string{
			"github.com/vishvananda/": "it speaks to the cloud, not to a kernel", "k8s.io/": "eni-tool is a small program for any machine", "github.com/osrg/": "it speaks to the cloud"}},
		{"daemon/cloud/eni-tool", []string{"daemon/cloud"}, map[string]string{
			"github.com/vishvananda/": "it runs on macOS, too", "k8s.io/": "it is a small program for any machine"}},
		{"daemon/controller/uplinks", []string{"daemon/cloud", "daemon/cluster"}, map[string]string{
			"github.com/vishvananda/": "it runs beside the control plane, on no node's behalf", "github.com/osrg/": "no switch hears of uplinks", "go.etcd.io/": "the API server remembers"}},
		{"daemon/controller", []string{"daemon/cloud", "daemon/cluster", "daemon/config/keys", "daemon/controller/uplinks"}, map[string]string{
			"github.com/vishvananda/": "it runs beside the control plane, on no node's behalf", "github.com/osrg/": "who gets which CIDR does not depend on switches", "go.etcd.io/": "the API server remembers"}},
		{"daemon/controller/edgeway-controller", []string{"daemon/cluster", "daemon/controller"}, map[string]string{
			"github.com/vishvananda/": "it runs on no node", "github.com/osrg/": "it runs on no node", "go.etcd.io/": "it runs on no node"}},
		{"plugin/uplink", []string{"ipam", "routes"}, pluginNever},
		{"plugin", []string{"ipam", "routes", "plugin/uplink", "daemon/api"}, pluginNever},
		{"plugin/forward", nil, nil},
		{"plugin/edgeway", []string{"plugin", "plugin/forward", "ipam", "routes", "daemon/api"}, pluginNever},
		{"daemon/config/keys", []string{"daemon/cluster"}, map[string]string{
			"github.com/osrg/": "edgeway-controller reads its file with it, on no node"}},
		{"daemon/config", []string{"bgp", "daemon/api", "daemon/cluster", "daemon/config/keys"}, nil},
		{"daemon/policy", []string{"ipam", "routes", "bgp", "plugin/uplink", "daemon/cluster", "daemon/config"}, nil},
		{"daemon/plan", []string{"bgp", "routes", "daemon/cluster", "daemon/config", "daemon/policy"}, nil},
		{"daemon/switchconf", nil, map[string]string{"github.com/": "it writes text"}},
		{"daemon/pods", []string{"ipam", "routes", "plugin", "plugin/uplink", "daemon/api", "daemon/cluster", "daemon/config", "daemon/durable", "daemon/policy"}, nil},
		{"daemon/paths", []string{"daemon/cluster"}, map[string]string{
			"github.com/osrg/": "whether packets arrive does not depend on what switches were told"}},
		{"daemon", []string{"routes", "bgp", "plugin", "plugin/uplink", "daemon/api", "daemon/cluster", "daemon/config", "daemon/durable", "daemon/paths", "daemon/plan", "daemon/pods", "daemon/policy", "daemon/report"}, nil},
		{"daemon/doctor", []string{"routes", "daemon/api", "daemon/cluster", "daemon/config", "daemon/pods", "daemon/policy"}, nil},
		{"daemon/edgewayd", []string{"daemon", "daemon/api", "daemon/cluster", "daemon/config", "daemon/doctor", "daemon/durable", "daemon/plan", "daemon/pods", "daemon/rollout", "daemon/switchconf", "ipam", "plugin", "plugin/uplink", "routes"}, map[string]string{
			"k8s.io/client-go/kubernetes": "typed clients are for edgeway-controller: 32 MB, and 7 ms at the start of each command",
			"github.com/alibabacloud-go/": "no node speaks to the cloud: it would need the key of the account"}},
	}
	for _, r := range rules {
		for _, imp := range goList(t, `{{join .Imports "\n"}}`, r.pkg) {
			if short, ok := strings.CutPrefix(imp, house); ok && !slices.Contains(r.ours, short) {
				t.Errorf("%s imports %s; it may import %v", r.pkg, short, r.ours)
			}
		}
		for _, dep := range goList(t, `{{join .Deps "\n"}}`, r.pkg) {
			for prefix, why := range r.never {
				if strings.HasPrefix(dep, prefix) && !strings.HasPrefix(dep, house) {
					t.Errorf("%s reaches %s: %s", r.pkg, dep, why)
				}
			}
		}
	}

	// What this one imports would run before it, at every pod start.
	if got := goList(t, `{{join .Imports "\n"}}`, "plugin/forward"); !slices.Equal(got, []string{"runtime", "unsafe"}) {
		t.Errorf("plugin/forward imports %v; it may import runtime and unsafe", got)
	}

	// Some libraries have one owner each.
	owners := map[string][]string{
		"go.etcd.io/bbolt":               {"ipam"},
		"github.com/vishvananda/":        {"routes"},
		"github.com/google/nftables":     {"routes"},
		"github.com/osrg/gobgp":          {"bgp"},
		"github.com/containernetworking": {"plugin"},
		"k8s.io/":                        {"daemon/cluster", "daemon/controller", "daemon/controller/uplinks", "daemon/report", "daemon/rollout"},
		"github.com/prometheus/":         {"daemon", "daemon/controller", "daemon/controller/uplinks"},
		"github.com/alibabacloud-go/":    {"daemon/cloud"},
		"github.com/spf13/cobra":         {"daemon/edgewayd", "daemon/controller/edgeway-controller"},
	}
	for _, r := range rules {
		for _, imp := range goList(t, `{{join .Imports "\n"}}`, r.pkg) {
			for prefix, who := range owners {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(who, r.pkg) {
					t.Errorf("%s imports %s, which belongs to %v", r.pkg, imp, who)
				}
			}
		}
	}
}

// TestPolicyIsPure holds that equal Worlds give equal Plans: package policy has no clock, no I/O, no logger,
// no goroutine and nothing that remembers.
func TestPolicyIsPure(t *testing.T) {
	computes := []string{"cmp", "crypto/sha256", "fmt", "maps", "net/netip", "slices", "strings", "time"}
	for _, imp := range goList(t, `{{join .Imports "\n"}}`, "daemon/policy") {
		if !strings.HasPrefix(imp, house) && !slices.Contains(computes, imp) {
			t.Errorf("daemon/policy imports %s; it may import %v, and what TestDependencies lists", imp, computes)
		}
	}
	for _, file := range goList(t, `{{join .GoFiles "\n"}}`, "daemon/policy") {
		text, err := os.ReadFile("policy/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"time.Now", "time.Since", "time.Until", "time.After", "\tgo ", "fmt.Print", "\nvar "} {
			if strings.Contains(string(text), word) {
				t.Errorf("daemon/policy/%s has %q", file, word)
			}
		}
	}
}

// pluginNever is what the plugin must not link: each costs milliseconds at every pod start.
var pluginNever = map[string]string{
	"k8s.io/": "9 ms of initialisation", "github.com/osrg/": "13 ms and 35 MiB", "google.golang.org/grpc": "2 ms", "net/http": "1 ms",
	"github.com/prometheus/": "net/http", "github.com/spf13/": "text/template", "text/template": "reflection keeps dead code in",
	"github.com/alibabacloud-go/": "no node speaks to the cloud",
}

func goList(t *testing.T, format, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", format, "../"+pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}
