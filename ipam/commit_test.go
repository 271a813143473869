package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCallersShareCommits(t *testing.T) {
	s := newStore(t, "10.1.0.0/16", "fd00::/64")
	const callers, rounds = 64, 20
	var mu sync.Mutex
	taken := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for r := range rounds {
				id := fmt.Sprintf("c%d-%d", c, r)
				l, err := s.Allocate(t.Context(), request(id, fmt.Sprint("pod", c)))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, a := range l.Addrs {
					if by, dup := taken[a]; dup {
						t.Errorf("%s is held by %s and %s", a, by, id)
					}
					taken[a] = id
				}
				mu.Unlock()
				if r%2 == 0 {
					mu.Lock()
					for _, a := range l.Addrs {
						delete(taken, a)
					}
					mu.Unlock()
					if _, ok, err := s.Release(t.Context(), l.Attachment); !ok || err != nil {
						t.Error("release", ok, err)
					}
				}
			}
		})
	}
	wg.Wait()
	leases, err := s.Leases()
	if err != nil || len(leases) != callers*rounds/2 {
		t.Fatal(len(leases), err)
	}
}

func TestBadRequestDoesNotFailItsNeighbours(t *testing.T) {
	s := newStore(t, "10.1.0.0/16")
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			req := request(fmt.Sprint("c", i), "")
			if i%2 == 0 {
				req.Addrs = []netip.Addr{addr("192.0.2.1")}
			}
			if _, err := s.Allocate(t.Context(), req); (err != nil) != (i%2 == 0) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// When all pods went and one came in the same commit, the store hung: bbolt's cursor does not find the last
// record of a tree whose leaves a transaction emptied.
func TestAllGoAndOneComesInOneCommit(t *testing.T) {
	s := newStore(t, "10.1.0.0/16")
	fill(t, s, 300)
	pool, err := testPool(t, "10.1.0.0/16").layout()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = s.do(ctx, func(t *txn) error {
		all, err := t.all()
		for _, h := range all {
			if err == nil {
				err = t.end(h)
			}
		}
		for i := range 40 { // before and behind all keys that were there
			if err == nil {
				_, err = t.allocate(request(fmt.Sprint("new", i), "new"), pool, nil)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkAllocateRelease is one ADD and one DEL by as many callers at once.
func BenchmarkAllocateRelease(b *testing.B) {
	for _, callers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("store/%d", callers), func(b *testing.B) {
			s := newStore(b, "10.1.0.0/16")
			parallel(b, callers, func(i int64) error {
				req := request(fmt.Sprint("c", i), fmt.Sprint("p", i))
				if _, err := s.Allocate(b.Context(), req); err != nil {
					return err
				}
				_, _, err := s.Release(b.Context(), req.Attachment)
				return err
			})
		})
	}
}

// parallel runs b.N calls of fn by as many goroutines.
func parallel(b *testing.B, goroutines int, fn func(i int64) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range goroutines {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := fn(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}

// BenchmarkAddBesideLeases is one ADD beside 10 and beside 60,000 leases, in turns; it reports
// both medians and their ratio.
func BenchmarkAddBesideLeases(b *testing.B) {
	var stores []*Store
	sizes := []int{10, 250, 60000}
	for _, n := range sizes {
		s := newStore(b, "10.1.0.0/16")
		fill(b, s, n)
		stores = append(stores, s)
	}
	took := make([][]time.Duration, len(stores))
	b.ResetTimer()
	for i := range b.N {
		for k := range stores {
			k = (k + i) % len(stores)
			req := request(fmt.Sprintf("x%063d", i), fmt.Sprint("x", i))
			start := time.Now()
			if _, err := stores[k].Allocate(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			took[k] = append(took[k], time.Since(start))
			if _, _, err := stores[k].Release(b.Context(), req.Attachment); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	for k, n := range sizes {
		slices.Sort(took[k])
		b.ReportMetric(float64(took[k][len(took[k])/2].Microseconds()), fmt.Sprintf("us-%d", n))
		b.ReportMetric(float64(took[k][len(took[k])/2])/float64(took[0][len(took[0])/2]), fmt.Sprintf("ratio-%d", n))
	}
}

func fill(b testing.TB, s *Store, n int) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if _, err := s.Allocate(b.Context(), request(fmt.Sprintf("%064d", i), fmt.Sprint("pod", i))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Check, Backup and readers beside writers find nothing wrong, and hold nobody up.
func TestCheckBesideWriters(t *testing.T) {
	s := newStore(t, "10.1.0.0/20", "fd00::/64")
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	var writers sync.WaitGroup
	done := make(chan struct{})
	for g := range 8 {
		writers.Go(func() {
			for i := range rounds {
				req := request(fmt.Sprintf("g%d-%d", g, i), fmt.Sprint("pod", g, i%50))
				if _, err := s.Allocate(t.Context(), req); err != nil {
					t.Error(err)
				}
				if i%3 > 0 {
					if _, _, err := s.Release(t.Context(), req.Attachment); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	go func() { writers.Wait(); close(done) }()
	checks := 0
	for running := true; running; checks++ {
		select {
		case <-done:
			running = false
		default:
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		if err := s.Backup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remembered(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d checks and copies beside %d changes", checks, 8*rounds)
}
