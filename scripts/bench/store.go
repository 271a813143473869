package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// The load of the store's tables: each caller leases an address and releases it, over and over, beside a
// number of permanent leases.

// leaser is a store of addresses.
type leaser interface {
	allocate(ctx context.Context, id string) error
	release(ctx context.Context, id string) error
	close() error
}

// storeKind opens a leaser in an empty directory and gives it n permanent leases.
type storeKind struct {
	name string
	open func(ctx context.Context, dir string, n int) (leaser, error)
	held int
}

func storeKinds() []storeKind {
	return []storeKind{
		{"edgeway", openOurs, 10},
		{"one bbolt.Update a call", openUpdates, 10},
		{"host-local", openHostLocal, 10},
		{"host-local", openHostLocal, 250},
		{"host-local", openHostLocal, 4000},
	}
}

// storeSubnet is the subnet of all stores' leases.
const storeSubnet = "10.1.0.0/16"

// pairs holds the samples of leases and their releases.
type pairs struct {
	allocate, release sample
	mu                sync.Mutex // guards the samples while callers run
}

// measure runs one cell and adds to p. The processor time of lease and release is recorded in allocate.
func (p *pairs) measure(ctx context.Context, l leaser, callers int, limit time.Duration, ids *atomic.Int64) error {
	cpu, start := ownCPU(), time.Now()
	err := parallel(ctx, callers, limit, func(int) error {
		id := fmt.Sprintf("%064x", ids.Add(1))
		t0 := time.Now()
		if err := l.allocate(ctx, id); err != nil {
			return err
		}
		t1 := time.Now()
		if err := l.release(ctx, id); err != nil {
			return err
		}
		t2 := time.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.allocate.took = append(p.allocate.took, t1.Sub(t0))
		p.release.took = append(p.release.took, t2.Sub(t1))
		return nil
	})
	p.allocate.wall += time.Since(start)
	p.allocate.cpu += ownCPU() - cpu
	return err
}

func (b *bench) storeCallers(ctx context.Context) error {
	rounds, limit := 4, 250*time.Millisecond
	if b.quick {
		rounds, limit = 2, 100*time.Millisecond
	}
	kinds := storeKinds()
	stores, done, err := b.openStores(ctx, kinds)
	defer done()
	if err != nil {
		return err
	}
	t := table{Name: "store/callers", Title: "Address store: lease and release, callers side by side in one process",
		Columns: columns("callers", "store", "held", "lease p50 (µs)", "p99 (µs)", "release p50 (µs)", "pairs/s", "pairs/s to edgeway", "CPU/pair (µs)", "pairs")}
	var ids atomic.Int64
	ids.Store(1 << 32)
	for _, callers := range []int{1, 8, 32} {
		cells := make([]pairs, len(kinds))
		for round := range rounds {
			for _, i := range rotated(len(kinds), round) {
				if err := cells[i].measure(ctx, stores[i], callers, limit, &ids); err != nil {
					return fmt.Errorf("%s: %w", kinds[i].name, err)
				}
			}
		}
		for i, k := range kinds {
			c := &cells[i]
			t.row(callers, k.name, k.held, us(c.allocate.p50()), us(c.allocate.p99()), us(c.release.p50()), c.allocate.rate(),
				c.allocate.rate()/cells[0].allocate.rate(), us(c.allocate.cpuEach()), len(c.allocate.took))
		}
		b.out.keep(fmt.Sprintf("store/update/%d", callers), cells[1].allocate.rate()/cells[0].allocate.rate())
	}
	t.note("edgeway and bbolt.Update are on disk before they answer (two fdatasync a commit); host-local never calls fsync, so its leases may be lost with the power. " +
		"bbolt.Update is a bare pair of keys with the address chosen in memory: the least such a store can do. host-local is its own packages in this process, without the exec of the plugin.")
	b.out.add(t)
	return nil
}

