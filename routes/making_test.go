package routes

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
)

// newcomers sends UDP packets without end, each to another port and so each the first of its connection. It calls
// saw with the source address of each packet that arrives.
func newcomers(t *testing.T, pod, lan *space, from, to netip.Addr, saw func(netip.Addr)) {
	t.Helper()
	var raw *net.IPConn
	network := "ip4:udp"
	if to.Is6() {
		network = "ip6:udp"
	}
	err := inside(netns.NsHandle(lan.f.Fd()), func() (err error) {
		raw, err = net.ListenIP(network, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out := pod.listen(netip.AddrPortFrom(from, 0))
	var running sync.WaitGroup
	done := make(chan struct{})
	running.Go(func() {
		for port := uint16(1024); ; port++ {
			select {
			case <-done:
				return
			default:
				_, _ = out.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(to, max(port, 1024)))
			}
		}
	})
	running.Go(func() {
		for buf := make([]byte, 64); ; {
			_, src, err := raw.ReadFromIP(buf)
			if err != nil {
				return
			}
			a, _ := netip.AddrFromSlice(src.IP)
			saw(a.Unmap())
		}
	})
	t.Cleanup(func() { close(done); raw.Close(); running.Wait() })
}

// A pod that opened a connection in the moment in which Sync made the table spoke with the address of the tunnel's
// end, and at the end of the tunnel the kernel dropped a packet of the connection.
func TestTableInTheMakingTranslatesNoPod(t *testing.T) {
	host, pod, lan := podOfALAN(t, "10.0.0.1/24", "fd00:10::1/64")
	tunnel := State{Links: []Link{{Name: "edgeway.9", Kind: "veth", Up: true, Peer: &Peer{Name: "tunnel", Netns: lan.f}}}}
	end := State{Links: []Link{{Name: "tunnel", Up: true}}}
	for _, a := range []string{"10.9.0.1/24", "fd00:9::1/64"} {
		tunnel.Addrs = append(tunnel.Addrs, Addr{Link: "edgeway.9", Prefix: pfx(a)})
		end.Addrs = append(end.Addrs, Addr{Link: "tunnel", Prefix: netip.PrefixFrom(pfx(a).Addr().Next(), pfx(a).Bits())})
	}
	host.sync(Scope{}, tunnel)
	lan.sync(Scope{}, end)
	nat := NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64"), Off: true}
	more := nat
	more.Sources = append(more.Sources, prefixes("10.11.0.0/16", "fd00:11::/32")...)
	host.sync(Scope{NAT: true}, State{NAT: &nat}) // makes the setting of connection tracking
	host.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1")
	host.sync(Scope{NAT: true}, State{})
	var mu sync.Mutex
	arrived := map[netip.Addr]int{}
	for _, ends := range [][2]string{{"10.10.1.5", "10.9.0.2"}, {"fd00:10:1::5", "fd00:9::2"}} {
		newcomers(t, pod, lan, addr(ends[0]), addr(ends[1]), func(a netip.Addr) { mu.Lock(); arrived[a]++; mu.Unlock() })
	}
	eventually(t, "packets of both families arrive", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return arrived[addr("10.10.1.5")] > 0 && arrived[addr("fd00:10:1::5")] > 0
	})
	for range 15 {
		for _, want := range []State{{NAT: &nat}, {NAT: &more}, {}} {
			if _, err := host.k.Sync(t.Context(), Scope{NAT: true}, want); err != nil {
				t.Fatal(err)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for a, n := range arrived {
		if a != addr("10.10.1.5") && a != addr("fd00:10:1::5") {
			t.Errorf("%d connections came from %v", n, a)
		}
	}
}
