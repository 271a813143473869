package policy

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// A speaker that learned of a change later must win over a speaker that died before the change, also when
// that speaker is back with the cluster state that it saved.
func TestNewerKnowledgeHasLowerMED(t *testing.T) {
	monday, tuesday := time.Unix(1.7e9, 0), time.Unix(1.7e9+86400, 0)
	before := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}
	seen, _ := Date(cluster.World{}, before, monday)

	after := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}
	after.Nodes[1].Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
	moved, _ := Date(seen, after, tuesday)

	if got := moved.Nodes[0].Since; !got.Equal(monday) {
		t.Errorf("a did not change, and is dated %v", got)
	}
	if got := moved.Nodes[1].Since; !got.Equal(tuesday) {
		t.Errorf("b moved, and is dated %v", got)
	}
	if old, now := bgp.Freshness(seen.Nodes[1].Since), bgp.Freshness(moved.Nodes[1].Since); now >= old {
		t.Errorf("MED %d is not lower than %d", now, old)
	}
	if again, _ := Date(moved, after, tuesday.Add(time.Hour)); !again.Nodes[1].Since.Equal(tuesday) {
		t.Errorf("nothing changed, and b is dated %v", again.Nodes[1].Since)
	}
}

// A pod CIDR that overlaps the LAN's own addresses cut off the node that had it.
func TestPodCIDROfTheLANKeepsTheOldOne(t *testing.T) {
	host := routes.Host{Addrs: []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}}}
	last := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}
	next := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2), testNode("new", 3)}}
	lan := []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}
	next.Nodes[1].PodCIDRs, next.Nodes[2].PodCIDRs = lan, []netip.Prefix{netip.MustParsePrefix("192.0.2.64/26")}
	got, problems := Admit(last, next, host)
	if kept := got.Nodes[1].PodCIDRs; !slices.Equal(kept, last.Nodes[1].PodCIDRs) {
		t.Errorf("b has %v", kept)
	}
	if len(problems) != 1 || problems[0].Object != "Node/b" || problems[0].Got != "192.0.2.128/25, which overlaps 192.0.2.0/24 on eth0" {
		t.Errorf("problems %v", problems)
	}
	// A new node has nothing to keep: Decide says why it gets no route.
	if plan := Decide(World{Cluster: got, Self: "a", Host: host}); !slices.ContainsFunc(plan.Problems, func(p cluster.Problem) bool { return p.Object == "Node/new" && p.Reason == "overlap" }) {
		t.Errorf("problems %v", plan.Problems)
	}
}

func testNode(name string, n byte) cluster.Node {
	return cluster.Node{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}}
}

// A speaker whose clock is a day ahead dates a change as the others do, by the API server's clock, and says that its
// clock is wrong. What it dated before it knew is dated again.
func TestSpeakerWithAClockADayAhead(t *testing.T) {
	day := 24 * time.Hour
	node := func(last byte) cluster.World {
		return cluster.World{Nodes: []cluster.Node{{Name: "n", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}}}}
	}
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	offline, problems := Date(cluster.World{}, node(1), now.Add(day)) // the API server has not answered yet
	if len(problems) > 0 {
		t.Errorf("problems %v of a clock that nobody knows to be wrong", problems)
	}
	next := node(1)
	next.Ahead = day
	dated, problems := Date(offline, next, now.Add(time.Hour+day))
	if got, want := dated.Nodes[0].Since, now.Add(time.Hour); !got.Equal(want) || len(problems) != 1 || problems[0].Reason != cluster.WrongClock {
		t.Errorf("since %v, want %v; problems %v", got, want, problems)
	}
	// Without an API server a clock that was set back keeps the order of what it saw, and is named.
	back, problems := Date(offline, node(2), now)
	if got, want := back.Nodes[0].Since, now.Add(day+time.Second); !got.Equal(want) || len(problems) != 1 || problems[0].Reason != cluster.WrongClock {
		t.Errorf("since %v, want %v; problems %v", got, want, problems)
	}
}

// A BGPPeer that is deleted by mistake cuts a LAN off: its nodes remember that it selected them.
func TestDeletedResourceIsRemembered(t *testing.T) {
	all, err := cluster.ParseSelector("all()")
	if err != nil {
		t.Fatal(err)
	}
	none := cluster.World{Nodes: []cluster.Node{testNode("a", 1)}}
	with := none
	with.Peerings = []cluster.Peering{{Kind: "BGPPeer", Name: "p", Selector: all}}
	for _, gone := range []cluster.World{Leave(with, none, "a"), Leave(Leave(with, none, "a"), none, "a")} {
		if gone.Left != "BGPPeer/p" {
			t.Errorf("left %q, want BGPPeer/p", gone.Left)
		}
		if back := Leave(gone, with, "a"); back.Left != "" {
			t.Errorf("left %q after it is back", back.Left)
		}
	}
	other := none
	other.Peerings = []cluster.Peering{{Kind: "BGPPeer", Name: "p"}} // selects nothing
	if changed := Leave(with, other, "a"); changed.Left != "" {
		t.Errorf("left %q of a resource that is there", changed.Left)
	}
}
