package plugin

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The daemon was stopped (kill -STOP): a call waited for two minutes, and runtimes give up then. It fails
// in time and says what to do. When the daemon continues, the calls that nobody waits for have no effect.
func TestCallsOfAStoppedDaemon(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	d := h.doomedDaemon(t)
	defer d.kill()
	old := call{verb: "ADD", id: "old", ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0")}
	added := h.must(t, old)
	if err := d.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	crowded := newHost(t) // no room in the socket's queue, and the store is held
	store := crowded.store(t)
	crowd(t, filepath.Join(crowded.dir, "sock"))

	var wait sync.WaitGroup
	fails := func(h *host, c call) {
		wait.Go(func() {
			begin := time.Now()
			out, status := h.exec(t, c)
			took := time.Since(begin).Round(time.Second)
			if status == 0 || !strings.Contains(out, fmt.Sprintf(`"code":%d`, codeTryAgain)) || !strings.Contains(out, "systemctl restart edgewayd") || took > time.Minute {
				t.Errorf("%s %s took %v: status %d: %s", c.verb, c.id, took, status, out)
			}
		})
	}
	var retries []call
	for name, exe := range executables(t) {
		add := call{exe: exe, verb: "ADD", id: name, ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0")}
		retries = append(retries, add)
		fails(h, add)
		lost := add // its runtime does not call again
		lost.id, lost.netns = "lost-"+name, newSpace(t).path
		fails(h, lost)
		end, check, gc := old, old, add
		end.exe, end.verb = exe, "DEL"
		fails(h, end)
		check.exe, check.verb, check.conf = exe, "CHECK", with(h.conf("1.1.0"), "prevResult", added)
		fails(h, check)
		gc.verb, gc.conf = "GC", h.conf("1.1.0", `"cni.dev/valid-attachments":[]`)
		fails(h, gc)
		late := add
		late.conf = crowded.conf("1.1.0")
		fails(crowded, late)
	}
	wait.Wait()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, c := range retries {
		h.sh(t, "ping -c1 -W5 "+parseResult(t, h.must(t, c)).addrs()[0])
	}
	h.sh(t, "ping -c1 -W5 "+parseResult(t, added).addrs()[0])
	for _, c := range append(retries, old) {
		h.end(t, c)
	}
	until(t, "nothing is left", func() bool {
		links, routes := h.wired(t)
		return len(links)+len(routes) == 0
	})
}

// crowd listens on the socket, and fills the queue of connections that nobody accepts.
func crowd(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { waiting.Close() })
}
