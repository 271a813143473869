package bgp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// many is how many routes it takes to see a broken restart: switches batch a flush of a few away.
const many = 5000

func manyPaths() []Path {
	var out []Path
	for i := range many {
		out = append(out, Path{Prefix: pfx(fmt.Sprintf("10.%d.%d.0/24", 100+i/250, i%250)), NextHop: addr(fmt.Sprintf("10.0.0.%d", 11+i%5))})
	}
	return out
}

// peerASN of the session with BIRD and FRR in one speaker: 65000 both.
func bothSwitches(t *testing.T, l *lan) (bird, frr *router) {
	c := swconf{asn: 65000, neighbours: []neighbour{{addr: "10.0.0.10", asn: 65001}}}
	return l.router("bird", 1).start(c), l.router("frr", 2).start(c)
}

func TestGracefulRestart(t *testing.T) {
	l := newLAN(t)
	bird, frr := bothSwitches(t, l)
	want := []Session{{Peer: peerOf(bird), Paths: manyPaths()}, {Peer: peerOf(frr), Paths: manyPaths()}}
	begin := func(sessions ...Session) *daemon { return startProcess(t, sessions...) } // outlives a subtest
	p := begin(want...)
	bird.hears(20*time.Second, manyPaths())
	frr.hears(20*time.Second, manyPaths())
	watches := []*watch{bird.watch(), frr.watch()}
	still := func(t *testing.T, what string) {
		t.Helper()
		bird.settled()
		frr.settled()
		for _, w := range watches {
			w.t = t
			w.still(what)
			w.n.Store(0)
			if err := w.r.compare(manyPaths()); err != nil {
				t.Error(err)
			}
		}
	}
	restart := func(sig syscall.Signal) {
		p.end(sig)
		p = begin(want...)
		p.established(20*time.Second, 2)
	}
	t.Run("killed", func(t *testing.T) {
		restart(syscall.SIGKILL)
		still(t, "after kill -9")
	})
	t.Run("stopped", func(t *testing.T) {
		restart(syscall.SIGTERM)
		still(t, "after SIGTERM")
	})
	t.Run("twice in a row", func(t *testing.T) {
		p.end(syscall.SIGKILL)
		p = begin(want...) // killed again before its sessions are up
		restart(syscall.SIGKILL)
		bird.settled() // a switch flushes what is still stale at the next loss (RFC 4724, section 4.2)
		frr.settled()
		restart(syscall.SIGKILL)
		still(t, "after three restarts in a row")
	})
	t.Run("connection cut", func(t *testing.T) {
		for range 2 {
			bird.settled()
			frr.settled()
			run(t, "ss", "-K", "dst", bird.addr4.String())
			run(t, "ss", "-K", "dst", frr.addr4.String())
			p.flapped(10 * time.Second)
			if r := p.established(30*time.Second, 2).Status[0].LastReset; r.Reason != reasonConnectionLost {
				t.Errorf("%+v", r)
			}
		}
		still(t, "after two TCP resets")
	})
	t.Run("link down", func(t *testing.T) {
		ip(t, "-n lan link set node down")
		time.Sleep(2 * time.Second) // the fault itself
		ip(t, "-n lan link set node up")
		p.established(30*time.Second, 2)
		still(t, "after a short link loss")
	})
	t.Run("power cut", func(t *testing.T) {
		// The switch hears no FIN and no RST: a new connection comes while its session is up.
		ip(t, "-n lan link set node down")
		p.end(syscall.SIGKILL)
		run(t, "ss", "-K", "dst", "10.0.0.0/24")
		ip(t, "-n lan link set node up")
		p = begin(want...)
		p.established(30*time.Second, 2)
		still(t, "after a power cut")
	})
	t.Run("settings changed", func(t *testing.T) {
		changed := []Session{want[0], want[1]}
		changed[0].Peer.HoldTime, changed[1].Peer.HoldTime = 60*time.Second, 60*time.Second
		r := p.sync(changed...)
		if r.Err != "" || len(r.Changes) != 2 {
			t.Errorf("err %q, changes %q, want two resets", r.Err, r.Changes)
		}
		if r := p.established(20*time.Second, 2).Status[0].LastReset; r.Reason != reasonReset || !strings.Contains(r.Detail, "hold time 1m0s") {
			t.Errorf("%+v", r)
		}
		still(t, "after a reset for a new hold time")
		for i := range changed {
			changed[i].Peer.RouterID = addr("10.0.0.110")
		}
		p.sync(changed...)
		p.established(20*time.Second, 2)
		still(t, "after a reset for a new router ID")
		p.sync(want...)
		p.established(20*time.Second, 2)
		still(t, "after a reset back")
	})
	t.Run("changed while down", func(t *testing.T) {
		moved := manyPaths()
		moved[7].NextHop = addr("10.0.0.99")
		moved = moved[:many-1]
		p.end(syscall.SIGKILL)
		p = begin(Session{Peer: want[0].Peer, Paths: moved}, Session{Peer: want[1].Peer, Paths: moved})
		p.established(20*time.Second, 2)
		for _, w := range watches {
			w.r.hears(20*time.Second, moved)
			w.r.settled()
			w.sync()
			if n := w.n.Load(); n == 0 || n > 4 {
				t.Errorf("%s: %d route events for 2 changes; last: %s", w.r.kind, n, *w.last.Load())
			}
		}
	})
}

