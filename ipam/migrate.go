package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/bbolt"
)

// Schemas 1 and 2 had the buckets meta, areas, leases, addrs, queue, dead and pods. Schema 2 also had a
// journal of the other buckets' changes since those buckets were last written. Leases and addresses are
// read from them, and the indexes are built from the leases and addresses. Each record of leases and
// addrs also had the checksum of the next key; the key oldHead came first.
var (
	oldBuckets = [...]string{"areas", "journal", "leases", "addrs", "queue", "dead", "pods"}
	oldTrees   = [...]string{"leases", "addrs", "queue", "dead", "pods"} // indexed by the bucket numbers of the journal
)

const (
	oldHead        = "\x00"
	oldKeyJournal  = "journal"
	oldBoot        = "boot/"
	oldDeleted     = 0x80 // beside a bucket's number in the journal
	oldLeases      = 0
	oldAddrs       = 1
	oldHeldAddress = 1 // flag
)

// migrate brings a file of an earlier schema to this schema in one commit: all of it or nothing.
func (f *file) migrate(bootID string) error {
	return guarded(func() error {
		var found uint64
		err := f.View(func(tx *bbolt.Tx) (err error) {
			found, err = schemaOf(tx)
			return err
		})
		if err != nil || found == schema {
			return err
		}
		err = f.Update(func(tx *bbolt.Tx) error {
			meta := newTxn(tx, "").meta
			if raw, ok, err := meta.get([]byte(keyState)); err != nil || !ok {
				return meta.damaged([]byte(keyState), "the record is missing or damaged")
			} else if s, err := decodeOldState(raw); err != nil || s.commit != uint64(tx.ID())-1 {
				return meta.damaged([]byte(keyState), "written by another commit than the last")
			}
			return migrate(tx, bootID)
		})
		if err != nil {
			return fmt.Errorf("convert schema %d to schema %d: %w", found, schema, err)
		}
		return nil
	})
}

type oldState struct{ seq, leases, held, commit uint64 }

func decodeOldState(b []byte) (oldState, error) {
	r := reader{b: b}
	s := oldState{seq: r.uint(), leases: r.uint(), held: r.uint()}
	for range 4 { // boots, areas, last boot, swept boot
		r.uint()
	}
	s.commit = r.uint()
	if r.bad || len(r.b) > 0 {
		return s, fmt.Errorf("%w: malformed state %x", ErrDamaged, b)
	}
	return s, nil
}

// migrate leaves a file of this schema as it is.
func migrate(tx *bbolt.Tx, bootID string) error {
	found, err := schemaOf(tx)
	if err != nil || found == schema {
		return err
	}
	leases, err := oldRecords(tx, oldLeases)
	if err != nil {
		return err
	}
	addrs, err := oldRecords(tx, oldAddrs)
	if err != nil {
		return err
	}
	meta := newTxn(tx, "").meta
	raw, _, err := meta.get([]byte(keyState))
	if err != nil {
		return err
	}
	old, err := decodeOldState(raw)
	if err != nil {
		return err
	}
	for _, name := range oldBuckets {
		if tx.Bucket([]byte(name)) == nil {
			continue
		}
		if err := tx.DeleteBucket([]byte(name)); err != nil {
			return err
		}
	}
	if err := dropOldMeta(meta); err != nil {
		return err
	}
	if err := format(tx, bootID); err != nil {
		return err
	}
	t := newTxn(tx, bootID)
	t.state.seq, t.dirty = old.seq, true
	if err := t.fill(leases, addrs); err != nil {
		return err
	}
	if t.state.leases != old.leases || t.state.held != old.held {
		return fmt.Errorf("%w: the file has %d leases and %d held addresses, and counts %d and %d", ErrDamaged, t.state.leases, t.state.held, old.leases, old.held)
	}
	if err := t.finish(); err != nil {
		return err
	}
	return t.check() // also finds contradictions in the earlier schema
}

func dropOldMeta(meta table) error {
	var gone [][]byte
	err := meta.each(nil, func(k, _ []byte) (bool, error) {
		if string(k) == oldKeyJournal || bytes.HasPrefix(k, []byte(oldBoot)) {
			gone = append(gone, bytes.Clone(k))
		}
		return true, nil
	})
	for _, k := range gone {
		if err == nil {
			err = meta.delete(k)
		}
	}
	return err
}

