package policy

import (
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// ownAddresses compares the InternalIPs of this Node with the addresses of this machine. One of each family is
// enough: see underlay.
func (d *draft) ownAddresses() {
	self := "Node/" + d.self.Name
	for _, a := range d.self.Addresses {
		if !slices.ContainsFunc(d.self.Family(a), d.hasAddress) {
			d.problem(self, cluster.AddressNotHere, "an InternalIP that a link of this machine has", a.String(),
				"correct the Node's InternalIP, or give the address back to its link; other nodes and switches send this node's packets there")
		}
	}
}

// hasAddress reports whether a link of this machine has the address.
func (w World) hasAddress(addr netip.Addr) bool {
	return slices.ContainsFunc(w.Host.Addrs, func(a routes.Addr) bool { return a.Prefix.Addr() == addr })
}

// lostUnderlay reports whether this machine has none of its Node's addresses, so that no link is known to
// be an underlay link.
func (d *draft) lostUnderlay() bool {
	return len(d.self.Addresses) > 0 && !slices.ContainsFunc(d.self.Addresses, d.hasAddress)
}

// sourceFor returns this node's address in a session with a switch. The Node's address comes first when it
// belongs to a subnet of the link to the switch, because the switch is configured with that address. Then
// comes an address of the link, then the Node's address. An address that is absent for a moment still counts:
// another address of the link would end the session.
func (w World) sourceFor(n cluster.Node, peer netip.Addr, link string) (netip.Addr, bool) {
	own := netip.Addr{}
	for _, a := range w.Host.Addrs {
		if a.Link != link {
			continue
		}
		if i := slices.IndexFunc(n.Family(peer), a.Prefix.Masked().Contains); i >= 0 {
			return n.Family(peer)[i], true
		}
		if !own.IsValid() && a.Prefix.Masked().Contains(peer) {
			own = a.Prefix.Addr()
		}
	}
	if own.IsValid() {
		return own, true
	}
	return w.underlay(n, peer)
}
