package ipam

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var seed = flag.Uint64("ipam.seed", 0, "seed of the random tests; 0 takes the clock")

// random says its seed at once: a test that takes the machine down leaves no log.
func random(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	fmt.Fprintf(os.Stderr, "%s -ipam.seed=%d\n", t.Name(), s)
	return rand.New(rand.NewPCG(s, 1))
}

// ramDir is a directory in memory where there is one: what these tests do a thousand times over is
// not slowed down by a disk, and a kill cannot tell.
func ramDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ipam-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// node is what Options.Recover would see: the attachments that have links.
type node map[Attachment]Lease

func (n node) recover() ([]Lease, error) {
	var out []Lease
	for _, l := range n {
		out = append(out, Lease{Attachment: l.Attachment, Addrs: l.Addrs}) // links know no pods
	}
	return out, nil
}

// filled makes a store with n leases and some memories, closed, and returns the living.
func filled(t testing.TB, path string, n int, backup bool) node {
	t.Helper()
	s := open(t, path, "boot-1")
	if err := s.SetPool(t.Context(), testPool(t, "10.1.0.0/16", "fd00::/64")); err != nil {
		t.Fatal(err)
	}
	living := node{}
	for i := range n {
		l, err := s.Allocate(t.Context(), request(fmt.Sprintf("%064d", i), fmt.Sprint("pod", i)))
		if err != nil {
			t.Fatal(err)
		}
		living[l.Attachment] = l
		if i == n/2 && backup {
			if err := s.Backup(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if i%5 == 0 {
			if _, _, err := s.Release(t.Context(), l.Attachment); err != nil {
				t.Fatal(err)
			}
			delete(living, l.Attachment)
		}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return living
}

// holds checks that s holds the living leases and gives none of their addresses to others.
func holds(t testing.TB, s *Store, living node) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	taken := map[netip.Addr]Attachment{}
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		for _, a := range l.Addrs {
			if by, dup := taken[a]; dup {
				t.Fatalf("%s is held by %s and %s", a, by, l.Attachment)
			}
			taken[a] = l.Attachment
		}
	}
	for _, l := range living {
		for _, a := range l.Addrs {
			if taken[a] != l.Attachment {
				t.Fatalf("%s of %s: held by %q", a, l.Attachment, taken[a])
			}
		}
	}
	if len(leases) != len(living) {
		t.Fatalf("%d leases, %d links", len(leases), len(living))
	}
	p := testPool(t, "10.1.0.0/16", "fd00::/64")
	for i := range 20 {
		req := request(fmt.Sprint("after-", i), "")
		req.Pool = &p
		l, err := s.Allocate(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range l.Addrs {
			if by, dup := taken[a]; dup {
				t.Fatalf("%s of %s is given again", a, by)
			}
		}
	}
}

func TestDamagedFileIsRebuiltFromTheNode(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"garbage":   func(p string) error { return os.WriteFile(p, []byte("this is no database, not at all"), 0o600) },
		"empty":     func(p string) error { return os.Truncate(p, 0) },
		"halved":    func(p string) error { return os.Truncate(p, 40<<10) },
		"zeroed":    func(p string) error { return os.WriteFile(p, make([]byte, 1<<17), 0o600) },
		"missing":   os.Remove,
		"one meta":  func(p string) error { return flip(p, 4096+20, 1) },
		"free list": func(p string) error { return os.WriteFile(p+suffixSuspect, nil, 0o600) }, // whole: opens
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(ramDir(t), "ipam.db")
			living := filled(t, path, 60, true)
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			_, err := Open(t.Context(), path, Options{BootID: "boot-1"})
			if whole := name == "free list"; whole != (err == nil) || !whole && !errors.Is(err, ErrDamaged) {
				t.Fatalf("without the node's links: %v", err)
			} else if whole {
				return
			}
			s, err := Open(t.Context(), path, Options{BootID: "boot-1", Recover: living.recover})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r, ok := s.Rebuilt()
			if !ok || r.Cause == nil || r.Copied+r.Found != len(living) || r.Copied == 0 {
				t.Fatalf("%+v, %v", r, ok)
			}
			if name != "missing" {
				if _, err := os.Stat(r.Kept); err != nil {
					t.Fatal(err)
				}
			}
			// The copy knows who had which address, also where the node does not.
			req := request("again", "pod0")
			want(t, add(t, s, req), "10.1.0.1,fd00::1")
			if _, _, err := s.Release(t.Context(), req.Attachment); err != nil {
				t.Fatal(err)
			}
			holds(t, s, living)
		})
	}
}

