package daemon

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// desired is the whole policy: what this node's kernel and this node's switches should look
// like, and what stands in the way, as a function of what is known and of nothing else.
//
//	pod ──veth── node ──────── LAN ──────── node ──veth── pod      same LAN: via the other node
//	               └── switch A ── switch B ──┘                     other LAN: by the default route,
//	                                                                which a switch may announce (bgp.learn);
//	                   the switches know each pod CIDR from the speakers, next hop = its node
//
// It keeps nothing between calls and asks nobody: equal Worlds give equal answers.
func desired(w World) (routes.State, bgp.State, []cluster.Problem) {
	p := &plan{World: w, vxlan: w.Config.VXLAN}
	if !p.findSelf() {
		return routes.State{}, bgp.State{}, p.problems
	}
	p.findOverlaps()
	p.linksDown()
	p.forwarding()
	p.learn()
	for _, n := range w.Cluster.Nodes {
		if n.Name == p.self.Name {
			continue
		}
		for _, cidr := range n.PodCIDRs {
			if !p.disputed[cidr] {
				p.routeTo(n, cidr)
			}
		}
	}
	p.shadows()
	p.sourceNAT()
	p.speak()
	return p.routes, p.bgp, p.problems
}

// plan is desired's working paper.
type plan struct {
	World
	self     cluster.Node
	vxlan    VXLAN
	disputed map[netip.Prefix]bool // CIDRs that overlap something: nobody gets a route to them
	shared   map[netip.Prefix]bool // our own CIDRs that another plugin's bridge still serves too

	routes   routes.State
	bgp      bgp.State
	problems []cluster.Problem
}

func (p *plan) problem(object, reason, want, got, next string) {
	p.problems = append(p.problems, cluster.Problem{Object: object, Reason: reason, Want: want, Got: got, Next: next})
}

// findSelf finds this node in the cluster. Without it nothing can be decided.
func (p *plan) findSelf() bool {
	i := slices.IndexFunc(p.Cluster.Nodes, func(n cluster.Node) bool { return n.Name == p.Self })
	if i < 0 {
		p.problem("Node/"+p.Self, "noSelf", "a Node of this name", fmt.Sprintf("%d Nodes of other names", len(p.Cluster.Nodes)),
			"add the Node, or set nodeName in the configuration to the name that the cluster uses")
		return false
	}
	p.self = p.Cluster.Nodes[i]
	if len(p.self.PodCIDRs) == 0 {
		p.problem("Node/"+p.Self, "noPodCIDR", "spec.podCIDRs", "none", "give the Node a pod CIDR; until then no pod can start here")
	}
	if len(p.self.Addresses) == 0 {
		p.problem("Node/"+p.Self, "noAddress", "an InternalIP in status.addresses", "none", "set the Node's InternalIP to its address on the LAN")
	}
	return true
}

// findOverlaps finds the pod CIDRs that overlap another node's or one of this host's subnets.
// Either of two owners may be the wrong one: neither gets a route and neither is advertised.
func (p *plan) findOverlaps() {
	type claim struct {
		netip.Prefix
		owner string
	}
	var claims []claim
	for _, n := range p.Cluster.Nodes {
		for _, c := range n.PodCIDRs {
			claims = append(claims, claim{c, "Node/" + n.Name})
		}
	}
	// Sorted by first address, a prefix that overlaps an earlier one lies inside it.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), cmp.Compare(a.owner, b.owner))
	})
	p.disputed, p.shared = map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	var outer claim
	for _, c := range claims {
		if outer.IsValid() && outer.Overlaps(c.Prefix) {
			p.disputed[outer.Prefix], p.disputed[c.Prefix] = true, true
			p.problem(c.owner, "overlap", "a pod CIDR of its own", fmt.Sprintf("%s, which overlaps %s of %s", c.Prefix, outer.Prefix, outer.owner),
				"change one of the two; no route goes to either until then")
			continue
		}
		outer = c
	}
	for _, c := range claims {
		for _, a := range p.Host.Addrs {
			if p.servedBefore(c.Prefix, a) {
				p.shared[c.Prefix] = true
				p.problem(c.owner, "otherNetwork", "pods of edgeway only in "+c.String(), fmt.Sprintf("%s on %s: another network plugin served it", a.Prefix, a.Link),
					"its pods go on; make them anew, then delete the link: ip link del "+a.Link)
				break
			}
			if subnet := a.Prefix.Masked(); !a.Prefix.IsSingleIP() && subnet.Overlaps(c.Prefix) {
				p.disputed[c.Prefix] = true
				p.problem(c.owner, "overlap", "a pod CIDR outside the LAN's own addresses", fmt.Sprintf("%s, which overlaps %s on %s", c.Prefix, subnet, a.Link),
					"change the Node's pod CIDR")
				break
			}
		}
	}
}

