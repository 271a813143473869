package bgp

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hangUp ends this process's TCP connections from local to remote without a word of BGP: a FIN
// and no NOTIFICATION is what a switch takes for a graceful restart (RFC 4724, section 4.2).
// GoBGP itself sends a Cease whenever it is asked to close a session, and has no hook at its
// sockets, so the socket is found where the kernel lists it. localPort 0 means any. It returns
// how many connections it ended.
func hangUp(local, remote netip.AddrPort) (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	var ended int
	var errs []error
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink("/proc/self/fd/" + entry.Name()); err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		ok, err := hangUpOne(fd, local, remote)
		if err != nil {
			errs = append(errs, err)
		}
		if ok {
			ended++
		}
	}
	return ended, errors.Join(errs...)
}

// hangUpOne works on a duplicate, so that the socket that it has looked at is the one that it
// shuts down, whatever happens to fd meanwhile.
func hangUpOne(fd int, local, remote netip.AddrPort) (bool, error) {
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
	if err := unix.Shutdown(dup, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return false, os.NewSyscallError("shutdown", err)
	}
	return true, nil
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