// A link that does not tell its attachment, only a name made of it: the copy tells the rest. What
// the copy has of an earlier boot lives in this one when its link is there.
func TestRebuildKnowsAttachmentsByTheirLink(t *testing.T) {
	link := func(a Attachment) Attachment { return Attachment{ContainerID: "ew-" + a.ContainerID} }
	path := filepath.Join(ramDir(t), "ipam.db")
	s := open(t, path, "boot-1")
	if err := s.SetPool(t.Context(), testPool(t, "10.1.0.0/24")); err != nil {
		t.Fatal(err)
	}
	want(t, add(t, s, request("same", "same")), "10.1.0.1")
	want(t, add(t, s, request("gone", "gone")), "10.1.0.2")
	want(t, add(t, s, request("moved", "moved")), "10.1.0.3")
	if err := s.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	found := func() ([]Lease, error) {
		return []Lease{
			{Attachment: Attachment{ContainerID: "ew-same"}, Addrs: []netip.Addr{addr("10.1.0.1")}},
			{Attachment: Attachment{ContainerID: "ew-moved"}, Addrs: []netip.Addr{addr("10.1.0.2")}},
			{Attachment: Attachment{ContainerID: "ew-later"}, Addrs: []netip.Addr{addr("10.1.0.9")}},
			{Attachment: Attachment{ContainerID: "ew-twin"}, Addrs: []netip.Addr{addr("10.1.0.9")}},
		}, nil
	}
	s, err := Open(t.Context(), path, Options{BootID: "boot-2", Recover: found, FoundAs: link})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range leases {
		got = append(got, fmt.Sprintf("%s %s %s %s", l.Attachment.ContainerID, l.Pod.Name, addrStrings(l.Addrs), l.BootID))
	}
	slices.Sort(got)
	want(t, strings.Join(got, "\n"), "ew-later  10.1.0.9 boot-2\nmoved moved 10.1.0.2 boot-2\nsame same 10.1.0.1 boot-2")
	r, _ := s.Rebuilt()
	if r.Copied != 0 || r.Found != 3 || r.Ended != 1 || len(r.Conflicts) != 1 {
		t.Fatalf("%+v", r)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	want(t, add(t, s, request("new", "new")), "10.1.0.4")
}

func TestFirstOpenTakesTheNodesLinks(t *testing.T) {
	living := node{}
	living[Attachment{"a", "eth0"}] = Lease{Attachment: Attachment{"a", "eth0"}, Addrs: []netip.Addr{addr("10.1.0.1"), addr("fd00::1")}}
	s, err := Open(t.Context(), filepath.Join(ramDir(t), "ipam.db"), Options{BootID: "b", Recover: living.recover})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, living)
}

func flip(path string, at int64, mask byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= mask
	_, err = f.WriteAt(b, at)
	return err
}

