package bgp

import (
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"math/rand/v2"
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
func (s *server) rib(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, family := range []*api.Family{ipv4, ipv6} {
		err := s.bgp.ListPath(t.Context(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family}, func(d *api.Destination) {
			out = append(out, fmt.Sprintf("%s %d", d.Prefix, len(d.Paths)))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

// After each order the RIB holds exactly the desired paths.
func TestOrdersConverge(t *testing.T) {
	session := newTalk(gob.NewEncoder(io.Discard))
	if err := session.begin(order{Session: Session{Peer: loopPeer().normal()}}); err != nil {
		t.Fatal(err)
	}
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
		if err := session.do(order{Session: Session{Paths: want}}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rib, session.server.rib(t)); diff != "" {
			t.Fatal(diff)
		}
		if steps := session.told.steps(want); len(steps) != 0 {
			t.Fatalf("still to do: %v", steps)
		}
	}
}

// A session is not opened if some of its paths are not in the RIB: its End-of-RIB would make the switch flush
// these paths.
func TestHalfATableOpensNothing(t *testing.T) {
	session := newTalk(gob.NewEncoder(io.Discard))
	half := append(pods(3), Path{Prefix: pfx("10.99.0.0/16")}) // without a next hop
	if err := session.begin(order{Session: Session{Peer: loopPeer().normal(), Paths: half}}); err == nil || session.trying {
		t.Errorf("dialled %v, error %v", session.trying, err)
	}
}

// The second of two equal Syncs changes nothing, and gives no order to a process.
func TestSyncTwice(t *testing.T) {
	s := newTestSpeaker(t)
	want := Session{Peer: loopPeer(), Paths: pods(3)}
	if changes := mustSync(t, s, want); len(changes) != 7 {
		t.Errorf("changes %v, want a peer and 6 paths", changes)
	}
	orders := s.all()[0].proc.number
	if changes := mustSync(t, s, want); len(changes) != 0 || s.all()[0].proc.number != orders {
		t.Errorf("second Sync: %v", changes)
	}
	becomes(t, s, "", reasonRefused)
}

// Whatever happens while sessions change, both switches end with the paths that were desired last. Nothing hangs,
// and nothing is left running.
func TestChaos(t *testing.T) {
	if testing.Short() || !alone(t) {
		return
	}
	l := newLAN(t)
	bird, frr := bothSwitches(l)
	s := l.speaker(t)
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
		sw := []*router{bird, frr}[random.IntN(2)]
		switch random.IntN(3) {
		case 0:
			l.cut(sw.addr4.String())
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
	mustSync(t, s, Session{Peer: peerOf(bird), Paths: all}, Session{Peer: peerOf(frr), Paths: all[100:]}) // another hold time: no pause
	bird.hears(all)
	frr.hears(all[100:])
	eventually(t, func() error {
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
	s := newTestSpeaker(b)
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
