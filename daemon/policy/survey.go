package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Survey is what the decisions for all nodes of one cluster state share. It is made once, and a decision for
// each node of the cluster then takes time in proportion to the number of nodes, however many resources there are.
type Survey struct {
	lans     [][]uint32            // of each node of the cluster state, in its order
	speakers map[uint32][]string   // the Nodes that speak for each LAN
	claims   []claim               // every pod CIDR of the cluster, sorted
	disputed map[netip.Prefix]bool // pod CIDRs of two nodes that overlap
	problems []cluster.Problem     // every node has them
}

// claim is a pod CIDR and the Node that has it.
type claim struct {
	netip.Prefix
	owner string
}

// NewSurvey surveys a cluster state.
func NewSurvey(c cluster.World) *Survey {
	s := &Survey{speakers: map[uint32][]string{}, disputed: map[netip.Prefix]bool{}}
	for _, n := range c.Nodes {
		s.lans = append(s.lans, lans(c, n))
	}
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
			s.problem(r.Ref(), cluster.NoSuchSpeaker, "speakers that are Nodes", speaker.Node, "correct the speaker's name, or add the Node")
			continue
		case !r.Selector.Selects(nodes[i].Labels):
			s.problem(r.Ref(), cluster.SpeakerNotSelected, "speakers that nodeSelector selects", speaker.Node, "label the Node "+r.Selector.String()+", or name another speaker")
		}
		if !slices.Contains(s.speakers[r.LocalASN], speaker.Node) {
			s.speakers[r.LocalASN] = append(s.speakers[r.LocalASN], speaker.Node)
		}
	}
}
