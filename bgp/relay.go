package bgp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds the wait for an answer to a SYN: less than connectRetry.
	dialTimeout = connectRetry - time.Second
	// attachTimeout bounds the wait for GoBGP to connect, which it does within 2 s.
	attachTimeout = 10 * time.Second
	// deafAfter is how many times an octet must be sent again to count as dropped: this takes 3 s.
	deafAfter = 4
	// farewellTimeout bounds the wait for a switch to handle everything that we sent and to close its end. An FRR
	// that handles 5,000 paths on a busy processor takes more than a second.
	farewellTimeout = 3 * time.Second
	// togetherTimeout bounds how long the first KEEPALIVE waits for the paths, which GoBGP sends at once.
	togetherTimeout = 2 * time.Second
)

// relay is one connection to the switch. It carries the messages between GoBGP and the switch, and the
// journal sees each of them.
//
//	GoBGP ── inner (loopback) ── relay ── outer (source address, MD5, TTL) ── switch
//
// GoBGP v3 does not say why a session failed, does not expose its sockets, and keeps every path that a
// switch sends. The relay makes all of this visible, and passes on only the messages that GoBGP needs.
type relay struct {
	journal *journal
	outer   *net.TCPConn
	inner   net.Conn
	done    chan struct{} // closed when the connection is over
	// quiet: an OPEN that we refuse ends the connection without a NOTIFICATION, so that the switch
	// keeps our paths. BIRD drops them at an OPEN error, and rejects us for its error wait time.
	quiet bool

	sending sync.Mutex // guards the fields below: messages go out whole
	out     *bufio.Writer
	last    bool // the last message has gone out, perhaps only half of it
	// held are the first KEEPALIVE and the UPDATEs behind it, until the End-of-RIBs that awaited names are there. The
	// switch is then Established with all paths in its socket. Otherwise a daemon that is killed in between loses the
	// paths that are not sent yet: they are stale, and the switch deletes them at the next loss (RFC 4724, section 4.2).
	held    []message
	awaited [2]bool // IPv4, IPv6
	greeted bool    // the first KEEPALIVE was sent
}

func newRelay(j *journal, outer *net.TCPConn, inner net.Conn, quiet bool) *relay {
	return &relay{journal: j, outer: outer, inner: inner, quiet: quiet, done: make(chan struct{}), out: bufio.NewWriterSize(outer, 64<<10)}
}

// run carries messages until the connection is over.
func (r *relay) run() {
	defer close(r.done)
	var wg sync.WaitGroup
	wg.Go(r.outward)
	r.inward()
	_ = r.inner.Close()
	wg.Wait()
	_ = r.outer.Close()
}

// inward carries the switch's messages to GoBGP.
func (r *relay) inward() {
	in := bufio.NewReaderSize(r.outer, 64<<10)
	for begun := false; ; {
		m, err := readMessage(in)
		pass := false
		if err == nil {
			pass, err = r.journal.received(m)
		}
		var bad refusal
		if errors.As(err, &bad) {
			r.send(notification(bad).message(), true)
		}
		if err != nil {
			r.journal.ended(true)
			break
		}
		if pass {
			_, _ = r.inner.Write(m) // if GoBGP has closed its end, outward ends the connection
		}
		if m.kind() == bgp.BGP_MSG_KEEPALIVE && !begun {
			// GoBGP has restarted, and waits for these before it sends its paths (RFC 4724, section 4.1). Our
			// paths do not depend on the switch's.
			begun = true
			for _, family := range r.journal.ends() {
				_, _ = r.inner.Write(endOfRIB(family))
			}
		}
	}
	_ = r.inner.Close()
	for { // until the switch closes its end, or the deadline set by await
		if _, err := in.Discard(in.Buffered() + 1); err != nil {
			return
		}
	}
}

// outward carries GoBGP's messages to the switch.
func (r *relay) outward() {
	in := bufio.NewReaderSize(r.inner, 64<<10)
	for {
		m, err := readMessage(in)
		if err != nil {
			break
		}
		if m.kind() == bgp.BGP_MSG_OPEN {
			m = m.without(bgp.BGP_CAP_EXTENDED_NEXTHOP)
		}
		r.send(m, in.Buffered() == 0)
	}
	r.journal.ended(false)
	r.finish()
}

