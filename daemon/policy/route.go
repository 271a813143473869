package policy

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// routeTo decides how packets from here reach the pod CIDR of node n, which belongs at that place.
func (d *draft) routeTo(n cluster.Node, at place, cidr netip.Prefix) {
	object := "Node/" + n.Name
	via, ok := d.underlay(n, cidr.Addr())
	link, connected := d.linkTo(via)
	mine, theirs := d.lans, at.lans
	sameLAN := intersects(mine, theirs)

	if d.overlaid(n, at, cidr.Addr()) {
		d.tunnelTo(n, at, cidr)
		return
	}
	if !ok {
		d.problem(object, cluster.NoAddress, "an InternalIP of the family of "+cidr.String(), "none", "add the address to the Node's status.addresses")
		return
	}
	d.lacksAddress(cidr.Addr())
	route := routes.Route{Dst: cidr, Protocol: routes.ProtoNode}
	if connected && d.isDown(link) {
		return // the kernel would refuse the route; the route is set when the link is up again
	}
	if connected && (sameLAN || len(mine) == 0 || len(theirs) == 0) {
		if !sameLAN && len(mine)+len(theirs) > 0 {
			lonely := n
			if len(mine) == 0 {
				lonely = d.self
			}
			d.problem("Node/"+lonely.Name, cluster.NotSelected, "a BGP resource that selects it, as its neighbours have", "none",
				"label the Node as the resource's nodeSelector wants; the switch does not learn its pod CIDR")
		}
		route.Via, route.Link = via, link
		d.plan.Routes.Routes = append(d.plan.Routes.Routes, route)
		return
	}
	if sameLAN {
		d.problem(object, cluster.OffSubnet, "an address on a subnet of this node, which is in the same LAN", via.String(),
			"give the two LANs different local ASNs, or correct the Node's InternalIP")
	}
	if gw, ref, ok := d.gateway(cidr.Addr()); ok {
		link, connected := d.linkTo(gw)
		if !connected || d.isDown(link) {
			if !connected {
				d.problem(ref, cluster.GatewayOffSubnet, "a gateway on a subnet of this node", gw.String(), "correct spec.gateway")
			}
			return
		}
		route.Via, route.Link = gw, link
		d.plan.Routes.Routes = append(d.plan.Routes.Routes, route)
		return
	}
	// The host's own routes must carry the packets to the switch, over a link with an address of this Node.
	r, ok := d.lookup(cidr.Addr())
	way, ruled := d.Host.Ruled[cidr.Addr()]
	if ruled {
		r, ok = way.Route, true
	}
	if r.Type != "" || !d.isUnderlay(d.self, r.Link) && !d.lostUnderlay() {
		got := "no route"
		if ok {
			got = r.String()
		}
		next := "set the host's default route to the switch, or spec.gateway in the BGP resource"
		if len(mine) == 0 {
			next = "let a BGP resource select both nodes, or set mode to auto: VXLAN reaches it"
		}
		if r.Type != "" {
			next = "stop the agent that owns it, or remove it: ip route del " + r.String()
		}
		if ruled {
			got, next = byRule(way)
		}
		d.problem(object, cluster.NoRouteToLAN, "a route to the switch, for "+cidr.String(), got, next)
	}
}

// lacksAddress records that this Node has a pod CIDR of like's family and no InternalIP: other nodes, which say the same of
// it, have no next hop for that CIDR, and no answer comes to what this node sends natively.
func (d *draft) lacksAddress(like netip.Addr) {
	i := slices.IndexFunc(d.self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() == like.Is4() })
	if i < 0 || len(d.self.Family(like)) > 0 || len(d.self.Addresses) == 0 { // without any address, findSelf said so
		return
	}
	lacks := cluster.Problem{Object: "Node/" + d.self.Name, Reason: cluster.NoAddress, Want: "an InternalIP of the family of " + d.self.PodCIDRs[i].String(), Got: "none", Next: "add the address to the Node's status.addresses"}
	if !slices.Contains(d.plan.Problems, lacks) {
		d.plan.Problems = append(d.plan.Problems, lacks)
	}
}

