package routes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// PinNetns makes a network namespace and mounts it at path (nsfs), so that it lives until UnpinNetns or a reboot. A
// namespace that is mounted there already stays. A file that is not empty is not mounted over. PinNetns needs
// CAP_SYS_ADMIN, and a mount namespace in which a mount is wanted.
func PinNetns(path string) error {
	if NetnsPinned(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NONBLOCK, 0o444)
	if err != nil {
		return err
	}
	defer f.Close()
	switch s, err := f.Stat(); {
	case err != nil:
		return err
	case !s.Mode().IsRegular() || s.Size() > 0:
		return fmt.Errorf("%s is not an empty file: delete it, and a network namespace is mounted there", path)
	}
	ns, err := NewNetns()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount a network namespace at %s: %w; this needs CAP_SYS_ADMIN and no sandbox that forbids mounts", path, err)
	}
	return nil
}

// NetnsPinned reports that a namespace is mounted at path.
func NetnsPinned(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}

// UnpinNetns unmounts the namespace at path, and deletes the file and its directory if that is empty. What is absent
// is not an error. In a container it unmounts the container's copy; to delete a file that is not mounted over here
// detaches the host's mount (fs/namei.c, vfs_unlink; Linux 3.18).
func UnpinNetns(path string) error {
	for NetnsPinned(path) { // one mount may hide another
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w; this needs CAP_SYS_ADMIN", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(path)) // a directory with other files stays
	return nil
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
