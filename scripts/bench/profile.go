package main

import (
	"bytes"
	"context"
	"encoding/json"
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

// sampleRate is how many samples perf takes of each processor in a second. It is no multiple of the kernel's
// timer, so that the samples do not fall on its ticks.
const sampleRate = 4999

// profiledPods is the number of pods in a recording.
const profiledPods = 200

// stack is the call stack of one sample, from the outermost function to the innermost.
type stack struct {
	program string
	frames  []string
}

// profile is what perf sampled during the calls of one verb.
type profile struct {
	title  string
	calls  int
	cpu    time.Duration // of plugin and daemon, by the kernel's account
	stacks []stack
	ours   int // stacks of plugin and daemon
}

// micros is the processor time of n samples, in microseconds for each call. perf takes no samples while the machine
// itself waits for a processor, so the samples are shares of the kernel's account.
func (p *profile) micros(n int) float64 {
	return us(p.cpu) / float64(max(1, p.calls)) * float64(n) / float64(max(1, p.ours))
}

// profile samples the processors during ADDs and DELs, one at a time and 32 at once.
func (b *bench) profile(ctx context.Context) error {
	bin, err := b.withSymbols(ctx)
	if err != nil {
		return err
	}
	a, err := b.alone(ctx, v4, bin, profiledPods)
	if a != nil {
		defer a.close()
	}
	if err != nil {
		return err
	}
	rounds := 3
	if b.quick {
		rounds = 1
	}
	var all []*profile
	for _, at := range variantsAt {
		add, del := &profile{title: "ADD, one at a time"}, &profile{title: "DEL, one at a time"}
		if at > 1 {
			add.title, del.title = fmt.Sprintf("ADD, %d at once", at), fmt.Sprintf("DEL, %d at once", at)
		}
		all = append(all, add, del)
		c := a.contenders[0]
		for round := range rounds {
			name, file := fmt.Sprintf("%02d%02d", at, round), filepath.Join(a.dir, "perf.data")
			var results []json.RawMessage
			err := add.record(ctx, file, func() (s sample, err error) {
				s, results, err = c.adds(ctx, name, at, len(c.pods), time.Minute)
				return s, err
			})
			if err == nil {
				err = del.record(ctx, file, func() (sample, error) { return c.dels(ctx, name, at, results) })
			}
			if err != nil {
				return err
			}
		}
	}
	b.out.add(parts(all))
	if b.flame == "" {
		return nil
	}
	return all[0].draw(b.flame, b.out.Values)
}

// module is the path of edgeway's packages.
const module = "github.com/edgeway-cni/edgeway/"

// withSymbols builds the programs with the names of their functions, which the installed programs do not have. The
// names are not loaded at run time.
func (b *bench) withSymbols(ctx context.Context) (bin string, err error) {
	if bin, err = os.MkdirTemp(b.dir, "symbols-"); err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin+"/", module+"plugin/edgeway", module+"daemon/edgewayd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build with symbols: %w: %s", err, out)
	}
	return bin, nil
}

// record samples all processors during calls.
func (p *profile) record(ctx context.Context, file string, calls func() (sample, error)) error {
	cmd := exec.Command("perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", strconv.Itoa(sampleRate), "-o", file)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	err := lab.Wait(ctx, 10*time.Second, func() error {
		st, err := os.Stat(file)
		if err == nil && st.Size() == 0 {
			err = errors.New("perf has not begun")
		}
		return err
	})
	var s sample
	if err == nil {
		s, err = calls()
	}
	err = errors.Join(err, cmd.Process.Signal(unix.SIGINT))
	_ = cmd.Wait() // the signal ends it
	if err != nil {
		return fmt.Errorf("%w: %s", err, said.Bytes())
	}
	p.calls += len(s.took)
	p.cpu += s.cpu
	// Only these programs: perf would read the symbols of every other program on the machine.
	out, err := exec.CommandContext(ctx, "perf", "script", "-i", file, "--no-inline", "-F", "comm,pid,ip,sym", "--comms", "bench,edgeway,edgewayd,"+idle).Output()
	if err != nil {
		return fmt.Errorf("perf script: %w", err)
	}
	p.parse(string(out))
	return os.Remove(file)
}

// Programs that perf names in another way.
const (
	idle       = "swapper"   // Linux' name of the idle process
	neighbours = "elsewhere" // all that is not in this program's PID namespace
)

