package bgp

import (
	"errors"
	"fmt"
	"os"
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

func bothSwitches(l *lan) (bird, frr *router) {
	bird, frr = l.router("bird", 1), l.router("frr", 2)
	return bird.start(nodeOf(bird)), frr.start(nodeOf(frr))
}

// restarts is a daemon that tells all paths to two switches, and is restarted.
type restarts struct {
	*lan
	bird, frr *router
	want      []Session
	daemon    *daemon
	watches   []*watch
}

func newRestarts(t *testing.T) *restarts {
	t.Helper()
	l := newLAN(t)
	r := &restarts{lan: l}
	r.bird, r.frr = bothSwitches(l)
	r.want = []Session{{Peer: peerOf(r.bird), Paths: manyPaths()}, {Peer: peerOf(r.frr), Paths: manyPaths()}}
	r.begin(r.want...)
	r.bird.hears(manyPaths())
	r.frr.hears(manyPaths())
	r.watches = []*watch{r.bird.watch(), r.frr.watch()}
	return r
}

// begin starts the daemon, which outlives a subtest.
func (r *restarts) begin(sessions ...Session) { r.daemon = r.start(r.t, sessions...) }

func (r *restarts) restart(sig syscall.Signal) {
	r.daemon.end(sig)
	r.begin(r.want...)
	r.daemon.established(2)
}

// settled waits until both switches have flushed what a restart flushes.
func (r *restarts) settled() {
	r.bird.settled()
	r.frr.settled()
}

// still fails the test if a route of a switch has changed, or is missing.
func (r *restarts) still(t *testing.T, what string) {
	t.Helper()
	r.settled()
	for _, w := range r.watches {
		w.still(t, what)
		if err := w.r.compare(manyPaths()); err != nil {
			t.Error(err)
		}
	}
}

func TestGracefulRestart(t *testing.T) {
	t.Parallel()
	r := newRestarts(t)
	t.Run("killed", func(t *testing.T) {
		r.restart(syscall.SIGKILL)
		r.still(t, "after kill -9")
	})
	t.Run("stopped", func(t *testing.T) {
		r.restart(syscall.SIGTERM)
		r.still(t, "after SIGTERM")
	})
	t.Run("twice in a row", func(t *testing.T) {
		r.daemon.end(syscall.SIGKILL)
		r.cable("down") // killed again before its sessions are up
		r.begin(r.want...)
		r.daemon.end(syscall.SIGKILL)
		r.cable("up")
		r.restart(syscall.SIGKILL)
		r.settled() // a switch flushes what is still stale at the next loss (RFC 4724, section 4.2)
		r.restart(syscall.SIGKILL)
		r.still(t, "after three restarts in a row")
	})
}

func TestRoutesStayWhenTheConnectionIsLost(t *testing.T) {
	t.Parallel()
	r := newRestarts(t)
	t.Run("connection cut", func(t *testing.T) {
		for range 2 {
			r.settled()
			r.cut(r.bird.addr4.String())
			r.cut(r.frr.addr4.String())
			r.daemon.flapped()
			if r := r.daemon.established(2).Status[0].LastReset; r.Reason != reasonConnectionLost {
				t.Errorf("%+v", r)
			}
		}
		r.still(t, "after two TCP resets")
	})
	t.Run("link down", func(t *testing.T) {
		r.cable("down")
		time.Sleep(2 * time.Second) // the fault itself
		r.cable("up")
		r.daemon.established(2)
		r.still(t, "after a short link loss")
	})
	t.Run("power cut", func(t *testing.T) {
		// The switch hears no FIN and no RST: a new connection comes while its session is up.
		r.cable("down")
		r.daemon.end(syscall.SIGKILL)
		r.cut("10.0.0.0/24")
		r.cable("up")
		r.begin(r.want...)
		r.daemon.established(2)
		r.still(t, "after a power cut")
	})
}

func TestRoutesStayWhenSettingsChange(t *testing.T) {
	t.Parallel()
	r := newRestarts(t)
	t.Run("settings changed", func(t *testing.T) {
		changed := slices.Clone(r.want)
		changed[0].Peer.HoldTime, changed[1].Peer.HoldTime = 60*time.Second, 60*time.Second
		got := r.daemon.sync(changed...)
		if got.Err != "" || len(got.Changes) != 2 {
			t.Errorf("err %q, changes %q, want two resets", got.Err, got.Changes)
		}
		if last := r.daemon.established(2).Status[0].LastReset; last.Reason != reasonReset || !strings.Contains(last.Detail, "hold time 1m0s") {
			t.Errorf("%+v", last)
		}
		r.still(t, "after a reset for a new hold time")
		for i := range changed {
			changed[i].Peer.RouterID = addr("10.0.0.110")
		}
		r.daemon.sync(changed...)
		r.daemon.established(2)
		r.still(t, "after a reset for a new router ID")
		r.daemon.sync(r.want...)
		r.daemon.established(2)
		r.still(t, "after a reset back")
	})
	t.Run("changed while down", func(t *testing.T) {
		moved := manyPaths()
		moved[7].NextHop = addr("10.0.0.99")
		moved = moved[:many-1]
		r.daemon.end(syscall.SIGKILL)
		r.begin(Session{Peer: r.want[0].Peer, Paths: moved}, Session{Peer: r.want[1].Peer, Paths: moved})
		r.daemon.established(2)
		for _, w := range r.watches {
			w.r.hears(moved)
			w.r.settled()
			if e := w.events(t); len(e) == 0 || len(e) > 4 {
				t.Errorf("%s: %d route events for 2 changes: %q", w.r.kind, len(e), e)
			}
		}
	})
}

// A switch without any setting for graceful restart helps a restarting neighbour: BIRD and FRR do by default.
func TestGracefulRestartWithDefaults(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		c.defaultRestart = true
		sw.start(c)
		want := Session{Peer: peerOf(sw), Paths: pods(many / 2)}
		p := l.start(t, want)
		sw.hears(want.Paths)
		sw.settled()
		w := sw.watch()
		p.end(syscall.SIGKILL)
		p = l.start(t, want)
		p.established(1)
		sw.settled()
		w.still(t, "after kill -9")
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		p.end(syscall.SIGTERM)
	})
}