// survives opens a damaged copy of a store, uses it, and checks that no address is given twice
// and no lease is missing without an error.
func survives(t *testing.T, path string, living node, what string) (outcome string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("after %s", what)
		}
	}()
	s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", what, err)
		}
		s, err = Open(t.Context(), path, Options{BootID: "boot-1", Recover: living.recover})
		if err != nil {
			t.Fatalf("%s: rebuild: %v", what, err)
		}
		holds(t, s, living)
		s.Close()
		return "found by open"
	}
	taken := map[netip.Addr]Attachment{}
	for _, l := range living {
		for _, a := range l.Addrs {
			taken[a] = l.Attachment
		}
	}
	// As a plugin would use it, not looking at all records.
	p := testPool(t, "10.1.0.0/16", "fd00::/64")
	for i := range 12 {
		req := request(fmt.Sprint("after-", i), "")
		if i%3 == 1 {
			req = request(fmt.Sprint("after-", i), fmt.Sprint("pod", i*5))
		}
		if i%4 == 3 {
			req.Addrs = []netip.Addr{addr("10.1.0.1").Next()}
		}
		req.Pool = &p
		l, err := s.Allocate(t.Context(), req)
		if err != nil {
			continue
		}
		for _, a := range l.Addrs {
			if by, dup := taken[a]; dup {
				t.Fatalf("%s: %s of %s is given again", what, a, by)
			}
			taken[a] = l.Attachment
		}
	}
	leases, err := s.Leases()
	met := errors.Is(err, ErrDamaged)
	if err == nil {
		in := node{}
		for _, l := range leases {
			in[l.Attachment] = l
		}
		for _, l := range living {
			if got := in[l.Attachment]; !sameAddrs(got.Addrs, l.Addrs) {
				t.Fatalf("%s: %s of %s silently became %s", what, addrStrings(l.Addrs), l.Attachment, addrStrings(got.Addrs))
			}
		}
	}
	checked := s.Check()
	if met && checked == nil {
		t.Fatalf("%s: Leases fails, Check does not", what)
	}
	if err := s.Close(); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatalf("%s: close: %v", what, err)
	}
	if checked == nil {
		return "harmless"
	}
	// What was met is checked and rebuilt by the next open.
	now := node{}
	for _, l := range living {
		now[l.Attachment] = l
	}
	s, err = Open(t.Context(), path, Options{BootID: "boot-1", Recover: now.recover})
	if err != nil {
		t.Fatalf("%s: open again: %v", what, err)
	}
	holds(t, s, now)
	s.Close()
	return "found in use"
}

func copyFile(t testing.TB, dst string, data []byte) {
	t.Helper()
	if err := os.WriteFile(dst, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEveryTruncation(t *testing.T) {
	if limited(t) {
		return
	}
	dir := ramDir(t)
	living := filled(t, filepath.Join(dir, "ipam.db"), 60, false)
	whole, err := os.ReadFile(filepath.Join(dir, "ipam.db"))
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]int{}
	for size := 0; size < min(len(whole), 300<<10); size += 4096 {
		for _, n := range []int{size, size + 100} {
			path := filepath.Join(ramDir(t), "ipam.db")
			copyFile(t, path, whole[:n])
			outcomes[survives(t, path, living, fmt.Sprintf("truncation to %d of %d", n, len(whole)))]++
		}
	}
	t.Log(outcomes)
}

func TestRandomDamage(t *testing.T) {
	if limited(t) {
		return
	}
	dir := ramDir(t)
	living := filled(t, filepath.Join(dir, "ipam.db"), 120, false)
	whole, err := os.ReadFile(filepath.Join(dir, "ipam.db"))
	if err != nil {
		t.Fatal(err)
	}
	rounds := 3000
	if testing.Short() {
		rounds = 60
	}
	r := random(t)
	outcomes := map[string]int{}
	path := filepath.Join(dir, "damaged", "ipam.db")
	for range rounds {
		os.RemoveAll(filepath.Dir(path))
		os.Mkdir(filepath.Dir(path), 0o700)
		data := append([]byte(nil), whole...)
		var what string
		switch r.IntN(4) {
		case 0: // one bit
			at, bit := r.IntN(len(data)), r.IntN(8)
			data[at] ^= 1 << bit
			what = fmt.Sprintf("bit %d of byte %#x", bit, at)
		case 1: // a bit of a page's first bytes, where the structure is
			at, bit := r.IntN(len(data)/4096)*4096+r.IntN(200), r.IntN(8)
			data[at] ^= 1 << bit
			what = fmt.Sprintf("bit %d of byte %#x", bit, at)
		case 2: // a sector of noise
			at := r.IntN(len(data)/512) * 512
			for i := range 512 {
				data[at+i] = byte(r.Uint32())
			}
			what = fmt.Sprintf("noise in the sector at %#x", at)
		case 3: // a page from elsewhere in the file
			from, to := r.IntN(len(data)/4096)*4096, r.IntN(len(data)/4096)*4096
			copy(data[to:to+4096], whole[from:from+4096])
			what = fmt.Sprintf("page %#x overwritten with %#x", to, from)
		}
		copyFile(t, path, data)
		outcomes[survives(t, path, living, what)]++
	}
	t.Log(outcomes)
}
