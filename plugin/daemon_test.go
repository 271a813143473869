package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// serve runs a daemon on the host's socket: the verbs on an open store. stop ends both.
func (h *host) serve(t testing.TB, handle func(n *Node) api.Handler) (n *Node, stop func()) {
	t.Helper()
	n = h.node(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, handle(n)) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return n, stop
}

func handler(n *Node) api.Handler {
	return func(ctx context.Context, req api.Request, netns *os.File) api.Reply {
		return n.Do(ctx, Call{CNI: *req.CNI, NetnsFile: netns})
	}
}

// Many pods come and go at a time, through the daemon, and without one.
func TestParallel(t *testing.T) {
	kernelTest(t)
	const pods = 64
	for _, mode := range []string{"forwarded", "daemon", "alone"} {
		t.Run(mode, func(t *testing.T) {
			h := newHost(t)
			exe := ""
			if mode != "alone" {
				h.serve(t, handler)
			}
			if mode == "forwarded" {
				exe = plugins(t) + "/edgeway"
			}
			calls := make([]call, pods)
			for i := range calls {
				calls[i] = call{exe: exe, verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0", `"mtu":1450`)}
			}
			var mu sync.Mutex
			seen := map[string]string{}
			all := func(verb string) {
				var wait sync.WaitGroup
				begin := time.Now()
				for _, c := range calls {
					wait.Go(func() {
						c.verb = verb
						out, status := h.exec(t, c)
						if status != 0 {
							t.Errorf("%s %s: %s", verb, c.id, out)
							return
						}
						if verb != "ADD" {
							return
						}
						mu.Lock()
						defer mu.Unlock()
						for _, a := range parseResult(t, out).addrs() {
							if other, ok := seen[a]; ok {
								t.Errorf("%s: %s and %s", a, other, c.id)
							}
							seen[a] = c.id
						}
					})
				}
				wait.Wait()
				t.Logf("%d %s in %v", pods, verb, time.Since(begin).Round(time.Millisecond))
			}
			all("ADD")
			h.whole(t)
			all("DEL")
			if leases := h.leases(t); len(leases) > 0 {
				t.Errorf("leases stay: %v", leases)
			}
			h.whole(t)
		})
	}
}

// ADD and DEL of one attachment at a time: each is whole, whatever the order.
func TestOneAttachmentAtATime(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	c := call{id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	var wait sync.WaitGroup
	for i := range 32 {
		wait.Go(func() {
			c := c
			c.verb = []string{"ADD", "DEL"}[i%2]
			if reply := c.do(t, n); reply.Failed && c.verb == "DEL" {
				t.Errorf("DEL: %s", reply.Output)
			}
		})
	}
	wait.Wait()
	h.whole(t)
	c.verb = "DEL"
	c.do(t, n)
	if unclaim, err := ipam.TryClaim(n.Store.Path(), ipam.Attachment{ContainerID: c.id, IfName: c.ifName}); err != nil {
		t.Errorf("a claim stays: %v", err)
	} else if err := unclaim(); err != nil {
		t.Error(err)
	}
}

// Each of the calls is a process of its own, which holds the store for its lease only.
func TestOneAttachmentAtATimeWithoutDaemon(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{exe: plugins(t) + "/edgeway", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	var wait sync.WaitGroup
	for i := range 32 {
		wait.Go(func() {
			c := c
			c.verb = []string{"ADD", "DEL"}[i%2]
			if out, status := h.exec(t, c); status != 0 && c.verb == "DEL" {
				t.Errorf("DEL: %s", out)
			}
		})
	}
	wait.Wait()
	h.whole(t)
	h.end(t, c)
}

// share makes the node give up the store where others may have it, as the executable does without a daemon.
func (h *host) share(t testing.TB, n *Node) {
	path := n.Store.Path()
	n.reopen = func(ctx context.Context) (*ipam.Store, error) { return OpenStore(ctx, path, patience) }
	h.leased = func() []ipam.Lease {
		if err := n.needStore(context.Background()); err != nil {
			t.Fatal(err)
		}
		return leasesOf(t, n.Store)
	}
}

// pausedKernel calls at before it changes something.
type pausedKernel struct {
	kernel
	at func()
}

func (k pausedKernel) Sync(ctx context.Context, scope routes.Scope, desired routes.State) ([]routes.Change, error) {
	k.at()
	return k.kernel.Sync(ctx, scope, desired)
}

func (k pausedKernel) MakePair(ctx context.Context, l routes.Link, addrs []netip.Addr, do furnish) (int, error) {
	k.at()
	return k.kernel.MakePair(ctx, l, addrs, do)
}

// Thirty-two pods that started at once without a daemon were wired one after the other.
func TestStoreIsFreeWhileAPodIsWired(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	h.share(t, n)
	h.leased = nil // as another process sees them
	dial, looks := n.dial, 0
	n.dial = func(ns *os.File) (kernel, error) {
		k, err := dial(ns)
		return pausedKernel{k, func() {
			looks++
			if leases := h.leases(t); len(leases) != 1 {
				t.Errorf("another process sees %d leases", len(leases))
			}
		}}, err
	}
	drainIdle(n)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	if reply := c.do(t, n); reply.Failed || looks == 0 {
		t.Fatalf("%d looks: %s", looks, reply.Output)
	}
	n.dial = dial
	drainIdle(n)
	if err := n.needStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.verb = "DEL"
	c.does(t, n)
	if err := n.yield(); err != nil {
		t.Fatal(err)
	}
}

// A daemon that started while calls of the plugin waited for the store held it from then on, and they gave up.
func TestDaemonStartsWhileAPluginWaits(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	store := h.store(t)
	c := call{exe: plugins(t) + "/edgeway", verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	added := make(chan string, 1)
	go func() { added <- h.must(t, c) }()
	info, err := os.Stat(store.Path() + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the plugin waits for the store", func() bool {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(strings.Split(string(locks), "\n"), func(line string) bool {
			return strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino))
		})
	})
	var n *Node
	h.run(t, func() (err error) {
		n, err = NewNode(store, h.dir)
		return err
	})
	h.leased = func() []ipam.Lease { return leasesOf(t, store) }
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- api.Serve(ctx, l, handler(n)) }()
	h.sh(t, "ping -c1 -W5 "+parseResult(t, <-added).addrs()[0])
	h.end(t, c)
	stop()
	h.leased = nil
	if err := errors.Join(<-served, n.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}

