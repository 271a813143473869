package ipam

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.etcd.io/bbolt"
)

// maxBatch bounds how many calls one commit takes: enough to make the two fdatasync(2) of a commit cheap
// per call. A commit for hundreds of calls leaves as many free pages behind, and every later commit
// writes the list of free pages.
const maxBatch = 64

// call is one caller's change. run must decide before its first write. An error before that write leaves
// nothing behind, so the other calls of the batch do not fail.
type call struct {
	run    func(*txn) error
	err    error
	taken  atomic.Bool   // into a commit, or back by the caller
	chosen chan struct{} // closed before the commit; nil: nobody asks
	done   chan struct{}
}

// errAbandoned: the caller stopped waiting. The caller must not read the variables that run sets.
var errAbandoned = errors.New("gave up waiting for the store")

// do queues run and waits until it is committed. If ctx ends after the commit started, the outcome is not
// known.
func (s *Store) do(ctx context.Context, run func(*txn) error) error {
	c := &call{run: run, done: make(chan struct{})}
	if err := s.enqueue(ctx, c); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
		s.lead(c)
	case <-c.done:
	case <-ctx.Done():
	}
	return c.wait(ctx, nil)
}

func (s *Store) enqueue(ctx context.Context, c *call) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errAbandoned, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.queue = append(s.queue, c)
	return nil
}

// wait returns when the call is committed, early is closed, or ctx ends.
func (c *call) wait(ctx context.Context, early <-chan struct{}) error {
	select {
	case <-c.done: // even if ctx has ended too
		return c.err
	default:
	}
	select {
	case <-early:
		return nil
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	if c.taken.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: %w", errAbandoned, context.Cause(ctx))
	}
	return fmt.Errorf("%w during the commit: %w; the change may have been written: check the lease, or release it", errAbandoned, context.Cause(ctx))
}

// lead commits calls until none is queued, for a caller that has the turn: one goroutine at a time commits
// for all. A lone caller waits for no other goroutine. Once own is committed, another goroutine commits the
// rest. There is no timer (bbolt's Batch adds 10 ms to each lone call).
func (s *Store) lead(own *call) {
	for s.commitNext() {
		select {
		case <-own.done:
			go s.lead(&call{}) // a call that is never done
			return
		default:
		}
	}
	<-s.turn
}

// commitNext commits at most maxBatch calls, and reports whether more are queued.
func (s *Store) commitNext() (more bool) {
	s.mu.Lock()
	n := min(len(s.queue), maxBatch)
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	s.mu.Unlock()
	s.commit(batch)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.queue = nil
	}
	return len(s.queue) > 0
}

func (s *Store) commit(batch []*call) {
	live := batch[:0]
	for _, c := range batch {
		if c.taken.CompareAndSwap(false, true) {
			live = append(live, c)
		}
	}
	if len(live) == 0 {
		return
	}
	if err := s.update(live); err != nil && len(live) > 1 {
		// The failing call is not known, so run each call alone. A caller that acts on its choice already
		// must not get another.
		for _, c := range live {
			alone := err
			if !c.isChosen() {
				alone = s.update([]*call{c})
			}
			if alone != nil {
				c.err = alone
			}
		}
	} else if err != nil {
		live[0].err = err
	}
	for _, c := range live {
		close(c.done)
	}
}

func (c *call) isChosen() bool {
	select {
	case <-c.chosen:
		return true
	default:
		return false
	}
}

// errNoChange ends, without a commit, a transaction that wrote nothing.
var errNoChange = errors.New("no change")

// update runs calls in one transaction. It returns the error of the transaction, not of a call.
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
			for _, c := range calls {
				if c.chosen != nil && c.err == nil {
					close(c.chosen)
				}
			}
			return t.finish()
		})
	})
	if errors.Is(err, errNoChange) {
		err = nil
	} else if err != nil {
		clear(s.hints) // they may describe changes that were not written
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
