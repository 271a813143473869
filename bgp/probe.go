package bgp

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// probeTimeout is how long a probe waits for an answer to its SYN. The kernel resends the SYN
	// after 1 s and 3 s (RFC 6298, section 5.7; tcp(7)).
	probeTimeout = 4 * time.Second
	// probePause is the first pause between two probes, and probeRarest the longest. Some switches log
	// each SYN that lacks a signature, so probes are rare.
	probePause  = time.Minute
	probeRarest = 8 * time.Minute
	// partTimeout is how long a probe waits for the switch to close its end of the connection.
	partTimeout = time.Second
)

// reply is a switch's reaction to a SYN without a TCP MD5 signature (RFC 2385).
type reply struct {
	kind replyKind
	by   netip.Addr // for rejected: the sender of the ICMP message
}

type replyKind string

const (
	unasked    replyKind = ""
	accepted   replyKind = "accepted"   // SYN-ACK: the switch expects no password
	refused    replyKind = "refused"    // RST: nothing listens
	rejected   replyKind = "rejected"   // ICMP: a filter, or a router without a route
	unanswered replyKind = "unanswered" // no answer
	unsent     replyKind = "unsent"     // our own kernel refused to connect
)

// probe connects to the switch's port as p would, but without a password, and closes the connection before it
// sends anything. It closes with a FIN: BIRD and FRR log nothing then, while FRR logs up to three errors for
// an RST. Neither counts a session. BIRD logs a warning if it does not know our address.
func probe(p Peer) reply {
	fd, err := probeSocket(p)
	if err != nil {
		return reply{kind: unsent}
	}
	defer unix.Close(fd)
	switch err := handshake(fd, p); {
	case err == nil:
		_ = unix.Shutdown(fd, unix.SHUT_WR)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, int(partTimeout/time.Millisecond))
		return reply{kind: accepted}
	case errors.Is(err, unix.ETIMEDOUT):
		return reply{kind: unanswered}
	case errors.Is(err, unix.ECONNREFUSED):
		return reply{kind: refused}
	}
	if by, ok := offender(fd); ok && by != p.LocalAddress {
		return reply{kind: rejected, by: by}
	}
	return reply{kind: unsent}
}

// probeSocket has the session's source address and TTL, because a switch may filter by either.
func probeSocket(p Peer) (fd int, err error) {
	family, level, ttl, report := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
	if p.Address.Is6() {
		family, level, ttl, report = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	return fd, errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), // the final close leaves no state behind
		unix.SetsockoptInt(fd, level, ttl, p.hops()),
		unix.SetsockoptInt(fd, level, report, 1),
		unix.Bind(fd, sockaddr(netip.AddrPortFrom(p.LocalAddress, 0))),
	)
}

// hops is the TTL of the session's packets; -1 means the kernel's default.
func (p Peer) hops() int {
	switch {
	case p.TTLSecurity:
		return 255
	case p.ASN == p.LocalASN:
		return -1
	}
	return max(1, int(p.MultihopTTL))
}

// handshake waits at most probeTimeout for the end of the handshake.
func handshake(fd int, p Peer) error {
	err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(p.Address, p.Port)))
	if err == nil || !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	for end := time.Now().Add(probeTimeout); time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(time.Until(end)/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n <= 0 {
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		return err
	}
	return unix.ETIMEDOUT
}

// offender returns the sender of the ICMP message that ended the connection (IP_RECVERR, ip(7)). If ARP
// or neighbour discovery failed, the sender is this machine itself.
func offender(fd int) (netip.Addr, bool) {
	control := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, nil, control, unix.MSG_ERRQUEUE)
	if err != nil {
		return netip.Addr{}, false
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
			continue
		}
		// The sender's sockaddr follows the struct sock_extended_err.
		if data := m.Data[min(len(m.Data), int(unsafe.Sizeof(unix.SockExtendedErr{}))):]; len(data) >= 8 {
			if a, ok := netip.AddrFromSlice(data[4:8]); ok && m.Header.Level == unix.IPPROTO_IP {
				return a, a.IsValid() && !a.IsUnspecified()
			}
			if m.Header.Level == unix.IPPROTO_IPV6 && len(data) >= 24 {
				a, ok := netip.AddrFromSlice(data[8:24])
				return a.Unmap(), ok && !a.IsUnspecified()
			}
		}
	}
	return netip.Addr{}, false
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		in := inet4(a)
		return &in
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
