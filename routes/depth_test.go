package routes

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// watched runs Watch in a goroutine. stop ends Watch, and must return soon.
func (s *space) watched(changed func()) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.k.Watch(ctx, Watched{Node: changed}) }()
	return func() {
		s.t.Helper()
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("watch: %v", err)
		}
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// listening waits until the watch reports changes, and empties events.
func (s *space) listening(events chan struct{}) {
	s.t.Helper()
	eventually(s.t, "the watch reports a change", func() bool {
		s.run("ip addr replace 10.0.0.78/32 dev eth0")
		s.run("ip addr del 10.0.0.78/32 dev eth0")
		select {
		case <-events:
			return true
		default:
			return false
		}
	})
	for len(events) > 0 {
		<-events
	}
}

// hears runs a command. The kernel must announce the change by an event of that type that counts for Watch.
func (s *space) hears(command string, want uint16) {
	s.t.Helper()
	events, err := s.k.subscribe(unix.NETLINK_ROUTE, nodeGroups()...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer events.Close()
	devices, err := newView(s.k.c).all()
	if err != nil {
		s.t.Fatal(err)
	}
	w := newWatcher()
	for _, d := range devices {
		w.note(d)
	}
	s.run(command)
	if err := events.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	for buf, heard := make([]byte, 64<<10), false; !heard; {
		n, err := events.Read(buf)
		if err != nil {
			s.t.Fatalf("the watch did not report the change: %s: %v", command, err)
		}
		eachMessage(buf[:n], func(h unix.NlMsghdr, _ []byte) { heard = heard || h.Type == want })
		heard = w.counts(buf[:n]) && heard
	}
}

// TestWatchSurvivesLostEvents floods the socket while the watcher is busy, until the kernel answers ENOBUFS.
// The watcher must call back once and continue.
func TestWatchSurvivesLostEvents(t *testing.T) {
	s := newSpace(t)
	s.wire()
	events, busy := make(chan struct{}, 1), make(chan struct{})
	var once sync.Once
	started := make(chan struct{}, 1)
	stop := s.watched(func() {
		once.Do(func() {
			started <- struct{}{}
			<-busy
		})
		signal(events)
	})
	defer stop()
	s.listening(started)
	var flood State
	for i := range 12000 {
		dst := netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})
		flood.Routes = append(flood.Routes, Route{Dst: netip.PrefixFrom(dst, 32), Link: "eth0", Protocol: ProtoPod})
	}
	for _, want := range []State{flood, {}} {
		if _, err := s.k.Sync(t.Context(), Scope{Protocol: ProtoPod}, want); err != nil {
			t.Fatal(err)
		}
	}
	drops := s.netlinkDrops()
	close(busy)
	if drops == 0 {
		t.Fatal("the kernel lost no event, so the test proves nothing")
	}
	<-events
	s.listening(events)
}

