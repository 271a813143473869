package bgp

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// One file that is saved with a mistake reaches all speakers of a LAN at once. None of them loses a
// route for it, and each says what is wrong.
func TestNewSettingsThatFailAreTakenBack(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		ip(t, "addr add 10.0.0.20/24 dev eth0")
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
			speakers[i] = startProcess(t, good[i])
		}
		now = good
		// until Syncs as the daemon does, again and again.
		until := func(t *testing.T, d time.Duration, f func(Status) error) {
			t.Helper()
			eventually(t, d, func() error {
				var errs []error
				for i, s := range speakers {
					r := s.sync(now[i])
					if r.Err != "" {
						t.Fatal(r.Err)
					}
					for _, st := range r.Status {
						errs = append(errs, f(st))
					}
				}
				time.Sleep(100 * time.Millisecond) // between two looks
				return errors.Join(errs...)
			})
		}
		established := func(st Status) error {
			if st.State != "Established" {
				return fmt.Errorf("%+v", st)
			}
			return nil
		}
		until(t, 20*time.Second, established)
		sw.hears(20*time.Second, manyPaths())
		sw.settled()
		w := sw.watch()
		for _, tt := range []struct {
			name, reason string
			change       func(*Peer)
		}{
			{"AS number of the switch", reasonASNMismatch, func(p *Peer) { p.ASN = 64999 }},
			{"our AS number", reasonASNMismatch, func(p *Peer) { p.LocalASN = 64999 }},
			{"password", reasonTimeout, func(p *Peer) { p.Password = "wrong" }},
			{"address of the switch", "", func(p *Peer) { p.Address = addr("10.0.0.77") }},
			{"none: a shorter hold time", "", func(p *Peer) { p.HoldTime = 60 * time.Second }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				for i := range now {
					tt.change(&now[i].Peer)
				}
				begun := time.Now()
				until(t, 60*time.Second, func(st Status) error {
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
				t.Logf("%s: after %v: %+v", sw.kind, time.Since(begun), speakers[0].report().Status[0].Refused)
				w.t = t
				if tt.name == "our AS number" && sw.kind == "bird" { // it drops the paths when it refuses an OPEN
					sw.hears(20*time.Second, manyPaths())
					w.n.Store(0)
				}
				sw.settled()
				w.still(tt.name)
				if err := sw.compare(manyPaths()); err != nil {
					t.Error(err)
				}
				now = good
				until(t, 20*time.Second, func(st Status) error {
					if !st.Refused.At.IsZero() {
						return fmt.Errorf("%+v", st)
					}
					return established(st)
				})
				sw.settled()
				w.still("back from " + tt.name)
			})
		}
		for _, s := range speakers {
			s.end(syscall.SIGTERM)
		}
	})
}
