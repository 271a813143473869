package bgp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// imposter is a switch on the loopback network that sends whatever a test wants.
type imposter struct {
	port  uint16
	calls atomic.Int64 // connections taken
}

// newImposter calls talk for each connection. talk may read and write as long as it wants.
func newImposter(t *testing.T, talk func(net.Conn)) *imposter {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	i := &imposter{port: uint16(ln.Addr().(*net.TCPAddr).Port)}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			i.calls.Add(1)
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				talk(conn)
			}()
		}
	}()
	return i
}

// peer is the session with the imposter.
func (i *imposter) peer() Peer {
	p := goodPeer()
	p.Address, p.LocalAddress, p.Port, p.RestartTime = addr("127.0.0.2"), addr("127.0.0.1"), i.port, time.Minute
	return p
}

// openOf is the OPEN of a decent switch for the session p.
func openOf(p Peer) *bgp.BGPMessage {
	return bgp.NewBGPOpenMessage(uint16(p.ASN), 90, "192.0.2.1", []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(
		[]bgp.ParameterCapabilityInterface{bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapFourOctetASNumber(p.ASN)})})
}

// greet sends the messages that bring a session up.
func greet(c net.Conn, p Peer) {
	for _, m := range []*bgp.BGPMessage{openOf(p), bgp.NewBGPKeepAliveMessage()} {
		b, err := m.Serialize()
		if err != nil {
			panic(err) // a bug of this test
		}
		_, _ = c.Write(b)
	}
}

// framed puts a header before a message's body (RFC 4271, section 4.1).
func framed(kind byte, body ...byte) []byte {
	n := 19 + len(body)
	return append(append(bytes.Repeat([]byte{0xff}, 16), byte(n>>8), byte(n), kind), body...)
}