// netlinkDrops sums the drops of the namespace's netlink sockets (/proc/net/netlink).
func (s *space) netlinkDrops() (sum int) {
	s.t.Helper()
	err := inside(netns.NsHandle(s.f.Fd()), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(b)) {
			var drops int
			if f := strings.Fields(line); len(f) == 10 {
				_, _ = fmt.Sscan(f[8], &drops)
			}
			sum += drops
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return sum
}

// TestArpDoesNotWakeTheWatch: an entry that ARP learns on the uplink or on a pod's link does not count as a
// change.
func TestArpDoesNotWakeTheWatch(t *testing.T) {
	s := newSpace(t)
	s.wire()
	w := newWatcher()
	w.links[7] = true
	neigh := func(index int) []byte {
		m := neighMessage(unix.RTM_NEWNEIGH, 0, unix.AF_INET, index, unix.NUD_REACHABLE, 0)
		return (&conn{}).stamp(m)
	}
	for name, kind := range map[string]string{"ew0123456789a": "veth", "eth0": ""} {
		if watched(device{Link: Link{Name: name, Kind: kind}}) {
			t.Errorf("neighbours of %s are watched", name)
		}
	}
	if !watched(device{Link: Link{Name: "edgeway.1", Kind: "vxlan"}}) {
		t.Error("neighbours of edgeway.1 are not watched")
	}
	if w.counts(neigh(3)) {
		t.Error("a neighbour on a link that is not ours counts")
	}
	if !w.counts(neigh(7)) {
		t.Error("a neighbour on our link does not count")
	}
}

// TestPodsDoNotWakeTheWatch: each pod that started or ended made the daemon look at the whole node. The test
// does not count the looks, because the kernel announces changes of the uplink at any time (for example, an
// address has passed duplicate detection). Instead, no event that counts may be about a pod's link.
func TestPodsDoNotWakeTheWatch(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.wire()
	events, err := s.k.subscribe(unix.NETLINK_ROUTE, nodeGroups()...)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	w := newWatcher()
	others := map[int]bool{0: true} // links that are not a pod's; 0: the event names no link
	devices, err := newView(s.k.c).all()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		w.note(d)
		others[d.index] = true
	}
	onHost, inPod := podStates(pod)
	for range 3 {
		s.sync(Scope{}, onHost)
		pod.sync(Scope{}, inPod)
		eventually(t, "the pod answers the ping", func() bool { _, err := s.try("ping -c1 -W1 fd00:10:1::5"); return err == nil })
		s.sync(Scope{Links: []string{podLink}}, State{})
	}
	const last = "10.0.0.79/32"
	s.run("ip addr add " + last + " dev eth0")
	if err := events.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ofPods, buf := 0, make([]byte, 64<<10)
	for done := false; !done; {
		n, err := events.Read(buf)
		if err != nil {
			t.Fatalf("the last event is missing: %v", err)
		}
		index := 0
		eachMessage(buf[:n], func(h unix.NlMsghdr, body []byte) {
			index = linkOfEvent(h, body)
			a, _ := parseAddr(body)
			done = h.Type == unix.RTM_NEWADDR && a.prefix == pfx(last)
		})
		if !others[index] {
			ofPods++
		}
		if w.counts(buf[:n]) && !others[index] {
			t.Errorf("an event of a pod's link counts: % x", buf[:n])
		}
	}
	if ofPods < 3*10 {
		t.Errorf("only %d events of three pods' links, so the test proves nothing", ofPods)
	}
	for index := range w.harmed {
		if !others[index] && index != elsewhere {
			t.Errorf("link %d of a pod that has ended is still reported for repair", index)
		}
	}

	heard := make(chan struct{}, 1)
	stop := s.watched(func() { signal(heard) })
	defer stop()
	s.listening(heard)
	for _, change := range []string{"ip addr add 10.0.0.77/32 dev eth0", "ip route add 10.10.9.0/24 via 10.0.0.1 proto 119", "ip link set eth0 mtu 1400"} {
		for len(heard) > 0 {
			<-heard
		}
		s.run(change)
		select {
		case <-heard:
		case <-time.After(5 * time.Second):
			t.Errorf("the watch did not report the change: %s", change)
		}
	}
}

