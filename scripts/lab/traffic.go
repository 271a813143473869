package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// packetTimeout bounds a packet or a connection on a network inside one busy machine.
	packetTimeout = 3 * time.Second
	// drainTime is how long Flow.Stop waits for outstanding answers.
	drainTime = time.Second
)

// icmp holds the differences between ICMP (RFC 792) and ICMPv6 (RFC 4443): the standard library's name of
// the raw socket, and the types of an echo.
type icmp struct {
	network        string
	request, reply byte
}

func icmpFor(to netip.Addr) icmp {
	if to.Is4() {
		return icmp{"ip4:icmp", 8, 0}
	}
	return icmp{"ip6:ipv6-icmp", 128, 129}
}

// echo returns the request with this sequence number. The kernel computes the checksum of ICMPv6 (RFC 3542,
// section 3.1).
func (i icmp) echo(id, seq uint16) []byte {
	p := make([]byte, 16)
	p[0] = i.request
	binary.BigEndian.PutUint16(p[4:], id)
	binary.BigEndian.PutUint16(p[6:], seq)
	copy(p[8:], "edgeway!")
	if i.request == 8 {
		var sum uint32
		for n := 0; n < len(p); n += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[n:]))
		}
		sum = sum>>16 + sum&0xffff // RFC 1071
		binary.BigEndian.PutUint16(p[2:], ^uint16(sum+sum>>16))
	}
	return p
}

func (i icmp) seq(p []byte, id uint16) (uint16, bool) {
	if len(p) < 8 || p[0] != i.reply || binary.BigEndian.Uint16(p[4:]) != id {
		return 0, false
	}
	return binary.BigEndian.Uint16(p[6:]), true
}

// Flow is a stream of pings.
type Flow struct {
	From, To string
	Addr     netip.Addr
	conn     *net.IPConn
	id       uint16
	icmp     icmp
	stop     chan struct{}
	sent     chan struct{} // closed when the sender has ended
	received chan struct{} // closed when the receiver has ended

	mu      sync.Mutex // guards pings
	pings   []ping
	sendErr error // the last send error
}

type ping struct {
	at, back time.Time // back is zero until the answer arrives
}

// Lost is the packet count of a Flow.
type Lost struct {
	Sent, Lost int
	Longest    time.Duration // from the first to the last packet of the longest run of lost packets
	Err        error         // error of the last packet that could not even be sent
}

func (l Lost) String() string {
	s := fmt.Sprintf("%d sent, %d lost", l.Sent, l.Lost)
	if l.Lost > 0 {
		s += fmt.Sprintf(", longest gap %s", l.Longest.Round(time.Millisecond))
	}
	if l.Err != nil {
		s += ", " + l.Err.Error()
	}
	return s
}

// StartFlow pings an address from the machine, once an interval, until Stop.
func (m *Machine) StartFlow(to netip.Addr, interval time.Duration) (*Flow, error) {
	f := &Flow{From: m.Name, Addr: to, icmp: icmpFor(to),
		stop: make(chan struct{}), sent: make(chan struct{}), received: make(chan struct{})}
	err := m.Do(func() (err error) {
		f.conn, err = net.DialIP(f.icmp.network, nil, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
	}
	// Raw sockets see each other's answers, so the identifier tells the flows of one machine apart.
	f.id = binary.BigEndian.Uint16([]byte(randomID()))
	go f.send(interval)
	go f.receive()
	return f, nil
}

func (f *Flow) send(interval time.Duration) {
	defer close(f.sent)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := 0; ; seq++ {
		f.mu.Lock()
		f.pings = append(f.pings, ping{at: time.Now()})
		f.mu.Unlock()
		if _, err := f.conn.Write(f.icmp.echo(f.id, uint16(seq))); err != nil {
			f.mu.Lock()
			f.sendErr = err
			f.mu.Unlock()
		}
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
	}
}

func (f *Flow) receive() {
	defer close(f.received)
	buf := make([]byte, 1500)
	for {
		n, _, err := f.conn.ReadFrom(buf) // Read would leave the IPv4 header in front
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about one packet, which counts as lost
		}
		if seq, ok := f.icmp.seq(buf[:n], f.id); ok {
			f.mu.Lock()
			if int(seq) < len(f.pings) && f.pings[seq].back.IsZero() {
				f.pings[seq].back = time.Now()
			}
			f.mu.Unlock()
		}
	}
}

// Stop ends the flow, waits up to drainTime for outstanding answers, and counts.
func (f *Flow) Stop() Lost {
	close(f.stop)
	<-f.sent
	Wait(context.Background(), drainTime, func() error { // a ping without an answer by then is lost
		if f.count().Lost > 0 {
			return errors.New("under way")
		}
		return nil
	})
	f.conn.Close()
	<-f.received
	return f.count()
}

// Sent returns the number of packets sent so far.
func (f *Flow) Sent() int { return f.count().Sent }

func (f *Flow) count() Lost {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := Lost{Sent: len(f.pings), Err: f.sendErr}
	var first time.Time // start of the present run
	for _, p := range f.pings {
		if !p.back.IsZero() {
			first = time.Time{}
			continue
		}
		l.Lost++
		if first.IsZero() {
			first = p.at
		}
		l.Longest = max(l.Longest, p.at.Sub(first))
	}
	return l
}

// Ping sends one packet and waits for its answer.
func (m *Machine) Ping(ctx context.Context, to netip.Addr) (rtt time.Duration, err error) {
	f, err := m.StartFlow(to, time.Hour)
	if err != nil {
		return 0, err
	}
	err = Wait(ctx, packetTimeout, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.pings) == 0 || f.pings[0].back.IsZero() {
			return errors.Join(errors.New("no answer"), f.sendErr)
		}
		rtt = f.pings[0].back.Sub(f.pings[0].at)
		return nil
	})
	close(f.stop)
	<-f.sent
	f.conn.Close()
	<-f.received
	if err != nil {
		return 0, fmt.Errorf("%s: ping %s: %w", m.Name, to, err)
	}
	return rtt, nil
}

