package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// sample holds the times of many runs of one operation.
type sample struct {
	took   []time.Duration // of each run
	wall   time.Duration   // of all runs, from the first start to the last end
	cpu    time.Duration   // of all processes that took part
	daemon time.Duration   // the daemon's part of cpu
	own    time.Duration   // of this program, which executes the plugins as a container runtime does
}

func (s *sample) add(o sample) {
	s.took = append(s.took, o.took...)
	s.wall += o.wall
	s.cpu += o.cpu
	s.daemon += o.daemon
	s.own += o.own
}

// quantile returns the q-quantile of the latencies, or the highest latency if there are too few for q.
func (s *sample) quantile(q float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	sorted := slices.Clone(s.took)
	slices.Sort(sorted)
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s *sample) p50() time.Duration { return s.quantile(0.5) }
func (s *sample) p99() time.Duration { return s.quantile(0.99) }

func (s *sample) rate() float64 { return float64(len(s.took)) / s.wall.Seconds() }

func (s *sample) cpuEach() time.Duration { return s.each(s.cpu) }

func (s *sample) each(d time.Duration) time.Duration { return d / time.Duration(max(1, len(s.took))) }

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// rotated returns the numbers below n, starting with a different number in each round.
func rotated(n, round int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = (i + round) % n
	}
	return out
}

// ownCPU returns the processor time used by this process.
func ownCPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic("getrusage(RUSAGE_SELF): " + err.Error()) // only a bad pointer can fail
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// cpuOf returns the processor time used by another process and its children. It reads their CPU clocks, see
// clock_getcpuclockid(3) and include/linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
func cpuOf(pid int) (time.Duration, error) {
	var sum int64
	for _, pid := range processes(pid) {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid)<<3|2, &t); err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		sum += t.Nano()
	}
	return time.Duration(sum), nil
}

// processes returns a process and its children. edgewayd has one child for each BGP session.
func processes(pid int) []int {
	all := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is valid
	for _, f := range files {
		text, _ := os.ReadFile(f) // the file of an ended thread is missing
		for _, word := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// parallel has each caller call op until limit has passed, and at least once. op gets its caller's number
// and measures its own time.
func parallel(ctx context.Context, callers int, limit time.Duration, op func(caller int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	deadline := time.Now().Add(limit)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for first := true; ctx.Err() == nil && (first || time.Now().Before(deadline)); first = false {
				if err := op(c); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// queue hands out each number below n once, until a deadline.
type queue struct {
	next     atomic.Int64
	n        int
	deadline time.Time
}

func (q *queue) take() (int, bool) {
	if time.Now().After(q.deadline) {
		return 0, false
	}
	i := int(q.next.Add(1)) - 1
	return i, i < q.n
}