// TestLossOnAPodsLinkWasNotHeard: a pod whose route was deleted, or whose host link was set down, stayed
// cut off until somebody ran a command.
func TestLossOnAPodsLinkWasNotHeard(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.wire()
	onHost, inPod := podStates(pod)
	s.sync(Scope{}, onHost)
	pod.sync(Scope{}, inPod)
	heard := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.k.Watch(ctx, Watched{Node: func() {}, Pods: func() { signal(heard) }})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the watch reports a loss", func() bool {
		s.run("ip route replace blackhole 10.0.9.9/32 metric 7")
		select {
		case <-heard:
			return true
		case <-time.After(2 * harmSettles):
			return false
		}
	})
	s.run("sysctl -qw net.ipv4.conf." + podLink + ".forwarding=1")
	for _, loss := range []string{
		"ip route del 10.10.1.5 dev POD", "ip -6 route del fd00:10:1::5 dev POD",
		"ip neigh replace 10.10.1.5 lladdr 02:00:00:00:00:01 nud permanent dev POD",
		"sysctl -qw net.ipv4.conf.POD.forwarding=0", "ip addr del 169.254.1.1/32 dev POD", "ip addr del 10.0.0.11/24 dev eth0", "ip link set POD down",
	} {
		s.run(strings.ReplaceAll(loss, "POD", podLink))
		select {
		case <-heard:
		case <-time.After(5 * time.Second):
			t.Errorf("the watch did not report the loss: %s", loss)
		}
	}
}

// linkOfEvent is the index of the link that an rtnetlink message is about; 0 if the message names no link.
func linkOfEvent(h unix.NlMsghdr, body []byte) int {
	switch h.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return int(binary.NativeEndian.Uint32(body[4:]))
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		for typ, v := range attrs(body[4:]) {
			if typ == netconfIfIndex {
				return max(0, int(int32(attrUint32(v))))
			}
		}
	}
	e, _ := parseRoute(body)
	return e.index
}

// TestNextHopChangesWithoutGap sends packets of both families without a pause while the next hop of
// their destination changes, from underlay to underlay, to the overlay and back. Every packet must arrive.
func TestNextHopChangesWithoutGap(t *testing.T) {
	s := newSpace(t)
	lan := s.wire()
	scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
	here := overlayNode{addr("10.0.0.11"), "02:00:00:00:01:0a", prefixes("10.10.1.0/24", "fd00:10:1::/64")}
	there := overlayNode{addr("10.0.0.12"), "02:00:00:00:01:0b", prefixes("10.10.2.0/24", "fd00:10:2::/64")}
	lan.sync(Scope{}, State{Addrs: []Addr{
		{Link: "lan0", Prefix: pfx("10.0.0.12/24")}, {Link: "lan0", Prefix: pfx("fd00:10::12/64")},
		{Link: "lan0", Prefix: pfx("10.0.0.13/24")}, {Link: "lan0", Prefix: pfx("fd00:10::13/64")},
	}})
	lan.sync(scope, there.state(here))
	via := func(n int) State {
		return State{Routes: []Route{
			{Dst: there.cidrs[0], Via: addr(fmt.Sprintf("10.0.0.%d", 12+n%2)), Link: "eth0", Protocol: ProtoNode},
			{Dst: there.cidrs[1], Via: addr(fmt.Sprintf("fd00:10::%d", 12+n%2)), Link: "eth0", Protocol: ProtoNode},
		}}
	}
	type flow struct {
		from, at *net.UDPConn
		to       netip.AddrPort
	}
	var flows []flow
	for i, from := range []netip.Addr{addr("10.0.0.11"), addr("fd00:10::11")} {
		to := there.cidrs[i].Addr()
		for n := range 2 { // the neighbours answer
			s.sync(scope, via(n))
			seenFrom(t, s, lan, from, to)
		}
		at := lan.listen(netip.AddrPortFrom(to, 0))
		flows = append(flows, flow{s.listen(netip.AddrPortFrom(from, 0)), at, at.LocalAddr().(*net.UDPAddr).AddrPort()})
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	send := func() error {
		buf := make([]byte, 8)
		for ; ctx.Err() == nil; sent++ {
			f := flows[sent%len(flows)]
			if _, err := f.from.WriteToUDPAddrPort([]byte("hello"), f.to); err != nil {
				return err
			}
			if err := f.at.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			if _, err := f.at.Read(buf); err != nil {
				return fmt.Errorf("packet to %v: %w", f.to, err)
			}
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- send() }()
	for n := range 100 {
		want := via(n)
		if n%10 == 9 {
			want = here.state(there)
		}
		if _, err := s.k.Sync(t.Context(), scope, want); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("after %d packets: %v", sent, err)
	}
	t.Logf("all of %d packets arrived during 100 changes", sent)
}

// TestManyAtOnce: one Kernel serves many attachments at the same time.
func TestManyAtOnce(t *testing.T) {
	host := newSpace(t)
	const pods = 8
	var wg sync.WaitGroup
	errs := make([]error, pods)
	for i := range pods {
		pod := newSpace(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			name := fmt.Sprintf("ew%011x", i)
			want := State{
				Links:  []Link{{Name: name, Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: pod.f}}},
				Routes: []Route{{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, 1, byte(i)}), 32), Link: name, Protocol: ProtoPod}},
				Masq:   []Masq{{Addr: netip.AddrFrom4([4]byte{10, 10, 1, byte(i)})}},
			}
			if _, err := host.k.Sync(t.Context(), Scope{}, want); err != nil {
				errs[i] = err
				return
			}
			if again, err := host.k.Sync(t.Context(), Scope{}, want); err != nil || len(again) != 0 {
				errs[i] = fmt.Errorf("second sync: %v, %w", again, err)
			}
		}()
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
		host.contains("nft list set inet edgeway pods4", fmt.Sprintf("10.10.1.%d", i))
	}
	links, err := host.k.Links(t.Context(), "ew")
	if err != nil || len(links) != pods {
		t.Errorf("%d links, %v", len(links), err)
	}
}