// Asks returns one address of each pod CIDR of another node. Host.Ruled answers for these addresses.
func (w World) Asks() (out []netip.Addr) {
	for _, n := range w.Cluster.Nodes {
		if n.Name == w.Self {
			continue
		}
		for _, cidr := range n.PodCIDRs {
			out = append(out, cidr.Addr())
		}
	}
	return out
}

// byRule says where a policy rule sends the packets, and what the operator can do about it.
func byRule(way routes.Way) (got, next string) {
	got = fmt.Sprintf("%s, by the policy rule %q", way.Route, way.Rule)
	if way.Route.Table == 0 {
		got = fmt.Sprintf("%s: the policy rule %q", way.Route.Type, way.Rule)
	}
	return got, fmt.Sprintf("stop the agent that owns the rule, or remove it: ip rule del pref %d", way.Priority)
}

// lookup finds the route of a packet to addr when our routes to other nodes are left out.
func (d *draft) lookup(addr netip.Addr) (routes.Route, bool) {
	var best routes.Route
	for _, known := range [][]routes.Route{d.Host.Routes, d.plan.Learned.Routes} {
		for _, r := range known {
			if r.Dst.Contains(addr) && (!best.Dst.IsValid() || r.Dst.Bits() > best.Dst.Bits()) {
				best = r
			}
		}
	}
	return best, best.Dst.IsValid()
}

// overlaid reports whether packets between the pods of this node and of n, which belongs at that
// place, travel in VXLAN. like has the family of the packets. Both nodes come to the same answer.
func (d *draft) overlaid(n cluster.Node, at place, like netip.Addr) bool {
	here, there := d.plan.Mode, d.mode(n, at.pool)
	if f := d.flannelAt(at); f != nil && f.Backend == cluster.FlannelVXLAN {
		return true // flannel knows no other way
	}
	if here == cluster.Overlay || there == cluster.Overlay {
		return true
	}
	if here != cluster.Auto && there != cluster.Auto {
		return false
	}
	// Where one of the two lacks an InternalIP of the family, the other cannot send natively, although its own address
	// may be on a subnet of the first.
	_, mine := d.underlay(d.self, like)
	via, theirs := d.underlay(n, like)
	_, connected := d.linkTo(via)
	return !mine || !theirs || !connected || len(d.lans)+len(at.lans) > 0 && !intersects(d.lans, at.lans)
}

