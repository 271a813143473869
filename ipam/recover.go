package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// Beside the store's file at PATH lie:
//
//	PATH.lock        held while the store is open
//	PATH.good        the last copy that passed its check (Store.Backup)
//	PATH.suspect     says that the running store met damage: the next Open checks everything
//	PATH.bad-<time>  damaged files, kept for people
//	PATH.new         a file in the making; worthless
const (
	suffixLock    = ".lock"
	suffixGood    = ".good"
	suffixSuspect = ".suspect"
	suffixBad     = ".bad-"
	suffixNew     = ".new"
)

// Rebuild describes how a damaged file was replaced.
type Rebuild struct {
	Cause     error    `json:"-"`
	Kept      string   `json:"kept,omitempty"`      // path of the damaged file; empty: the file was missing
	Copied    int      `json:"copied"`              // leases of the last good copy that the node confirmed unchanged
	Found     int      `json:"found"`               // leases that are new or different on the node
	Ended     int      `json:"ended"`               // leases of the last good copy without a link; their addresses remember the pods
	Conflicts []string `json:"conflicts,omitempty"` // links of the node that contradict each other
}

// Rebuilt says how Open rebuilt the file; false when Open did not rebuild it.
func (s *Store) Rebuilt() (Rebuild, bool) {
	if s.rebuilt == nil {
		return Rebuild{}, false
	}
	return *s.rebuilt, true
}

