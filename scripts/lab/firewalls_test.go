package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// firewalledLAN is a LAN whose other machine knows the way to every node's pods, as a switch does. CONFIG is what the
// nodes' configuration says of firewalls.
const firewalledLAN = `
hosts:
- name: pc
  links: [{lan: shop, addrs: [10.0.10.99/24, fd00:0:0:10::99/64]}]
  routes:
  - {to: 10.10.1.0/24, via: 10.0.10.11}
  - {to: 10.10.2.0/24, via: 10.0.10.12}
  - {to: 10.10.3.0/24, via: 10.0.10.13}
  - {to: fd00:10:1::/64, via: fd00:0:0:10::11}
  - {to: fd00:10:2::/64, via: fd00:0:0:10::12}
  - {to: fd00:10:3::/64, via: fd00:0:0:10::13}
nodes:
- {name: node-1, links: [{lan: shop, addrs: [10.0.10.11/24, fd00:0:0:10::11/64]}], config: {firewall: "CONFIG"}}
- {name: node-2, links: [{lan: shop, addrs: [10.0.10.12/24, fd00:0:0:10::12/64]}], config: {firewall: "CONFIG"}}
- {name: node-3, links: [{lan: shop, addrs: [10.0.10.13/24, fd00:0:0:10::13/64]}], config: {firewall: "CONFIG"}}
`

// firewalledPool selects all nodes.
const firewalledPool = `apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: shop}
spec: {nodeSelector: all(), mode: MODE}
`

// firewalledScript gives a node an /etc, /run and /var/log of its own, with all that is in /etc.
const firewalledScript = `mkdir -p DIR/etc DIR/log
cp -a /etc/. DIR/etc/
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/dbus
mount --bind DIR/log /var/log
mount --bind DIR/etc /etc`

// firewalls are what cuts off the pods of a node, each with the first word of the page's commands against it, and the
// chain that the node's status names.
var firewalls = []struct {
	node, command, chain string
	start                func(ctx context.Context, b *lab.Box) error
}{
	{"node-1", "firewall-cmd", "inet firewalld filter_FWD_public", startFirewalld},
	{"node-2", "ufw", "ip filter FORWARD of nftables, policy drop", func(ctx context.Context, b *lab.Box) error { return typed(ctx, b, "ufw --force enable") }},
	{"node-3", "iptables", "ip filter FORWARD of nftables, policy drop", func(ctx context.Context, b *lab.Box) error {
		rules, err := filepath.Abs("testdata/docker.rules")
		if err != nil {
			return err
		}
		return typed(ctx, b, "iptables-restore "+rules)
	}},
}

// startFirewalld starts the daemon, and binds the LAN's link to the default zone as NetworkManager does.
func startFirewalld(ctx context.Context, b *lab.Box) error {
	if err := b.StartProgram(ctx, []string{"dbus-daemon", "--system", "--nofork", "--nopidfile"}, func() error {
		_, err := os.Stat(b.InsidePath("/run/dbus/system_bus_socket"))
		return err
	}); err != nil {
		return err
	}
	if err := b.StartProgram(ctx, []string{"firewalld", "--nofork", "--nopid"}, func() error {
		return typed(ctx, b, "firewall-cmd --state")
	}); err != nil {
		return err
	}
	return typed(ctx, b, "firewall-cmd --permanent --zone=public --add-interface=eth0\nfirewall-cmd --reload")
}

// typed runs commands in the box as if typed there, and stops at the first that fails.
func typed(ctx context.Context, b *lab.Box, commands string) error {
	out, err := b.RunInside(ctx, "sh", "-ec", commands)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return err
}

// walls are three nodes with a pod each, in one LAN with a PC.
type walls struct {
	t     *testing.T
	l     *lab.Lab
	pc    *lab.Machine
	boxes map[string]*lab.Box
	pods  map[string]*lab.Machine
	ports map[*lab.Machine]uint16 // of each machine's TCP server
}

