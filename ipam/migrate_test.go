package ipam

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The store in testdata was written by the last program of schema 1: two boots, two families,
// free addresses that remember pods, one that was told to forget. schema1.txt is what that program
// said of it.
func schema1(t testing.TB) (file []byte, says string) {
	t.Helper()
	packed, err := os.ReadFile("testdata/schema1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if file, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/schema1.txt")
	if err != nil {
		t.Fatal(err)
	}
	return file, string(text)
}

// tells lists leases and memories.
func tells(s *Store) (string, error) {
	var b strings.Builder
	leases, err := s.Leases()
	for _, l := range leases {
		fmt.Fprintln(&b, "lease", l.Attachment, l.Pod, addrStrings(l.Addrs), l.BootID)
	}
	memories, err2 := s.Remembered()
	for _, m := range memories {
		fmt.Fprintln(&b, "memory", m.Addr, m.Pod)
	}
	return b.String(), errors.Join(err, err2)
}

func TestStoreOfAnEarlierVersionOpens(t *testing.T) {
	file, says := schema1(t)
	path := filepath.Join(ramDir(t), "ipam.db")
	copyFile(t, path, file)
	for range 2 { // the second time it is of this version
		s := open(t, path, "boot-1")
		if got, err := tells(s); err != nil || got != says {
			t.Fatalf("%v\n%s", err, got)
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		if _, rebuilt := s.Rebuilt(); rebuilt {
			t.Fatal("was rebuilt")
		}
		s.Close()
	}
	s := open(t, path, "boot-1")
	want(t, add(t, s, request("again-18", "pod18")), "10.1.0.31,fd00::1f")   // remembered
	want(t, add(t, s, request("again-early", "early3")), "10.1.0.4,fd00::4") // of the boot before
	want(t, add(t, s, request("again-2", "pod2")), "10.1.0.73,fd00::49")     // pod2's are held
	if _, err := s.Allocate(t.Context(), request("c-1", "x")); !errors.Is(err, ErrHeld) {
		t.Fatal(err)
	}
	del(t, s, "c-1")
	want(t, add(t, s, request("c-1", "pod1")), "10.1.0.64,fd00::40") // the last of the two it had
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestSuspectStoreOfAnEarlierVersion(t *testing.T) {
	file, says := schema1(t)
	path := filepath.Join(ramDir(t), "ipam.db")
	copyFile(t, path, file)
	copyFile(t, path+suffixSuspect, nil)
	s := open(t, path, "boot-1")
	if got, err := tells(s); err != nil || got != says {
		t.Fatalf("%v\n%s", err, got)
	}
}

// The last good copy may be of an earlier version than the store that was lost.
func TestCopyOfAnEarlierVersion(t *testing.T) {
	file, _ := schema1(t)
	path := filepath.Join(ramDir(t), "ipam.db")
	copyFile(t, path+suffixGood, file)
	living := node{}
	living[Attachment{"c-1", "eth0"}] = Lease{Attachment: Attachment{"c-1", "eth0"}, Addrs: []netip.Addr{addr("10.1.0.14"), addr("fd00::e")}}
	s, err := Open(t.Context(), path, Options{BootID: "boot-1", Recover: living.recover})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, _ := s.Rebuilt()
	if r.Copied != 1 || r.Ended != 51 {
		t.Fatalf("%+v", r)
	}
	p := testPool(t, "10.1.0.0/24", "fd00::/64")
	req := request("again", "pod18")
	req.Pool = &p
	want(t, add(t, s, req), "10.1.0.31,fd00::1f")
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// Damage in a file of schema 1 is found before or by the step to this one, or later by whoever
// meets it: never is a lease lost without an error.
func TestDamagedStoreOfAnEarlierVersion(t *testing.T) {
	file, says := schema1(t)
	rounds := 600
	if testing.Short() {
		rounds = 40
	}
	r := random(t)
	outcomes := map[string]int{}
	path := filepath.Join(ramDir(t), "old", "ipam.db")
	for range rounds {
		at, bit := r.IntN(150<<10), r.IntN(8)
		data := bytes.Clone(file)
		data[at] ^= 1 << bit
		fresh(t, path, data)
		s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d of byte %#x: %v", bit, at, err)
			}
			outcomes["found by open"]++
			continue
		}
		got, err := tells(s)
		switch {
		case errors.Is(err, ErrDamaged):
			outcomes["found in use"]++
		case err != nil || got != says:
			t.Fatalf("bit %d of byte %#x: %v\n%s", bit, at, err, got)
		default:
			outcomes["harmless"]++
		}
		s.Close()
	}
	t.Log(outcomes)
}
