package paths

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A canary that has ended leaves no socket and no reader, and another canary gets sockets of its own. A canary gave way to a
// pod, and other nodes took the whole node to be away: the node goes on to answer for itself.
func TestSocketsEndWithTheCanary(t *testing.T) {
	canary := &Canary{ID: 1, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}, MTU: 1500, Inside: func(do func() error) error { return do() }}
	self := Node{Name: "node-1", Hosts: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	cluster := &Cluster{Self: self, Nodes: []Node{self}}
	p := New(Options{Every: time.Hour, Cluster: func() *Cluster { return cluster }, Canary: func() (Canary, bool) {
		if canary == nil {
			return Canary{}, false
		}
		return *canary, true
	}})
	t.Cleanup(p.close)
	opened := func(want int) []*net.UDPConn {
		t.Helper()
		if !p.open(t.Context()) || len(p.sockets) != want {
			t.Fatalf("%d sockets, want %d: of the canary, if there is one, and of the node", len(p.sockets), want)
		}
		return p.sockets
	}
	ended := func(conns []*net.UDPConn) {
		t.Helper()
		for _, c := range conns {
			if _, err := c.Write(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("socket %v is open: %v", c.LocalAddr(), err)
			}
		}
	}
	first := opened(2)
	if again := opened(2); &again[0] != &first[0] {
		t.Error("a second round opened other sockets")
	}
	canary.ID = 2
	second := opened(2)
	ended(first)
	canary = nil
	opened(1)
	if own := p.own.Load(); own.answer.HasCanary() || own.canary[ipv4] != nil || own.host[ipv4] == nil {
		t.Errorf("without a canary: %+v", own)
	}
	ended(second) // close waited for the readers
}