// newWalls starts the nodes. With both families the pods have IPv6 addresses too.
func newWalls(t *testing.T, firewall string, both bool) *walls {
	t.Helper()
	ctx := t.Context()
	l, err := lab.New(lab.Options{Bin: bin()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &walls{t: t, l: l, boxes: map[string]*lab.Box{}, pods: map[string]*lab.Machine{}, ports: map[*lab.Machine]uint16{}}
	topology, err := lab.ParseTopology([]byte(strings.ReplaceAll(firewalledLAN, "CONFIG", firewall)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(ctx, topology); err != nil {
		t.Fatal(err)
	}
	w.mode("underlay")
	nodes, err := os.ReadFile("../../deploy/example/cluster.d/nodes.yaml")
	if both {
		nodes = regexp.MustCompile(`podCIDRs: \[10\.10\.(\d)\.0/24\]`).ReplaceAll(nodes, []byte("podCIDRs: [10.10.$1.0/24, 'fd00:10:$1::/64']"))
		nodes = regexp.MustCompile(`(- \{type: InternalIP, address: )10\.0\.10\.(\d+)\}`).ReplaceAll(nodes, []byte("$0\n  $1'fd00:0:0:10::$2'}"))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(l.ClusterDir, "nodes.yaml"), nodes, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.pc = l.Machine("pc")
	w.serve(w.pc)
	for _, f := range firewalls {
		b := l.NewBox(f.node)
		w.boxes[f.node] = b
		t.Cleanup(func() {
			if err := b.PowerOff(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
		if err := b.Boot(ctx, firewalledScript); err != nil {
			t.Fatal(err)
		}
		if err := b.Node.Start(ctx); err != nil {
			t.Fatal(err)
		}
		pod, err := b.AddPod(ctx, "default", "pod-of-"+f.node)
		if err != nil {
			t.Fatal(err)
		}
		w.pods[f.node] = pod.Machine
		w.serve(pod.Machine)
		w.serve(b.Machine)
	}
	return w
}

func (w *walls) mode(mode string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.l.ClusterDir, "pool.yaml"), []byte(strings.ReplaceAll(firewalledPool, "MODE", mode)), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// tunnels sets the mode overlay, and waits until the nodes whose neighbours have firewalls send through the tunnel.
func (w *walls) tunnels() {
	w.t.Helper()
	w.mode("overlay")
	for _, from := range []string{"node-1", "node-3"} { // Docker filters nothing that is for the node itself
		to := "node-2"
		if err := lab.Wait(w.t.Context(), waitLimit, func() error {
			route, err := w.boxes[from].Run(w.t.Context(), "ip", "route", "get", w.pods[to].Addrs[0].String())
			if err == nil && !strings.Contains(route, "dev edgeway.1") {
				err = fmt.Errorf("%s sends natively: %s", from, route)
			}
			return err
		}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *walls) serve(m *lab.Machine) {
	w.t.Helper()
	s, err := m.Serve()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Close)
	w.ports[m] = s.Port()
}

// reaches waits until a connection arrives, in each family that both machines have.
func (w *walls) reaches(from, to *lab.Machine) {
	w.t.Helper()
	for i := range min(len(from.Addrs), len(to.Addrs)) {
		if err := lab.Wait(w.t.Context(), waitLimit, func() error {
			_, err := from.Seen(w.t.Context(), netip.AddrPortFrom(to.Addrs[i], w.ports[to]))
			return err
		}); err != nil {
			w.t.Errorf("%s does not reach %s at %v: %v", from.Name, to.Name, to.Addrs[i], err)
		}
	}
}

// cut waits until no connection arrives, by IPv4.
func (w *walls) cut(from, to *lab.Machine) {
	w.t.Helper()
	if err := lab.Wait(w.t.Context(), waitLimit, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second) // most firewalls drop without an answer
		defer cancel()
		if _, err := from.Seen(ctx, netip.AddrPortFrom(to.Addrs[0], w.ports[to])); err == nil {
			return errors.New("it answers")
		}
		return nil
	}); err != nil {
		w.t.Errorf("%s reaches %s: %v", from.Name, to.Name, err)
	}
}

func (w *walls) eachPair(f func(from, to *lab.Machine)) {
	w.t.Helper()
	for _, from := range w.pods {
		for _, to := range w.pods {
			if from != to {
				f(from, to)
			}
		}
	}
}

func (w *walls) on(node, commands string) {
	w.t.Helper()
	if err := typed(w.t.Context(), w.boxes[node], commands); err != nil {
		w.t.Fatal(err)
	}
}

// says waits until the status of a node names the chain in a problem of that reason; "": until it has no such problem.
func (w *walls) says(node, reason, chain string) {
	w.t.Helper()
	if err := lab.Wait(w.t.Context(), waitLimit, func() error {
		s, err := w.boxes[node].Status(w.t.Context())
		if err != nil {
			return err
		}
		at := slices.IndexFunc(s.Problems, func(p api.Problem) bool { return p.Reason == reason })
		if chain == "" && at >= 0 || chain != "" && (at < 0 || !strings.Contains(s.Problems[at].Got, chain)) {
			return fmt.Errorf("%+v", s.Problems)
		}
		return nil
	}); err != nil {
		w.t.Errorf("%s, %s, %q: %v", node, reason, chain, err)
	}
}

// opened waits for the line of the status that names the chain.
func (w *walls) opened(node, chain string) {
	w.t.Helper()
	if err := lab.Wait(w.t.Context(), waitLimit, func() error {
		s, err := w.boxes[node].Status(w.t.Context())
		if err == nil && !slices.ContainsFunc(s.Firewall, func(p api.Passage) bool { return p.State == api.Installed && strings.Contains(p.Chain, chain) }) {
			err = fmt.Errorf("%+v", s.Firewall)
		}
		return err
	}); err != nil {
		w.t.Errorf("%s, %s: %v", node, chain, err)
	}
}

// closed restarts a node's daemon with firewall: off.
func (w *walls) closed(node string) {
	w.t.Helper()
	b := w.boxes[node]
	text, err := os.ReadFile(b.Config)
	if err == nil {
		err = os.WriteFile(b.Config, []byte(strings.ReplaceAll(string(text), "firewall: accept", `firewall: "off"`)), 0o644)
	}
	if err == nil {
		err = b.Terminate()
	}
	if err == nil {
		w.reaches(w.pods["node-1"], w.pods[node]) // the rules stay without a daemon
		err = b.Node.Start(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// purged ends a node's daemon and removes edgeway.
func (w *walls) purged(node string) {
	w.t.Helper()
	b := w.boxes[node]
	if err := b.Terminate(); err != nil {
		w.t.Fatal(err)
	}
	if out, err := b.Command(w.t.Context(), "uninstall", "--purge", "--force", "--plugin-dir", w.t.TempDir()); err != nil || !strings.Contains(out, "delete rules in chain") {
		w.t.Errorf("%v\n%s", err, out)
	}
}

// left reports rules of edgeway's that the commands still print.
func (w *walls) left(node string, commands ...string) {
	w.t.Helper()
	for _, command := range commands {
		if out, err := w.boxes[node].RunInside(w.t.Context(), strings.Fields(command)...); err != nil || strings.Contains(out, "edgeway accepts") {
			w.t.Errorf("%s still has rules of edgeway: %v\n%s", node, err, out)
		}
	}
}

// Pods behind firewalld, ufw and Docker are cut off until the commands of the chapter "Firewalls" in
// docs/troubleshooting.md are typed. Then the LAN reaches them, they reach each other, and their own node.
func TestFirewallsOfThePage(t *testing.T) {
	lab.Need(t, "firewalld", "ufw", "iptables-restore", "dbus-daemon", "nft")
	needPrograms(t)
	t.Parallel()
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, _ := strings.Cut(string(text), "\n## Firewalls\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	look, native, overlay := "", map[string]string{}, map[string]string{}
	for i, m := range regexp.MustCompile("(?s)\n```bash\n(.*?)```\n").FindAllStringSubmatch(chapter, -1) {
		if i == 0 {
			look = m[1]
			continue
		}
		word := strings.Fields(m[1])[0]
		for line := range strings.Lines(m[1]) {
			if !strings.Contains(line, "8472") {
				native[word] += line
			}
			if strings.Contains(line, "8472") || strings.Contains(line, "--reload") {
				overlay[word] += line
			}
		}
	}
	if len(native) != len(firewalls) {
		t.Fatalf("the chapter has commands against %d firewalls, want %d", len(native), len(firewalls))
	}

	w := newWalls(t, "off", false)

	w.eachPair(w.reaches)
	for _, f := range firewalls {
		pod := w.pods[f.node]
		w.reaches(w.pc, pod)
		if err := f.start(t.Context(), w.boxes[f.node]); err != nil {
			t.Fatal(err)
		}
		w.on(f.node, look)
		w.cut(w.pc, pod)
		w.says(f.node, "forwardDropped", f.chain)
		w.on(f.node, native[f.command])
		w.reaches(w.pc, pod)
		w.reaches(pod, w.pc)
		w.reaches(pod, w.boxes[f.node].Machine)
	}
	w.eachPair(w.reaches)
	for _, f := range firewalls {
		w.says(f.node, "forwardDropped", "")
	}

	w.tunnels()
	w.cut(w.pods["node-3"], w.pods["node-1"])
	w.cut(w.pods["node-3"], w.pods["node-2"])
	w.says("node-1", "hostDropped", "inet firewalld filter_IN_public")
	w.says("node-2", "hostDropped", "ip filter INPUT of nftables, policy drop")
	for _, f := range firewalls {
		if commands := overlay[f.command]; commands != "" {
			w.on(f.node, commands)
		}
	}
	w.eachPair(w.reaches)
}

// Where the end of a firewall's chain drops, pods go on without anybody's help, in both families and through the tunnel:
// a rule of edgeway's is there within a second of the firewall, also after a flush and a reload. A rule of the
// administrator's stays in force. firewall: off and a purge leave nothing.
func TestFirewallsAreOpened(t *testing.T) {
	lab.Need(t, "firewalld", "ufw", "iptables-restore", "dbus-daemon", "nft")
	needPrograms(t)
	t.Parallel()
	w := newWalls(t, "accept", true)
	ctx := t.Context()
	w.eachPair(w.reaches)
	for _, f := range firewalls {
		if err := f.start(ctx, w.boxes[f.node]); err != nil {
			t.Fatal(err)
		}
		chain, _, _ := strings.Cut(f.chain, " of nftables")
		w.opened(f.node, chain)
		w.says(f.node, "forwardDropped", "")
		w.reaches(w.pc, w.pods[f.node])
		w.reaches(w.pods[f.node], w.pc)
	}
	w.on("node-3", "ip6tables -P FORWARD DROP")
	w.opened("node-3", "ip6 filter FORWARD")
	w.eachPair(w.reaches)

	pod := w.pods["node-3"]
	drop := "FORWARD -s 10.0.10.99 -d " + pod.Addrs[0].String() + " -j DROP"
	w.on("node-3", "iptables -A "+drop)
	w.cut(w.pc, pod)
	w.reaches(w.pods["node-1"], pod)
	w.on("node-3", "iptables -D "+drop)
	w.reaches(w.pc, pod)
	w.on("node-1", `firewall-cmd --permanent --new-policy=apart
firewall-cmd --permanent --policy=apart --add-ingress-zone=ANY
firewall-cmd --permanent --policy=apart --add-egress-zone=ANY
firewall-cmd --permanent --policy=apart --set-target=DROP
firewall-cmd --reload`)
	w.says("node-1", "forwardDropped", "inet firewalld filter_FWD_policy_apart")
	w.cut(w.pc, w.pods["node-1"])
	w.on("node-1", "firewall-cmd --permanent --delete-policy=apart\nfirewall-cmd --reload")
	w.reaches(w.pc, w.pods["node-1"])

	rules, err := filepath.Abs("testdata/docker.rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []struct{ node, commands string }{
		{"node-3", "iptables -F"}, {"node-3", "nft flush ruleset\niptables-restore " + rules}, {"node-1", "firewall-cmd --reload"}, {"node-2", "ufw reload"},
	} {
		w.on(again.node, again.commands)
		began := time.Now()
		w.reaches(w.pc, w.pods[again.node])
		t.Logf("%s: %q: pods are reached again after %v", again.node, again.commands, time.Since(began).Round(time.Millisecond))
		w.opened(again.node, "")
	}
	w.eachPair(w.reaches)

	w.tunnels()
	w.eachPair(w.reaches)
	w.opened("node-1", "inet firewalld filter_IN_public")
	w.opened("node-2", "ip filter INPUT")
	for _, f := range firewalls {
		w.says(f.node, "hostDropped", "")
		w.says(f.node, "forwardDropped", "")
	}

	w.closed("node-3")
	w.says("node-3", "forwardDropped", "ip filter FORWARD of nftables, policy drop")
	w.cut(w.pods["node-1"], pod)
	w.left("node-3", "nft list ruleset")
	for _, node := range []string{"node-1", "node-2"} {
		w.purged(node)
		w.left(node, "nft list ruleset")
	}
}

// The same with legacy iptables: a policy by hand in both families, the rules of ufw, and those of Docker. It announces
// no change, so the rules are back within some seconds of a flush, a restore and an appended rule.
func TestLegacyFirewallsAreOpened(t *testing.T) {
	lab.Need(t, "iptables-legacy", "ip6tables-legacy", "iptables-legacy-restore", "nft")
	needPrograms(t)
	t.Parallel()
	w := newWalls(t, "accept", true)
	restore := func(path string) string {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return "iptables-legacy-restore " + path
	}
	ufw, docker := restore("../../routes/testdata/firewall/ufw.iptables"), restore("testdata/docker.rules")
	const policies = "iptables-legacy -P FORWARD DROP\nip6tables-legacy -P FORWARD DROP"
	w.on("node-1", policies)
	w.on("node-2", ufw)
	w.on("node-3", docker)
	reached := func() {
		t.Helper()
		for _, f := range firewalls {
			w.says(f.node, "forwardDropped", "")
			w.reaches(w.pc, w.pods[f.node])
			w.reaches(w.pods[f.node], w.pc)
		}
		w.eachPair(w.reaches)
	}
	w.opened("node-1", "FORWARD of iptables-legacy -t filter")
	w.opened("node-1", "FORWARD of ip6tables-legacy -t filter")
	w.opened("node-2", "FORWARD of iptables-legacy -t filter")
	w.opened("node-3", "FORWARD of iptables-legacy -t filter")
	reached()

	pod := w.pods["node-3"]
	drop := "FORWARD -s 10.0.10.99 -d " + pod.Addrs[0].String() + " -j DROP"
	w.on("node-1", "iptables-legacy -F\nip6tables-legacy -F\n"+policies)
	w.on("node-2", ufw)
	w.on("node-3", docker+"\niptables-legacy -A "+drop)
	began := time.Now()
	w.cut(w.pc, pod)
	w.eachPair(w.reaches)
	t.Logf("pods are reached again after %v", time.Since(began).Round(time.Millisecond))
	w.on("node-3", "iptables-legacy -D "+drop)
	w.reaches(w.pc, pod)

	w.closed("node-3")
	w.says("node-3", "forwardDropped", "FORWARD of iptables-legacy -t filter, policy drop")
	w.cut(w.pods["node-1"], pod)
	w.purged("node-1")
	w.purged("node-2")
	for _, f := range firewalls {
		w.left(f.node, "iptables-legacy-save", "ip6tables-legacy-save")
	}
}
