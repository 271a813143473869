package ipam

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// The journal keeps the cost of a commit apart from the number of leases: each commit appends one
// record with all that it changed in the tables of the trees, and the trees are written when the
// journal is full. Its records are numbered: the record keyJournal says which there must be, so
// that none goes missing and none of an earlier round is taken for a new one.

// treeTables are the tables whose changes go through the journal, in the order of their numbers
// there.
const treeTables = 5

func treeNames() [treeTables]string {
	return [...]string{bucketLeases, bucketAddrs, bucketQueue, bucketDead, bucketPods}
}

const changeDeleted = 0x80 // beside the table's number in a journal record

// encodeChanges writes one record: for each change the table's number, the key, and the stored
// value where there is one.
func encodeChanges(w *writer) []byte {
	slices.SortFunc(w.touched, func(a, b touch) int { return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.key, b.key)) })
	w.touched = slices.Compact(w.touched)
	b := make([]byte, 0, 1024)
	for _, t := range w.touched {
		c, ok := w.find(t.table, []byte(t.key))
		if !ok || c.deleted() {
			b = appendString(append(b, byte(t.table)|changeDeleted), t.key)
			continue
		}
		b = appendString(append(b, byte(t.table)), t.key)
		b = append(binary.AppendUvarint(b, uint64(len(c.stored))), c.stored...)
	}
	return b
}

// eachChange reads one record. The changes share its memory.
func eachChange(b []byte, fn func(table int, c change)) error {
	text := string(b)
	r := reader{b: b}
	for len(r.b) > 0 {
		kind := r.byte()
		key := r.bytes()
		end := len(b) - len(r.b)
		c := change{key: text[end-len(key) : end]}
		if kind&changeDeleted == 0 {
			c.stored = r.bytes()
		}
		table := int(kind &^ changeDeleted)
		if r.bad || table >= treeTables || c.key == "" {
			return fmt.Errorf("malformed journal record %x", b)
		}
		fn(table, c)
	}
	return nil
}

func journalKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// bounds is the record keyJournal.
func (r *recent) bounds() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, r.first), r.next)
}

// loadRecent reads the journal.
func (t *txn) loadRecent() (*recent, error) {
	r := &recent{}
	raw, ok, err := t.meta.get([]byte(keyJournal))
	if err != nil {
		return nil, err
	}
	bounds := reader{b: raw}
	r.first, r.next = bounds.uint(), bounds.uint()
	if !ok || bounds.bad || len(bounds.b) > 0 || r.first > r.next {
		return nil, t.meta.damaged([]byte(keyJournal), "not the bounds of a journal")
	}
	want := r.first
	cur := t.journal.b.Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		payload, err := t.journal.open(k, v)
		if err != nil {
			return nil, err
		}
		if want >= r.next || !bytes.Equal(k, journalKey(want)) {
			return nil, t.journal.damaged(k, fmt.Sprintf("record %d of %d to %d should be here", want, r.first, r.next))
		}
		want++
		r.bytes += len(payload)
		// A deletion is kept without a look at the tree: it does no harm there.
		err = eachChange(bytes.Clone(payload), func(table int, c change) { r.set(table, c, true) })
		if err != nil {
			return nil, t.journal.damaged(k, err.Error())
		}
	}
	if want != r.next {
		return nil, t.journal.damaged(journalKey(want), "the record is missing")
	}
	return r, nil
}

// trees are the tables by their numbers in the journal.
func (t *txn) trees() [treeTables]*table {
	return [...]*table{&t.leases.table, &t.addrs.table, &t.queue, &t.dead, &t.pods}
}

// keep makes what this transaction changed part of its commit: a record of the journal, or the
// trees when that is full.
func (t *txn) keep() error {
	w := &t.recent
	if len(w.touched) == 0 && !w.merged {
		return nil
	}
	record := encodeChanges(w)
	if w.merged || w.bytes+len(record) > maxJournal {
		if err := t.merge(); err != nil {
			return err
		}
		if err := t.emptyJournal(); err != nil {
			return err
		}
	} else {
		t.journal.b.FillPercent = 1 // it grows at its end only
		if err := t.journal.put(journalKey(w.next), record); err != nil {
			return err
		}
		w.next++
		w.bytes += len(record)
	}
	return t.meta.put([]byte(keyJournal), w.bounds())
}

// merge writes what is recent into the trees. The journal must be emptied by the same commit.
func (t *txn) merge() error {
	w := &t.recent
	for i, tab := range t.trees() {
		for _, c := range w.tables[i] {
			key := []byte(c.key)
			if c.deleted() {
				w.deleted++
				if err := tab.b.Delete(key); err != nil {
					return err
				}
			} else if !bytes.Equal(tab.b.Get(key), c.stored) {
				if err := tab.b.Put(key, c.stored); err != nil {
					return err
				}
			}
		}
		w.tables[i], w.owned[i] = nil, true
	}
	w.n, w.touched, w.merged = 0, w.touched[:0], true
	return nil
}

func (t *txn) emptyJournal() error {
	tx, name := t.meta.b.Tx(), []byte(bucketJournal)
	if err := tx.DeleteBucket(name); err != nil {
		return err
	}
	b, err := tx.CreateBucket(name)
	if err != nil {
		return err
	}
	t.journal.b = b
	t.recent.first, t.recent.bytes = t.recent.next, 0
	return nil
}
