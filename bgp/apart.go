package bgp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	reasonCrashed = "crashed" // the session's process ended by itself
	// steadyProcess is how long a session's process must have run to be started again at once.
	steadyProcess = time.Minute
	// maxRespawn bounds the pause before it is started again.
	maxRespawn = 32 * time.Second
)

// Apart is a Speaker whose sessions run in a process each. GoBGP v3 can be made to panic where
// nobody can recover, by a switch that sends what RFC 4271 does not know: that ends one process,
// and with it one session, which its switch takes for a restart (RFC 4724). The next is begun at
// once; when that does not live either, after 1, 2, 4, ... maxRespawn.
//
//	Apart ──order──> ServeSession ── Speaker ── GoBGP ── switch        one for each Key
//	      <─report──  (process)
//
// A process ends with the one that began it, by the end of their link, and then without a Cease.
type Apart struct {
	command []string
	changed func()
	syncing chan struct{} // held by the one Sync at a time; by Stop for good
	stop    sync.Once

	mu     sync.Mutex // guards what follows
	synced bool
	apart  map[Key]*apart
	past   map[Key]past
}

// apart is one session, and its process as long as there is one.
type apart struct {
	key     Key
	proc    *child  // nil: none runs
	want    Session // what proc was told last, and did
	whole   bool    // it did all of it
	last    said    // what proc said last
	died    Status  // what to say while there is none
	backoff time.Duration
	retryAt time.Time
}

// NewApart returns an Apart without sessions. command is a program that calls ServeSession with
// file descriptor 3. It starts nothing.
func NewApart(opts Options, command ...string) *Apart {
	a := &Apart{command: command, changed: opts.Changed, syncing: make(chan struct{}, 1), apart: map[Key]*apart{}, past: map[Key]past{}}
	if a.changed == nil {
		a.changed = func() {}
	}
	return a
}

