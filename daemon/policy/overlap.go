package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// overlapsHost finds the pod CIDRs that overlap a subnet of this host. They get no route and are not advertised.
func (d *draft) overlapsHost() {
	d.disputed, d.shared = map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	for _, c := range d.survey.claims {
		for _, a := range d.Host.Addrs {
			if d.servedBefore(c.Prefix, a) {
				d.shared[c.Prefix] = true
				d.problem(c.owner, cluster.OtherNetwork, "pods of edgeway only in "+c.String(), fmt.Sprintf("%s on %s: another network plugin served it", a.Prefix, a.Link),
					"the pods of that plugin keep working; recreate them, then delete the link: ip link del "+a.Link)
				break
			}
			if subnet := a.Prefix.Masked(); !a.Prefix.IsSingleIP() && subnet.Overlaps(c.Prefix) {
				d.disputed[c.Prefix] = true
				d.problem(c.owner, cluster.Overlap, "a pod CIDR outside the LAN's own addresses", fmt.Sprintf("%s, which overlaps %s on %s", c.Prefix, subnet, a.Link),
					"change the Node's pod CIDR")
				break
			}
		}
	}
}

// isDisputed reports whether c overlaps something: no node gets a route to it.
func (d *draft) isDisputed(c netip.Prefix) bool { return d.survey.disputed[c] || d.disputed[c] }

// servedBefore reports whether a is the address of a bridge in this node's own pod CIDR. Such a bridge
// belongs to the network plugin that served the node before.
func (d *draft) servedBefore(c netip.Prefix, a routes.Addr) bool {
	return slices.Contains(d.self.PodCIDRs, c) && c.Contains(a.Prefix.Addr()) && c.Bits() <= a.Prefix.Bits() &&
		!a.Prefix.IsSingleIP() && !d.isUnderlay(d.self, a.Link)
}