// While one speaker is away and the switch keeps its paths, a change that another speaker has seen since wins at
// once, for example a new owner of a pod CIDR.
func TestChangeWinsOverStalePath(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		l.ip("addr add 10.0.0.20/24 dev eth0")
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
		p := l.start(t, Session{Peer: away, Paths: paths})
		sw.hears(paths)
		q := l.start(t, Session{Peer: live, Paths: paths})
		q.established(1)
		w := sw.watch()
		sw.settled()
		p.end(syscall.SIGKILL)

		moved := slices.Clone(paths)
		moved[7].NextHop, moved[7].MED = addr("10.0.0.99"), Freshness(began.Add(time.Second))
		begun := time.Now()
		q.sync(Session{Peer: live, Paths: moved})
		sw.hears(moved)
		t.Logf("%s: heard after %v", sw.kind, time.Since(begun))

		// The speaker returns with its old knowledge, then learns the news.
		p = l.start(t, Session{Peer: away, Paths: paths})
		p.established(1)
		sw.settled()
		if err := sw.compare(moved); err != nil {
			t.Error(err)
		}
		p.sync(Session{Peer: away, Paths: moved})
		sw.hears(moved)
		if e := w.events(t); len(e) > 4 {
			t.Errorf("%d route events for one change: %q", len(e), e)
		}
		// Fresher knowledge of the same next hops is no event.
		for i := range moved {
			moved[i].MED = Freshness(began.Add(time.Hour))
		}
		p.sync(Session{Peer: away, Paths: moved})
		q.sync(Session{Peer: live, Paths: moved})
		last := moved[len(moved)-1]
		eventually(t, func() error {
			command := "show route all for " + last.Prefix.String()
			if sw.kind == "frr" {
				command = "show bgp ipv4 unicast " + last.Prefix.String()
			}
			if out := sw.ask(command); strings.Count(out, fmt.Sprint(last.MED)) < 2 {
				return errors.New(out)
			}
			return nil
		})
		w.still(t, "after 5000 new MEDs")
	})
}

