package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// verbs are the samples of one contender's round.
type verbs struct {
	add, del sample
}

// pods compares the execs of ADD and DEL, for which a container runtime waits.
func (b *bench) pods(ctx context.Context, f family) error {
	if b.own {
		return errors.New("-own leaves out the peers to compare with; use -run pods/counts")
	}
	rounds, n, limit := 4, 64, 2500*time.Millisecond
	if b.quick {
		rounds, n = 1, 32
	}
	a, err := b.newArena(ctx, f, n)
	if a != nil {
		defer a.close()
	}
	if err != nil {
		return err
	}
	title := map[family]string{v4: "IPv4", dual: "dual stack"}[f]
	t := table{Name: "pods/" + string(f), Title: "A pod's ADD and DEL as a runtime waits for it, " + title,
		Columns: columns("pods at once", "plugin", "ADD p50 (ms)", "p99 (ms)", "to ptp", "CPU (ms)", "daemon's (ms)", "ADDs/s", "DEL p50 (ms)", "p99 (ms)", "to ptp", "CPU (ms)", "daemon's (ms)", "DELs/s", "pods")}
	for _, at := range []int{1, 8, 32} {
		cells := make([]verbs, len(a.contenders))
		pods := n
		if at == 1 {
			pods = n / 2
		}
		for round := range rounds {
			for _, i := range rotated(len(cells), round) {
				v, err := a.contenders[i].round(ctx, fmt.Sprintf("%02d%02d", at, round), at, pods, limit)
				if err != nil {
					return err
				}
				cells[i].add.add(v.add)
				cells[i].del.add(v.del)
			}
		}
		b.podRows(&t, a, f, at, cells)
	}
	t.note("Both verbs run to their end: the exec of the plugin until its exit. CPU is of the plugin, its children and the daemon; what the kernel does later on its own threads is not in it. " +
		"edgeway has each lease on disk before it answers, host-local never. p99 of fewer than a hundred pods is the slowest. The last two rows are what no plugin can save: " +
		"the start of a Go program that does nothing, and edgeway's netlink requests from a process that runs already.")
	b.out.add(t)
	return nil
}

func (b *bench) podRows(t *table, a *arena, f family, at int, cells []verbs) {
	const ptp = 2
	for i := range cells {
		c, p := &cells[i], &cells[ptp]
		add := float64(c.add.p50()) / float64(p.add.p50())
		del := float64(c.del.p50()) / float64(p.del.p50())
		t.row(at, a.contenders[i].name, ms(c.add.p50()), ms(c.add.p99()), add, ms(c.add.cpuEach()), ms(c.add.each(c.add.daemon)), c.add.rate(),
			ms(c.del.p50()), ms(c.del.p99()), del, ms(c.del.cpuEach()), ms(c.del.each(c.del.daemon)), c.del.rate(), len(c.add.took))
	}
	o, p := &cells[0], &cells[ptp]
	start, kernel := &cells[4], &cells[5]
	key := func(what string) string { return fmt.Sprintf("pods/%s/%d/%s", f, at, what) }
	// A call cannot take less than the start of a program and the kernel's part.
	keep := func(verb string, o, p, start, kernel *sample) {
		b.out.keep(key(verb), ratio(o.p50(), p.p50()))
		b.out.keep(key(verb+"/least"), ratio(start.p50()+kernel.p50(), p.p50()))
		b.out.keep(key(verb+"-cpu"), ratio(o.cpuEach(), p.cpuEach()))
		b.out.keep(key(verb+"-cpu/least"), ratio(start.cpuEach()+kernel.cpuEach(), p.cpuEach()))
		b.out.keep(key(verb+"-rate"), p.rate()/o.rate())
		// The processors have no idle time then, so a rate is the processor time of a call and of this program for it.
		b.out.keep(key(verb+"-rate/least"), ratio(start.cpuEach()+kernel.cpuEach()+start.each(start.own), p.cpuEach()+p.each(p.own)))
	}
	keep("add", &o.add, &p.add, &start.add, &kernel.add)
	keep("del", &o.del, &p.del, &start.del, &kernel.del)
	b.out.keep(key("add-ms"), ms(o.add.p50()))
	b.out.keep(key("add-p99"), ratio(o.add.p99(), p.add.p99()))
	b.out.keep(key("start-ms"), ms(start.add.cpuEach()))
	b.out.keep(key("kernel-ms"), ms(kernel.add.cpuEach()))
	b.out.keep(key("alone-rate"), p.add.rate()/cells[1].add.rate())
}

