package ipam

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.etcd.io/bbolt"
)

// maxBatch bounds how many calls one commit takes: enough that the two fdatasync(2) of a commit
// weigh nothing per call. A commit for hundreds of calls leaves as many free pages behind, and every
// later commit writes the list of them.
const maxBatch = 64

// call is one caller's change. run decides first and writes last: an error of it before its
// first write leaves nothing behind, so that it does not fail its neighbours.
type call struct {
	run   func(*txn) error
	err   error
	taken atomic.Bool // by the committer, or back by the caller
	done  chan struct{}
}

// errAbandoned: the caller stopped waiting. The variables that run sets must not be read then.
var errAbandoned = errors.New("gave up waiting")

// do queues run and waits until it is committed. When ctx ends first and the commit has begun,
// the outcome is not known.
func (s *Store) do(ctx context.Context, run func(*txn) error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errAbandoned, context.Cause(ctx))
	}
	c := &call{run: run, done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	if c.taken.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: %w", errAbandoned, context.Cause(ctx))
	}
	return fmt.Errorf("%w during the commit: %w; it may have been written: look it up or release it", errAbandoned, context.Cause(ctx))
}

// commits is the committer: the one goroutine that writes. It takes what is queued at once, with
// no timer (bbolt's Batch would add its 10 ms to each lone call).
func (s *Store) commits() {
	defer close(s.finished)
	for {
		s.mu.Lock()
		n := min(len(s.queue), maxBatch)
		batch := s.queue[:n:n]
		s.queue = s.queue[n:]
		if n == 0 {
			s.queue = nil
		}
		closed := s.closed
		s.mu.Unlock()
		if n > 0 {
			s.commit(batch)
			continue
		}
		if closed {
			return
		}
		<-s.wake
	}
}

func (s *Store) commit(batch []*call) {
	live := batch[:0]
	for _, c := range batch {
		if c.taken.CompareAndSwap(false, true) {
			live = append(live, c)
		}
	}
	if err := s.update(live); err != nil && len(live) > 1 {
		// Not known whose fault it is: each one alone.
		for _, c := range live {
			if err := s.update([]*call{c}); err != nil {
				c.err = err
			}
		}
	} else if err != nil && len(live) == 1 {
		live[0].err = err
	}
	for _, c := range live {
		close(c.done)
	}
}

// errNoChange ends a transaction that wrote nothing without a commit.
var errNoChange = errors.New("no change")

// update runs calls in one transaction. The error is of the transaction, not of a call.
func (s *Store) update(calls []*call) error {
	if err := s.Damage(); err != nil {
		return err
	}
	err := guarded(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			t, err := begin(tx, s.opts.BootID)
			if err != nil {
				return err
			}
			t.hints, t.maxFree = s.hints, s.maxFree
			for _, c := range calls {
				clean := t.dirty
				t.dirty = false
				c.err = c.run(t)
				if c.err != nil && t.dirty {
					return c.err // half written
				}
				t.dirty = t.dirty || clean
			}
			if !t.dirty {
				return errNoChange
			}
			return t.finish()
		})
	})
	if errors.Is(err, errNoChange) {
		err = nil
	} else if err != nil {
		clear(s.hints) // they know of what is not written
	}
	var p panicked
	if errors.As(err, &p) {
		s.db.broken = true
	}
	if errors.Is(err, ErrDamaged) {
		s.suspect(err)
	}
	for _, c := range calls {
		if errors.Is(c.err, ErrDamaged) {
			s.suspect(c.err)
		}
	}
	return err
}
