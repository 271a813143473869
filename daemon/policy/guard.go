package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// guardMost bounds the pod CIDRs of other nodes that the firewall is asked about. A firewall that drops pods' packets
// drops those of every node, or those of the nodes that somebody named.
const guardMost = 64

// SomePort is a port that hardly any rule names: the firewall is asked about ordinary connections.
const SomePort = 50317

// Barrier is a firewall on this machine that drops or translates packets that should pass.
type Barrier struct {
	Packet  routes.Packet
	Finding routes.Finding // without its counter
}

// Barriers returns one barrier for each rule, with the first packet that meets it. Where the packets are those of the
// node itself, it returns one for each service.
func Barriers(packets []routes.Packet, all [][]routes.Finding) (out []Barrier) {
	for i, findings := range all {
		for _, f := range findings {
			masks := f.Outcome == routes.Translates && f.Hook == routes.Postrouting && packets[i].In != ""
			if f.Outcome != routes.Drops && !f.Passed && !masks {
				continue
			}
			f.Packets, f.Counted = 0, false // else each look would find something new
			if !slices.ContainsFunc(out, func(b Barrier) bool { return b.Finding == f && service(b.Packet) == service(packets[i]) }) {
				out = append(out, Barrier{Packet: packets[i], Finding: f})
			}
		}
	}
	return out
}

// connection is the first packet of an ordinary connection.
func connection(src netip.Addr, in string, dst netip.Addr, via string) routes.Packet {
	return routes.Packet{Src: src, In: in, Dst: dst, Out: via, Protocol: routes.TCP, SrcPort: SomePort, DstPort: SomePort}
}

// guarded returns the packets that no firewall of this machine may drop or translate.
func (w World) guarded(self cluster.Node, plan Plan) (out []routes.Packet) {
	for _, mine := range self.PodCIDRs {
		here := inMiddle(mine)
		out = append(out, connection(here, routes.PodLink, here.Next(), routes.PodLink))
		asked := 0
		for _, n := range w.Cluster.Nodes {
			for _, theirs := range n.PodCIDRs {
				if n.Name == self.Name || theirs.Addr().Is4() != mine.Addr().Is4() || asked == guardMost {
					continue
				}
				there := inMiddle(theirs)
				asked++
				out = append(out, connection(here, routes.PodLink, there, routes.ByRoute), connection(there, routes.ByRoute, here, routes.PodLink))
			}
		}
	}
	out = append(out, w.uplinkPackets(self, plan)...)
	for _, l := range plan.Routes.Links {
		at := slices.IndexFunc(plan.Routes.FDB, func(f routes.FDB) bool { return f.Link == l.Name })
		if l.VXLAN == nil || at < 0 {
			continue
		}
		tunnel := connection(plan.Routes.FDB[at].Dst, routes.ByRoute, l.VXLAN.Local, "")
		tunnel.Protocol, tunnel.DstPort = routes.UDP, l.VXLAN.Port
		out = append(out, tunnel)
		tunnel.Src, tunnel.In, tunnel.Dst, tunnel.Out = tunnel.Dst, "", tunnel.Src, routes.ByRoute
		out = append(out, tunnel)
	}
	if w.Config.Paths.Canary {
		out = append(out, w.probes(self)...)
	}
	for _, s := range plan.BGP.Sessions {
		session := connection(s.Peer.LocalAddress, "", s.Peer.Address, routes.ByRoute)
		session.DstPort = s.Peer.Port
		answer := connection(s.Peer.Address, routes.ByRoute, s.Peer.LocalAddress, "")
		answer.SrcPort, answer.Reply = s.Peer.Port, true
		out = append(out, session, answer)
	}
	return out
}

