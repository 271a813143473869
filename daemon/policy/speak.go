package policy

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// speak decides the BGP sessions of this node, if a resource names it as a speaker, and the paths for each
// switch: every pod CIDR of every selected node, with that node as the next hop.
func (d *draft) speak() {
	for _, r := range d.Cluster.Peerings {
		for _, s := range r.Speakers {
			if s.Node != d.self.Name {
				continue
			}
			for _, peer := range s.Peers {
				d.plan.Sessions = append(d.plan.Sessions, d.session(r, peer))
			}
		}
	}
	d.unspoken()
	d.markOwn()
	d.plan.Neighbours = d.neighbours()
	d.proxied()
	d.lone()
	if d.Cluster.Left != "" {
		d.problem(d.Cluster.Left, cluster.PeeringGone, "a BGP resource that selects this node, as this one did", "none: it was deleted",
			"apply the resource again: no switch learns this node's pods; if there is to be no BGP, restart edgewayd")
	}
	if len(d.Config.BGP.Learn) > 0 && len(d.plan.BGP.Sessions) > 0 && d.LearnedAll && len(d.Learned) == 0 {
		d.problem("bgp.learn", cluster.NothingLearned, "prefixes that the switches announce within "+fmt.Sprint(d.Config.BGP.Learn), "none",
			"let the switches announce them to this node, or correct bgp.learn")
	}
}

// unspoken finds the resources of which no speaker is a Node. Nobody has a session of such a resource, so the
// first node that it selects says so in the resource's status.
func (d *draft) unspoken() {
	for _, r := range d.Cluster.Peerings {
		members := d.survey.members[r.Ref()]
		if len(members) == 0 || d.Cluster.Nodes[members[0]].Name != d.self.Name || slices.ContainsFunc(r.Speakers, d.survey.isNode) {
			continue
		}
		for _, s := range r.Speakers {
			for _, peer := range s.Peers {
				key := bgp.Peer{Address: peer.Address, Port: cmp.Or(peer.Port, d.Config.BGP.Port)}.Key()
				d.plan.Unspoken = append(d.plan.Unspoken, Session{Resource: r.Ref(), Peer: peer, Key: key, Held: d.survey.noSuchSpeaker(r, s.Node)})
			}
		}
	}
}

// lone advises a second speaker for each LAN of several nodes in which this node is the only speaker.
func (d *draft) lone() {
	told := map[uint32]bool{} // once for each LAN
	for _, r := range d.Cluster.Peerings {
		here := slices.ContainsFunc(r.Speakers, func(s cluster.Speaker) bool { return s.Node == d.Self })
		if !here || told[r.LocalASN] || len(d.survey.speakers[r.LocalASN]) != 1 {
			continue
		}
		told[r.LocalASN] = true
		nodes := 0
		for _, at := range d.survey.places {
			if slices.Contains(at.lans, r.LocalASN) {
				nodes++
			}
		}
		if nodes > 1 {
			d.problem(r.Ref(), cluster.SingleSpeaker, fmt.Sprintf("two speakers for the %d nodes of AS %d", nodes, r.LocalASN), d.Self+" alone",
				"name a second node as speaker, and as neighbour on the switch: while "+d.Self+" is away, no dead node is withdrawn, and after the restart time the switch drops all their routes")
		}
	}
}

// session decides the session with one switch of a resource, or why it is held.
func (d *draft) session(r cluster.Peering, peer cluster.Peer) Session {
	terms, held := d.terms(r, peer)
	out := Session{Resource: r.Ref(), Peer: peer, Key: terms.Key(), Held: held}
	if out.IsHeld() {
		return out
	}
	out.Paths = d.paths(r)
	out.Held = d.join(r, bgp.Session{Peer: terms, Paths: out.Paths, Learn: d.Config.BGP.Learn, Sole: d.isSole(r.LocalASN)})
	return out
}

// isSole reports whether the cluster has only one session of that AS number.
func (d *draft) isSole(asn uint32) bool {
	type end struct {
		node string
		to   cluster.Peer
	}
	ends := map[end]bool{}
	for _, r := range d.Cluster.Peerings {
		if r.LocalASN != asn {
			continue
		}
		for _, s := range r.Speakers {
			for _, to := range s.Peers {
				ends[end{s.Node, cluster.Peer{Address: to.Address, Port: to.Port}}] = true
			}
		}
	}
	return len(ends) == 1
}

