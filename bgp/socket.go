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

// quietLook is how often sayLast asks whether all octets have been acknowledged.
const quietLook = 10 * time.Millisecond

// sayLast sends message, and then a FIN, on this process's connection from local to remote. GoBGP may be
// writing to the same connection. It is not in the middle of a message if all octets have been
// acknowledged, and no new ones a moment later.
func sayLast(ctx context.Context, local netip.Addr, remote netip.AddrPort, message []byte) error {
	fd, err := connection(local, remote)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
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
	return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR))
}

// connection returns a duplicate of the file descriptor of this process's TCP connection from local to
// remote. GoBGP does not give its sockets away, so connection searches this process's descriptors. The
// duplicate stays valid even if GoBGP closes its own meanwhile.
func connection(local netip.Addr, remote netip.AddrPort) (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1, err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink("/proc/self/fd/" + entry.Name()); err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue // closed meanwhile
		}
		to, err := unix.Getpeername(dup)
		from, err2 := unix.Getsockname(dup)
		if err == nil && err2 == nil && addrPort(to) == remote && addrPort(from).Addr() == local {
			return dup, nil
		}
		_ = unix.Close(dup)
	}
	return -1, errors.New("the connection to the switch is not among this process's sockets")
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