// linksDown names the links to the LAN that are down: nothing else need be said of them.
func (p *plan) linksDown() {
	for _, l := range p.Host.Links {
		if p.isUnderlay(p.self, l.Name) && !l.Up {
			p.problem("link "+l.Name, "linkDown", "the link of the node's address up", "down", "ip link set "+l.Name+" up, and look after its cable")
		}
	}
}

// servedBefore reports whether a is a bridge's address in this node's own pod CIDR: of the network
// plugin that served the node before.
func (p *plan) servedBefore(c netip.Prefix, a routes.Addr) bool {
	return slices.Contains(p.self.PodCIDRs, c) && c.Contains(a.Prefix.Addr()) && c.Bits() <= a.Prefix.Bits() &&
		!a.Prefix.IsSingleIP() && !p.isUnderlay(p.self, a.Link)
}

// forwarding lets the kernel route at all, and ends here what is meant for no pod of ours: by
// the default route it would go back to the switch, which sends it here, until its TTL ends.
func (p *plan) forwarding() {
	for _, c := range p.self.PodCIDRs {
		if !p.shared[c] { // else the old bridge's own route has that place
			p.routes.Routes = append(p.routes.Routes, routes.Route{Dst: c, Type: "unreachable", Protocol: routes.ProtoNode})
		}
		key := "net/ipv4/ip_forward"
		if c.Addr().Is6() {
			key = "net/ipv6/conf/all/forwarding"
		}
		p.routes.Sysctls = append(p.routes.Sysctls, routes.Sysctl{Key: key, Value: "1"})
	}
}

// routeTo decides how packets from here reach the pod CIDR of node n.
func (p *plan) routeTo(n cluster.Node, cidr netip.Prefix) {
	object := "Node/" + n.Name
	via, ok := underlay(n, cidr.Addr())
	link, connected := p.linkTo(via)
	mine, theirs := p.lans(p.self), p.lans(n)
	sameLAN := intersects(mine, theirs)

	if p.overlaid(n, connected && (sameLAN || len(mine)+len(theirs) == 0)) {
		p.tunnelTo(n, cidr)
		return
	}
	if !ok {
		p.problem(object, "noAddress", "an InternalIP of the family of "+cidr.String(), "none", "add the address to the Node's status.addresses")
		return
	}
	route := routes.Route{Dst: cidr, Protocol: routes.ProtoNode}
	if connected && p.isDown(link) {
		return // the kernel would refuse the route; it is set when the link is back
	}
	if connected && (sameLAN || len(mine) == 0 || len(theirs) == 0) {
		if !sameLAN && len(mine)+len(theirs) > 0 {
			lonely := n
			if len(mine) == 0 {
				lonely = p.self
			}
			p.problem("Node/"+lonely.Name, "notSelected", "a BGP resource that selects it, as its neighbours have", "none",
				"label the Node as the resource's nodeSelector wants; the switch does not learn its pod CIDR")
		}
		route.Via, route.Link = via, link
		p.routes.Routes = append(p.routes.Routes, route)
		return
	}
	if sameLAN {
		p.problem(object, "offSubnet", "an address on a subnet of this node, which is in the same LAN", via.String(),
			"give the two LANs different local ASNs, or correct the Node's InternalIP")
	}
	if gw, ref, ok := p.gateway(p.self, cidr.Addr()); ok {
		link, connected := p.linkTo(gw)
		if !connected || p.isDown(link) {
			if !connected {
				p.problem(ref, "gatewayOffSubnet", "a gateway on a subnet of this node", gw.String(), "correct spec.gateway")
			}
			return
		}
		route.Via, route.Link = gw, link
		p.routes.Routes = append(p.routes.Routes, route)
		return
	}
	// The host's own routes carry it to the switch: see that they do.
	if r, ok := p.lookup(cidr.Addr()); !ok || !p.isUnderlay(p.self, r.Link) {
		got := "no route"
		if ok {
			got = r.String()
		}
		next := "set the host's default route to the switch, or spec.gateway in the BGP resource"
		if len(mine) == 0 {
			next = "let a BGP resource select both nodes, or set mode to auto: VXLAN reaches it"
		}
		p.problem(object, "noRouteToLAN", "a route to the switch, for "+cidr.String(), got, next)
	}
}

// overlaid reports whether packets between this node and n travel in VXLAN.
func (p *plan) overlaid(n cluster.Node, near bool) bool {
	mine, theirs := p.mode(p.self), p.mode(n)
	if mine == Overlay || theirs == Overlay {
		return true
	}
	return (mine == Auto || theirs == Auto) && !near
}

