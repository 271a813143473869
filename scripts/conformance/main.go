// Command conformance measures a chain of CNI plugins against the CNI specification 1.1.0, one requirement
// at a time. It owns the network namespaces and the plugins' environment, and reads only standard output,
// exit status and the kernel's state. It never looks at a plugin's internals.
//
//	conformance --conflist 10-net.conflist --cni-path /opt/cni/bin
//
// A requirement has a name (del.netns-gone), a section of the specification, and a level. MUST and SHOULD
// are the specification's own. ROBUST marks a requirement that the specification leaves open and that
// runtimes or users need. docs/conformance.md describes configuration, report and results.
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
	"strings"
	"syscall"
	"time"
)

const (
	statusPass, statusFail, statusUsage = 0, 1, 2
	// insideEnv marks the process in the private mount namespace.
	insideEnv = "CNI_CONFORMANCE_INSIDE"
)

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	if filepath.Base(args[0]) == fakeIPAM {
		return serveFakeIPAM(os.Stdin, os.Stdout, os.Stderr, os.Environ())
	}
	o, err := parseFlags(args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return statusPass
	case err != nil:
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return statusUsage
	}
	if o.list {
		printList(os.Stdout, o.selected())
		return statusPass
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "conformance: needs root to make network namespaces; run it with sudo")
		return statusUsage
	}
	if !o.current && os.Getenv(insideEnv) == "" {
		return runInside(args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	report, err := measure(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return statusUsage
	}
	return report.print(os.Stdout, o)
}

// runInside runs the program again in its own mount namespace, so that no mount can outlive the run.
func runInside(args []string) int {
	runtime.LockOSThread() // Pdeathsig depends on the parent's thread
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance: make a mount namespace:", err)
		return statusUsage
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	_ = cmd.Wait() // the exit status has the result
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	return statusUsage
}

// options are the flags.
type options struct {
	conf     string // path of a conflist, or of a single plugin's configuration
	cniPath  []string
	versions []string
	run      *regexp.Regexp
	list     bool
	current  bool // the host is this process's namespace
	strict   bool
	json     bool
	daemon   string
	ready    string
	timeout  time.Duration
	parallel int
}

func parseFlags(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	conflist := f.String("conflist", "", "network configuration list to measure; @STATE@ in it becomes a fresh directory for each check")
	conf := f.String("conf", "", "the same, for the configuration of a single plugin")
	path := f.String("cni-path", "/opt/cni/bin", "directories of the plugins, separated by ':'")
	versions := f.String("versions", "", "protocol versions to measure, separated by ',' (default: all that the plugins say)")
	pattern := f.String("run", "", "only the checks whose name matches this regular expression")
	netns := f.String("host-netns", "fresh", "network namespace that plays the host: fresh, or current (this machine's own)")
	output := f.String("o", "text", "form of the report: text or json")
	f.BoolVar(&o.list, "list", false, "list the checks")
	f.BoolVar(&o.strict, "strict", false, "a SHOULD that fails makes the exit status 1, too")
	f.StringVar(&o.daemon, "daemon", "", "shell command of a daemon that the plugin needs; runs inside the host's namespace, @STATE@ is one directory then")
	f.StringVar(&o.ready, "ready", "", "file (socket) that exists when the daemon is ready")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "longest time for one call of a plugin")
	f.IntVar(&o.parallel, "parallel", 4, "checks that run at a time; one with --daemon or --host-netns current")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("argument %q is not understood; all options are flags", f.Arg(0))
	}
	var err error
	if *pattern != "" {
		if o.run, err = regexp.Compile(*pattern); err != nil {
			return o, fmt.Errorf("--run: %w", err)
		}
	}
	o.conf, o.json, o.current = *conflist, *output == "json", *netns == "current"
	if o.conf == "" {
		o.conf = *conf
	}
	switch {
	case *output != "text" && *output != "json":
		return o, fmt.Errorf("-o %q: want text or json", *output)
	case *netns != "fresh" && *netns != "current":
		return o, fmt.Errorf("--host-netns %q: want fresh or current", *netns)
	case o.parallel < 1:
		return o, fmt.Errorf("--parallel %d: want 1 or more", o.parallel)
	case o.conf == "" && !o.list:
		return o, errors.New("no configuration to measure; use --conflist FILE or --conf FILE")
	}
	for _, dir := range filepath.SplitList(*path) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return o, fmt.Errorf("--cni-path: %w", err)
		}
		o.cniPath = append(o.cniPath, abs)
	}
	if *versions != "" {
		o.versions = strings.Split(*versions, ",")
	}
	return o, nil
}

func (o options) selected() (out []check) {
	for _, c := range allChecks() {
		if o.run == nil || o.run.MatchString(c.id) {
			out = append(out, c)
		}
	}
	return out
}
