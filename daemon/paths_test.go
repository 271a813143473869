package daemon

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// lookAt is what a look sees in LANs of size nodes each, on the first node.
func lookAt(t testing.TB, lans, size int) *view {
	t.Helper()
	w := policy.World{Self: "node-00000", Config: config.Defaults(),
		Host: routes.Host{Addrs: []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}}, Links: []routes.Link{{Name: "eth0", Up: true, MTU: 1500}},
			Routes: []routes.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.254"), Link: "eth0"}}}}
	for lan := range lans {
		selector, err := cluster.ParseSelector(fmt.Sprintf("lan=%d", lan))
		if err != nil {
			t.Fatal(err)
		}
		w.Cluster.Peerings = append(w.Cluster.Peerings, cluster.Peering{Kind: "BGPPeer", Name: fmt.Sprint("lan-", lan), LocalASN: uint32(65000 + lan), Selector: selector})
		for i := range size {
			n := lan*size + i
			w.Cluster.Nodes = append(w.Cluster.Nodes, cluster.Node{Name: fmt.Sprintf("node-%05d", n), Labels: map[string]string{"lan": fmt.Sprint(lan)},
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(lan), byte(i + 1)})},
				PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(n >> 8), byte(n), 0}), 24)}})
		}
	}
	survey := policy.NewSurvey(w.Cluster)
	return &view{World: w, Survey: survey, Plan: survey.Decide(w)}
}

func TestSurveyOfPaths(t *testing.T) {
	c := surveyOf(lookAt(t, 2, 2))
	terms := paths.Terms{Mode: "underlay", VNI: 1, Port: 8472}
	node := func(n int, host, canary string, via string) paths.Node {
		out := paths.Node{Name: fmt.Sprintf("node-%05d", n), Hosts: []netip.Addr{netip.MustParseAddr(host)}, CIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(n), 0}), 24)},
			Canary: []netip.Addr{netip.MustParseAddr(canary)}, Terms: terms, Ways: []paths.Way{{}}}
		if via != "" {
			out.Ways[0].Via = netip.MustParseAddr(via)
		}
		return out
	}
	want := []paths.Node{node(0, "10.0.0.1", "11.0.0.254", ""), node(1, "10.0.0.2", "11.0.1.254", "10.0.0.2"), node(2, "10.0.1.1", "11.0.2.254", ""), node(3, "10.0.1.2", "11.0.3.254", "")}
	if diff := cmp.Diff(want, c.Nodes, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(paths.Node{}, "Group")); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if n := c.Nodes; n[0].Group != n[1].Group || n[0].Group == n[2].Group || n[2].Group != n[3].Group || c.Self.Name != "node-00000" {
		t.Errorf("groups %q %q %q %q, self %s", n[0].Group, n[1].Group, n[2].Group, n[3].Group, c.Self.Name)
	}
}

func BenchmarkSurveyOfPaths(b *testing.B) {
	v := lookAt(b, 100, 50)
	b.ReportAllocs()
	for b.Loop() {
		surveyOf(v)
	}
}
