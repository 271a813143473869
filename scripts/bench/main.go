// Command bench measures edgeway side by side with other software that does the same work on a node: the
// reference plugins of containernetworking, one bbolt transaction a call, `ip -batch`, a node without pods.
// It runs as root in its own namespaces, which end with it. It never touches anything outside of them
// except one directory of files.
//
//	go run ./scripts/bench [-quick] [-run REGEX] [-o text|markdown|json]
//
// The contenders of a table take turns in rounds, and each round starts with a different contender. Other
// load on the machine therefore affects all of them alike. So a ratio within a table is more portable than
// a time, and processor time is more portable than latency. A count of system calls needs no repetition.
// Nothing here passes or fails on a time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	run    *regexp.Regexp
	quick  bool
	own    bool // no peers
	output string
	plot   string // file for the SVG; "": no SVG
	flame  string // file for the SVG of an ADD's profile; "": no SVG
	bin    string // directory of edgeway and edgewayd
	dir    string // directory for stores, on a file system where fsync has an effect
	peers  string // directory of the reference plugins; if set, this process is inside
	load   string // if set, this process is the load of a trace
}

func main() {
	// The kernel kills the inside process when the thread that started it ends. The main thread does not
	// end.
	runtime.LockOSThread()
	if err := benchmark(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func benchmark() error {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	switch {
	case o.load != "":
		return storeLoad(ctx, o.load)
	case o.peers != "":
		return inside(ctx, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root to make namespaces; run it with sudo")
	}
	return outside(ctx, o)
}

func parseFlags() (options, error) {
	var o options
	var err error
	flag.Func("run", "only the tables whose name matches `regex`; -run list prints the names", func(s string) (err error) {
		o.run, err = regexp.Compile(s)
		return err
	})
	flag.BoolVar(&o.quick, "quick", false, "fewer samples: under three minutes instead of thirteen")
	flag.BoolVar(&o.own, "own", false, "edgeway and its daemon only; for -run pods/counts")
	flag.StringVar(&o.output, "o", "text", "text, markdown or json")
	flag.StringVar(&o.plot, "plot", "", "write the pods' table as an SVG to `file`")
	flag.StringVar(&o.flame, "flame", "", "write the profile of an ADD as an SVG to `file`")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` of edgeway and edgewayd")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`directory` for the stores; its file system is what fsync is measured on")
	flag.StringVar(&o.peers, "inside", "", "internal: this process is in its own namespaces")
	flag.StringVar(&o.load, "load", "", "internal: this process is the load of a trace")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("argument %q: want flags only", flag.Arg(0))
	}
	if o.output != "text" && o.output != "markdown" && o.output != "json" {
		return o, fmt.Errorf("-o %s: want text, markdown or json", o.output)
	}
	if o.run == nil {
		o.run = regexp.MustCompile("")
	}
	for _, p := range []*string{&o.bin, &o.dir, &o.plot, &o.flame} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	return o, nil
}

// outside builds the reference plugins, which may need the network, and runs this program again in fresh
// mount, PID and network namespaces. No process that the program starts can outlive them.
func outside(ctx context.Context, o options) (err error) {
	if o.run.String() == "list" {
		for _, s := range sections() {
			fmt.Printf("%-14s %s\n", s.name, s.title)
		}
		return nil
	}
	for _, name := range []string{"edgeway", "edgewayd"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return fmt.Errorf("%w; build it with make build", err)
		}
	}
	dir, err := os.MkdirTemp(o.dir, "edgeway-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	peers := filepath.Join(dir, "peers")
	if !o.own {
		if err := buildPeers(ctx, peers); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"-run", o.run.String(), "-o", o.output, "-bin", o.bin, "-dir", dir, "-plot", o.plot, "-flame", o.flame, "-inside", peers}
	if o.quick {
		args = append(args, "-quick")
	}
	if o.own {
		args = append(args, "-own")
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	ended := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer ended()
	return cmd.Wait()
}

// buildPeers builds the reference plugins with the flags of their own release, in the versions of go.mod.
func buildPeers(ctx context.Context, dir string) error {
	const plugins = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
		plugins+"main/ptp", plugins+"main/bridge", plugins+"ipam/host-local", "github.com/edgeway-cni/edgeway/scripts/bench/nothing")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the reference plugins: %w: %s", err, out)
	}
	return nil
}

// bench is the state that the sections of one run share.
type bench struct {
	options
	out *report
}

// section is one group of tables.
type section struct {
	name  string // -run matches it
	title string
	needs string // a program that may be missing; "": no program
	run   func(*bench, context.Context) error
}

func sections() []section {
	return []section{
		{"store/callers", "address store: one lease and its release", "", (*bench).storeCallers},
		{"store/leases", "address store: beside few and many leases", "", (*bench).storeLeases},
		{"store/fsync", "address store: fsyncs", "strace", (*bench).storeFsyncs},
		{"pods/counts", "a pod: counts of one ADD and one DEL", "strace", (*bench).podCounts},
		{"pods/start", "executables: size and start", "", (*bench).programs},
		{"pods/v4", "a pod: ADD and DEL, IPv4", "", func(b *bench, ctx context.Context) error { return b.pods(ctx, v4) }},
		{"pods/dual", "a pod: ADD and DEL, dual stack", "", func(b *bench, ctx context.Context) error { return b.pods(ctx, dual) }},
		{"pods/masquerade", "a pod: source NAT", "", (*bench).masquerade},
		{"pods/uplinks", "a pod: an address of an uplink", "", (*bench).uplinks},
		{"pods/slowdisk", "a pod: a slow disk", "strace", (*bench).slowDisk},
		{"pods/garbage", "a pod: garbage in the daemon's memory", "", (*bench).garbage},
		{"pods/profile", "a pod: where the processor time goes", "perf", (*bench).profile},
		{"routes", "routes to 5,000 nodes", "", (*bench).routes},
		{"bgp/appear", "BGP: from a manifest to the switch's kernel", "bird", (*bench).appear},
		{"bgp/5000", "BGP: 5,000 paths on two sessions", "bird", (*bench).manyPaths},
		{"bgp/unwanted", "BGP: 100,000 unwanted routes", "bird", (*bench).unwanted},
		{"path", "data path between pods", "", (*bench).paths},
		{"overlay/path", "data path: node, underlay, overlay", "ethtool", (*bench).overlayPaths},
		{"overlay/nodes", "overlay of 1,000 and 5,000 nodes", "", (*bench).overlayNodes},
		{"overlay/daemon", "overlay of 1,000 and 5,000 nodes: a whole daemon", "", (*bench).overlayDaemon},
	}
}

// inside runs the sections in the namespaces of outside.
func inside(ctx context.Context, o options) error {
	if err := settle(); err != nil {
		return err
	}
	b := &bench{options: o, out: &report{Machine: describe(ctx, o), Quick: o.quick, format: o.output}}
	b.out.begin()
	for _, s := range sections() {
		if !o.run.MatchString(s.name) {
			continue
		}
		if _, err := exec.LookPath(s.needs); s.needs != "" && err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s skipped: %v; install %s\n", s.name, err, s.needs)
			continue
		}
		start := time.Now()
		if err := s.run(b, ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.name, err), b.out.end())
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %s\n", s.name, time.Since(start).Round(100*time.Millisecond))
	}
	b.goals()
	if o.plot != "" {
		if err := b.out.plot(o.plot); err != nil {
			return errors.Join(err, b.out.end())
		}
	}
	return b.out.end()
}

// settle prepares the fresh namespaces: a /proc with only their processes, a /run/netns with private
// mounts, and a loopback link that is up.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("detach mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bench", "/run/netns", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}
