package main

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// atOnce calls f for all pods at the same time and returns the replies.
func (t *T) atOnce(pods []*pod, f func(t *T, p *pod) reply) []reply {
	out := make([]reply, len(pods))
	inner := make([]*T, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		// Each call records its own failures. The pod's configuration is the check's.
		own := *t
		own.failed, own.cleanup = nil, nil
		inner[i] = &own
		wg.Go(func() { own.protected(func() { out[i] = f(&own, p) }) })
	}
	wg.Wait()
	for _, own := range inner {
		t.failed = append(t.failed, own.failed...)
		t.cleanup = append(t.cleanup, own.cleanup...)
	}
	return out
}

func (t *T) somePods(n int) (out []*pod) {
	for range n {
		out = append(out, t.pod())
	}
	return out
}

// attached returns the results of the pods whose ADD succeeded.
func (t *T) attached(pods []*pod) (out []result) {
	for _, p := range pods {
		if p.prev != nil {
			out = append(out, p.result())
		}
	}
	return out
}

// wantAll calls f for all pods at the same time; each call must succeed.
func (t *T) wantAll(pods []*pod, what string, f func(t *T, p *pod) reply) {
	for i, r := range t.atOnce(pods, f) {
		t.wants(r, fmt.Sprintf("%s %d", what, i))
	}
}

func addOne(t *T, p *pod) reply { return t.tryAdd(p) }
func delOne(t *T, p *pod) reply { return t.tryDel(p) }

func poolChecks() []check {
	return []check{
		{id: "pool.exhausted", level: must, section: "2,5", asks: "ADD on a full pool fails", needs: needRanges, run: func(t *T) {
			t.small(2)
			t.addPod()
			t.addPod()
			t.refuses(t.tryAdd(t.pod()), "the third ADD")
		}},
		{id: "pool.exhausted-code", level: should, section: "5", asks: "ADD on a full pool fails with a code of the table that fits (11, 50), or above 99", needs: needRanges, run: func(t *T) {
			t.small(1)
			t.addPod()
			r := t.tryAdd(t.pod())
			if c := r.code(); c != 11 && c != 50 && c < 100 {
				t.Errorf("%s", r.said())
			}
		}},
		{id: "pool.exhausted-clean", level: robust, section: "2", asks: "ADD on a full pool leaves nothing, neither on the host nor in the pod", needs: needRanges, run: func(t *T) {
			t.small(2)
			t.quiet()
			t.addPod()
			t.addPod()
			before := t.snap()
			for range 3 {
				p := t.pod()
				t.refuses(t.tryAdd(p), "ADD")
				t.noInterface(p)
			}
			t.nothingNew(before, "the refused ADD")
		}},
		{id: "pool.exactly", level: robust, section: "2", asks: "a pool of n addresses serves n pods", needs: needRanges, run: func(t *T) {
			t.small(5)
			t.room(5)
		}},
		{id: "pool.freed-after-full", level: should, section: "2", asks: "a full pool serves ADD again after a DEL", needs: needRanges, run: func(t *T) {
			t.small(2)
			p, _ := t.addPod()
			t.addPod()
			t.refuses(t.tryAdd(t.pod()), "ADD")
			t.del(p)
			t.addPod()
		}},
		{id: "pool.reuse-late", level: robust, section: "2", asks: "a freed address is not given out again at once while others are free", needs: needRanges, run: func(t *T) {
			t.small(4)
			p := t.pod()
			a := t.add(p).addrs()
			t.del(p)
			if b := t.add(t.pod()).addrs(); len(a) > 0 && len(b) > 0 && a[0] == b[0] {
				t.Errorf("%s again", a[0])
			}
		}},
		{id: "pool.inside", level: must, section: "2", asks: "addresses come from the range, and are never a subnet's first or last IPv4 address or its gateway", needs: needRanges, run: func(t *T) {
			p := netip.MustParsePrefix("10.223.0.0/29")
			gw := netip.MustParseAddr("10.223.0.3")
			t.net = t.net.small(1, 0).withIPAM("ranges", []any{[]any{object{"subnet": p.String(), "gateway": gw.String()}}})
			for range 8 {
				q := t.pod()
				if r := t.tryAdd(q); !r.ok() {
					break
				}
				r := q.result()
				for _, a := range r.addrs() {
					if !p.Contains(a) || a == p.Addr() || a == offset(p.Addr(), 7) || a == gw {
						t.Errorf("gives %s of %s, gateway %s", a, p, gw)
					}
				}
			}
		}},
	}
}