// Mirror is a TCP server that tells each client the source address of its connection.
type Mirror struct {
	listener net.Listener
	done     chan struct{}
}

// Serve starts a mirror on a free port of all of the machine's addresses.
func (m *Machine) Serve() (*Mirror, error) { return m.ServeAt(0) }

// ServeAt starts a mirror on this port of all of the machine's addresses.
func (m *Machine) ServeAt(port uint16) (*Mirror, error) {
	s := &Mirror{done: make(chan struct{})}
	err := m.Do(func() (err error) {
		s.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: serve: %w", m.Name, err)
	}
	go func() {
		defer close(s.done)
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			saw, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
			conn.SetDeadline(time.Now().Add(packetTimeout))
			fmt.Fprintln(conn, saw.Addr().Unmap().WithZone("")) // a client that hangs up early misses the answer
			conn.Close()
		}
	}()
	return s, nil
}

// Port is the mirror's TCP port.
func (s *Mirror) Port() uint16 { return uint16(s.listener.Addr().(*net.TCPAddr).Port) }

// Close stops the mirror.
func (s *Mirror) Close() {
	s.listener.Close()
	<-s.done
}

// Seen connects from the machine to a mirror and returns the address that the mirror saw. This is the
// machine's own address unless the network translated it.
func (m *Machine) Seen(ctx context.Context, to netip.AddrPort) (saw netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, packetTimeout)
	defer cancel()
	var conn net.Conn
	err = m.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return saw, fmt.Errorf("%s: %w", m.Name, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(packetTimeout))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return saw, fmt.Errorf("%s: %w", m.Name, err)
	}
	return netip.ParseAddr(strings.TrimSpace(line))
}

// AdvertiseRouter sends one router advertisement (RFC 4861, section 4.2) on the link: the machine is a default router,
// and its neighbours make themselves addresses of the prefix, which has 64 bits.
func (m *Machine) AdvertiseRouter(link string, prefix netip.Prefix) error {
	ra := make([]byte, 16, 48)
	ra[0], ra[4] = 134, 64                      // type, hop limit
	binary.BigEndian.PutUint16(ra[6:], 1800)    // lifetime of the router in seconds
	ra = append(ra, 3, 4, byte(prefix.Bits()))  // section 4.6.2: prefix information of 4 x 8 bytes
	ra = append(ra, 0xc0)                       // on the link, and for addresses
	ra = append(ra, 0, 0, 14, 16, 0, 0, 14, 16) // valid and preferred for 3600 s
	ra = append(ra, 0, 0, 0, 0)                 // reserved
	ra = append(ra, prefix.Addr().AsSlice()...)
	return m.Do(func() error {
		conn, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.(*net.IPConn).SyscallConn()
		if err != nil {
			return err
		}
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255) })
		if err = errors.Join(err, cerr); err == nil {
			_, err = conn.WriteTo(ra, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: link})
		}
		return err
	})
}
