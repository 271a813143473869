package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// steadyProcess is how long a session's process must have run to be replaced at once.
	steadyProcess = time.Minute
	// maxRespawn bounds the pause before a process is replaced.
	maxRespawn = 32 * time.Second
	// stopTimeout is how long Stop waits for a Sync to end.
	stopTimeout = 3 * time.Second
)

// Speaker owns the sessions of one node. Each session has its own process (see ServeSession), for two
// reasons. First, GoBGP v3 reads a connection in a separate goroutine, which panics at messages that RFC 4271
// does not know. No other goroutine can recover, so only a process can contain the panic. Second, a process
// ends silently, and a switch takes a silent end for a graceful restart (RFC 4724).
//
//	Speaker ──order──> ServeSession ── GoBGP ── switch        one process for each Key
//	        <─answer──
//
// A process that ends by itself is replaced: at once if it ran for steadyProcess, otherwise after 1, 2, 4,
// ... maxRespawn. If the settings of a session change, its process is killed and another process is started.
// The processes end with the Speaker's process, without a Cease.
type Speaker struct {
	command []string
	changed func()
	syncing chan struct{} // held by one Sync at a time; by Stop for good
	stop    sync.Once

	mu       sync.Mutex // guards the fields below
	synced   bool       // a Sync has ended: a session that is not in sessions is not desired
	sessions map[Key]*session
	past     map[Key]Status // of removed sessions
}

// Options are the settings of a Speaker.
type Options struct {
	// Command is a program that calls ServeSession with its file descriptor 3.
	Command []string
	// Changed is called, from any goroutine, when a session's state may have changed. It must
	// not block.
	Changed func()
}

// NewSpeaker returns a Speaker without sessions. It starts nothing.
func NewSpeaker(opts Options) *Speaker {
	s := &Speaker{command: opts.Command, changed: opts.Changed, syncing: make(chan struct{}, 1), sessions: map[Key]*session{}, past: map[Key]Status{}}
	if s.changed == nil {
		s.changed = func() {}
	}
	return s
}

