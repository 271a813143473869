package uplinks

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/scripts/ens"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// programs is the directory that make build fills.
const programs = "../../../bin"

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
// It calls early when all but the API server is there.
func newCloudLab(t *testing.T, early func(*lab.Lab, *stage), nodes ...string) (*lab.Lab, *stage) {
	t.Helper()
	lab.Need(t, "ip", "nft", "ping")
	for _, name := range []string{"edgewayd", "eni-tool"} {
		if _, err := os.Stat(filepath.Join(programs, name)); err != nil {
			t.Skipf("%v; run make build", err)
		}
	}
	l, err := lab.New(lab.Options{Bin: programs})
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
	world, s := l.Machine("world"), newSky(t, cloud.ENS)
	early(l, s)
	s.land(kube.Options{Space: world.Space, Addr: world.Addrs[0]}, func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = world.Do(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
		return c, err
	})
	return l, s
}

// life is an ENS node's life: the node n1 with its pods, and the node n2, which joins later.
type life struct {
	*stage
	lab           *lab.Lab
	plug          *ens.Plug
	world         *lab.Machine
	first, second ens.Interface // of n1
	pods          map[string]*lab.Pod
	// Names of pods of n1 that live long. The first three have the two lowest addresses and the highest one of the interface first.
	edited, stays, top, unplugged string
}

func (l *life) must(what string, err error) {
	l.Helper()
	if err != nil {
		l.Fatalf("%s: %v", what, err)
	}
}

// bind has eni-tool bind interfaces, as an operator does, and returns its output when it has ended.
func (l *life) bind(instance string, interfaces int) <-chan string {
	profile := filepath.Join(l.TempDir(), "profile.json")
	l.must("profile", os.WriteFile(profile, fmt.Appendf(nil, `{"AccessKey": "TOOL", "SecretKey": %q}`, secret), 0o600))
	cmd := exec.CommandContext(l.Context(), filepath.Join(programs, "eni-tool"), "--profile", profile, "--instance", instance, "--eniNumber", fmt.Sprint(interfaces),
		"--endpoint", l.options.Endpoint)
	done := make(chan string, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		done <- fmt.Sprintf("%s\n%v", out, err)
	}()
	return done
}

func (l *life) add(node, name string) *lab.Pod {
	l.Helper()
	p, err := l.lab.Node(node).AddPod(l.Context(), "default", name)
	l.must(name, err)
	l.pods[name] = p
	return p
}

func (l *life) remove(name string) {
	l.Helper()
	l.must(name, l.pods[name].Delete(l.Context()))
	delete(l.pods, name)
}

// talk has pods reach each other, their node, their gateway and the world beyond, and be reached.
func (l *life) talk(when string, names ...string) {
	l.Helper()
	for _, name := range names {
		p := l.pods[name]
		ways := map[*lab.Machine][]netip.Addr{l.world: p.Addrs, p.Node.Machine: p.Addrs, p.Machine: {l.world.Addrs[0], addr("10.0.0.253")}}
		for _, other := range names {
			if other != name {
				ways[p.Machine] = append(ways[p.Machine], l.pods[other].Addrs[0])
			}
		}
		for from, all := range ways {
			for _, to := range all {
				l.ping(when, from, to)
			}
		}
	}
}

func (l *life) ping(when string, from *lab.Machine, to netip.Addr) {
	l.Helper()
	l.must(when, lab.Wait(l.Context(), 30*time.Second, func() error {
		_, err := from.Ping(l.Context(), to)
		return err
	}))
}

func (l *life) spoofed(when string) {
	l.Helper()
	if n, err := l.plug.Spoofed(l.Context()); n != 0 || err != nil {
		l.Errorf("%s: %d spoofed packets, %v", when, n, err)
	}
}

// has waits until a node's daemon reports a problem whose text has a word.
func (l *life) has(node, reason, word string) {
	l.Helper()
	l.until(reason, func() (bool, string) {
		s, err := l.lab.Node(node).Status(l.Context())
		return slices.ContainsFunc(s.Problems, func(p api.Problem) bool { return p.Reason == reason && strings.Contains(fmt.Sprint(p), word) }), fmt.Sprint(s.Problems, err)
	})
}