// A switch that nobody told of graceful restart: both help a restarting neighbour by default.
func TestGracefulRestartWithDefaults(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		c.defaultRestart = true
		sw.start(c)
		want := Session{Peer: peerOf(sw), Paths: pods(many / 2)}
		p := startProcess(t, want)
		sw.hears(20*time.Second, want.Paths)
		sw.settled()
		w := sw.watch()
		p.end(syscall.SIGKILL)
		p = startProcess(t, want)
		p.established(20*time.Second, 1)
		sw.settled()
		w.still("after kill -9")
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		p.end(syscall.SIGTERM)
	})
}

// While one speaker is away and the switch keeps its paths, what another one has seen change
// since must win: a pod CIDR that has another owner, at once, not when the restart time ends.
func TestChangeWinsOverStalePath(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		ip(t, "addr add 10.0.0.20/24 dev eth0")
		c := nodeOf(sw)
		c.neighbours = append(c.neighbours, neighbour{addr: "10.0.0.20", asn: 65001})
		sw.start(c)
		began := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
		paths := manyPaths()
		for i := range paths {
			paths[i].MED = Freshness(began)
		}
		away, live := peerOf(sw), peerOf(sw)
		live.LocalAddress, live.RouterID = addr("10.0.0.20"), addr("10.0.0.20")
		p := startProcess(t, Session{Peer: away, Paths: paths})
		sw.hears(20*time.Second, paths)
		q := startProcess(t, Session{Peer: live, Paths: paths})
		q.established(20*time.Second, 1)
		w := sw.watch()
		sw.settled()
		p.end(syscall.SIGKILL)

		moved := slices.Clone(paths)
		moved[7].NextHop, moved[7].MED = addr("10.0.0.99"), Freshness(began.Add(time.Second))
		begun := time.Now()
		q.sync(Session{Peer: live, Paths: moved})
		sw.hears(5*time.Second, moved)
		t.Logf("%s: heard after %v", sw.kind, time.Since(begun))

		// The speaker returns with its old knowledge, then learns the news.
		p = startProcess(t, Session{Peer: away, Paths: paths})
		p.established(20*time.Second, 1)
		sw.settled()
		if err := sw.compare(moved); err != nil {
			t.Error(err)
		}
		p.sync(Session{Peer: away, Paths: moved})
		sw.hears(5*time.Second, moved)
		w.sync()
		if n := w.n.Load(); n > 4 {
			t.Errorf("%d route events for one change; last: %s", n, *w.last.Load())
		}
		// Fresher knowledge of the same next hops is no event.
		w.n.Store(0)
		for i := range moved {
			moved[i].MED = Freshness(began.Add(time.Hour))
		}
		p.sync(Session{Peer: away, Paths: moved})
		q.sync(Session{Peer: live, Paths: moved})
		last := moved[len(moved)-1]
		eventually(t, 20*time.Second, func() error {
			command := "show route all for " + last.Prefix.String()
			if sw.kind == "frr" {
				command = "show bgp ipv4 unicast " + last.Prefix.String()
			}
			if out := sw.ask(command); strings.Count(out, fmt.Sprint(last.MED)) < 2 {
				return errors.New(out)
			}
			return nil
		})
		w.still("after 5000 new MEDs")
	})
}