// After the restart time, a switch that knows RFC 9494 keeps the paths as a last resort. A speaker that is away
// for much longer than the restart time costs no route, and neither does its return.
func TestLongLivedGracefulRestart(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		if sw.kind == "frr" {
			c.extra = " " + documented(t, "bgp long-lived-graceful-restart stale-time 259200") + "\n"
		}
		sw.start(c)
		want := Session{Peer: peerOf(sw), Paths: manyPaths()}
		want.Peer.RestartTime, want.Peer.LongLivedTime = 3*time.Second, time.Hour
		p := l.start(t, want)
		sw.hears(want.Paths)
		sw.settled()
		if st := p.established(1).Status[0]; st.LongLived != time.Hour || len(st.Lacks) != 0 {
			t.Errorf("not negotiated: %+v", st)
		}
		w := sw.watch()
		died := time.Now()
		p.end(syscall.SIGKILL)
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
		const slow = 3 * patience // FRR takes a minute for 5,000 paths on a busy machine; it would keep them for an hour
		waitFor(t, slow, marked)
		promised(t, sw.kind+": a last resort", died, time.Now(), want.Peer.RestartTime, slow)
		for time.Since(died) < 12*time.Second { // four times the restart time
			if err := sw.compare(want.Paths); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // between two looks
		}
		if err := marked(); err != nil {
			t.Error(err)
		}
		p = l.start(t, want)
		p.established(1)
		sw.settled()
		w.still(t, "after a return from the dead")
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		// Not for ever.
		p.end(syscall.SIGTERM)
		want.Peer.LongLivedTime = 3 * time.Second
		p = l.start(t, want)
		p.established(1)
		sw.settled()
		died = time.Now()
		p.end(syscall.SIGKILL)
		waitFor(t, slow, func() error { return sw.compare(nil) })
		promised(t, sw.kind+": gone", died, time.Now(), want.Peer.RestartTime+want.Peer.LongLivedTime, slow)
	})
}

// birdAdds is how long after its timer BIRD 2.0 drops paths.
const birdAdds = 3 * time.Second

// The switch keeps the paths of a dead speaker even if the other speakers have withdrawn theirs. With long-lived
// graceful restart a speaker marks its own prefix. The switch drops such a path when the restart time is over,
// unless another speaker advertises the prefix, or has advertised it and is away, too.
func TestDeadSpeakersOwnPrefix(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		l.ip("addr add 10.0.0.20/24 dev eth0")
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
			s.Peer.RestartTime, s.Peer.LongLivedTime = 3*time.Second, time.Hour
			s.Peer.LocalAddress = addr([]string{"10.0.0.10", "10.0.0.20"}[own])
			s.Peer.RouterID = s.Peer.LocalAddress
			for i := range s.Paths {
				s.Paths[i].NoLongLived = s.Paths[i].Prefix == all[own].Prefix
			}
			return s
		}
		first, second := l.start(t, speaker(0, all...)), l.start(t, speaker(1, all...))
		first.established(1)
		second.established(1)
		sw.hears(all)
		sw.settled()

		// The first speaker's node dies, and then another one: the second withdraws both.
		died := time.Now()
		first.end(syscall.SIGKILL)
		second.sync(speaker(1, all[1:3]...))
		sw.hears(all[1:])
		promised(t, sw.kind+": the dead speaker's own prefix is gone", died, time.Now(), 3*time.Second, 3*time.Second+birdAdds)

		// It comes back. Both speakers are away for longer than the restart time: all stays.
		first = l.start(t, speaker(0, all...))
		first.established(1)
		second.sync(speaker(1, all...))
		sw.hears(all)
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

// documented returns a command of docs/operations.md, and fails the test if the page does not have it.
func documented(t *testing.T, command string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "`"+command+"`") {
		t.Errorf("docs/operations.md does not have `%s`", command)
	}
	return command
}