// controller starts the program edgeway-controller, with its own pace of 5 calls a second, in the world.
func (l *life) controller() *lab.Process {
	l.Helper()
	var listener net.Listener
	l.must("listen", l.world.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(l.world.Addrs[0], 0).String())
		return err
	}))
	front := httptest.NewUnstartedServer(l.cloud)
	front.Listener.Close()
	front.Listener = listener
	front.Start()
	l.Cleanup(front.Close)
	dir := l.TempDir()
	config := filepath.Join(dir, "edgeway-controller.yaml")
	l.must("configuration", os.WriteFile(config, fmt.Appendf(nil, "controller: {ens: {endpoint: %q, credentials: %q}}\n", front.URL, l.options.Credentials), 0o600))
	program, err := filepath.Abs(filepath.Join(programs, "edgeway-controller"))
	l.must("edgeway-controller", err)
	p, err := l.world.Spawn(filepath.Join(dir, "controller.log"), program, "--config="+config, "--kubeconfig="+l.account)
	l.must("edgeway-controller", err)
	l.Cleanup(func() {
		if l.Failed() {
			l.Log(lab.Tail(filepath.Join(dir, "controller.log"), 30))
		}
		if err := p.Kill(); err != nil {
			l.Error(err)
		}
	})
	return p
}

// An ENS node's life, with the programs that are shipped, a real API server, and a cloud whose network drops and counts
// what does not belong together: eni-tool binds interfaces, the node joins and runs 50 pods, loses the cloud, is
// rebooted while the API server is away too, somebody edits in the console and removes an interface, the node's spare
// addresses are taken back, and the instance leaves.
func TestAPIServerLife(t *testing.T) {
	l := &life{pods: map[string]*lab.Pod{}}
	var bound [2]<-chan string
	l.lab, l.stage = newCloudLab(t, func(laboratory *lab.Lab, s *stage) { // while the API server starts
		l.lab, l.stage, l.world = laboratory, s, laboratory.Machine("world")
		s.cloud.SetMiddle(0)
		s.cloud.AddInstance("i-2", "vsw-1", "sg-1")
		s.cloud.AddKey(ens.Key{ID: "TOOL", Secret: secret, Actions: []string{"ens:DescribeInstances", "ens:DescribeNetworkInterfaces", "ens:CreateNetworkInterface",
			"ens:AttachNetworkInterface", "ens:StopInstance", "ens:StartInstance"}})
		var err error
		l.plug, err = ens.NewPlug(t.Context(), s.cloud, laboratory.Machine("vpc"))
		l.must("plug", err)
		for i, n := range []string{"n1", "n2"} {
			instance := fmt.Sprint("i-", i+1)
			l.must("plug", l.plug.Connect(t.Context(), instance, laboratory.Node(n).Machine))
			bound[i] = l.bind(instance, 2-i)
		}
	}, "n1", "n2")
	for i, want := range []string{"maxPods: 50 + host-network pods\n\n<nil>", "maxPods: 25 + host-network pods\n\n<nil>"} {
		if out := <-bound[i]; !strings.HasSuffix(out, want) {
			t.Fatalf("eni-tool of i-%d:\n%s", i+1, out)
		}
	}
	l.options.times.full = 2 * time.Second
	t.Cleanup(func() {
		for _, n := range []string{"n1", "n2"} {
			if t.Failed() {
				t.Log(lab.Tail(l.lab.Node(n).Log(), 60))
			}
		}
	})
	began := time.Now()
	for _, phase := range []struct {
		name string
		play func()
	}{{"joins", l.joins}, {"loses the cloud", l.losesTheCloud}, {"reboots", l.reboots}, {"is edited", l.isEdited}, {"shrinks", l.shrinks}, {"leaves", l.leaves}} {
		phase.play()
		t.Logf("%s: %v", phase.name, time.Since(began).Round(time.Second))
		began = time.Now()
	}
}