// tunnelTo routes cidr through the VXLAN link to n's tunnel endpoint (VTEP). The endpoint's
// address is the CIDR's first, its MAC follows from the node's name: nothing needs publishing.
func (p *plan) tunnelTo(n cluster.Node, cidr netip.Prefix) {
	local, ok := underlay(p.self, netip.IPv4Unspecified())
	if !ok {
		local, ok = underlay(p.self, netip.IPv6Unspecified())
	}
	remote, okRemote := underlay(n, local)
	if !ok || !okRemote {
		p.problem("Node/"+n.Name, "noAddress", "an InternalIP of a family that this node has too", fmt.Sprint(n.Addresses), "add the address to the Node's status.addresses")
		return
	}
	dev := vxlanName
	if len(p.routes.Links) == 0 {
		p.routes.Links = append(p.routes.Links, routes.Link{
			Name: dev, Kind: "vxlan", MAC: vtepMAC(p.self.Name), Up: true, MTU: p.underlayMTU(p.self) - vxlanOverhead(local),
			VXLAN: &routes.VXLAN{VNI: uint32(p.vxlan.VNI), Port: uint16(p.vxlan.Port), Local: local},
		})
		// Any machine of the LAN can send to the VXLAN port: none of them may become a router here.
		p.routes.Sysctls = append(p.routes.Sysctls, routes.Refusals(dev)...)
		for _, c := range p.self.PodCIDRs {
			a := c.Masked().Addr()
			p.routes.Addrs = append(p.routes.Addrs, routes.Addr{Link: dev, Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	mac, vtep := vtepMAC(n.Name), cidr.Masked().Addr()
	p.routes.Routes = append(p.routes.Routes, routes.Route{Dst: cidr, Via: vtep, Link: dev, Onlink: true, Protocol: routes.ProtoNode})
	p.routes.Neighs = append(p.routes.Neighs, routes.Neigh{Link: dev, IP: vtep, MAC: mac})
	if fdb := (routes.FDB{Link: dev, MAC: mac, Dst: remote}); !slices.Contains(p.routes.FDB, fdb) {
		p.routes.FDB = append(p.routes.FDB, fdb)
	}
}

// sourceNAT hides pods behind the node where the operator wants it, never between pods and nodes.
func (p *plan) sourceNAT() {
	if !p.Config.SourceNAT.Enabled {
		return
	}
	nat := &routes.NAT{Sources: slices.Clone(p.self.PodCIDRs)}
	for _, n := range p.Cluster.Nodes {
		nat.Exclude = append(nat.Exclude, n.PodCIDRs...)
		for _, a := range n.Addresses {
			nat.Exclude = append(nat.Exclude, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, x := range p.Config.SourceNAT.Exclude {
		nat.Exclude = append(nat.Exclude, x.Prefix)
	}
	p.routes.NAT = nat
}

// speak decides the BGP sessions of this node, if any resource names it as a speaker, and what
// each switch is told: every pod CIDR of every selected node, next hop that node itself.
func (p *plan) speak() {
	for _, r := range p.Cluster.Peerings {
		p.resource(r)
		for _, s := range r.Speakers {
			if s.Node != p.self.Name {
				continue
			}
			for _, peer := range s.Peers {
				if session, ok := p.session(r, peer); ok {
					p.join(r, session)
				}
			}
		}
	}
	p.markOwn()
}

// resource finds what is wrong with a BGP resource as a whole.
func (p *plan) resource(r cluster.Peering) {
	if !slices.ContainsFunc(p.Cluster.Nodes, func(n cluster.Node) bool { return r.Selector.Selects(n.Labels) }) {
		p.problem(r.Ref(), "selectsNothing", "nodes that match "+r.Selector.String(), "none", "label the Nodes, or correct spec.nodeSelector")
	}
	for _, s := range r.Speakers {
		i := slices.IndexFunc(p.Cluster.Nodes, func(n cluster.Node) bool { return n.Name == s.Node })
		switch {
		case i < 0:
			p.problem(r.Ref(), "noSuchSpeaker", "speakers that are Nodes", s.Node, "correct the speaker's name, or add the Node")
		case !r.Selector.Selects(p.Cluster.Nodes[i].Labels):
			p.problem(r.Ref(), "speakerNotSelected", "speakers that nodeSelector selects", s.Node, "label the Node "+r.Selector.String()+", or name another speaker")
		}
	}
}

// session decides one session of this node, or why it is held down.
func (p *plan) session(r cluster.Peering, peer cluster.Peer) (bgp.Session, bool) {
	terms, ok := p.terms(r, peer)
	if !ok {
		return bgp.Session{}, false
	}
	return bgp.Session{Peer: terms, Paths: p.paths(r), Learn: p.Config.learnList()}, true
}

// terms decides on what terms this node speaks to a switch, or why it does not.
func (p *plan) terms(r cluster.Peering, peer cluster.Peer) (bgp.Peer, bool) {
	b := p.Config.BGP
	t := bgp.Peer{
		Name: r.Ref(), Address: peer.Address, Port: cmp.Or(peer.Port, uint16(b.Port)), ASN: peer.ASN, LocalASN: r.LocalASN,
		RouterID: p.routerID(p.self), HoldTime: time.Duration(b.HoldTime), RestartTime: time.Duration(b.RestartTime),
		LongLivedTime: time.Duration(b.LongLivedTime),
		MultihopTTL:   peer.MultihopTTL, TTLSecurity: peer.TTLSecurity,
	}
	link, connected := p.linkTo(peer.Address)
	if !connected && peer.MultihopTTL == 0 {
		// It is tried all the same: an address that is gone for a moment must not end a session.
		p.problem(r.Ref(), "peerOffSubnet", "a switch on a subnet of this node", peer.Address.String(),
			"correct the peer's address, or set ebgpMultihop to the number of hops")
	}
	local, ok := p.sourceFor(p.self, peer.Address, link)
	if !ok {
		p.problem(r.Ref(), "noAddress", "an address of this node of the family of "+peer.Address.String(), "none", "add the InternalIP to the Node")
		return t, false
	}
	t.LocalAddress = local
	if k := peer.Password; k != nil {
		password, got := p.password(*k)
		if got != "" {
			p.problem(r.Ref(), "noPassword", fmt.Sprintf("Secret kube-system/%s with key %s", k.Name, k.Key), got,
				fmt.Sprintf("set it; the session with %s is held down until then", peer.Address))
			p.bgp.Held = append(p.bgp.Held, bgp.Held{Key: t.Key(), Why: r.Ref() + ": the password is missing"})
			return t, false
		}
		t.Password = password
	}
	return t, true
}

// paths lists what r's switches are told. A node that is NotReady is still told of: the cluster
// may just not hear it. One that the LAN does not hear is not. Newer knowledge has the lower MED:
// while a speaker is dead the switch keeps what it told, and must follow those that live.
func (p *plan) paths(r cluster.Peering) []bgp.Path {
	var paths []bgp.Path
	for _, n := range p.Cluster.Nodes {
		if !r.Selector.Selects(n.Labels) {
			continue
		}
		if len(n.PodCIDRs) == 0 && n.Name != p.self.Name {
			p.problem("Node/"+n.Name, "noPodCIDR", "spec.podCIDRs", "none", "give the Node a pod CIDR; nothing is advertised for it until then")
		}
		if n.Name != p.self.Name && p.isSilent(n) {
			p.problem("Node/"+n.Name, "silentNode", "an answer to ARP or neighbour discovery, as the LAN's other machines give", "none",
				"look after the node; its pod CIDRs are withdrawn until it answers (bgp.withdrawAfter)")
			continue
		}
		for _, c := range n.PodCIDRs {
			if p.disputed[c] {
				continue
			}
			hop, ok := underlay(n, c.Addr())
			if !ok {
				p.problem("Node/"+n.Name, "noAddress", "an InternalIP of the family of "+c.String(), "none", "add the address to the Node's status.addresses")
				continue
			}
			path := bgp.Path{Prefix: c, NextHop: hop}
			if !n.Since.IsZero() {
				path.MED = bgp.Freshness(n.Since)
			}
			paths = append(paths, path)
		}
	}
	return paths
}

// join adds a session, or its paths to the session that another resource has with the switch.
func (p *plan) join(r cluster.Peering, s bgp.Session) {
	for i := range p.bgp.Sessions {
		have := &p.bgp.Sessions[i]
		if have.Peer.Address != s.Peer.Address || have.Peer.Port != s.Peer.Port {
			continue
		}
		if !have.Peer.Same(s.Peer) {
			// A switch tells neighbours apart by address: it cannot have two sessions with us.
			p.problem(r.Ref(), "conflict", "the ASNs, password and options that "+have.Peer.Name+" has for "+s.Peer.Address.String(), "others",
				"make the two resources agree; "+have.Peer.Name+" is used")
			return
		}
		for _, path := range s.Paths {
			if !slices.Contains(have.Paths, path) {
				have.Paths = append(have.Paths, path)
			}
		}
		return
	}
	p.bgp.Sessions = append(p.bgp.Sessions, s)
}
