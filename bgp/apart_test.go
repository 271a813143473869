package bgp

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// sessionWord makes the test binary the process of one session.
const sessionWord = "bgp-session"

func sessionMain() int {
	if err := ServeSession(os.NewFile(3, "link")); err != nil {
		return 1
	}
	return 0
}

func newApart(t *testing.T, changed func()) *Apart {
	a := NewApart(Options{Changed: changed}, "/proc/self/exe", sessionWord)
	t.Cleanup(a.Stop)
	return a
}

// decent is a switch that keeps its session up.
func decent(t *testing.T) Peer {
	var p Peer
	ready := make(chan struct{})
	i := newImposter(t, func(c net.Conn) {
		<-ready
		greet(c, p)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		alive, err := bgp.NewBGPKeepAliveMessage().Serialize()
		if err != nil {
			panic(err) // a bug of this test
		}
		for range 50 {
			time.Sleep(time.Second)
			if _, err := c.Write(alive); err != nil {
				return
			}
		}
	})
	p = i.peer()
	close(ready)
	return p
}

// A switch that sends a message of an unknown type ended the daemon, and with it all sessions.
func TestMessageOfUnknownTypeCostsOneSession(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pauses between dials")
	}
	var bad Peer
	ready := make(chan struct{})
	i := newImposter(t, func(c net.Conn) {
		<-ready
		greet(c, bad)
		_, _ = c.Write(framed(77, 1, 2, 3))
		_, _ = io.Copy(io.Discard, c)
	})
	bad = i.peer()
	close(ready)
	good := decent(t)
	again := make(chan struct{}, 1)
	a := newApart(t, func() {
		select {
		case again <- struct{}{}:
		default:
		}
	})
	good.LocalASN++ // its own session
	want := State{Sessions: []Session{{Peer: good, Paths: []Path{{Prefix: pfx("10.10.1.0/24"), NextHop: addr("192.0.2.9")}}}, {Peer: bad}}}
	look := func() (crashed, up Status) {
		if _, err := a.Sync(t.Context(), want); err != nil && !strings.Contains(err.Error(), "ended") {
			t.Fatal(err)
		}
		for _, s := range a.Status(t.Context()) {
			if s.Peer.Port == bad.Port {
				crashed = s
			} else {
				up = s
			}
		}
		return crashed, up
	}
	deadline := time.After(50 * time.Second)
	crashed, up := look()
	for i.calls.Load() < 4 || crashed.Reason != reasonCrashed {
		select {
		case <-again:
		case <-deadline:
			t.Fatalf("%d connections; %+v", i.calls.Load(), crashed)
		}
		crashed, up = look()
	}
	if up.State != "Established" || up.Flaps != 0 || len(up.Advertised) != 1 {
		t.Errorf("the other session: %+v", up)
	}
	if !strings.Contains(crashed.Detail, "panic: ") {
		t.Errorf("does not say why: %q", crashed.Detail)
	}
}

// What is known of a session outlives its process.
func TestEndedSessionIsRemembered(t *testing.T) {
	good := decent(t)
	a := newApart(t, nil)
	want := State{Sessions: []Session{{Peer: good}}}
	sync := func(s State) {
		t.Helper()
		if _, err := a.Sync(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	up := func() Status {
		t.Helper()
		var got []Status
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if got = a.Status(t.Context()); len(got) == 1 && got[0].State == "Established" {
				return got[0]
			}
		}
		t.Fatalf("%+v", got)
		return Status{}
	}
	sync(want)
	up()
	changes, err := a.Sync(t.Context(), State{Held: []Held{{good.Key(), "its password is missing"}}})
	if err != nil || len(changes) != 1 || changes[0].Op != "delete" || changes[0].Why != "its password is missing" {
		t.Errorf("%v, %v", changes, err)
	}
	if got := a.Status(t.Context()); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	sync(want)
	if s := up(); s.Flaps != 1 || s.LastReset.Reason != reasonEnded || !strings.Contains(s.LastReset.Detail, "its password is missing") {
		t.Errorf("%d flaps, %+v", s.Flaps, s.LastReset)
	}
}