// terms decides the terms of a session with a switch, or the problem that holds the session down.
func (d *draft) terms(r cluster.Peering, peer cluster.Peer) (t bgp.Peer, held cluster.Problem) {
	b := d.Config.BGP
	t = bgp.Peer{
		Name: r.Ref(), Address: peer.Address, Port: cmp.Or(peer.Port, b.Port), ASN: peer.ASN, LocalASN: r.LocalASN,
		RouterID: d.routerID(d.self), HoldTime: b.HoldTime, RestartTime: b.RestartTime, LongLivedTime: b.LongLivedTime,
		MultihopTTL: peer.MultihopTTL, TTLSecurity: peer.TTLSecurity,
	}
	link, connected := d.linkTo(peer.Address)
	if !connected && peer.MultihopTTL == 0 {
		// The session is tried all the same: an address that is absent for a moment must not end it.
		d.problem(r.Ref(), cluster.PeerOffSubnet, "a switch on a subnet of this node", peer.Address.String(),
			"correct the peer's address, or set ebgpMultihop to the number of hops")
	}
	local, ok := d.sourceFor(d.self, peer.Address, link)
	if !ok {
		return t, d.problem(r.Ref(), cluster.NoAddress, "an address of this node of the family of "+peer.Address.String(), "none", "add the InternalIP to the Node")
	}
	t.LocalAddress = local
	if k := peer.Password; k != nil {
		password, got := d.password(*k)
		if got != "" {
			d.plan.BGP.Held = append(d.plan.BGP.Held, bgp.Held{Key: t.Key(), Why: r.Ref() + ": the password is missing"})
			return t, d.problem(r.Ref(), cluster.NoPassword, fmt.Sprintf("Secret kube-system/%s with key %s", k.Name, k.Key), got,
				fmt.Sprintf("set it; the session with %s is held down until then", peer.Address))
		}
		t.Password = password
	}
	return t, cluster.Problem{}
}

