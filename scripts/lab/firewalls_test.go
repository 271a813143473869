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

// firewalledLAN is a LAN whose other machine knows the way to every node's pods, as a switch does.
const firewalledLAN = `
hosts:
- name: pc
  links: [{lan: shop, addrs: [10.0.10.99/24]}]
  routes: [{to: 10.10.1.0/24, via: 10.0.10.11}, {to: 10.10.2.0/24, via: 10.0.10.12}, {to: 10.10.3.0/24, via: 10.0.10.13}]
nodes:
- {name: node-1, links: [{lan: shop, addrs: [10.0.10.11/24]}]}
- {name: node-2, links: [{lan: shop, addrs: [10.0.10.12/24]}]}
- {name: node-3, links: [{lan: shop, addrs: [10.0.10.13/24]}]}
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
	topology, err := lab.ParseTopology([]byte(firewalledLAN))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(ctx, topology); err != nil {
		t.Fatal(err)
	}
	mode := func(mode string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(l.ClusterDir, "pool.yaml"), []byte(strings.ReplaceAll(firewalledPool, "MODE", mode)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mode("underlay")
	nodes, err := os.ReadFile("../../deploy/example/cluster.d/nodes.yaml")
	if err == nil {
		err = os.WriteFile(filepath.Join(l.ClusterDir, "nodes.yaml"), nodes, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Each machine with the address of its TCP server.
	servers := map[*lab.Machine]netip.AddrPort{}
	serve := func(m *lab.Machine) {
		t.Helper()
		s, err := m.Serve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		servers[m] = netip.AddrPortFrom(m.Addrs[0], s.Port())
	}
	pc := l.Machine("pc")
	serve(pc)
	boxes, pods := map[string]*lab.Box{}, map[string]*lab.Machine{}
	for _, f := range firewalls {
		b := l.NewBox(f.node)
		boxes[f.node] = b
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
		pods[f.node] = pod.Machine
		serve(pod.Machine)
		serve(b.Machine)
	}
	reaches := func(from, to *lab.Machine) {
		t.Helper()
		if err := lab.Wait(ctx, waitLimit, func() error {
			_, err := from.Seen(ctx, servers[to])
			return err
		}); err != nil {
			t.Errorf("%s does not reach %s: %v", from.Name, to.Name, err)
		}
	}
	cut := func(from, to *lab.Machine) {
		t.Helper()
		if err := lab.Wait(ctx, waitLimit, func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Second) // most firewalls drop without an answer
			defer cancel()
			if _, err := from.Seen(ctx, servers[to]); err == nil {
				return errors.New("it answers")
			}
			return nil
		}); err != nil {
			t.Errorf("%s reaches %s: %v", from.Name, to.Name, err)
		}
	}
	eachPair := func(f func(from, to *lab.Machine)) {
		t.Helper()
		for _, from := range pods {
			for _, to := range pods {
				if from != to {
					f(from, to)
				}
			}
		}
	}
	on := func(node, commands string) {
		t.Helper()
		if err := typed(ctx, boxes[node], commands); err != nil {
			t.Fatal(err)
		}
	}

	// says waits until the status of a node names the chain in a problem of that reason; "": until it has no such problem.
	says := func(node, reason, chain string) {
		t.Helper()
		if err := lab.Wait(ctx, waitLimit, func() error {
			s, err := boxes[node].Status(ctx)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(s.Problems, func(p api.Problem) bool { return p.Reason == reason })
			if chain == "" && at >= 0 || chain != "" && (at < 0 || !strings.Contains(s.Problems[at].Got, chain)) {
				return fmt.Errorf("%+v", s.Problems)
			}
			return nil
		}); err != nil {
			t.Errorf("%s, %s, %q: %v", node, reason, chain, err)
		}
	}

	eachPair(reaches)
	for _, f := range firewalls {
		pod := pods[f.node]
		reaches(pc, pod)
		if err := f.start(ctx, boxes[f.node]); err != nil {
			t.Fatal(err)
		}
		on(f.node, look)
		cut(pc, pod)
		says(f.node, "forwardDropped", f.chain)
		on(f.node, native[f.command])
		reaches(pc, pod)
		reaches(pod, pc)
		reaches(pod, boxes[f.node].Machine)
	}
	eachPair(reaches)
	for _, f := range firewalls {
		says(f.node, "forwardDropped", "")
	}

	mode("overlay")
	for _, from := range []string{"node-1", "node-3"} { // Docker filters nothing that is for the node itself
		to := "node-2"
		if err := lab.Wait(ctx, waitLimit, func() error {
			route, err := boxes[from].Run(ctx, "ip", "route", "get", pods[to].Addrs[0].String())
			if err == nil && !strings.Contains(route, "dev edgeway.1") {
				err = fmt.Errorf("%s sends natively: %s", from, route)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	cut(pods["node-3"], pods["node-1"])
	cut(pods["node-3"], pods["node-2"])
	says("node-1", "hostDropped", "inet firewalld filter_IN_public")
	says("node-2", "hostDropped", "ip filter INPUT of nftables, policy drop")
	for _, f := range firewalls {
		if commands := overlay[f.command]; commands != "" {
			on(f.node, commands)
		}
	}
	eachPair(reaches)
}
