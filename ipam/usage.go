package ipam

import (
	"bytes"
	"net/netip"
)

// countSpan counts the held and the remembered addresses of s: whole blocks of 256 from their
// counters, the ends address by address.
func (t *txn) countSpan(s span) (counts, error) {
	var sum counts
	first, last := blockKey(addrKey(s.first)), blockKey(addrKey(s.last))
	cur := t.blocks.b.Cursor()
	for k, v := cur.Seek(first); k != nil && bytes.Compare(k, last) <= 0; k, v = cur.Next() {
		raw, err := t.blocks.open(k, v)
		if err != nil {
			return counts{}, err
		}
		n, err := t.parseCounts(k, raw)
		if err != nil {
			return counts{}, err
		}
		block, ok := blockSpan(k)
		if !ok {
			return counts{}, t.blocks.damaged(k, "not a block")
		}
		if n == (counts{}) {
			continue
		}
		if !s.covers(block) {
			n = counts{}
			part := span{maxAddr(s.first, block.first), minAddr(s.last, block.last)}
			err := t.eachEntry(part, func(_ netip.Addr, e entry) error {
				n.held += e.counts().held
				n.remembered += e.counts().remembered
				return nil
			})
			if err != nil {
				return counts{}, err
			}
		}
		sum.held += n.held
		sum.remembered += n.remembered
	}
	return sum, nil
}

func blockSpan(k []byte) (span, bool) {
	first, ok := parseAddrKey(append(bytes.Clone(k), 0))
	last, ok2 := parseAddrKey(append(bytes.Clone(k), 255))
	return span{first, last}, ok && ok2
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func minAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

// usage is Usage inside a transaction.
func (t *txn) usage(l layout) (Usage, error) {
	var u Usage
	for _, set := range l {
		for _, a := range set {
			for _, s := range a.spans {
				n, err := t.countSpan(s)
				if err != nil {
					return Usage{}, err
				}
				u.Total = min(u.Total+s.size(), sizeCap)
				u.Used += n.held
				u.Remembered += n.remembered
			}
		}
	}
	u.Free = u.Total - u.Used
	u.Outside = t.state.held - u.Used
	return u, nil
}