// nodesBesideTunnels returns the addresses of the nodes whose route to this node's pods leads through the tunnel.
func (d *draft) nodesBesideTunnels() (out []netip.Prefix) {
	for i, n := range d.Cluster.Nodes {
		for _, c := range d.self.PodCIDRs {
			if n.Name == d.self.Name || !d.overlaid(n, d.survey.places[i], c.Addr()) {
				continue
			}
			for _, a := range d.addresses(i) {
				if a.Is4() == c.Addr().Is4() {
					out = append(out, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	return out
}

// tunnelEnd is the end of a tunnel at another node, and where it begins here.
type tunnelEnd struct {
	local, remote netip.Addr
	mac           string
	at            cluster.VXLAN // where the other node receives
}

// tunnelTo routes cidr through the VXLAN link to the tunnel endpoint (VTEP) of n. The endpoint has the first
// address of the CIDR. It is sent to with the VNI and the port with which n receives, so that two pools may have
// different ones.
func (d *draft) tunnelTo(n cluster.Node, at place, cidr netip.Prefix) {
	to, ok := d.tunnelEnd(n, at, cidr.Addr())
	if !ok || d.isTaken(to.local) { // the kernel would refuse the link, and everything on it
		return
	}
	link := d.receiveAt(to.local)
	d.carry(link.MTU)
	dev, vtep := link.Name, cidr.Masked().Addr()
	route := routes.Route{Dst: cidr, Via: vtep, Link: dev, Onlink: true, Protocol: routes.ProtoNode}
	if at.pool != nil && at.pool.MTU < link.MTU {
		route.MTU = at.pool.MTU // a link on the way to that pool may carry less; 0: it has no MTU
	}
	d.plan.Routes.Routes = append(d.plan.Routes.Routes, route)
	d.plan.Routes.Neighs = append(d.plan.Routes.Neighs, routes.Neigh{Link: dev, IP: vtep, MAC: to.mac})
	fdb, ours := routes.FDB{Link: dev, MAC: to.mac, Dst: to.remote}, d.vxlan(d.pool)
	if to.at.VNI != ours.VNI {
		fdb.VNI = to.at.VNI
	}
	if to.at.Port != ours.Port {
		fdb.Port = to.at.Port
	}
	if n := len(d.plan.Routes.FDB); n == 0 || d.plan.Routes.FDB[n-1] != fdb { // a node's pod CIDRs come one after the other
		d.plan.Routes.FDB = append(d.plan.Routes.FDB, fdb)
	}
}

// tunnelEnd returns the end of the tunnel to n, which belongs at that place, for packets of the family of like. The MAC
// of a node of edgeway is derived from the node's name, so nothing needs publishing. ok is false if there is no tunnel,
// and a problem says why.
func (d *draft) tunnelEnd(n cluster.Node, at place, like netip.Addr) (to tunnelEnd, ok bool) {
	if f := d.flannelAt(at); f != nil {
		return d.flannelEnd(n, *f, like)
	}
	local, remote, ok := d.tunnelEnds(n)
	if !ok {
		lacks := n // the node without an IPv4 address, if there is one: both nodes say the same of it
		if len(n.Family(netip.IPv4Unspecified())) > 0 {
			lacks = d.self
		}
		d.problem("Node/"+lacks.Name, cluster.NoAddress, fmt.Sprintf("an InternalIP of the other end's family, for the tunnel between Node/%s and Node/%s", min(d.self.Name, n.Name), max(d.self.Name, n.Name)), fmt.Sprint(lacks.Addresses),
			"add an address of that family to the Node's status.addresses; the pods of the two nodes do not reach each other until then")
	}
	return tunnelEnd{local, remote, vtepMAC(n.Name), d.vxlan(at.pool)}, ok
}

// tunnelEnds returns the addresses between which this node and n tunnel: IPv4 if both nodes have it, else IPv6. ok
// is false if no family is common to both.
func (d *draft) tunnelEnds(n cluster.Node) (local, remote netip.Addr, ok bool) {
	for _, like := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		local, here := d.underlay(d.self, like)
		remote, there := d.underlay(n, like)
		if here && there {
			return local, remote, true
		}
	}
	return local, remote, false
}

// receive makes the VXLAN links with which this node receives packets of the overlay. In a cluster with
// NetworkPools every node has them in every mode: while the mode of a pool changes, some nodes know of it
// earlier than others, and what the earlier ones send in VXLAN must arrive.
func (d *draft) receive() {
	if a, ok := d.underlay(d.self, netip.IPv4Unspecified()); ok && !d.isTaken(a) {
		d.receiveAt(a)
	}
	if a, ok := d.underlay(d.self, netip.IPv6Unspecified()); ok && (d.linkAt(a) == routes.VXLANLink || d.survey.sixOnly || d.asksFlannel() && d.hasPods(a)) && !d.isTaken(a) {
		d.receiveAt(a)
	}
}

// isTaken records a VXLAN link of another owner that receives where this node would receive at local, and reports
// whether there is one. The kernel has one link for each VNI, port and family (drivers/net/vxlan/vxlan_core.c:
// vxlan_vni_in_use).
func (d *draft) isTaken(local netip.Addr) bool {
	at := d.vxlan(d.pool)
	i := slices.IndexFunc(d.Host.Links, func(l routes.Link) bool {
		return l.VXLAN != nil && l.Up && l.VXLAN.VNI == at.VNI && l.VXLAN.Port == at.Port && l.VXLAN.Local.Is6() == local.Is6()
	})
	if i < 0 {
		return false
	}
	taken := cluster.Problem{Object: "link " + d.Host.Links[i].Name, Reason: cluster.VXLANTaken, Want: fmt.Sprintf("VNI %d on UDP port %d for %s", at.VNI, at.Port, d.linkAt(local)), Got: "a VXLAN link of another owner, which receives there",
		Next: "remove the network plugin that made the link, and then the link: ip link del " + d.Host.Links[i].Name + "; or choose another vxlan.vni in the NetworkPool; this node has no such tunnel until then"}
	if !slices.Contains(d.plan.Problems, taken) {
		d.plan.Problems = append(d.plan.Problems, taken)
	}
	return true
}

// linkAt names the VXLAN link of this node that receives at one of its addresses. A VXLAN link has one family
// (drivers/net/vxlan/vxlan_core.c: vxlan_sock_add). A node with both families needs a second link for the nodes
// that have IPv6 only.
func (d *draft) linkAt(local netip.Addr) string {
	if local.Is6() && len(d.self.Family(netip.IPv4Unspecified())) > 0 {
		return routes.VXLANLink6
	}
	return routes.VXLANLink
}

// receiveAt makes the VXLAN link that receives at local, once.
func (d *draft) receiveAt(local netip.Addr) routes.Link {
	dev, at := d.linkAt(local), d.vxlan(d.pool)
	if i := slices.IndexFunc(d.plan.Routes.Links, func(l routes.Link) bool { return l.Name == dev }); i >= 0 {
		return d.plan.Routes.Links[i]
	}
	mtu := d.underlayMTU(d.self) - vxlanOverhead(local)
	if d.pool != nil && d.pool.MTU != 0 {
		mtu = min(mtu, d.pool.MTU) // somewhere behind the LAN, a link may carry less than the LAN
	}
	link := routes.Link{
		Name: dev, Kind: "vxlan", MAC: vtepMAC(d.self.Name), Up: true, MTU: mtu,
		VXLAN: &routes.VXLAN{VNI: at.VNI, Port: at.Port, Local: local},
	}
	d.plan.Routes.Links = append(d.plan.Routes.Links, link)
	// Any machine of the LAN can send to the VXLAN port. No such machine may become a router here.
	d.plan.Routes.Sysctls = append(d.plan.Routes.Sysctls, routes.Refusals(dev)...)
	if spoilsChecksums(d.Host.Kernel) {
		d.plan.Routes.Sysctls = append(d.plan.Routes.Sysctls, routes.SoftChecksum(dev))
	}
	if !d.Config.VXLAN.AcceptAll {
		d.plan.Routes.Senders = &routes.Senders{VNI: at.VNI, Port: at.Port, From: d.senders()}
	}
	for _, c := range d.self.PodCIDRs {
		a := c.Masked().Addr()
		d.plan.Routes.Addrs = append(d.plan.Routes.Addrs, routes.Addr{Link: dev, Prefix: netip.PrefixFrom(a, a.BitLen())})
		d.plan.Routes.Sysctls = append(d.plan.Routes.Sysctls, routes.Forwarding(dev, c.Addr().Is6()))
		if a.Is4() {
			d.plan.Routes.Sysctls = append(d.plan.Routes.Sysctls, looseReversePath(dev))
		}
	}
	return link
}

// looseReversePath lets a packet in although the route to its source leaves by another link. The kernel takes
// the greater value of the link and of "all" (Documentation/networking/ip-sysctl.rst: rp_filter), so that 2,
// loose, wins over a machine's 1, strict. A node of the LAN sends in VXLAN with its own address as source where
// a program chose that address. While a mode changes, pods' packets arrive in VXLAN that are answered natively.
func looseReversePath(link string) routes.Sysctl {
	return routes.Sysctl{Key: "net/ipv4/conf/" + link + "/rp_filter", Value: "2"}
}

// vtepMAC is the tunnel endpoint's MAC: locally administered, and derived from the node's name.
func vtepMAC(node string) string {
	sum := sha256.Sum256([]byte("vtep/" + node))
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", sum[0]&^1|2, sum[1], sum[2], sum[3], sum[4], sum[5])
}

// vxlanOverhead is the bytes that VXLAN adds to a packet: the outer IP header, UDP, VXLAN and the inner
// Ethernet header (RFC 7348, section 5).
func vxlanOverhead(local netip.Addr) int {
	if local.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}