// send sends a message to the switch, at once or with the next message. After a NOTIFICATION it sends
// nothing.
func (r *relay) send(m message, flush bool) {
	r.sending.Lock()
	defer r.sending.Unlock()
	if r.last {
		return
	}
	r.held = append(r.held, m)
	if r.holds(m) {
		return
	}
	r.write(flush)
}

// write sends what is held. The caller holds sending.
func (r *relay) write(flush bool) {
	for _, m := range r.held {
		r.journal.sent(m)
	}
	m := r.held[len(r.held)-1]
	last := m.kind() == bgp.BGP_MSG_NOTIFICATION
	if last && r.quiet && notificationOf(m).code == 2 {
		r.close()
		return
	}
	_, err := r.out.Write(slices.Concat(r.held...))
	r.held = nil
	if err == nil && (flush || last) {
		err = r.out.Flush()
	}
	switch {
	case err != nil:
		r.close()
	case last:
		// We send no FIN: FRR handles it before the messages that it has read earlier, misses the NOTIFICATION,
		// and keeps our paths for the restart time. The switch closes the connection after a NOTIFICATION.
		r.await()
	}
}

// holds reports whether the message waits for others, which the switch is to get with it. The caller holds sending.
func (r *relay) holds(m message) bool {
	switch m.kind() {
	case bgp.BGP_MSG_KEEPALIVE:
		if !r.greeted {
			r.greeted = true
			for _, family := range r.journal.ends() {
				r.awaited[family-bgp.AFI_IP] = true
			}
			time.AfterFunc(togetherTimeout, r.release)
		}
	case bgp.BGP_MSG_UPDATE:
		eor4, eor6 := m.endOfRIB()
		r.awaited[0], r.awaited[1] = r.awaited[0] && !eor4, r.awaited[1] && !eor6
	default:
		r.awaited = [2]bool{}
	}
	return r.awaited != [2]bool{}
}

// release sends what is held.
func (r *relay) release() {
	r.sending.Lock()
	defer r.sending.Unlock()
	r.awaited = [2]bool{}
	if !r.last && len(r.held) > 0 {
		r.write(true)
	}
}

// finish ends our side of the connection.
func (r *relay) finish() {
	r.sending.Lock()
	defer r.sending.Unlock()
	if !r.last {
		_ = r.out.Flush()
		r.close()
	}
}

// close ends our side of the connection. The caller holds sending.
func (r *relay) close() {
	_ = r.outer.CloseWrite()
	r.await()
}

// await gives the switch farewellTimeout to close its end. We send no more. The caller holds sending.
func (r *relay) await() {
	r.last = true
	_ = r.outer.SetReadDeadline(time.Now().Add(farewellTimeout))
}

// leave sends a NOTIFICATION as the last message, and waits until the switch has closed the connection.
func (r *relay) leave(n notification) {
	deadline := time.Now().Add(farewellTimeout)
	_ = r.outer.SetWriteDeadline(deadline) // a switch that does not read must not delay us
	r.send(n.message(), true)
	select {
	case <-r.done:
	case <-time.After(time.Until(deadline)):
	}
}

// refresh asks the switch to send its paths again (RFC 2918). If the switch does not support that, the
// connection ends silently: the switch sends its paths in the next connection.
func (r *relay) refresh() {
	up, offer := r.journal.up()
	switch {
	case !up:
	case offer.refresh:
		for _, afi := range []byte{bgp.AFI_IP, bgp.AFI_IP6} {
			m := append(append(message{}, marker...), 0, bgp.BGP_HEADER_LENGTH+4, bgp.BGP_MSG_ROUTE_REFRESH, 0, afi, 0, bgp.SAFI_UNICAST)
			r.send(m, true)
		}
	default:
		r.journal.ended(false)
		r.finish()
	}
}

