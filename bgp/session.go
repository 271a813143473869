package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

const (
	// hangUpTimeout bounds the wait for GoBGP to notice that its connection ended, which takes
	// it some milliseconds.
	hangUpTimeout = 2 * time.Second
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

	sem     chan struct{} // held by who works on what follows; mu too, to write what Status reads
	server  *server
	started bool // the server has a RIB
	opened  bool // the server has the peer
	backoff time.Duration

	mu    sync.Mutex // guards what Status reads
	peer  Peer
	told  map[netip.Prefix]Path // the server's RIB; nobody else writes there
	offer offer
}

func newSession(p Peer, server *server, changed func()) *session {
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
	}
	s.journal = newJournal(p, s.poke)
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
		var again time.Duration
		if err := s.do(s.ctx, func() { again = s.look(s.ctx) }); err != nil {
			again = time.Second
		}
		if again > 0 {
			retry.Reset(again)
		}
		if now := s.view(); now != seen {
			seen = now
			s.changed()
		}
	}
}

// view is what of a Status is worth a look: not each step of an attempt to connect.
type view struct {
	up    bool
	flaps int
	why   cause
	offer offer
}

func (s *session) view() view {
	s.mu.Lock()
	offer := s.offer
	s.mu.Unlock()
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return view{s.journal.state == bgp.BGP_FSM_ESTABLISHED, s.journal.flaps, s.journal.last, offer}
}

// do runs f as the only one who works on the session. When ctx ends before f does, f goes on
// alone and do reports that; f should then stop soon.
func (s *session) do(ctx context.Context, f func()) error {
	select {
	case s.sem <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("peer %s: busy: %w", s.key.Address, ctx.Err())
	}
	done := make(chan struct{})
	go func() {
		defer func() { <-s.sem; close(done) }()
		f()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-done:
		return nil
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
		if err := s.replaceServer(ctx); err != nil {
			return s.slower()
		}
		return 0
	default:
	}
	if lifetime, lost := s.journal.takeLoss(); lost {
		s.mu.Lock()
		s.offer = offer{}
		s.mu.Unlock()
		if s.opened {
			_ = s.server.do(func() error { return s.server.close(ctx, s.peer) })
			s.opened = false
		}
		if lifetime < steady {
			return s.slower()
		}
		s.backoff = 0
	}
	if s.started && !s.opened {
		if err := s.open(ctx); err != nil {
			return s.slower()
		}
	}
	if up, _ := s.journal.established(); up {
		s.readOffer(ctx)
	}
	return 0
}

// slower doubles the pause before the next attempt: 1 s, 2 s, ... maxBackoff.
func (s *session) slower() time.Duration {
	s.backoff = min(max(2*s.backoff, time.Second), maxBackoff)
	return s.backoff
}

func (s *session) open(ctx context.Context) error {
	err := s.server.do(func() error { return s.server.open(ctx, s.peer) })
	s.opened = err == nil
	return err
}

func (s *session) readOffer(ctx context.Context) {
	var o offer
	err := s.server.do(func() (err error) {
		o, err = s.server.offer(ctx, s.peer)
		return err
	})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offer = o
}

