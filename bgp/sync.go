package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// begin starts a new session: all paths, then the peer, so that the first UPDATEs are complete
// and the End-of-RIB after them flushes nothing that is still wanted.
func (s *session) begin(ctx context.Context, want Session) []Change {
	s.remember(func() {
		s.peer = want.Peer.normal()
		clear(s.told)
	})
	s.listen(want.Learn)
	change := Change{Op: "add", Object: s.peer.object()}
	if change.Err = s.start(ctx, nil); change.Err != nil {
		return []Change{change}
	}
	changes := s.syncPaths(ctx, want.Paths)
	change.Err = s.openWhole(ctx)
	return append([]Change{change}, changes...)
}

// openWhole opens the session unless ctx ended before all its paths were in the RIB; then the
// next Sync does.
func (s *session) openWhole(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		s.whole = false
		return err
	}
	s.whole = true
	err := s.open(ctx)
	if err != nil {
		s.poke()
	}
	return err
}

// sync makes the session what want says.
func (s *session) sync(ctx context.Context, want Session) []Change {
	if !s.started {
		return s.begin(ctx, want)
	}
	s.listen(want.Learn)
	peer := want.Peer.normal()
	why := s.peer.differs(peer)
	if why == "" {
		s.remember(func() { s.peer.Name = peer.Name })
		changes := s.syncPaths(ctx, want.Paths)
		if !s.whole && ctx.Err() == nil {
			s.whole = true
			s.poke()
		}
		return changes
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
	if err := s.silence(ctx); ctx.Err() != nil {
		change.Err = ctx.Err()
		return []Change{change}
	} else if err != nil {
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
	s.hurry()
	if rename {
		s.started, s.whole = false, false
		s.remember(func() { clear(s.told) })
		err := s.server.do(func() error { return s.server.stop(ctx) })
		if change.Err = errors.Join(err, s.start(ctx, nil)); change.Err != nil {
			return []Change{change}
		}
	}
	changes := s.syncPaths(ctx, want.Paths)
	if rename {
		changes = nil // they are the reset itself
	}
	change.Err = s.openWhole(ctx)
	return append([]Change{change}, changes...)
}

// farewell tells the switch that we leave, and why, and ends the connection. It returns when GoBGP
// has noticed; then its own end is silent.
func (s *session) farewell(ctx context.Context, why string) error {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	if up, _ := s.journal.established(); !up {
		return nil
	}
	if !s.offer.known { // a plain Cease makes no switch of RFC 8538 drop the paths
		if s.readOffer(ctx); !s.offer.known {
			return errors.New("what the switch supports is not known")
		}
	}
	message, err := shutdownMessage(why, s.peer.RestartTime > 0 && s.offer.notification)
	if err != nil {
		return err
	}
	return s.hangUp(ctx, func(local, remote netip.AddrPort) (int, error) { return sayLast(ctx, local, remote, message) })
}

// silence ends the TCP connection to the switch, if there is one, without a Cease. It returns
// when GoBGP has noticed; then a close is silent too.
func (s *session) silence(ctx context.Context) error { return s.hangUp(ctx, hangUp) }

// hangUp ends the session's connection, if there is one, by end, and waits for GoBGP to notice.
func (s *session) hangUp(ctx context.Context, end func(local, remote netip.AddrPort) (int, error)) error {
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
	n, err := end(netip.AddrPortFrom(s.peer.LocalAddress, port), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
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

// end sends a Cease that says why, so that the switch drops the routes at once. It reports whether
// the server can be used again.
func (s *session) end(ctx context.Context, why string) (reusable bool, err error) {
	s.quit()
	<-s.done
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	stopped := make(chan error, 1)
	err = s.do(ctx, func() {
		// Where that is not possible, GoBGP withdraws and sends a Cease of its own, without a word.
		_ = s.farewell(ctx, why)
		stopped <- s.server.do(func() error {
			return errors.Join(s.server.removeAll(ctx), s.server.stop(ctx))
		})
	})
	if err != nil {
		// It does not read: what is left of the session goes with its connection.
		_, _ = hangUp(netip.AddrPortFrom(s.peer.LocalAddress, 0), netip.AddrPortFrom(s.peer.Address, s.peer.Port))
		return false, err
	}
	err = <-stopped
	return err == nil, err
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
	diff("long-lived time", p.LongLivedTime, q.LongLivedTime)
	diff("multihop TTL", p.MultihopTTL, q.MultihopTTL)
	diff("TTL security", p.TTLSecurity, q.TTLSecurity)
	return strings.Join(out, ", ")
}
