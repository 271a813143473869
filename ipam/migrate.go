package ipam

import (
	"encoding/binary"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// change is one commit outside of the committer: before it runs.
func (f *file) change(bootID string, fn func(*txn) error) error {
	return guarded(func() error {
		return f.Update(func(tx *bbolt.Tx) error {
			t, err := begin(tx, bootID, nil)
			if err != nil {
				return err
			}
			if err := fn(t); err != nil {
				return err
			}
			return t.finish()
		})
	})
}

// named makes the name of a new file durable before anything is leased from it, also when
// whoever gave the name was killed before install was done.
func (f *file) named(bootID string) error {
	if err := syncPath(filepath.Dir(f.Path())); err != nil {
		return err
	}
	return f.change(bootID, func(t *txn) error { return t.meta.delete([]byte(keyUnnamed)) })
}

// migrate makes a file of schema 1 one of schema 2, in one commit: all of it or nothing. It adds the
// journal and makes pods anew from the addresses. Leases and memories stay as they are.
func (t *txn) migrate() error {
	tx := t.meta.b.Tx()
	if err := tx.DeleteBucket([]byte(bucketPods)); err != nil {
		return err
	}
	pods, err := tx.CreateBucket([]byte(bucketPods))
	if err != nil {
		return err
	}
	if t.journal.b, err = tx.CreateBucket([]byte(bucketJournal)); err != nil {
		return err
	}
	t.pods.b, t.schema = pods, schema
	index := table{name: bucketPods, b: pods, t: t} // into the tree at once
	err = t.addrs.each(nil, func(k, v []byte) (bool, error) {
		e, err := decodeEntry(v)
		if err != nil {
			return false, t.addrs.damaged(k, err.Error())
		}
		if e.memory == "" {
			return true, nil
		}
		return true, index.put(t.podKey(e, k), nil)
	})
	if err != nil {
		return err
	}
	t.recent.first, t.recent.next = 1, 1
	if err := t.meta.put([]byte(keyJournal), t.recent.bounds()); err != nil {
		return err
	}
	return t.meta.put([]byte(keySchema), binary.AppendUvarint(nil, schema))
}