// The caller is killed while the daemon works for it: what was made is undone.
func TestKilledCallerIsUndone(t *testing.T) {
	kernelTest(t)
	for name, exe := range executables(t) {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
			t.Run(name+"/"+signal.String(), func(t *testing.T) { killedCaller(t, exe, signal) })
		}
	}
}

// executables are the ways to call the plugin: its whole program, and one that forwards first.
func executables(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{"whole": "", "forwards": plugins(t) + "/edgeway"}
}

func killedCaller(t *testing.T, exe string, signal syscall.Signal) {
	h, pod := newHost(t), newSpace(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	_, stop := h.serve(t, func(n *Node) api.Handler {
		return func(ctx context.Context, req api.Request, netns *os.File) api.Reply {
			reply := n.Do(context.WithoutCancel(ctx), Call{CNI: *req.CNI, NetnsFile: netns})
			close(entered)
			<-leave
			return reply
		}
	})
	c := call{exe: exe, verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	cmd := c.command(t.Context())
	h.run(t, cmd.Start)
	<-entered
	if len(h.leases(t)) != 1 {
		t.Error("nothing was made")
	}
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	close(leave)
	stop()
	if leases := h.leases(t); len(leases) > 0 {
		t.Errorf("leases stay: %v", leases)
	}
}

// An undo that comes late leaves the attachment's next life alone.
func TestLateUndo(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	lost := c.do(t, n)
	c.verb = "DEL"
	c.do(t, n)
	c.verb = "ADD"
	c.does(t, n)
	lost.Undelivered(t.Context())
	if len(h.leases(t)) != 1 {
		t.Error("the second life was ended")
	}
	h.whole(t)
	c.verb = "DEL"
	c.do(t, n)
}

// The daemon dies over an ADD that it has half done, or done. The executable takes over.
func TestDaemonDiesOverAdd(t *testing.T) {
	kernelTest(t)
	for name, exe := range executables(t) {
		for _, when := range []string{"before", "after"} {
			t.Run(name+"/"+when, func(t *testing.T) { daemonDies(t, exe, when) })
		}
	}
}

func daemonDies(t *testing.T, exe, when string) {
	h, pod := newHost(t), newSpace(t)
	store := h.store(t)
	var n *Node
	h.run(t, func() (err error) {
		n, err = NewNode(store, h.dir)
		return err
	})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c := call{exe: exe, verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	go func() { // a daemon that dies: socket and store go together
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		var b [1]byte
		_, _ = conn.Read(b[:])
		if when == "after" {
			c.do(t, n)
		}
		l.Close()
		n.Close()
		store.Close()
		conn.Close()
	}()
	added := h.must(t, c)
	c.verb, c.conf = "CHECK", with(c.conf, "prevResult", added)
	h.must(t, c)
	h.sh(t, "ping -c1 -W5 "+parseResult(t, added).addrs()[0])
	h.end(t, c)
}

// STATUS waited for ever for a daemon that was stopped (kill -STOP), and the runtime reported the whole
// node down. It says what is wrong within seconds.
func TestStatusOfAStoppedDaemon(t *testing.T) {
	kernelTest(t)
	for name, exe := range executables(t) {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			store := h.store(t)
			defer store.Close()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.dir, "sock"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close() // the kernel takes the connection, and nobody reads
			begin := time.Now()
			text := h.refused(t, call{exe: exe, verb: "STATUS", conf: h.conf("1.1.0")}, codeUnavailable)
			if took := time.Since(begin); took > 2*statusPatience || !strings.Contains(text, "does not answer") {
				t.Errorf("took %v: %s", took, text)
			}
		})
	}
}

// The store is held and nobody answers: try again later.
func TestStoreIsHeld(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	store := h.store(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	begin := time.Now()
	h.refused(t, c, codeTryAgain)
	if took := time.Since(begin); took > 2*storePatience {
		t.Errorf("took %v", took)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// The result cannot be written: what was made is undone, in the daemon or here.
func TestClosedStdout(t *testing.T) {
	kernelTest(t)
	for _, mode := range []string{"daemon", "alone"} {
		t.Run(mode, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			if mode == "daemon" {
				h.serve(t, handler)
			}
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			binary := plugins(t) + "/edgeway"
			h.run(t, func() error {
				cmd := exec.CommandContext(t.Context(), binary)
				source := c.command(t.Context())
				cmd.Stdin, cmd.Env, cmd.Stdout = source.Stdin, source.Env, w
				err := cmd.Run()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 1 {
					return fmt.Errorf("want status 1, got %v", err)
				}
				return nil
			})
			w.Close()
			if leases := h.leases(t); len(leases) > 0 {
				t.Errorf("leases stay: %v", leases)
			}
			h.whole(t)
		})
	}
}

// Nothing in the environment but what the SPEC names, no working directory, nothing open but
// standard input and output.
func TestHostileSurroundings(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	gone, binary := filepath.Join(t.TempDir(), "gone"), plugins(t)+"/edgeway"
	for _, verb := range []string{"ADD", "DEL"} {
		c.verb = verb
		h.run(t, func() error {
			if err := os.MkdirAll(gone, 0o700); err != nil {
				return err
			}
			var out bytes.Buffer
			// exec closes standard error; the shell removes its own working directory.
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `cd "$1" && rmdir "$1" && umask 0777 && exec env -i CNI_COMMAND="$2" CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS="$3" "$4" 2>&-`,
				"sh", gone, verb, pod.path, binary)
			cmd.Stdin, cmd.Stdout = strings.NewReader(c.conf), &out
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w: %s", verb, err, out.String())
			}
			return nil
		})
		h.whole(t)
	}
}
