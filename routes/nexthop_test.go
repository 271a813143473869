package routes

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestManyRoutesUseNextHopObjects: many routes use next hop objects. The objects are ours by their
// protocol. Sync finds the objects again, and deletes them with their routes.
func TestManyRoutesUseNextHopObjects(t *testing.T) {
	s := largeSpace(t)
	s.run("ip nexthop add id 7 via 10.0.0.7 dev eth0 proto zebra")
	s.run("ip nexthop add id 8 via 10.0.0.8 dev eth0 proto 119")
	s.run("ip nexthop add id 9 group 8 proto zebra")
	want := manyRoutes(bulk + 100)
	s.sync(nodeScope, want)
	objects := func() int { return strings.Count(s.run("ip nexthop show proto 119"), "\n") }
	if n := objects(); n != bulk+101 {
		t.Fatalf("%d objects, want %d", n, bulk+101)
	}
	s.contains("ip route", want.Routes[5].Dst.String()+" nhid ")

	t.Run("listed by number only", func(t *testing.T) {
		s.run("sysctl -w net.ipv4.nexthop_compat_mode=0")
		defer s.run("sysctl -w net.ipv4.nexthop_compat_mode=1")
		s.quiet(nodeScope, want)
		h, err := s.k.Host(t.Context())
		if err != nil || len(h.Routes) == 0 {
			t.Fatal(h, err)
		}
	})
	t.Run("the next hop of one changes", func(t *testing.T) {
		want.Routes = slices.Clone(want.Routes)
		want.Routes[5].Via = addr("10.0.99.99")
		if changes := s.sync(nodeScope, want); len(changes) != 1 {
			t.Fatalf("changes %v", texts(changes))
		}
		if n := objects(); n != bulk+100 {
			t.Fatalf("%d objects, want %d: the object without a route must be deleted", n, bulk+100)
		}
		s.contains("ip route get "+want.Routes[5].Dst.Addr().Next().String(), "via 10.0.99.99")
	})
	t.Run("one goes", func(t *testing.T) {
		want.Routes = slices.Delete(want.Routes, 9, 10)
		if changes := s.sync(nodeScope, want); len(changes) != 1 {
			t.Fatalf("changes %v", texts(changes))
		}
		if n := strings.Count(s.run("ip route show proto 119"), "\n"); n != bulk+99 {
			t.Fatalf("%d routes, want %d", n, bulk+99)
		}
	})
	t.Run("made by hand over another's object", func(t *testing.T) {
		s.run("ip route replace " + want.Routes[20].Dst.String() + " nhid 7 proto 119")
		s.sync(nodeScope, want)
		s.contains("ip route get "+want.Routes[20].Dst.Addr().Next().String(), "via "+want.Routes[20].Via.String())
	})
	t.Run("all go", func(t *testing.T) {
		s.sync(nodeScope, State{})
		if got := squeeze(s.run("ip nexthop")); strings.Count(got, "\n") != 3 {
			t.Fatalf("objects still exist:\n%s", got)
		}
		s.contains("ip nexthop", "id 8 via 10.0.0.8 dev eth0")
	})
}

// TestNextHopObjectsAreCheaper compares the processor time of the same routes made at once, over objects,
// and in portions too small for objects. Other work on the machine hardly changes the processor time.
func TestNextHopObjectsAreCheaper(t *testing.T) {
	s := largeSpace(t)
	want := manyRoutes(4000)
	spent := func(portion int) (cpu int64) {
		var state State
		before := cpuTime(t)
		for part := range slices.Chunk(want.Routes, portion) {
			state.Routes = append(state.Routes, part...)
			if _, err := s.k.Sync(t.Context(), nodeScope, state); err != nil {
				t.Fatal(err)
			}
		}
		cpu = cpuTime(t) - before
		if _, err := s.k.Sync(t.Context(), nodeScope, State{}); err != nil {
			t.Fatal(err)
		}
		return cpu
	}
	objects, plain := spent(len(want.Routes)), spent(bulk-1)
	t.Logf("%d routes: %d us over objects, %d us plain", len(want.Routes), objects, plain)
	if objects > plain {
		t.Errorf("routes over objects cost %d us, plain routes %d us; objects must be cheaper", objects, plain)
	}
}

// cpuTime is the processor time of this process in microseconds.
func cpuTime(t testing.TB) int64 {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return (u.Utime.Sec+u.Stime.Sec)*1e6 + u.Utime.Usec + u.Stime.Usec
}
