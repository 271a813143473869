package routes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// listen opens a UDP socket in the namespace.
func (s *space) listen(at netip.AddrPort) *net.UDPConn {
	s.t.Helper()
	var c *net.UDPConn
	err := inside(netns.NsHandle(s.f.Fd()), func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// seenFrom sends a packet from the pod's address to the LAN's address. It returns the source address that the
// LAN saw.
func seenFrom(t *testing.T, pod, lan *space, from, to netip.Addr) netip.Addr {
	t.Helper()
	at := lan.listen(netip.AddrPortFrom(to, 0))
	out := pod.listen(netip.AddrPortFrom(from, 0))
	target := netip.AddrPortFrom(to, uint16(at.LocalAddr().(*net.UDPAddr).Port))
	buf := make([]byte, 16)
	var seen netip.Addr
	eventually(t, fmt.Sprintf("a packet from %v reaches %v", from, to), func() bool {
		if _, err := out.WriteToUDPAddrPort([]byte("hello"), target); err != nil {
			return false
		}
		if err := at.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, src, err := at.ReadFromUDPAddrPort(buf)
		seen = src.Addr().Unmap()
		return err == nil
	})
	at.Close()
	out.Close()
	return seen
}

// podOfALAN wires a pod to its host, and the host to a machine of the LAN with these addresses and with routes to
// the host's pods.
func podOfALAN(t *testing.T, addrs ...string) (host, pod, lan *space) {
	t.Helper()
	host, pod = newSpace(t), newSpace(t)
	lan = host.wire()
	onHost, inPod := podStates(pod)
	onHost.Sysctls = []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}}
	host.sync(Scope{}, onHost)
	pod.sync(Scope{}, inPod)
	onLAN := State{Routes: []Route{
		{Dst: pfx("10.10.1.0/24"), Via: addr("10.0.0.11"), Link: "lan0", Protocol: ProtoNode},
		{Dst: pfx("fd00:10:1::/64"), Via: addr("fd00:10::11"), Link: "lan0", Protocol: ProtoNode},
	}}
	for _, a := range addrs {
		onLAN.Addrs = append(onLAN.Addrs, Addr{Link: "lan0", Prefix: pfx(a)})
	}
	lan.sync(Scope{}, onLAN)
	return host, pod, lan
}

// TestPacketsOfPods sends real packets from a pod through the host to the LAN: with the pod's own
// address, with the node's where the NAT says so, and without ARP or neighbour discovery between
// pod and host.
func TestPacketsOfPods(t *testing.T) {
	host, pod, lan := podOfALAN(t, "10.0.0.1/24", "10.99.0.1/32", "fd00:10::1/64", "fd00:99::1/128")
	host.sync(Scope{}, State{Routes: []Route{
		{Dst: pfx("10.99.0.0/24"), Via: addr("10.0.0.1"), Link: "eth0", Protocol: 4},
		{Dst: pfx("fd00:99::/64"), Via: addr("fd00:10::1"), Link: "eth0", Protocol: 4},
	}})
	pod4, pod6 := addr("10.10.1.5"), addr("fd00:10:1::5")
	node4, node6 := addr("10.0.0.11"), addr("fd00:10::11")
	check := func(what string, to string, want netip.Addr) {
		t.Helper()
		from := pod4
		if want.Is6() {
			from = pod6
		}
		if got := seenFrom(t, pod, lan, from, addr(to)); got != want {
			t.Errorf("%s: %s saw %v, want %v", what, to, got, want)
		}
	}
	check("no NAT", "10.0.0.1", pod4)
	check("no NAT", "fd00:10::1", pod6)

	nat := State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "fd00:10:1::/64"), Exclude: prefixes("10.99.0.0/24", "fd00:99::/64")}}
	host.sync(Scope{NAT: true}, nat)
	check("NAT", "10.0.0.1", node4)
	check("NAT", "fd00:10::1", node6)
	host.contains("nft list chain inet edgeway postrouting", "ip saddr @sources4 masquerade fully-random")
	host.contains("nft list chain inet edgeway postrouting", "ip6 saddr @sources6 masquerade fully-random")
	check("excluded", "10.99.0.1", pod4)
	check("excluded", "fd00:99::1", pod6)

	host.sync(Scope{NAT: true}, State{})
	check("NAT gone", "10.0.0.1", pod4)
	ctx := context.Background()
	host.sync(Scope{}, State{Masq: []Masq{{Addr: pod4}, {Addr: pod6}}})
	check("one pod's NAT", "10.0.0.1", node4)
	check("one pod's NAT", "fd00:10::1", node6)
	host.contains("conntrack -L", "src=10.10.1.5")
	if err := host.k.FlushConntrack(ctx, pod4); err != nil {
		t.Fatal(err)
	}
	host.lacks("conntrack -L", "src=10.10.1.5")
	host.sync(masqOf(pod4), State{})
	check("one pod's NAT gone", "10.0.0.1", pod4)
	networks := prefixes("10.0.0.0/24", "10.10.0.0/16", "fd00:10::/64")
	host.sync(Scope{}, State{Masq: []Masq{{pod4, networks}, {pod6, networks}}})
	check("inside its network", "10.0.0.1", pod4)
	check("inside its network", "fd00:10::1", pod6)
	check("outside its network", "10.99.0.1", node4)
	check("outside its network", "fd00:99::1", node6)
	host.quiet(Scope{NAT: true}, State{})
	host.sync(masqOf(pod4, pod6), State{})
	host.lacks("nft list set inet edgeway kept4", "10.10.1.5")
	host.lacks("nft list set inet edgeway kept6", "fd00:10:1::5")
	host.sync(Scope{NAT: true, Masq: Everywhere()}, State{})
	host.lacks("nft list ruleset", "edgeway")

	// The pod and the host never sent an ARP request or a neighbour solicitation to each other.
	pod.lacks("ip neigh show nud reachable nud stale nud delay nud probe", "169.254.1.1")
	pod.lacks("ip neigh show nud reachable nud stale nud delay nud probe", "fe80::1")
}

