// Package policy decides what one node does, from a [World] alone.
//
// It owns every decision: routes to the other nodes, sessions with the switches, routes learned from the
// switches, the pod pool, the MTU, and the problems that stand in the way. It has no clock, no I/O, no logger
// and no goroutine, and it keeps nothing between calls: equal Worlds give equal Plans. Others read a decision
// from the [Plan] and never decide again.
//
//	pod ──veth── node ──────── LAN ──────── node ──veth── pod      same LAN: via the other node
//	               └── switch A ── switch B ──┘                     other LAN: by the default route,
//	                                                                which a switch may announce (bgp.learn);
//	                   the switches know each pod CIDR from the speakers, next hop = its node
//
//	plan := policy.Decide(policy.World{Cluster: world, Self: "node-1", Config: c, Host: host})
//	plan.String() // route 10.244.2.0/24 via 192.0.2.2 dev eth0 proto edgeway ...
//
// The stories in testdata/desired show manifests going in and a Plan coming out.
package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// World is everything that this node's decisions depend on.
type World struct {
	Cluster cluster.World // what the cluster says
	Self    string        // this node's name in it
	Config  config.Config // what the operator set on this node
	Host    routes.Host   // addresses and routes of this machine that are not ours
	// Silent has the addresses on this LAN that no longer answer while others do.
	Silent map[netip.Addr]bool
	// MACs has the MAC with which each neighbour answered its last probe.
	MACs map[netip.Addr]string
	// Barriers are the firewalls of this machine that drop or translate packets of Plan.Guarded.
	Barriers []Barrier
	// Dead has the gateways of Plan.Gateways that do not answer.
	Dead map[routes.Neighbour]bool
	// Learned are the paths that the switches announce within bgp.learn, in the order of
	// bgp.LearnedPath.Compare.
	Learned []bgp.LearnedPath
	// LearnedAll says that all sessions are Established and their switches have announced everything.
	LearnedAll bool
	Held       Held // addresses of uplinks; only read on a node with uplinks
}

// Plan says what this node does. If the cluster does not know the node, the Plan has only the source check.
type Plan struct {
	LANs []uint32     // of this node, each named by its local ASN, sorted
	Mode cluster.Mode // how packets reach the pods of this node
	// NetworkPool is the pool that this node belongs to: "NetworkPool/warehouse"; "": none.
	NetworkPool string
	Routes      routes.State // what the kernel should have, in Scope
	Learned     routes.State // the routes that the switches announce, of routes.ProtoLearned
	BGP         bgp.State
	Pool        ipam.Pool // the pods' addresses; without Sets: unknown
	MTU         int       // of the pods' links, in bytes
	// Uplinks is what the node grants to pods, for a plugin without a daemon (uplink.File).
	Uplinks uplink.Uplinks
	// Confirmed are the withdrawals of uplinks' addresses that are done.
	Confirmed []cluster.Withdrawal
	// Sessions has an entry for each switch that a resource gives this node, in the resources' order.
	Sessions []Session
	// Unspoken has an entry for each switch of a resource that selects this node and of which no speaker is a
	// Node. This node has no such session: it says in the resource's status that nobody has.
	Unspoken []Session
	// Lessons has an entry for each prefix that the switches announce, in order.
	Lessons []Lesson
	// Neighbours has the machines one hop away that matter to this node as a speaker: nodes and switches.
	Neighbours []routes.Neighbour
	// Gateways has the gateways one hop away that packets for other LANs pass.
	Gateways []routes.Neighbour
	// Guarded has packets that no firewall of this machine may drop or translate: of pods, of the tunnel and of BGP.
	Guarded []routes.Packet
	// Annotations are those that flannel must find on this node's Node, if the Node says something else; nil: none.
	Annotations map[string]string
	Problems    []cluster.Problem
}

// Session is the session with one switch that one resource asks for.
type Session struct {
	Resource string // "BGPPeer/peer-a"
	Peer     cluster.Peer
	// Key is the session's key in Plan.BGP. Several resources may share a session.
	Key bgp.Key
	// Held is why no session is tried for this resource. The zero Problem: it is tried.
	Held cluster.Problem
	// Paths are the paths that this resource asks the node to advertise to the switch.
	Paths []bgp.Path
}

// IsHeld reports whether no session is tried.
func (s Session) IsHeld() bool { return s.Held.Reason != "" }

// Scope returns the part of the host's network namespace that Plan.Routes describes.
func Scope() routes.Scope {
	return routes.Scope{Protocol: routes.ProtoNode, Links: []string{routes.VXLANLink, routes.VXLANLink6}, NAT: true, Senders: true, SourceCheck: true, Rules: true, Passages: routes.Netfilter{}}
}

// String prints the plan as operators know it: the lines of ip route, and a table for each session.
func (p Plan) String() string {
	all := p.Routes
	toNodes := slices.IndexFunc(all.Routes, func(r routes.Route) bool { return r.Via.IsValid() })
	if toNodes < 0 {
		toNodes = len(all.Routes)
	}
	// A learned route may be the way to other nodes: it is printed before the routes to them.
	all.Routes = slices.Concat(all.Routes[:toNodes], p.Learned.Routes, all.Routes[toNodes:])
	return all.String() + p.BGP.String()
}

