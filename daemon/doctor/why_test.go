package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// withPod gives the machine a pod, shop/till with 10.10.1.5 on ew0, and node-2 a pod 10.10.2.5.
func (m *machine) withPod() []api.Lease {
	m.t.Helper()
	pod, err := lab.NewSpace("")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { pod.Close() })
	m.run(m.space, "ip link add ew0 type veth peer name pod0")
	if err := m.space.Do(func() error {
		return exec.Command("ip", "link", "set", "pod0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pod.File.Fd())).Run()
	}); err != nil {
		m.t.Fatal(err)
	}
	m.run(pod, "ip addr add 10.10.1.5/32 dev pod0 && ip link set pod0 up && ip route add default dev pod0")
	m.run(m.space, "ip link set ew0 up && ip route add 10.10.1.5 dev ew0 && ip route add 10.10.2.0/24 via 192.0.2.12")
	m.run(m.lan, "ip addr add 10.10.2.5/32 dev lo && ip route add 10.10.1.0/24 via 192.0.2.11")
	return []api.Lease{{Addrs: []string{"10.10.1.5"}, Pod: "shop/till", Link: "ew0", State: "alive"}}
}

// The way of a pod's packets is followed on the node of either end, and each fault is where it stops.
func TestWhy(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	leases := m.withPod()
	why := func(a, b string) Answer {
		t.Helper()
		var answer Answer
		if err := m.space.Do(func() (err error) {
			answer, err = Why(t.Context(), m.config, leases, a, b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	text := func(a Answer) string {
		var out []string
		for _, s := range append(a.There, a.Back...) {
			out = append(out, s.State+" "+s.Text)
		}
		return strings.Join(out, "\n")
	}
	whole := text(why("shop/till", "10.10.2.5"))
	for _, want := range []string{
		"ok shop/till (10.10.1.5) sends by its link ew0, MTU 1500",
		"ok the kernel's route: 10.10.2.5 via 192.0.2.12 dev eth0",
		"ok no firewall stops it at prerouting, forward, postrouting",
		"ok the next hop, 192.0.2.12, answers on eth0",
		"ok live: 10.10.2.5 answers a packet from this node",
		"ok 10.10.2.5 sends; packets arrive on eth0, by which this machine would answer",
		"ok it arrives at the pod, by ew0",
	} {
		if !strings.Contains(whole, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if t.Failed() || strings.Contains(whole, "problem") {
		t.Fatal(whole)
	}
	for _, tt := range []struct{ name, fault, repair, a, b, stops, next string }{
		{"nothing is wrong between the nodes", "true", "true", "node-1", "node-2", "", ""},
		{"the other direction", "true", "true", "10.10.2.5", "shop/till", "", ""},
		{"Docker", "iptables-restore ../../routes/testdata/firewall/docker.iptables", "iptables -P FORWARD ACCEPT", "shop/till", "10.10.2.5",
			"forward: chain ip filter FORWARD of nftables, policy drop", "iptables -I DOCKER-USER -i ew+ -j ACCEPT"},
		{"a rule", "nft add table ip x; nft 'add chain ip x f { type filter hook forward priority 0; }'; nft add rule ip x f ip daddr 10.10.2.0/24 counter drop", "nft delete table ip x",
			"shop/till", "10.10.2.5", "forward: chain ip x f of nftables, rule with handle 2: drop (0 packets so far)", "nft delete rule ip x f handle 2"},
		{"forwarding is off", "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", "shop/till", "10.10.2.5", "forwarding is off: net/ipv4/", "sysctl -w net.ipv4."},
		{"the reverse path filter", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1 && ip route add 10.10.2.5 dev ew0", "ip route del 10.10.2.5 dev ew0", "shop/till", "10.10.2.5",
			"edgeway wants another route: ", "ip route get 10.10.2.5"},
		{"the pod's link is down", "ip link set ew0 down", "ip link set ew0 up && ip route add 10.10.1.5 dev ew0", "10.10.2.5", "shop/till", "", ""},
		{"no such pod", "true", "true", "node-2", "10.10.1.77", "no pod of this node has 10.10.1.77", "edgewayd ipam list"},
	} {
		m.run(m.space, tt.fault)
		a := why(tt.a, tt.b)
		m.run(m.space, tt.repair)
		expected := tt.fault != "true" || tt.stops != ""
		if (a.Stops != "") != expected || !strings.Contains(a.Stops, tt.stops) || !strings.Contains(a.Next, tt.next) {
			t.Errorf("%s: stops %q, next %q, want %q, %q\n%s", tt.name, a.Stops, a.Next, tt.stops, tt.next, text(a))
		}
	}
	m.run(m.lan, "ip addr flush dev lan0")
	if a := why("shop/till", "10.10.2.5"); a.Stops != "the next hop, 192.0.2.12, does not answer on eth0" {
		t.Errorf("stops %q\n%s", a.Stops, text(a))
	}
	if err := m.space.Do(func() error { _, err := Why(t.Context(), m.config, leases, "node-2", "192.0.2.77"); return err }); err == nil || !strings.Contains(err.Error(), "run it on node-2") {
		t.Errorf("got %v", err)
	}
}
