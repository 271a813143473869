package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

// peerOf is the session of 10.0.0.10, AS 65001, with the switch of AS 65000.
func peerOf(r *router) Peer {
	return Peer{
		Name: "BGPPeer/" + r.kind, Address: r.addr4, ASN: 65000, LocalASN: 65001,
		LocalAddress: addr("10.0.0.10"), RouterID: addr("10.0.0.10"),
		HoldTime: 90 * time.Second, RestartTime: 600 * time.Second,
	}
}

// pods returns the paths of n nodes, both families, with the nodes' addresses as next hops.
func pods(n int) []Path {
	var out []Path
	for i := range n {
		out = append(out,
			Path{Prefix: pfx(fmt.Sprintf("10.%d.%d.0/24", 100+i/250, i%250)), NextHop: addr(fmt.Sprintf("10.0.0.%d", 11+i%200))},
			Path{Prefix: pfx(fmt.Sprintf("fd01:%x::/64", i)), NextHop: addr(fmt.Sprintf("fd00:10::%d", 11+i%200))})
	}
	return out
}

func newTestSpeaker(t testing.TB) *Speaker { return newSpeaker(t, sessionCommand...) }

func newSpeaker(t testing.TB, command ...string) *Speaker {
	s := NewSpeaker(Options{Command: command})
	t.Cleanup(s.Stop)
	return s
}

func mustSync(t testing.TB, s *Speaker, sessions ...Session) []Change {
	t.Helper()
	changes, err := s.Sync(t.Context(), State{Sessions: sessions})
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// becomes waits until the first session has that state and reason.
func becomes(t testing.TB, s *Speaker, state, reason string) Status {
	t.Helper()
	var st Status
	eventually(t, func() error {
		all := s.Status(t.Context())
		if len(all) == 0 {
			return fmt.Errorf("no session")
		}
		st = all[0]
		if state != "" && st.State != state || st.Reason != reason {
			return fmt.Errorf("state %s, reason %q (%s), want %s %q", st.State, st.Reason, st.Detail, state, reason)
		}
		return nil
	})
	return st
}

// The last reset of a session is known after its process has ended.
func TestEndedSessionIsRemembered(t *testing.T) {
	good := decent(t)
	a := newTestSpeaker(t)
	want := State{Sessions: []Session{{Peer: good}}}
	sync := func(s State) {
		t.Helper()
		if _, err := a.Sync(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	up := func() Status {
		t.Helper()
		return becomes(t, a, "Established", "")
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
