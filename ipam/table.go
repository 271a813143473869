package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once by hash/crc32

// table is a bbolt bucket whose records carry a checksum over table name, key and value: bbolt
// has none on its pages.
type table struct {
	name string
	b    *bbolt.Bucket
	t    *txn

	journaled bool // changes go to the journal first; number is the table's there
	number    int
}

func (t table) sum(key, rest []byte) uint32 {
	c := crc32.Update(0, castagnoli(), []byte(t.name))
	c = crc32.Update(c, castagnoli(), key)
	return crc32.Update(c, castagnoli(), rest)
}

func (t table) damaged(key []byte, what string) error {
	return fmt.Errorf("%s record %x: %w: %s", t.name, key, ErrDamaged, what)
}

// open checks a stored value and returns its payload, valid until the transaction ends or writes.
func (t table) open(key, stored []byte) ([]byte, error) {
	if len(stored) < 4 || binary.BigEndian.Uint32(stored) != t.sum(key, stored[4:]) {
		return nil, t.damaged(key, "checksum differs")
	}
	return stored[4:], nil
}

func (t table) get(key []byte) (payload []byte, ok bool, err error) {
	stored := t.stored(key)
	if stored == nil {
		return nil, false, nil
	}
	payload, err = t.open(key, stored)
	return payload, err == nil, err
}

func (t table) stored(key []byte) []byte {
	if t.journaled {
		if c, ok := t.t.recent.find(t.number, key); ok {
			return c.stored
		}
	}
	return t.b.Get(key)
}

func (t table) cursor() *cursor {
	c := &cursor{tree: t.b.Cursor()}
	if t.journaled {
		c.changes, c.deleted = t.t.recent.tables[t.number], t.t.recent.deleted
	}
	return c
}

func (t table) put(key, payload []byte) error {
	t.t.dirty = true
	stored := make([]byte, 4, 4+len(payload))
	binary.BigEndian.PutUint32(stored, t.sum(key, payload))
	stored = append(stored, payload...)
	if !t.journaled {
		return t.b.Put(key, stored)
	}
	return t.change(change{string(key), stored}, true)
}

func (t table) delete(key []byte) error {
	t.t.dirty = true
	if !t.journaled {
		return t.b.Delete(key)
	}
	return t.change(change{string(key), nil}, t.b.Get(key) != nil)
}

func (t table) change(c change, inTree bool) error {
	t.t.recent.set(t.number, c, inTree)
	if t.t.recent.n > maxRecent {
		return t.t.merge()
	}
	return nil
}

// chain is a table in which the absence of a key can be proved: each record also holds a hash
// of the key that follows it (as NSEC does in DNS, RFC 4034 section 4), so a record that a
// damaged page hides is missed by the record before it. "Not found" then never means "free"
// by accident. The first record, chainHead, is always there.
type chain struct{ table }

// chainHead sorts before every key of a chain.
const chainHead = "\x00"

// nextSum stands for the key that follows; no key follows the last one.
func nextSum(key []byte) uint32 {
	if key == nil {
		return 0
	}
	return crc32.Checksum(key, castagnoli())
}

func (c chain) init() error { return c.write([]byte(chainHead), 0, nil) }

func (c chain) write(key []byte, next uint32, payload []byte) error {
	return c.put(key, append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), next), payload...))
}

func (c chain) read(key, stored []byte) (next uint32, payload []byte, err error) {
	payload, err = c.open(key, stored)
	if err == nil && len(payload) < 4 {
		err = c.damaged(key, "too short")
	}
	if err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint32(payload), payload[4:], nil
}

func (c chain) get(key []byte) (payload []byte, ok bool, err error) {
	_, payload, ok, err = c.find(key)
	return payload, ok, err
}

// find returns the record of key, or the proof that there is none: its neighbours.
func (c chain) find(key []byte) (n neighbours, payload []byte, ok bool, err error) {
	cur := c.cursor()
	k, v := cur.Seek(key)
	if k != nil && bytes.Equal(k, key) {
		_, payload, err := c.read(k, v)
		return neighbours{}, payload, err == nil, err
	}
	n, err = c.before(cur, k, key)
	return n, nil, false, err
}

// neighbours are the records on both sides of a gap.
type neighbours struct {
	prev, payload []byte // the record before
	next          []byte // nil: the gap is at the end
}

// before steps back from the gap before next, in which key would lie, and checks that the
// record there says that next follows.
func (c chain) before(cur *cursor, next, key []byte) (neighbours, error) {
	k, v := cur.Before(key)
	if k == nil || bytes.Compare(k, key) >= 0 || (next != nil && bytes.Compare(next, key) < 0) {
		return neighbours{}, c.damaged(key, "keys are out of order")
	}
	sum, payload, err := c.read(k, v)
	if err != nil {
		return neighbours{}, err
	}
	if sum != nextSum(next) {
		return neighbours{}, c.damaged(k, "the record that follows it is missing")
	}
	return neighbours{k, payload, next}, nil
}

// set writes the record of key and links it in.
func (c chain) set(key, payload []byte) error {
	cur := c.cursor()
	k, v := cur.Seek(key)
	if k != nil && bytes.Equal(k, key) {
		next, _, err := c.read(k, v)
		if err != nil {
			return err
		}
		return c.write(key, next, payload)
	}
	n, err := c.before(cur, k, key)
	if err != nil {
		return err
	}
	if err := c.write(n.prev, nextSum(key), n.payload); err != nil {
		return err
	}
	return c.write(key, nextSum(n.next), payload)
}

// remove takes the record of key out; it must be there.
func (c chain) remove(key []byte) error {
	cur := c.cursor()
	k, v := cur.Seek(key)
	if k == nil || !bytes.Equal(k, key) {
		return c.damaged(key, "the record is missing")
	}
	next, _, err := c.read(k, v)
	if err != nil {
		return err
	}
	n, err := c.before(cur, key, key)
	if err != nil {
		return err
	}
	if err := c.delete(key); err != nil {
		return err
	}
	return c.write(n.prev, next, n.payload)
}

// each calls fn with every record from key on, in order, and checks the links between them. A
// fn that returns false ends it.
func (c chain) each(from []byte, fn func(key, payload []byte) (bool, error)) error {
	cur := c.cursor()
	k, v := cur.First()
	if from != nil {
		k, v = cur.Seek(from)
	}
	if k == nil && from == nil {
		return c.damaged([]byte(chainHead), "the record is missing")
	}
	for k != nil {
		sum, payload, err := c.read(k, v)
		if err != nil {
			return err
		}
		if string(k) != chainHead {
			if more, err := fn(k, payload); err != nil || !more {
				return err
			}
		}
		key := k
		if k, v = cur.Next(); sum != nextSum(k) {
			return c.damaged(key, "the record that follows it is missing")
		}
	}
	return nil
}
