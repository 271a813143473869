package bgp

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// lan is a bridge that the node and the switches are plugged into.
type lan struct {
	t testing.TB
}

// needLAN skips or fails the test where there can be no LAN.
func needLAN(t testing.TB) {
	t.Helper()
	lab.Need(t, lab.Tools(lab.BIRD, lab.FRR)...)
	if os.Getenv(envLAN) == "" {
		t.Skip("LAN test: not in namespaces of its own")
	}
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	needLAN(t)
	l := &lan{t: t}
	ip(t, "netns add lan")
	t.Cleanup(func() { ip(t, "netns del lan") })
	ip(t, "-n lan link add br0 type bridge mcast_snooping 0")
	ip(t, "-n lan link set br0 up")
	ip(t, "link add eth0 type veth peer name node netns lan")
	t.Cleanup(func() { ip(t, "link del eth0") })
	ip(t, "-n lan link set node master br0 up")
	ip(t, "link set eth0 up")
	ip(t, "addr add 10.0.0.10/24 dev eth0")
	ip(t, "addr add fd00:10::10/64 dev eth0 nodad")
	return l
}

// ip runs one ip(8) command.
func ip(t testing.TB, args string) string {
	t.Helper()
	return run(t, "ip", strings.Fields(args)...)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// watch counts the route messages of the switch's kernel from now on.
func (r *router) watch() *watch {
	r.t.Helper()
	cmd := exec.Command("ip", "-n", r.ns, "-o", "monitor", "route")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	w := &watch{t: r.t, r: r}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if text := lines.Text(); strings.Contains(text, "10.1") || strings.Contains(text, "fd01:") {
				w.n.Add(1)
				w.last.Store(&text)
			} else {
				w.other.Add(1)
			}
		}
	}()
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// It watches once it reports a route that we make.
	eventually(r.t, 5*time.Second, func() error {
		run(r.t, "ip", "-n", r.ns, "route", "replace", "192.0.2.1/32", "dev", "lo")
		run(r.t, "ip", "-n", r.ns, "route", "del", "192.0.2.1/32", "dev", "lo")
		if w.other.Load() == 0 {
			return fmt.Errorf("ip monitor is silent")
		}
		return nil
	})
	return w
}

type watch struct {
	t        testing.TB
	r        *router
	n, other atomic.Int64
	last     atomic.Pointer[string]
}

// sync waits until the monitor has reported all that happened so far.
func (w *watch) sync() {
	w.r.t.Helper()
	before := w.other.Load()
	run(w.r.t, "ip", "-n", w.r.ns, "route", "replace", "192.0.2.2/32", "dev", "lo")
	run(w.r.t, "ip", "-n", w.r.ns, "route", "del", "192.0.2.2/32", "dev", "lo")
	eventually(w.r.t, 5*time.Second, func() error {
		if w.other.Load() < before+2 {
			return fmt.Errorf("ip monitor is silent")
		}
		return nil
	})
}

// still fails the test if any pod route of the switch's kernel was touched.
func (w *watch) still(what string) {
	w.t.Helper()
	w.sync()
	w.r.sawRestart()
	if n := w.n.Load(); n != 0 {
		w.t.Errorf("%s: %s: %d route events, want 0; last: %s", w.r.kind, what, n, *w.last.Load())
	}
}

// eventually waits until f has no objection.
func eventually(t testing.TB, d time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", d, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}