// uplinkPackets returns the packets of pods that have addresses of uplinks: between pods of this node, by each uplink in
// both directions, and by the link of the node's own address, where the questions to NodePorts arrive.
func (w World) uplinkPackets(self cluster.Node, plan Plan) (out []routes.Packet) {
	asked := 0
	for _, i := range plan.Uplinks.Interfaces {
		link, found := i.Link(w.Host)
		if !found || len(i.Addresses) == 0 {
			continue
		}
		here, there := i.Addresses[len(i.Addresses)/2], inMiddle(i.Subnet)
		if next := i.Addresses[0]; next != here {
			out = append(out, connection(here, routes.PodLink, next, routes.PodLink))
		}
		for slices.Contains(i.Addresses, there) {
			there = there.Next()
		}
		both := func(there netip.Addr) {
			out = append(out, connection(here, routes.PodLink, there, link.Name), connection(there, link.Name, here, routes.PodLink))
		}
		both(there)
		for _, n := range w.Cluster.Nodes {
			for _, theirs := range n.PodCIDRs {
				byUplink := !plan.Uplinks.NodeEgress || slices.ContainsFunc(plan.Routes.NAT.Exclude, func(p netip.Prefix) bool { return p.Overlaps(theirs) })
				if n.Name != self.Name && theirs.Addr().Is6() == i.V6() && byUplink && asked < guardMost {
					asked++
					both(inMiddle(theirs))
				}
			}
		}
		for _, a := range w.Host.Addrs {
			if a.Prefix.Addr().Is6() == i.V6() && !a.Prefix.IsSingleIP() && slices.Contains(self.Addresses, a.Prefix.Addr()) {
				out = append(out, connection(inMiddle(a.Prefix), a.Link, here, routes.PodLink))
			}
		}
	}
	return out
}

// probes returns the question whether this node is there, and the question to another node, for each family.
func (w World) probes(self cluster.Node) (out []routes.Packet) {
	for _, here := range self.Addresses {
		for _, n := range w.Cluster.Nodes {
			at := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == here.Is4() })
			if n.Name == self.Name || at < 0 {
				continue
			}
			port := w.Config.Paths.Port
			out = append(out, routes.Packet{Src: n.Addresses[at], In: routes.ByRoute, Dst: here, Protocol: routes.UDP, SrcPort: port, DstPort: port},
				routes.Packet{Src: here, Dst: n.Addresses[at], Out: routes.ByRoute, Protocol: routes.UDP, SrcPort: port, DstPort: port})
			break
		}
	}
	return out
}