// round adds the contender's pods, at most `at` at once, and deletes them.
func (c *contender) round(ctx context.Context, name string, at, pods int, limit time.Duration) (v verbs, err error) {
	var results []json.RawMessage
	if v.add, results, err = c.adds(ctx, name, at, pods, limit); err == nil {
		v.del, err = c.dels(ctx, name, at, results)
	}
	return v, err
}

// adds adds pods, and returns the results of those that were added before limit.
func (c *contender) adds(ctx context.Context, name string, at, pods int, limit time.Duration) (s sample, results []json.RawMessage, err error) {
	results = make([]json.RawMessage, pods)
	s, err = c.phase(ctx, at, pods, limit, func(i int) (took, cpu time.Duration, err error) {
		took, cpu, out, err := c.call(ctx, invocation{"ADD", containerID(name, i), c.pods[i], nil})
		results[i] = out
		return took, cpu, err
	})
	return s, results[:len(s.took)], err
}

// dels deletes the pods that adds added.
func (c *contender) dels(ctx context.Context, name string, at int, results []json.RawMessage) (sample, error) {
	return c.phase(ctx, at, len(results), time.Minute, func(i int) (took, cpu time.Duration, err error) {
		took, cpu, _, err = c.call(ctx, invocation{"DEL", containerID(name, i), c.pods[i], results[i]})
		return took, cpu, err
	})
}

func containerID(name string, i int) string { return fmt.Sprintf("%s%060x", name, i) }

// phase makes the calls of one verb, call(0) to call(n-1), from `at` threads. It starts no call after
// limit.
func (c *contender) phase(ctx context.Context, at, n int, limit time.Duration, call func(i int) (took, cpu time.Duration, err error)) (s sample, err error) {
	own := ownCPU()
	daemon, err := c.daemonCPU()
	if err != nil {
		return s, err
	}
	var mu sync.Mutex // guards s
	q := queue{n: n, deadline: time.Now().Add(limit)}
	start := time.Now()
	err = parallel(ctx, at, 0, func(int) error {
		return c.host.Do(func() error {
			for i, ok := q.take(); ok; i, ok = q.take() {
				took, cpu, err := call(i)
				if err != nil {
					return err
				}
				mu.Lock()
				s.took = append(s.took, took)
				s.cpu += cpu
				mu.Unlock()
			}
			return nil
		})
	})
	s.wall = time.Since(start)
	if err != nil {
		return s, err
	}
	after, err := c.daemonCPU()
	s.daemon = after - daemon
	s.cpu += s.daemon
	if c.bare == nil { // otherwise cpu has it
		s.own = ownCPU() - own
	}
	return s, err
}

// podCounts traces ADDs and DELs in the plugin and in its daemon.
func (b *bench) podCounts(ctx context.Context) error {
	t := table{Name: "pods/counts", Title: "Counts of one ADD and one DEL, by strace",
		Columns: columns("addresses", "plugin", "verb", "execs", "syscalls", "minor faults", "of the daemon", "netlink sends", "rtnetlink requests", "fsyncs")}
	memory := table{Name: "pods/memory", Title: "What the daemon allocates for an ADD and its DEL", Columns: columns("addresses", "allocated (KiB)", "objects")}
	for _, f := range []family{v4, dual} {
		if err := b.countFamily(ctx, f, &t, &memory); err != nil {
			return err
		}
	}
	t.note("Executed programs, system calls (without nanosleep, which counts time) of the plugin's processes, and of the daemon; page faults of an untraced call's processes, the median; sends and requests (messages) on rtnetlink sockets and fsyncs are of both together. " +
		"A wait for duplicate address detection shows as requests: the peers ask until it is over.")
	b.out.add(t)
	b.out.add(memory)
	return nil
}