// TestNothingIsLeftOpen: a closed Kernel leaves no open descriptor and no goroutine.
func TestNothingIsLeftOpen(t *testing.T) {
	s := newSpace(t)
	s.wire()
	use := func() {
		k, err := OpenNetns(s.f)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Watch(ctx, Watched{Node: func() {}}) }()
		want := nodeRoutes()
		want.NAT = &NAT{Sources: prefixes("10.10.0.0/16")}
		want.Sysctls = []Sysctl{{"net/ipv4/ip_forward", "1"}}
		if _, err := k.Sync(ctx, Scope{Protocol: ProtoNode, NAT: true}, want); err != nil {
			t.Error(err)
		}
		if _, err := k.Host(ctx); err != nil {
			t.Error(err)
		}
		if err := k.FlushConntrack(ctx, addr("10.10.2.1")); err != nil {
			t.Error(err)
		}
		if _, err := k.Sync(ctx, Scope{}, State{Masq: []Masq{{Addr: addr("10.10.2.1")}}}); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	use() // the runtime opens its poller once
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		use()
	}
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if now := openFiles(t); now > files {
		t.Errorf("%d descriptors open, %d before", now, files)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestForwardingKeepsAdvertisedDefaultRoute: a host that got its IPv6 default route from the
// router on the LAN keeps the route when the host begins to forward.
func TestForwardingKeepsAdvertisedDefaultRoute(t *testing.T) {
	forward := Sysctl{"net/ipv6/conf/all/forwarding", "1"}
	for _, c := range []struct {
		name string
		set  func(s *space) error
		kept bool
	}{
		{"by Sync", func(s *space) error {
			_, err := s.k.Sync(t.Context(), Scope{}, State{Sysctls: []Sysctl{forward}})
			return err
		}, true},
		{"by hand, which loses the route", func(s *space) error {
			_, err := s.try("sysctl -w net.ipv6.conf.all.forwarding=1")
			return err
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSpace(t)
			lan := s.wire()
			lan.run("ip addr add fe80::99/64 dev lan0 nodad")
			has := func() bool { return strings.Contains(s.run("ip -6 route show default"), "via fe80::99") }
			eventually(t, "the host learns the default route", func() bool {
				lan.advertise("lan0")
				return has()
			})
			if err := c.set(s); err != nil {
				t.Fatal(err)
			}
			if has() != c.kept {
				t.Errorf("default route exists: %v, want %v\n%s", has(), c.kept, s.run("ip -6 route"))
			}
		})
	}
}

// advertise sends one router advertisement (RFC 4861 section 4.2) with a lifetime of 30 minutes.
func (s *space) advertise(link string) {
	s.t.Helper()
	err := inside(netns.NsHandle(s.f.Fd()), func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		index := s.index(link)
		for _, o := range [][2]int{{unix.IPV6_MULTICAST_HOPS, 255}, {unix.IPV6_MULTICAST_IF, index}} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o[0], o[1]); err != nil {
				return err
			}
		}
		src := unix.SockaddrInet6{ZoneId: uint32(index), Addr: addr("fe80::99").As16()}
		if err := unix.Bind(fd, &src); err != nil {
			return err
		}
		ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
		return unix.Sendto(fd, ra, 0, &unix.SockaddrInet6{Addr: addr("ff02::1").As16(), ZoneId: uint32(index)})
	})
	if err != nil {
		s.t.Fatalf("router advertisement: %v", err)
	}
}

