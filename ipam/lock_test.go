package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestSecondOpenIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, path, "b")
	start := time.Now()
	_, err := Open(t.Context(), path, Options{BootID: "b", LockTimeout: 30 * time.Millisecond})
	if !errors.Is(err, ErrLocked) || time.Since(start) < 30*time.Millisecond {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, path, Options{BootID: "b"}); !errors.Is(err, ErrLocked) || !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		s, err := Open(t.Context(), path, Options{BootID: "b", LockTimeout: time.Minute})
		if err == nil {
			err = s.Close()
		}
		done <- err
	}()
	s.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// As many plugin processes do when no daemon answers: each call opens the store for itself.
func TestManyOpensQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	open(t, path, "b").Close()
	p := testPool(t, "10.1.0.0/16")
	var mu sync.Mutex
	var waits []time.Duration
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for n := range 8 {
				start := time.Now()
				s, err := Open(t.Context(), path, Options{BootID: "b", LockTimeout: time.Minute})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				waits = append(waits, time.Since(start))
				mu.Unlock()
				req := request(fmt.Sprintf("g%d-%d", g, n), fmt.Sprint("pod", g))
				req.Pool = &p
				if _, err := s.Allocate(t.Context(), req); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(waits)
	t.Logf("open of 32 at once: p50 %v, p99 %v, max %v", waits[len(waits)/2], waits[len(waits)*99/100], waits[len(waits)-1])
	s := open(t, path, "b")
	leases, err := s.Leases()
	if err != nil || len(leases) != 256 {
		t.Fatal(len(leases), err)
	}
}

// An ADD wires its pod while others have the store; a DEL of the same attachment waits for it.
func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, path, "b")
	one, other := Attachment{"one", "eth0"}, Attachment{"other", "eth0"}
	release, err := TryClaim(path, one)
	if err != nil {
		t.Fatal(err)
	}
	free, err := Claim(t.Context(), path, other)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Claim(ctx, path, one); !errors.Is(err, ErrClaimed) {
		t.Fatal(err)
	}
	if _, err := TryClaim(path, one); !errors.Is(err, ErrClaimed) {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		again, err := Claim(t.Context(), path, one)
		if err == nil {
			err = again()
		}
		got <- err
	}()
	if err := errors.Join(release(), <-got, free()); err != nil {
		t.Fatal(err)
	}
	// The call that gave up may hold the claim for the moment in which the kernel grants it: only a call that waits
	// is sure to get it.
	again, err := Claim(t.Context(), path, one)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(again(), s.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, path, "b") // the claims were no lock of the store
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "edgeway")
	s := open(t, filepath.Join(dir, "ipam.db"), "b")
	if err := s.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatal(info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Error(e.Name(), info.Mode(), err)
		}
		names = append(names, e.Name())
	}
	want(t, strings.Join(names, " "), "ipam.db ipam.db.good ipam.db.lock")
}

func TestPathsThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	copyFile(t, file, []byte("x"))
	if _, err := Open(t.Context(), filepath.Join(file, "ipam.db"), Options{}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, path, "b")
	err := s.do(t.Context(), func(t *txn) error { return t.meta.put([]byte(keySchema), []byte{schema + 1}) })
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err = Open(t.Context(), path, Options{BootID: "b", Recover: node{}.recover})
	if err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "schema 4 is newer than this program's 3; install the version that wrote it") {
		t.Fatal(err)
	}
}

func TestClosedStore(t *testing.T) {
	s := newStore(t, "10.1.0.0/24")
	s.Close()
	if _, err := s.Allocate(t.Context(), request("a", "a")); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := s.Leases(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCallerThatGivesUp(t *testing.T) {
	s := newStore(t, "10.1.0.0/24")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l, err := s.Allocate(ctx, request("a", "a"))
	if err != nil && !errors.Is(err, context.Canceled) || err != nil && l.Addrs != nil {
		t.Fatal(l, err)
	}
	// A commit that hangs: the one behind it is taken back, never written.
	busy, release := make(chan struct{}), make(chan struct{})
	go s.do(t.Context(), func(*txn) error { close(busy); <-release; return nil })
	<-busy
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := s.Allocate(ctx, request("b", "b")); done <- err }()
	for queued := 0; queued == 0; {
		s.mu.Lock()
		queued = len(s.queue)
		s.mu.Unlock()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release)
	want(t, add(t, s, request("c", "c")), "10.1.0.1")
	if _, ok, err := s.Lookup(Attachment{"b", "eth0"}); ok || err != nil {
		t.Fatal("what was taken back was written", err)
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{250, 60000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "ipam.db")
			s := open(b, path, "boot-1")
			if err := s.SetPool(b.Context(), testPool(b, "10.1.0.0/16")); err != nil {
				b.Fatal(err)
			}
			fill(b, s, n)
			s.Close()
			b.ResetTimer()
			for range b.N {
				s, err := Open(b.Context(), path, Options{BootID: "boot-1"})
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
