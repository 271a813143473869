package paths

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A canary that has ended leaves no socket and no reader, and another canary gets sockets of its own.
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
	opened := func() []*net.UDPConn {
		t.Helper()
		if !p.open(t.Context()) || len(p.sockets) != 2 {
			t.Fatalf("%d sockets, want one of the canary and one of the node", len(p.sockets))
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
	first := opened()
	if again := opened(); &again[0] != &first[0] {
		t.Error("a second round opened other sockets")
	}
	canary.ID = 2
	second := opened()
	ended(first)
	canary = nil
	if p.open(t.Context()) || len(p.sockets) > 0 || p.own.Load() != nil {
		t.Errorf("without a canary: %d sockets", len(p.sockets))
	}
	ended(second) // close waited for the readers
}
