package controller

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Problem is something that an operator must know or do.
type Problem struct {
	cluster.Problem
	pool string // the NetworkPool that it is about; "": none
	// Nodes are the names of the Nodes that get an Event about it.
	Nodes []string
}

// Reasons of problems.
const (
	noFreeBlock      cluster.Reason = "noFreeBlock"
	overlapsServices cluster.Reason = "overlapsServices"
	overlapsNode     cluster.Reason = "overlapsNode"
	overlapsPool     cluster.Reason = "overlapsPool"
	statusDenied     cluster.Reason = "statusDenied"
	otherAllocator   cluster.Reason = "otherAllocator"
	unreadPodCIDR    cluster.Reason = "unreadPodCIDR"
	sharedPodCIDR    cluster.Reason = "sharedPodCIDR"
	oneFamily        cluster.Reason = "oneFamily"
	outsidePool      cluster.Reason = "outsidePool"
	grantDenied      cluster.Reason = "grantDenied"
)

// eventReasons are the reasons in the words of Kubernetes' Events. A reason that is missing here is only
// logged: it is not a failure.
var eventReasons = map[cluster.Reason]string{
	noFreeBlock:      "PodCIDRNotAvailable",
	overlapsServices: "PodCIDRNotAvailable",
	overlapsNode:     "PodCIDRNotAvailable",
	overlapsPool:     "PodCIDRNotAvailable",
	otherAllocator:   "PodCIDRNotAvailable",
	unreadPodCIDR:    "PodCIDRNotAvailable",
	grantDenied:      "PodCIDRNotAvailable",
	sharedPodCIDR:    "PodCIDRConflict",
}

// FieldManager marks, at the API server, the pod CIDRs that this program set.
const FieldManager = "edgeway-controller"

// concerning returns the problem for the pool's waiting nodes.
func (p Problem) concerning(pool *Pool, nodes []string) Problem {
	if p.Object == "" {
		p.Object = pool.String()
	}
	if len(nodes) > 0 {
		p.Got += "; without pod CIDRs: " + some(nodes)
	}
	p.Nodes, p.pool = nodes, pool.Name
	return p
}

func some(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// halted returns the problem that stops all pools, if there is one.
func halted(s State, since time.Time) *Problem {
	for _, n := range s.Nodes {
		if n.Unread != "" {
			return &Problem{Problem: cluster.Problem{Object: "Node/" + n.Name, Reason: unreadPodCIDR, Want: "CIDRs in spec.podCIDRs", Got: fmt.Sprintf("%q", n.Unread),
				Next: "delete the Node and let it register again; no Node gets pod CIDRs meanwhile, because the taken ones are not known"}}
		}
	}
	for _, n := range s.Nodes {
		if p := poolOf(s.Pools, n.Labels); p != nil && n.Created.After(since) && givenByOther(p, n) {
			return &Problem{Problem: cluster.Problem{Reason: otherAllocator, Want: "nobody else who gives pod CIDRs to this pool's nodes",
				Got: fmt.Sprintf("Node/%s, new, with %s set by %s", n.Name, join(n.PodCIDRs), cmp.Or(n.SetBy, "somebody else")),
				Next: "edgeway gives none now. Let one of the two do it: stop edgeway-controller; or end the other (kube-controller-manager --allocate-node-cidrs=false), then: " +
					"kubectl -n " + Namespace + " patch configmap " + Name + ` --type=merge -p '{"data":{"since":null}}'`}}
		}
	}
	return nil
}

// givenByOther reports whether another program gave n its pod CIDRs. Pod CIDRs that a person set with kubectl
// do not count.
func givenByOther(p *Pool, n Node) bool {
	if !n.hasPodCIDRs() || n.SetBy == FieldManager || strings.HasPrefix(n.SetBy, "kubectl") {
		return false
	}
	return n.SetBy != "" || !slices.ContainsFunc(n.PodCIDRs, p.holds)
}

// refused returns the problem that stops this pool: its ranges hold addresses with another use.
func refused(p *Pool, s State) *Problem {
	excluded := func(c netip.Prefix) bool {
		return slices.ContainsFunc(p.Exclude, func(e netip.Prefix) bool { return contains(e, c) })
	}
	next := "choose other podCIDRs, or list those addresses in the pool's exclude; nodes keep what they have"
	if p.Name != "" {
		next = "choose other spec.podCIDRs; nodes keep what they have"
	}
	for _, c := range p.CIDRs {
		for _, other := range s.Pools {
			if i := slices.IndexFunc(other.CIDRs, c.Overlaps); i >= 0 && p.younger(other) {
				return &Problem{Problem: cluster.Problem{Object: p.String(), Reason: overlapsPool, Want: "podCIDRs of its own",
					Got: fmt.Sprintf("%v, which overlaps %v of %v, the older pool", c, other.CIDRs[i], other), Next: next}}
			}
		}
		for _, service := range s.Services {
			both := service // if two CIDRs overlap, one contains the other
			if contains(service, c) {
				both = c
			}
			if c.Overlaps(service) && !excluded(both) {
				return &Problem{Problem: cluster.Problem{Object: p.String(), Reason: overlapsServices, Want: "podCIDRs apart from the Service CIDRs",
					Got: fmt.Sprintf("%v, which overlaps the Service CIDR %v", c, service), Next: next}}
			}
		}
		for _, n := range s.Nodes {
			for _, a := range n.Addresses {
				if c.Contains(a) && !excluded(netip.PrefixFrom(a, a.BitLen())) {
					return &Problem{Problem: cluster.Problem{Object: p.String(), Reason: overlapsNode, Want: "podCIDRs apart from the nodes' own subnets",
						Got: fmt.Sprintf("%v, which holds the address %v of Node/%s", c, a, n.Name), Next: next}}
				}
			}
			if i := slices.IndexFunc(n.PodCIDRs, c.Overlaps); i >= 0 && p.takenElsewhere(n, s.Pools) {
				return &Problem{Problem: cluster.Problem{Object: p.String(), Reason: overlapsNode, Want: "podCIDRs apart from the pod CIDRs of nodes outside of the pool",
					Got: fmt.Sprintf("%v, which overlaps %v of Node/%s, set by %s", c, n.PodCIDRs[i], n.Name, n.SetBy), Next: next}}
			}
		}
	}
	return nil
}

// takenElsewhere reports whether n is outside of a NetworkPool and has its pod CIDRs from another program, which may give
// more of the same range. A person's pod CIDRs count as taken blocks, and stop no pool. The ranges of the file have
// been next to other programs' nodes at all times.
func (p Pool) takenElsewhere(n Node, pools []Pool) bool {
	if p.Name == "" || n.SetBy == "" || n.SetBy == FieldManager || strings.HasPrefix(n.SetBy, "kubectl") {
		return false
	}
	its := poolOf(pools, n.Labels)
	return its == nil || its.Name != p.Name
}

// younger reports whether p came after other. The younger of two pools that overlap gives no blocks: a mistake
// of today does not stop what worked yesterday.
func (p Pool) younger(other Pool) bool {
	if p.Name == "" || other.Name == "" {
		return p.Name != "" && other.Name == ""
	}
	return cmp.Or(p.Created.Compare(other.Created), cmp.Compare(p.Name, other.Name)) > 0
}

// exhausted says that the pool has no block left of these families, and which nodes hold them.
func exhausted(p *Pool, s State, short map[string]bool) *Problem {
	var what []string
	for _, ranges := range p.families() {
		f := family(ranges[0].Addr())
		if !short[f] {
			continue
		}
		holders := 0
		for _, n := range s.Nodes {
			if slices.ContainsFunc(n.PodCIDRs, func(c netip.Prefix) bool {
				return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Overlaps(c) })
			}) {
				holders++
			}
		}
		what = append(what, fmt.Sprintf("no /%d left in %s (Nodes that hold %s pod CIDRs of it: %d)", p.Mask.of(ranges[0].Addr()), join(ranges), f, holders))
	}
	return &Problem{Problem: cluster.Problem{Reason: noFreeBlock, Want: "a free block of each family", Got: strings.Join(what, "; "),
		Next: "add a CIDR to the pool's podCIDRs, exclude less, or delete Nodes that are gone for good"}}
}

