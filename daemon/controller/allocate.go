package controller

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Node holds the fields of a Node object that are used.
type Node struct {
	Name, UID string
	Labels    map[string]string
	Created   time.Time // by the API server's clock, to the second
	Leaving   bool      // it is being deleted
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix
	Unread    string // text in podCIDRs that is not a CIDR
	SetBy     string // the field manager that owns podCIDRs; "" when the object does not say
}

func (n Node) hasPodCIDRs() bool { return len(n.PodCIDRs) > 0 || n.Unread != "" }

// State is everything that decides which Node gets which block.
type State struct {
	Pools    []Pool
	Services []netip.Prefix // the Service CIDRs
	Ledger   Ledger         // read before Nodes
	Nodes    []Node         // all Nodes, in one consistent list
	Before   []Node         // the Nodes of the look before; those that are gone have released their blocks
	// Early are the UIDs of Nodes that are too new to be served: another program that gives pod CIDRs must
	// have the time to serve them first.
	Early map[string]bool
}

// Plan says what to do: write the ledger, and only then patch the Nodes.
type Plan struct {
	Ledger   Ledger
	Grants   []Promise // each is in Ledger
	Problems []Problem
	Later    bool // some Nodes were left for the next look
}

// allocate decides. It is deterministic and stable: after its plan has been carried out, it grants nothing
// more.
func allocate(s State) Plan {
	nodes := slices.Clone(s.Nodes)
	slices.SortFunc(nodes, func(a, b Node) int { // the oldest Node is served first
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	s.Nodes = nodes
	a := allocation{State: s}
	a.plan.Ledger = s.Ledger.settle(s.Pools, nodes, s.Before)
	a.begin()
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			a.held.take(c)
		}
	}
	for _, p := range s.Pools {
		for _, c := range p.Exclude {
			a.held.take(c)
		}
	}
	a.taken = space{slices.Clone(a.held.taken)}
	for _, p := range a.plan.Ledger.Promised {
		for _, c := range p.PodCIDRs {
			a.taken.take(c)
		}
	}
	a.plan.Ledger.forget(&a.taken)
	a.recent = space{slices.Clone(a.taken.taken)}
	for _, r := range a.plan.Ledger.Released {
		for _, c := range r.PodCIDRs {
			a.recent.take(c)
		}
	}
	a.plan.Problems = nodeProblems(s)
	a.serve()
	return a.plan
}

type allocation struct {
	State
	plan   Plan
	held   space // pod CIDRs of Nodes, and the excluded addresses
	taken  space // held, and the promised blocks
	recent space // taken, and the released blocks
}

func (a *allocation) begin() {
	if !a.plan.Ledger.Since.IsZero() {
		return
	}
	since := time.Unix(0, 0).UTC() // without a Node, every Node that comes is new
	for _, n := range a.Nodes {
		if n.Created.After(since) {
			since = n.Created.UTC()
		}
	}
	a.plan.Ledger.Since = since
}

// serve finds blocks for all nodes that wait.
func (a *allocation) serve() {
	stop := halted(a.State, a.plan.Ledger.Since)
	for i := range a.Pools {
		p := &a.Pools[i]
		why := stop
		if why == nil {
			why = refused(p, a.State)
		}
		short := map[string]bool{} // the families that ran out of blocks
		var waiting []string
		for _, n := range a.Nodes {
			if poolOf(a.Pools, n.Labels) != p || n.hasPodCIDRs() || n.Leaving {
				continue
			}
			switch {
			case a.Early[n.UID]:
				a.plan.Later = true
			case why != nil:
				waiting = append(waiting, n.Name)
			case a.promised(p, n):
			case len(a.plan.Ledger.Promised) >= mostPromised:
				a.plan.Later = true
			default:
				if family := a.promise(p, n); family != "" {
					short[family] = true
					waiting = append(waiting, n.Name)
				}
			}
		}
		if why == nil && len(waiting) > 0 {
			why = exhausted(p, a.State, short)
		}
		if why != nil {
			a.plan.Problems = append(a.plan.Problems, why.concerning(p, waiting))
		}
	}
	a.plan.Ledger.forget(&a.taken)
}

// promised grants the blocks that the ledger already promises to n, if n should still get them.
func (a *allocation) promised(p *Pool, n Node) bool {
	for _, promise := range a.plan.Ledger.Promised {
		if promise.UID == n.UID && p.fits(promise.PodCIDRs) && !slices.ContainsFunc(promise.PodCIDRs, a.held.overlaps) {
			a.plan.Grants = append(a.plan.Grants, promise)
			return true
		}
	}
	return false
}

// promise finds new blocks for n and grants them. It returns the family that has no block left.
func (a *allocation) promise(p *Pool, n Node) string {
	type pick struct {
		block netip.Prefix
		in    netip.Prefix // the range whose search found it; zero for a released block
	}
	var picks []pick
	for _, ranges := range p.families() {
		block, in := a.pick(ranges, p.Mask.of(ranges[0].Addr()), n.Name)
		if !block.IsValid() {
			return family(ranges[0].Addr())
		}
		picks = append(picks, pick{block, in})
	}
	granted := Promise{Node: n.Name, UID: n.UID}
	for _, f := range picks {
		granted.PodCIDRs = append(granted.PodCIDRs, f.block)
		a.taken.take(f.block)
		a.recent.take(f.block)
		if f.in.IsValid() {
			a.plan.Ledger.Next[f.in] = f.in.Addr()
			if after := next(f.block); after.IsValid() && f.in.Contains(after.Addr()) {
				a.plan.Ledger.Next[f.in] = after.Addr()
			}
		}
	}
	a.plan.Ledger.Promised = append(a.plan.Ledger.Promised, granted)
	a.plan.Grants = append(a.plan.Grants, granted)
	return ""
}

// pick finds a block of one family: first the block that a Node of this name had, then a block that no Node
// held lately, then the block that was released first.
func (a *allocation) pick(ranges []netip.Prefix, bits int, name string) (block, in netip.Prefix) {
	free := func(c netip.Prefix) bool {
		return c.Bits() == bits && !a.taken.overlaps(c) &&
			slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return contains(r, c) })
	}
	for _, r := range slices.Backward(a.plan.Ledger.Released) {
		if i := slices.IndexFunc(r.PodCIDRs, free); r.Node == name && i >= 0 {
			return r.PodCIDRs[i], netip.Prefix{}
		}
	}
	for _, r := range ranges {
		if block := a.recent.free(r, bits, a.plan.Ledger.Next[r]); block.IsValid() {
			return block, r
		}
	}
	for _, r := range a.plan.Ledger.Released {
		if i := slices.IndexFunc(r.PodCIDRs, free); i >= 0 {
			return r.PodCIDRs[i], netip.Prefix{}
		}
	}
	for _, r := range ranges { // released with another mask
		if block := a.taken.free(r, bits, a.plan.Ledger.Next[r]); block.IsValid() {
			return block, r
		}
	}
	return netip.Prefix{}, netip.Prefix{}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// join writes prefixes as an operator does: "10.10.1.0/24, fd00:10:0:1::/64".
func join(cidrs []netip.Prefix) string {
	var texts []string
	for _, c := range cidrs {
		texts = append(texts, c.String())
	}
	return strings.Join(texts, ", ")
}