// Decide is the whole policy.
func Decide(w World) Plan { return NewSurvey(w.Cluster).Decide(w) }

// Decide is Decide for one of the nodes of the surveyed cluster state, which w.Cluster must be.
func (s *Survey) Decide(w World) Plan {
	d := &draft{World: w, survey: s, plan: Plan{Mode: w.Config.Mode}}
	if w.Config.CNI.SourceCheck { // also for the pods of a node that the cluster does not know
		d.plan.Routes.SourceCheck = &routes.SourceCheck{}
	}
	if !d.findSelf() {
		return d.plan
	}
	d.plan.Problems = append(d.plan.Problems, s.problems...)
	d.overlapsHost()
	if !d.linksDown() {
		d.ownAddresses()
	}
	d.pools()
	d.pods()
	d.forwarding()
	d.learn()
	for i, n := range w.Cluster.Nodes {
		if n.Name == d.self.Name {
			continue
		}
		for _, cidr := range n.PodCIDRs {
			if !d.isDisputed(cidr) {
				d.routeTo(n, s.places[i], cidr)
			}
		}
	}
	if len(d.Cluster.Pools) > 0 {
		d.receive()
		d.strictLinks()
	}
	d.flannelProblems()
	d.announce()
	d.shadows()
	d.sourceNAT()
	d.uplinks()
	d.speak()
	d.mtuTooLarge()
	d.deadGateways()
	d.firewalls()
	return d.plan
}

// draft is a Plan while it is decided.
type draft struct {
	World
	survey    *Survey
	self      cluster.Node
	place                           // of self
	resources []cluster.Peering     // that select self
	disputed  map[netip.Prefix]bool // CIDRs that overlap a subnet of this host
	shared    map[netip.Prefix]bool // this node's CIDRs that the bridge of another plugin still serves

	carried int // the least MTU of the links that carry the pods' packets

	unlike []unlike // nodes of flannel to which no tunnel leads

	plan Plan
}

func (d *draft) problem(object string, reason cluster.Reason, want, got, next string) cluster.Problem {
	p := cluster.Problem{Object: object, Reason: reason, Want: want, Got: got, Next: next}
	d.plan.Problems = append(d.plan.Problems, p)
	return p
}

// Sorted returns all problems by object, each once.
func Sorted(problems ...[]cluster.Problem) []cluster.Problem {
	all := slices.Concat(problems...)
	slices.SortFunc(all, func(a, b cluster.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Got, b.Got), cmp.Compare(a.Want, b.Want), cmp.Compare(a.Next, b.Next))
	})
	return slices.Compact(all)
}

// findSelf finds this node in the cluster. Nothing can be decided for a node that is not found.
func (d *draft) findSelf() bool {
	at, known := d.survey.index[d.Self]
	if !known {
		got, next := fmt.Sprintf("%d Nodes of other names", len(d.Cluster.Nodes)), "add the Node, or set nodeName in the configuration to the name that the cluster uses"
		if name := d.survey.meant(d.Self); name != "" {
			got, next = "Node/"+name+", which differs "+difference(name, d.Self), "set nodeName: "+name+" in the configuration"
		}
		d.problem("Node/"+d.Self, cluster.NoSelf, "a Node of this name", got, next)
		return false
	}
	d.self, d.place = d.Cluster.Nodes[at], d.survey.places[at]
	for _, r := range d.Cluster.Peerings {
		if r.Selector.Selects(d.self.Labels) {
			d.resources = append(d.resources, r)
		}
	}
	d.plan.LANs, d.plan.Mode = d.lans, d.mode(d.self, d.pool)
	if d.pool != nil {
		d.plan.NetworkPool = d.pool.Ref()
	}
	if len(d.self.PodCIDRs) == 0 && d.Uplinks(d.Self) == nil {
		d.problem("Node/"+d.Self, cluster.NoPodCIDR, "spec.podCIDRs", "none", "give the Node a pod CIDR; until then no pod can start here")
	}
	if len(d.self.Addresses) == 0 {
		d.problem("Node/"+d.Self, cluster.NoAddress, "an InternalIP in status.addresses", "none", "set the Node's InternalIP to its address on the LAN")
	}
	return true
}

// linksDown records the links to the LAN that are down, and reports whether there is such a link. A link that
// is down has lost its IPv6 addresses.
func (d *draft) linksDown() bool {
	down := false
	for _, l := range d.Host.Links {
		if d.isUnderlay(d.self, l.Name) && !l.Up {
			d.problem("link "+l.Name, cluster.LinkDown, "the link of the node's address up", "down", "ip link set "+l.Name+" up, and check its cable")
			down = true
		}
	}
	return down
}

