package bgp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// edit is a change of a resource that reaches all speakers of a LAN at once.
type edit struct {
	name, reason string
	change       func(*Peer)
}

// One file that is saved with a mistake costs no speaker of the LAN a route, and each says what is wrong.
func TestNewSettingsThatFailAreTakenBack(t *testing.T) {
	confirmed(t,
		edit{"AS number of the switch", reasonASNMismatch, func(p *Peer) { p.ASN = 64999 }},
		edit{"our AS number", reasonASNMismatch, func(p *Peer) { p.LocalASN = 64999 }},
		edit{"none: a shorter hold time", "", func(p *Peer) { p.HoldTime = 60 * time.Second }})
}

func TestNewSettingsWithoutAnAnswerAreTakenBack(t *testing.T) {
	confirmed(t,
		edit{"password", reasonTimeout, func(p *Peer) { p.Password = "wrong" }},
		edit{"address of the switch", "", func(p *Peer) { p.Address = addr("10.0.0.77") }})
}

func confirmed(t *testing.T, edits ...edit) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		l.ip("addr add 10.0.0.20/24 dev eth0")
		c := nodeOf(sw)
		c.neighbours[0].password = "s3cret"
		c.neighbours = append(c.neighbours, c.neighbours[0])
		c.neighbours[1].addr = "10.0.0.20"
		sw.start(c)
		var good, now [2]Session
		var speakers [2]*daemon
		for i, local := range []string{"10.0.0.10", "10.0.0.20"} {
			good[i] = Session{Peer: peerOf(sw), Paths: manyPaths()}
			p := &good[i].Peer
			p.LocalAddress, p.RouterID, p.Password, p.RestartTime = addr(local), addr(local), "s3cret", 80*time.Second
			speakers[i] = l.start(t, good[i])
		}
		now = good
		until := func(t *testing.T, f func(Status) error) {
			t.Helper()
			eventually(t, func() error {
				var errs []error
				for _, s := range speakers {
					for _, st := range s.report().Status {
						errs = append(errs, f(st))
					}
				}
				return errors.Join(errs...)
			})
		}
		apply := func(t *testing.T) {
			t.Helper()
			for i, s := range speakers {
				if r := s.sync(now[i]); r.Err != "" {
					t.Fatal(r.Err)
				}
			}
		}
		established := func(st Status) error {
			if st.State != "Established" {
				return fmt.Errorf("%+v", st)
			}
			return nil
		}
		until(t, established)
		sw.hears(manyPaths())
		sw.settled()
		w := sw.watch()
		for _, tt := range edits {
			t.Run(tt.name, func(t *testing.T) {
				for i := range now {
					tt.change(&now[i].Peer)
				}
				begun := time.Now()
				apply(t)
				until(t, func(st Status) error {
					if tt.reason != "" && st.Refused.Reason != tt.reason {
						return fmt.Errorf("%+v", st)
					}
					if tt.reason == "" && time.Since(begun) < 5*time.Second { // it is tried
						return errors.New("too early")
					}
					if now[0].Peer.Address != good[0].Peer.Address {
						return nil
					}
					return established(st)
				})
				for _, s := range speakers {
					refused := s.report().Status[0].Refused
					t.Logf("%s: %+v", sw.kind, refused)
					switch tt.reason {
					case reasonASNMismatch: // at once, not when the trial is over
						if took := refused.At.Sub(begun); took >= leastTrial {
							t.Errorf("taken back after %v", took)
						}
					case reasonTimeout:
						promised(t, sw.kind+": taken back", begun, refused.At, leastTrial, leastTrial)
					}
				}
				if tt.name == "our AS number" && sw.kind == "bird" { // it drops the paths when it refuses an OPEN
					sw.hears(manyPaths())
					w.events(t)
				}
				sw.settled()
				w.still(t, tt.name)
				if err := sw.compare(manyPaths()); err != nil {
					t.Error(err)
				}
				now = good
				apply(t)
				until(t, func(st Status) error {
					if !st.Refused.At.IsZero() {
						return fmt.Errorf("%+v", st)
					}
					return established(st)
				})
				sw.settled()
				w.still(t, "back from "+tt.name)
			})
		}
		for _, s := range speakers {
			s.end(syscall.SIGTERM)
		}
	})
}

