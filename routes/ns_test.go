package routes

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

// space is a fresh network namespace of one test.
type space struct {
	t testing.TB
	f *os.File
	k *Kernel

	lab *lab.Space
	// lock is that of this namespace's legacy iptables. Else the tests would keep each other waiting.
	lock string
}

// newSpace makes a namespace that lives as long as its file is open.
func newSpace(t testing.TB) *space {
	t.Helper()
	lab.Need(t, "ip")
	ns, err := lab.NewSpace("")
	if err != nil {
		t.Fatal(err)
	}
	k, err := OpenNetns(ns.File)
	if err != nil {
		t.Fatal(err)
	}
	s := &space{t, ns.File, k, ns, filepath.Join(t.TempDir(), "xtables.lock")}
	if err := os.WriteFile(s.lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.xtLock = s.lock
	t.Cleanup(func() { k.Close(); ns.Close() })
	if err := ns.Loopback(); err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs a command in the namespace and returns its output.
func (s *space) run(command string) string {
	s.t.Helper()
	out, err := s.try(command)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func (s *space) try(command string) (string, error) {
	return s.exec(strings.Fields(command)...)
}

func (s *space) exec(args ...string) (string, error) {
	lab.Need(s.t, args[0])
	var out []byte
	err := s.lab.Do(func() (err error) {
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "XTABLES_LOCKFILE="+s.lock)
		out, err = c.CombinedOutput()
		return err
	})
	return string(out), err
}

// wire makes the host's uplink eth0 with 10.0.0.11/24 and fd00:10::11/64. The other end is in a second
// namespace.
func (s *space) wire() *space {
	s.t.Helper()
	lan := newSpace(s.t)
	s.sync(Scope{}, State{
		Links: []Link{{Name: "eth0", Kind: "veth", Up: true, Peer: &Peer{Name: "lan0", Netns: lan.f}}},
		Addrs: []Addr{{Link: "eth0", Prefix: pfx("10.0.0.11/24")}, {Link: "eth0", Prefix: pfx("fd00:10::11/64")}},
	})
	lan.run("ip link set lan0 up")
	s.carrier("eth0")
	eventually(s.t, "the kernel has installed the local IPv6 route", func() bool {
		r, err := s.k.Lookup(s.t.Context(), addr("fd00:10::11"))
		return err == nil && r.Type == "local"
	})
	return lan
}

// carrier waits until the link passes packets: IPv6 routes are unusable before.
func (s *space) carrier(link string) {
	s.t.Helper()
	eventually(s.t, link+" has a carrier", func() bool {
		return strings.Contains(s.run("ip -o link show dev "+link), "LOWER_UP")
	})
}

// sync calls Sync twice. Both calls must succeed, and the second call must change nothing.
func (s *space) sync(scope Scope, want State) []Change {
	s.t.Helper()
	changes, err := s.k.Sync(s.t.Context(), scope, want)
	if err != nil {
		s.t.Fatalf("sync: %v\nchanges: %v", err, changes)
	}
	s.quiet(scope, want)
	return changes
}

// quiet calls Sync, which must write nothing.
func (s *space) quiet(scope Scope, want State) {
	s.t.Helper()
	before := s.k.c.writes.Load()
	again, err := s.k.Sync(s.t.Context(), scope, want)
	if err != nil || len(again) != 0 {
		s.t.Fatalf("second sync: %v, changes %v, want none", err, again)
	}
	if n := s.k.c.writes.Load() - before; n != 0 {
		s.t.Fatalf("second sync wrote %d times, want 0", n)
	}
}

func (s *space) contains(command, want string) {
	s.t.Helper()
	if out := squeeze(s.run(command)); !strings.Contains(out, want) {
		s.t.Fatalf("%s has no %q:\n%s", command, want, out)
	}
}

func (s *space) lacks(command, not string) {
	s.t.Helper()
	if out := squeeze(s.run(command)); strings.Contains(out, not) {
		s.t.Fatalf("%s has %q:\n%s", command, not, out)
	}
}

func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n") + "\n"
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
		runtime.Gosched()
	}
}

func texts(changes []Change) (out []string) {
	for _, c := range changes {
		s := c.String()
		if c.Err != nil {
			s += " ERR " + c.Err.Error()
		}
		out = append(out, s)
	}
	return out
}

func wantTexts(t testing.TB, changes []Change, want ...string) {
	t.Helper()
	if got := texts(changes); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, pfx(s))
	}
	return out
}
