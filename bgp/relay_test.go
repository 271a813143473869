package bgp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// connected is a TCP connection of this process with itself.
func connected(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	if there, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// relayed returns a running relay, GoBGP's end of it and the switch's end.
func relayed(t *testing.T, quiet bool) (r *relay, gobgp, sw *net.TCPConn) {
	t.Helper()
	outer, sw := connected(t)
	inner, gobgp := connected(t)
	j := newJournal(goodPeer().normal(), time.Now(), func() {})
	j.begun()
	r = newRelay(j, outer, inner, quiet)
	go r.run()
	return r, gobgp, sw
}

// kindsOf reads messages until the end and returns their kinds.
func kindsOf(t *testing.T, c *net.TCPConn) (kinds []uint8) {
	t.Helper()
	for {
		m, err := readMessage(c)
		var bad refusal
		if errors.As(err, &bad) {
			t.Fatalf("after %d messages: %v", len(kinds), err)
		}
		if err != nil {
			return kinds
		}
		kinds = append(kinds, m.kind())
	}
}

// The switch's OPEN with another AS number is refused even if GoBGP does not say so. Once, a session with a
// wrong AS number stayed in OpenSent without any reason, because GoBGP lost its own NOTIFICATION.
func TestSessionWithWrongASNumberStaysInOpenSent(t *testing.T) {
	for _, quiet := range []bool{true, false} {
		r, _, sw := relayed(t, quiet)
		b, err := openOf(Peer{ASN: 64999}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.Write(b); err != nil {
			t.Fatal(err)
		}
		m, err := readMessage(sw)
		if quiet && err != io.EOF || !quiet && (err != nil || !notificationOf(m).is(2, 2)) {
			t.Errorf("quiet %v: got %v, %v", quiet, m, err)
		}
		sw.Close()
		<-r.done
		if st, _ := r.journal.status(); st.State != stateIdle || st.Reason != reasonASNMismatch || !strings.Contains(st.Detail, "AS number 64999, not 65002") {
			t.Errorf("quiet %v: %+v", quiet, st)
		}
	}
}

// A Cease of ours comes after all that GoBGP has sent, and is the last message.
func TestCeaseIsTheLastMessage(t *testing.T) {
	r, gobgp, sw := relayed(t, false)
	if _, err := gobgp.Write(framed(bgp.BGP_MSG_KEEPALIVE)); err != nil {
		t.Fatal(err)
	}
	if m, err := readMessage(sw); err != nil || m.kind() != bgp.BGP_MSG_KEEPALIVE {
		t.Fatal(m, err)
	}
	go r.leave(farewell("moving", false))
	if m, err := readMessage(sw); err != nil || notificationOf(m).text() != "moving" {
		t.Fatal(m, err)
	}
	_, _ = gobgp.Write(framed(bgp.BGP_MSG_KEEPALIVE))
	// Not even a FIN: FRR handles the end of a connection before the messages that it has not handled yet.
	_ = sw.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := sw.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d octets after the last message, %v", n, err)
	}
	sw.Close()
	<-r.done
}

// A switch that sends our own Cease back is not quoted with our words.
func TestEchoOfOurCease(t *testing.T) {
	r, _, sw := relayed(t, false)
	go r.leave(farewell("moving", false))
	m, err := readMessage(sw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sw.Write(m); err != nil {
		t.Fatal(err)
	}
	sw.Close()
	<-r.done
	if st, _ := r.journal.status(); st.Reason != reasonEnded || strings.Contains(st.Detail, "moving") {
		t.Errorf("%s: %s", st.Reason, st.Detail)
	}
}

// A switch that does not read holds nobody up, and gets no Cease in the middle of another message.
func TestCeaseToSwitchThatDoesNotRead(t *testing.T) {
	r, gobgp, sw := relayed(t, false)
	update := framed(bgp.BGP_MSG_UPDATE, make([]byte, 4000)...)
	for n := 1; n > 0; { // until not an octet more fits into any buffer
		if err := gobgp.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, _ = gobgp.Write(update)
		if n < len(update) {
			break
		}
	}
	begun := time.Now()
	r.leave(farewell("moving", false))
	if took := time.Since(begun); took > 3*farewellTimeout {
		t.Errorf("left after %v", took)
	}
	r.outer.Close()
	for i, kind := range kindsOf(t, sw) {
		if kind != bgp.BGP_MSG_UPDATE {
			t.Errorf("message %d has type %d", i, kind)
		}
	}
}

func TestOpenWithoutCapability(t *testing.T) {
	var full, want message
	for i, caps := range [][]bgp.ParameterCapabilityInterface{
		{bgp.NewCapRouteRefresh(), bgp.NewCapExtendedNexthop([]*bgp.CapExtendedNexthopTuple{bgp.NewCapExtendedNexthopTuple(bgp.RF_IPv4_UC, bgp.AFI_IP6)}), bgp.NewCapFourOctetASNumber(65010)},
		{bgp.NewCapRouteRefresh(), bgp.NewCapFourOctetASNumber(65010)},
	} {
		m, err := bgp.NewBGPOpenMessage(65010, 90, "192.0.2.1", []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		*[]*message{&full, &want}[i] = m
	}
	if got := full.without(bgp.BGP_CAP_EXTENDED_NEXTHOP); !bytes.Equal(got, want) {
		t.Errorf("got %x\nwant %x", got, want)
	}
}

// The loopback port is for this process only.
func TestOthersCannotAttach(t *testing.T) {
	begun := make(chan uint16, 1)
	done := make(chan error, 1)
	go func() {
		_, err := attach(func(port uint16) error { begun <- port; return nil })
		done <- err
	}()
	port := int(<-begun)
	// The other process is nc(1)'s job: here a connection that this process does not know any more.
	c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: loopback.AsSlice(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ours, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: loopback.AsSlice(), Port: port})
	if err == nil {
		defer ours.Close()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestEndOfRIB(t *testing.T) {
	for _, tt := range []struct {
		name     string
		m        message
		ip4, ip6 bool
	}{
		{"IPv4", framed(2, 0, 0, 0, 0), true, false},
		{"IPv6", framed(2, 0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1), false, true},
		{"IPv6, extended length", framed(2, 0, 0, 0, 7, 0x90, 15, 0, 3, 0, 2, 1), false, true},
		{"withdrawal", framed(2, 0, 0, 0, 10, 0x90, 15, 0, 6, 0, 2, 1, 16, 0xfd, 0x99), false, false},
		{"withdrawal of a last octet like it", framed(2, 0, 0, 0, 9, 0x80, 15, 6, 0, 2, 1, 16, 2, 1), false, false},
		{"path", framed(2, 0, 0, 0, 4, 0x40, 1, 1, 0, 24, 10, 1, 2), false, false},
		{"short", framed(2, 0), false, false},
	} {
		if ip4, ip6 := tt.m.endOfRIB(); ip4 != tt.ip4 || ip6 != tt.ip6 {
			t.Errorf("%s: %v, %v", tt.name, ip4, ip6)
		}
	}
}

// A daemon that was killed within a second after its session was up lost the paths that it had not sent yet: they were stale,
// and a switch deletes what is stale at the next loss (RFC 4724, section 4.2). GoBGP waits for no End-of-RIB of the
// switch any more, and the KEEPALIVE that brings the session up comes with all paths.
func TestKilledAsSoonAsTheSessionIsUp(t *testing.T) {
	r, gobgp, sw := relayed(t, false)
	r.journal.mu.Lock()
	r.journal.peer.RestartTime = time.Minute
	r.journal.mu.Unlock()
	open := openOf(goodPeer())
	caps := open.Body.(*bgp.BGPOpen).OptParams[0].(*bgp.OptionParameterCapability)
	caps.Capability = append(caps.Capability, bgp.NewCapMultiProtocol(bgp.RF_IPv6_UC), bgp.NewCapGracefulRestart(false, true, 120, nil))
	text, err := open.Serialize()
	if err != nil {
		t.Fatal(err)
	}
	write := func(c net.Conn, m ...[]byte) {
		t.Helper()
		if _, err := c.Write(bytes.Join(m, nil)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(c net.Conn, want []byte) {
		t.Helper()
		if m, err := readMessage(c); err != nil || !bytes.Equal(m, want) {
			t.Fatalf("got %x, %v; want %x", m, err, want)
		}
	}
	keepalive, update := framed(bgp.BGP_MSG_KEEPALIVE), framed(bgp.BGP_MSG_UPDATE, make([]byte, 4000)...)
	eor4, eor6 := framed(bgp.BGP_MSG_UPDATE, 0, 0, 0, 0), framed(bgp.BGP_MSG_UPDATE, 0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1)
	write(sw, text, keepalive)
	read(gobgp, text)
	read(gobgp, keepalive)
	read(gobgp, eor4)
	read(gobgp, eor6)
	write(gobgp, keepalive)
	write(gobgp, update, eor4)
	write(gobgp, update, eor6)
	want := bytes.Join([][]byte{keepalive, update, eor4, update, eor6}, nil)
	got := make([]byte, len(want)+1)
	n, err := sw.Read(got)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("the first of the switch's reads has %d octets, %v; want %d: all paths", n, err, len(want))
	}
	write(gobgp, keepalive)
	read(sw, keepalive)
}

// A session whose paths do not come is up all the same.
func TestSessionIsUpWithoutPaths(t *testing.T) {
	r, gobgp, sw := relayed(t, false)
	r.sending.Lock()
	r.awaited, r.greeted = [2]bool{true, true}, true
	r.sending.Unlock()
	if _, err := gobgp.Write(framed(bgp.BGP_MSG_KEEPALIVE)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // the relay has read it
		r.sending.Lock()
		defer r.sending.Unlock()
		if len(r.held) == 0 {
			return errors.New("nothing is held")
		}
		return nil
	})
	r.release()
	if m, err := readMessage(sw); err != nil || m.kind() != bgp.BGP_MSG_KEEPALIVE {
		t.Error(m, err)
	}
}