// pods decides what each pod of this node gets: one address of each pod CIDR, and an MTU. No pod gets an
// address of the host, such as the gateway of an earlier plugin's bridge.
func (d *draft) pods() {
	pool := &d.plan.Pool
	for _, c := range d.self.PodCIDRs {
		pool.Sets = append(pool.Sets, ipam.RangeSet{{Subnet: c}})
		for _, a := range d.Host.Addrs {
			if host := a.Prefix.Addr(); c.Contains(host) {
				pool.Reserved = append(pool.Reserved, netip.PrefixFrom(host, host.BitLen()))
			}
		}
	}
	slices.SortFunc(pool.Reserved, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	pool.Reserved = slices.Compact(pool.Reserved)
	d.carry(d.underlayMTU(d.self))
}

// carry limits the pods' MTU to the MTU of a link that carries their packets, unless the operator set one.
func (d *draft) carry(mtu int) {
	if d.carried == 0 || mtu < d.carried {
		d.carried = mtu
	}
	set := d.Config.CNI.MTU
	if d.pool != nil {
		set = cmp.Or(d.pool.MTU, set)
	}
	switch {
	case set != 0:
		d.plan.MTU = set
	case d.plan.MTU == 0 || mtu < d.plan.MTU:
		d.plan.MTU = mtu
	}
}

// forwarding lets the kernel route, and rejects packets for addresses of our pod CIDRs that no pod has. The
// default route would send such a packet back to the switch, and the switch back here, until its TTL expires.
func (d *draft) forwarding() {
	s := &d.plan.Routes
	for _, c := range d.self.PodCIDRs {
		if !d.shared[c] { // else the route of the old bridge is there
			s.Routes = append(s.Routes, routes.Route{Dst: c, Type: "unreachable", Protocol: routes.ProtoNode})
		}
		s.Sysctls = append(s.Sysctls, routes.Forwarding("", c.Addr().Is6()))
	}
	d.forwardingOff()
}

// forwardingOff records the links to the LAN that drop what arrives for the pods. These links are not ours,
// so their settings are left as they are. Only IPv4 has such links (see routes.Host).
func (d *draft) forwardingOff() {
	if !d.Grants() && !slices.ContainsFunc(d.self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() }) {
		return
	}
	for _, link := range d.Host.Unforwarded {
		if key := routes.Forwarding(link, false).Key; d.isUnderlay(d.self, link) {
			d.problem("link "+link, cluster.ForwardingOff, key+" = 1", "0: the kernel drops the IPv4 packets that arrive there for pods",
				"sysctl -w "+key+"=1; where systemd-networkd has the link, set IPv4Forwarding=yes in its .network file")
		}
	}
}

// strictLinks advises a looser rp_filter on the links to the LAN before the mode of a pool changes. A node whose
// route to a pod has moved to the tunnel drops, on such a link, what the pod's node still sends natively. There is
// no order of moves that avoids it: one of the two nodes is the first.
func (d *draft) strictLinks() {
	if !slices.ContainsFunc(d.self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() }) {
		return
	}
	for _, link := range d.Host.Strict {
		if d.isUnderlay(d.self, link) {
			key := "net.ipv4.conf." + link + ".rp_filter"
			d.problem("link "+link, cluster.StrictSource, "rp_filter 2 or 0 while the mode of a NetworkPool changes", "1: until both nodes have changed, IPv4 packets between their pods are dropped here",
				"before you change a mode: sysctl -w "+key+"=2; afterwards it may be 1 again")
		}
	}
}

// sourceNAT hides pods behind the node if the operator wants it, but never between pods, nor between pods and
// nodes that reach each other natively.
//
// Pods' packets to a node beside a tunnel are hidden in each case. They leave natively, and that node has its
// route back through the tunnel: with a strict rp_filter there, or a router that checks sources, they would not
// arrive. Packets of this node to pods behind a tunnel take the address of the tunnel's end, for the same reason.
func (d *draft) sourceNAT() {
	want := d.Config.SourceNAT
	if d.pool != nil && d.pool.SourceNAT != nil {
		want = *d.pool.SourceNAT
	}
	// Where there are pools, or the file says that there is no source NAT, the table stays when nothing is translated:
	// without it, the kernel would not track connections, and forget how the living ones were translated before a
	// pool changed its mode, or source NAT was switched off.
	beside := d.nodesBesideTunnels()
	if !want.Enabled && len(beside) == 0 && len(d.Cluster.Pools) == 0 && !slices.Contains(d.Config.Given, "sourceNAT") {
		return
	}
	nat := &routes.NAT{Sources: slices.Clone(d.self.PodCIDRs), Nodes: beside}
	d.plan.Routes.NAT = nat
	if !want.Enabled {
		nat.Off = true
		return
	}
	for i, n := range d.Cluster.Nodes {
		nat.Exclude = append(nat.Exclude, n.PodCIDRs...)
		for _, a := range d.addresses(i) {
			nat.Exclude = append(nat.Exclude, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	nat.Exclude = append(nat.Exclude, want.Exclude...)
}