// openStores opens one store of each kind; done closes and removes them.
func (b *bench) openStores(ctx context.Context, kinds []storeKind) (stores []leaser, done func(), err error) {
	var dirs []string
	done = func() {
		for _, s := range stores {
			_ = s.close()
		}
		for _, d := range dirs {
			_ = os.RemoveAll(d)
		}
	}
	for _, k := range kinds {
		dir, err := os.MkdirTemp(b.dir, "store-")
		if err != nil {
			return stores, done, err
		}
		dirs = append(dirs, dir)
		s, err := k.open(ctx, dir, k.held)
		if err != nil {
			return stores, done, fmt.Errorf("%s with %d leases: %w", k.name, k.held, err)
		}
		stores = append(stores, s)
	}
	return stores, done, nil
}

// storeLeases compares few leases with many, pair by pair, so that a disturbance affects both.
func (b *bench) storeLeases(ctx context.Context) error {
	n := 2000
	if b.quick {
		n = 300
	}
	kinds := []storeKind{{"edgeway", openOurs, 10}, {"edgeway", openOurs, 4000}, {"edgeway", openOurs, 60_000}}
	stores, done, err := b.openStores(ctx, kinds)
	defer done()
	if err != nil {
		return err
	}
	cells := make([]pairs, len(kinds))
	var ids atomic.Int64
	ids.Store(1 << 33)
	for round := range n {
		for _, i := range rotated(len(kinds), round) {
			if err := cells[i].measure(ctx, stores[i], 1, 0, &ids); err != nil {
				return err
			}
		}
	}
	t := table{Name: "store/leases", Title: "Address store: one caller, beside leases in a /16",
		Columns: columns("store", "held", "lease p50 (µs)", "p99 (µs)", "to 10 held", "release p50 (µs)", "to 10 held", "CPU/pair (µs)", "to 10 held", "pairs")}
	for i, k := range kinds {
		c, first := &cells[i], &cells[0]
		t.row(k.name, k.held, us(c.allocate.p50()), us(c.allocate.p99()), ratio(c.allocate.p50(), first.allocate.p50()),
			us(c.release.p50()), ratio(c.release.p50(), first.release.p50()),
			us(c.allocate.cpuEach()), ratio(c.allocate.cpuEach(), first.allocate.cpuEach()), n)
	}
	b.out.keep("store/4000", ratio(cells[1].allocate.p50(), cells[0].allocate.p50()))
	b.out.keep("store/60000", ratio(cells[2].allocate.p50(), cells[0].allocate.p50()))
	b.out.add(t)
	return nil
}

// storeFsyncs counts the fsync calls of a process that only loads the store, with strace(1).
func (b *bench) storeFsyncs(ctx context.Context) error {
	const each = 160
	t := table{Name: "store/fsync", Title: "Address store: fsync and fdatasync calls",
		Columns: columns("store", "held", "callers", "pairs", "fsyncs", "fsyncs/pair")}
	dir, err := os.MkdirTemp(b.dir, "load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	count := func(kind, callers, pairs int) (int, error) {
		log := filepath.Join(dir, fmt.Sprintf("%d-%d-%d", kind, callers, pairs))
		return traceSelf(ctx, log, fmt.Sprintf("%d %d %d %s", kind, callers, pairs, log+".store"))
	}
	for i, k := range storeKinds()[:3] {
		opening, err := count(i, 1, 0) // with its first leases
		if err != nil {
			return err
		}
		for _, callers := range []int{1, 8, 32} {
			n, err := count(i, callers, each)
			if err != nil {
				return err
			}
			n -= opening
			t.row(k.name, k.held, callers, each, n, float64(n)/each)
		}
	}
	b.out.add(t)
	return nil
}

// storeLoad is the process that storeFsyncs traces.
func storeLoad(ctx context.Context, load string) error {
	var kind, callers, n int
	var dir string
	if _, err := fmt.Sscanf(load, "%d %d %d %s", &kind, &callers, &n, &dir); err != nil {
		return fmt.Errorf("-load %q: %w", load, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	k := storeKinds()[kind]
	s, err := k.open(ctx, dir, k.held)
	if err != nil {
		return err
	}
	q := queue{n: n, deadline: time.Now().Add(time.Minute)}
	err = parallel(ctx, callers, 0, func(int) error {
		for i, ok := q.take(); ok; i, ok = q.take() {
			id := fmt.Sprintf("%064x", 1<<34+i)
			if err := s.allocate(ctx, id); err != nil {
				return err
			}
			if err := s.release(ctx, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.close()
}
