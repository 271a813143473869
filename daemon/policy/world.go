package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// Questions about a World that several decisions ask.

// Pool returns the NetworkPool that n belongs to: of those that select n, the first by name.
func (w World) Pool(n cluster.Node) (cluster.NetworkPool, bool) {
	if p := poolOf(w.Cluster.Pools, n); p != nil {
		return *p, true
	}
	return cluster.NetworkPool{}, false
}

// Mode returns how packets reach the pods of n.
func (w World) Mode(n cluster.Node) cluster.Mode { return w.mode(n, poolOf(w.Cluster.Pools, n)) }

func (w World) mode(n cluster.Node, pool *cluster.NetworkPool) cluster.Mode {
	if pool != nil {
		return pool.Mode
	}
	return w.fileMode(n)
}

// VXLAN returns where n receives packets of the overlay.
func (w World) VXLAN(n cluster.Node) cluster.VXLAN { return w.vxlan(poolOf(w.Cluster.Pools, n)) }

func (w World) vxlan(pool *cluster.NetworkPool) cluster.VXLAN {
	if pool != nil {
		return pool.VXLAN
	}
	return w.Config.VXLAN.VXLAN
}

// fileMode returns the mode of n by this node's file.
func (w World) fileMode(n cluster.Node) cluster.Mode {
	for _, m := range w.Config.Modes {
		if m.NodeSelector.Selects(n.Labels) {
			return m.Mode
		}
	}
	return w.Config.Mode
}

// underlay returns the node's address on the LAN, of the same family as like. Of several InternalIPs of the
// family, the first that is on a subnet of this machine counts, and else the first: a Node may list its
// address on a management network, or behind another router, before its address on the LAN.
func (w World) underlay(n cluster.Node, like netip.Addr) (netip.Addr, bool) {
	family := n.Family(like)
	if len(family) > 1 {
		for _, a := range family {
			if _, near := w.linkTo(a); near {
				return a, true
			}
		}
	}
	if len(family) == 0 {
		return netip.Addr{}, false
	}
	return family[0], true
}

// isSilent reports whether n has addresses one hop away and answers at none of them.
func (w World) isSilent(n cluster.Node) bool {
	silent := false
	for _, a := range n.Addresses {
		if _, near := w.linkTo(a); near {
			if !w.Silent[a] {
				return false
			}
			silent = true
		}
	}
	return silent
}

func intersects(a, b []uint32) bool {
	return slices.ContainsFunc(a, func(x uint32) bool { return slices.Contains(b, x) })
}

// gateway returns the gateway to other LANs that a resource sets for this node, and the name of the resource.
func (d *draft) gateway(like netip.Addr) (netip.Addr, string, bool) {
	for _, r := range d.resources {
		if r.Gateway.IsValid() && r.Gateway.Is4() == like.Is4() {
			return r.Gateway, r.Ref(), true
		}
	}
	return netip.Addr{}, "", false
}

// linkTo returns the link whose subnet holds addr, or false when addr is not one hop away.
func (w World) linkTo(addr netip.Addr) (string, bool) {
	best := routes.Addr{}
	for _, a := range w.Host.Addrs {
		if !a.Prefix.IsSingleIP() && a.Prefix.Masked().Contains(addr) && (best.Link == "" || a.Prefix.Bits() > best.Prefix.Bits()) {
			best = a
		}
	}
	return best.Link, best.Link != ""
}

// isDown reports whether the link is administratively down.
func (w World) isDown(link string) bool {
	return slices.ContainsFunc(w.Host.Links, func(l routes.Link) bool { return l.Name == link && !l.Up })
}

// isUnderlay reports whether the link carries one of n's addresses.
func (w World) isUnderlay(n cluster.Node, link string) bool {
	return slices.ContainsFunc(w.Host.Addrs, func(a routes.Addr) bool {
		return a.Link == link && slices.Contains(n.Addresses, a.Prefix.Addr())
	})
}

// underlayMTU returns the least MTU of the links that carry n's addresses, in bytes. The host's routes do not
// matter: a LAN without a way out has no default route. An address on the loopback says nothing about the
// link that carries the packets. Where no such link is known, the only link with an address is taken.
func (w World) underlayMTU(n cluster.Node) int {
	least := 0
	for _, l := range w.Host.Links {
		if l.Name != "lo" && w.isUnderlay(n, l.Name) && l.MTU > 0 && (least == 0 || l.MTU < least) {
			least = l.MTU
		}
	}
	if least == 0 {
		only, _ := w.Host.OnlyLink()
		least = only.MTU
	}
	return cmp.Or(least, 1500)
}