// A hostile message costs at most its own session. That session says why, and the switch is not dialled
// without a pause.
func TestHostileSwitch(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pauses between dials")
	}
	attrs := func(a ...byte) []byte { return append([]byte{0, 0, byte(len(a) >> 8), byte(len(a))}, a...) }
	origin, asPath, hop := []byte{0x40, 1, 1, 0}, []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea}, []byte{0x40, 3, 4, 192, 0, 2, 1}
	path := append(append(append([]byte(nil), origin...), asPath...), hop...)
	flood := func(c net.Conn, m []byte) {
		for range 20000 {
			if _, err := c.Write(m); err != nil {
				return
			}
		}
	}
	for _, tt := range []struct {
		name   string
		open   []byte // instead of a greeting
		then   []byte // in the session, again and again
		reason string // "" stays up: RFC 7606
	}{
		{name: "all zero", open: make([]byte, 4096), reason: reasonMalformed},
		{name: "length of a header too small", open: append(bytes.Repeat([]byte{0xff}, 16), 0, 3, 1), reason: reasonMalformed},
		{name: "OPEN cut short", open: framed(1, 4, 0xfd), reason: reasonMalformed},
		{name: "OPEN of version 3", open: framed(1, 3, 0xfd, 0xea, 0, 90, 192, 0, 2, 1, 0), reason: reasonOpenRefused},
		{name: "OPEN with hold time 1", open: framed(1, 4, 0xfd, 0xea, 0, 1, 192, 0, 2, 1, 0), reason: reasonHoldTime},
		{name: "message of an unknown type", then: framed(77, 1, 2, 3), reason: reasonMalformed},
		{name: "OPEN with parameters that are not there", open: framed(1, 4, 0xfd, 0xea, 0, 90, 192, 0, 2, 1, 255, 2, 200), reason: reasonMalformed},
		{name: "KEEPALIVE first", open: framed(4), reason: reasonMalformed},
		{name: "UPDATE first", open: framed(2, 0, 0, 0, 0), reason: reasonMalformed},
		{name: "OPEN with hold time 0", open: framed(1, 4, 0xfd, 0xea, 0, 0, 192, 0, 2, 1, 0), reason: reasonHoldTime},
		{name: "UPDATE cut short", then: framed(2, 0), reason: reasonMalformed},
		{name: "withdrawn routes beyond the end", then: framed(2, 255, 255, 0, 0), reason: reasonMalformed},
		{name: "attributes beyond the end", then: framed(2, 0, 0, 255, 255), reason: reasonMalformed},
		{name: "prefix of 200 bits", then: framed(2, append(attrs(path...), 200, 10, 1, 2, 3)...), reason: reasonMalformed},
		{name: "no next hop", then: framed(2, append(attrs(append(append([]byte(nil), origin...), asPath...)...), 24, 10, 1, 2)...)},
		{name: "unknown well-known attribute", then: framed(2, append(attrs(append(append([]byte(nil), path...), 0x40, 99, 1, 1)...), 24, 10, 1, 2)...), reason: reasonMalformed},
		{name: "origin 7", then: framed(2, append(attrs(append([]byte{0x40, 1, 1, 7}, path[4:]...)...), 24, 10, 1, 2)...)},
		{name: "route refresh of nothing", then: framed(5, 0, 0, 0, 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var p Peer
			ready := make(chan struct{})
			i := newImposter(t, func(c net.Conn) {
				<-ready
				if tt.open != nil {
					_, _ = c.Write(tt.open)
				} else {
					greet(c, p)
					flood(c, tt.then)
				}
				_, _ = io.Copy(io.Discard, c)
			})
			p = i.peer()
			close(ready)
			s := newTestSpeaker(t)
			mustSync(t, s, Session{Peer: p, Paths: pods(2), Learn: learnList})
			if tt.reason == "" {
				if st := becomes(t, s, "Established", ""); st.Flaps != 0 {
					t.Errorf("%+v", st)
				}
				return
			}
			eventually(t, func() error {
				st := s.Status(t.Context())[0]
				if why := st.Reason; why != tt.reason && st.LastReset.Reason != tt.reason {
					return fmt.Errorf("%s: %q, last reset %+v", st.Reason, st.Detail, st.LastReset)
				}
				if strings.TrimSpace(st.Detail) == "" && st.Reason != "" {
					t.Error("no word about it")
				}
				return nil
			})
			begun, before := time.Now(), i.calls.Load()
			eventually(t, func() error {
				if time.Since(begun) < 6*time.Second {
					return fmt.Errorf("counting")
				}
				return nil
			})
			if n := i.calls.Load() - before; n > 6 {
				t.Errorf("%d connections in 6 s", n)
			}
		})
	}
}

// decent is a switch that keeps its session up.
func decent(t *testing.T) Peer {
	var p Peer
	ready := make(chan struct{})
	i := newImposter(t, func(c net.Conn) {
		<-ready
		greet(c, p)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		alive, err := bgp.NewBGPKeepAliveMessage().Serialize()
		if err != nil {
			panic(err) // a bug of this test
		}
		for range 50 {
			time.Sleep(time.Second)
			if _, err := c.Write(alive); err != nil {
				return
			}
		}
	})
	p = i.peer()
	close(ready)
	return p
}

// Once, a message of an unknown type ended the daemon, and with it all sessions.
func TestMessageOfUnknownTypeCostsOneSession(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pauses between dials")
	}
	var bad Peer
	ready := make(chan struct{})
	i := newImposter(t, func(c net.Conn) {
		<-ready
		greet(c, bad)
		_, _ = c.Write(framed(77, 1, 2, 3))
		_, _ = io.Copy(io.Discard, c)
	})
	bad = i.peer()
	close(ready)
	good := decent(t)
	good.LocalASN++ // its own session
	s := newTestSpeaker(t)
	mustSync(t, s, Session{Peer: good, Paths: []Path{{Prefix: pfx("10.10.1.0/24"), NextHop: addr("192.0.2.9")}}}, Session{Peer: bad})
	eventually(t, func() error {
		for _, st := range s.Status(t.Context()) {
			if st.Peer.Port == bad.Port {
				if i.calls.Load() < 4 || st.Reason != reasonMalformed || !strings.Contains(st.Detail, "bad message type (1/3)") {
					return fmt.Errorf("%d connections; %+v", i.calls.Load(), st)
				}
			} else if st.State != "Established" || st.Flaps != 0 || len(st.Advertised) != 1 {
				return fmt.Errorf("the other session: %+v", st)
			}
		}
		return nil
	})
}