// oldRecords returns the records of a bucket, with the journal's changes applied.
func oldRecords(tx *bbolt.Tx, tree int) (map[string][]byte, error) {
	tab := table{name: oldTrees[tree], b: tx.Bucket([]byte(oldTrees[tree]))}
	if tab.b == nil {
		return nil, fmt.Errorf("%w: bucket %s is missing", ErrDamaged, tab.name)
	}
	stored := map[string][]byte{}
	cur := tab.b.Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		stored[string(k)] = bytes.Clone(v)
	}
	if err := oldChanges(tx, tree, stored); err != nil {
		return nil, err
	}
	keys := slices.Sorted(maps.Keys(stored))
	out := map[string][]byte{}
	for i, k := range keys {
		payload, err := tab.open([]byte(k), stored[k])
		if err != nil {
			return nil, err
		}
		var next uint32
		if i+1 < len(keys) {
			next = table{}.sum(nil, []byte(keys[i+1]))
		}
		if len(payload) < 4 || binary.BigEndian.Uint32(payload) != next {
			return nil, tab.damaged([]byte(k), "the record that follows it is missing")
		}
		if k != oldHead {
			out[k] = payload[4:]
		}
	}
	if _, ok := stored[oldHead]; !ok {
		return nil, tab.damaged([]byte(oldHead), "the record is missing")
	}
	return out, nil
}

// oldChanges applies the journal's changes of one bucket to stored.
func oldChanges(tx *bbolt.Tx, tree int, stored map[string][]byte) error {
	meta := newTxn(tx, "").meta
	raw, ok, err := meta.get([]byte(oldKeyJournal))
	if err != nil || !ok { // schema 1
		return err
	}
	bounds := reader{b: raw}
	next, end := bounds.uint(), bounds.uint()
	tab := table{name: "journal", b: tx.Bucket([]byte("journal"))}
	if tab.b == nil || bounds.bad {
		return fmt.Errorf("%w: bucket journal, or the record of its bounds, is missing", ErrDamaged)
	}
	err = tab.each(nil, func(k, b []byte) (bool, error) {
		if !bytes.Equal(k, binary.BigEndian.AppendUint64(nil, next)) || next >= end {
			return false, tab.damaged(k, fmt.Sprintf("record %d is expected here", next))
		}
		next++
		for r := (reader{b: b}); len(r.b) > 0; {
			kind, key := r.byte(), r.string()
			var value string
			if kind&oldDeleted == 0 {
				value = r.string()
			}
			number := int(kind &^ oldDeleted)
			switch {
			case r.bad || number >= len(oldTrees) || key == "":
				return false, tab.damaged(k, "malformed")
			case number != tree:
			case kind&oldDeleted != 0:
				delete(stored, key)
			default:
				stored[key] = []byte(value)
			}
		}
		return true, nil
	})
	if err == nil && next != end {
		err = fmt.Errorf("journal: %w: record %d of %d is missing", ErrDamaged, next, end)
	}
	return err
}

// fill writes the leases and addresses of an earlier schema.
func (t *txn) fill(leases, addrs map[string][]byte) error {
	for _, k := range slices.Sorted(maps.Keys(leases)) {
		var h struct {
			held
			Boot uint32 `json:"boot"` // an ordinal
		}
		if err := decodeStrict(leases[k], &h); err != nil {
			return fmt.Errorf("lease %x: %w: %w", k, ErrDamaged, err)
		}
		if err := t.putLease(h.held); err != nil {
			return err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(addrs)) {
		a, ok := parseAddrKey([]byte(k))
		r := reader{b: addrs[k]}
		flags := r.byte()
		r.uint() // area
		r.uint() // boot
		e := entry{held: flags&oldHeldAddress != 0, leased: r.uint(), freed: r.uint()}
		holder := r.string()
		e.memory = r.string()
		if e.held && len(holder) > 1 {
			e.holder = holder[1:] // the first byte was the same for all holders
		}
		if !ok || r.bad || len(r.b) > 0 || !e.known() || e.held != (e.holder != "") {
			return fmt.Errorf("address %x: %w: malformed", k, ErrDamaged)
		}
		if err := t.store(a, entry{}, e); err != nil {
			return err
		}
	}
	return nil
}
