package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func testPool(t testing.TB, sets ...string) Pool {
	t.Helper()
	var p Pool
	for _, s := range sets {
		p.Sets = append(p.Sets, RangeSet{{Subnet: netip.MustParsePrefix(s)}})
	}
	return p
}

func open(t testing.TB, path, boot string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, Options{BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newStore(t testing.TB, sets ...string) *Store {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "ipam.db"), "boot-1")
	if len(sets) > 0 {
		if err := s.SetPool(t.Context(), testPool(t, sets...)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func request(id, pod string) Request {
	req := Request{Attachment: Attachment{id, "eth0"}, Network: "edgeway"}
	if pod != "" {
		req.Pod = Pod{Namespace: "default", Name: pod}
	}
	return req
}

// add allocates and returns the addresses as text.
func add(t testing.TB, s *Store, req Request) string {
	t.Helper()
	l, err := s.Allocate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return addrStrings(l.Addrs)
}

func del(t testing.TB, s *Store, id string) {
	t.Helper()
	if _, ok, err := s.Release(t.Context(), Attachment{id, "eth0"}); err != nil || !ok {
		t.Fatalf("release %s: ok %v, err %v", id, ok, err)
	}
}

func want(t testing.TB, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

func TestOrderOfChoice(t *testing.T) {
	s := newStore(t, "10.1.0.0/29", "fd00::/64")
	want(t, add(t, s, request("a1", "a")), "10.1.0.1,fd00::1")
	want(t, add(t, s, request("b1", "b")), "10.1.0.2,fd00::2")
	del(t, s, "a1")
	want(t, add(t, s, request("c1", "c")), "10.1.0.3,fd00::3") // never used before remembered
	want(t, add(t, s, request("a2", "a")), "10.1.0.1,fd00::1") // remembered
	req := request("d1", "d")
	req.Addrs = []netip.Addr{addr("10.1.0.6")}
	want(t, add(t, s, req), "10.1.0.6,fd00::4") // requested; the other set chooses freely
	want(t, add(t, s, request("e1", "e")), "10.1.0.4,fd00::5")
	want(t, add(t, s, request("f1", "f")), "10.1.0.5,fd00::6")
	_, err := s.Allocate(t.Context(), request("g1", "g"))
	if !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v, want ErrExhausted", err)
	}
	del(t, s, "b1")
	del(t, s, "a2")
	want(t, add(t, s, request("g1", "g")), "10.1.0.2,fd00::7") // longest free
	if _, ok, err := s.Release(t.Context(), Attachment{"nobody", "eth0"}); ok || err != nil {
		t.Fatalf("release of nobody: %v, %v", ok, err)
	}
	u, err := s.Usage(testPool(t, "10.1.0.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Usage{Total: 6, Used: 5, Remembered: 1, Free: 1, Outside: 5}, u); d != "" {
		t.Fatal(d)
	}
}

func TestRequestedAddress(t *testing.T) {
	s := newStore(t)
	p := testPool(t, "10.1.0.0/24")
	p.Sets[0][0].Gateway = addr("10.1.0.1")
	p.Reserved = []netip.Prefix{netip.MustParsePrefix("10.1.0.128/25")}
	if _, err := s.Allocate(t.Context(), request("a", "a")); !errors.Is(err, ErrNoPool) {
		t.Fatalf("got %v, want ErrNoPool", err)
	}
	if err := s.SetPool(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	want(t, add(t, s, request("x", "x")), "10.1.0.2")
	for _, test := range []struct {
		addrs string
		err   error
	}{
		{"10.1.0.0", ErrNotInPool}, {"10.1.0.255", ErrNotInPool}, {"10.1.0.1", ErrNotInPool}, {"10.1.0.130", ErrNotInPool},
		{"10.2.0.1", ErrNotInPool}, {"fd00::1", ErrNotInPool}, {"10.1.0.2", ErrInUse},
	} {
		req := request("y", "y")
		req.Addrs = []netip.Addr{addr(test.addrs)}
		if _, err := s.Allocate(t.Context(), req); !errors.Is(err, test.err) {
			t.Errorf("%s: got %v, want %v", test.addrs, err, test.err)
		}
	}
	req := request("y", "y")
	req.Addrs = []netip.Addr{addr("10.1.0.5"), addr("10.1.0.6")}
	if _, err := s.Allocate(t.Context(), req); !errors.Is(err, ErrInvalid) {
		t.Errorf("two of one set: got %v", err)
	}
}

func TestSameAttachmentTwice(t *testing.T) {
	s := newStore(t, "10.1.0.0/24")
	want(t, add(t, s, request("a", "a")), "10.1.0.1")
	l, err := s.Allocate(t.Context(), request("a", "a"))
	if !errors.Is(err, ErrHeld) || addrStrings(l.Addrs) != "10.1.0.1" {
		t.Fatalf("got %v, %v", l, err)
	}
	req := request("a", "other")
	req.Netns, req.NetnsCookie = "/run/netns/a", 4097
	req.Dead = func(l Lease) bool { return l.Attachment.ContainerID == "a" }
	want(t, add(t, s, req), "10.1.0.1")
	leases, err := s.Leases()
	if err != nil || len(leases) != 1 || leases[0].Pod.Name != "other" || leases[0].Netns != "/run/netns/a" || leases[0].NetnsCookie != 4097 {
		t.Fatal(leases, err)
	}
}

func TestRebootKeepsThePodsAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, path, "boot-1")
	if err := s.SetPool(t.Context(), testPool(t, "10.1.0.0/29", "fd00::/64")); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		add(t, s, request(fmt.Sprint("old", i), fmt.Sprint("pod", i)))
	}
	s.Close()

	s = open(t, path, "boot-2")
	want(t, add(t, s, request("new3", "pod3")), "10.1.0.4,fd00::4")
	if _, ok, err := s.Release(t.Context(), Attachment{"old3", "eth0"}); ok || err != nil {
		t.Fatal("the late DEL of the old sandbox found a lease", err)
	}
	if l, ok, err := s.Lookup(Attachment{"new3", "eth0"}); !ok || err != nil || l.BootID != "boot-2" {
		t.Fatal("the new lease is gone", err)
	}
	// The pool is full of leases of the earlier boot: the longest dead gives way.
	want(t, add(t, s, request("stranger", "stranger")), "10.1.0.1,fd00::7")
	want(t, add(t, s, request("new1", "pod1")), "10.1.0.2,fd00::2")
	if _, err := s.Allocate(context.Background(), request("old2", "pod2")); err != nil {
		t.Fatal(err) // the same attachment, of an earlier boot
	}
}

func TestDeadLeaseOfThePod(t *testing.T) {
	s := newStore(t, "10.1.0.0/24")
	want(t, add(t, s, request("a1", "a")), "10.1.0.1")
	want(t, add(t, s, request("a2", "a")), "10.1.0.2") // alive: keep off
	req := request("a3", "a")
	req.Dead = func(l Lease) bool { return l.Attachment.ContainerID == "a2" }
	want(t, add(t, s, req), "10.1.0.2")
	if _, ok, _ := s.Lookup(Attachment{"a2", "eth0"}); ok {
		t.Fatal("dead lease is still there")
	}
}

// A pool ran out, which lists the dead leases; then the node booted, and leases were taken over
// from elsewhere before any pod started.
func TestImportAfterReboot(t *testing.T) {
	path := filepath.Join(ramDir(t), "ipam.db")
	s := open(t, path, "boot-1")
	p := testPool(t, "10.1.0.0/30")
	for i := range 3 {
		_, err := s.Allocate(t.Context(), Request{Attachment: Attachment{fmt.Sprint("c", i), "eth0"}, Network: "n", Pool: &p})
		if full := errors.Is(err, ErrExhausted); full != (i == 2) {
			t.Fatal(i, err)
		}
	}
	s.Close()
	s = open(t, path, "boot-2")
	for i := range 2 {
		l := Lease{Attachment: Attachment{fmt.Sprint("x", i), "eth0"}, Addrs: []netip.Addr{addr(fmt.Sprint("10.2.0.", i+1))}}
		if err := s.Import(t.Context(), []Lease{l}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}
