package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// The executable is killed at any moment, hundreds of times. The runtime's DEL, or the daemon's
// Sweep, removes what is left.
func TestKilledAnywhere(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	binary := plugins(t) + "/edgeway"
	var life time.Duration
	finished := 0
	const kills = 200
	for i := range kills {
		pod := newSpace(t)
		c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
		if i%10 == 0 {
			begin := time.Now()
			h.must(t, c)
			life = time.Since(begin)
		} else {
			finished += h.killed(t, c, binary, rand.N(life+life/4))
		}
		switch i % 3 {
		case 0: // the runtime deletes
			h.end(t, c)
		case 1: // DEL is killed too, then repeated
			c.verb = "DEL"
			h.killed(t, c, binary, rand.N(life))
			h.must(t, c)
		case 2: // the pod goes away, nobody deletes
			pod.file.Close()
		}
	}
	t.Logf("%d of %d ADDs had finished when they were killed; one takes %v", finished, kills, life.Round(100*time.Microsecond))
	h.swept(t)
}

// swept wants that nothing is left once the daemon has swept: no link, route, lease or element.
func (h *host) swept(t *testing.T) {
	t.Helper()
	n := h.node(t)
	until(t, "nothing is left", func() bool {
		if _, err := n.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		links, routes := h.wired(t)
		return len(links)+len(routes)+len(h.leases(t)) == 0
	})
	need(t, "nft")
	if out, err := h.try(t, "nft list table inet edgeway 2>/dev/null"); err == nil && (strings.Contains(out, "10.99.") || strings.Contains(out, "fd00:99:")) {
		t.Errorf("elements stay: %s", out)
	}
}

// serveForTests is a daemon in a process of its own: the store and the verbs on dir's socket. It ends
// when it is killed.
func serveForTests(dir string) error {
	ctx := context.Background()
	store, err := OpenStore(ctx, filepath.Join(dir, StoreFile), patience)
	if err != nil {
		return err
	}
	n, err := NewNode(store, dir)
	if err != nil {
		return err
	}
	if err := n.DeleteEarly(); err != nil {
		return err
	}
	if _, err := n.Sweep(ctx); err != nil {
		return err
	}
	socket := filepath.Join(dir, "sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	return api.Serve(ctx, l, handler(n))
}

// doomed is a daemon that is going to be killed.
type doomed struct {
	*exec.Cmd
	quit chan struct{} // lets go of the thread that started it, whose end kills it
	dead chan struct{}
}

func (h *host) doomedDaemon(t *testing.T) doomed {
	t.Helper()
	d := doomed{exec.Command("/proc/self/exe"), make(chan struct{}), make(chan struct{})}
	d.Env = append(os.Environ(), asDaemon+"="+h.dir)
	d.Stderr = os.Stderr
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: it is in the host's namespace
		err := unix.Setns(int(h.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = d.Start()
		}
		started <- err
		<-d.quit
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	until(t, "the daemon answers", func() bool {
		c, err := net.Dial("unix", filepath.Join(h.dir, "sock"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return d
}

func (d doomed) kill() {
	_ = d.Process.Kill()
	_ = d.Wait()
	close(d.quit)
	close(d.dead)
}

// The daemon is killed at any moment while it works for the plugin, and the plugin with it every
// other time. A plugin that lives serves its call itself, and a pod that was added works; nothing
// stays behind in any case.
func TestDaemonKilledAnywhere(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	binary := plugins(t) + "/edgeway"
	var life time.Duration
	served := 0
	const kills = 120
	for i := range kills {
		pod := newSpace(t)
		c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
		d := h.doomedDaemon(t)
		begin := time.Now()
		if i%10 == 0 {
			h.must(t, c)
			life = time.Since(begin)
			c.verb = "DEL" // at which the daemon dies
		}
		moment := rand.N(life + life/4)
		death := time.AfterFunc(moment, d.kill)
		if i%2 == 1 {
			h.killed(t, c, binary, moment)
		} else {
			out := h.must(t, c)
			served++
			if c.verb == "ADD" {
				h.sh(t, "ping -c1 -W5 "+parseResult(t, out).addrs()[0])
			}
		}
		if death.Stop() {
			d.kill()
		}
		<-d.dead
		if i%3 == 0 { // the pod goes away, nobody deletes
			pod.file.Close()
			continue
		}
		h.end(t, c)
	}
	t.Logf("%d kills of the daemon, %d of the plugin with it; %d calls were served by plugins that lived; one ADD takes %v", kills, kills-served, served, life.Round(100*time.Microsecond))
	h.swept(t)
}

// killed executes the call and kills it after a while; it returns 1 when it had ended well.
func (h *host) killed(t *testing.T, c call, binary string, after time.Duration) (ended int) {
	t.Helper()
	h.run(t, func() error {
		cmd := exec.CommandContext(t.Context(), binary)
		source := c.command(t.Context())
		cmd.Stdin, cmd.Env = source.Stdin, source.Env
		if err := cmd.Start(); err != nil {
			return err
		}
		kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if cmd.Wait() == nil {
			ended = 1
		}
		return nil
	})
	return ended
}

// A daemon was killed when the pod was wired and its lease not yet on disk: a link that no lease owns. Its
// address is not leased again while the link is there; a DEL, or the sweep of the next daemon, removes it.
func TestKilledBeforeTheLeaseIsWritten(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	n := h.node(t)
	add := func(id string) (c call, addr string) {
		c = call{verb: "ADD", id: id, ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0", `"ipMasq":true`)}
		out := c.does(t, n)
		c.verb = "DEL"
		return c, parseResult(t, string(out)).addrs()[0]
	}
	lose := func(c call) {
		if _, ok, err := n.Store.Release(t.Context(), attachmentOf(c)); !ok || err != nil {
			t.Fatal("release", ok, err)
		}
		for _, a := range []string{"10.99.0.1", "fd00:99::1"} { // the store does not know the address at all
			if err := n.Store.Forget(t.Context(), netip.MustParseAddr(a)); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, addr := add("first")
	lose(first)
	for i := range 3 {
		c, other := add(fmt.Sprint("other", i))
		if other == addr {
			t.Fatalf("%s is on two links", addr)
		}
		c.does(t, n)
	}
	first.does(t, n)
	h.whole(t)
	if out := h.sh(t, "nft list table inet edgeway"); strings.Contains(out, addr) {
		t.Errorf("masquerade stays:\n%s", out)
	}
	second, _ := add("second")
	lose(second)
	if did, err := n.Sweep(t.Context()); err != nil || len(did) != 1 || !strings.Contains(did[0], HostLink(attachmentOf(second))) {
		t.Errorf("sweep: %q, %v", did, err)
	}
}
