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
	*areaState
}

// areaState is the record of an area.
type areaState struct {
	id     uint32
	gen    uint64     // sequence number of the last entering
	cursor netip.Addr // no address of the area before it was never used; invalid: none is left
	counts            // of the addresses listed under id
	key    []byte     // area.key

	changed bool // to be written when the transaction ends
}

func areaNumber(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }

func (s *areaState) encode() []byte {
	b := binary.AppendUvarint(nil, s.gen)
	b = binary.AppendUvarint(b, s.held)
	b = binary.AppendUvarint(b, s.remembered)
	b = appendString(b, string(s.key))
	if !s.cursor.IsValid() {
		return b
	}
	return append(b, addrKey(s.cursor)...)
}

func decodeAreaState(k, b []byte) (*areaState, error) {
	r := reader{b: b}
	s := &areaState{gen: r.uint(), counts: counts{r.uint(), r.uint()}, key: []byte(r.string())}
	ok := true
	if len(r.b) > 0 {
		s.cursor, ok = parseAddrKey(r.b)
	}
	if _, isSpan := s.span(); len(k) != 4 || r.bad || !ok || !isSpan {
		return nil, fmt.Errorf("malformed area %x", b)
	}
	s.id = binary.BigEndian.Uint32(k)
	return s, nil
}

// span reads the ends off the area's key.
func (s *areaState) span() (span, bool) {
	width := 4
	if len(s.key) > 0 && s.key[0] == 6 {
		width = 16
	}
	if len(s.key) != 1+2*width+8 {
		return span{}, false
	}
	first, ok := parseAddrKey(s.key[:1+width])
	last, ok2 := parseAddrKey(append([]byte{s.key[0]}, s.key[1+width:1+2*width]...))
	return span{first, last}, ok && ok2
}

// allAreas loads the areas. There are as many as there were different ranges since the last
// that contained them was entered: a few.
func (t *txn) allAreas() ([]*areaState, error) {
	if t.registered != nil {
		return t.registered, nil
	}
	t.registered = []*areaState{}
	cur := t.areas.b.Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		raw, err := t.areas.open(k, v)
		if err != nil {
			return nil, err
		}
		s, err := decodeAreaState(k, raw)
		if err != nil {
			return nil, t.areas.damaged(k, err.Error())
		}
		t.registered = append(t.registered, s)
	}
	return t.registered, nil
}

// numbered returns an area to change its counts.
func (t *txn) numbered(id uint32) (*areaState, error) {
	all, err := t.allAreas()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.id == id {
			s.changed = true
			return s, nil
		}
	}
	return nil, t.areas.damaged(areaNumber(id), "the record is missing")
}

// registeredAs returns the state of a, nil when it is not registered; current is false when an
// area that overlaps it was entered later.
func (t *txn) registeredAs(a area) (s *areaState, current bool, err error) {
	all, err := t.allAreas()
	if err != nil {
		return nil, false, err
	}
	key := a.key()
	var newest uint64
	for _, x := range all {
		if bytes.Equal(x.key, key) {
			s = x
		} else if o, _ := x.span(); o.overlaps(a.span) {
			newest = max(newest, x.gen)
		}
	}
	return s, s != nil && s.gen > newest, nil
}

// enter makes sure that the areas of a set are registered and list what they contain.
func (t *txn) enter(set []area) ([]entered, error) {
	out := make([]entered, len(set))
	for i, a := range set {
		s, current, err := t.registeredAs(a)
		if err != nil {
			return nil, err
		}
		if s == nil {
			t.state.areas++
			s = &areaState{id: t.state.areas, cursor: a.first, key: a.key()}
			t.registered = append(t.registered, s)
		}
		if !current {
			t.dirty = true
			s.gen, s.changed = t.nextSeq(), true
			if err := t.adopt(a, s.id); err != nil {
				return nil, err
			}
			if err := t.dropInside(a, s); err != nil {
				return nil, err
			}
		}
		out[i] = entered{a, s}
	}
	return out, nil
}

// dropInside forgets the areas inside a: nothing is listed under them any more.
func (t *txn) dropInside(a area, self *areaState) error {
	return t.dropAreas(func(s *areaState) bool {
		o, _ := s.span()
		return s != self && len(a.spans) == 1 && a.spans[0].covers(o)
	})
}

func (t *txn) dropAreas(drop func(*areaState) bool) error {
	var kept []*areaState
	for _, s := range t.registered {
		if !drop(s) {
			kept = append(kept, s)
		} else if err := t.areas.delete(areaNumber(s.id)); err != nil {
			return err
		}
	}
	t.registered = kept
	return nil
}

// adopt lists every address in a that was ever leased under number id.
func (t *txn) adopt(a area, id uint32) error {
	type change struct {
		addr netip.Addr
		entry
	}
	var moved []change
	for _, s := range a.spans {
		err := t.eachEntry(s, func(addr netip.Addr, e entry) (bool, error) {
			if e.home != id {
				moved = append(moved, change{addr, e})
			}
			return true, nil
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
func (t *txn) eachEntry(s span, fn func(netip.Addr, entry) (bool, error)) error {
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
		return fn(addr, e)
	})
}

// neverUsed returns the lowest address of the area that was never leased. Addresses are never
// forgotten, so the cursor only moves up; what it passes is passed once.
func (t *txn) neverUsed(x entered) (netip.Addr, bool, error) {
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
	if at != x.cursor {
		x.cursor, x.changed, t.dirty = at, true, true
	}
	return at, ok, nil
}

// leave makes all areas enter again at their next use, so that they list addresses which came
// by another way than theirs. All: an area that overlaps a left one would look current, though
// the left one lists what both contain.
func (t *txn) leave() error {
	all, err := t.allAreas()
	if err != nil {
		return err
	}
	for _, s := range all {
		s.gen, s.changed, t.dirty = 0, true, true
	}
	return nil
}
