package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// hangUpTimeout bounds the wait for GoBGP to notice that its connection ended, which takes
	// it some milliseconds.
	hangUpTimeout = 2 * time.Second
	// farewellTimeout bounds the wait for a switch to take what we sent it before, and our last word.
	farewellTimeout = time.Second
	// endTimeout bounds the wait for a Cease to be sent to a switch that may have stopped reading.
	endTimeout = 3 * time.Second
	// grace is how long a caller whose context ended waits for a batch to stop between two paths.
	grace = time.Second
	// steady is how long a session must have lived to be dialled again at once.
	steady = 10 * time.Second
	// maxBackoff bounds the pause before a session that does not live is dialled again.
	maxBackoff = 32 * time.Second
)

// session is one peer with its own GoBGP server.
//
// A session that is lost must come back with both restart bits of its OPEN set, or the switch
// flushes what it kept (RFC 4724, section 4.2). GoBGP sets them only in the first session of a
// peer, so the peer is replaced each time, in the five seconds that GoBGP idles after a loss:
//
//	open --> Established --loss--> close (silent: nothing is connected) --backoff--> open
type session struct {
	key     Key
	journal *journal
	changed func()
	wake    chan struct{}   // one slot: look again
	ctx     context.Context // ends when the session does
	quit    context.CancelFunc
	done    chan struct{} // run has returned

	sem      chan struct{} // held by who works on what follows; mu too, to write what Status reads
	server   *server
	started  bool // the server has a RIB
	whole    bool // the RIB has held all wanted paths once: no End-of-RIB can flush one
	opened   bool // the server has the peer
	backoff  time.Duration
	retryAt  time.Time // not opened before
	received received  // of the established session

	mu    sync.Mutex // guards what Status reads
	peer  Peer
	told  map[netip.Prefix]Path // the server's RIB; nobody else writes there
	offer offer
	learn []netip.Prefix
	heard hearing
}

func newSession(p Peer, before past, server *server, changed func()) *session {
	ctx, quit := context.WithCancel(context.Background())
	s := &session{
		key:     p.Key(),
		changed: changed,
		wake:    make(chan struct{}, 1),
		ctx:     ctx,
		quit:    quit,
		done:    make(chan struct{}),
		sem:     make(chan struct{}, 1),
		server:  server,
		peer:    p,
		told:    make(map[netip.Prefix]Path),
		heard:   newHearing(),
	}
	s.journal = newJournal(p, before, s.poke)
	server.log.journal.Store(s.journal)
	go s.run()
	return s
}

// poke makes run look again.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run reacts to what the journal tells until quit.
func (s *session) run() {
	defer close(s.done)
	retry := time.NewTimer(0)
	retry.Stop()
	var seen view
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		case <-retry.C:
		}
		again := make(chan time.Duration, 1)
		if err := s.do(s.ctx, func() { again <- sooner(s.look(s.ctx), s.hear(s.ctx)) }); err != nil {
			retry.Reset(time.Second)
		} else if d := <-again; d > 0 {
			retry.Reset(d)
		}
		if now := s.view(); now != seen {
			seen = now
			s.changed()
		}
	}
}

// do runs f as the only one who works on the session. When ctx ends before f does, f goes on
// alone and do reports that; f should then stop soon. A panic of f is an error of this session.
func (s *session) do(ctx context.Context, f func()) error {
	select {
	case s.sem <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("peer %s: busy: %w", s.key.Address, ctx.Err())
	}
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("peer %s: panic: %v\n%s", s.key.Address, r, debug.Stack())
				s.journal.failed(cause{reasonBroken, "internal error: report this: " + err.Error()})
			}
			<-s.sem
			done <- err
		}()
		f()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(grace):
		return fmt.Errorf("peer %s: busy: %w", s.key.Address, ctx.Err())
	}
}

// look brings the session where it should be: it replaces a server that failed, closes a
// session that was lost, opens it again when its time has come, and reads what the switch
// offered. It returns when to look again; 0 means not without cause.
func (s *session) look(ctx context.Context) time.Duration {
	select {
	case <-ctx.Done():
		return 0
	case <-s.server.dead:
		s.replaceServer(ctx)
	default:
	}
	lifetime, lost := s.journal.takeLoss()
	if up, _ := s.journal.established(); up {
		s.readOffer(ctx) // a loss that GoBGP has mended meanwhile is past help
		return 0
	}
	if lost {
		s.lose(ctx, lifetime)
	}
	if s.opened {
		s.probe()
	}
	if !s.whole || s.opened {
		return 0
	}
	if wait := time.Until(s.retryAt); wait > 0 {
		return wait
	}
	if !s.started {
		if err := s.start(ctx, s.paths()); err != nil {
			return s.slower()
		}
	}
	if err := s.open(ctx); err != nil {
		return s.slower()
	}
	return 0
}

// probe asks a switch that the connection does not come about with, when it is time, and waits for
// nothing. What it finds out is in the journal; it ends soon after the session does.
func (s *session) probe() {
	if p, due := s.journal.takeProbe(time.Now()); due {
		go func() { s.journal.probed(p, probe(s.ctx, p)) }()
	}
}

// lose closes the session, which is silent as nothing is connected, and sets when to open it.
func (s *session) lose(ctx context.Context, lifetime time.Duration) {
	s.remember(func() { s.offer = offer{} })
	if s.opened {
		_ = s.server.do(func() error { return s.server.close(ctx, s.peer) })
		s.opened = false
	}
	if lifetime < steady {
		s.slower()
	} else {
		s.hurry()
	}
}

// slower doubles the pause before the next attempt: 1 s, 2 s, ... maxBackoff.
func (s *session) slower() time.Duration {
	s.backoff = min(max(2*s.backoff, time.Second), maxBackoff)
	s.retryAt = time.Now().Add(s.backoff)
	return s.backoff
}

// hurry forgets the pause.
func (s *session) hurry() { s.backoff, s.retryAt = 0, time.Time{} }

func (s *session) open(ctx context.Context) error {
	err := s.server.do(func() error { return s.server.open(ctx, s.peer) })
	s.opened = err == nil
	if err != nil {
		s.journal.failed(cause{reasonBroken, fmt.Sprintf("the session cannot be begun: %v; restart the daemon if it stays so", err)})
	}
	return err
}

func (s *session) readOffer(ctx context.Context) {
	var o offer
	var r received
	err := s.server.do(func() (err error) {
		o, r, err = s.server.offer(ctx, s.peer)
		return err
	})
	if err == nil {
		s.received = r
		s.remember(func() { s.offer = o })
	}
}

// sooner is the shorter of two waits of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// replaceServer puts a new server in the place of one that panicked, yet to be started.
func (s *session) replaceServer(ctx context.Context) {
	old := s.server
	s.journal.restarted(s.peer, cause{reasonBroken, "the server of this session failed and was replaced: report this: " + old.why})
	s.journal.takeLoss()
	old.log.journal.Store(nil)
	_, _ = hangUp(netip.AddrPortFrom(s.peer.LocalAddress, 0), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
	go func() { _ = old.stop(ctx) }()
	s.server, s.started, s.opened = newServer(), false, false
	s.server.log.journal.Store(s.journal)
}

// start starts the server with just these paths in its RIB.
func (s *session) start(ctx context.Context, paths []Path) error {
	err := s.server.do(func() error {
		if err := s.server.start(ctx, s.peer); err != nil {
			return err
		}
		for _, p := range paths {
			if err := s.server.add(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
	s.started = err == nil
	return err
}