func concurrencyChecks() []check {
	return []check{
		{alone: true, id: "concurrency.64", level: must, section: "3", asks: "64 concurrent ADDs succeed with different addresses, and 64 concurrent DELs leave nothing", run: func(t *T) {
			const n = 64
			before := t.quiet()
			pods := t.somePods(n)
			t.wantAll(pods, "ADD", addOne)
			t.distinct(t.attached(pods)...)
			t.wantAll(pods, "DEL", delOne)
			t.nothingNew(before, "all of it")
		}},
		{alone: true, id: "concurrency.churn", level: must, section: "3", asks: "concurrent ADDs and DELs of different containers succeed (16 workers, 4 rounds) and leave nothing", run: func(t *T) {
			before := t.quiet()
			pods := t.somePods(16)
			t.wantAll(pods, "worker", func(t *T, p *pod) (r reply) {
				for range 4 {
					if r = t.tryAdd(p); !r.ok() {
						return r
					}
					if r = t.tryDel(p); !r.ok() {
						return r
					}
				}
				return r
			})
			t.nothingNew(before, "the churn")
		}},
		{alone: true, id: "concurrency.last-addresses", level: must, section: "3", asks: "16 concurrent ADDs for 6 addresses: each address is given once, and none is lost", needs: needRanges, run: func(t *T) {
			t.small(6)
			pods := t.somePods(16)
			t.atOnce(pods, addOne)
			all := t.attached(pods)
			t.distinct(all...)
			if len(all) != 6 {
				t.Errorf("%d of 16 got an address", len(all))
			}
			for _, p := range pods {
				t.tryDel(p)
			}
			t.room(6)
		}},
		{alone: true, id: "concurrency.fast", level: robust, section: "3", asks: "16 concurrent ADDs take less than 10 s", run: func(t *T) {
			pods := t.somePods(16)
			start := time.Now()
			t.atOnce(pods, addOne)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		}},
	}
}

// reused adds and deletes pods that get the same address, and sends to each pod at once.
func (t *T) reused(from *space) {
	for range 3 {
		p := t.pod()
		t.quicklyReached(from, p, t.add(p))
		t.del(p)
		p.remove()
	}
}

func (t *T) quicklyReached(from *space, p *pod, r result) {
	for _, a := range r.addrs() {
		if err := reachQuickly(from, p.space, a); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func hostChecks() []check {
	return []check{
		{alone: true, id: "host.reused-address", level: robust, section: "2", asks: "the host reaches the next pod that gets the same address within a second", needs: needRanges, run: func(t *T) {
			t.small(1)
			t.reused(t.host)
		}},
		{alone: true, id: "host.reused-address-pod", level: robust, section: "2", asks: "another pod reaches the next pod that gets the same address within a second", needs: needRanges, run: func(t *T) {
			t.small(2)
			other, _ := t.addPod()
			t.reused(other.space)
		}},
		{alone: true, id: "host.first-packet", level: robust, section: "2", asks: "the first packet after ADD arrives within a second", run: func(t *T) {
			p := t.pod()
			t.quicklyReached(t.host, p, t.add(p))
		}},
		{alone: true, id: "host.links-come-and-go", level: robust, section: "2", asks: "48 pods, four at a time, leave nothing", run: func(t *T) {
			before := t.quiet()
			for range 12 { // four at a time
				pods := t.somePods(4)
				t.wantAll(pods, "ADD", addOne)
				t.wantAll(pods, "DEL", delOne)
				for _, p := range pods {
					p.remove()
				}
			}
			t.nothingNew(before, "the pods")
		}},
	}
}

// quick is the time limit for a fresh pod's first packet.
const quick = 1 * time.Second

func reachQuickly(from, to *space, addr netip.Addr) error {
	start := time.Now()
	if _, err := reach(from, to, addr); err != nil {
		return err
	}
	if took := time.Since(start); took > quick {
		return fmt.Errorf("%s answers after %v", addr, took.Round(time.Millisecond))
	}
	return nil
}
