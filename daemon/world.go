package daemon

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// World is all that may decide what this node does.
type World struct {
	Cluster cluster.World // what the cluster says
	Self    string        // this node's name in it
	Config  Config        // what the operator set on this node
	Host    routes.Host   // addresses and routes of this machine that are not ours
	// Silent are the addresses on this LAN that answer no more while others do.
	Silent map[netip.Addr]bool
	// Learned are the paths that the switches announce within bgp.learn, in their order.
	Learned []bgp.LearnedPath
}

// mode is how n wants to be reached.
func (w World) mode(n cluster.Node) Mode {
	for _, m := range w.Config.Modes {
		if m.NodeSelector.Selects(n.Labels) {
			return m.Mode
		}
	}
	return w.Config.Mode
}

// underlay is the node's address on the LAN, of the family of like.
func underlay(n cluster.Node, like netip.Addr) (netip.Addr, bool) {
	for _, a := range n.Addresses {
		if a.Is4() == like.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// isSilent reports whether nothing answers at any of n's addresses that are one hop away.
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

// neighbours are the machines that this node, as a speaker, speaks for or to: the nodes of its
// resources and their switches, as far as they are one hop away.
func (w World) neighbours() []routes.Neighbour {
	var out []routes.Neighbour
	add := func(a netip.Addr) {
		if link, near := w.linkTo(a); near {
			if n := (routes.Neighbour{Link: link, IP: a}); !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	for _, r := range w.Cluster.Peerings {
		i := slices.IndexFunc(r.Speakers, func(s cluster.Speaker) bool { return s.Node == w.Self })
		if i < 0 {
			continue
		}
		for _, p := range r.Speakers[i].Peers {
			add(p.Address)
		}
		for _, n := range w.Cluster.Nodes {
			if n.Name != w.Self && r.Selector.Selects(n.Labels) {
				for _, a := range n.Addresses {
					add(a)
				}
			}
		}
	}
	return out
}

// lans are the local ASNs of the resources that select n: a LAN is named by its ASN.
func (w World) lans(n cluster.Node) []uint32 {
	var asns []uint32
	for _, r := range w.Cluster.Peerings {
		if r.Selector.Selects(n.Labels) {
			asns = append(asns, r.LocalASN)
		}
	}
	return asns
}

func intersects(a, b []uint32) bool {
	return slices.ContainsFunc(a, func(x uint32) bool { return slices.Contains(b, x) })
}

// gateway is where a resource that selects n wants its packets for other LANs to go.
func (w World) gateway(n cluster.Node, like netip.Addr) (netip.Addr, string, bool) {
	for _, r := range w.Cluster.Peerings {
		if r.Gateway.IsValid() && r.Gateway.Is4() == like.Is4() && r.Selector.Selects(n.Labels) {
			return r.Gateway, r.Ref(), true
		}
	}
	return netip.Addr{}, "", false
}

// linkTo is the link on whose subnet addr is; false when addr is not one hop away.
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

// sourceFor is our address in a session with a switch: the Node's address if it is on the
// link to it (the switch knows us by that), else the link's own, else the Node's.
func (w World) sourceFor(n cluster.Node, peer netip.Addr, link string) (netip.Addr, bool) {
	node, ok := underlay(n, peer)
	for _, a := range w.Host.Addrs {
		if ok && a.Link == link && a.Prefix.Addr() == node {
			return node, true
		}
	}
	for _, a := range w.Host.Addrs {
		if a.Link == link && a.Prefix.Masked().Contains(peer) {
			return a.Prefix.Addr(), true
		}
	}
	return node, ok
}

// lookup finds the route that a packet to addr would take without ours.
func (w World) lookup(addr netip.Addr) (routes.Route, bool) {
	var best routes.Route
	for _, r := range w.Host.Routes {
		if r.Dst.Contains(addr) && (!best.Dst.IsValid() || r.Dst.Bits() > best.Dst.Bits()) {
			best = r
		}
	}
	return best, best.Dst.IsValid()
}

// isUnderlay reports whether the link carries one of n's addresses.
func (w World) isUnderlay(n cluster.Node, link string) bool {
	return slices.ContainsFunc(w.Host.Addrs, func(a routes.Addr) bool {
		return a.Link == link && slices.Contains(n.Addresses, a.Prefix.Addr())
	})
}

// underlayMTU is the MTU of the link that carries n's address, in bytes.
func (w World) underlayMTU(n cluster.Node) int {
	for _, l := range w.Host.Links {
		if w.isUnderlay(n, l.Name) && l.MTU > 0 {
			return l.MTU
		}
	}
	return 1500
}

// password returns the Secret's value, or what is there instead.
func (w World) password(k cluster.SecretKey) (password, got string) {
	i := slices.IndexFunc(w.Cluster.Secrets, func(s cluster.Secret) bool { return s.Name == k.Name })
	if i < 0 {
		return "", "no such Secret"
	}
	v, ok := w.Cluster.Secrets[i].Data[k.Key]
	switch {
	case !ok:
		return "", "a Secret without that key"
	case len(v) == 0:
		return "", "an empty value"
	case v[len(v)-1] == '\n':
		// What echo leaves at the end; no switch has it in its password.
		return "", "a value that ends in a line break (encode it with printf, not echo)"
	case len(v) > 80: // TCP_MD5SIG_MAXKEYLEN, include/uapi/linux/tcp.h
		return "", fmt.Sprintf("a value of %d bytes, of which TCP MD5 allows 80", len(v))
	}
	return string(v), ""
}

// routerID is the node's IPv4 address, or, for a node that has none, 32 bits that follow from
// its name (RFC 6286, section 2.1: any value but zero that is unique in the AS).
func (w World) routerID(n cluster.Node) netip.Addr {
	if w.Config.BGP.RouterID.IsValid() {
		return w.Config.BGP.RouterID.Addr
	}
	if a, ok := underlay(n, netip.IPv4Unspecified()); ok {
		return a
	}
	sum := sha256.Sum256([]byte(n.Name))
	return netip.AddrFrom4([4]byte{sum[0] | 1, sum[1], sum[2], sum[3]})
}

// vxlanName is the overlay's link on every node.
const vxlanName = "edgeway.1"

// vtepMAC is the tunnel endpoint's MAC: locally administered, a function of the node's name.
func vtepMAC(node string) string {
	sum := sha256.Sum256([]byte("vtep/" + node))
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", sum[0]&^1|2, sum[1], sum[2], sum[3], sum[4], sum[5])
}

// vxlanOverhead is what VXLAN adds to a packet, in bytes: the outer IP header, UDP, VXLAN and
// the inner Ethernet header (RFC 7348, section 5).
func vxlanOverhead(local netip.Addr) int {
	if local.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}
