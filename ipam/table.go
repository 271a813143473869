package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once by hash/crc32

// table is a bbolt bucket whose records start with a checksum over bucket name, key and value, since
// bbolt's pages have none.
type table struct {
	name string
	b    *bbolt.Bucket
	t    *txn
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

// get returns the record of key. The neighbours prove that a record is absent: the keys of a page are in
// order (inspect), so a record with a damaged key lies beside its right place, and its checksum differs.
func (t table) get(key []byte) (payload []byte, ok bool, err error) {
	cur := t.b.Cursor()
	k, v := cur.Seek(key)
	if bytes.Equal(k, key) {
		payload, err = t.open(k, v)
		return payload, err == nil, err
	}
	if k != nil {
		if _, err := t.open(k, v); err != nil {
			return nil, false, err
		}
	}
	// This covers a key behind the last record too. Cursor.Last does not end when this transaction
	// emptied all leaves.
	k, v = cur.Prev()
	if k != nil {
		if _, err := t.open(k, v); err != nil {
			return nil, false, err
		}
		if bytes.Compare(k, key) >= 0 {
			return nil, false, t.damaged(key, "keys are out of order")
		}
	}
	return nil, false, nil
}

func (t table) put(key, payload []byte) error {
	t.t.dirty = true
	stored := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), t.sum(key, payload))
	return t.b.Put(key, append(stored, payload...))
}

func (t table) delete(key []byte) error {
	t.t.dirty = true
	return t.b.Delete(key)
}

// each calls fn with the records from key on, in order; nil: all records. It stops when fn returns false.
func (t table) each(from []byte, fn func(key, payload []byte) (more bool, err error)) error {
	cur := t.b.Cursor()
	k, v := cur.First()
	if from != nil {
		k, v = cur.Seek(from)
	}
	for ; k != nil; k, v = cur.Next() {
		payload, err := t.open(k, v)
		if err != nil {
			return err
		}
		if more, err := fn(k, payload); err != nil || !more {
			return err
		}
	}
	return nil
}
