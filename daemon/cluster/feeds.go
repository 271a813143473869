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
		k.reached()
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
		k.reached()
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
		if unanswered(err) {
			k.silent = true
		} else {
			k.reached()
		}
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

// pause waits before the next attempt: for a random part of wait, or for as long as the server asked. A server that
// cut all watches of this node, or that could not be reached, has lost all nodes at one moment: then the node asks
// again at a random moment, with one feed, and the first feed that is answered wakes the others. As long as another
// watch is open, the server lives, and a watch that was cut is opened again at once. Wake-ups stay rare when a server
// flaps: a feed that reached the server and lost it first waits without being woken.
func (k *kubernetes) pause(ctx context.Context, f *feed, err error, wait time.Duration) {
	if !unanswered(err) {
		sleep(ctx, jittered(wait, min(RetryAfter(err), maxRetryAfter)), nil)
		if err != nil || !f.cut || f.version == "" || k.hears() {
			return
		}
	}
	wait, back := k.together(f, unanswered(err))
	sleep(ctx, wait, back)
}

// hears reports whether a watch is open.
func (k *kubernetes) hears() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.feeds {
		if f.open {
			return true
		}
	}
	k.silent = true
	return false
}

// together returns how long a feed waits for a server that all feeds lost, and what ends the wait early. The first feed
// asks for all: after a quarter of the time that the server has been away, and a random time more that grows
// with the number of nodes. The others ask only when that feed does not: it may be no longer wanted.
func (k *kubernetes) together(f *feed, failed bool) (wait time.Duration, early chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	if k.silent && k.resume.After(now) {
		return k.resume.Sub(now) + k.patience.most, k.back
	}
	if failed {
		wait = min(max(now.Sub(f.since)/4, k.patience.least/2), k.patience.probe)
	}
	wait += rand.N(min(time.Duration(k.size)*k.patience.each, k.patience.widest) + 1)
	k.resume = now.Add(wait)
	return wait, k.back
}

// reached wakes the feeds that wait for the server; k.mu is held.
func (k *kubernetes) reached() {
	if k.silent {
		k.silent, k.resume = false, time.Time{}
		close(k.back)
		k.back = make(chan struct{})
	}
}

// sleep waits until the time has passed, ctx ends or early is closed.
func sleep(ctx context.Context, d time.Duration, early chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-early:
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