func (b *bench) countFamily(ctx context.Context, f family, t, memory *table) error {
	// The first pod is not counted, because its ADD makes shared objects such as the bridge.
	const pods = 1 + 2*countedPods
	a, err := b.newArena(ctx, f, pods)
	if a != nil {
		defer a.close()
	}
	if err != nil {
		return err
	}
	for _, c := range a.contenders {
		if c.least {
			continue
		}
		results := make([]json.RawMessage, pods)
		var faults map[string][]int
		untraced := func() (err error) {
			faults, err = c.faults(ctx, untracedPods)
			return err
		}
		if c.node == nil {
			err = untraced()
		} else {
			err = b.countMemory(f, c, memory, untraced)
		}
		if err != nil {
			return err
		}
		for _, verb := range []string{"ADD", "DEL"} {
			plugin, daemon, err := c.counted(ctx, a.dir, verb, results)
			if err != nil {
				return err
			}
			both := plugin.plus(daemon)
			faults := median(faults[verb])
			t.row(string(f), c.name, verb, plugin.execs, plugin.syscalls, faults, daemon.syscalls, both.sends, both.requests, both.fsyncs)
			if c.node != nil {
				key := "counts/" + string(f) + "/" + verb + "/"
				for name, n := range map[string]int{
					"execs": plugin.execs, "syscalls": plugin.syscalls, "faults": faults, "daemon": daemon.syscalls,
					"fsyncs": both.fsyncs, "changes": both.changes, "sends": both.sends,
				} {
					b.out.keep(key+name, float64(n))
				}
			}
		}
	}
	return nil
}

// untracedPods is how many pods are added and deleted without a tracer.
const untracedPods = 20

// countMemory counts what the daemon allocates while calls adds and deletes the untraced pods. The daemon also looks
// after its node meanwhile, so the least of some rounds is what the calls take.
func (b *bench) countMemory(f family, c *contender, t *table, calls func() error) error {
	const rounds = 4 // the first allocates what later rounds share
	least := [2]float64{math.Inf(1), math.Inf(1)}
	for range rounds {
		var read [3][2]float64 // what a reading itself allocates is between the first two
		for i := range read {
			if i == 2 {
				if err := calls(); err != nil {
					return err
				}
			}
			var err error
			if read[i], err = c.allocated(); err != nil {
				return err
			}
		}
		for i := range least {
			least[i] = min(least[i], (read[2][i]-2*read[1][i]+read[0][i])/untracedPods)
		}
	}
	t.row(string(f), least[0]/1024, least[1])
	b.out.keep("counts/"+string(f)+"/KiB", least[0]/1024)
	b.out.keep("counts/"+string(f)+"/objects", least[1])
	return nil
}

