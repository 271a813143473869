package ipam

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// limitEnv makes a test's process one with little memory, bareEnv one that uses the file named there with
// bbolt alone.
const limitEnv, bareEnv = "IPAM_TEST_LIMIT", "IPAM_TEST_BARE"

// memoryLimit is for limitEnv, in MiB.
const memoryLimit = "256"

// limitMemory bounds what this process may allocate. It sets RLIMIT_DATA and not RLIMIT_AS: a store in
// which bbolt panicked leaves its mapping of the file behind.
func limitMemory(mib string) {
	n, err := strconv.ParseUint(mib, 10, 64)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: n << 20, Max: n << 20})
	}
	if err != nil {
		panic(err)
	}
}

// limited runs the test in a child whose memory is limited, and reports whether it did: the child has to go
// on. What a damaged file says must not be allocated.
func limited(t *testing.T) bool {
	t.Helper()
	if os.Getenv(limitEnv) != "" {
		return false
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", fmt.Sprintf("-ipam.seed=%d", *seed), fmt.Sprintf("-test.short=%v", testing.Short())}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), limitEnv+"="+memoryLimit)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out[:min(len(out), 20000)])
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// page returns a page of a file.
func page(data []byte, id uint64) []byte { return data[id*4096:][:4096] }

// inUse returns the pages of a store that are in use and of a kind.
func inUse(t *testing.T, data []byte, flags uint64) (ids []uint64) {
	t.Helper()
	m, err := readMeta(data)
	if err != nil {
		t.Fatal(err)
	}
	n := u64(m[40:])
	p := &pages{data: data, size: 4096, free: make([]bool, n), kept: make([]bool, n), refs: make([]bool, n)}
	if err := p.readFreelist(u64(m[32:])); err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); id < n; id++ {
		if !p.free[id] && u64(page(data, id)) == id && u16(page(data, id)[8:]) == flags {
			ids = append(ids, id)
		}
	}
	return ids
}

func put32(b []byte, x uint32) { binary.NativeEndian.PutUint32(b, x) }
func put64(b []byte, x uint64) { binary.NativeEndian.PutUint64(b, x) }

// boundless is damage at which bbolt takes all the memory that there is, or its stack ends: no recover
// helps.
var boundless = []struct {
	name   string
	kind   uint64
	damage func(page []byte, id uint64)
	// bare: bbolt does not survive it. It may survive the others, or not, as the pages lie.
	bare bool
}{
	{"a branch leads to itself", flagBranch, func(p []byte, id uint64) { put64(p[pageHead+8:], id) }, true},
	{"a leaf became a branch that leads to itself", flagLeaf, func(p []byte, id uint64) {
		p[8] = flagBranch
		for i := range u16(p[10:]) {
			put64(p[pageHead+i*elementSize+8:], id)
			put32(p[pageHead+i*elementSize+4:], 1)
		}
	}, true},
	{"a thousand million overflow pages", flagLeaf, func(p []byte, _ uint64) { put32(p[12:], 1<<30) }, false}, // bbolt survives it if it frees a page behind the page first
	{"a value of a gigabyte", flagLeaf, func(p []byte, _ uint64) { put32(p[pageHead+12:], 1<<30) }, false},
	{"a key of a gigabyte", flagLeaf, func(p []byte, _ uint64) { put32(p[pageHead+8:], 1<<30) }, false},
	{"too many elements", flagLeaf, func(p []byte, _ uint64) { put32(p[10:], 60000) }, false},
	{"a free list without end", flagFreelist, func(p []byte, _ uint64) { p[10], p[11] = 0xff, 0xff; put64(p[pageHead:], 1<<33) }, true},
}

func TestDamageThatTakesAllMemory(t *testing.T) {
	if limited(t) {
		return
	}
	dir := ramDir(t)
	living := filled(t, filepath.Join(dir, "ipam.db"), 300, false)
	whole := readFile(t, filepath.Join(dir, "ipam.db"))
	for _, d := range boundless {
		ids := inUse(t, whole, d.kind)
		if len(ids) == 0 {
			t.Fatalf("%s: no page", d.name)
		}
		for _, id := range ids {
			data := bytes.Clone(whole)
			d.damage(page(data, id), id)
			path := filepath.Join(dir, "damaged", "ipam.db")
			fresh(t, path, data)
			if _, err := Open(t.Context(), path, Options{BootID: "boot-1"}); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s, page %d: %v", d.name, id, err)
			}
			s, err := Open(t.Context(), path, Options{BootID: "boot-1", Recover: living.recover})
			if err != nil {
				t.Fatal(err)
			}
			holds(t, s, living)
			s.Close()
		}
	}
}

// bare uses a file as the store would, but without looking at its pages first.
func bare(path string) {
	err := guarded(func() error {
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			return err
		}
		return db.Update(func(tx *bbolt.Tx) error {
			t := newTxn(tx, "boot-1")
			for _, tab := range []table{t.leases, t.addrs, t.free, t.pods} {
				cur := tab.b.Cursor()
				for k, v := cur.First(); k != nil; k, v = cur.Next() {
					if err := tab.b.Put(k, bytes.Clone(v)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
	fmt.Println("survived:", err)
}

// If this fails, bbolt has learned to bound itself, and the inspection of pages can go.
func TestBboltAloneTakesAllMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a gigabyte")
	}
	dir := ramDir(t)
	filled(t, filepath.Join(dir, "ipam.db"), 300, false)
	whole := readFile(t, filepath.Join(dir, "ipam.db"))
	for _, d := range boundless {
		if !d.bare {
			continue
		}
		ids := inUse(t, whole, d.kind)
		slices.Reverse(ids)
		died := slices.ContainsFunc(ids, func(id uint64) bool {
			data := bytes.Clone(whole)
			d.damage(page(data, id), id)
			path := filepath.Join(dir, "bare.db")
			copyFile(t, path, data)
			cmd := exec.CommandContext(context.Background(), os.Args[0])
			cmd.Env = append(os.Environ(), limitEnv+"="+memoryLimit, bareEnv+"="+path)
			out, err := cmd.CombinedOutput()
			t.Logf("%s, page %d: %v: %.120s", d.name, id, err, out)
			return err != nil
		})
		if !died {
			t.Errorf("%s: bbolt survives it", d.name)
		}
	}
}