// openOrRebuild opens the file at s.path, whatever state it is in.
func (s *Store) openOrRebuild() error {
	if err := os.Remove(s.path + suffixNew); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cause := s.tryOpen()
	switch {
	case errors.Is(cause, os.ErrNotExist) && !exists(s.path+suffixGood):
		return s.createNew()
	case errors.Is(cause, os.ErrNotExist):
		cause = fmt.Errorf("%w: the file is missing, but its copy %s exists", ErrDamaged, s.path+suffixGood)
	case cause == nil || !errors.Is(cause, ErrDamaged):
		return cause
	}
	if s.opts.Recover == nil {
		return fmt.Errorf("%w; the file does not say which addresses are held: start edgewayd, which rebuilds the file from the node's links", cause)
	}
	if err := s.rebuild(cause); err != nil {
		return fmt.Errorf("%w; rebuild: %w", cause, err)
	}
	return s.tryOpen()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// tryOpen opens the file when its pages pass their inspection. A suspect file is checked record by
// record. So is a file to which this boot has not written: after a power cut, a disk that acknowledges
// writes too early may have lost pages of the last commits.
func (s *Store) tryOpen() error {
	db, err := openFile(s.path)
	if err != nil {
		return err
	}
	suspect, unnamed := s.path+suffixSuspect, false
	err = db.migrate(s.opts.BootID)
	if err == nil {
		err = db.read(s.opts.BootID, func(t *txn) (err error) {
			if _, unnamed, err = t.meta.get([]byte(keyUnnamed)); err != nil || !exists(suspect) && t.state.boot == s.opts.BootID {
				return err
			}
			return t.check()
		})
	}
	if err == nil && unnamed {
		err = db.named(s.opts.BootID)
	}
	if err == nil && exists(suspect) {
		err = os.Remove(suspect)
	}
	if err != nil {
		return errors.Join(err, db.close())
	}
	s.db = db
	return nil
}

// createNew makes the first file, with the leases that the node already has.
func (s *Store) createNew() error {
	var found []Lease
	if s.opts.Recover != nil {
		var err error
		if found, err = s.opts.Recover(); err != nil {
			return fmt.Errorf("read leases from the node's links: %w", err)
		}
	}
	report := &Rebuild{}
	if err := s.build("", found, report); err != nil {
		return err
	}
	if err := s.install(); err != nil {
		return err
	}
	if len(found) > 0 {
		s.rebuilt = report
	}
	return s.tryOpen()
}

// rebuild replaces a damaged file. The node's links are the truth; the last good copy adds who had which
// address. The damaged file keeps its name until the new file is whole.
func (s *Store) rebuild(cause error) error {
	found, err := s.opts.Recover()
	if err != nil {
		return fmt.Errorf("read leases from the node's links: %w", err)
	}
	report := &Rebuild{Cause: cause}
	good := s.path + suffixGood
	if verify(good) != nil {
		good = "" // the copy is missing or damaged too: use the node alone
	}
	if err := s.build(good, found, report); err != nil {
		return err
	}
	if exists(s.path) {
		report.Kept = s.path + suffixBad + time.Now().UTC().Format("20060102T150405.000000000Z")
		// First a second name, so that the path always names a file.
		if err := os.Link(s.path, report.Kept); err != nil {
			if err := os.Rename(s.path, report.Kept); err != nil {
				return err
			}
		}
	}
	if err := s.install(); err != nil {
		return err
	}
	if err := os.Remove(s.path + suffixSuspect); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.rebuilt = report
	return nil
}

// install gives the new file its name and makes the name durable.
func (s *Store) install() error {
	if err := os.Rename(s.path+suffixNew, s.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

// build makes PATH.new: the content of the copy at good ("" for none), corrected to the leases that were
// found on the node.
func (s *Store) build(good string, found []Lease, report *Rebuild) (err error) {
	db, err := newFile(s.path + suffixNew)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	return guarded(func() error {
		if good != "" {
			src, err := openFile(good)
			if err != nil {
				return err
			}
			defer src.close()
			if err := bbolt.Compact(db.DB, src.DB, 0); err != nil {
				return err
			}
		} else if err := db.Update(func(tx *bbolt.Tx) error { return format(tx, "") }); err != nil {
			return err
		}
		return db.Update(func(tx *bbolt.Tx) error {
			if err := migrate(tx, s.opts.BootID); err != nil {
				return err
			}
			t, err := beginCopy(tx, s.opts.BootID)
			if err != nil {
				return err
			}
			if err := t.meta.put([]byte(keyUnnamed), nil); err != nil {
				return err
			}
			if err := t.correct(s.opts, found, good != "", report); err != nil {
				return err
			}
			return t.finish()
		})
	})
}

// correct changes the leases to the found ones. A lease of the copy that the node does not confirm has
// ended: Release does not find it.
func (t *txn) correct(opts Options, found []Lease, copied bool, report *Rebuild) error {
	truth := map[Attachment]Lease{}
	taken := map[netip.Addr]Attachment{}
	for _, l := range found {
		l, ok := untaken(l, taken, report)
		if _, dup := truth[l.Attachment]; ok && dup {
			report.Conflicts = append(report.Conflicts, fmt.Sprintf("%s was found twice", l.Attachment))
		} else if ok {
			truth[l.Attachment] = l
		}
	}
	if copied {
		old, err := t.all()
		if err != nil {
			return err
		}
		for _, h := range old {
			key := h.Lease.Attachment
			if opts.FoundAs != nil {
				key = opts.FoundAs(key)
			}
			l, ok := truth[key]
			free := !slices.ContainsFunc(h.Lease.Addrs, func(a netip.Addr) bool { _, on := taken[a]; return on })
			if !ok && free && opts.Lives != nil && opts.Lives(h.Lease) {
				report.Copied++
				continue
			}
			known := h.Lease // the copy says who it is; the node says its addresses, and that it lives in this boot
			known.BootID = cmp.Or(l.BootID, t.bootID)
			if !sameAddrs(l.Addrs, known.Addrs) {
				known.Addrs = l.Addrs
			} else if ok && known.BootID == h.Lease.BootID {
				delete(truth, key)
				report.Copied++
				continue
			}
			if err := t.end(h); err != nil {
				return err
			}
			if ok {
				truth[key] = known
			} else {
				report.Ended++
			}
		}
	}
	for _, l := range found { // in the node's order
		l, ok := truth[l.Attachment]
		if !ok {
			continue
		}
		delete(truth, l.Attachment)
		if err := t.give(l); err != nil {
			return err
		}
		report.Found++
	}
	return nil
}

// untaken drops the addresses of l that an earlier lease has.
func untaken(l Lease, taken map[netip.Addr]Attachment, report *Rebuild) (Lease, bool) {
	if err := l.check(); err != nil {
		report.Conflicts = append(report.Conflicts, err.Error())
		return l, false
	}
	var own []netip.Addr
	for _, a := range l.Addrs {
		a = a.Unmap()
		if by, dup := taken[a]; dup {
			report.Conflicts = append(report.Conflicts, fmt.Sprintf("%s is on links of %s and %s", a, by, l.Attachment))
			continue
		}
		taken[a] = l.Attachment
		own = append(own, a)
	}
	l.Addrs = own
	return l, len(own) > 0
}

func sameAddrs(a, b []netip.Addr) bool {
	sorted := func(s []netip.Addr) []netip.Addr { return slices.SortedFunc(slices.Values(s), netip.Addr.Compare) }
	return slices.Equal(sorted(a), sorted(b))
}

// verify checks a closed file page by page and record by record. It writes nothing. A copy of an earlier
// schema passes when its pages pass; its records are read when they are needed.
func verify(path string) error {
	db, err := openFile(path)
	if err != nil {
		return err
	}
	err = guarded(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			if found, err := schemaOf(tx); err != nil || found < schema {
				return err
			}
			t, err := begin(tx, "")
			if err == nil {
				err = t.check()
			}
			return err
		})
	})
	return errors.Join(err, db.close())
}

// Backup writes a copy of the store to PATH.good, from which Open rebuilds a damaged file. The copy keeps
// who had which address; the node says which are held. The copy replaces the last one only after passing
// a full check. Writers wait only when the file outgrows its mapping.
func (s *Store) Backup(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("back up store %s: %w", s.path, err)
		}
	}()
	if err := s.Damage(); err != nil {
		return err
	}
	s.backup.Lock()
	defer s.backup.Unlock()
	tmp := s.path + suffixGood + suffixNew
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	w := &failing{f: f}
	err = guarded(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			_, err := tx.WriteTo(w)
			return err
		})
	})
	if w.err != nil {
		err = w.err
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := verify(tmp); err != nil {
		s.suspect(err)
		return fmt.Errorf("the copy fails its check: %w", err)
	}
	if err := os.Rename(tmp, s.path+suffixGood); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

// failing keeps the error of a write, which bbolt's WriteTo reports as text only.
type failing struct {
	f   *os.File
	err error
}

func (w *failing) Write(b []byte) (n int, err error) {
	if n, err = w.f.Write(b); err != nil {
		w.err = err
	}
	return n, err
}