// TestManyLinksGoTogether: a node that starts after a crash deletes the links of all dead pods at once.
func TestManyLinksGoTogether(t *testing.T) {
	host, pod := newSpace(t), newSpace(t)
	var want State
	var scope Scope
	for i := range 40 {
		name := fmt.Sprintf("ew%011x", i)
		scope.Links = append(scope.Links, name)
		want.Links = append(want.Links, Link{Name: name, Kind: "veth", Peer: &Peer{Name: fmt.Sprintf("eth%d", i), Netns: pod.f}})
	}
	host.sync(scope, want)
	before := host.k.c.writes.Load()
	changes := host.sync(scope, State{Links: want.Links[:1]})
	if len(changes) != 39 {
		t.Errorf("%d changes, want 39", len(changes))
	}
	if n := host.k.c.writes.Load() - before; n != 40 {
		t.Errorf("%d writes, want 39 group changes and one deletion", n)
	}
	links, err := host.k.Links(t.Context(), "ew")
	if err != nil || len(links) != 1 || links[0].Name != "ew00000000000" {
		t.Errorf("links %v, %v", links, err)
	}
	t.Logf("39 links in %v", changes[0].Took)
}

// TestImpossibleObjectsAreRefused: a zero field must never mean something else to the kernel.
func TestImpossibleObjectsAreRefused(t *testing.T) {
	s := newSpace(t)
	s.wire()
	all := func() string { // a link-local address becomes usable by itself
		return s.run("ip route") + s.run("ip -6 route") + s.run("ip -o addr show scope global") + s.run("ip neigh show nud permanent")
	}
	eventually(t, "the route of link-local addresses", func() bool { return strings.Contains(s.run("ip -6 route"), "fe80::/64 dev eth0") })
	before := all()
	writes := s.k.c.writes.Load()
	changes, err := s.k.Sync(t.Context(), Scope{}, State{
		Links: []Link{{Name: "a-name-of-more-than-15-bytes", Kind: "bridge", Up: true}, {Name: "br0", Kind: "bridge", MAC: "nonsense"}},
		Addrs: []Addr{{Link: "eth0"}},
		Neighs: []Neigh{
			{Link: "eth0", MAC: "02:00:00:00:00:01"},
			{Link: "eth0", IP: addr("10.0.0.9"), MAC: ""},
		},
		FDB: []FDB{{Link: "eth0", MAC: "02:00:00:00:00:01"}},
		Routes: []Route{
			{Link: "eth0", Protocol: ProtoNode},
			{Dst: pfx("fd00:1::/64"), Via: addr("10.0.0.1"), Link: "eth0", Protocol: ProtoNode},
			{Dst: pfx("10.1.0.0/16"), Type: "nonsense", Protocol: ProtoNode},
		},
		Sysctls: []Sysctl{{"../etc/passwd", "1"}},
	})
	for _, c := range changes {
		if c.Err == nil {
			t.Errorf("%v was made", c)
		}
	}
	if len(changes) == 0 || err == nil {
		t.Error("Sync returned no error for impossible objects")
	}
	if n := s.k.c.writes.Load() - writes; n != 0 {
		t.Errorf("%d writes, want none", n)
	}
	if after := all(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// TestFlushConntrack deletes the flows of one address and no other flows.
func TestFlushConntrack(t *testing.T) {
	s := newSpace(t)
	for _, flow := range []string{
		"-s 10.10.1.5 -d 10.0.0.1", "-s 10.0.0.1 -d 10.10.1.5", // to and from
		"-s 10.10.1.5 -d 10.0.0.2 --src-nat 10.0.0.11",        // masqueraded
		"-s 10.0.0.3 -d 10.0.0.11 --dst-nat 10.10.1.5",        // a host port
		"-s 10.10.1.6 -d 10.0.0.1", "-s 10.0.0.1 -d 10.0.0.2", // others
		"-s fd00::5 -d fd00::1", "-s fd00::1 -d fd00::6",
	} {
		s.run("conntrack -I -p udp --sport 1000 --dport 2000 --timeout 600 -u ASSURED,SEEN_REPLY " + flow)
	}
	count := func() int {
		return strings.Count(s.run("conntrack -L"), "udp ")
	}
	if n := count(); n != 8 {
		t.Fatalf("%d flows, want 8", n)
	}
	c, err := dial(s.k.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	listed, err := dump(c, flowsOf(addr("10.10.1.5"), ctaTupleOrig, 0), 0, func([]byte) (bool, bool) { return true, true })
	if err != nil || len(listed) != 2 {
		t.Errorf("the kernel listed %d flows from 10.10.1.5, %v; want 2, because the kernel filters", len(listed), err)
	}
	for _, step := range []struct {
		a    string
		left int
	}{{"10.10.1.7", 8}, {"10.10.1.5", 4}, {"10.10.1.5", 4}, {"fd00::5", 3}, {"fd00::6", 2}} {
		if err := s.k.FlushConntrack(t.Context(), addr(step.a)); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != step.left {
			t.Fatalf("%d flows left after %s, want %d\n%s", n, step.a, step.left, s.run("conntrack -L"))
		}
	}
}

// TestOneAttachmentAmongMany: Sync looks up the routes of one pod, and does not list the routes of all pods.
// It still finds what is wrong with the pod's routes.
func TestOneAttachmentAmongMany(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("ip route add default via 10.0.0.1")
	s.run("ip -6 route add default via fd00:10::1")
	want := State{Routes: []Route{
		{Dst: pfx("10.10.1.5/32"), Link: "eth0", Protocol: ProtoPod},
		{Dst: pfx("fd00:10:1::5/128"), Link: "eth0", Protocol: ProtoPod},
	}}
	v := newView(s.k.c)
	if _, ok := v.observeHosts(Scope{}, map[routeKey]int{keyOfRoute(want.Routes[0]): 0}, want.Routes); !ok {
		t.Error("a missing host route was not found by a lookup")
	}
	s.sync(Scope{}, want)
	for _, spoil := range []string{
		"ip route replace 10.10.1.5 dev eth0 proto 101 mtu 1300",
		"ip route del 10.10.1.5",
		"ip -6 route del fd00:10:1::5",
		"ip -6 route replace fd00:10:1::5 via fd00:10::12 dev eth0 proto 101",
	} {
		s.run(spoil)
		if changes := s.sync(Scope{}, want); len(changes) != 1 {
			t.Errorf("%s: changes %v", spoil, texts(changes))
		}
	}
	for _, hide := range []string{
		"ip rule add pref 10 lookup 50", "ip route add default via 10.0.0.9 table 50", // another table comes first
		"ip -6 rule add pref 10 lookup 50", "ip -6 route add default via fd00:10::9 table 50",
		"ip route add 10.10.1.5 dev eth0 metric 5 proto static",
		"ip rule add pref 5 prohibit",
	} {
		s.run(hide)
		s.quiet(Scope{}, want)
	}
	s.run("ip rule del pref 5")
	s.run("ip route del 10.10.1.5 proto 101")
	s.run("ip route replace 10.10.1.5 dev eth0 proto static")
	if _, err := s.k.Sync(t.Context(), Scope{}, want); !errors.Is(err, ErrForeign) {
		t.Errorf("host route of another owner: %v, want ErrForeign", err)
	}
	// A route that another process of ours made between the look and the write is right.
	a := applier{k: s.k, v: newView(s.k.c), ctx: t.Context()}
	late := []Change{{Op: Add, Object: want.Routes[1]}}
	if a.apply(late); late[0].Err != nil {
		t.Errorf("route that was made meanwhile: %v", late[0].Err)
	}
}