// faults returns the minor page faults of untraced ADDs and DELs, by verb.
func (c *contender) faults(ctx context.Context, n int) (map[string][]int, error) {
	out := map[string][]int{}
	var result json.RawMessage
	for i := range n {
		for _, verb := range []string{"ADD", "DEL"} {
			err := c.host.Do(func() error {
				cmd, err := c.command(ctx, invocation{verb, fmt.Sprintf("f%063x", i), c.pods[0], result})
				if err != nil {
					return err
				}
				said, err := cmd.Output()
				if err != nil {
					return fmt.Errorf("%s: %s: %w: %s", c.name, verb, err, said)
				}
				out[verb] = append(out[verb], int(cmd.ProcessState.SysUsage().(*syscall.Rusage).Minflt))
				result = said
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		result = nil
	}
	return out, nil
}

// countedPods is how many calls are traced in the plugin. As many other calls are traced in the daemon,
// because a traced daemon answers later, and the waiting plugin then makes more system calls.
const countedPods = 5

// counted makes the calls of one verb, traces all but the first, and keeps the results of an ADD for the
// DEL. It returns the medians of the calls: the daemon also looks after its node every few seconds, and such a
// look falls into the trace of one call.
func (c *contender) counted(ctx context.Context, dir, verb string, results []json.RawMessage) (plugin, daemon counts, err error) {
	name := fmt.Sprintf("%s-%s-%p", verb, filepath.Base(c.exe), c)
	one := func(i int, argv ...string) error {
		in := invocation{verb, fmt.Sprintf("%064x", i), c.pods[i], results[i]}
		return c.host.Do(func() error {
			cmd, err := c.command(ctx, in, argv...)
			if err != nil {
				return err
			}
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%s: %s: %w: %s", c.name, verb, err, out)
			}
			results[i] = out
			return nil
		})
	}
	if err := one(0); err != nil {
		return plugin, daemon, err
	}
	var plugins, daemons []counts
	for i := 1; i <= countedPods; i++ {
		log := filepath.Join(dir, fmt.Sprintf("%s-%d", name, i))
		if err := one(i, append([]string{"strace"}, straceArgs(log)...)...); err != nil {
			return plugin, daemon, err
		}
		got, err := countCalls(log)
		if err != nil {
			return plugin, daemon, err
		}
		plugins = append(plugins, got)
		if err := os.Remove(log); err != nil {
			return plugin, daemon, err
		}
	}
	for i := countedPods + 1; i < len(results); i++ {
		call := func() error { return one(i) }
		if c.node == nil { // so that DEL has the same pods to delete
			if err := call(); err != nil {
				return plugin, daemon, err
			}
			continue
		}
		got, err := traceProcess(ctx, filepath.Join(dir, name+"-daemon"), c.node.PID(), call)
		if err != nil {
			return plugin, daemon, err
		}
		daemons = append(daemons, got)
	}
	return medians(plugins), medians(daemons), nil
}

// programs compares executables by the cost of an empty start.
func (b *bench) programs(ctx context.Context) error {
	n := 200
	if b.quick {
		n = 60
	}
	var all []*contender
	for _, exe := range []string{b.bin + "/edgeway", b.peers + "/ptp", b.peers + "/bridge", b.peers + "/host-local", b.peers + "/nothing"} {
		all = append(all, &contender{name: filepath.Base(exe), exe: exe, conf: map[string]any{"cniVersion": "1.0.0"}})
	}
	samples := make([]sample, len(all))
	for round := range n {
		for _, i := range rotated(len(all), round) {
			took, cpu, _, err := all[i].call(ctx, invocation{verb: "VERSION", id: fmt.Sprintf("%064x", round)})
			if err != nil {
				return err
			}
			samples[i].add(sample{took: []time.Duration{took}, cpu: cpu})
		}
	}
	t := table{Name: "pods/start", Title: "Executables: size, and one start (CNI_COMMAND=VERSION)",
		Columns: columns("program", "size (MiB)", "least (ms)", "p50 (ms)", "to ptp", "CPU (ms)", "starts")}
	for i, c := range all {
		st, err := os.Stat(c.exe)
		if err != nil {
			return err
		}
		s := &samples[i]
		t.row(c.name, float64(st.Size())/(1<<20), ms(s.quantile(0)), ms(s.p50()), float64(s.p50())/float64(samples[1].p50()), ms(s.cpuEach()), n)
	}
	st, err := os.Stat(filepath.Join(b.bin, "edgewayd"))
	if err != nil {
		return err
	}
	t.row("edgewayd", float64(st.Size())/(1<<20), nil, nil, nil, nil, nil)
	b.out.add(t)
	return nil
}
