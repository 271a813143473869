package routes

import (
	"strings"
	"testing"
)

// A machine of the LAN knows a pod's address at the MAC of another node, and asks nobody for half a minute. It hears
// where the address is now, and an ordinary question of this node tells it nothing.
func TestAddressThatMovedIsAnnounced(t *testing.T) {
	s := newSpace(t)
	lan := s.wire()
	lan.run("ip addr add 10.0.0.9/24 dev lan0")
	const stale = "ip neigh replace 10.0.0.31 lladdr 02:00:00:00:00:99 dev lan0 nud reachable"
	lan.run(stale)
	scope, want := Scope{Rules: true}, State{Announced: &Announced{}}
	s.sync(scope, want)
	if changes, err := s.k.Sync(t.Context(), scope, want); err != nil || len(changes) > 0 {
		t.Errorf("got %v, %v", texts(changes), err)
	}
	if err := s.k.Announce(t.Context(), "eth0", addr("10.0.0.31")); err != nil {
		t.Fatal(err)
	}
	_, mac, _ := strings.Cut(s.run("ip link show dev eth0"), "link/ether ")
	mac, _, _ = strings.Cut(mac, " ")
	eventually(t, "the LAN knows it", func() bool {
		return strings.Contains(lan.run("ip neigh show 10.0.0.31"), mac)
	})
	s.quiet(scope, want) // also while the address is in the set

	lan.run(stale)
	lan.run("ip addr add 10.0.0.32/24 dev lan0")
	s.run("ping -c1 -W5 10.0.0.32") // asks for it as itself, and is answered
	lan.contains("ip neigh show 10.0.0.11", mac)

	for _, fault := range []string{"nft flush chain arp edgeway-announced output", "nft delete table arp edgeway-announced",
		"nft flush chain arp edgeway-announced output; nft delete set arp edgeway-announced moment"} {
		for one := range strings.SplitSeq(fault, "; ") {
			s.run(one)
		}
		if len(s.sync(scope, want)) == 0 {
			t.Errorf("%s: nothing was repaired", fault)
		}
	}
	s.sync(scope, State{})
	s.lacks("nft list ruleset", "edgeway")
	if err := s.k.Announce(t.Context(), "eth0", addr("10.0.0.31")); err == nil {
		t.Error("announced without the table, which would be a question")
	}
}
