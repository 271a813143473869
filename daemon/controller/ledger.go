package controller

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Ledger is what the replicas know in common, beside the Nodes themselves. The package's text
// says why it makes overlaps impossible.
type Ledger struct {
	// Since is the creation time of the youngest Node when the ledger was begun, by the API
	// server's clock. A younger Node that has pod CIDRs of somebody else shows that somebody
	// else gives them. Zero: not begun.
	Since time.Time `json:"-"`
	// Promised are blocks that a Node may get or may have got. A UID can have several: what was
	// promised before the pools changed stays promised until the Node has pod CIDRs.
	Promised []Promise `json:"promised,omitempty"`
	// Released are blocks of Nodes that are gone, the longest gone first. They come last, but a
	// Node that comes back under the same name gets its own again.
	Released []Release `json:"released,omitempty"`
	// Next is, for each range, where the search for a free block begins: behind the last one.
	Next map[netip.Prefix]netip.Addr `json:"next,omitempty"`
}

// Promise says that the Node with this UID, and no other, may get these blocks.
type Promise struct {
	Node     string         `json:"node"`
	UID      string         `json:"uid"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// Release says that the Node is gone that had these blocks.
type Release struct {
	Node     string         `json:"node"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

const (
	// mostPromised bounds the promises, and so the ledger's size: 1,000 dual-stack promises are
	// 150 KB of the 1 MiB that a ConfigMap can hold. More Nodes wait for the next look.
	mostPromised = 1000
	// mostReleased bounds the released blocks that are remembered.
	mostReleased = 1000
)

func (l Ledger) String() string {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err) // texts, addresses and prefixes always marshal
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

// sound reports whether these are CIDRs that somebody can hold, and any at all.
func sound(cidrs []netip.Prefix) bool {
	return len(cidrs) > 0 && !slices.ContainsFunc(cidrs, func(c netip.Prefix) bool {
		return !c.IsValid() || c != c.Masked() || c.Addr().Is4In6()
	})
}

// equal reports whether writing b over a would change nothing.
func (l Ledger) equal(other Ledger) bool {
	return l.Since.Equal(other.Since) && l.String() == other.String()
}

// settle drops the promises that are kept or void, and remembers what became free: by nodes that
// were there before and are not in nodes any more, and by promises to them. nodes must have been
// listed after the ledger was read.
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

// release remembers blocks that lie in a pool, once.
func (l *Ledger) release(r Release, pools []Pool) {
	in := func(c netip.Prefix) bool {
		return slices.ContainsFunc(pools, func(p Pool) bool { return p.holds(c) })
	}
	known := func(o Release) bool { return o.Node == r.Node && slices.Equal(o.PodCIDRs, r.PodCIDRs) }
	if slices.ContainsFunc(r.PodCIDRs, in) && !slices.ContainsFunc(l.Released, known) {
		l.Released = append(l.Released, r)
	}
}

// forget drops from what was released what is taken again, and the oldest over the bound.
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
