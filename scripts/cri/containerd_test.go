package cri

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// hostPort of the pod web.
const hostPort = 18080

// TestContainerd is the life of two nodes. The parts build on each other, because making the cluster takes
// longer than all parts together. CONTAINERD_BIN_DIR names a directory with another
// containerd than the one in PATH (see build-containerd.sh).
func TestContainerd(t *testing.T) {
	runtime := os.Getenv("CONTAINERD_BIN_DIR")
	needTools(t, runtime)
	c := newCluster(t, runtime)
	for _, part := range []struct {
		name string
		play func(*testing.T, *cluster)
	}{
		{"network is ready once the daemon wrote its configuration", becomesReady},
		{"pods of two nodes reach each other", podsReach},
		{"host port", hostPortLeadsToPod},
		{"bandwidth", bandwidthIsShaped},
		{"pods start and stop without the daemon", withoutDaemon},
		{"a new sandbox has its pod's addresses", newSandbox},
		{"many pods at once", manyAtOnce},
		{"a plugin of the chain fails", chainFails},
		{"containerd restarts", containerdRestarts},
		{"containerd dies during ADD", diesDuringAdd},
		{"reboot", reboot},
		{"reboot without the daemon", rebootAlone},
		{"nothing is left of removed pods", leaveNothing},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.play(t, c) }) {
			t.FailNow() // the later parts build on it
		}
	}
}

func becomesReady(t *testing.T, c *cluster) {
	version, err := c.n1.CRI.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("containerd %s", version)
	for _, n := range []*Node{c.n1, c.n2} {
		if err := n.CRI.NetworkReady(t.Context()); err == nil {
			t.Errorf("%s: network is ready without a network configuration", n.Name)
		}
	}
	c.both(t, (*Node).StartDaemon)
	for _, n := range []*Node{c.n1, c.n2} {
		// containerd notices the file by inotify.
		if err := lab.Wait(t.Context(), waitLimit, func() error { return n.CRI.NetworkReady(t.Context()) }); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		wantUsed(t, n, 0)
	}
	if major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "."); major != "1" {
		// containerd 2.0 and later call STATUS of cniVersion 1.1.0, which is for no container.
		if calls := c.n1.calls(t, ""); len(calls) == 0 || calls[0] != "STATUS, no netns" {
			t.Errorf("%s: calls of the plugin for no container: %v, want STATUS", c.n1.Name, calls)
		}
	}
}

func podsReach(t *testing.T, c *cluster) {
	web := c.run(t, c.n1, Sandbox{Name: "web",
		HostPorts: []HostPort{{Host: hostPort, Container: httpPort}},
		Annotations: map[string]string{
			"kubernetes.io/ingress-bandwidth": "10M",
			"kubernetes.io/egress-bandwidth":  "20M",
		}})
	near := c.run(t, c.n1, Sandbox{Name: "near"})
	far := c.run(t, c.n2, Sandbox{Name: "far"})
	for _, p := range []*pod{web, near, far} {
		wantOwnAddrs(t, p)
	}
	far.reaches(t, web)
	web.reaches(t, far)
	near.reaches(t, web)
	for _, addr := range near.addrs { // as the kubelet's probes do
		if err := lab.Wait(t.Context(), waitLimit, func() error { return c.n1.wantPage(t.Context(), addr, httpPort, "near") }); err != nil {
			t.Errorf("probe of near: %v", err)
		}
	}
	wantUsed(t, c.n1, 2)
	wantUsed(t, c.n2, 1)
	wantCalls(t, web, "ADD")
}

func hostPortLeadsToPod(t *testing.T, c *cluster) {
	for _, addr := range c.n1.Addrs {
		if err := c.n2.wantPage(t.Context(), addr, hostPort, "web"); err != nil {
			t.Error(err)
		}
	}
}

// bandwidthIsShaped checks both directions: the pod's ingress leaves the node by the host's end of the veth
// pair, and its egress is redirected to a link of type ifb.
func bandwidthIsShaped(t *testing.T, c *cluster) {
	web := c.pods["web"]
	link, err := c.n1.hostLink(t.Context(), web.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.n1.RunInside(t.Context(), "tc", "qdisc", "show", "dev", link)
	if err != nil || !strings.Contains(out, "qdisc tbf") || !strings.Contains(out, "rate 10Mbit") {
		t.Errorf("queueing disciplines of %s: %s, %v; want tbf with rate 10Mbit", link, out, err)
	}
	out, err = c.n1.RunInside(t.Context(), "tc", "qdisc", "show")
	if err != nil || !strings.Contains(out, "rate 20Mbit") {
		t.Errorf("queueing disciplines of %s: %s, %v; want one with rate 20Mbit", c.n1.Name, out, err)
	}
}

// withoutDaemon checks that the plugin does the daemon's work itself.
func withoutDaemon(t *testing.T, c *cluster) {
	if err := c.n1.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := c.n1.CRI.NetworkReady(t.Context()); err != nil {
		t.Errorf("%s: %v", c.n1.Name, err)
	}
	alone := c.run(t, c.n1, Sandbox{Name: "alone"})
	alone.reaches(t, c.pods["far"])
	c.pods["far"].reaches(t, alone)
	short := c.run(t, c.n1, Sandbox{Name: "short"})
	short.stop(t)
	short.remove(t)
	delete(c.pods, "short")
	if err := c.n1.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, c.n1, 3)
	c.pods["far"].reaches(t, alone)
	alone.stop(t)
	alone.remove(t)
	delete(c.pods, "alone")
	wantUsed(t, c.n1, 2)
}

// newSandbox does what the kubelet does after a sandbox died: it stops the sandbox, makes a new one, and
// removes the old one 20 seconds later. The last DEL comes when the old namespace is gone and a running pod
// has the addresses.
func newSandbox(t *testing.T, c *cluster) {
	old := c.pods["far"]
	old.stop(t)
	wantUsed(t, c.n2, 0)
	far := c.run(t, c.n2, Sandbox{Name: "far"})
	wantSameAddrs(t, old, far)
	old.stop(t)
	old.remove(t)
	wantCalls(t, old, "ADD", "DEL, prevResult", "DEL, no netns", "DEL, no netns")
	wantUsed(t, c.n2, 1)
	c.pods["web"].reaches(t, far)
}

// leaveNothing stops and removes every pod, as the kubelet does.
func leaveNothing(t *testing.T, c *cluster) {
	for _, p := range c.pods {
		p.stop(t)
		p.stop(t)
		p.remove(t)
		calls := p.on.calls(t, p.id)
		if got := fmt.Sprint(calls); got != "[ADD DEL, prevResult DEL, no netns DEL, no netns]" {
			t.Errorf("%s on %s: calls of the plugin: %s", p.Name, p.on.Name, got)
		}
	}
	for _, n := range []*Node{c.n1, c.n2} {
		ids, err := n.CRI.Sandboxes(t.Context())
		if err != nil || len(ids) > 0 {
			t.Errorf("%s: sandboxes %v, %v; want none", n.Name, ids, err)
		}
		wantClean(t, n)
	}
}
