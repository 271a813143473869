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
	inPool   [][]int               // the nodes that each pool of the cluster state selects
	speakers map[uint32][]string   // the Nodes that speak for each LAN
	members  map[string][]int      // the nodes that each resource selects, by its Ref
	index    map[string]int        // of each node, by its name
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
	s := &Survey{places: make([]place, len(c.Nodes)), speakers: map[uint32][]string{}, members: make(map[string][]int, len(c.Peerings)),
		index: make(map[string]int, len(c.Nodes)), like: make(map[string]string, len(c.Nodes)), disputed: map[netip.Prefix]bool{}}
	s.place(c)
	addrs := make([]netip.Addr, 0, len(c.Nodes))
	for i, n := range c.Nodes {
		s.index[n.Name] = i
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

// place finds the LANs and the pool of each node. The local ASN of a resource names the LAN.
func (s *Survey) place(c cluster.World) {
	var selectors []cluster.Selector
	for _, r := range c.Peerings {
		selectors = append(selectors, r.Selector)
	}
	for _, p := range c.Pools {
		selectors = append(selectors, p.Selector)
	}
	selected := cluster.Members(c.Nodes, selectors)
	for i, r := range c.Peerings {
		s.members[r.Ref()] = selected[i]
		for _, n := range selected[i] {
			if at := &s.places[n]; !slices.Contains(at.lans, r.LocalASN) {
				at.lans = append(at.lans, r.LocalASN)
			}
		}
	}
	for i := range s.places {
		slices.Sort(s.places[i].lans)
	}
	s.inPool = selected[len(c.Peerings):]
	for i := len(c.Pools) - 1; i >= 0; i-- {
		for _, n := range s.inPool[i] {
			s.places[n].pool = &c.Pools[i]
		}
	}
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
	s.claims = make([]claim, 0, len(nodes))
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
	owner := make(map[netip.Addr]string, len(nodes))
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
	if len(s.members[r.Ref()]) == 0 {
		s.problem(r.Ref(), cluster.SelectsNothing, "nodes that match "+r.Selector.String(), "none", "label the Nodes, or correct spec.nodeSelector")
	}
	for _, speaker := range r.Speakers {
		i, known := s.index[speaker.Node]
		switch {
		case !known:
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

// isNode reports whether the speaker is a Node.
func (s *Survey) isNode(speaker cluster.Speaker) bool {
	_, known := s.index[speaker.Node]
	return known
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