// nodeProblems finds the faults in the pod CIDRs that Nodes have. It changes no Node: the API server lets
// nobody change pod CIDRs.
func nodeProblems(s State) []Problem {
	problems := sharedPodCIDRs(s.Nodes)
	for i := range s.Pools {
		p := &s.Pools[i]
		if len(p.CIDRs) == 0 {
			continue
		}
		var single, outside []string
		for _, n := range s.Nodes {
			if poolOf(s.Pools, n.Labels) != p || len(n.PodCIDRs) == 0 {
				continue
			}
			text := n.Name + " " + join(n.PodCIDRs)
			if len(n.PodCIDRs) < len(p.families()) {
				single = append(single, text)
			}
			if !slices.ContainsFunc(n.PodCIDRs, p.holds) {
				if n.SetBy != "" {
					text += " (set by " + n.SetBy + ")"
				}
				outside = append(outside, text)
			}
		}
		if len(single) > 0 {
			problems = append(problems, Problem{Problem: cluster.Problem{Object: p.String(), Reason: oneFamily, Want: "a pod CIDR of each family on its nodes", Got: some(single),
				Next: "the API server lets nobody add one; for both families drain the node, delete the Node and let it register again"}})
		}
		if len(outside) > 0 {
			problems = append(problems, Problem{Problem: cluster.Problem{Object: p.String(), Reason: outsidePool, Want: "pod CIDRs of this pool on its nodes", Got: some(outside),
				Next: "they stay, and routes to them too; to move a node into the pool drain it, delete the Node and let it register again"}})
		}
	}
	return problems
}

// sharedPodCIDRs finds Nodes whose pod CIDRs overlap, and returns a problem for both.
func sharedPodCIDRs(nodes []Node) []Problem {
	type holding struct {
		node string
		cidr netip.Prefix
		span
	}
	var all []holding
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			all = append(all, holding{n.Name, c, spanOf(c)})
		}
	}
	slices.SortFunc(all, func(a, b holding) int {
		return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last), cmp.Compare(a.node, b.node))
	})
	found := map[string]Problem{}
	note := func(a, b holding) {
		if _, ok := found[a.node]; !ok {
			found[a.node] = Problem{Nodes: []string{a.node}, Problem: cluster.Problem{Object: "Node/" + a.node, Reason: sharedPodCIDR, Want: "a pod CIDR of its own",
				Got:  fmt.Sprintf("%v, which overlaps %v of Node/%s", a.cidr, b.cidr, b.node),
				Next: "drain one of the two, delete its Node and let it register again; until then pods of both can have one address"}}
		}
	}
	var widest holding // the earlier holding that reaches furthest
	for _, h := range all {
		if widest.node != "" && widest.node != h.node && h.first.Compare(widest.last) <= 0 {
			note(widest, h)
			note(h, widest)
		}
		if widest.node == "" || widest.last.Less(h.last) {
			widest = h
		}
	}
	var out []Problem
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[name])
	}
	return out
}
