package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	berrors "go.etcd.io/bbolt/errors"
)

// Store is the bbolt file that holds all leases of a node. One process holds it at a time; inside that
// process any number of goroutines may call it.
type Store struct {
	path string
	opts Options
	lock *os.File
	db   *file

	turn    chan struct{} // one slot: full while a caller commits, and once the store is closed
	rebuilt *Rebuild
	backup  sync.Mutex // held by a running Backup

	parsed     layout // of the stored pool parsedFrom; the turn guards this and the next three
	parsedFrom string
	hints      hints
	maxFree    uint64 // smaller in tests

	mu     sync.Mutex // guards the rest
	queue  []*call
	closed bool
	cause  error // the first damage found
}

// Open opens or creates the store at path. A file that does not open or fails its check is kept under
// another name, never deleted.
func Open(ctx context.Context, path string, opts Options) (s *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open store %s: %w", path, err)
		}
	}()
	if opts.LockTimeout == 0 {
		opts.LockTimeout = defaultLockTimeout
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(ctx, path+suffixLock, opts.LockTimeout)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	s = &Store{path: path, opts: opts, lock: lock, turn: make(chan struct{}, 1), hints: hints{}, maxFree: maxFree}
	if err := s.openOrRebuild(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) view(fn func(*txn) error) error {
	err := s.db.read(s.opts.BootID, fn)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	if errors.Is(err, ErrDamaged) {
		s.suspect(err)
	}
	return err
}

// suspect records the first damage found. Nothing is leased from then on, and the next Open checks every
// record.
func (s *Store) suspect(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return
	}
	s.cause = fmt.Errorf("%w; the store leases nothing until edgewayd opens it again, which rebuilds the file", cause)
	// Without this mark the damage is found when it is read again.
	_ = os.WriteFile(s.path+suffixSuspect, []byte(cause.Error()+"\n"), 0o600)
}

// Damage returns the first damage found since the store was opened, or nil. A damaged store leases
// nothing any more and must be closed and opened again.
func (s *Store) Damage() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Path is the path of the store's file.
func (s *Store) Path() string { return s.path }

// Close releases the file and its lock. Calls in flight finish first.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.turn <- struct{}{}
	for s.commitNext() {
	}
	return errors.Join(s.db.close(), s.lock.Close())
}

// Allocate leases one address of each set to the attachment, and returns when the lease is on disk. Order
// of choice: the requested addresses, the pod's last addresses, never used, longest free.
func (s *Store) Allocate(ctx context.Context, req Request) (Lease, error) {
	l, commit, err := s.Begin(ctx, req)
	if err == nil {
		err = commit(ctx)
	}
	return l, err
}

// Begin is Allocate that returns when the addresses are chosen, while the lease is written. The lease is on
// disk when commit returned nil. Until then the caller may prepare what it can undo, and must tell nobody: a
// kill or a failed write takes the lease back. After an error of commit, Release ends the lease if it was
// written after all.
func (s *Store) Begin(ctx context.Context, req Request) (l Lease, commit func(context.Context) error, err error) {
	if err := req.check(); err != nil {
		return Lease{}, nil, err
	}
	var given layout
	if req.Pool != nil {
		if given, err = req.Pool.layout(); err != nil {
			return Lease{}, nil, fmt.Errorf("allocate %s: %w", req.Attachment, err)
		}
	}
	dead := verdicts{}
	for {
		var l Lease
		var question ask
		c := &call{chosen: make(chan struct{}), done: make(chan struct{})}
		c.run = func(t *txn) (err error) {
			pool := given
			if pool == nil {
				if pool, err = s.storedLayout(t); err != nil {
					return err
				}
			}
			l, err = t.allocate(req, pool, dead)
			return err
		}
		if err = s.enqueue(ctx, c); err == nil {
			go func() {
				select {
				case s.turn <- struct{}{}:
					s.lead(c)
				case <-c.done:
				}
			}()
			err = c.wait(ctx, c.chosen)
		}
		switch {
		case err == nil:
			return l, func(ctx context.Context) error { return c.wait(ctx, nil) }, nil
		case errors.Is(err, errAbandoned):
			return Lease{}, nil, fmt.Errorf("allocate %s: %w", req.Attachment, err)
		case !errors.As(err, &question):
			return l, nil, err
		}
		for _, h := range question.leases {
			dead[h.Seq] = req.Dead(h.Lease)
		}
	}
}

// Release ends the attachment's lease and returns it. A missing lease is not an error; ok is false then.
func (s *Store) Release(ctx context.Context, a Attachment) (lease Lease, ok bool, err error) {
	err = s.do(ctx, func(t *txn) (err error) {
		lease, ok, err = t.release(a)
		return err
	})
	if err != nil {
		return Lease{}, false, fmt.Errorf("release %s: %w", a, err)
	}
	return lease, ok, nil
}

// Lookup returns the attachment's lease.
func (s *Store) Lookup(a Attachment) (lease Lease, ok bool, err error) {
	err = s.view(func(t *txn) error {
		h, found, err := t.leaseOf(a)
		lease, ok = h.Lease, found
		return err
	})
	return lease, ok, err
}

// Leases returns all leases, oldest first.
func (s *Store) Leases() ([]Lease, error) {
	var out []Lease
	err := s.view(func(t *txn) error {
		all, err := t.all()
		out = make([]Lease, len(all))
		for i, h := range all {
			out[i] = h.Lease
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// SetPool makes p the pool of requests that name no pool. Leases outside p stay valid.
func (s *Store) SetPool(ctx context.Context, p Pool) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("set %w", err)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return s.do(ctx, func(t *txn) error {
		if raw, ok, err := t.meta.get([]byte(keyPool)); err != nil || ok && string(raw) == string(data) {
			return err
		}
		return t.meta.put([]byte(keyPool), data)
	})
}

// Pool returns the pool that SetPool stored last; ok is false when none was stored.
func (s *Store) Pool() (p Pool, ok bool, err error) {
	err = s.view(func(t *txn) (err error) {
		p, ok, err = t.pool()
		return err
	})
	return p, ok, err
}

func (t *txn) pool() (p Pool, ok bool, err error) {
	raw, ok, err := t.meta.get([]byte(keyPool))
	if err != nil || !ok {
		return Pool{}, false, err
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return Pool{}, false, t.meta.damaged([]byte(keyPool), err.Error())
	}
	return p, true, nil
}

// storedLayout is the layout of the stored pool, parsed once. The caller has the turn.
func (s *Store) storedLayout(t *txn) (layout, error) {
	raw, ok, err := t.meta.get([]byte(keyPool))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("allocate: %w; name ranges in the network configuration or start edgewayd", ErrNoPool)
	case s.parsed != nil && string(raw) == s.parsedFrom:
		return s.parsed, nil
	}
	p, _, err := t.pool()
	if err != nil {
		return nil, err
	}
	l, err := p.layout()
	if err == nil {
		s.parsed, s.parsedFrom = l, string(raw)
	}
	return l, err
}

// Usage counts the addresses of p.
func (s *Store) Usage(p Pool) (u Usage, err error) {
	l, err := p.layout()
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %w", err)
	}
	err = s.view(func(t *txn) error {
		u, err = t.usage(l)
		return err
	})
	return u, err
}
