package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Survey is what the decisions for all nodes of one cluster state share. It is made once, and a decision for
// each node of the cluster then takes time in proportion to the number of nodes, however many resources there are.
type Survey struct {
	places   []place               // of each node of the cluster state, in its order
	speakers map[uint32][]string   // the Nodes that speak for each LAN
	named    map[string]bool       // the names of the Nodes
	like     map[string]string     // the name of a Node, by what names that mean it have in common
	claims   []claim               // every pod CIDR of the cluster, sorted
	disputed map[netip.Prefix]bool // pod CIDRs of two nodes that overlap
	sixOnly  bool                  // some node has an IPv6 address and no IPv4 address
	problems []cluster.Problem     // every node has them
	// ofFlannel are the problems of annotations of flannel. The nodes of pools that ask for flannel have them.
	ofFlannel []cluster.Problem
}

// place is where a node belongs.
type place struct {
	lans []uint32             // the local ASNs of the resources that select it
	pool *cluster.NetworkPool // of the pools that select it, the first by name; nil: none does
	// flannel is what flannel says of it; nil: a pool selects it, flannel does not manage it, or no pool asks for flannel.
	flannel *cluster.Flannel
	// others are the addresses of all other nodes. The nodes share one array, since thousands of nodes would
	// otherwise have as many copies.
	others []netip.Addr
}

// LANs returns the LANs of the node with that index in the cluster state, each named by its local ASN, sorted.
func (s *Survey) LANs(node int) []uint32 { return s.places[node].lans }

// claim is a pod CIDR and the Node that has it.
type claim struct {
	netip.Prefix
	owner string
}

// NewSurvey surveys a cluster state.
func NewSurvey(c cluster.World) *Survey {
	s := &Survey{speakers: map[uint32][]string{}, named: map[string]bool{}, like: map[string]string{}, disputed: map[netip.Prefix]bool{}}
	var addrs []netip.Addr
	for _, n := range c.Nodes {
		s.places = append(s.places, place{lans: lans(c, n), pool: poolOf(c.Pools, n)})
		s.named[n.Name] = true
		s.like[common(n.Name)] = n.Name
		addrs = append(addrs, n.Addresses...)
		s.sixOnly = s.sixOnly || len(n.Addresses) > 0 && len(n.Family(netip.IPv4Unspecified())) == 0
	}
	round, begin := slices.Concat(addrs, addrs), 0 // after a node's own addresses come all others
	for i, n := range c.Nodes {
		end := begin + len(n.Addresses)
		s.places[i].others = slices.Clip(round[end : begin+len(addrs)])
		begin = end
	}
	s.flannel(c)
	s.overlaps(c.Nodes)
	s.sharedAddresses(c.Nodes)
	for _, r := range c.Peerings {
		s.resource(c.Nodes, r)
	}
	s.pools(c)
	return s
}

// lans returns the local ASNs of the resources that select n, sorted: the ASN names the LAN.
func lans(c cluster.World, n cluster.Node) []uint32 {
	var asns []uint32
	for _, r := range c.Peerings {
		if r.Selector.Selects(n.Labels) {
			asns = append(asns, r.LocalASN)
		}
	}
	slices.Sort(asns)
	return slices.Compact(asns)
}

// poolOf returns the NetworkPool that n belongs to: of those that select n, the first by name. nil: none does.
func poolOf(pools []cluster.NetworkPool, n cluster.Node) *cluster.NetworkPool {
	i := slices.IndexFunc(pools, func(p cluster.NetworkPool) bool { return p.Selector.Selects(n.Labels) })
	if i < 0 {
		return nil
	}
	return &pools[i]
}

func (s *Survey) problem(object string, reason cluster.Reason, want, got, next string) {
	s.problems = append(s.problems, cluster.Problem{Object: object, Reason: reason, Want: want, Got: got, Next: next})
}

// overlaps finds the pod CIDRs that overlap the pod CIDR of another node. Either owner may be wrong, so neither
// CIDR gets a route and neither is advertised.
func (s *Survey) overlaps(nodes []cluster.Node) {
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			s.claims = append(s.claims, claim{c, "Node/" + n.Name})
		}
	}
	// Sorted by first address, a prefix that overlaps an earlier one lies inside it.
	slices.SortFunc(s.claims, func(a, b claim) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), cmp.Compare(a.owner, b.owner))
	})
	var outer claim
	for _, c := range s.claims {
		if outer.IsValid() && outer.Overlaps(c.Prefix) {
			s.disputed[outer.Prefix], s.disputed[c.Prefix] = true, true
			s.problem(c.owner, cluster.Overlap, "a pod CIDR of its own", fmt.Sprintf("%s, which overlaps %s of %s", c.Prefix, outer.Prefix, outer.owner),
				"change one of the two; no route goes to either until then")
			continue
		}
		outer = c
	}
}

// sharedAddresses finds the InternalIPs that two Nodes share.
func (s *Survey) sharedAddresses(nodes []cluster.Node) {
	owner := map[netip.Addr]string{}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			if other, shared := owner[a]; shared {
				s.problem("Node/"+n.Name, cluster.SharedAddress, "an InternalIP of its own", a.String()+", which Node/"+other+" has too",
					"correct the InternalIP of one of the two: packets for both nodes' pods go to one machine")
				continue
			}
			owner[a] = n.Name
		}
	}
}

// resource finds the speakers of a BGP resource, and the problems of the resource as a whole.
func (s *Survey) resource(nodes []cluster.Node, r cluster.Peering) {
	if !slices.ContainsFunc(nodes, func(n cluster.Node) bool { return r.Selector.Selects(n.Labels) }) {
		s.problem(r.Ref(), cluster.SelectsNothing, "nodes that match "+r.Selector.String(), "none", "label the Nodes, or correct spec.nodeSelector")
	}
	for _, speaker := range r.Speakers {
		i := slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == speaker.Node })
		switch {
		case i < 0:
			s.problems = append(s.problems, s.noSuchSpeaker(r, speaker.Node))
			continue
		case !r.Selector.Selects(nodes[i].Labels):
			s.problem(r.Ref(), cluster.SpeakerNotSelected, "speakers that nodeSelector selects", speaker.Node, "label the Node "+r.Selector.String()+", or name another speaker")
		}
		if !slices.Contains(s.speakers[r.LocalASN], speaker.Node) {
			s.speakers[r.LocalASN] = append(s.speakers[r.LocalASN], speaker.Node)
		}
	}
}

// noSuchSpeaker is the problem of a speaker that is not a Node. Kubernetes writes the names of Nodes in lower
// case, and a Node may have the machine's full host name where people write the short one.
func (s *Survey) noSuchSpeaker(r cluster.Peering, speaker string) cluster.Problem {
	p := cluster.Problem{Object: r.Ref(), Reason: cluster.NoSuchSpeaker, Want: "speakers that are Nodes", Got: speaker, Next: "correct the speaker's name, or add the Node"}
	if name := s.meant(speaker); name != "" {
		p.Got, p.Next = speaker+", where Node/"+name+" differs "+difference(name, speaker), "name the speaker "+name
	}
	return p
}

// meant returns the name of the Node that somebody probably means by a name that no Node has, or "".
func (s *Survey) meant(name string) string { return s.like[common(name)] }

// common is what the names that people write for one machine have in common.
func common(name string) string {
	host, _, _ := strings.Cut(strings.ToLower(name), ".")
	return host
}

// difference says how the name of a Node differs from the name that somebody wrote for it.
func difference(node, written string) string {
	if strings.EqualFold(node, written) {
		return "in upper and lower case"
	}
	return "in its domain"
}
