package bgp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// stopTimeout bounds Stop: what has not ended by then ends with the process.
const stopTimeout = 3 * time.Second

// Speaker holds the sessions of this process.
type Speaker struct {
	changed func()
	syncing chan struct{} // held by the one Sync at a time; by Stop for good
	stop    sync.Once

	mu       sync.Mutex // guards what follows
	synced   bool       // there was a Sync: a session that is not here is not wanted
	sessions map[Key]*session
	past     map[Key]past // of sessions that have ended
	idle     []*server    // stopped; a server's goroutine never ends, so they are used again
}

// NewSpeaker returns a Speaker with no session. It opens nothing.
func NewSpeaker(opts Options) *Speaker {
	s := &Speaker{changed: opts.Changed, syncing: make(chan struct{}, 1), sessions: make(map[Key]*session), past: make(map[Key]past)}
	if s.changed == nil {
		s.changed = func() {}
	}
	return s
}

// Sync makes the sessions and their paths what desired says. A session that desired does not
// name is ended with a Cease, so that its switch withdraws at once. It does not wait for a
// session to come up.
//
// A session that makes no sense (see Session.Validate) is an error that wraps ErrInvalid; what
// runs under its Key is left as it is, and the others go on.
func (s *Speaker) Sync(ctx context.Context, desired State) ([]Change, error) {
	select {
	case s.syncing <- struct{}{}:
		defer func() { <-s.syncing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	errs := []error{desired.Validate()}
	var changes []Change
	for _, result := range s.apply(ctx, desired) {
		for _, c := range result {
			if c.Err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", c.Op, c.Object, c.Err))
			}
		}
		changes = append(changes, result...)
	}
	s.mu.Lock()
	s.synced = s.synced || ctx.Err() == nil
	s.mu.Unlock()
	return changes, errors.Join(errs...)
}

// apply works on all sessions at once, so that none waits for another's switch, and returns
// what was done for each: first those that end, then the others, each sorted by Key.
func (s *Speaker) apply(ctx context.Context, desired State) [][]Change {
	named, valid := byKey(desired)
	var work []func() []Change
	for _, session := range s.all() {
		if !named[session.key] {
			work = append(work, func() []Change { return s.end(ctx, session, desired.why(session.key, session.peer)) })
		}
	}
	for _, want := range valid {
		work = append(work, func() []Change { return s.sync(ctx, want) })
	}
	results := make([][]Change, len(work))
	var wg sync.WaitGroup
	for i, f := range work {
		wg.Go(func() { results[i] = f() })
	}
	wg.Wait()
	return results
}

// byKey returns which keys desired names at all, and the sessions to make true, sorted by Key.
func byKey(desired State) (named map[Key]bool, valid []Session) {
	count := make(map[Key]int)
	named = make(map[Key]bool)
	for _, session := range desired.Sessions {
		named[session.Peer.Key()] = true
		if session.Validate() == nil {
			count[session.Peer.Key()]++
		}
	}
	for _, session := range desired.Sessions {
		if count[session.Peer.Key()] == 1 && session.Validate() == nil {
			valid = append(valid, session)
		}
	}
	slices.SortFunc(valid, func(a, b Session) int { return a.Peer.Key().Compare(b.Peer.Key()) })
	return named, valid
}

// why says why there is no such session any more, for the switch's operator.
func (s State) why(key Key, peer Peer) string {
	for _, h := range s.Held {
		if h.Key == key {
			return h.Why
		}
	}
	return name(peer) + " asks for no session with this speaker any more"
}

// remember sets what a session was before it begins.
func (s *Speaker) remember(key Key, before past) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sessions[key]; !ok {
		s.past[key] = before
	}
}

// history is what a session was that has ended.
func (s *Speaker) history(key Key) past {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past[key]
}

// end ends a session that is not wanted any more, because of why.
func (s *Speaker) end(ctx context.Context, session *session, why string) []Change {
	s.mu.Lock()
	delete(s.sessions, session.key)
	s.past[session.key] = session.journal.ended(why)
	s.mu.Unlock()
	reusable, err := session.end(ctx, why)
	if reusable {
		session.server.log.journal.Store(nil)
		s.mu.Lock()
		s.idle = append(s.idle, session.server)
		s.mu.Unlock()
	}
	return []Change{{Op: "delete", Object: session.peer.object(), Why: why, Err: err}}
}

// sync makes one session what want says.
func (s *Speaker) sync(ctx context.Context, want Session) (changes []Change) {
	s.mu.Lock()
	running, ok := s.sessions[want.Peer.Key()]
	if !ok {
		running = newSession(want.Peer.normal(), s.past[want.Peer.Key()], s.takeServer(), s.changed)
		s.sessions[running.key] = running
	}
	s.mu.Unlock()
	var done []Change
	err := running.do(ctx, func() {
		done = running.sync(ctx, want)
	})
	if err != nil {
		return []Change{{Op: "replace", Object: want.Peer.object(), Err: err}}
	}
	return done
}

// takeServer returns a stopped server, or a new one. Callers hold mu.
func (s *Speaker) takeServer() *server {
	if n := len(s.idle); n > 0 {
		server := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return server
	}
	return newServer()
}

// Status reports every session, sorted by Key. It asks nobody and does not block.
func (s *Speaker) Status(ctx context.Context) []Status {
	var out []Status
	for _, session := range s.all() {
		out = append(out, session.status())
	}
	return out
}

// Stop ends the process's part without a Cease: the switches keep the paths for the restart
// time. Afterwards Status shows what was, and Sync waits for its context to end.
func (s *Speaker) Stop() { s.stop.Do(s.leave) }

func (s *Speaker) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
	}
	var wg sync.WaitGroup
	for _, session := range s.all() {
		wg.Go(func() { session.leave(ctx) })
	}
	wg.Wait()
}

// all returns the sessions sorted by Key.
func (s *Speaker) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*session, 0, len(s.sessions))
	for _, session := range s.sessions {
		out = append(out, session)
	}
	slices.SortFunc(out, func(a, b *session) int { return a.key.Compare(b.key) })
	return out
}
