package routes

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside runs do on a thread in the namespace ns, and returns when do returns. The
// caller's thread never moves.
func inside(ns netns.NsHandle, do func() error) error {
	var there, here unix.Stat_t
	if unix.Fstat(int(ns), &there) == nil && unix.Stat("/proc/thread-self/ns/net", &here) == nil && there.Ino == here.Ino && there.Dev == here.Dev {
		return do() // every thread that may run the caller is in ns
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := visit(ns, do)
		if home {
			runtime.UnlockOSThread()
		}
		// A thread that is not home ends here with its goroutine (runtime.LockOSThread).
		done <- err
	}()
	return <-done
}

// visit moves the thread to ns and back; home is false if moving back failed.
func visit(ns netns.NsHandle, do func() error) (home bool, err error) {
	from, err := netns.Get()
	if err != nil {
		return true, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer from.Close()
	if err := netns.Set(ns); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = do()
	return netns.Set(from) == nil, err
}

// NewNetns makes a network namespace. It lives as long as somebody has a descriptor of it, a process in it or a
// mount of it (network_namespaces(7)); sockets that were opened in it count, too.
func NewNetns() (*os.File, error) {
	var made *os.File
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			made, err = os.Open("/proc/thread-self/ns/net")
		}
		if netns.Set(home) == nil {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
		if err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
		}
		done <- err
	}()
	err := <-done
	return made, err
}

// Inside runs do on a thread in the network namespace, and returns when do returns. Sockets that do opens stay in
// the namespace.
func Inside(ns *os.File, do func() error) error { return inside(netns.NsHandle(ns.Fd()), do) }

// dup returns a new descriptor for f.
func dup(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil {
		return -1, cerr
	}
	return fd, err
}
