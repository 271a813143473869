package controller

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Ledger is the state that the replicas share, beside the Nodes themselves. The package doc says why it makes
// overlaps impossible.
type Ledger struct {
	// Since is the creation time of the youngest Node when the ledger was begun, by the API server's clock. A
	// younger Node with pod CIDRs from elsewhere shows that another program gives them. Zero: the ledger is
	// not begun.
	Since time.Time `json:"-"`
	// Promised are blocks that a Node may get or may have got. A UID can have several promises: a promise
	// from before the pools changed stays until the Node has pod CIDRs.
	Promised []Promise `json:"promised,omitempty"`
	// Released are blocks of Nodes that are gone, the longest gone first. They are granted last, but a Node
	// that comes back under the same name gets its own block again.
	Released []Release `json:"released,omitempty"`
	// Next is, for each range, where the search for a free block begins: after the last block found.
	Next map[netip.Prefix]netip.Addr `json:"next,omitempty"`
}

// Promise says that only the Node with this UID may get these blocks.
type Promise struct {
	Node     string         `json:"node"`
	UID      string         `json:"uid"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// Release says that the Node that had these blocks is gone.
type Release struct {
	Node     string         `json:"node"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

const (
	// mostPromised bounds the promises, and so the ledger's size: 1,000 dual-stack promises take 150 KB of
	// the 1 MiB that a ConfigMap can hold. Further Nodes wait for the next look.
	mostPromised = 1000
	// mostReleased bounds the released blocks that are remembered.
	mostReleased = 1000
)

func (l Ledger) String() string {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err) // text, addresses and prefixes always marshal
	}
	return string(text)
}

func parseLedger(text string) (Ledger, error) {
	var l Ledger
	if text == "" {
		return l, nil
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return Ledger{}, fmt.Errorf("ledger: %w", err)
	}
	for _, p := range l.Promised {
		if p.UID == "" || !sound(p.PodCIDRs) {
			return Ledger{}, fmt.Errorf("ledger: promised to %q: want a uid and CIDRs such as 10.10.0.0/24", p.Node)
		}
	}
	for _, r := range l.Released {
		if !sound(r.PodCIDRs) {
			return Ledger{}, fmt.Errorf("ledger: released by %q: want CIDRs such as 10.10.0.0/24", r.Node)
		}
	}
	for in, at := range l.Next {
		if !sound([]netip.Prefix{in}) || !in.Contains(at) {
			return Ledger{}, fmt.Errorf("ledger: next: want an address in %v, got %v", in, at)
		}
	}
	return l, nil
}

// sound reports whether cidrs is not empty and a Node can hold each of them.
func sound(cidrs []netip.Prefix) bool {
	return len(cidrs) > 0 && !slices.ContainsFunc(cidrs, func(c netip.Prefix) bool {
		return !c.IsValid() || c != c.Masked() || c.Addr().Is4In6()
	})
}

// equal reports whether both ledgers are written alike.
func (l Ledger) equal(other Ledger) bool {
	return l.Since.Equal(other.Since) && l.String() == other.String()
}

// settle drops the promises that are kept or void, and remembers the released blocks: blocks of Nodes that
// are in before but not in nodes, and blocks promised to Nodes that are gone. nodes must have been listed
// after the ledger was read.
func (l Ledger) settle(pools []Pool, nodes, before []Node) Ledger {
	now := make(map[string]*Node, len(nodes))
	for i := range nodes {
		now[nodes[i].UID] = &nodes[i]
	}
	out := Ledger{Since: l.Since, Released: slices.Clone(l.Released), Next: map[netip.Prefix]netip.Addr{}}
	for in, at := range l.Next {
		out.Next[in] = at
	}
	for _, n := range before {
		if now[n.UID] == nil {
			out.release(Release{n.Name, n.PodCIDRs}, pools)
		}
	}
	for _, p := range l.Promised {
		switch n := now[p.UID]; {
		case n == nil:
			out.release(Release{p.Node, p.PodCIDRs}, pools)
		case !n.hasPodCIDRs():
			out.Promised = append(out.Promised, p)
		}
	}
	return out
}

// release remembers, once, a release with a block that lies in a pool.
func (l *Ledger) release(r Release, pools []Pool) {
	in := func(c netip.Prefix) bool {
		return slices.ContainsFunc(pools, func(p Pool) bool { return p.holds(c) })
	}
	known := func(o Release) bool { return o.Node == r.Node && slices.Equal(o.PodCIDRs, r.PodCIDRs) }
	if slices.ContainsFunc(r.PodCIDRs, in) && !slices.ContainsFunc(l.Released, known) {
		l.Released = append(l.Released, r)
	}
}

// forget drops the released blocks that are taken again, and the oldest releases over the bound.
func (l *Ledger) forget(taken *space) {
	var kept []Release
	for _, r := range l.Released {
		r.PodCIDRs = slices.DeleteFunc(slices.Clone(r.PodCIDRs), taken.overlaps)
		if len(r.PodCIDRs) > 0 {
			kept = append(kept, r)
		}
	}
	l.Released = kept[max(0, len(kept)-mostReleased):]
}