// The switch's commands that docs/operations.md names remove the paths of a dead speaker at once.
func TestDeadSpeakersPathsAreRemovedByHand(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		p := l.start(t, Session{Peer: peerOf(sw), Paths: pods(3)})
		p.established(1)
		sw.hears(pods(3))
		p.end(syscall.SIGKILL)
		here := strings.NewReplacer("node1", "n0", "ADDRESS", "10.0.0.10", "birdc ", "")
		var commands []string
		for _, c := range map[string][]string{
			"bird": {"birdc restart node1"}, "frr": {"neighbor ADDRESS shutdown", "no neighbor ADDRESS shutdown"},
		}[sw.kind] {
			commands = append(commands, here.Replace(documented(t, c)))
		}
		for i, c := range commands {
			if sw.kind == "frr" {
				sw.configure("router bgp 65000", c)
			} else {
				sw.ask(c)
			}
			if i == 0 {
				sw.hears(nil)
			}
		}
		p = l.start(t, Session{Peer: peerOf(sw), Paths: pods(3)})
		p.established(1)
		sw.hears(pods(3))
		p.end(syscall.SIGTERM)
	})
}

// A switch that does not know RFC 9494 is named.
func TestLongLivedNotNegotiated(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	frr := l.router("frr", 2).start(swconf{asn: 65000, neighbours: []neighbour{{addr: "10.0.0.10", asn: 65001}}})
	s := l.speaker(t)
	p := peerOf(frr)
	p.LongLivedTime = time.Hour
	mustSync(t, s, Session{Peer: p, Paths: pods(1)})
	eventually(t, func() error {
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
	t.Parallel()
	l := newLAN(t)
	sw, behind := l.router("openbgpd", 1), l.router("bird", 2)
	c := nodeOf(sw)
	c.defaultRestart = true // which is what "announce restart yes" says
	c.neighbours = append(c.neighbours, neighbour{addr: "10.0.0.2", asn: 65002})
	c.extra = "deny from 10.0.0.2\n"
	sw.start(c)
	behind.start(swconf{asn: 65002, neighbours: []neighbour{{addr: "10.0.0.1", asn: 65000}}})
	want := Session{Peer: peerOf(sw), Paths: manyPaths()}
	begin := func() *daemon { return l.start(t, want) } // outlives a subtest
	p := begin()
	p.established(1)
	sw.hears(want.Paths)
	eventually(t, func() error {
		if n := len(behind.routes()); n < many {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	w := behind.watch()
	still := func(t *testing.T) {
		t.Helper()
		p.established(1)
		eventually(t, func() error {
			if out := sw.ask("-j show rib"); strings.Contains(out, "stale") {
				return errors.New("stale paths")
			}
			return nil
		})
		if err := sw.compare(want.Paths); err != nil {
			t.Error(err)
		}
		if e := w.events(t); len(e) != 0 {
			t.Errorf("%d route events, want none; last: %s", len(e), e[len(e)-1])
		}
	}
	for _, tt := range []struct {
		name string
		f    func()
	}{
		{"killed", func() { p.end(syscall.SIGKILL); p = begin() }},
		{"stopped", func() { p.end(syscall.SIGTERM); p = begin() }},
		{"twice in a row", func() {
			p.end(syscall.SIGKILL)
			l.cable("down") // killed again before its session is up
			p = begin()
			p.end(syscall.SIGKILL)
			l.cable("up")
			p = begin()
		}},
		{"connection cut", func() { l.cut(sw.addr4.String()); p.flapped() }},
		{"link down", func() {
			l.cable("down")
			time.Sleep(2 * time.Second) // the fault itself
			l.cable("up")
		}},
		{"power cut", func() {
			l.cable("down")
			p.end(syscall.SIGKILL)
			l.cut("10.0.0.0/24")
			l.cable("up")
			p = begin()
		}},
		{"settings changed", func() { want.Peer.HoldTime = 60 * time.Second; p.sync(want) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.f()
			still(t)
		})
	}
	t.Run("removed", func(t *testing.T) {
		p.sync()
		sw.hears(nil)
	})
}
