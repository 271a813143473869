package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// findOverlaps finds the pod CIDRs that overlap the pod CIDR of another node or a subnet of this host. Either
// owner may be wrong, so neither CIDR gets a route and neither is advertised.
func (d *draft) findOverlaps() {
	type claim struct {
		netip.Prefix
		owner string
	}
	var claims []claim
	for _, n := range d.Cluster.Nodes {
		for _, c := range n.PodCIDRs {
			claims = append(claims, claim{c, "Node/" + n.Name})
		}
	}
	// Sorted by first address, a prefix that overlaps an earlier one lies inside it.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), cmp.Compare(a.owner, b.owner))
	})
	d.disputed, d.shared = map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	var outer claim
	for _, c := range claims {
		if outer.IsValid() && outer.Overlaps(c.Prefix) {
			d.disputed[outer.Prefix], d.disputed[c.Prefix] = true, true
			d.problem(c.owner, cluster.Overlap, "a pod CIDR of its own", fmt.Sprintf("%s, which overlaps %s of %s", c.Prefix, outer.Prefix, outer.owner),
				"change one of the two; no route goes to either until then")
			continue
		}
		outer = c
	}
	for _, c := range claims {
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

// servedBefore reports whether a is the address of a bridge in this node's own pod CIDR. Such a bridge
// belongs to the network plugin that served the node before.
func (d *draft) servedBefore(c netip.Prefix, a routes.Addr) bool {
	return slices.Contains(d.self.PodCIDRs, c) && c.Contains(a.Prefix.Addr()) && c.Bits() <= a.Prefix.Bits() &&
		!a.Prefix.IsSingleIP() && !d.isUnderlay(d.self, a.Link)
}
