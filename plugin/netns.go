package plugin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/ipam"
)

// OpenNetns opens the network namespace that CNI_NETNS names. It does not block on a FIFO.
func OpenNetns(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	if !filepath.IsAbs(path) {
		return nil, fault(codeEnvironment, "CNI_NETNS %q is not an absolute path", path).next("name the namespace as /run/netns/NAME or /proc/PID/ns/net")
	}
	f, err := openFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault(codeContainer, "CNI_NETNS %s does not exist", path).next("the container is gone, or its namespace is mounted where the plugin cannot see it")
	}
	if err != nil {
		return nil, fault(codeEnvironment, "CNI_NETNS: %w", err).next("name the namespace as /run/netns/NAME or /proc/PID/ns/net")
	}
	return f, nil
}

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

func isNetnsFile(f *os.File) bool {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}

// socketIn opens a socket in a network namespace; nil: the calling thread's namespace.
func socketIn(netns *os.File) (fd int, err error) {
	if netns == nil {
		return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A thread that cannot be moved back must end with its goroutine.
		runtime.LockOSThread()
		home, oerr := os.Open("/proc/thread-self/ns/net")
		if oerr != nil {
			err = oerr
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err == nil {
			fd, err = socketIn(nil)
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return fd, err
}

// cookieIn is the number of a network namespace, which the kernel never reuses within a boot; 0 before
// Linux 5.14.
func cookieIn(netns *os.File) (uint64, error) {
	socket, err := socketIn(netns)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, nil
	}
	return cookie, nil
}

// isLeased reports whether f is the namespace that the lease was given for: the path may have come to
// name another namespace. A lease of an earlier version, or of an old kernel, has no cookie; then only
// the path counts.
func isLeased(l ipam.Lease, f *os.File) bool {
	if l.NetnsCookie == 0 {
		return true
	}
	cookie, err := cookieIn(f)
	return err != nil || cookie == l.NetnsCookie // an error does not prove that they differ
}

// presence says whether the network namespace of a lease exists.
type presence int

const (
	unknown presence = iota
	present
	gone
)

// netnsOf looks for the namespace of a lease.
//
// A daemon in a container may not see the mounts of the host's /run/netns, or the host's processes. To
// that daemon a missing directory or process proves nothing. Neither does a plain file, where a namespace
// may be mounted for others. And /proc/PID/ns/net proves no namespace without its cookie, since the
// kernel reuses process numbers.
func netnsOf(l ipam.Lease) presence {
	if l.Netns == "" {
		return unknown
	}
	process := strings.HasPrefix(l.Netns, "/proc/")
	f, err := openFile(l.Netns)
	if err == nil {
		defer f.Close()
		switch {
		case !isNetnsFile(f):
			if seesHost() {
				return gone
			}
			return unknown
		case !isLeased(l, f):
			return gone
		case process && l.NetnsCookie == 0:
			return unknown
		}
		return present
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return unknown
	}
	if seesHost() {
		return gone
	}
	if _, err := os.Stat(filepath.Dir(l.Netns)); err == nil && !process {
		return gone
	}
	return unknown
}

// OpenLeased opens the network namespace that the lease was given for; nil when it is gone, or its path names something
// else.
func OpenLeased(l ipam.Lease) (*os.File, error) {
	if l.Netns == "" {
		return nil, nil
	}
	f, err := openFile(l.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault(codeIO, "network namespace: %w", err).next("check %s", l.Netns)
	}
	if !isNetnsFile(f) || !isLeased(l, f) {
		return nil, f.Close()
	}
	return f, nil
}

// The inodes of the machine's first PID and mount namespaces (linux/nsfs.h: PID_NS_INIT_INO,
// MNT_NS_INIT_INO; older kernels give the mount namespace another number).
const (
	firstPIDs   = 0xEFFFFFFC
	firstMounts = 0xEFFFFFF8
)

// seesHost reports that this process sees the host's processes and mounts.
func seesHost() bool {
	var pids, mounts, init unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &pids) != nil || pids.Ino != firstPIDs || unix.Stat("/proc/self/ns/mnt", &mounts) != nil {
		return false
	}
	return mounts.Ino == firstMounts || (unix.Stat("/proc/1/ns/mnt", &init) == nil && mounts.Ino == init.Ino)
}