// deaf ends a connection on which one side drops the other's packets because of TTL security (RFC 5082): no
// octet of ours is acknowledged. The switch is the side that drops exactly if its octets arrive.
func (r *relay) deaf(p Peer) {
	deaf := false
	raw, err := r.outer.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(socket uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(socket), unix.IPPROTO_TCP, unix.TCP_INFO)
		acknowledged := err != nil || info.Bytes_acked > 1 // our SYN counts as 1
		if acknowledged || info.Retransmits < deafAfter || p.TTLSecurity != (info.Bytes_received == 0) {
			return
		}
		deaf = true
		// The switch must take our FIN, and we its acknowledgement: otherwise it waits for us for minutes.
		p.TTLSecurity, p.Password = true, ""
		p.MultihopTTL = 255
		_ = p.options(int(socket))
	})
	if deaf {
		r.journal.silent()
		r.finish()
	}
}

// dial connects to the switch on the terms of the session.
func dial(p Peer) (*net.TCPConn, error) {
	d := net.Dialer{
		Timeout:   dialTimeout,
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.LocalAddress, 0)),
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = p.options(int(fd)) }), err)
		},
	}
	conn, err := d.Dial("tcp", netip.AddrPortFrom(p.Address, p.Port).String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// options sets the TTL and password of a socket.
func (p Peer) options(fd int) error {
	level, ttl, least := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if p.Address.Is6() {
		level, ttl, least = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	err := os.NewSyscallError("set TTL", unix.SetsockoptInt(fd, level, ttl, p.hops()))
	if p.TTLSecurity {
		// The TTL of a packet from n hops away is lower by n-1 (RFC 5082, section 3).
		err = errors.Join(err, os.NewSyscallError("set least TTL", unix.SetsockoptInt(fd, level, least, 256-max(1, int(p.MultihopTTL)))))
	}
	if p.Password != "" {
		sig := unix.TCPMD5Sig{Keylen: uint16(len(p.Password))}
		copy(sig.Key[:], p.Password)
		if a := p.Address; a.Is4() { // a sockaddr has the port before the address, and for IPv6 the flow too
			sig.Addr.Family = unix.AF_INET
			copy(sig.Addr.Data[2:], a.AsSlice())
		} else {
			sig.Addr.Family = unix.AF_INET6
			copy(sig.Addr.Data[6:], a.AsSlice())
		}
		err = errors.Join(err, os.NewSyscallError("set TCP MD5 password", unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig)))
	}
	return err
}

// attach opens a loopback port for GoBGP alone, calls open so that GoBGP connects to the port, and returns
// the connection. It closes other processes' connections.
func attach(open func(port uint16) error) (net.Conn, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", netip.AddrPortFrom(loopback, 0).String())
	if err != nil {
		return nil, fmt.Errorf("listen for GoBGP: %w", err)
	}
	defer ln.Close()
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := open(at.Port()); err != nil {
		return nil, err
	}
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(attachTimeout))
	for {
		conn, err := ln.Accept()
		if err != nil {
			return nil, fmt.Errorf("wait for GoBGP to connect: %w", err)
		}
		if ours(conn.RemoteAddr().(*net.TCPAddr).AddrPort(), at) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// loopback is the address of GoBGP and of the relay's inner end.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // read only

// ours reports whether the TCP connection from local to remote belongs to this process.
func ours(local, remote netip.AddrPort) bool {
	files, _ := os.ReadDir("/proc/self/fd") // without a list, no connection is ours
	return slices.ContainsFunc(files, func(file os.DirEntry) bool {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			return false
		}
		// A file that is not an IPv4 socket has other names, or none.
		here, _ := unix.Getsockname(fd)
		there, _ := unix.Getpeername(fd)
		a, ok1 := here.(*unix.SockaddrInet4)
		b, ok2 := there.(*unix.SockaddrInet4)
		return ok1 && ok2 && *a == inet4(local) && *b == inet4(remote)
	})
}

func inet4(a netip.AddrPort) unix.SockaddrInet4 {
	return unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}