// Sync is Speaker.Sync.
func (a *Apart) Sync(ctx context.Context, desired State) ([]Change, error) {
	select {
	case a.syncing <- struct{}{}:
		defer func() { <-a.syncing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	named, valid := byKey(desired)
	var work []func() ([]Change, error)
	for _, s := range a.all() {
		if !named[s.key] {
			work = append(work, func() ([]Change, error) { return a.end(ctx, s, desired) })
		}
	}
	for _, want := range valid {
		work = append(work, func() ([]Change, error) { return a.sync(ctx, want) })
	}
	results, errs := make([][]Change, len(work)), make([]error, len(work))
	var wg sync.WaitGroup
	for i, f := range work {
		wg.Go(func() { results[i], errs[i] = f() })
	}
	wg.Wait()
	a.mu.Lock()
	a.synced = a.synced || ctx.Err() == nil
	a.mu.Unlock()
	return slices.Concat(results...), errors.Join(append(errs, desired.Validate())...)
}

// sync makes one session what want says.
func (a *Apart) sync(ctx context.Context, want Session) ([]Change, error) {
	want.Paths, want.Learn = slices.Clone(want.Paths), slices.Clone(want.Learn)
	key := want.Peer.Key()
	a.mu.Lock()
	s, ok := a.apart[key]
	if !ok {
		s = &apart{key: key, died: connectingTo(want.Peer)}
		a.apart[key] = s
	}
	proc, before := s.proc, a.past[key].onWire()
	switch {
	case proc != nil && s.whole && s.want.equal(want):
		a.mu.Unlock()
		return nil, nil
	case proc == nil && time.Now().Before(s.retryAt):
		s.died.Peer = want.Peer.normal()
		a.mu.Unlock()
		return nil, nil // the pause ends with a call of changed
	}
	a.mu.Unlock()
	if proc == nil {
		var err error
		if proc, err = a.begin(s); err != nil {
			return nil, fmt.Errorf("add %s: %w", want.Peer.object(), err)
		}
	}
	r, err := proc.ask(ctx, order{Session: &want, Past: before})
	if err != nil {
		return nil, fmt.Errorf("replace %s: %w", want.Peer.object(), err)
	}
	a.mu.Lock()
	s.want, s.whole = want, r.Err == ""
	a.mu.Unlock()
	return changes(r), failure(r.Err)
}

func changes(r said) []Change {
	var out []Change
	for _, c := range r.Changes {
		out = append(out, Change{c.Op, c.Object, c.Why, failure(c.Err)})
	}
	return out
}

func (s Session) equal(other Session) bool {
	return s.Peer == other.Peer && slices.Equal(s.Paths, other.Paths) && slices.Equal(s.Learn, other.Learn)
}

func connectingTo(p Peer) Status {
	return Status{Peer: p.normal(), State: "Idle", Since: time.Now(), Reason: reasonConnecting, Detail: "connecting to " + p.endpoint()}
}

// begin starts the process of a session.
func (a *Apart) begin(s *apart) (*child, error) {
	begun := time.Now()
	proc, err := start(a.command)
	if err != nil {
		a.crashed(s, nil, time.Time{}, err)
		return nil, err
	}
	a.mu.Lock()
	s.proc, s.whole = proc, false
	a.mu.Unlock()
	go func() {
		err := proc.listen(func(r said) {
			a.mu.Lock()
			if s.proc == proc {
				s.last = r
			}
			a.mu.Unlock()
			if r.Number == 0 {
				a.changed()
			}
		})
		a.crashed(s, proc, begun, err)
	}()
	return proc, nil
}

// crashed notes that a session's process ended, unless it was to.
func (a *Apart) crashed(s *apart, proc *child, begun time.Time, err error) {
	defer a.changed() // not under mu
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.apart[s.key] != s || s.proc != proc {
		return // ended, or left
	}
	now := time.Now()
	s.backoff = min(max(2*s.backoff, time.Second), maxRespawn)
	if !begun.IsZero() && now.Sub(begun) > steadyProcess {
		s.backoff = 0
	}
	was := s.status()
	detail := fmt.Sprintf("the process of this session ended: %v; it is begun again after %s; look at what the switch sends, and report this", err, s.backoff)
	p := past{was.Flaps, was.LastReset}
	if was.State == "Established" {
		p, was.Since = past{was.Flaps + 1, Reset{now, reasonCrashed, detail}}, now
	}
	a.past[s.key] = p
	s.died = Status{Peer: was.Peer, State: "Idle", Since: was.Since, Reason: reasonCrashed, Detail: detail, Flaps: p.flaps, LastReset: p.reset}
	s.proc, s.whole, s.last, s.retryAt = nil, false, said{}, now.Add(s.backoff)
	time.AfterFunc(s.backoff, a.changed)
}

// status is what the process said last, but that it has just begun is no news after a crash;
// Apart.mu is held.
func (s *apart) status() Status {
	if s.proc == nil || len(s.last.Status) == 0 {
		return s.died
	}
	now := s.last.Status[0]
	if s.died.Reason == reasonCrashed && now.Reason == reasonConnecting {
		now.Reason, now.Detail = s.died.Reason, s.died.Detail
	}
	return now
}

// end ends a session that is not wanted any more with a Cease, and its process.
func (a *Apart) end(ctx context.Context, s *apart, desired State) ([]Change, error) {
	a.mu.Lock()
	proc, was := s.proc, s.status()
	delete(a.apart, s.key)
	a.mu.Unlock()
	if proc == nil {
		return []Change{{Op: "delete", Object: was.Peer.object()}}, nil
	}
	defer proc.end()
	r, err := proc.ask(ctx, order{Why: desired.why(s.key, was.Peer)})
	if err != nil {
		return nil, fmt.Errorf("delete %s: %w", was.Peer.object(), err)
	}
	a.mu.Lock()
	a.past[s.key] = r.Past.past()
	a.mu.Unlock()
	return changes(r), failure(r.Err)
}

// Status is Speaker.Status, as the sessions' processes said last.
func (a *Apart) Status(context.Context) []Status {
	var out []Status
	for _, s := range a.all() {
		a.mu.Lock()
		out = append(out, s.status())
		a.mu.Unlock()
	}
	return out
}

// Learned is Speaker.Learned.
func (a *Apart) Learned(context.Context) (paths []LearnedPath, complete bool) {
	all := a.all()
	a.mu.Lock()
	defer a.mu.Unlock()
	complete = a.synced
	for _, s := range all {
		if len(s.want.Learn) > 0 || s.proc == nil {
			paths = append(paths, s.last.Learned...)
			complete = complete && s.proc != nil && s.last.Complete
		}
	}
	slices.SortFunc(paths, LearnedPath.Compare)
	return paths, complete
}

// Stop is Speaker.Stop; the processes end with it.
func (a *Apart) Stop() { a.stop.Do(a.leave) }

func (a *Apart) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout+time.Second)
	defer cancel()
	select {
	case a.syncing <- struct{}{}:
	case <-ctx.Done():
	}
	var wg sync.WaitGroup
	for _, s := range a.all() {
		a.mu.Lock()
		proc := s.proc
		s.died, s.proc = s.status(), nil
		a.mu.Unlock()
		if proc != nil {
			wg.Go(func() {
				_, _ = proc.ask(ctx, order{Leave: true}) // what does not answer is ended all the same
				proc.end()
			})
		}
	}
	wg.Wait()
}

// all returns the sessions sorted by Key.
func (a *Apart) all() []*apart {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*apart, 0, len(a.apart))
	for _, s := range a.apart {
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y *apart) int { return x.key.Compare(y.key) })
	return out
}
