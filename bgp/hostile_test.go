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

// imposter is a switch that says what it likes, on the loopback network.
type imposter struct {
	port  uint16
	calls atomic.Int64 // connections taken
}

// newImposter answers each connection by talk, which may read and write as long as it wants.
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

// peer is the session with it.
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

// greet brings a session up, or as far as that goes.
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

// What a switch sends costs its own session at most, that one says why, and is not dialled without
// pause.
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
		{name: "OPEN with hold time 1", open: framed(1, 4, 0xfd, 0xea, 0, 1, 192, 0, 2, 1, 0), reason: reasonOpenRefused},
		{name: "OPEN with parameters that are not there", open: framed(1, 4, 0xfd, 0xea, 0, 90, 192, 0, 2, 1, 255, 2, 200), reason: reasonMalformed},
		{name: "KEEPALIVE first", open: framed(4), reason: reasonUnknownToSwitch},
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
			mustSync(t, s, Session{Peer: p, Paths: pods(2)})
			if tt.reason == "" {
				if st := becomes(t, s, 15*time.Second, "Established", ""); st.Flaps != 0 {
					t.Errorf("%+v", st)
				}
				return
			}
			eventually(t, 15*time.Second, func() error {
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
			eventually(t, 20*time.Second, func() error {
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

// A switch that sends a message of an unknown type ended the daemon, and with it all sessions.
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
	again := make(chan struct{}, 1)
	a := NewSpeaker(Options{Command: sessionCommand, Changed: func() {
		select {
		case again <- struct{}{}:
		default:
		}
	}})
	t.Cleanup(a.Stop)
	good.LocalASN++ // its own session
	want := State{Sessions: []Session{{Peer: good, Paths: []Path{{Prefix: pfx("10.10.1.0/24"), NextHop: addr("192.0.2.9")}}}, {Peer: bad}}}
	look := func() (crashed, up Status) {
		if _, err := a.Sync(t.Context(), want); err != nil && !strings.Contains(err.Error(), "ended") {
			t.Fatal(err)
		}
		for _, s := range a.Status(t.Context()) {
			if s.Peer.Port == bad.Port {
				crashed = s
			} else {
				up = s
			}
		}
		return crashed, up
	}
	deadline := time.After(50 * time.Second)
	crashed, up := look()
	for i.calls.Load() < 4 || crashed.Reason != reasonCrashed {
		select {
		case <-again:
		case <-deadline:
			t.Fatalf("%d connections; %+v", i.calls.Load(), crashed)
		}
		crashed, up = look()
	}
	if up.State != "Established" || up.Flaps != 0 || len(up.Advertised) != 1 {
		t.Errorf("the other session: %+v", up)
	}
	if !strings.Contains(crashed.Detail, "panic: ") {
		t.Errorf("does not say why: %q", crashed.Detail)
	}
}
