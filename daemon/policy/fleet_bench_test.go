package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

// BenchmarkFleet is what a changed Node costs a speaker of a shop of five nodes, in a cluster of 20,000 nodes: with one
// BGPPeer, and with one for each shop.
func BenchmarkFleet(b *testing.B) {
	for _, shops := range []int{1, 4000} {
		b.Run(fmt.Sprintf("peers-%d", shops), func(b *testing.B) {
			w := World{Self: "node-00001", Config: config.Defaults()}
			for i := range 20000 {
				w.Cluster.Nodes = append(w.Cluster.Nodes, cluster.Node{Name: fmt.Sprintf("node-%05d", i), Labels: map[string]string{"shop": fmt.Sprint("s", i/5)},
					Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i / 5 >> 5), byte(i/5<<3 + i%5 + 1)})},
					PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + byte(i>>8), byte(i), 0}), 24)}})
			}
			for i := range shops {
				set, err := cluster.ParseSelector(fmt.Sprint("shop=s", i))
				if err != nil {
					b.Fatal(err)
				}
				w.Cluster.Peerings = append(w.Cluster.Peerings, cluster.Peering{Kind: "BGPPeer", Name: fmt.Sprint("shop-", i), LocalASN: 65000 + uint32(i), Selector: set,
					Speakers: []cluster.Speaker{{Node: fmt.Sprintf("node-%05d", 5*i+1), Peers: []cluster.Peer{{Address: netip.MustParseAddr("172.16.0.6"), ASN: 65001}}}}})
			}
			w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("172.16.0.1/29")}}
			w.Host.Links = []routes.Link{{Name: "eth0", Up: true, MTU: 1500}}
			w.Host.Routes = []routes.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("172.16.0.6"), Link: "eth0"}}
			b.Run("admit", func(b *testing.B) {
				for b.Loop() {
					next, _ := Admit(w.Cluster, w.Cluster, w.Host)
					Date(w.Cluster, next, time.Unix(1, 0))
				}
			})
			b.Run("survey", func(b *testing.B) {
				for b.Loop() {
					NewSurvey(w.Cluster)
				}
			})
			survey := NewSurvey(w.Cluster)
			if p := survey.Decide(w).Problems; len(p) > 2 {
				b.Fatalf("%d problems, such as %v", len(p), p[:2])
			}
			b.Run("decide", func(b *testing.B) {
				for b.Loop() {
					survey.Decide(w)
				}
			})
		})
	}
}
