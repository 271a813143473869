package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Reacher asks for neighbours behind a switch that answers ARP or neighbour discovery in their place. It sends
// packets that only the neighbour can answer, and reads what comes back: an ICMP error of the neighbour itself,
// or of the switch, which has found that the neighbour is not there.
//
// A Reacher belongs to one goroutine. Its zero value is ready.
type Reacher struct{ sockets map[Neighbour]int }

// discard is the port that the packets go to (RFC 863). Nearly every machine answers "port unreachable".
const discard = 9

// Reach returns what came back for the last packet to each neighbour, and sends each another packet. Answers: the
// neighbour sent an ICMP error. Silent: another machine said that the neighbour cannot be reached (RFC 792, type 3
// code 1; RFC 4443, type 1 code 3). Unsure: nothing came back, as from a machine whose firewall drops packets, or
// anything else. A switch needs some three seconds before it says that a neighbour cannot be reached.
func (r *Reacher) Reach(ctx context.Context, neighbours []Neighbour) (map[Neighbour]Hearing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	heard, kept := map[Neighbour]Hearing{}, map[Neighbour]int{}
	var errs []error
	for _, n := range neighbours {
		fd, open := r.sockets[n]
		if !open {
			var err error
			if fd, err = reachSocket(n.IP); err != nil {
				errs = append(errs, fmt.Errorf("reach %s on %s: %w", n.IP, n.Link, err))
				continue
			}
		}
		kept[n] = fd
		delete(r.sockets, n)
		heard[n] = cameBack(fd, n.IP)
		_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // clears the error, which the next send would return
		if err := unix.Send(fd, []byte("edgeway"), unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ECONNREFUSED) {
			errs = append(errs, fmt.Errorf("reach %s on %s: %w", n.IP, n.Link, err))
		}
	}
	r.Close()
	r.sockets = kept
	return heard, errors.Join(errs...)
}

// Close closes the sockets. The Reacher can be used again.
func (r *Reacher) Close() {
	for _, fd := range r.sockets {
		_ = unix.Close(fd)
	}
	r.sockets = nil
}

// reachSocket returns a UDP socket that keeps the ICMP errors about its packets (IP_RECVERR, ip(7)).
func reachSocket(to netip.Addr) (fd int, err error) {
	level, report := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	var at unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16(), Port: discard}
	if to.Is4() {
		level, report = unix.IPPROTO_IP, unix.IP_RECVERR
		at = &unix.SockaddrInet4{Addr: to.As4(), Port: discard}
	}
	fd, err = unix.Socket(int(family(to)), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.SetsockoptInt(fd, level, report, 1), unix.Connect(fd, at)); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// cameBack reads the ICMP errors that arrived since the last call. An answer of the neighbour itself counts most.
func cameBack(fd int, neighbour netip.Addr) Hearing {
	h := Unsure
	self, _ := unix.Getsockname(fd)
	for {
		control := make([]byte, 512)
		_, n, _, _, err := unix.Recvmsg(fd, nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return h
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			return h
		}
		for _, m := range messages {
			by, gone := icmpError(m)
			switch {
			case !by.IsValid() || by == addrOf(self): // this machine found no MAC
			case by == neighbour:
				return Answers
			case gone:
				h = Silent
			}
		}
	}
}

// icmpError returns the sender of an ICMP error, and whether the error says that the destination is not there.
// The message is a struct sock_extended_err with the sender's sockaddr after it (linux/errqueue.h).
func icmpError(m unix.SocketControlMessage) (by netip.Addr, gone bool) {
	const origin, kind, code, size = 4, 5, 6, 16 // offsets, and the size, of sock_extended_err
	d := m.Data
	switch {
	case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR && len(d) >= size+8 && d[origin] == unix.SO_EE_ORIGIN_ICMP:
		return netip.AddrFrom4([4]byte(d[size+4 : size+8])), d[kind] == 3 && d[code] == 1
	case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR && len(d) >= size+24 && d[origin] == unix.SO_EE_ORIGIN_ICMP6:
		return netip.AddrFrom16([16]byte(d[size+8 : size+24])), d[kind] == 1 && d[code] == 3
	}
	return netip.Addr{}, false
}

func addrOf(a unix.Sockaddr) netip.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}