// Sync makes the sessions and their paths match desired. It sends a Cease to end a session that desired does
// not name, so that the switch withdraws its paths at once. It does not wait for a session to come up. It
// works on all sessions at the same time, so no session waits for another session's switch.
//
// A session that cannot work (see Session.Validate) is an error that wraps ErrInvalid. Sync leaves a running
// session with the same Key as it is, and the other sessions are not affected.
func (s *Speaker) Sync(ctx context.Context, desired State) ([]Change, error) {
	select {
	case s.syncing <- struct{}{}:
		defer func() { <-s.syncing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	named, valid := byKey(desired)
	var work []func() ([]Change, error)
	for _, one := range s.all() {
		if named[one.key] {
			continue
		}
		next, ok := s.successor(one, valid)
		switch {
		case !ok:
			work = append(work, func() ([]Change, error) { return s.end(ctx, one, desired) })
		case next.Peer.Key().Address == one.key.Address:
			s.rename(one, next.Peer.Key())
		default:
			next.Peer = one.want.Peer
			work = append(work, func() ([]Change, error) { return s.sync(ctx, next) })
		}
	}
	for _, want := range valid {
		work = append(work, func() ([]Change, error) { return s.sync(ctx, want) })
	}
	results, errs := make([][]Change, len(work)), make([]error, len(work))
	var wg sync.WaitGroup
	for i, f := range work {
		wg.Go(func() { results[i], errs[i] = f() })
	}
	wg.Wait()
	s.mu.Lock()
	s.synced = s.synced || ctx.Err() == nil
	s.mu.Unlock()
	return slices.Concat(results...), errors.Join(append(errs, desired.Validate())...)
}

// successor returns the session that replaces a session that is no longer desired: the resource now names
// another switch, or another AS number of ours. The old session must be Established, or know settings that
// worked. It stays until the successor is Established.
func (s *Speaker) successor(one *session, desired []Session) (next Session, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.status().State != stateEstablished && one.good == (Peer{}) {
		return Session{}, false
	}
	for _, want := range desired {
		running := s.sessions[want.Peer.Key()]
		if want.Peer.Name != one.want.Peer.Name || running != nil && running.status().State == stateEstablished {
			continue
		}
		if want.Peer.Key().Address == one.key.Address {
			return want.normal(), running == nil
		}
		if ok {
			return Session{}, false // more than one session could be the successor
		}
		next, ok = want.normal(), true
	}
	return next, ok
}

// rename gives a session another Key: the session with the switch stays the same, on other terms.
func (s *Speaker) rename(one *session, key Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, one.key)
	one.key = key
	s.sessions[key] = one
}

// byKey returns all keys that desired names, and the valid sessions, sorted by Key.
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

// why tells the switch's operator why a session has ended.
func (s State) why(key Key, peer Peer) string {
	for _, h := range s.Held {
		if h.Key == key {
			return h.Why
		}
	}
	return name(peer) + " asks for no session with this speaker any more"
}

// sync makes one session match want.
func (s *Speaker) sync(ctx context.Context, want Session) ([]Change, error) {
	one, old := s.expect(want.normal())
	if old != nil {
		old.end() // first, so that the switch sees the end before a new connection
	}
	proc, o, err := s.serve(one)
	if proc == nil || err != nil {
		return nil, err
	}
	if err := proc.ask(ctx, o); err != nil {
		return nil, fmt.Errorf("%s: %w", want.Peer.object(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return one.did(proc), nil
}

// expect records the desired session. If the session's process was started on other terms, and so must end,
// expect returns the process in old.
func (s *Speaker) expect(want Session) (one *session, old *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.sessions[want.Peer.Key()]
	if !ok {
		one = newSession(want, s.past[want.Peer.Key()], s.changed)
		s.sessions[one.key] = one
	}
	one.whole = one.whole && one.want.equal(want)
	one.want = want
	if why := one.decide(time.Now()); why != "" {
		if old = one.proc; old != nil {
			one.ended(reasonReset, "restarted: "+why, why)
		}
		one.hurry()
	}
	return one, old
}

// serve returns the process of a session and the order for it. It starts a process if none runs. The process
// is nil if there is nothing to do, or during the pause after a crash. After the pause, changed is called.
func (s *Speaker) serve(one *session) (*process, order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.whole || one.proc == nil && time.Now().Before(one.retryAt) {
		return nil, order{}, nil
	}
	if one.proc == nil {
		proc, err := start(s.command)
		if err != nil {
			time.AfterFunc(one.crashed(err, 0), s.changed)
			return nil, order{}, fmt.Errorf("%s: %w", one.want.Peer.object(), err)
		}
		one.proc = proc
		go s.follow(one, proc)
	}
	o := order{Session: one.want, Since: one.before.Since, Trial: !one.trial.IsZero()}
	o.Session.Peer = one.terms
	return one.proc, o, nil
}

// follow records the answers of a process until the process ends.
func (s *Speaker) follow(one *session, proc *process) {
	begun := time.Now()
	err := proc.listen(func(a answer) {
		s.mu.Lock()
		if one.proc == proc {
			one.last = a
		}
		s.mu.Unlock()
		if a.Number == 0 {
			s.changed()
		}
	})
	s.mu.Lock()
	if one.proc == proc { // the Speaker did not end the process
		time.AfterFunc(one.crashed(err, time.Since(begun)), s.changed)
	}
	s.mu.Unlock()
	s.changed()
}

// end ends a session that is no longer desired, with a Cease that says why.
func (s *Speaker) end(ctx context.Context, one *session, desired State) ([]Change, error) {
	peer := one.want.Peer
	why := desired.why(one.key, peer)
	s.mu.Lock()
	proc := one.proc
	if proc != nil {
		one.ended(reasonEnded, "ended here: "+why, why)
	}
	s.past[one.key] = one.before
	delete(s.sessions, one.key)
	s.mu.Unlock()
	if proc != nil {
		defer proc.end()
		if err := proc.ask(ctx, order{End: why}); err != nil {
			return nil, fmt.Errorf("delete %s: %w", peer.object(), err)
		}
	}
	return []Change{{Op: "delete", Object: peer.object(), Why: why}}, nil
}

// Status reports every session, sorted by Key, from the last answer of its process. It does not block.
func (s *Speaker) Status(context.Context) []Status {
	var out []Status
	for _, one := range s.all() {
		s.mu.Lock()
		out = append(out, one.status())
		s.mu.Unlock()
	}
	return out
}

// Learned returns the switches' own paths that the sessions learn, sorted. The paths are as received: the
// caller must judge them. They are not advertised to any switch.
//
// While complete is false, a switch may not have repeated all paths that it sent to an earlier process, so
// the caller must not delete a route because its path is missing. complete becomes true at the latest when
// the restart time of each session is over.
func (s *Speaker) Learned(context.Context) (paths []LearnedPath, complete bool) {
	all := s.all()
	s.mu.Lock()
	defer s.mu.Unlock()
	complete = s.synced
	for _, one := range all {
		if len(one.want.Learn) > 0 {
			paths = append(paths, one.last.Learned...)
			complete = complete && one.last.Complete
		}
	}
	slices.SortFunc(paths, LearnedPath.Compare)
	return paths, complete
}

// Stop ends all processes without a Cease: the switches keep the paths for the restart time. Afterwards
// Status shows the last status, and Sync blocks until its context ends.
func (s *Speaker) Stop() { s.stop.Do(s.leave) }

func (s *Speaker) leave() {
	select {
	case s.syncing <- struct{}{}:
	case <-time.After(stopTimeout):
	}
	var wg sync.WaitGroup
	for _, one := range s.all() {
		s.mu.Lock()
		proc := one.proc
		one.before, one.proc = one.status(), nil
		s.mu.Unlock()
		if proc != nil {
			wg.Go(proc.end)
		}
	}
	wg.Wait()
}

// all returns the sessions sorted by Key.
func (s *Speaker) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.sessions), func(a, b *session) int { return a.key.Compare(b.key) })
}