// A trial is over in time, in whatever state the session stays.
func TestTrialIsOverInTime(t *testing.T) {
	for _, state := range []string{"", stateIdle, stateConnect, stateActive, stateOpenSent, stateOpenConfirm} {
		good := Session{Peer: goodPeer().normal()}
		s, now := newSession(good, Status{}, func() {}), time.Now()
		s.proc, s.last = &process{}, answer{Status: Status{State: stateEstablished}}
		if why := s.decide(now); why != "" {
			t.Errorf("a session that works is restarted: %s", why)
		}
		s.want.Peer.ASN = 64999
		why := s.decide(now)
		if why != "as 64999, was 65002" {
			t.Errorf("got %q", why)
		}
		s.ended(reasonReset, "restarted: "+why, why)
		s.proc, s.last = &process{}, answer{Status: Status{State: state, Reason: reasonConnecting}}
		if why := s.decide(now.Add(leastTrial - time.Second)); why != "" {
			t.Errorf("%q: over too early: %s", state, why)
		}
		if why := s.decide(now.Add(leastTrial)); !strings.Contains(why, "back to the earlier ones") || s.terms != good.Peer {
			t.Errorf("%q: not over: %q, %+v", state, why, s.terms)
		}
		if st := s.status(); st.Refused.Reason != reasonHoldTimer || st.Refused.Detail != "as 64999, was 65002: the switch did not answer within 20s: check that BGP runs there and knows this node" {
			t.Errorf("%q: %+v", state, st.Refused)
		}
	}
}

// A switch that takes the connection of new settings and says nothing does not keep a session down.
func TestSwitchThatSaysNothingToNewSettings(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a trial")
	}
	t.Parallel()
	var p Peer
	ready := make(chan struct{})
	var silent atomic.Bool
	i := newImposter(t, func(c net.Conn) {
		<-ready
		if !silent.Load() {
			greet(c, p)
		}
		_, _ = io.Copy(io.Discard, c)
	})
	p = i.peer()
	close(ready)
	s := newTestSpeaker(t)
	mustSync(t, s, Session{Peer: p})
	becomes(t, s, stateEstablished, "")
	silent.Store(true)
	now := p
	now.ASN = 64999
	eventually(t, func() error {
		mustSync(t, s, Session{Peer: now})
		if st := s.Status(t.Context())[0]; st.Refused.Reason != reasonHoldTimer {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	silent.Store(false)
	eventually(t, func() error {
		mustSync(t, s, Session{Peer: now})
		if st := s.Status(t.Context())[0]; st.State != stateEstablished || st.Refused.At.IsZero() {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// A second mistake, saved while the session is on its way back from the first, is a trial, too: the settings
// that worked are not forgotten.
func TestSecondMistakeLosesWhatWorked(t *testing.T) {
	good := Session{Peer: goodPeer().normal()}
	speaker, now := newTestSpeaker(t), time.Now()
	s := newSession(good, Status{}, func() {})
	speaker.sessions[s.key] = s
	s.proc, s.last = &process{}, answer{Status: Status{State: stateEstablished}}
	s.want.Peer.ASN = 64999
	s.ended(reasonReset, "", s.decide(now))
	s.proc, s.last = &process{}, answer{Status: Status{State: stateIdle, Reason: reasonASNMismatch}, Sure: true}
	s.ended(reasonReset, "", s.decide(now)) // back to the earlier settings, and not yet Established
	if s.terms != good.Peer {
		t.Fatalf("%+v", s.terms)
	}
	second := good
	second.Peer.LocalASN = 64998
	next, ok := speaker.successor(s, []Session{second})
	if !ok || next.Peer.LocalASN != 64998 {
		t.Fatalf("the session is ended: %v, %+v", ok, next)
	}
	speaker.rename(s, next.Peer.Key())
	one, _ := speaker.expect(next)
	if one != s || one.terms.LocalASN != 64998 || one.good != good.Peer || one.trial.IsZero() {
		t.Errorf("not a trial: %+v", one)
	}
	delete(speaker.sessions, s.key) // it has no process to stop
}
