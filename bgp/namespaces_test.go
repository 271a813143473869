package bgp

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// The LAN tests run in network and mount namespaces of their own, where the test process is the
// node: eth0 with 10.0.0.10 and fd00:10::10 on a bridge with the switches bird (.1) and frr (.2).
const (
	envLAN     = "EWBGP_LAN"
	envSpeaker = "EWBGP_SPEAKER"
)

// sessionCommand makes the test binary the process of one session.
var sessionCommand = []string{"/proc/self/exe", "bgp-session"} // read only

func sessionMain() int {
	signal.Ignore(syscall.SIGTERM) // as the daemon does
	if err := ServeSession(os.NewFile(3, "link")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == sessionCommand[1] {
		os.Exit(sessionMain())
	}
	if os.Getenv(envSpeaker) != "" {
		os.Exit(speakerProcess())
	}
	flag.Parse()
	if os.Getenv(envLAN) == "" && os.Geteuid() == 0 && !testing.Short() && flag.Lookup("test.list").Value.String() == "" {
		os.Exit(inNamespaces())
	}
	if os.Getenv(envLAN) != "" {
		if err := errors.Join(privateNetnsDir(), (&lab.Space{Path: "/proc/self/ns/net"}).Loopback()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// workers is how many processes share the tests. Stories mostly wait for a switch's timers, and a
// process is one node, so that they cannot run side by side in one.
const workers = 6

// longest are the stories that are begun first, so that none is still to begin when the others are
// done; each is told to its two switches by two processes.
var longest = []string{"TestLearnedStays", "TestLongLivedGracefulRestart", "TestPassword", "TestReasons"} // read only

// inNamespaces runs the tests in child processes, each in namespaces of its own. A run of chosen
// tests, or one that is watched, has one child.
func inNamespaces() int {
	for _, name := range []string{"test.run", "test.skip", "test.bench", "test.fuzz"} {
		if flag.Lookup(name).Value.String() != "" {
			return inNamespace(os.Stdout)
		}
	}
	if testing.Verbose() {
		return inNamespace(os.Stdout)
	}
	list, err := exec.Command("/proc/self/exe", "-test.list", "^(Test|Fuzz|Example)").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "list tests:", err)
		return 1
	}
	patterns := make(chan string)
	go func() {
		defer close(patterns)
		for _, name := range longest {
			for _, kind := range kinds {
				patterns <- "^" + name + "$/^" + kind + "$"
			}
		}
		for _, name := range strings.Fields(string(list)) {
			if !slices.Contains(longest, name) {
				patterns <- "^" + name + "$"
			}
		}
	}()
	var failed atomic.Bool
	var printing sync.Mutex // one child's output at a time
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for pattern := range patterns {
				var out bytes.Buffer
				if inNamespace(&out, "-test.run="+pattern) != 0 {
					failed.Store(true)
					printing.Lock()
					os.Stdout.Write(out.Bytes())
					printing.Unlock()
				}
			}
		})
	}
	wait.Wait()
	if failed.Load() {
		return 1
	}
	return 0
}

func inNamespace(out io.Writer, args ...string) int {
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:len(os.Args):len(os.Args)], args...)...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, out, out
	cmd.Env = append(os.Environ(), envLAN+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			return exit.ExitCode()
		}
		fmt.Fprintln(out, "new namespaces:", err)
		return 1
	}
	return 0
}

// privateNetnsDir hides the machine's named namespaces, so that ours vanish with the process.
func privateNetnsDir() error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	return syscall.Mount("tmpfs", "/run/netns", "tmpfs", 0, "")
}
