package routes

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// talk is a TCP connection from a pod to an echo on the LAN, which tells the address that it saw.
type talk struct {
	net.Conn
	saw netip.Addr
}

// connect connects from the pod to the port of the LAN's address.
func connect(t *testing.T, pod, lan *space, to netip.Addr) talk {
	t.Helper()
	var l net.Listener
	var conn net.Conn
	err := inside(netns.NsHandle(lan.f.Fd()), func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String())
		return err
	})
	if err == nil {
		err = inside(netns.NsHandle(pod.f.Fd()), func() (err error) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(far, far); far.Close() }()
	t.Cleanup(func() { conn.Close() })
	return talk{conn, netip.MustParseAddrPort(far.RemoteAddr().String()).Addr()}
}

// lives checks that an echo comes back.
func (c talk) lives(t *testing.T, when string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := fmt.Fprint(c, "hello")
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 5))
	}
	if err != nil {
		t.Errorf("%s: the connection to %v broke: %v", when, c.RemoteAddr(), err)
	}
}

// Source NAT that was switched on reset all connections of the node's pods where nothing else used conntrack:
// their next packets were translated, and the other side did not know them.
func TestLivingConnectionsOutliveSourceNAT(t *testing.T) {
	host, pod, lan := podOfALAN(t, "10.0.0.1/24", "10.0.0.2/24", "fd00:10::1/64")
	for _, family := range []struct{ to, pod, node netip.Addr }{
		{addr("10.0.0.1"), addr("10.10.1.5"), addr("10.0.0.11")}, {addr("fd00:10::1"), addr("fd00:10:1::5"), addr("fd00:10::11")},
	} {
		eventually(t, "a packet reaches the LAN", func() bool { return seenFrom(t, pod, lan, family.pod, family.to).IsValid() })
		before := connect(t, pod, lan, family.to)
		before.lives(t, "without NAT")
		host.sync(Scope{NAT: true}, State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64")}})
		before.lives(t, "NAT on")
		during := connect(t, pod, lan, family.to)
		off := State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64"), Off: true}}
		host.sync(Scope{NAT: true}, off)
		host.quiet(Scope{NAT: true}, off)
		before.lives(t, "NAT off")
		during.lives(t, "NAT off")
		after := connect(t, pod, lan, family.to)
		if before.saw != family.pod || during.saw != family.node || after.saw != family.pod {
			t.Errorf("%v saw %v, then with NAT %v, then %v", family.to, before.saw, during.saw, after.saw)
		}
		host.sync(Scope{NAT: true}, State{})
	}
	// Nodes beside a tunnel are an exception, and so is a pod that its network masquerades.
	host.sync(Scope{NAT: true}, State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64"), Off: true, Nodes: prefixes("10.0.0.1/32", "fd00:10::1/128")}})
	for to, want := range map[string]string{"10.0.0.1": "10.0.0.11", "fd00:10::1": "fd00:10::11", "10.0.0.2": "10.10.1.5"} {
		if got := connect(t, pod, lan, addr(to)).saw; got != addr(want) {
			t.Errorf("%s saw %v, want %s", to, got, want)
		}
	}
	host.sync(Scope{}, State{Masq: []Masq{{Addr: addr("10.10.1.5")}, {Addr: addr("fd00:10:1::5")}}})
	for to, want := range map[string]string{"10.0.0.2": "10.0.0.11", "fd00:10::1": "fd00:10::11"} {
		if got := connect(t, pod, lan, addr(to)).saw; got != addr(want) {
			t.Errorf("%s saw %v of a masqueraded pod, want %s", to, got, want)
		}
	}
}

// Another program flushed all tables of nftables. Connections that were translated before must live, and new ones
// must be translated, as soon as the watch has led to the next Sync.
func TestTranslatedConnectionsOutliveFlushedRuleset(t *testing.T) {
	host, pod, lan := podOfALAN(t, "10.0.0.1/24", "fd00:10::1/64")
	scope, want := Scope{NAT: true}, State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64")}}
	host.sync(scope, want)
	looks := make(chan struct{}, 1)
	stop := host.watched(func() { signal(looks) })
	defer stop()
	host.listening(looks)
	ends := []struct{ to, pod, node netip.Addr }{
		{addr("10.0.0.1"), addr("10.10.1.5"), addr("10.0.0.11")}, {addr("fd00:10::1"), addr("fd00:10:1::5"), addr("fd00:10::11")},
	}
	var before []talk
	for _, e := range ends {
		eventually(t, "a packet reaches the LAN", func() bool { return seenFrom(t, pod, lan, e.pod, e.to).IsValid() })
		c := connect(t, pod, lan, e.to)
		c.lives(t, "before the flush")
		before = append(before, c)
	}
	host.run("nft flush ruleset")
	for there := false; !there; there = strings.Contains(host.run("nft list ruleset"), "masquerade") {
		select {
		case <-looks:
		case <-time.After(30 * time.Second):
			t.Fatal("the watch did not report the flush")
		}
		if _, err := host.k.Sync(t.Context(), scope, want); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range ends {
		before[i].lives(t, "after the flush")
		if after := connect(t, pod, lan, e.to); before[i].saw != e.node || after.saw != e.node {
			t.Errorf("%v saw %v before the flush and %v after it, want %v", e.to, before[i].saw, after.saw, e.node)
		}
	}
}
