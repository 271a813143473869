package ipam

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// span is a closed run of addresses of one family.
type span struct{ first, last netip.Addr }

func (s span) contains(a netip.Addr) bool {
	return a.BitLen() == s.first.BitLen() && s.first.Compare(a) <= 0 && a.Compare(s.last) <= 0
}

func (s span) overlaps(o span) bool {
	return s.first.BitLen() == o.first.BitLen() && s.first.Compare(o.last) <= 0 && o.first.Compare(s.last) <= 0
}

func (s span) String() string { return s.first.String() + "-" + s.last.String() }

// sizeCap is the largest count that is reported; see Usage.
const sizeCap = 1 << 62

// size counts the addresses of s, at most sizeCap.
func (s span) size() uint64 {
	fh, fl := words(s.first)
	lh, ll := words(s.last)
	lo, borrow := bits.Sub64(ll, fl, 0)
	hi, _ := bits.Sub64(lh, fh, borrow)
	if hi != 0 || lo >= sizeCap {
		return sizeCap
	}
	return min(lo+1, sizeCap)
}

func words(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	for _, x := range b[:8] {
		hi = hi<<8 | uint64(x)
	}
	for _, x := range b[8:] {
		lo = lo<<8 | uint64(x)
	}
	return hi, lo
}

func prefixSpan(p netip.Prefix) span { return span{p.Masked().Addr(), lastOf(p)} }

// lastOf is the highest address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// area is a range made concrete: its addresses that can be leased, in ascending order.
type area struct {
	span          // from the first to the last address, holes included
	subnet string // for messages
	spans  []span // without the network, broadcast, gateway and reserved addresses
}

func (a area) contains(addr netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(a.spans, addr, func(s span, x netip.Addr) int { return s.last.Compare(x) })
	return i < len(a.spans) && a.spans[i].contains(addr)
}

// from returns the first address at or after x that can be leased. x is invalid after the highest address
// of the family.
func (a area) from(x netip.Addr) (netip.Addr, bool) {
	if !x.IsValid() {
		return netip.Addr{}, false
	}
	i, _ := slices.BinarySearchFunc(a.spans, x, func(s span, x netip.Addr) int { return s.last.Compare(x) })
	switch {
	case i == len(a.spans):
		return netip.Addr{}, false
	case x.Less(a.spans[i].first):
		return a.spans[i].first, true
	}
	return x, true
}

// key tells areas apart by the ends of their spans.
func (a area) key() string {
	var b []byte
	for _, s := range a.spans {
		b = append(append(b, addrKey(s.first)...), addrKey(s.last)...)
	}
	return string(b)
}

// layout is a pool made concrete: one list of areas for each set.
type layout [][]area

// find returns the set that addr belongs to.
func (l layout) find(addr netip.Addr) (set int, ok bool) {
	for i, areas := range l {
		for _, a := range areas {
			if a.contains(addr) {
				return i, true
			}
		}
	}
	return 0, false
}

func (l layout) inSet(set int, addr netip.Addr) bool {
	return slices.ContainsFunc(l[set], func(a area) bool { return a.contains(addr) })
}

// Validate reports what is wrong with p: an error that wraps ErrInvalid and names the range.
//
// The rules follow host-local (plugins/ipam/host-local/backend/allocator/range.go). A set has one family
// and ranges that do not overlap. Sets do not overlap. Subnets have no host bits set and at least two
// host bits (no /31, /32, /127, /128). rangeStart, rangeEnd and gateway lie in the subnet. Edgeway is
// stricter in two rules: the gateway must lie in the subnet, and rangeStart must not lie behind rangeEnd.
func (p Pool) Validate() error {
	_, err := p.layout()
	return err
}