// Each NOTIFICATION has its own reason, before the session is Established and after it.
func TestNotifications(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for connections")
	}
	for _, tt := range []struct {
		code, subcode  byte
		data           string
		reason, detail string
	}{
		{1, 2, "", reasonNotification, "message header error, bad message length (1/2)"},
		{2, 1, "", reasonOpenRefused, "OPEN message error, unsupported version number (2/1)"},
		{2, 2, "", reasonASNMismatch, "it expects another AS number than 65010 from 127.0.0.1"},
		{2, 3, "", reasonRouterID, "refuses our router ID 10.0.10.11"},
		{2, 6, "", reasonHoldTime, "does not accept our hold time of 1m30s"},
		{2, 7, "\x05\x06\x00\x01\x00\x01\x00\x02", reasonCapability, "(5): remove that requirement"},
		{2, 7, "", reasonCapability, "does not offer: remove"},
		{2, 11, "", reasonRole, "BGP role"},
		{2, 99, "", reasonOpenRefused, "OPEN message error (2/99)"},
		{3, 11, "", reasonUpdateRefused, "UPDATE message error, malformed AS_PATH (3/11)"},
		{4, 0, "", reasonHoldTimer, "heard nothing from 127.0.0.1"},
		{5, 2, "", reasonNotification, "finite state machine error, unexpected message in OpenConfirm (5/2)"},
		{6, 1, "", reasonPrefixLimit, "raise the switch's prefix limit"},
		{6, 2, "\x04move", reasonCeased, `administrative shutdown, saying "move": enable`},
		{6, 5, "", reasonCeased, "connection rejected: configure this node"},
		{6, 7, "", reasonCollision, "another BGP daemon on this node"},
		{6, 99, "", reasonCeased, "Cease, subcode 99: check the switch's log"},
		{7, 1, "", reasonNotification, "ROUTE-REFRESH message error, invalid message length (7/1)"},
		{8, 0, "", reasonHoldTimer, "send hold time"},
		{99, 7, "", reasonNotification, "NOTIFICATION error 99/7"},
	} {
		for _, early := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d/%d early %v", tt.code, tt.subcode, early), func(t *testing.T) {
				t.Parallel()
				var p Peer
				ready := make(chan struct{})
				i := newImposter(t, func(c net.Conn) {
					<-ready
					if early {
						b, err := openOf(p).Serialize()
						if err != nil {
							panic(err) // a bug of this test
						}
						_, _ = c.Write(b)
					} else {
						greet(c, p)
						for { // until our KEEPALIVE
							m, err := readMessage(c)
							if err != nil {
								return
							}
							if m.kind() == bgp.BGP_MSG_KEEPALIVE {
								break
							}
						}
					}
					_, _ = c.Write(framed(bgp.BGP_MSG_NOTIFICATION, append([]byte{tt.code, tt.subcode}, tt.data...)...))
				})
				p = i.peer()
				close(ready)
				s := newTestSpeaker(t)
				mustSync(t, s, Session{Peer: p, Paths: pods(2)})
				st := becomes(t, s, "", tt.reason)
				if !strings.Contains(st.Detail, tt.detail) || !strings.Contains(st.Detail, ":") {
					t.Errorf("got %q, want %q and a next step", st.Detail, tt.detail)
				}
				if !early && (st.Flaps == 0 || st.LastReset.Reason != tt.reason) {
					t.Errorf("%d flaps, last reset %+v", st.Flaps, st.LastReset)
				}
			})
		}
	}
}