// joins: the controller gives the node its addresses, and pods start as they come: 50, and not one more. Another node joins.
func (l *life) joins() {
	ctx, node, other := l.Context(), l.lab.Node("n1"), l.lab.Node("n2")
	bound := l.cloud.Interfaces("i-1")
	if len(bound) != 3 || bound[1].Name != "edgeway-i-1-1" || bound[2].Name != "edgeway-i-1-2" {
		l.Fatalf("interfaces of i-1: %+v", bound)
	}
	l.first, l.second = bound[1], bound[2]
	l.join(node, "i-1", "10.0.0.1")
	l.join(other, "", "10.0.0.2") // its label comes later
	program := l.controller()
	l.must("daemon", node.Start(ctx))
	for i := range 50 {
		if i == 25 { // it is killed on the way, and the stage's controller goes on
			l.must("kill", program.Kill())
			l.start()
		}
		name := fmt.Sprint("p", i)
		l.until("an address for "+name, func() (bool, string) { n := len(l.granted("n1")); return n > i, fmt.Sprint(n) })
		l.must(name, lab.Wait(ctx, 30*time.Second, func() error {
			p, err := node.AddPod(ctx, "default", name)
			if err == nil {
				l.pods[name] = p
			}
			return err
		}))
	}
	l.same("the node has joined", 50)
	if p, err := node.AddPod(ctx, "default", "more"); err == nil {
		l.Errorf("a pod more than there are addresses: %v", p.Addrs)
	}
	l.kubectl("label", "node", "n2", "--overwrite", InstanceLabel(cloud.ENS)+"=i-2")
	l.grants("the other node has joined", "n2", "i-2", 25)
	l.must("daemon", other.Start(ctx))
	l.add("n2", "other")
	l.talk("50 pods", "p0", "p1", "p2", "other")
	for name := range l.pods { // all of them, by the interface that each one has
		l.ping("50 pods", l.pods[name].Machine, l.world.Addrs[0])
	}
	l.spoofed("50 pods")
}

// losesTheCloud: pods come and go.
func (l *life) losesTheCloud() {
	l.cloud.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: 503} })
	l.until("the controller says it", func() (bool, string) { return l.events.has("n1 CloudUnreachable"), "" })
	had := map[string]netip.Addr{}
	for name, p := range l.pods {
		if p.Node.Name == "n1" && len(had) < 10 {
			had[name] = p.Addrs[0]
		}
	}
	for name := range had {
		l.remove(name)
	}
	for name, was := range had {
		if now := l.add("n1", name).Addrs[0]; now != was {
			l.Errorf("%s had %v and has %v", name, was, now)
		}
		l.talk("the cloud is away", name, "other")
	}

	// The daemon is killed as well, and comes back: no packet is lost, and the node's rules and routes stay.
	ctx, node := l.Context(), l.lab.Node("n1")
	kept := func() (out string) {
		l.Helper()
		for _, args := range [][]string{{"rule"}, {"route", "show", "table", "all", "proto", "119"}} {
			text, err := node.Run(ctx, "ip", args...)
			l.must("ip", err)
			out += text
		}
		return out
	}
	was := kept()
	flow, err := l.pods["p0"].StartFlow(l.world.Addrs[0], 10*time.Millisecond)
	l.must("flow", err)
	l.must("daemon", node.Kill())
	l.remove("p1")
	l.add("n1", "p1")
	l.talk("the daemon is away", "p1", "other")
	l.must("daemon", node.Start(ctx))
	if lost := flow.Stop(); lost.Lost > 0 {
		l.Errorf("while the daemon was away: %v", lost)
	}
	if now := kept(); now != was {
		l.Errorf("rules and routes were\n%s\nand are\n%s", was, now)
	}
}

// reboots: the API server is away too. The first pods come before the daemon, with the addresses that they had.
func (l *life) reboots() {
	ctx, node := l.Context(), l.lab.Node("n1")
	l.must("API server", l.StopAPIServer())
	of := func(n int) []string { // the pods with addresses of an interface, by address
		names := slices.DeleteFunc(slices.Collect(maps.Keys(l.pods)), func(name string) bool {
			return !slices.Contains(l.cloud.Interfaces("i-1")[n].Addresses, l.pods[name].Addrs[0])
		})
		return slices.SortedFunc(slices.Values(names), func(a, b string) int { return l.pods[a].Addrs[0].Compare(l.pods[b].Addrs[0]) })
	}
	first := of(1)
	l.edited, l.stays, l.top, l.unplugged = first[0], first[1], first[len(first)-1], of(2)[0]
	had := map[string]netip.Addr{}
	for name, p := range l.pods {
		switch {
		case slices.Contains([]string{l.edited, l.stays, l.top, l.unplugged}, name):
			had[name] = p.Addrs[0]
		case p.Node == node:
			l.remove(name)
		}
	}
	l.must("reboot", node.Reboot(ctx))
	l.must("plug", l.plug.Connect(ctx, "i-1", node.Machine))
	for name, was := range had {
		if now := l.add("n1", name).Addrs[0]; now != was {
			l.Errorf("after the reboot: %s had %v and has %v", name, was, now)
		}
	}
	l.talk("after a reboot, without a daemon", l.edited, l.stays, l.top, l.unplugged, "other")
	l.must("daemon", node.Start(ctx))
	l.talk("after a reboot", l.stays, l.unplugged, "other")
	l.must("API server", l.StartAPIServer())
	l.cloud.SetFaults(nil)
	l.same("all is back", 50)
	l.spoofed("all is back")
}

