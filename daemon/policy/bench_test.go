package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

// BenchmarkDecideUplinks decides for a node with 9 interfaces and 225 addresses, alone and in a large cluster.
func BenchmarkDecideUplinks(b *testing.B) {
	for _, nodes := range []int{1, 5000} {
		b.Run(fmt.Sprintf("nodes-%d", nodes), func(b *testing.B) {
			w := World{Self: "n0", Config: config.Defaults()}
			for n := range nodes {
				one := cluster.Node{Name: fmt.Sprintf("n%d", n), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n)})}}
				if n > 0 {
					one.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(n>>8), byte(n), 0}), 24)}
				}
				w.Cluster.Nodes = append(w.Cluster.Nodes, one)
			}
			u := &cluster.Uplinks{Egress: cluster.EgressUplink}
			for i := range 9 {
				net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24)
				one := cluster.Uplink{Name: fmt.Sprintf("eth%d", i+1), Subnet: net, Gateway: netip.AddrFrom4([4]byte{10, byte(i), 0, 254}), Address: netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), OnLink: true}
				for j := range 25 {
					a := netip.AddrFrom4([4]byte{10, byte(i), 0, byte(2*j + 3)})
					one.Addresses = append(one.Addresses, cluster.AddressRange{First: a, Last: a})
				}
				u.Interfaces = append(u.Interfaces, one)
				w.Host.Links = append(w.Host.Links, routes.Link{Name: one.Name, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), Up: true, MTU: 1500})
			}
			w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n0", Uplinks: u}}
			w.Held = Held{Granted: Decide(w).Uplinks, Known: true}
			survey := NewSurvey(w.Cluster)
			for b.Loop() {
				survey.Decide(w)
			}
		})
	}
}