// After the restart time a switch that knows RFC 9494 keeps the paths as a last resort: a speaker that
// is away much longer than the restart time costs no route, and its return neither.
func TestLongLivedGracefulRestart(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		if sw.kind == "frr" {
			c.extra = " bgp long-lived-graceful-restart stale-time 3600\n"
		}
		sw.start(c)
		want := Session{Peer: peerOf(sw), Paths: manyPaths()}
		want.Peer.RestartTime, want.Peer.LongLivedTime = 3*time.Second, 20*time.Second
		p := startProcess(t, want)
		sw.hears(20*time.Second, want.Paths)
		sw.settled()
		if st := p.established(5*time.Second, 1).Status[0]; st.LongLived != 20*time.Second || len(st.Lacks) != 0 {
			t.Errorf("not negotiated: %+v", st)
		}
		w := sw.watch()
		p.end(syscall.SIGKILL)
		died := time.Now()
		marked := func() error { // with LLGR_STALE
			command, mark := "show route count where (65535, 6) ~ bgp_community", fmt.Sprintf("%d of ", many)
			if sw.kind == "frr" {
				command, mark = "show bgp ipv4 unicast "+want.Paths[many-1].Prefix.String(), "llgr-stale"
			}
			if out := sw.ask(command); !strings.Contains(out, mark) {
				return errors.New(out)
			}
			return nil
		}
		eventually(t, 15*time.Second, marked)
		for time.Since(died) < 12*time.Second { // four times the restart time
			if err := sw.compare(want.Paths); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // between two looks
		}
		if err := marked(); err != nil {
			t.Error(err)
		}
		p = startProcess(t, want)
		p.established(10*time.Second, 1)
		sw.settled()
		w.still("after a return from the dead")
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		// Not for ever.
		p.end(syscall.SIGKILL)
		sw.hears(60*time.Second, nil)
		t.Logf("%s: gone after %v", sw.kind, time.Since(died))
	})
}

// What a dead speaker told stays on the switch even where the living have withdrawn it. With long-lived
// graceful restart a speaker marks its own prefix: it goes when the restart time is over, unless
// another speaker still says, or has said, that its node lives.
func TestDeadSpeakersOwnPrefix(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		ip(t, "addr add 10.0.0.20/24 dev eth0")
		c := nodeOf(sw)
		c.neighbours = append(c.neighbours, neighbour{addr: "10.0.0.20", asn: 65001})
		if sw.kind == "frr" {
			c.extra = " bgp long-lived-graceful-restart stale-time 3600\n"
		}
		sw.start(c)
		// Prefix 0 is of the first speaker's node, 1 of the second's, 2 and 3 of nodes that speak no BGP.
		all := manyPaths()[:4]
		speaker := func(own int, paths ...Path) Session {
			s := Session{Peer: peerOf(sw), Paths: slices.Clone(paths)}
			s.Peer.RestartTime, s.Peer.LongLivedTime = 3*time.Second, 25*time.Second
			s.Peer.LocalAddress = addr([]string{"10.0.0.10", "10.0.0.20"}[own])
			s.Peer.RouterID = s.Peer.LocalAddress
			for i := range s.Paths {
				s.Paths[i].NoLongLived = s.Paths[i].Prefix == all[own].Prefix
			}
			return s
		}
		first, second := startProcess(t, speaker(0, all...)), startProcess(t, speaker(1, all...))
		first.established(15*time.Second, 1)
		second.established(15*time.Second, 1)
		sw.hears(10*time.Second, all)
		sw.settled()

		// The first speaker's node dies, and then another one: the second withdraws both.
		first.end(syscall.SIGKILL)
		died := time.Now()
		second.sync(speaker(1, all[1:3]...))
		sw.hears(12*time.Second, all[1:]) // the restart time, and 3 s that BIRD adds
		t.Logf("%s: the dead speaker's own prefix went after %v", sw.kind, time.Since(died))

		// It comes back. Both speakers are away for longer than the restart time: all stays.
		first = startProcess(t, speaker(0, all...))
		first.established(15*time.Second, 1)
		second.sync(speaker(1, all...))
		sw.hears(15*time.Second, all)
		sw.settled()
		first.end(syscall.SIGKILL)
		second.end(syscall.SIGKILL)
		for died := time.Now(); time.Since(died) < 12*time.Second; {
			if err := sw.compare(all); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // between two looks
		}
	})
}

