package bgp

import (
	"context"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// lan is a LAN with the node 10.0.0.10, fd00:10::10 and the switches sw1 (.1) and sw2 (.2).
type lan struct {
	t    *testing.T
	lab  *lab.Lab
	node *lab.Machine
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	lab.Need(t, lab.Tools(lab.BIRD, lab.FRR)...)
	l, err := lab.New(lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var all lab.Topology
	for _, m := range []struct{ name, number string }{{"node", "10"}, {"sw1", "1"}, {"sw2", "2"}} {
		addrs := []netip.Prefix{pfx("10.0.0." + m.number + "/24"), pfx("fd00:10::" + m.number + "/64")}
		all.Hosts = append(all.Hosts, lab.HostSpec{Name: m.name, Links: []lab.LinkSpec{{LAN: "lan", Addrs: addrs}}})
	}
	if err := l.Build(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	return &lan{t, l, l.Machine("node")}
}

// ip runs one ip(8) command on the node.
func (l *lan) ip(args string) {
	l.t.Helper()
	ip(l.t, l.node, args)
}

// ip runs one ip(8) command on a machine.
func ip(t *testing.T, m *lab.Machine, args string) {
	t.Helper()
	if err := m.IP(t.Context(), args+"\n"); err != nil {
		t.Fatal(err)
	}
}

// run runs a command on the node and returns its output.
func (l *lan) run(name string, args ...string) string {
	l.t.Helper()
	return run(l.t, l.node, name, args...)
}

func run(t *testing.T, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cut destroys the node's connections with a switch, or with all switches of a prefix.
func (l *lan) cut(to string) {
	l.t.Helper()
	l.run("ss", "-K", "dst", to)
}

// cable sets the bridge's end of the node's cable "up" or "down".
func (l *lan) cable(state string) {
	l.t.Helper()
	ip(l.t, l.lab.Machine("wire"), "link set dev p1 "+state)
}

// inside is the command line that runs argv on the node.
func (l *lan) inside(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + l.node.Path, "--"}, argv...)
}

// speaker returns a Speaker of the node.
func (l *lan) speaker(t *testing.T) *Speaker {
	return newSpeaker(t, l.inside(sessionCommand...)...)
}

// start starts a daemon on the node.
func (l *lan) start(t *testing.T, sessions ...Session) *daemon {
	t.Helper()
	argv := l.inside(self())
	return startProcess(t, exec.Command(argv[0], argv[1:]...), sessions...)
}

// watch reports the writes of BGP's routes in the switch's kernel from now on.
func (r *router) watch() *watch {
	r.t.Helper()
	m, err := r.Monitor(r.t.Context(), r.Proto())
	if err != nil {
		r.t.Fatal(err)
	}
	return &watch{r: r, monitor: m}
}

type watch struct {
	r       *router
	monitor *lab.Monitor
	seen    int // events that an earlier call of events has returned
}

// events returns the events since the last call.
func (w *watch) events(t *testing.T) []string {
	t.Helper()
	all, err := w.monitor.Writes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := all[w.seen:]
	w.seen = len(all)
	return out
}

// still fails the test if a route of the switch's kernel was written or deleted since the last call of events.
func (w *watch) still(t *testing.T, what string) {
	t.Helper()
	w.r.sawRestart()
	if e := w.events(t); len(e) != 0 {
		t.Errorf("%s: %s: %d route events, want none; last: %s", w.r.kind, what, len(e), e[len(e)-1])
	}
}

// patience bounds a wait whose length is not what the test is about: a busy machine is slow. It is less than
// the restart time of peerOf.
const patience = time.Minute

// late is how much later than its timer says a busy machine may do something. No promise is told from its
// opposite by less.
const late = 15 * time.Second

// redial is how long a session takes at most to come up, and its first paths to be sent, once its switch answers.
const redial = connectRetry + dialTimeout + deferral

// promised fails the test if an effect did not come least to most after its cause. A timer of whole seconds may end
// a second early.
func promised(t testing.TB, what string, cause, effect time.Time, least, most time.Duration) {
	t.Helper()
	took := effect.Sub(cause)
	t.Logf("%s: after %v", what, took.Round(time.Millisecond))
	if took < least-time.Second || took > most+late {
		t.Errorf("%s: after %v, want %v to %v, or %v later on a busy machine", what, took, least, most, late)
	}
}

// eventually waits until f has no objection.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	waitFor(t, patience, f)
}

func waitFor(t testing.TB, d time.Duration, f func() error) {
	t.Helper()
	if err := lab.Wait(context.Background(), d, f); err != nil {
		t.Fatalf("after %v: %v", d, err)
	}
}
