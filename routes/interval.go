package routes

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// Prefixes as the interval sets of nftables hold them.

// samePrefixes reports whether a and b cover the same addresses.
func samePrefixes(a, b []netip.Prefix) bool { return slices.Equal(canonical(a), canonical(b)) }

// canonical returns the shortest sorted list that covers the same addresses.
func canonical(in []netip.Prefix) (out []netip.Prefix) {
	sorted := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue // inside the previous prefix
		}
		out = append(out, p)
		for len(out) > 1 && halves(out[len(out)-2], out[len(out)-1]) {
			out = out[:len(out)-1]
			last := &out[len(out)-1]
			*last = netip.PrefixFrom(last.Addr(), last.Bits()-1)
		}
	}
	return out
}

// halves reports whether a and b are the first and second half of one prefix.
func halves(a, b netip.Prefix) bool {
	if a.Bits() != b.Bits() || a.Bits() == 0 || a == b {
		return false
	}
	whole := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
	return whole.Addr() == a.Addr() && whole.Contains(b.Addr())
}

// intervals returns the elements of an interval set: a first address and the address after the last.
func intervals(in []netip.Prefix, v6 bool) (out []nftables.SetElement) {
	for _, p := range canonical(in) {
		if p.Addr().Is6() != v6 {
			continue
		}
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := lastOf(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// prefixesOf reads back the elements of an interval set. The kernel lists them in any order.
func prefixesOf(elements []nftables.SetElement) (out []netip.Prefix) {
	type edge struct {
		at  netip.Addr
		end bool
	}
	var edges []edge
	for _, e := range elements {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			edges = append(edges, edge{a, e.IntervalEnd})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if c := a.at.Compare(b.at); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1 // one interval ends where the next starts
		}
		return 1
	})
	for i, e := range edges {
		if e.end {
			continue
		}
		last := netip.Addr{}
		if i+1 < len(edges) {
			last = edges[i+1].at.Prev()
		}
		out = append(out, cover(e.at, last)...)
	}
	return canonical(out)
}

// cover splits the addresses from first to last into prefixes; an invalid last means the end of the
// address space.
func cover(first, last netip.Addr) (out []netip.Prefix) {
	for first.IsValid() && (!last.IsValid() || first.Compare(last) <= 0) {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || (last.IsValid() && lastOf(wider).Compare(last) > 0) {
				break
			}
			p = wider
		}
		out = append(out, p)
		first = lastOf(p).Next()
	}
	return out
}
