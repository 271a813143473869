package bgp

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quietLook is the time between two looks whether all that was written is also acknowledged.
const quietLook = 10 * time.Millisecond

// hangUp ends this process's TCP connections from local to remote without a word of BGP: a FIN
// and no NOTIFICATION is what a switch takes for a graceful restart (RFC 4724, section 4.2).
// GoBGP itself sends a Cease whenever it is asked to close a session. localPort 0 means any. It
// returns how many connections it ended.
func hangUp(local, remote netip.AddrPort) (int, error) {
	return eachConnection(local, remote, func(fd int) error { return shutdown(fd, unix.SHUT_RDWR) })
}

// sayLast sends message on the connection from local to remote as the last of this side. GoBGP may
// be writing to the same connection: it is not between two octets of a message when nothing waits
// to be sent, and still nothing a moment later.
func sayLast(ctx context.Context, local, remote netip.AddrPort, message []byte) (int, error) {
	return eachConnection(local, remote, func(fd int) error {
		for quiet := 0; quiet < 2; {
			waiting, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
			if err != nil {
				return os.NewSyscallError("SIOCOUTQ", err)
			}
			if quiet++; waiting > 0 {
				quiet = 0
			}
			select {
			case <-time.After(quietLook):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := unix.Sendmsg(fd, message, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		return shutdown(fd, unix.SHUT_WR)
	})
}

func shutdown(fd, how int) error {
	if err := unix.Shutdown(fd, how); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

// eachConnection calls f with each of this process's TCP connections from local to remote, and
// returns with how many it did. GoBGP has no hook at its sockets, so they are found where the kernel
// lists them. localPort 0 means any.
func eachConnection(local, remote netip.AddrPort, f func(fd int) error) (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	var count int
	var errs []error
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink("/proc/self/fd/" + entry.Name()); err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		ok, err := onConnection(fd, local, remote, f)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			count++
		}
	}
	return count, errors.Join(errs...)
}

// onConnection works on a duplicate, so that the socket that it has looked at is the one that f
// gets, whatever happens to fd meanwhile.
func onConnection(fd int, local, remote netip.AddrPort, f func(fd int) error) (bool, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false, nil // closed meanwhile
	}
	defer unix.Close(dup)
	peer, err := unix.Getpeername(dup)
	if err != nil || addrPort(peer) != remote {
		return false, nil
	}
	self, err := unix.Getsockname(dup)
	if err != nil {
		return false, nil
	}
	if a := addrPort(self); a.Addr() != local.Addr() || local.Port() != 0 && a.Port() != local.Port() {
		return false, nil
	}
	return true, f(dup)
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
