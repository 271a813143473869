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

// The stores in testdata were written by the last programs of schemas 1 and 2: two boots, two families,
// free addresses that remember pods, one that was told to forget. The store of schema 2 has records in its
// journal, two pools that overlap, an adopted lease. schema1.txt and schema2.txt are what those programs
// said of them.
func earlier(t testing.TB, schema int) (file []byte, says string) {
	t.Helper()
	name := fmt.Sprint("testdata/schema", schema)
	packed, err := os.ReadFile(name + ".db.gz")
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
	text, err := os.ReadFile(name + ".txt")
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
	for _, schema := range []int{1, 2} {
		t.Run(fmt.Sprint(schema), func(t *testing.T) {
			file, says := earlier(t, schema)
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
		})
	}
}

// The choice of addresses goes on as it was.
func TestChoiceAfterAnEarlierVersion(t *testing.T) {
	file, _ := earlier(t, 1)
	path := filepath.Join(ramDir(t), "ipam.db")
	copyFile(t, path, file)
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

func TestChoiceAfterSchema2(t *testing.T) {
	file, _ := earlier(t, 2)
	path := filepath.Join(ramDir(t), "ipam.db")
	copyFile(t, path, file)
	copyFile(t, path+suffixSuspect, nil) // checked record by record
	s := open(t, path, "boot-1")
	want(t, add(t, s, request("again-18", "pod18")), "10.1.0.32,fd00::1f")   // remembered
	want(t, add(t, s, request("again-late", "late2")), "10.1.0.80,fd00::4b") // by the journal
	want(t, add(t, s, request("new", "new")), "10.1.0.84,fd00::4f")          // never used
	if l, ok, err := s.Lookup(Attachment{"adopted", "eth0"}); err != nil || !ok || l.RememberAs != "edgeway" {
		t.Fatal(l, ok, err)
	}
	if _, err := s.Allocate(t.Context(), request("c-1", "x")); !errors.Is(err, ErrHeld) {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// The last good copy may be of an earlier version than the store that was lost.
func TestCopyOfAnEarlierVersion(t *testing.T) {
	file, _ := earlier(t, 1)
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
	if limited(t) {
		return
	}
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	r := random(t)
	outcomes := map[string]int{}
	path := filepath.Join(ramDir(t), "old", "ipam.db")
	for schema := 1; schema <= 2; schema++ {
		file, says := earlier(t, schema)
		for range rounds {
			at, bit := r.IntN(len(file)), r.IntN(8)
			data := bytes.Clone(file)
			data[at] ^= 1 << bit
			fresh(t, path, data)
			s, err := Open(t.Context(), path, Options{BootID: "boot-1"})
			if err != nil {
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("schema %d, bit %d of byte %#x: %v", schema, bit, at, err)
				}
				outcomes["found by open"]++
				continue
			}
			got, err := tells(s)
			if err != nil || got != says {
				t.Fatalf("schema %d, bit %d of byte %#x: %v\n%s", schema, bit, at, err, got)
			}
			outcomes["harmless"]++
			s.Close()
		}
	}
	t.Log(outcomes)
}