func (s *space) index(link string) int {
	index, err := newView(s.k.c).index(link)
	if err != nil {
		s.t.Fatal(err)
	}
	return index
}

// TestRoutesInOtherShapes makes routes on the link itself, with source, MTU, metric, another table, an IPv6
// next hop for IPv4, and types without a next hop. It also changes one shape into the other.
func TestRoutesInOtherShapes(t *testing.T) {
	s := newSpace(t)
	s.wire()
	node := func(r Route) Route { r.Protocol = ProtoNode; return r }
	shapes := []Route{
		node(Route{Dst: pfx("10.20.0.0/24"), Link: "eth0"}),
		node(Route{Dst: pfx("10.20.0.0/24"), Link: "eth0", Via: addr("10.0.0.12"), Src: addr("10.0.0.11"), MTU: 1400, AdvMSS: 1360}),
		node(Route{Dst: pfx("10.20.0.0/24"), Link: "eth0", Via: addr("fd00:10::12")}),
		node(Route{Dst: pfx("10.20.0.0/24"), Type: "blackhole"}),
		node(Route{Dst: pfx("10.20.0.0/24"), Type: "unreachable"}),
		node(Route{Dst: pfx("10.20.0.0/24"), Link: "eth0", Via: addr("10.0.0.13"), Metric: 50}),
		node(Route{Dst: pfx("fd00:20::/64"), Link: "eth0"}),
		node(Route{Dst: pfx("fd00:20::/64"), Link: "eth0", Via: addr("fd00:10::12"), Src: addr("fd00:10::11"), MTU: 1400}),
		node(Route{Dst: pfx("fd00:20::/64"), Link: "eth0"}),
		node(Route{Dst: pfx("fd00:20::/64"), Type: "unreachable"}),
		node(Route{Dst: pfx("fd00:20::/64"), Link: "eth0", Via: addr("fd00:10::12"), Metric: 50}),
		node(Route{Dst: pfx("::/0"), Link: "eth0", Via: addr("fd00:10::1")}),
		node(Route{Dst: pfx("0.0.0.0/0"), Link: "eth0", Via: addr("10.0.0.1")}),
	}
	for _, r := range shapes {
		s.sync(nodeScope, State{Routes: []Route{r}})
		all := s.run("ip route show proto 119") + s.run("ip -6 route show proto 119")
		if n := strings.Count(all, "\n"); n != 1 {
			t.Fatalf("%v: %d routes\n%s", r, n, all)
		}
	}
	// No scope covers a table other than main: Sync makes such a route, but never deletes it.
	other := node(Route{Dst: pfx("10.30.0.0/24"), Link: "eth0", Via: addr("10.0.0.12"), Table: 1000})
	s.sync(nodeScope, State{Routes: []Route{other}})
	s.contains("ip route show table 1000", "10.30.0.0/24 via 10.0.0.12 dev eth0 proto 119")
}
