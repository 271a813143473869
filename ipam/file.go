package ipam

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// mapSize is how much address space is mapped ahead: a file that grows below it is not mapped
// again, for which bbolt would wait until all readers are done.
const mapSize = 64 << 20

// allocSize is by how much the file grows at once, and with it each copy of the file.
const allocSize = 256 << 10

// file is an open bbolt file.
type file struct {
	*bbolt.DB
	f      *os.File // bbolt's own
	broken bool     // bbolt panicked: its locks may be held for ever
}

// openFile opens the bbolt file at path after an inspection. It must exist: an empty one is one
// that lost its content.
func openFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := inspect(f); err != nil {
		f.Close()
		return nil, err
	}
	return mapFile(path, f)
}

// newFile makes an empty bbolt file at path.
func newFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return mapFile(path, f)
}

// mapFile hands f to bbolt. The store's lock is held, so nobody else should have bbolt's: it is
// tried once.
func mapFile(path string, f *os.File) (*file, error) {
	db := &file{f: f}
	err := guarded(func() (err error) {
		db.DB, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:         time.Millisecond,
			FreelistType:    bbolt.FreelistArrayType, // kept sorted: each commit writes it
			InitialMmapSize: mapSize,
			NoStatistics:    true,
			OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		})
		return err
	})
	if err == nil {
		db.AllocSize = allocSize
		return db, nil
	}
	f.Close()
	if errors.Is(err, berrors.ErrTimeout) {
		err = fmt.Errorf("%w: %s is open elsewhere", ErrLocked, path)
	} else if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil, err
}

// close unmaps and unlocks the file. A broken one stays mapped until the process ends: readers
// may still look at it, and bbolt's Close would wait for a lock that nobody gives back.
func (f *file) close() error {
	if f.broken {
		// The mapping keeps the open file, and with it the lock, beyond the descriptor.
		return errors.Join(syscall.Flock(int(f.f.Fd()), syscall.LOCK_UN), f.f.Close())
	}
	return guarded(f.DB.Close)
}

// read calls fn in a transaction that writes nothing.
func (f *file) read(bootID string, fn func(*txn) error) error {
	return guarded(func() error {
		return f.View(func(tx *bbolt.Tx) error {
			t, err := begin(tx, bootID)
			if err != nil {
				return err
			}
			return fn(t)
		})
	})
}

// change calls fn in a transaction of its own, before the committer runs.
func (f *file) change(bootID string, fn func(*txn) error) error {
	return guarded(func() error {
		return f.Update(func(tx *bbolt.Tx) error {
			t, err := begin(tx, bootID)
			if err == nil {
				err = fn(t)
			}
			if err == nil {
				err = t.finish()
			}
			return err
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

// guarded turns a panic of bbolt or a page fault in its mapping into an error: it trusts what it
// reads.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = panicked{fmt.Errorf("%w: %v", ErrDamaged, r)}
		}
	}()
	return fn()
}

// panicked is an error that was a panic.
type panicked struct{ error }

func (p panicked) Unwrap() error { return p.error }

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// syncPath makes a new file in dir durable, with the directories above it: whoever made them may
// have been killed before it synced them. Those above that cannot be synced were not made by us.
func syncPath(dir string) error {
	if err := syncDir(dir); err != nil {
		return err
	}
	for parent := filepath.Dir(dir); parent != dir; dir, parent = parent, filepath.Dir(parent) {
		if err := syncDir(parent); err != nil && errors.Is(err, syscall.EIO) {
			return err
		}
	}
	return nil
}
