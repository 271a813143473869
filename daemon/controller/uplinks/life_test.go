package uplinks

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/scripts/ens"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// join makes the Node of an instance, and has its daemon read the API server with the rights that are shipped.
func (s *stage) join(node *lab.Node, instance, address string) {
	s.Helper()
	must := func(err error) {
		s.Helper()
		if err != nil {
			s.Fatal(err)
		}
	}
	s.kubectl("apply", "-k", "../../../deploy/kubernetes/rbac")
	s.node(node.Name, "60", InstanceLabel(cloud.ENS), instance)
	account, err := s.ServiceAccountOn(node.Name, "kube-system", "edgeway")
	must(err)
	config := map[string]any{}
	text, err := os.ReadFile(node.Config)
	must(err)
	must(yaml.Unmarshal(text, &config))
	config["cluster"] = map[string]any{"kubeconfig": account}
	text, err = yaml.Marshal(config)
	must(err)
	must(os.WriteFile(node.Config, text, 0o600))
	s.kubectl("patch", "node", node.Name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status": {"addresses": [{"type": "InternalIP", "address": %q}]}}`, address))
}

// newCloudLab is a laboratory of nodes, the cloud's network vpc, and the world beyond it, where the stage's API server is.
func newCloudLab(t *testing.T, nodes ...string) (*lab.Lab, *stage) {
	t.Helper()
	lab.Need(t, "ip", "nft", "ping")
	const bin = "../../../bin"
	if _, err := os.Stat(filepath.Join(bin, "edgewayd")); err != nil {
		t.Skipf("%v; run make build", err)
	}
	l, err := lab.New(lab.Options{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	topology := `
hosts:
- {name: vpc, links: [{lan: world, addrs: [192.0.2.1/24]}], forward: true}
- {name: world, links: [{lan: world, addrs: [192.0.2.2/24]}], routes: [{to: 10.0.0.0/24, via: 192.0.2.1}]}
nodes:
`
	for _, n := range nodes {
		topology += fmt.Sprintf("- {name: %s}\n", n)
	}
	spec, err := lab.ParseTopology([]byte(topology))
	if err == nil {
		err = l.Build(t.Context(), spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	world := l.Machine("world")
	return l, newStage(t, cloud.ENS, kube.Options{Space: world.Space, Addr: world.Addrs[0]}, func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = world.Do(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
		return c, err
	})
}

// An ENS node's life, with a real daemon and plugin, a real API server, and a cloud whose network drops and counts
// what does not belong together: it joins, runs 50 pods, loses cloud and API server, is rebooted meanwhile, somebody edits
// in the console, an interface is removed, and the instance leaves.
func TestAPIServerLife(t *testing.T) {
	l, s := newCloudLab(t, "n1")
	ctx := t.Context()
	world, node := l.Machine("world"), l.Node("n1")
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	plug, err := ens.NewPlug(ctx, s.cloud, l.Machine("vpc"))
	must("plug", err)
	must("plug", plug.Connect(ctx, "i-1", node.Machine))
	first, second := s.cloud.Bind("i-1"), s.cloud.Bind("i-1")
	spoofed := func(when string) {
		t.Helper()
		if n, err := plug.Spoofed(ctx); n != 0 || err != nil {
			t.Errorf("%s: %d spoofed packets, %v", when, n, err)
		}
	}

	// It joins.
	s.join(node, "i-1", "10.0.0.1")
	s.start()
	s.same("the node joins", 50)
	must("daemon", node.Start(ctx))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lab.Tail(node.Log(), 60))
		}
	})

	// 50 pods, and not one more.
	pods := map[string]*lab.Pod{}
	add := func(name string) *lab.Pod {
		t.Helper()
		p, err := node.AddPod(ctx, "default", name)
		must(name, err)
		pods[name] = p
		return p
	}
	for i := range 50 {
		add(fmt.Sprint("p", i))
	}
	if p, err := node.AddPod(ctx, "default", "more"); err == nil {
		t.Errorf("a pod more than there are addresses: %v", p.Addrs)
	}
	ping := func(when string, names ...string) {
		t.Helper()
		for _, name := range names {
			p := pods[name]
			for _, pair := range []struct {
				from *lab.Machine
				to   netip.Addr
			}{{world, p.Addrs[0]}, {p.Machine, world.Addrs[0]}, {node.Machine, p.Addrs[0]}, {p.Machine, pods["p0"].Addrs[0]}} {
				must(when, lab.Wait(ctx, 30*time.Second, func() error {
					_, err := pair.from.Ping(ctx, pair.to)
					return err
				}))
			}
		}
	}
	of := func(n ens.Interface) string { // a pod with an address of an interface
		t.Helper()
		for _, now := range s.cloud.Interfaces("i-1") {
			for name, p := range pods {
				if now.ID == n.ID && name != "p0" && slices.Contains(now.Addresses, p.Addrs[0]) {
					return name
				}
			}
		}
		t.Fatalf("no pod has an address of %s", n.ID)
		return ""
	}
	a, b := of(first), of(second)
	ping("50 pods", a, b)
	remove := func(name string) {
		t.Helper()
		must(name, pods[name].Delete(ctx))
		delete(pods, name)
	}
	for name := range pods {
		if name != a && name != b && name != "p0" {
			remove(name)
		}
	}

	// The cloud and the API server are away: pods come and go.
	s.cloud.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: 503} })
	must("API server", s.StopAPIServer())
	had := pods[b].Addrs[0]
	remove(b)
	if now := add(b).Addrs[0]; now != had {
		t.Errorf("%s had %v and has %v", b, had, now)
	}
	ping("cloud and API server are away", a, b)

	// The node reboots, and both are still away. The first pods come before the daemon.
	addresses := map[string]netip.Addr{}
	for name, p := range pods {
		addresses[name] = p.Addrs[0]
	}
	must("reboot", node.Reboot(ctx))
	must("plug", plug.Connect(ctx, "i-1", node.Machine))
	for name, had := range addresses {
		if now := add(name).Addrs[0]; now != had {
			t.Errorf("after the reboot: %s had %v and has %v", name, had, now)
		}
	}
	ping("after a reboot, without a daemon", a, b)
	must("daemon", node.Start(ctx))
	ping("after a reboot", a, b)
	must("API server", s.StartAPIServer())
	s.cloud.SetFaults(nil)
	s.same("all is back", 50)
	spoofed("all is back")

	// Somebody removes a pod's address in the console. When the pod is gone, another address takes its place.
	s.cloud.Take(first.ID, pods[a].Addrs[0])
	s.until("the address is withdrawn", func() (bool, string) {
		for _, u := range s.edgeNode("n1").uplinks.Interfaces {
			for _, w := range u.Withdrawn {
				if w.Address == pods[a].Addrs[0] {
					return true, ""
				}
			}
		}
		return false, ""
	})
	remove(a)
	s.same("the address is replaced", 50)

	// An interface is removed. Its pods are deleted, and it is forgotten.
	s.cloud.Unbind(second.ID)
	remove(b)
	s.until("the interface is forgotten", func() (bool, string) {
		u := s.edgeNode("n1").uplinks
		return len(u.Interfaces) == 1, fmt.Sprint(u)
	})
	a = "late"
	add(a)
	ping("an interface is removed", a)
	spoofed("an interface is removed")

	// The instance leaves.
	remove(a)
	remove("p0")
	must("daemon", node.Terminate())
	s.kubectl("delete", "node", "n1")
	s.cloud.RemoveInstance("i-1")
	s.until("the EdgeNode is gone", func() (bool, string) { return s.edgeNode("n1").version == "", "" })
	spoofed("the instance left")
}
