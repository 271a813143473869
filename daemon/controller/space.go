package controller

import (
	"net/netip"
	"slices"
)

// space is the set of taken addresses: sorted spans that neither overlap nor adjoin. IPv4 sorts before IPv6,
// so one space holds both families. The zero space is empty.
type space struct{ taken []span }

type span struct{ first, last netip.Addr }

// spanOf returns the first and the last address of p.
func spanOf(p netip.Prefix) span {
	first := p.Masked().Addr()
	last := first.AsSlice()
	for bit := p.Bits(); bit < first.BitLen(); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	end, _ := netip.AddrFromSlice(last)
	return span{first, end}
}

// around returns the range of indexes of the spans that share an address with p.
func (s *space) around(p span) (from, to int) {
	from, _ = slices.BinarySearchFunc(s.taken, p.first, func(t span, a netip.Addr) int { return t.last.Compare(a) })
	for to = from; to < len(s.taken) && s.taken[to].first.Compare(p.last) <= 0; to++ {
	}
	return from, to
}

func (s *space) take(p netip.Prefix) {
	add := spanOf(p)
	from, to := s.around(add)
	for _, t := range s.taken[from:to] {
		if t.first.Less(add.first) {
			add.first = t.first
		}
		if add.last.Less(t.last) {
			add.last = t.last
		}
	}
	s.taken = slices.Replace(s.taken, from, to, add)
}

// overlaps reports whether an address of p is taken.
func (s *space) overlaps(p netip.Prefix) bool {
	from, to := s.around(spanOf(p))
	return from < to
}

// free returns the first block with prefix length bits in the range, at or after start, that has no taken
// address. After the end of the range it continues at the beginning. The zero Prefix says that no block is
// free. The search steps over taken addresses span by span, never block by block: an IPv6 range has more
// blocks than can be counted.
func (s *space) free(in netip.Prefix, bits int, start netip.Addr) netip.Prefix {
	if !in.Contains(start) {
		start = in.Addr()
	}
	if b := s.freeAfter(in, bits, start); b.IsValid() {
		return b
	}
	return s.freeAfter(in, bits, in.Addr())
}

func (s *space) freeAfter(in netip.Prefix, bits int, start netip.Addr) netip.Prefix {
	block := netip.PrefixFrom(start, bits).Masked()
	if block.Addr() != start { // start lies inside a block: take the next block
		block = next(block)
	}
	for block.IsValid() && in.Contains(block.Addr()) {
		from, to := s.around(spanOf(block))
		if from == to {
			return block
		}
		last := s.taken[to-1].last
		if end := spanOf(block).last; last.Less(end) {
			last = end
		}
		block = next(netip.PrefixFrom(last, bits))
	}
	return netip.Prefix{}
}

// next returns the block after p, of the same size, or the zero Prefix after the last block.
func next(p netip.Prefix) netip.Prefix {
	a := spanOf(p).last.Next()
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, p.Bits())
}
