package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// nodes is the number of nodes in the largest measured LAN.
const nodes = 5000

// phantom returns the address and the pod CIDR of a node that exists only as a manifest. Addresses are in
// the LAN 10.0.0.0/16, from 10.0.1.1 on. Pod CIDRs start at 10.64.1.0/24.
func phantom(i int) (addr netip.Addr, cidr netip.Prefix) {
	addr = netip.AddrFrom4([4]byte{10, 0, byte(1 + i/250), byte(1 + i%250)})
	i++
	return addr, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + i>>8), byte(i), 0}), 24)
}

func newSpace(path string) (*lab.Space, error) {
	s, err := lab.NewSpace(path)
	if err != nil {
		return nil, err
	}
	return s, s.Loopback()
}

// newWire makes a namespace with the card eth0 in 10.0.0.0/16.
func newWire(ctx context.Context, name string) (*lab.Space, error) {
	s, err := newSpace("/run/netns/" + name)
	if err != nil {
		return nil, err
	}
	return s, s.IP(ctx, "link add eth0 type veth peer name wire0\nlink set wire0 up\nlink set eth0 up\naddr add 10.0.0.11/16 dev eth0\n")
}

// step brings the routes into a state. It returns the processor time of the processes that it started.
type step func(context.Context) (cpu time.Duration, err error)

// router is one way to write 5,000 routes.
type router struct {
	name  string
	space *lab.Space
	steps []step // first sync, nothing changed, removal
}

// routes compares the first sync, a sync without changes, and the removal.
func (b *bench) routes(ctx context.Context) (err error) {
	rounds := 7
	if b.quick {
		rounds = 3
	}
	var all []router
	for i, kind := range []func(*lab.Space) (router, error){newSync, newBatch} {
		s, err := newWire(ctx, fmt.Sprintf("routes-%d", i))
		if err != nil {
			return err
		}
		defer s.Remove()
		r, err := kind(s)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	steps := []string{"first sync", "nothing changed", "removal"}
	var samples [2][3]sample
	var grown [2][3]float64 // MiB by which this process's heap grew
	for round := range rounds {
		for _, i := range rotated(len(all), round) {
			for j := range steps {
				heap, own, start := heapMiB(), ownCPU(), time.Now()
				cpu, err := all[i].steps[j](ctx)
				if err != nil {
					return fmt.Errorf("%s: %w", all[i].name, err)
				}
				took := time.Since(start)
				grown[i][j] += heapMiB() - heap
				samples[i][j].add(sample{took: []time.Duration{took}, cpu: cpu + ownCPU() - own})
			}
		}
	}
	t := table{Name: "routes", Title: "Routes to 5,000 nodes, each with a next hop of its own on one link",
		Columns: columns("what", "by", "p50 (ms)", "most (ms)", "to ip -batch", "CPU (ms)", "events", "heap growth (MiB)", "rounds")}
	for j, what := range steps {
		for i, r := range all {
			events, err := counted(r.space, func() error { _, err := r.steps[j](ctx); return err })
			if err != nil {
				return err
			}
			s, peer := &samples[i][j], &samples[1][j]
			var heap any // ip has a process of its own
			if i == 0 {
				heap = grown[i][j]
				b.out.keep("routes/"+what+"/heap", grown[i][j])
			}
			t.row(what, r.name, ms(s.p50()), ms(s.quantile(1)), float64(s.p50())/float64(peer.p50()), ms(s.cpuEach()), events, heap, rounds)
			b.out.keep(fmt.Sprintf("routes/%s/%d/events", what, i), float64(events))
		}
		b.out.keep("routes/"+what, float64(samples[0][j].p50())/float64(samples[1][j].p50()))
	}
	t.note("With nothing changed ip -batch replaces every route one by one: it cannot know that nothing has changed. Events are what the kernel announced in one more round (rtnetlink(7)): routes of IPv4, and next hop objects. The heap's growth (HeapSys and StackSys of runtime.MemStats) is of all rounds together.")
	b.out.add(t)
	return nil
}

// heapMiB is the memory that the heap of this process has taken from the kernel, and its goroutines' stacks,
// which take their memory from the heap and give it back.
func heapMiB() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapSys+m.StackSys) / (1 << 20)
}

// counted calls f and counts the kernel's events about routes and next hop objects.
func counted(s *lab.Space, f func() error) (events int, err error) {
	err = s.Do(func() error {
		sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_NEXTHOP)
		if err != nil {
			return err
		}
		defer sock.Close()
		if err := sock.SetReceiveBufferSize(64<<20, true); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		// All events that f caused are in the socket's buffer by now.
		quiet := unix.Timeval{Usec: 50_000}
		if err := sock.SetReceiveTimeout(&quiet); err != nil {
			return err
		}
		for {
			messages, _, err := sock.Receive()
			if errors.Is(err, unix.EAGAIN) {
				return nil
			}
			if err != nil {
				return err
			}
			events += len(messages)
		}
	})
	return events, err
}

// newSync writes the routes with edgeway's own package.
func newSync(s *lab.Space) (r router, err error) {
	var k *routes.Kernel
	if err := s.Do(func() (err error) { k, err = routes.Open(); return err }); err != nil {
		return r, err
	}
	var full routes.State
	for i := range nodes {
		via, dst := phantom(i)
		full.Routes = append(full.Routes, routes.Route{Dst: dst, Via: via, Link: "eth0", Protocol: routes.ProtoNode})
	}
	sync := func(want routes.State, changes int) step {
		return func(ctx context.Context) (time.Duration, error) {
			got, err := k.Sync(ctx, routes.Scope{Protocol: routes.ProtoNode}, want)
			if err == nil && len(got) != changes {
				err = fmt.Errorf("%d changes, want %d", len(got), changes)
			}
			return 0, err
		}
	}
	return router{"edgeway", s, []step{sync(full, nodes), sync(full, 0), sync(routes.State{}, nodes)}}, nil
}

// newBatch writes the routes with `ip -batch`, an operator's fastest tool.
func newBatch(s *lab.Space) (router, error) {
	var script strings.Builder
	for i := range nodes {
		via, dst := phantom(i)
		fmt.Fprintf(&script, "route VERB %s via %s dev eth0 proto 119\n", dst, via)
	}
	batch := func(verb string) step {
		text := strings.ReplaceAll(script.String(), "VERB", verb)
		return func(ctx context.Context) (cpu time.Duration, err error) {
			err = s.Do(func() error {
				cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
				cmd.Stdin = strings.NewReader(text)
				out, err := cmd.CombinedOutput()
				if err != nil {
					return fmt.Errorf("ip -batch: %w: %.300s", err, out)
				}
				cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				return nil
			})
			return cpu, err
		}
	}
	return router{"ip -batch", s, []step{batch("add"), batch("replace"), batch("del")}}, nil
}