// inMiddle is an address in the middle of a CIDR: a rule about one pod, or about the gateway, does not concern it.
func inMiddle(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	if bit := p.Bits(); bit < len(b)*8 {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// firewalls records the barriers: one problem for each rule and service. A rule of ours that lets the packets pass is
// wanted as long as they would be dropped without it.
func (d *draft) firewalls() {
	d.plan.Guarded = d.guarded(d.self, d.plan)
	for _, b := range d.Barriers {
		p, f := b.Packet, b.Finding
		passes := f.Passable() && d.Config.Firewall == config.FirewallAccept
		if passes {
			d.pass(f.Place, d.accepts(p))
		}
		if f.Passed || p.Protocol == routes.UDP && p.DstPort == d.Config.Paths.Port && p.SrcPort == p.DstPort {
			continue // without the answer of a node's own address, nothing is said of its canary: no packet of a pod is lost
		}
		what := fmt.Sprintf("packets from %v to %v", p.Src, p.Dst)
		got := f.Hook.String() + ": " + f.String()
		switch {
		case f.Outcome == routes.Translates:
			d.problem("firewall", cluster.ForeignNAT, "pods' "+what+" with the pods' own addresses", got, undo(f, "tell the program that made the rule to leave out the pods' addresses"))
		case p.In == "" || p.Out == "":
			d.problem("firewall", cluster.HostDropped, fmt.Sprintf("%s (%s) to pass", what, service(p)), got, orPass(passes, undo(f, letIn(p, f))))
		default:
			d.problem("firewall", cluster.ForwardDropped, "pods' "+what+" to pass", got, orPass(passes, undo(f, d.letThrough(p, f))))
		}
	}
}

// orPass is the next step where edgewayd mends the firewall on its own: the problem stays only while it does not run.
func orPass(passes bool, otherwise string) string {
	if !passes {
		return otherwise
	}
	return "edgewayd adds a rule that accepts them while it runs (firewall: accept); or " + otherwise
}

// pass wants the accepting rules in a chain.
func (d *draft) pass(in routes.Place, accepts []routes.Accept) {
	all := &d.plan.Routes.Passages
	at := slices.IndexFunc(*all, func(p routes.Passage) bool { return p.Place == in })
	if at < 0 {
		at = len(*all)
		*all = append(*all, routes.Passage{Place: in})
	}
	(*all)[at].Accepts = append((*all)[at].Accepts, accepts...)
}

// accepts are the rules that let a packet pass, with all that is like it.
func (d *draft) accepts(p routes.Packet) (out []routes.Accept) {
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	switch {
	case p.In != "" && p.Out != "":
		from := slices.Clone(d.self.PodCIDRs)
		for _, i := range d.plan.Uplinks.Interfaces {
			from = append(from, i.Subnet) // on a pod's link, only granted addresses of it: a rule for each would make a long chain
		}
		for _, c := range from {
			out = append(out, routes.Accept{In: true, Src: c}, routes.Accept{Out: true, Dst: c})
		}
	case p.Protocol == routes.UDP:
		out = append(out, routes.Accept{Protocol: routes.UDP, DstPort: p.DstPort})
	default:
		for _, s := range d.plan.BGP.Sessions {
			if p.In == "" {
				out = append(out, routes.Accept{Dst: single(s.Peer.Address), Protocol: routes.TCP, DstPort: s.Peer.Port})
			} else {
				out = append(out, routes.Accept{Src: single(s.Peer.Address), Protocol: routes.TCP, SrcPort: s.Peer.Port, Answers: true})
			}
		}
	}
	return out
}

// service is what a packet is for.
func service(p routes.Packet) string {
	switch {
	case p.In != "" && p.Out != "":
		return "pods"
	case p.Protocol == routes.UDP:
		return fmt.Sprintf("VXLAN, UDP port %d", p.DstPort)
	}
	return fmt.Sprintf("BGP, TCP port %d", min(p.SrcPort, p.DstPort))
}

// undo is the next step: the command that deletes a rule, or what else lets the packets pass.
func undo(f routes.Finding, otherwise string) string {
	if u := f.Undo(); u != "" && (f.Program == "" || f.Outcome == routes.Translates) && !f.Policy {
		return "remove the rule, or limit it: " + u
	}
	return otherwise
}

// letThrough gives the commands that let forwarded packets of the pods pass.
func (d *draft) letThrough(p routes.Packet, f routes.Finding) string {
	cidr, more := "", ""
	for _, c := range d.self.PodCIDRs {
		if c.Contains(p.Src) || c.Contains(p.Dst) {
			cidr = c.String()
		}
	}
	for _, i := range d.plan.Uplinks.Interfaces {
		granted := uplink.Aggregate(i.Addresses)
		at := slices.IndexFunc(granted, func(c netip.Prefix) bool { return c.Contains(p.Src) || c.Contains(p.Dst) })
		if at >= 0 {
			cidr = granted[at].String()
		}
		if at >= 0 && len(granted) > 1 {
			more = "; and the same for the other addresses in spec.uplinks"
		}
	}
	switch at := f.Place.IPTables(); {
	case f.Program == "firewalld":
		return "firewall-cmd --permanent --zone=trusted --add-source=" + cidr + more + ", and a policy from the LAN's zone to trusted: docs/troubleshooting.md has the commands"
	case f.Program == "ufw":
		return fmt.Sprintf("ufw route allow from %[1]s; ufw route allow to %[1]s", cidr) + more
	case f.Program == "Docker":
		return fmt.Sprintf("%[1]s -I DOCKER-USER -i ew+ -j ACCEPT; %[1]s -I DOCKER-USER -o ew+ -j ACCEPT; in a file that runs at each start", at)
	case byIPTables(f.Base):
		return fmt.Sprintf("%[1]s -I %[2]s -i ew+ -j ACCEPT; %[1]s -I %[2]s -o ew+ -j ACCEPT; in a file that runs at each start", at, f.Base.Chain)
	}
	return fmt.Sprintf(`nft insert rule %[1]s iifname "ew*" accept; nft insert rule %[1]s oifname "ew*" accept; and in the file that makes the chain`, f.Base.NFT())
}

// letIn gives the commands that let a packet of the node itself pass.
func letIn(p routes.Packet, f routes.Finding) string {
	proto, port, match := "tcp", min(p.SrcPort, p.DstPort), "--sport"
	if p.Protocol == routes.UDP {
		proto, port = "udp", p.DstPort
	}
	if port == p.DstPort {
		match = "--dport"
	}
	switch {
	case f.Program == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/%s; firewall-cmd --reload", port, proto)
	case f.Program == "ufw" && p.In == "":
		return fmt.Sprintf("ufw allow out %d/%s", port, proto)
	case f.Program == "ufw":
		return fmt.Sprintf("ufw allow %d/%s", port, proto)
	case byIPTables(f.Base):
		return fmt.Sprintf("%s -I %s -p %s %s %d -j ACCEPT; in a file that runs at each start", f.Place.IPTables(), f.Base.Chain, proto, match, port)
	}
	return fmt.Sprintf("nft insert rule %s %s %s %d accept; and in the file that makes the chain", f.Base.NFT(), proto, match[2:], port)
}

// byIPTables reports whether a program of iptables made the base chain.
func byIPTables(p routes.Place) bool {
	return p.Legacy || p.Table == "filter" && strings.ToUpper(p.Chain) == p.Chain
}

// gateways returns the gateways one hop away that packets for other LANs pass.
func (d *draft) gateways() (out []routes.Neighbour) {
	ours := map[netip.Addr]bool{}
	for _, n := range d.Cluster.Nodes {
		for _, a := range n.Addresses {
			ours[a] = true
		}
	}
	seen := map[routes.Neighbour]bool{}
	for _, r := range slices.Concat(d.plan.Routes.Routes, d.Host.Routes) {
		wanted := r.Protocol == routes.ProtoNode || r.Dst.IsValid() && r.Dst.Bits() == 0
		n := routes.Neighbour{Link: r.Link, IP: r.Via}
		if !wanted || !r.Via.IsValid() || r.Via.IsLinkLocalUnicast() || ours[r.Via] || seen[n] || !d.isUnderlay(d.self, r.Link) || d.isDown(r.Link) {
			continue
		}
		seen[n] = true
		out = append(out, n)
	}
	for _, i := range d.plan.Uplinks.Interfaces {
		link, ok := i.Link(d.Host)
		n := routes.Neighbour{Link: link.Name, IP: i.Gateway}
		if ok && link.Up && !i.Gateway.IsLinkLocalUnicast() && !ours[i.Gateway] && !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// deadGateways records the gateways that do not answer. The kernel sends nothing by them.
func (d *draft) deadGateways() {
	d.plan.Gateways = d.gateways()
	for _, g := range d.plan.Gateways {
		if !d.Dead[g] {
			continue
		}
		whose := "the default route's gateway"
		if gw, ref, ok := d.gateway(g.IP); ok && gw == g.IP {
			whose = "spec.gateway of " + ref
		}
		if slices.ContainsFunc(d.plan.Uplinks.Interfaces, func(i uplink.Interface) bool { return i.Gateway == g.IP }) {
			whose = "the gateway of an uplink of " + cluster.EdgeNode{Name: d.Self}.Ref()
		}
		d.problem("gateway "+g.IP.String(), cluster.SilentGateway, whose+" to answer on "+g.Link, "no answer to ARP or neighbour discovery",
			"correct the address, or check the switch and the VLAN of its port; packets for other LANs are lost until it answers")
	}
}

// mtuTooLarge compares the MTU that the operator set with the links that carry the pods' packets.
func (d *draft) mtuTooLarge() {
	if least := d.carried; least > 0 && d.plan.MTU > least {
		d.problem("pods", cluster.MTUTooLarge, fmt.Sprintf("an MTU of at most %d, as the link that carries the pods' packets has", least), fmt.Sprint(d.plan.MTU),
			"correct mtu in the NetworkPool, or cni.mtu in the configuration, and recreate the pods; or raise the MTU of the link and of the whole LAN")
	}
}