// replaceServer puts a new server in the place of one that panicked, with the same paths.
func (s *session) replaceServer(ctx context.Context) error {
	old := s.server
	s.journal.restarted(s.peer, cause{reasonBroken, "the server of this session failed and was replaced: report this: " + old.why})
	s.journal.takeLoss()
	old.log.journal.Store(nil)
	_, _ = hangUp(netip.AddrPortFrom(s.peer.LocalAddress, 0), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
	go func() { _ = old.stop(ctx) }()
	s.server, s.started, s.opened = newServer(), false, false
	s.server.log.journal.Store(s.journal)
	if err := s.start(ctx, s.paths()); err != nil {
		return err
	}
	return s.open(ctx)
}

// start starts the server with paths in its RIB.
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

// begin starts a new session: all paths, then the peer, so that the first UPDATEs are complete
// and the End-of-RIB after them flushes nothing that is still wanted.
func (s *session) begin(ctx context.Context, want Session) []Change {
	change := Change{Op: "add", Object: s.peer.object()}
	if change.Err = s.start(ctx, nil); change.Err != nil {
		return []Change{change}
	}
	changes := s.syncPaths(ctx, want.Paths)
	if change.Err = s.open(ctx); change.Err != nil {
		s.poke()
	}
	return append([]Change{change}, changes...)
}

// sync makes the session what want says.
func (s *session) sync(ctx context.Context, want Session) []Change {
	if !s.started {
		return s.begin(ctx, want)
	}
	peer := want.Peer.normal()
	why := s.peer.differs(peer)
	if why == "" {
		s.mu.Lock()
		s.peer.Name = peer.Name
		s.mu.Unlock()
		return s.syncPaths(ctx, want.Paths)
	}
	return s.reset(ctx, Session{Peer: peer, Paths: want.Paths}, why)
}

// syncPaths makes the RIB hold want: what is new is added, what has another next hop replaced
// without a withdrawal (RFC 4271, section 3.1), what is gone withdrawn last.
func (s *session) syncPaths(ctx context.Context, want []Path) []Change {
	var changes []Change
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, p := range slices.SortedFunc(slices.Values(want), Path.Compare) {
		p.NextHop = p.NextHop.Unmap()
		wanted[p.Prefix] = true
		was, ok := s.told[p.Prefix]
		if was == p {
			continue
		}
		c := Change{Op: "add", Object: s.pathObject(p)}
		if ok {
			c.Op, c.Why = "replace", "was "+strings.TrimPrefix(was.String(), p.Prefix.String()+" ")
		}
		if c.Err = s.tell(ctx, p, s.server.add); c.Err == nil {
			s.remember(func() { s.told[p.Prefix] = p })
		}
		changes = append(changes, c)
	}
	for _, p := range s.paths() {
		if wanted[p.Prefix] {
			continue
		}
		c := Change{Op: "delete", Object: s.pathObject(p)}
		if c.Err = s.tell(ctx, p, s.server.remove); c.Err == nil {
			s.remember(func() { delete(s.told, p.Prefix) })
		}
		changes = append(changes, c)
	}
	return changes
}

func (s *session) tell(ctx context.Context, p Path, f func(context.Context, Path) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.server.do(func() error { return f(ctx, p) })
}

func (s *session) remember(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// reset starts the session anew as want says, because of why. The switch sees the connection end
// without a Cease, so that with graceful restart it keeps the routes until the new session is up.
func (s *session) reset(ctx context.Context, want Session, why string) []Change {
	change := Change{Op: "reset", Object: want.Peer.object(), Why: why}
	if err := s.silence(ctx); err != nil {
		change.Why += ", with a Cease: " + err.Error()
	}
	if s.opened {
		if change.Err = s.server.do(func() error { return s.server.close(ctx, s.peer) }); change.Err != nil {
			return []Change{change}
		}
		s.opened = false
	}
	rename := s.peer.RouterID != want.Peer.RouterID
	s.remember(func() { s.peer, s.offer = want.Peer, offer{} })
	s.journal.restarted(want.Peer, cause{reasonReset, "begun anew: " + why})
	s.journal.takeLoss()
	s.backoff = 0
	if rename {
		s.started = false
		err := s.server.do(func() error { return s.server.stop(ctx) })
		if err = errors.Join(err, s.start(ctx, nil)); err != nil {
			change.Err = err
			return []Change{change}
		}
		s.remember(func() { clear(s.told) })
	}
	changes := s.syncPaths(ctx, want.Paths)
	if rename {
		changes = nil // they are the reset itself
	}
	if change.Err = s.open(ctx); change.Err != nil {
		s.poke()
	}
	return append([]Change{change}, changes...)
}

// silence ends the TCP connection to the switch, if there is one, without a Cease. It returns
// when GoBGP has noticed; then a close is silent too.
func (s *session) silence(ctx context.Context) error {
	if !s.opened {
		return nil
	}
	var port uint16
	err := s.server.do(func() (err error) {
		port, err = s.server.localPort(ctx, s.peer)
		return err
	})
	if err != nil {
		return err
	}
	up, down := s.journal.established()
	if port == 0 && !up {
		return nil
	}
	n, err := hangUp(netip.AddrPortFrom(s.peer.LocalAddress, port), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
	if err != nil {
		return err
	}
	if n == 0 && up {
		return errors.New("its socket is not to be found")
	}
	select {
	case <-down:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(hangUpTimeout):
		return errors.New("the session does not end")
	}
}

// end withdraws everything and sends a Cease, so that the switch drops the routes at once. It
// reports whether the server can be used again.
func (s *session) end(ctx context.Context) (reusable bool, err error) {
	s.quit()
	<-s.done
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	err = s.do(ctx, func() {
		err := s.server.do(func() error {
			return errors.Join(s.server.removeAll(ctx), s.server.stop(ctx))
		})
		reusable = err == nil
	})
	if err != nil {
		// It does not read: what is left of the session goes with its connection.
		_, _ = hangUp(netip.AddrPortFrom(s.peer.LocalAddress, 0), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
		return false, err
	}
	return reusable, nil
}

// leave ends the session without a Cease. If that cannot be done, the session is left to the
// end of the process.
func (s *session) leave(ctx context.Context) {
	s.quit()
	<-s.done
	_ = s.do(ctx, func() {
		if err := s.silence(ctx); err != nil {
			return
		}
		_ = s.server.do(func() error { return s.server.stop(ctx) })
	})
}

// paths returns what the RIB holds, sorted.
func (s *session) paths() []Path {
	s.mu.Lock()
	paths := make([]Path, 0, len(s.told))
	for _, p := range s.told {
		paths = append(paths, p)
	}
	s.mu.Unlock()
	slices.SortFunc(paths, Path.Compare)
	return paths
}

func (s *session) status() Status {
	s.mu.Lock()
	peer, offer := s.peer, s.offer
	s.mu.Unlock()
	j := s.journal
	j.mu.Lock()
	st := Status{Peer: peer, State: stateName(j.state), Since: j.since, Flaps: j.flaps, Reason: j.last.reason, Detail: j.last.detail}
	up := j.state == bgp.BGP_FSM_ESTABLISHED
	j.mu.Unlock()
	if !up {
		return st
	}
	var untold [2]int
	for _, p := range s.paths() {
		switch {
		case offer.takes(p.Prefix):
			st.Advertised = append(st.Advertised, p)
		case p.Prefix.Addr().Is4():
			untold[0]++
		default:
			untold[1]++
		}
	}
	st.Restart = peer.RestartTime > 0 && offer.restart
	if st.Restart {
		st.RestartTime = peer.RestartTime
	}
	if offer.known {
		st.Detail = shortcomings(peer, offer, untold)
	}
	return st
}

// shortcomings says what an established session lacks.
func shortcomings(p Peer, o offer, untold [2]int) string {
	var out []string
	for i, family := range []string{"IPv4", "IPv6"} {
		if untold[i] > 0 {
			out = append(out, fmt.Sprintf("%d %s paths are not told: activate %s unicast for this neighbour on the switch", untold[i], family, family))
		}
	}
	if p.RestartTime > 0 && !o.restart {
		out = append(out, "the switch drops the paths when this daemon restarts: enable graceful restart for this neighbour there")
	}
	return strings.Join(out, "; ")
}

func (s *session) pathObject(p Path) string {
	return fmt.Sprintf("path %s to %s", p, s.peer.endpoint())
}

func (p Peer) object() string { return fmt.Sprintf("peer %s as %d", p.endpoint(), p.ASN) }

// differs says which settings of q need a new session; "" if none does.
func (p Peer) differs(q Peer) string {
	var out []string
	diff := func(what string, a, b any) {
		if a != b {
			out = append(out, fmt.Sprintf("%s %v, was %v", what, b, a))
		}
	}
	diff("as", p.ASN, q.ASN)
	diff("source address", p.LocalAddress, q.LocalAddress)
	diff("router ID", p.RouterID, q.RouterID)
	if p.Password != q.Password {
		out = append(out, "another password")
	}
	diff("hold time", p.HoldTime, q.HoldTime)
	diff("restart time", p.RestartTime, q.RestartTime)
	diff("multihop TTL", p.MultihopTTL, q.MultihopTTL)
	diff("TTL security", p.TTLSecurity, q.TTLSecurity)
	return strings.Join(out, ", ")
}