// paths lists the paths that r advertises to its switches. It includes the pod CIDRs of a node that is
// NotReady, because perhaps only the cluster does not hear the node. It leaves out the pod CIDRs of a node
// that the LAN does not hear. Newer knowledge has the lower MED: while a speaker is dead, the switch keeps
// its paths, and must prefer the paths of live speakers.
func (d *draft) paths(r cluster.Peering) []bgp.Path {
	var paths []bgp.Path
	for _, i := range d.survey.members[r.Ref()] {
		n := d.Cluster.Nodes[i]
		if len(n.PodCIDRs) == 0 && n.Name != d.self.Name && d.Uplinks(n.Name) == nil {
			d.problem("Node/"+n.Name, cluster.NoPodCIDR, "spec.podCIDRs", "none", "give the Node a pod CIDR; nothing is advertised for it until then")
		}
		if n.Name != d.self.Name && d.isSilent(n) {
			d.problem("Node/"+n.Name, cluster.SilentNode, "an answer to ARP or neighbour discovery, as other machines of the LAN give", "none",
				"check the node; its pod CIDRs are withdrawn until it answers (bgp.withdrawAfter)")
			continue
		}
		for _, c := range n.PodCIDRs {
			if d.isDisputed(c) {
				continue
			}
			hop, ok := d.underlay(n, c.Addr())
			if !ok {
				d.problem("Node/"+n.Name, cluster.NoAddress, "an InternalIP of the family of "+c.String(), "none", "add the address to the Node's status.addresses")
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

// join adds the session s. If another resource has a session with the same switch, join only adds the paths
// of s to that session. If the terms of the two differ, the earlier session is used and s is held.
func (d *draft) join(r cluster.Peering, s bgp.Session) (held cluster.Problem) {
	for i := range d.plan.BGP.Sessions {
		have := &d.plan.BGP.Sessions[i]
		if have.Peer.Address != s.Peer.Address || have.Peer.Port != s.Peer.Port {
			continue
		}
		if !have.Peer.Same(s.Peer) {
			// A switch tells its neighbours apart by address, so it cannot have two sessions with this node.
			return d.problem(r.Ref(), cluster.Conflict, "the same ASNs, password and options as "+have.Peer.Name+" has for "+s.Peer.Address.String(), "other values",
				"make the two resources agree; "+have.Peer.Name+" is used")
		}
		for _, path := range s.Paths {
			if !slices.Contains(have.Paths, path) {
				have.Paths = append(have.Paths, path)
			}
		}
		return held
	}
	d.plan.BGP.Sessions = append(d.plan.BGP.Sessions, s)
	return held
}

// password returns the Secret's value, or a description of what is there instead.
func (d *draft) password(k cluster.SecretKey) (password, got string) {
	i := slices.IndexFunc(d.Cluster.Secrets, func(s cluster.Secret) bool { return s.Name == k.Name })
	if i < 0 {
		return "", "no such Secret"
	}
	v, ok := d.Cluster.Secrets[i].Data[k.Key]
	switch {
	case !ok:
		return "", "a Secret without that key"
	case len(v) == 0:
		return "", "an empty value"
	case v[len(v)-1] == '\n':
		// echo appends a line break, which no switch has in its password.
		return "", "a value that ends in a line break (encode it with printf, not echo)"
	case len(v) > 80: // TCP_MD5SIG_MAXKEYLEN, include/uapi/linux/tcp.h
		return "", fmt.Sprintf("a value of %d bytes, of which TCP MD5 allows 80", len(v))
	}
	return string(v), ""
}

// routerID is the node's IPv4 address. A node without one has 32 bits derived from its name (RFC 6286,
// section 2.1: any value but zero that is unique in the AS).
func (d *draft) routerID(n cluster.Node) netip.Addr {
	if d.Config.BGP.RouterID.IsValid() {
		return d.Config.BGP.RouterID
	}
	if all := n.Family(netip.IPv4Unspecified()); len(all) > 0 {
		return all[0] // wherever it is: another router ID would end the sessions
	}
	sum := sha256.Sum256([]byte(n.Name))
	return netip.AddrFrom4([4]byte{sum[0] | 1, sum[1], sum[2], sum[3]})
}

// neighbours are the machines one hop away that matter to this node as a speaker: the nodes and the switches
// of its resources.
func (d *draft) neighbours() []routes.Neighbour {
	var out []routes.Neighbour
	there := map[routes.Neighbour]bool{}
	add := func(a netip.Addr) {
		link, near := d.linkTo(a)
		if n := (routes.Neighbour{Link: link, IP: a}); near && !there[n] {
			there[n] = true
			out = append(out, n)
		}
	}
	for _, r := range d.Cluster.Peerings {
		i := slices.IndexFunc(r.Speakers, func(s cluster.Speaker) bool { return s.Node == d.Self })
		if i < 0 {
			continue
		}
		for _, p := range r.Speakers[i].Peers {
			add(p.Address)
		}
		for _, i := range d.survey.members[r.Ref()] {
			if n := d.Cluster.Nodes[i]; n.Name != d.Self {
				for _, a := range n.Addresses {
					add(a)
				}
			}
		}
	}
	return out
}

// proxied records the links on which one machine answers for nodes: a switch with proxy ARP or ARP suppression
// answers for dead nodes too, so that no node ever becomes silent.
func (d *draft) proxied() {
	if len(d.MACs) == 0 {
		return
	}
	owner := map[netip.Addr]string{}
	for _, n := range d.Cluster.Nodes {
		for _, a := range n.Addresses {
			if d.MACs[a] != "" {
				owner[a] = "Node/" + n.Name
			}
		}
	}
	type seen struct{ link, mac string }
	first, told := map[seen]string{}, map[string]bool{}
	for _, n := range d.plan.Neighbours {
		at, who := seen{n.Link, d.MACs[n.IP]}, cmp.Or(owner[n.IP], "the switch")
		if at.mac == "" {
			continue
		}
		other := cmp.Or(first[at], who)
		if first[at] = other; other != who && !told[n.Link] {
			told[n.Link] = true
			d.problem("link "+n.Link, cluster.OneMAC, "a MAC of its own for each node", fmt.Sprintf("%s and %s answer with %s", other, who, at.mac),
				"turn proxy ARP or ARP suppression off on the switch; until then a dead node is seen only when the switch itself finds it unreachable, which can take hours")
		}
	}
}

// markOwn marks this node's own pod CIDRs for each switch to which another speaker advertises them too. When
// this speaker is lost, the switch drops the marked paths after the restart time, and does not keep them for
// the long-lived time. The other speaker knows whether this node lives, but it cannot withdraw this node's
// paths. When both are lost, the switch keeps the paths that each advertised for the other.
func (d *draft) markOwn() {
	if d.Config.BGP.LongLivedTime == 0 {
		return
	}
	for _, s := range d.plan.BGP.Sessions {
		if !slices.ContainsFunc(d.resources, func(r cluster.Peering) bool { return d.othersAdvertise(r, s.Peer) }) {
			continue
		}
		for i := range s.Paths {
			s.Paths[i].NoLongLived = slices.Contains(d.self.PodCIDRs, s.Paths[i].Prefix)
		}
	}
}

// othersAdvertise reports whether r, which selects this node, makes another node of the cluster advertise it to the switch.
func (d *draft) othersAdvertise(r cluster.Peering, to bgp.Peer) bool {
	return slices.ContainsFunc(r.Speakers, func(s cluster.Speaker) bool {
		return d.survey.isNode(s) && s.Node != d.self.Name && slices.ContainsFunc(s.Peers, func(peer cluster.Peer) bool {
			return peer.Address == to.Address && cmp.Or(peer.Port, d.Config.BGP.Port) == to.Port
		})
	})
}
