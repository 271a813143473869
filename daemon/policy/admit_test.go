package policy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// A speaker that learned of a change later must win over a speaker that died before the change, also when
// that speaker is back with the cluster state that it saved.
func TestNewerKnowledgeHasLowerMED(t *testing.T) {
	monday, tuesday := time.Unix(1.7e9, 0), time.Unix(1.7e9+86400, 0)
	before := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}
	seen := Date(cluster.World{}, before, monday)

	after := cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}
	after.Nodes[1].Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
	moved := Date(seen, after, tuesday)

	if got := moved.Nodes[0].Since; !got.Equal(monday) {
		t.Errorf("a did not change, and is dated %v", got)
	}
	if got := moved.Nodes[1].Since; !got.Equal(tuesday) {
		t.Errorf("b moved, and is dated %v", got)
	}
	if old, now := bgp.Freshness(seen.Nodes[1].Since), bgp.Freshness(moved.Nodes[1].Since); now >= old {
		t.Errorf("MED %d is not lower than %d", now, old)
	}
	if again := Date(moved, after, tuesday.Add(time.Hour)); !again.Nodes[1].Since.Equal(tuesday) {
		t.Errorf("nothing changed, and b is dated %v", again.Nodes[1].Since)
	}
}

func testNode(name string, n byte) cluster.Node {
	return cluster.Node{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}}
}