// A switch that does not know RFC 9494 is named.
func TestLongLivedNotNegotiated(t *testing.T) {
	l := newLAN(t)
	frr := l.router("frr", 2).start(swconf{asn: 65000, neighbours: []neighbour{{addr: "10.0.0.10", asn: 65001}}})
	s := newTestSpeaker(t)
	p := peerOf(frr)
	p.LongLivedTime = time.Hour
	mustSync(t, s, Session{Peer: p, Paths: pods(1)})
	eventually(t, 15*time.Second, func() error {
		st := s.Status(t.Context())[0]
		if !st.Restart || st.LongLived != 0 || len(st.Lacks) != 1 || !strings.Contains(st.Lacks[0].Detail, "10m0s after this daemon is gone: enable long-lived graceful restart") {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// OpenBGPD keeps the paths over each kind of restart, too. It forwards nothing on Linux: BIRD behind it
// shows whether it withdraws anything.
func TestGracefulRestartOpenBGPD(t *testing.T) {
	lab.Need(t, lab.Tools(lab.OpenBGPD)...)
	l := newLAN(t)
	sw, behind := l.router("openbgpd", 1), l.router("bird", 2)
	c := nodeOf(sw)
	c.neighbours = append(c.neighbours, neighbour{addr: "10.0.0.2", asn: 65002})
	c.extra = "deny from 10.0.0.2\n"
	sw.start(c)
	behind.start(swconf{asn: 65002, neighbours: []neighbour{{addr: "10.0.0.1", asn: 65000}}})
	want := Session{Peer: peerOf(sw), Paths: manyPaths()}
	begin := func() *daemon { return startProcess(t, want) } // outlives a subtest
	p := begin()
	p.established(20*time.Second, 1)
	sw.hears(20*time.Second, want.Paths)
	eventually(t, 20*time.Second, func() error {
		if n := len(behind.routes()); n < many {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	w := behind.watch()
	still := func(t *testing.T) {
		t.Helper()
		p.established(30*time.Second, 1)
		eventually(t, 20*time.Second, func() error {
			if out := sw.ask("-j show rib"); strings.Contains(out, "stale") {
				return errors.New("stale paths")
			}
			return nil
		})
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		w.sync()
		if n := w.n.Load(); n != 0 {
			t.Errorf("%d route events, want 0; last: %s", n, *w.last.Load())
		}
		w.n.Store(0)
	}
	for _, tt := range []struct {
		name string
		f    func()
	}{
		{"killed", func() { p.end(syscall.SIGKILL); p = begin() }},
		{"stopped", func() { p.end(syscall.SIGTERM); p = begin() }},
		{"connection cut", func() { run(t, "ss", "-K", "dst", sw.addr4.String()); p.flapped(10 * time.Second) }},
		{"settings changed", func() { want.Peer.HoldTime = 60 * time.Second; p.sync(want) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.f()
			still(t)
		})
	}
	t.Run("removed", func(t *testing.T) {
		p.sync()
		sw.hears(5*time.Second, nil)
	})
}