// isEdited: in the console somebody removes the address of a pod, adds another address, and removes an interface.
func (l *life) isEdited() {
	l.cloud.Take(l.first.ID, l.pods[l.edited].Addrs[0])
	added := l.cloud.Give(l.first.ID)
	l.cloud.Unbind(l.second.ID)
	l.until("the added address is granted, and the others are withdrawn", func() (bool, string) {
		granted, withdrawn := l.granted("n1"), l.withdrawn("n1")
		return slices.Contains(granted, added) && len(granted) == 25 && slices.Contains(withdrawn, l.pods[l.edited].Addrs[0]) && slices.Contains(withdrawn, l.pods[l.unplugged].Addrs[0]),
			fmt.Sprint(granted, withdrawn)
	})
	l.has("n1", "uplinkMissing", "default/"+l.unplugged)
	l.has("n1", "addressRemoved", "default/"+l.edited)
	l.until("the controller says it", func() (bool, string) { return l.events.has("n1 AddressLost"), "" })
	l.talk("edited", l.stays, l.top, "other")
	l.remove(l.edited)
	l.remove(l.unplugged)
	l.until("what is lost is forgotten", func() (bool, string) {
		e := l.edgeNode("n1")
		return len(e.uplinks.Interfaces) == 1 && len(e.uplinks.Interfaces[0].Withdrawn) == 0, fmt.Sprint(e.uplinks, e.status)
	})
	l.add("n1", "late")
	l.talk("an interface is gone", "late", l.stays, "other")
	l.spoofed("edited")
}

// shrinks: the node gets nine more than its pods use. Spare are the highest addresses, five if the node has not told of its last
// pod yet, else four. Two pods have some of them, and keep them.
func (l *life) shrinks() {
	l.same("all that the interface can have", 25)
	l.end()
	l.options.Terms.Fill = Fill{9}
	l.start()
	kept := []netip.Addr{l.pods[l.top].Addrs[0], l.pods["late"].Addrs[0]} // late has a new address: these were never used
	slices.SortFunc(kept, netip.Addr.Compare)
	l.until("what the node has confirmed is taken back", func() (bool, string) {
		assigned, withdrawn := l.addresses("i-1"), l.withdrawn("n1")
		slices.SortFunc(withdrawn, netip.Addr.Compare)
		return len(assigned) <= 23 && slices.Equal(withdrawn, kept), fmt.Sprint(assigned, withdrawn, kept)
	})
	for _, p := range l.pods {
		if p.Node.Name == "n1" && !slices.Contains(l.addresses("i-1"), p.Addrs[0]) {
			l.Errorf("%v of %s was taken", p.Addrs, p.Name)
		}
	}
	l.talk("after the shrink", l.top, l.stays, "late", "other")
	l.spoofed("after the shrink")
}

// leaves: the instance is released, and its Node deleted. The interfaces that eni-tool made are reported, and kept.
func (l *life) leaves() {
	for name, p := range l.pods {
		if p.Node.Name == "n1" {
			l.remove(name)
		}
	}
	l.must("daemon", l.lab.Node("n1").Terminate())
	l.kubectl("delete", "node", "n1")
	l.cloud.RemoveInstance("i-1")
	l.until("the EdgeNode is gone, and the interfaces are reported", func() (bool, string) {
		reported := l.logs.has("interface "+l.first.ID) && l.logs.has("interface "+l.second.ID) && l.logs.has("eniLeft")
		return l.edgeNode("n1").version == "" && reported, fmt.Sprint(reported)
	})
	if left := l.cloud.Interfaces(""); len(left) != 2 {
		l.Errorf("interfaces without an instance: %+v", left)
	}
	l.talk("the instance has left", "other")
	l.spoofed("the instance has left")
}
