package ipam

import (
	"cmp"
	"slices"

	"go.etcd.io/bbolt"
)

// recent is what the journal says: of each table in the trees, the records that changed since the
// trees were last written. A published one is never written to again: readers hold it.
//
//	          get, cursor
//	         ╱           ╲
//	recent, in memory     trees, on disk: up to three pages deep each
//	         ╲
//	    journal, on disk: one record a commit
type recent struct {
	commit      uint64 // bbolt transaction that wrote its last record
	first, next uint64 // numbers of the journal's records; equal: it is empty
	bytes       int    // of the journal's records
	n           int    // changes in tables
	tables      [treeTables][]change
}

// change is a record that differs from the one in the tree.
type change struct {
	key    string
	stored []byte // with its checksum; nil: deleted
}

// A lone commit writes one record to the journal, whatever the size of the trees. When the journal
// is full, one commit writes the trees: it takes as long as some ten others. A larger journal
// spreads that over more commits, and makes longer what the next Open has to read.
const (
	maxJournal = 48 << 10
	maxRecent  = 1024
)

func (c change) deleted() bool { return c.stored == nil }

func search(changes []change, key []byte) (int, bool) {
	return slices.BinarySearchFunc(changes, key, func(c change, key []byte) int {
		return cmp.Compare(c.key, string(key)) // the compiler makes no copy of key
	})
}

// find returns the change of key.
func (r *recent) find(table int, key []byte) (change, bool) {
	if i, ok := search(r.tables[table], key); ok {
		return r.tables[table][i], true
	}
	return change{}, false
}

// set notes a change in one of the tables, a slice that is r's own. A key that is neither here
// nor in the tree is not kept.
func (r *recent) set(table int, c change, inTree bool) {
	t := r.tables[table]
	i, ok := search(t, []byte(c.key))
	switch {
	case c.deleted() && !inTree && ok:
		r.tables[table] = slices.Delete(t, i, i+1)
		r.n--
	case c.deleted() && !inTree:
	case ok:
		t[i] = c
	default:
		r.tables[table] = slices.Insert(t, i, c)
		r.n++
	}
}

// writer is a transaction's own copy of recent; a table is copied when it is first written to.
type writer struct {
	recent
	owned   [treeTables]bool
	touched []touch // what the next journal record has to say
	merged  bool    // the trees were written: the journal's records are done with
	deleted int     // from the trees in this transaction
}

type touch struct {
	table int
	key   string
}

func (w *writer) set(table int, c change, inTree bool) {
	if !w.owned[table] {
		old := w.tables[table]
		w.tables[table] = append(make([]change, 0, len(old)+8), old...)
		w.owned[table] = true
	}
	w.recent.set(table, c, inTree)
	w.touched = append(w.touched, touch{table, c.key})
}

// cursor walks a table in the order of its keys: what the tree says, corrected by recent.
type cursor struct {
	tree    *bbolt.Cursor
	changes []change
	deleted int // records that this transaction deleted from the tree

	k, v   []byte // the tree's next
	i      int    // the next of changes
	sought bool   // the tree's cursor stands where Seek left it
}

func (c *cursor) First() (key, stored []byte) {
	c.k, c.v = c.tree.First()
	c.i, c.sought = 0, false
	return c.settle()
}

func (c *cursor) Seek(key []byte) (k, stored []byte) {
	c.k, c.v = c.tree.Seek(key)
	c.i, _ = search(c.changes, key)
	c.sought = true
	return c.settle()
}

// Next follows First, Seek or Next.
func (c *cursor) Next() (key, stored []byte) {
	if c.i < len(c.changes) && (c.k == nil || c.changes[c.i].key <= string(c.k)) {
		c.pass()
	} else if c.k != nil {
		c.forth()
	}
	return c.settle()
}

// pass goes beyond the next change and the record that it replaces.
func (c *cursor) pass() {
	if c.k != nil && c.changes[c.i].key == string(c.k) {
		c.forth()
	}
	c.i++
}

func (c *cursor) forth() {
	c.k, c.v = c.tree.Next()
	c.sought = false
}

func (c *cursor) settle() (key, stored []byte) {
	for c.i < len(c.changes) && (c.k == nil || c.changes[c.i].key <= string(c.k)) {
		if x := c.changes[c.i]; !x.deleted() {
			return []byte(x.key), x.stored
		}
		c.pass()
	}
	return c.k, c.v
}

// Before returns the last record before key, which must be the one that Seek looked for. Next must
// not follow.
func (c *cursor) Before(key []byte) (k, stored []byte) {
	if !c.sought {
		c.k, _ = c.tree.Seek(key)
	}
	c.sought = false
	if c.k != nil {
		c.back()
	} else {
		c.k, c.v = c.tree.Last()
	}
	c.i, _ = search(c.changes, key)
	for c.i--; c.i >= 0 && (c.k == nil || c.changes[c.i].key >= string(c.k)); c.i-- {
		x := c.changes[c.i]
		if !x.deleted() {
			return []byte(x.key), x.stored
		}
		if c.k != nil && x.key == string(c.k) {
			c.back()
		}
	}
	return c.k, c.v
}

// back steps back in the tree. A leaf that this transaction emptied yields nil once.
func (c *cursor) back() {
	c.k, c.v = c.tree.Prev()
	for range c.deleted {
		if c.k != nil {
			return
		}
		c.k, c.v = c.tree.Prev()
	}
}
