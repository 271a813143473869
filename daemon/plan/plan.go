// Package plan says what a whole cluster would do, from its manifests alone: before they are applied.
//
// It owns the machines that it takes the nodes for, the view of all nodes together, and its text and picture.
// It decides nothing: package policy decides for each node, as the node's daemon does. It has no I/O.
//
//	p := plan.Of(plan.Input{Cluster: world, Config: config.Defaults()})
//	p.Text(os.Stdout)
//	// Node Node-1   addresses 10.0.10.11   LAN 65010
//	//   route 10.10.2.0/24 via 10.0.10.12 dev eth0 proto 119 ...
//
// No manifest says which links and subnets a machine has. So each Node is taken for a machine with one link,
// which has the Node's addresses and the default route. The subnets are /24 and /64 unless Input says more.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// Input is everything that a Plan depends on.
type Input struct {
	Cluster cluster.World
	Config  config.Config // of every node
	Subnets []netip.Prefix
	// Machines are the nodes whose real links and routes are known, by name.
	Machines map[string]routes.Host
	Only     string // the node to plan for; "": every node
}

// Plan is what every node would do, and what every switch would hear.
type Plan struct {
	Nodes    []Node
	Switches []Switch
	Problems []Problem
	Advice   []Problem
}

// Node is what one node would do.
type Node struct {
	cluster.Node
	Machine routes.Host
	Assumed bool // Machine is not known but assumed
	policy.Plan
}

// Switch is a switch with the sessions that it would have, and its table.
type Switch struct {
	Address  netip.Addr
	Port     uint16
	ASN      uint32
	Sessions []Session
	Table    []Entry
}

// Session is the session of a speaker with a switch.
type Session struct {
	Node string
	bgp.Session
	Secret *cluster.SecretKey // where its password is; nil: it has none
}

// Entry is a prefix in the table of a switch, and the speakers that advertise it.
type Entry struct {
	bgp.Path
	From []string
}

// Problem is a problem, and the nodes that would report it. Without a node, the manifests have it.
type Problem struct {
	cluster.Problem
	Nodes []string
}

// Of decides for each node of the cluster.
func Of(in Input) Plan {
	in.Cluster.Nodes = undated(in.Cluster.Nodes)
	nodes := in.Cluster.Nodes
	if in.Only != "" {
		only, _ := in.Cluster.Node(in.Only)
		only.Name = in.Only // a node that the cluster does not know has a problem too
		nodes = []cluster.Node{only}
	}
	survey := policy.NewSurvey(in.Cluster)
	var p Plan
	for _, n := range nodes {
		host, known := in.Machines[n.Name]
		if !known {
			host = in.machine(n)
		}
		w := policy.World{Cluster: in.Cluster, Self: n.Name, Config: in.Config, Host: host}
		p.Nodes = append(p.Nodes, Node{Node: n, Machine: host, Assumed: !known, Plan: survey.Decide(w)})
	}
	p.switches()
	p.problems(in.Cluster.Problems)
	return p
}

// undated returns the nodes as manifests say them. A daemon also knows since when, and a path's MED says that.
func undated(nodes []cluster.Node) []cluster.Node {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Since = time.Time{}
	}
	return nodes
}

// linkName is the name of the only link of a machine that is assumed.
const linkName = "eth0"

// machine returns the machine that n is taken for.
func (in Input) machine(n cluster.Node) routes.Host {
	h := routes.Host{Links: []routes.Link{{Name: linkName, MTU: 1500, Up: true}}}
	e, _ := in.Cluster.EdgeNode(n.Name)
	if e.Uplinks != nil {
		for i, u := range e.Uplinks.Interfaces {
			h.Links = append(h.Links, routes.Link{Name: cmp.Or(u.Name, fmt.Sprintf("eth%d", i+1)), MAC: cmp.Or(u.MAC, fmt.Sprintf("02:00:00:00:00:%02x", i)), MTU: 1500, Up: true})
		}
	}
	for _, a := range n.Addresses {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		for _, s := range in.Subnets {
			if s.Contains(a) {
				bits = s.Bits()
			}
		}
		h.Addrs = append(h.Addrs, routes.Addr{Link: linkName, Prefix: netip.PrefixFrom(a, bits)})
		everywhere := routes.Route{Dst: netip.PrefixFrom(a, 0).Masked(), Link: linkName, Protocol: 4} // RTPROT_STATIC
		if !slices.Contains(h.Routes, everywhere) {
			h.Routes = append(h.Routes, everywhere)
		}
	}
	return h
}

// switches collects the sessions and the tables of all switches, by address.
func (p *Plan) switches() {
	for _, n := range p.Nodes {
		for _, s := range n.BGP.Sessions {
			i := slices.IndexFunc(p.Switches, func(sw Switch) bool {
				return sw.Address == s.Peer.Address && sw.Port == s.Peer.Port && sw.ASN == s.Peer.ASN
			})
			if i < 0 {
				i = len(p.Switches)
				p.Switches = append(p.Switches, Switch{Address: s.Peer.Address, Port: s.Peer.Port, ASN: s.Peer.ASN})
			}
			sw := &p.Switches[i]
			session := Session{Node: n.Name, Session: s}
			if asked := slices.IndexFunc(n.Sessions, func(o policy.Session) bool { return o.Key == s.Peer.Key() }); asked >= 0 {
				session.Secret = n.Sessions[asked].Peer.Password
			}
			sw.Sessions = append(sw.Sessions, session)
			for _, path := range s.Paths {
				sw.hears(path, n.Name)
			}
		}
	}
	for i := range p.Switches {
		slices.SortFunc(p.Switches[i].Table, func(a, b Entry) int { return a.Path.Compare(b.Path) })
	}
	slices.SortFunc(p.Switches, func(a, b Switch) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.ASN, b.ASN))
	})
}

// hears adds the path to the table. The mark NoLongLived is between the speaker and the switch.
func (sw *Switch) hears(path bgp.Path, from string) {
	path.NoLongLived = false
	i := slices.IndexFunc(sw.Table, func(e Entry) bool { return e.Path == path })
	if i < 0 {
		i = len(sw.Table)
		sw.Table = append(sw.Table, Entry{Path: path})
	}
	sw.Table[i].From = append(sw.Table[i].From, from)
}

// problems collects the problems and the advice of all nodes, each once.
func (p *Plan) problems(manifests []cluster.Problem) {
	all := [][]cluster.Problem{manifests}
	nodes := map[cluster.Problem][]string{}
	for _, n := range p.Nodes {
		all = append(all, n.Problems)
		for _, problem := range policy.Sorted(n.Problems) {
			nodes[problem] = append(nodes[problem], n.Name)
		}
	}
	for _, problem := range policy.Sorted(all...) {
		to := &p.Problems
		if problem.Reason.IsAdvice() {
			to = &p.Advice
		}
		*to = append(*to, Problem{Problem: problem, Nodes: nodes[problem]})
	}
}

// endpoint returns the address of the switch, and its port unless that is BGP's.
func (sw Switch) endpoint() string {
	if sw.Port == 0 || sw.Port == bgp.DefaultPort {
		return sw.Address.String()
	}
	return netip.AddrPortFrom(sw.Address, sw.Port).String()
}

// reporters says which nodes would report the problem.
func (p Problem) reporters(of int) string {
	switch {
	case len(p.Nodes) == 0:
		return "manifests"
	case len(p.Nodes) == of && of > 1:
		return "all nodes"
	case len(p.Nodes) > 3:
		return fmt.Sprintf("%s and %d more", p.Nodes[0], len(p.Nodes)-1)
	}
	return list(p.Nodes)
}
