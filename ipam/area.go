package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// entered is an area that is registered in the store: its free and held addresses are listed
// under its number.
//
// Of two areas that overlap, the one entered last lists what both contain (its generation is the
// higher). Entering walks the addresses that were ever leased in the area, once: after a pool
// changed, not at each ADD.
type entered struct {
	area
	areaState
}

// areaState is the record of an area.
type areaState struct {
	id     uint32
	gen    uint64     // sequence number of the last entering
	cursor netip.Addr // no address of the area before it was never used; invalid: none is left
}

func (s areaState) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(s.id))
	b = binary.AppendUvarint(b, s.gen)
	if !s.cursor.IsValid() {
		return b
	}
	return append(b, addrKey(s.cursor)...)
}

func decodeAreaState(b []byte) (areaState, error) {
	r := reader{b: b}
	s := areaState{id: r.uint32(), gen: r.uint()}
	ok := true
	if len(r.b) > 0 {
		s.cursor, ok = parseAddrKey(r.b)
	}
	if r.bad || !ok || s.id == 0 {
		return areaState{}, fmt.Errorf("malformed area %x", b)
	}
	return s, nil
}

// areaSpan reads the ends off an area's key.
func areaSpan(key []byte) (span, bool) {
	width := 4
	if len(key) > 0 && key[0] == 6 {
		width = 16
	}
	if len(key) != 1+2*width+8 {
		return span{}, false
	}
	first, ok := parseAddrKey(key[:1+width])
	last, ok2 := parseAddrKey(append([]byte{key[0]}, key[1+width:1+2*width]...))
	return span{first, last}, ok && ok2
}

// enter makes sure that the areas of a set are registered and list what they contain.
func (t *txn) enter(set []area) ([]entered, error) {
	out := make([]entered, len(set))
	for i, a := range set {
		key := a.key()
		raw, known, err := t.areas.get(key)
		if err != nil {
			return nil, err
		}
		var s areaState
		if known {
			if s, err = decodeAreaState(raw); err != nil {
				return nil, t.areas.damaged(key, err.Error())
			}
		}
		newest, inside, err := t.overlapping(a, key)
		if err != nil {
			return nil, err
		}
		if !known || newest > s.gen {
			if !known {
				t.state.areas++
				s = areaState{id: t.state.areas, cursor: a.first}
			}
			s.gen = t.nextSeq()
			if err := t.adopt(a, s.id); err != nil {
				return nil, err
			}
			for _, k := range inside { // nothing is listed under these any more
				if err := t.areas.delete(k); err != nil {
					return nil, err
				}
			}
			if err := t.areas.put(key, s.encode()); err != nil {
				return nil, err
			}
		}
		out[i] = entered{a, s}
	}
	return out, nil
}

// overlapping returns the newest generation of the other areas that overlap a, and the keys of
// those that lie inside it. There are as many areas as there were ever different ranges.
func (t *txn) overlapping(a area, self []byte) (newest uint64, inside [][]byte, err error) {
	cur := t.areas.b.Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		s, ok := areaSpan(k)
		if !ok {
			return 0, nil, t.areas.damaged(k, "not an area")
		}
		if bytes.Equal(k, self) || !s.overlaps(a.span) {
			continue
		}
		raw, err := t.areas.open(k, v)
		if err != nil {
			return 0, nil, err
		}
		state, err := decodeAreaState(raw)
		if err != nil {
			return 0, nil, t.areas.damaged(k, err.Error())
		}
		newest = max(newest, state.gen)
		if len(a.spans) == 1 && a.spans[0].covers(s) {
			inside = append(inside, bytes.Clone(k))
		}
	}
	return newest, inside, nil
}

// adopt lists every address in a that was ever leased under number id.
func (t *txn) adopt(a area, id uint32) error {
	type change struct {
		addr netip.Addr
		entry
	}
	var moved []change
	for _, s := range a.spans {
		err := t.eachEntry(s, func(addr netip.Addr, e entry) error {
			if e.home != id {
				moved = append(moved, change{addr, e})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, m := range moved {
		next := m.entry
		next.home = id
		if err := t.store(m.addr, m.entry, next); err != nil {
			return err
		}
	}
	return nil
}

// eachEntry calls fn with every address of s that was ever leased, in order. The first record
// is reached by a proof, not by a plain seek: a hidden record cannot be skipped.
func (t *txn) eachEntry(s span, fn func(netip.Addr, entry) error) error {
	if _, _, _, err := t.addrs.find(addrKey(s.first)); err != nil {
		return err
	}
	return t.addrs.each(addrKey(s.first), func(k, v []byte) (bool, error) {
		addr, ok := parseAddrKey(k)
		if !ok {
			return false, t.addrs.damaged(k, "not an address")
		}
		if !s.contains(addr) {
			return false, nil
		}
		e, err := decodeEntry(v)
		if err != nil {
			return false, t.addrs.damaged(k, err.Error())
		}
		return true, fn(addr, e)
	})
}

// neverUsed returns the lowest address of the area that was never leased. Addresses are never
// forgotten, so the cursor only moves up; what it passes is passed once.
func (t *txn) neverUsed(x *entered) (netip.Addr, bool, error) {
	if !x.cursor.IsValid() {
		return netip.Addr{}, false, nil
	}
	at, ok := x.from(x.cursor)
	for ok {
		_, used, err := t.entry(at)
		if err != nil {
			return netip.Addr{}, false, err
		}
		if !used {
			break
		}
		at, ok = x.from(at.Next())
		if at == (netip.Addr{}) {
			ok = false
		}
	}
	if !ok {
		at = netip.Addr{}
	}
	if at == x.cursor {
		return at, ok, nil
	}
	x.cursor = at
	return at, ok, t.areas.put(x.key(), x.encode())
}

// leave makes the areas around a enter again at their next use, so that they list a.
func (t *txn) leave(a netip.Addr) error {
	var around [][]byte
	cur := t.areas.b.Cursor()
	for k, _ := cur.First(); k != nil; k, _ = cur.Next() {
		if s, ok := areaSpan(k); ok && s.contains(a) {
			around = append(around, bytes.Clone(k))
		}
	}
	for _, k := range around {
		if err := t.areas.delete(k); err != nil {
			return err
		}
	}
	return nil
}
