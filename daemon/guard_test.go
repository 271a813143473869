package daemon

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// wall plays a kernel's firewall and neighbours.
type wall struct {
	generation uint32
	judged     int
	finding    routes.Finding
	hearing    routes.Hearing
	asking     bool
}

func (w *wall) Generation(context.Context) (uint32, error) { return w.generation, nil }

func (w *wall) Judge(_ context.Context, packets ...routes.Packet) ([][]routes.Finding, error) {
	w.judged++
	out := make([][]routes.Finding, len(packets))
	for i, p := range packets {
		if p.In != "" && p.Out != "" {
			w.finding.Packets++ // counts as traffic does
			out[i] = []routes.Finding{{Hook: routes.Prerouting}, w.finding}
		}
	}
	return out, nil
}

func (w *wall) Listen(_ context.Context, of []routes.Neighbour) (map[routes.Neighbour]routes.Heard, error) {
	out := map[routes.Neighbour]routes.Heard{}
	for _, n := range of {
		out[n] = routes.Heard{Hearing: w.hearing, Asking: w.asking}
	}
	return out, nil
}

// The firewall is read again only when it changed, a rule is one problem however many nodes it concerns, and a counter
// that counts is no news. A gateway is silent after three looks.
func TestGuard(t *testing.T) {
	k := &wall{finding: routes.Finding{Hook: routes.Forward, Outcome: routes.Drops, Place: routes.Place{Family: 2, Table: "filter", Chain: "FORWARD"}, Does: "drop", Policy: true, Program: "Docker"}}
	k.finding.Base, k.finding.Owned = k.finding.Place, true
	world := policy.World{Self: "n1", Config: config.Defaults(), Host: routes.Host{
		Links:  []routes.Link{{Name: "eth0", Up: true, MTU: 1500}},
		Addrs:  []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}},
		Routes: []routes.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.254"), Link: "eth0"}},
	}}
	for _, n := range []struct{ name, cidr, addr string }{{"n1", "10.10.1.0/24", "192.0.2.1"}, {"n2", "10.10.2.0/24", "192.0.2.2"}, {"n3", "10.10.3.0/24", "192.0.2.3"}} {
		world.Cluster.Nodes = append(world.Cluster.Nodes, cluster.Node{Name: n.name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(n.cidr)}, Addresses: []netip.Addr{netip.MustParseAddr(n.addr)}})
	}
	w := watchman{k: k, misses: map[routes.Neighbour]int{}, heard: memory{}}
	look := func() guarding {
		t.Helper()
		plan := policy.Decide(world)
		g, err := w.look(t.Context(), plan)
		if err := errors.Join(w.listen(t.Context(), plan), err); err != nil {
			t.Fatal(err)
		}
		g.dead = w.dead
		return g
	}
	first := look()
	if again := look(); k.judged != 1 || !again.equal(first) || len(first.barriers) != 1 {
		t.Errorf("judged %d times, found %v, then %v", k.judged, first, again)
	}
	k.generation++
	if again := look(); k.judged != 2 || !again.equal(first) {
		t.Errorf("judged %d times, found %v", k.judged, again)
	}
	k.finding.Owned = false // rules of ours are wanted: after each change of the firewall, the loop must look after them
	k.generation++
	opened := look()
	k.generation++
	if again := look(); again.equal(opened) || !look().equal(again) {
		t.Errorf("found %v, then %v", opened, again)
	}
	k.finding.Owned = true
	k.generation++
	k.hearing = routes.Silent
	for round := range 4 {
		if dead := len(look().dead); dead != max(0, min(1, round-1)) {
			t.Errorf("round %d: %d gateways are silent", round, dead)
		}
	}
	g := look()
	world.Barriers, world.Dead = g.barriers, g.dead
	var got []string
	for _, p := range policy.Decide(world).Problems {
		got = append(got, string(p.Reason)+" "+p.String())
	}
	want := []string{
		"silentGateway gateway 192.0.2.254: want the default route's gateway to answer on eth0, got no answer to ARP or neighbour discovery; correct the address, or check the switch and the VLAN of its port; packets for other LANs are lost until it answers",
		"forwardDropped firewall: want pods' packets from 10.10.1.128 to 10.10.1.129 to pass, got forward: chain ip filter FORWARD of nftables, policy drop; iptables -I DOCKER-USER -i ew+ -j ACCEPT; iptables -I DOCKER-USER -o ew+ -j ACCEPT; in a file that runs at each start",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	k.hearing = routes.Answers
	if dead := look().dead; len(dead) != 0 {
		t.Errorf("silent: %v", dead)
	}
	// Packets for a dead gateway keep coming: the kernel asks all the time, and is never found to have given up.
	k.hearing, k.asking = routes.Unsure, true
	for round := range 5 {
		if dead := len(look().dead); dead != max(0, min(1, round-2)) {
			t.Errorf("asking, round %d: %d gateways are silent", round, dead)
		}
	}
}

// In a firewall of legacy iptables, the rules of edgeway stood there and the problem stayed for five seconds: nothing
// announced the change to the guard.
func TestGuardLooksAfterItsRulesChanged(t *testing.T) {
	m := newMachine(t)
	rules := routes.Change{Op: routes.Add, Object: routes.Passage{Place: routes.Place{Family: 2, Table: "filter", Chain: "FORWARD", Legacy: true}}}
	for err, want := range map[error]int{nil: 1, errors.New("another program holds the lock"): 0} {
		rules.Err = err
		m.loop.changed(&outcome{said: map[string]bool{}}, []routes.Change{rules}, err)
		if got := len(m.loop.firewall); got != want {
			t.Errorf("%v: %d looks, want %d", err, got, want)
		}
		if want == 1 {
			<-m.loop.firewall
		}
	}
}
