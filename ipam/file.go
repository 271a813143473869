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

// mapSize is how many bytes of address space are mapped ahead. A file that stays below this size is never
// mapped again, for which bbolt would wait until all readers are done.
const mapSize = 64 << 20

// allocSize is the step in bytes by which the file and each copy of it grow.
const allocSize = 256 << 10

type file struct {
	*bbolt.DB
	f      *os.File // owned by bbolt
	broken bool     // bbolt panicked: its locks may be held for ever
}

// openFile opens the bbolt file at path after an inspection. The file must exist: an empty file is a file
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

func newFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return mapFile(path, f)
}

// mapFile hands f to bbolt. The caller holds the store's lock, so bbolt's own lock should be free: it is
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
		err = fmt.Errorf("%w: a program that is not part of edgeway holds %s; end that program", ErrLocked, path)
	} else if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil, err
}

// close unmaps and unlocks the file. A broken file stays mapped until the process ends: readers may still
// use it, and bbolt's Close would wait for a lock that is never released.
func (f *file) close() error {
	if f.broken {
		// The mapping keeps the file open, and with it the lock, after the descriptor is closed.
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

// change calls fn in its own transaction, before the store is in use.
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

// named makes the name of a new file durable before anything is leased from the file. The process that
// gave the name may have been killed before install was done.
func (f *file) named(bootID string) error {
	if err := syncPath(filepath.Dir(f.Path())); err != nil {
		return err
	}
	return f.change(bootID, func(t *txn) error { return t.meta.delete([]byte(keyUnnamed)) })
}

// guarded turns a panic of bbolt, or a page fault in bbolt's mapping, into an error: bbolt trusts what it
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

// syncPath makes a new file in dir durable, together with the directories above it: the process that made
// the directories may have been killed before it synced them. A directory above that cannot be synced was
// not made by us.
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