func (p Pool) layout() (layout, error) {
	if len(p.Sets) == 0 {
		return nil, fmt.Errorf("pool: %w: no range set; name at least one range", ErrInvalid)
	}
	var holes []span
	for _, r := range p.Reserved {
		if !r.IsValid() || r.Addr().Is4In6() {
			return nil, fmt.Errorf("pool: reserved %s: %w prefix; write it as 10.1.0.0/28 or fd00::/64", r, ErrInvalid)
		}
		holes = append(holes, prefixSpan(r))
	}
	for _, set := range p.Sets {
		for _, r := range set {
			if r.Gateway.IsValid() {
				holes = append(holes, span{r.Gateway, r.Gateway})
			}
		}
	}
	slices.SortFunc(holes, func(a, b span) int { return a.first.Compare(b.first) })

	out := make(layout, len(p.Sets))
	var seen []area
	for i, set := range p.Sets {
		if len(set) == 0 {
			return nil, fmt.Errorf("pool: set %d: %w: no range; name at least one", i, ErrInvalid)
		}
		for _, r := range set {
			a, err := r.area()
			if err != nil {
				return nil, fmt.Errorf("pool: set %d: %w", i, err)
			}
			if a.first.BitLen() != set[0].Subnet.Addr().BitLen() {
				return nil, fmt.Errorf("pool: set %d: %w: %s and %s are of different families; give each family a set of its own", i, ErrInvalid, set[0].Subnet, r.Subnet)
			}
			for _, b := range seen {
				if a.overlaps(b.span) {
					return nil, fmt.Errorf("pool: set %d: %w: range %s overlaps %s of subnet %s", i, ErrInvalid, a.span, b.span, b.subnet)
				}
			}
			seen = append(seen, a)
			a.spans = without(a.span, holes)
			out[i] = append(out[i], a)
		}
	}
	return out, nil
}

// area checks one range and trims the addresses that are never leased: the network and broadcast address
// of an IPv4 subnet (RFC 1122 section 3.2.1.3), and the Subnet-Router anycast address of an IPv6 subnet
// (RFC 4291 section 2.6.1).
func (r Range) area() (area, error) {
	bad := func(format string, args ...any) (area, error) {
		return area{}, fmt.Errorf("subnet %s: %w: %s", r.Subnet, ErrInvalid, fmt.Sprintf(format, args...))
	}
	s := r.Subnet
	switch {
	case !s.IsValid():
		return bad("no subnet; write it as 10.1.0.0/24")
	case s.Addr().Is4In6():
		return bad("IPv4-mapped; write the IPv4 subnet")
	case s != s.Masked():
		return bad("host bits are set; the subnet is %s", s.Masked())
	case s.Addr().BitLen()-s.Bits() < 2:
		return bad("too small to lease from; use at most /%d", s.Addr().BitLen()-2)
	}
	for _, x := range []struct {
		key  string
		addr netip.Addr
	}{{"rangeStart", r.First}, {"rangeEnd", r.Last}, {"gateway", r.Gateway}} {
		if x.addr.IsValid() && (x.addr.Zone() != "" || !s.Contains(x.addr)) {
			return bad("%s %s is not in the subnet", x.key, x.addr)
		}
	}
	all := prefixSpan(s)
	first, last := all.first.Next(), all.last
	if s.Addr().Is4() {
		last = last.Prev()
	}
	if r.First.IsValid() && r.First.Compare(first) > 0 {
		first = r.First
	}
	if r.Last.IsValid() && r.Last.Less(last) {
		last = r.Last
	}
	if last.Less(first) {
		return bad("rangeStart %s to rangeEnd %s has no address that can be leased", first, last)
	}
	return area{span: span{first, last}, subnet: s.String()}, nil
}

// without returns s minus holes, which are sorted by first address.
func without(s span, holes []span) []span {
	var out []span
	at := s.first
	for _, h := range holes {
		if !h.overlaps(s) || h.last.Less(at) {
			continue
		}
		if at.Less(h.first) {
			out = append(out, span{at, h.first.Prev()})
		}
		if h.last.Compare(s.last) >= 0 {
			return out
		}
		at = h.last.Next()
	}
	return append(out, span{at, s.last})
}

// String prints the set's ranges as an operator reads them: "10.10.0.0/24".
func (s RangeSet) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(r.Subnet.String())
		if r.First.IsValid() || r.Last.IsValid() {
			if a, err := r.area(); err == nil {
				b.WriteString(" (" + a.span.String() + ")")
			}
		}
	}
	return b.String()
}
