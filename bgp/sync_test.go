package bgp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	api "github.com/osrg/gobgp/v3/api"
)

// loopPeer is a session with nobody, in the loopback network.
func loopPeer() Peer {
	p := goodPeer()
	p.Address, p.LocalAddress = addr("127.0.0.2"), addr("127.0.0.1")
	return p
}

// rib reads back what GoBGP would advertise.
func (s *session) rib(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, family := range []*api.Family{ipv4, ipv6} {
		err := s.server.bgp.ListPath(t.Context(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family}, func(d *api.Destination) {
			out = append(out, fmt.Sprintf("%s %d", d.Prefix, len(d.Paths)))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

// After any Sync the RIB holds what was wanted, and a second Sync changes nothing.
func TestSyncConverges(t *testing.T) {
	s := NewSpeaker(Options{})
	defer s.Stop()
	random := rand.New(rand.NewPCG(1, 2))
	all := pods(20)
	for range 50 {
		var want []Path
		var rib []string
		for _, p := range all {
			if random.IntN(2) == 0 {
				continue
			}
			if random.IntN(4) == 0 && p.Prefix.Addr().Is4() {
				p.NextHop = addr("10.0.0.250")
			}
			p.MED = random.Uint32N(3)
			want = append(want, p)
			rib = append(rib, fmt.Sprintf("%s 1", p.Prefix))
		}
		slices.Sort(rib)
		random.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
		mustSync(t, s, Session{Peer: loopPeer(), Paths: want})
		if diff := cmp.Diff(rib, s.all()[0].rib(t)); diff != "" {
			t.Fatal(diff)
		}
		if changes := mustSync(t, s, Session{Peer: loopPeer(), Paths: want}); len(changes) != 0 {
			t.Fatalf("second Sync: %v", changes)
		}
	}
}

// A session whose paths did not all get into the RIB is not opened: its End-of-RIB would make the
// switch flush the others.
func TestCancelledSyncOpensNothing(t *testing.T) {
	s := NewSpeaker(Options{})
	defer s.Stop()
	want := State{Sessions: []Session{{Peer: loopPeer(), Paths: pods(3)}}}
	ctx, cancel := context.WithCancel(t.Context())
	session := newSession(loopPeer().normal(), past{}, newServer(), func() {})
	s.sessions[session.key] = session
	var opened bool
	if err := session.do(t.Context(), func() {
		if err := session.start(ctx, nil); err != nil {
			t.Error(err)
		}
		cancel()
		session.syncPaths(ctx, want.Sessions[0].Paths)
		if err := session.openWhole(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		session.look(t.Context())
		opened = session.opened
	}); err != nil {
		t.Fatal(err)
	}
	if opened {
		t.Error("opened without its paths")
	}
	if changes, err := s.Sync(ctx, want); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Sync: %v, %v", changes, err)
	}
	if changes := mustSync(t, s, want.Sessions...); len(changes) != 6 {
		t.Errorf("changes %v, want 6 paths", changes)
	}
	becomes(t, s, 5*time.Second, "", reasonRefused)
}

// Whatever happens to sessions while they are changed, what was wanted last is what both switches
// end with, nothing hangs, and nothing is left running.
func TestChaos(t *testing.T) {
	l := newLAN(t)
	bird, frr := bothSwitches(t, l)
	s := newTestSpeaker(t)
	before := steadyGoroutines()
	random := rand.New(rand.NewPCG(3, 4))
	ctx, cancel := context.WithTimeout(t.Context(), chaos(t))
	defer cancel()
	var looks sync.WaitGroup
	looks.Go(func() {
		for ctx.Err() == nil {
			s.Status(ctx)
			runtime.Gosched()
		}
	})
	all := pods(200)
	for ctx.Err() == nil {
		switch sw := []*router{bird, frr}[random.IntN(2)]; random.IntN(3) {
		case 0:
			if _, err := hangUp(netip.AddrPortFrom(addr("10.0.0.10"), 0), netip.AddrPortFrom(sw.addr4, DefaultPort)); err != nil {
				t.Error(err)
			}
			for _, session := range s.all() {
				session.backoffNow(t)
			}
		default:
			var want State
			for _, sw := range []*router{bird, frr} {
				p := peerOf(sw)
				p.HoldTime = time.Duration(60+random.IntN(2)) * time.Second
				if random.IntN(8) > 0 {
					n := random.IntN(len(all))
					want.Sessions = append(want.Sessions, Session{Peer: p, Paths: all[n:]})
				}
			}
			if _, err := s.Sync(ctx, want); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
		select {
		case <-time.After(time.Duration(random.IntN(800)) * time.Millisecond): // chaos needs its time
		case <-ctx.Done():
		}
	}
	looks.Wait()
	mustSync(t, s, Session{Peer: peerOf(bird), Paths: all}, Session{Peer: peerOf(frr), Paths: all[100:]})
	for _, session := range s.all() {
		session.backoffNow(t)
	}
	bird.hears(30*time.Second, all)
	frr.hears(30*time.Second, all[100:])
	if s.mu.Lock(); len(s.idle) > 2 {
		t.Errorf("%d idle servers of at most 2 sessions", len(s.idle))
	}
	s.mu.Unlock()
	eventually(t, 15*time.Second, func() error {
		if n := steadyGoroutines(); n > before+30 {
			return fmt.Errorf("%d goroutines, were %d", n, before)
		}
		return nil
	})
}

// chaos is how long TestChaos goes on: EWBGP_CHAOS=2m, or 6 s.
func chaos(t *testing.T) time.Duration {
	text := os.Getenv("EWBGP_CHAOS")
	if text == "" {
		return 6 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func BenchmarkSyncUnchanged(b *testing.B) {
	s := NewSpeaker(Options{})
	defer s.Stop()
	want := State{Sessions: []Session{{Peer: loopPeer(), Paths: manyPaths()}}}
	if _, err := s.Sync(b.Context(), want); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if changes, err := s.Sync(b.Context(), want); err != nil || len(changes) != 0 {
			b.Fatal(changes, err)
		}
	}
}
