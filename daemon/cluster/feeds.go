package cluster

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// This file holds all state that connections and feeds give the source, under the source's lock.

func (k *kubernetes) wanted() []*feed {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.feeds))
}

// update changes the state, and then calls the watcher when the change counts.
func (k *kubernetes) update(do func() (news bool)) {
	k.mu.Lock()
	news, changed := do(), k.changed
	k.mu.Unlock()
	if news {
		changed()
	}
}

// connected notes a connection, or why there is no connection.
func (k *kubernetes) connected(c *Connection, err error) {
	k.update(func() bool {
		news := (err == nil) != (k.fault == nil) || c == nil && k.server == ""
		if k.fault = err; c != nil {
			k.server, k.used = c.server, c
		}
		return news
	})
}

// replaced notes the complete items of a feed.
func (k *kubernetes) replaced(f *feed, items map[string]told) {
	k.update(func() bool {
		news := !f.synced || !maps.EqualFunc(f.items, items, func(a, b told) bool { return a.sum == b.sum })
		f.items, f.synced, f.asked, f.confirmed = items, true, true, k.clock()
		return news
	})
}

// heard notes one object; nil: the object is gone.
func (k *kubernetes) heard(f *feed, name string, now *told) {
	k.update(func() bool {
		was, there := f.items[name]
		switch {
		case now == nil:
			delete(f.items, name)
			return there
		case there && was.sum == now.sum:
			return false
		}
		f.items[name] = *now
		return true
	})
}

// opened notes a watch that the server accepted.
func (k *kubernetes) opened(f *feed) {
	k.update(func() bool {
		news := f.failure != nil
		f.open, f.asked, f.failure = true, true, nil
		if k.silent {
			k.silent = false
			close(k.back)
			k.back = make(chan struct{})
		}
		return news
	})
}

// ended notes the end of an attempt. err is why the attempt failed.
func (k *kubernetes) ended(f *feed, err error) {
	k.update(func() bool {
		if f.open {
			f.open, f.confirmed = false, k.clock()
		}
		news := !f.asked
		f.asked = f.asked || err != nil
		if err == nil {
			return false
		}
		if f.failure == nil {
			f.since = k.clock()
		}
		news = news || f.failure == nil || code(f.failure) != code(err)
		f.failure = err
		k.silent = k.silent || unanswered(err)
		return news
	})
}

// unanswered reports whether the server could not be reached, a fault that all feeds share.
func unanswered(err error) bool {
	u := (*unreached)(nil)
	return errors.As(err, &u)
}

// jittered is a random time between half of wait and wait, or, if the server asked for a longer time, up to a quarter more
// than that.
func jittered(wait, asked time.Duration) time.Duration {
	wait = wait/2 + rand.N(wait/2+1)
	if asked > 0 {
		wait = max(wait, asked+rand.N(asked/4))
	}
	return wait
}

// pause waits before the next attempt: for a random part of wait, so that 5,000 nodes do not come at once, or
// for as long as the server asked. When the server could not be reached, the first feed that reaches it wakes
// the others. Wake-ups stay rare when a server flaps: a feed that reached the server and lost it waits
// without being woken.
func (k *kubernetes) pause(ctx context.Context, err error, wait time.Duration) {
	wait = jittered(wait, min(RetryAfter(err), maxRetryAfter))
	var back chan struct{}
	if unanswered(err) {
		k.mu.Lock()
		if k.silent {
			back = k.back
		}
		k.mu.Unlock()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-back:
	}
}

// confirmed returns the time since when the server may have changed without our knowledge, or was when
// nothing has been read; k.mu is held. An open watch would have reported a change.
func (k *kubernetes) confirmed(was time.Time) time.Time {
	var oldest time.Time
	for _, f := range k.feeds {
		if !f.synced {
			continue
		}
		at := f.confirmed
		if f.open {
			at = k.clock()
		}
		if oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	if oldest.IsZero() {
		return was
	}
	return oldest
}
