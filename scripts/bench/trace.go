package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// counts are strace(1)'s counts. Other load on the machine does not change them.
type counts struct {
	execs, syscalls, sends, requests, fsyncs int
	changes                                  int // sends that ask for an acknowledgement, as changes do and questions do not
}

func (c counts) plus(o counts) counts {
	return counts{c.execs + o.execs, c.syscalls + o.syscalls, c.sends + o.sends, c.requests + o.requests, c.fsyncs + o.fsyncs, c.changes + o.changes}
}

// medians returns the median of each count; zero for no counts.
func medians(all []counts) counts {
	each := func(of func(counts) int) int {
		var list []int
		for _, c := range all {
			list = append(list, of(c))
		}
		return median(list)
	}
	return counts{
		each(func(c counts) int { return c.execs }), each(func(c counts) int { return c.syscalls }), each(func(c counts) int { return c.sends }),
		each(func(c counts) int { return c.requests }), each(func(c counts) int { return c.fsyncs }), each(func(c counts) int { return c.changes }),
	}
}

// median returns the middle of the numbers, of two the larger; 0 for none.
func median(all []int) int {
	if len(all) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

// straceArgs sets -yy to show which descriptors are netlink sockets.
func straceArgs(log string) []string { return []string{"-f", "-qq", "-yy", "-s", "512", "-o", log} }

// traceSelf counts the fsyncs of this program when it loads the store.
func traceSelf(ctx context.Context, log, load string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	args := append(straceArgs(log), "--seccomp-bpf", "-e", "trace=fsync,fdatasync", self, "-load", load)
	if out, err := exec.CommandContext(ctx, "strace", args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("strace: %w: %s", err, out)
	}
	c, err := countCalls(log)
	return c.fsyncs, err
}

// traceProcess traces a running process while f runs, and afterwards until the process is quiet.
func traceProcess(ctx context.Context, log string, pid int, f func() error) (c counts, err error) {
	cmd := exec.Command("strace", append(straceArgs(log), "-p", strconv.Itoa(pid))...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return c, err
	}
	err = lab.Wait(ctx, 10*time.Second, func() error { return traced(pid) })
	if err == nil {
		err = f()
	}
	if err == nil {
		err = quiet(ctx, log)
	}
	err = errors.Join(err, cmd.Process.Signal(unix.SIGINT))
	if werr := cmd.Wait(); werr != nil && err == nil && !strings.Contains(werr.Error(), "interrupt") && cmd.ProcessState.ExitCode() != 130 {
		err = fmt.Errorf("strace: %w: %s", werr, said.String())
	}
	if err != nil {
		return c, err
	}
	return countCalls(log)
}

// traced returns nil if every thread of the process has a tracer.
func traced(pid int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if field(t, "TracerPid") == "0" {
			return fmt.Errorf("strace has not attached to process %d", pid)
		}
	}
	return nil
}

// quiet waits until the log has stopped growing for a while.
func quiet(ctx context.Context, log string) error {
	const still = 300 * time.Millisecond
	var size int64
	since := time.Now()
	return lab.Wait(ctx, 20*time.Second, func() error {
		st, err := os.Stat(log)
		if err != nil {
			return err
		}
		if st.Size() != size {
			size, since = st.Size(), time.Now()
		}
		if time.Since(since) < still {
			return errors.New("the traced process is still busy")
		}
		return nil
	})
}

var (
	callLine    = regexp.MustCompile(`^\d+\s+([a-z0-9_]+)\(`)
	messageType = regexp.MustCompile(`nlmsg_type=(RTM_[A-Z]+|0x[0-9a-f]+)`)
)

// countCalls reads a log of strace. A call that another thread's call interrupted has two lines. The second
// line, "<... name resumed>", is not counted. Nor is nanosleep: the monitor of the Go runtime sleeps the more often
// the longer a call takes, so other load on the machine would change the count.
func countCalls(log string) (c counts, err error) {
	f, err := os.Open(log)
	if err != nil {
		return c, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		m := callLine.FindStringSubmatch(line)
		if m == nil || m[1] == "nanosleep" {
			continue
		}
		c.syscalls++
		switch m[1] {
		case "execve":
			c.execs++
		case "fsync", "fdatasync":
			c.fsyncs++
		case "sendto", "sendmsg", "write", "sendmmsg":
			if n := requestsIn(line); n > 0 {
				c.sends++
				c.requests += n
				if strings.Contains(line, "NLM_F_ACK") {
					c.changes++
				}
			}
		}
	}
	return c, lines.Err()
}

// requestsIn counts the rtnetlink messages of one send. strace knows the protocol only of sockets in its
// own network namespace, so the message type decides. The types of rtnetlink are below 0x100. The types of
// nfnetlink, the only other user here, are above (linux/netfilter/nfnetlink.h: NFNL_SUBSYS_ID).
func requestsIn(line string) (n int) {
	if !strings.Contains(line, "<NETLINK:") {
		return 0
	}
	for _, m := range messageType.FindAllStringSubmatch(line, -1) {
		if code, err := strconv.ParseUint(m[1], 0, 16); strings.HasPrefix(m[1], "RTM_") || err == nil && code >= unix.RTM_BASE && code < 0x100 {
			n++
		}
	}
	return n
}