// parse reads the output of perf script. A sample is a line with program and process, a line for each function from
// the innermost, and an empty line.
func (p *profile) parse(text string) {
	for sample := range strings.SplitSeq(text, "\n\n") {
		lines := strings.Split(strings.TrimLeft(sample, "\n"), "\n")
		head := strings.Fields(lines[0])
		if len(head) < 2 {
			continue
		}
		s := stack{program: head[0]}
		switch pid := head[len(head)-1]; {
		case pid == "0" && s.program != idle:
			continue // not in this program's PID namespace
		case s.program == "bench" && pid != strconv.Itoa(os.Getpid()):
			s.program = "edgeway" // its exec has not replaced the name yet
		}
		for _, l := range slices.Backward(lines[1:]) {
			if _, name, ok := strings.Cut(strings.TrimSpace(l), " "); ok {
				s.frames = append(s.frames, name)
			}
		}
		p.stacks = append(p.stacks, s)
		if s.program == "edgeway" || s.program == "edgewayd" {
			p.ours++
		}
	}
}

// part is a share of the processor time: the samples of a program with a function that matches, and that no part
// before has.
type part struct {
	what     string
	program  string
	function *regexp.Regexp // nil: all that is left
}

func matching(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// allParts covers every sample.
func allParts() []part {
	return []part{
		{"plugin: exec, exit", "edgeway", matching(`^(do_execveat_common|do_exit|do_group_exit|bprm_|load_elf|ret_from_fork|.*lab\.onThread)`)},
		{"plugin: its own code, with the wait for the daemon", "edgeway", matching(`plugin/forward\.`)},
		{"plugin: page faults of the Go runtime", "edgeway", matching(`^asm_exc_page_fault$`)},
		{"plugin: the Go runtime otherwise", "edgeway", nil},
		{"daemon: requests on netlink sockets", "edgewayd", matching(`^netlink_sendmsg$`)},
		{"daemon: fdatasync", "edgewayd", matching(`^do_fsync$`)},
		{"daemon: the Go runtime collects garbage", "edgewayd", matching(`^runtime\.(gc[A-Z(]|bgsweep|bgscavenge|wbBufFlush|\(\*mheap\)\.reclaim|deductSweepCredit|sweepone|gosched_m)`)},
		{"daemon: the Go runtime switches and wakes threads", "edgewayd", matching(`^runtime\.(mcall|mstart|mstart0|sysmon|futex|wakep|startm|netpoll|goexit0|morestack|newstack)(\.abi0)?$`)},
		{"daemon: other system calls", "edgewayd", matching(`^do_syscall_64$`)},
		{"daemon: its own code, libraries, memory", "edgewayd", nil},
		{"the benchmark, as a container runtime's part", "bench", nil},
	}
}

// parts shares out the processor time of the profiles.
func parts(all []*profile) table {
	names := []string{"what"}
	for _, p := range all {
		names = append(names, p.title+" (µs)")
	}
	t := table{Name: "pods/profile", Title: "Where the processor time of a call goes", Columns: columns(names...)}
	list := allParts()
	idles := []any{"processors idle, % of what other programs left"}
	rows := make([][]any, len(list))
	sum := []any{"plugin and daemon together"}
	for _, p := range all {
		found := make([]int, len(list))
		idlers := 0
		for _, s := range p.stacks {
			if s.program == idle {
				idlers++
				continue
			}
			found[slices.IndexFunc(list, func(part part) bool { return part.has(s) })]++
		}
		for i, n := range found {
			rows[i] = append(rows[i], p.micros(n))
		}
		sum = append(sum, p.micros(p.ours))
		idles = append(idles, 100*float64(idlers)/float64(len(p.stacks)))
	}
	for i, part := range list {
		t.row(append([]any{part.what}, rows[i]...)...)
	}
	t.row(sum...)
	t.row(idles...)
	t.note("perf samples both processors %d times a second; a sample belongs to the first row that fits. Sampling adds some of what it measures. What the kernel does later on its own threads is in no row.", sampleRate)
	return t
}

// has reports whether a sample is of the part, as far as the parts before do not have it.
func (p part) has(s stack) bool {
	return s.program == p.program && (p.function == nil || slices.ContainsFunc(s.frames, p.function.MatchString))
}
