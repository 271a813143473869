package routes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func nodeRoutes() State {
	return State{Routes: []Route{
		{Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: ProtoNode},
		{Dst: pfx("10.10.3.0/24"), Via: addr("10.0.0.13"), Link: "eth0", Protocol: ProtoNode},
		{Dst: pfx("fd00:10:2::/64"), Via: addr("fd00:10::12"), Link: "eth0", Protocol: ProtoNode},
	}}
}

var nodeScope = Scope{Protocol: ProtoNode}

func TestHostGatewayRoutes(t *testing.T) {
	s := newSpace(t)
	s.wire()
	want := nodeRoutes()
	wantTexts(t, s.sync(nodeScope, want),
		"add route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119",
		"add route 10.10.3.0/24 via 10.0.0.13 dev eth0 proto 119",
		"add route fd00:10:2::/64 via fd00:10::12 dev eth0 proto 119")
	s.contains("ip route show proto 119", "10.10.2.0/24 via 10.0.0.12 dev eth0")
	s.contains("ip -6 route show proto 119", "fd00:10:2::/64 via fd00:10::12 dev eth0 metric 1024")

	t.Run("deleted by hand", func(t *testing.T) {
		s.run("ip route del 10.10.2.0/24")
		s.run("ip -6 route del fd00:10:2::/64")
		wantTexts(t, s.sync(nodeScope, want),
			"add route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119",
			"add route fd00:10:2::/64 via fd00:10::12 dev eth0 proto 119")
	})
	t.Run("changed by hand", func(t *testing.T) {
		s.run("ip route replace 10.10.2.0/24 via 10.0.0.99 proto 119")
		s.run("ip -6 route replace fd00:10:2::/64 via fd00:10::99 proto 119")
		wantTexts(t, s.sync(nodeScope, want),
			"replace route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119 (was 10.10.2.0/24 via 10.0.0.99 dev eth0 proto 119)",
			"replace route fd00:10:2::/64 via fd00:10::12 dev eth0 proto 119 (was fd00:10:2::/64 via fd00:10::99 dev eth0 proto 119 metric 1024)")
		s.lacks("ip route", "10.0.0.99")
		s.lacks("ip -6 route", "fd00:10::99")
	})
	t.Run("made multipath by hand", func(t *testing.T) {
		s.run("ip route replace 10.10.2.0/24 proto 119 nexthop via 10.0.0.12 nexthop via 10.0.0.98")
		s.run("ip -6 route append fd00:10:2::/64 via fd00:10::98 proto 119")
		s.sync(nodeScope, want)
		s.lacks("ip route", "10.0.0.98")
		s.lacks("ip -6 route", "fd00:10::98")
		s.contains("ip -6 route", "fd00:10:2::/64 via fd00:10::12 dev eth0")
	})
	t.Run("appended by hand", func(t *testing.T) {
		s.run("ip route append 10.10.2.0/24 via 10.0.0.97 proto 119")
		s.run("ip route prepend 10.10.3.0/24 via 10.0.0.97 proto 119")
		s.sync(nodeScope, want)
		s.lacks("ip route", "10.0.0.97")
	})
	t.Run("another's route stands behind ours", func(t *testing.T) {
		s.run("ip route replace 10.10.2.0/24 via 10.0.0.99 proto 119")
		s.run("ip route append 10.10.2.0/24 via 10.0.0.98 proto static")
		s.sync(nodeScope, want)
		s.contains("ip route get 10.10.2.1", "via 10.0.0.12")
		s.contains("ip route", "10.10.2.0/24 via 10.0.0.98 dev eth0 proto static")
		s.run("ip route del 10.10.2.0/24 via 10.0.0.98 proto static")
	})
	t.Run("link down and up", func(t *testing.T) {
		s.run("ip link set eth0 down")
		s.lacks("ip route", "10.10.2.0/24")
		s.run("ip link set eth0 up")
		s.run("ip addr replace fd00:10::11/64 dev eth0 nodad") // the kernel drops IPv6 addresses with the link
		s.carrier("eth0")
		if n := len(s.sync(nodeScope, want)); n != 3 {
			t.Fatalf("%d changes, want 3", n)
		}
	})
	t.Run("stale routes of an earlier run", func(t *testing.T) {
		s.run("ip route add 10.10.9.0/24 via 10.0.0.19 proto 119")
		s.run("ip route add blackhole 10.10.8.0/24 proto 119")
		s.run("ip -6 route add blackhole fd00:10:8::/64 proto 119")
		s.run("ip route add 10.10.7.0/24 via 10.0.0.17 proto static")
		wantTexts(t, s.sync(nodeScope, want),
			"delete route blackhole 10.10.8.0/24 proto 119",
			"delete route 10.10.9.0/24 via 10.0.0.19 dev eth0 proto 119",
			"delete route blackhole fd00:10:8::/64 proto 119 metric 1024")
		s.contains("ip route", "10.10.7.0/24 via 10.0.0.17 dev eth0 proto static")
	})
	t.Run("nothing desired", func(t *testing.T) {
		s.sync(nodeScope, State{})
		s.lacks("ip route", "proto 119")
		s.lacks("ip -6 route", "proto 119")
		s.contains("ip route", "10.10.7.0/24 via 10.0.0.17")
	})
}

func TestForeignRouteIsLeftAndReported(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("ip route add 10.10.2.0/24 via 10.0.0.1 proto bird")
	s.run("ip -6 route add fd00:10:2::/64 via fd00:10::1 proto static")
	changes, err := s.k.Sync(t.Context(), nodeScope, nodeRoutes())
	if !errors.Is(err, ErrForeign) {
		t.Fatalf("err %v, want ErrForeign", err)
	}
	for _, want := range []string{
		"route 10.10.2.0/24 via 10.0.0.12: held by proto bird via 10.0.0.1; stop the other agent or change the CIDR",
		"route fd00:10:2::/64 via fd00:10::12: held by proto static via fd00:10::1; stop the other agent or change the CIDR",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error:\n%v\nwant %s", err, want)
		}
	}
	if len(changes) != 3 || changes[1].Err != nil {
		t.Errorf("changes %v: the route beside the foreign route was not made", texts(changes))
	}
	s.contains("ip route", "10.10.2.0/24 via 10.0.0.1 dev eth0 proto bird")
	s.contains("ip -6 route", "fd00:10:2::/64 via fd00:10::1 dev eth0 proto static")
	s.contains("ip route", "10.10.3.0/24 via 10.0.0.13 dev eth0 proto 119")
	observed, err := s.k.Observe(t.Context(), nodeScope, nodeRoutes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := Diff(observed, nodeRoutes()); len(diff) != 2 || !errors.Is(diff[0].Err, ErrForeign) || !errors.Is(diff[1].Err, ErrForeign) {
		t.Errorf("diff of the observed state: %v, want two changes with ErrForeign", texts(diff))
	}
	// A wrong route of ours shares the place of a foreign route. A replace would hit the foreign route, because
	// the kernel replaces the first route.
	s.run("ip route append 10.10.2.0/24 via 10.0.0.96 proto 119")
	_, err = s.k.Sync(t.Context(), nodeScope, nodeRoutes())
	if !errors.Is(err, ErrForeign) {
		t.Fatalf("err %v, want ErrForeign", err)
	}
	s.contains("ip route", "10.10.2.0/24 via 10.0.0.1 dev eth0 proto bird")
	s.lacks("ip route", "10.0.0.96")
}

func TestMissingLinkDoesNotStopTheOthers(t *testing.T) {
	s := newSpace(t)
	s.wire()
	want := nodeRoutes()
	want.Routes[0].Link = "eth9"
	want.Neighs = []Neigh{{Link: "eth9", IP: addr("10.0.0.12"), MAC: "02:00:00:00:00:01"}}
	want.Addrs = []Addr{{Link: "eth9", Prefix: pfx("10.9.9.9/32")}}
	want.Links = []Link{{Name: "eth9", Up: true}}
	changes, err := s.k.Sync(t.Context(), nodeScope, want)
	if err == nil || !strings.Contains(err.Error(), "add route 10.10.2.0/24 via 10.0.0.12 dev eth9 proto 119: link does not exist: eth9") {
		t.Errorf("err %v", err)
	}
	failed := 0
	for _, c := range changes {
		if c.Err != nil {
			failed++
		}
	}
	if failed != 4 || len(changes) != 6 {
		t.Errorf("%d of %d changes failed, want 4 of 6", failed, len(changes))
	}
	s.contains("ip route", "10.10.3.0/24 via 10.0.0.13")
}

// podStates are the host's and the pod's side of one attachment.
func podStates(pod *space) (host, inPod State) {
	podPrefix4, podPrefix6 := pfx("10.10.1.5/32"), pfx("fd00:10:1::5/128")
	host = State{
		Links: []Link{{Name: "ew0123456789a", Kind: "veth", MAC: "02:00:00:00:00:aa", MTU: 1400, Up: true, Alias: "pod default/p1",
			Peer: &Peer{Name: "eth0", MAC: "02:00:00:00:00:bb", MTU: 1400, Netns: pod.f}}},
		Neighs: []Neigh{
			{Link: "ew0123456789a", IP: addr("10.10.1.5"), MAC: "02:00:00:00:00:bb", Learns: true},
			{Link: "ew0123456789a", IP: addr("fd00:10:1::5"), MAC: "02:00:00:00:00:bb", Learns: true},
		},
		Addrs: []Addr{
			{Link: "ew0123456789a", Prefix: pfx("169.254.1.1/32"), HostScope: true},
			{Link: "ew0123456789a", Prefix: pfx("fe80::1/128")},
		},
		Routes: []Route{
			{Dst: podPrefix4, Link: "ew0123456789a", Protocol: ProtoPod},
			{Dst: podPrefix6, Link: "ew0123456789a", Protocol: ProtoPod},
		},
	}
	inPod = State{
		Links:  []Link{{Name: "eth0", MAC: "02:00:00:00:00:bb", MTU: 1400, Up: true}},
		Addrs:  []Addr{{Link: "eth0", Prefix: podPrefix4}, {Link: "eth0", Prefix: podPrefix6}},
		Neighs: []Neigh{{Link: "eth0", IP: addr("169.254.1.1"), MAC: "02:00:00:00:00:aa"}, {Link: "eth0", IP: addr("fe80::1"), MAC: "02:00:00:00:00:aa"}},
		Routes: []Route{
			{Dst: pfx("169.254.1.1/32"), Link: "eth0", Protocol: ProtoPod},
			{Dst: pfx("0.0.0.0/0"), Via: addr("169.254.1.1"), Link: "eth0", Protocol: ProtoPod},
			{Dst: pfx("::/0"), Via: addr("fe80::1"), Link: "eth0", Protocol: ProtoPod},
		},
	}
	return host, inPod
}

func TestPodWiring(t *testing.T) {
	host, pod := newSpace(t), newSpace(t)
	want, inPod := podStates(pod)
	host.sync(Scope{}, want)
	pod.sync(Scope{}, inPod)
	host.quiet(Scope{}, want)
	pod.contains("ip -d link show eth0", "numtxqueues 1 ")
	host.contains("ip -d link show ew0123456789a", "numrxqueues 1 ")
	pod.lacks("ip -6 addr", "tentative dadfailed")
	pod.contains("ip route get 8.8.8.8", "8.8.8.8 via 169.254.1.1 dev eth0 src 10.10.1.5")
	pod.contains("ip -6 addr show dev eth0", "inet6 fd00:10:1::5/128 scope global")

	t.Run("check names the differences", func(t *testing.T) {
		host.contains("ip link show ew0123456789a", "alias pod default/p1")
		host.run("ip link set ew0123456789a mtu 1300 alias else down")
		host.run("ip link set ew0123456789a address 02:00:00:00:00:cc up")
		pod.run("ip neigh del 169.254.1.1 dev eth0")
		pod.run("ip route replace default via 169.254.1.1 dev eth0 proto 101 mtu 1000")
		observed, err := host.k.Observe(t.Context(), Scope{}, want)
		if err != nil {
			t.Fatal(err)
		}
		wantTexts(t, Diff(observed, want),
			"replace link ew0123456789a address 02:00:00:00:00:aa mtu 1400 up alias \"pod default/p1\" type veth peer eth0 address 02:00:00:00:00:bb (was ew0123456789a address 02:00:00:00:00:cc mtu 1300 up alias \"else\" type veth)",
			"add address fe80::1/128 dev ew0123456789a",
			"add neighbour 10.10.1.5 lladdr 02:00:00:00:00:bb dev ew0123456789a extern_learn",
			"add neighbour fd00:10:1::5 lladdr 02:00:00:00:00:bb dev ew0123456789a extern_learn",
			"add route 10.10.1.5 dev ew0123456789a proto 101",
			"add route fd00:10:1::5 dev ew0123456789a proto 101")
		observed, err = pod.k.Observe(t.Context(), Scope{}, inPod)
		if err != nil {
			t.Fatal(err)
		}
		wantTexts(t, Diff(observed, inPod),
			"add neighbour 169.254.1.1 lladdr 02:00:00:00:00:aa dev eth0 nud permanent",
			"replace route default via 169.254.1.1 dev eth0 proto 101 (was default via 169.254.1.1 dev eth0 proto 101 mtu 1000)")
		host.sync(Scope{}, want)
		pod.sync(Scope{}, inPod)
	})
	t.Run("the name is taken in the pod", func(t *testing.T) {
		twin := State{Links: []Link{{Name: "ewtwin", Kind: "veth", Peer: &Peer{Name: "eth0", Netns: pod.f}}}}
		_, err := host.k.Sync(t.Context(), Scope{}, twin)
		if err == nil || !strings.Contains(err.Error(), "the peer's network namespace already has a link eth0") {
			t.Fatalf("err %v", err)
		}
	})
	t.Run("delete", func(t *testing.T) {
		scope := Scope{Links: []string{"ew0123456789a"}}
		wantTexts(t, host.sync(scope, State{}),
			"delete neighbour 10.10.1.5 lladdr 02:00:00:00:00:bb dev ew0123456789a extern_learn",
			"delete neighbour fd00:10:1::5 lladdr 02:00:00:00:00:bb dev ew0123456789a extern_learn",
			"delete link ew0123456789a address 02:00:00:00:00:aa mtu 1400 up alias \"pod default/p1\" type veth")

		host.sync(scope, State{})
		if links, err := host.k.Links(t.Context(), "ew"); err != nil || len(links) != 0 {
			t.Fatalf("links %v, err %v", links, err)
		}
		pod.lacks("ip link", "eth0")
	})
}

func TestOverlay(t *testing.T) {
	s := newSpace(t)
	s.wire()
	scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
	want := State{
		Links: []Link{{Name: "edgeway.1", Kind: "vxlan", MAC: "02:00:00:00:01:01", MTU: 1450, Up: true,
			VXLAN: &VXLAN{VNI: 1, Port: 8472, Local: addr("10.0.0.11")}}},
		Addrs:  []Addr{{Link: "edgeway.1", Prefix: pfx("10.10.1.0/32")}, {Link: "edgeway.1", Prefix: pfx("fd00:10:1::/128")}},
		Neighs: []Neigh{{Link: "edgeway.1", IP: addr("10.10.2.0"), MAC: "02:00:00:00:01:02"}, {Link: "edgeway.1", IP: addr("fd00:10:2::"), MAC: "02:00:00:00:01:02"}},
		FDB:    []FDB{{Link: "edgeway.1", MAC: "02:00:00:00:01:02", Dst: addr("10.0.0.12")}},
		Routes: []Route{
			{Dst: pfx("10.10.2.0/24"), Via: addr("10.10.2.0"), Link: "edgeway.1", Protocol: ProtoNode, Onlink: true},
			{Dst: pfx("fd00:10:2::/64"), Via: addr("fd00:10:2::"), Link: "edgeway.1", Protocol: ProtoNode, Onlink: true},
		},
		Sysctls: []Sysctl{{"net/ipv4/conf/edgeway.1/rp_filter", "2"}},
	}
	s.sync(scope, want)
	s.contains("ip -d link show edgeway.1", "vxlan id 1 local 10.0.0.11 srcport 0 0 dstport 8472 nolearning")
	s.contains("bridge fdb show dev edgeway.1", "02:00:00:00:01:02 dst 10.0.0.12 self permanent")
	s.contains("ip route", "10.10.2.0/24 via 10.10.2.0 dev edgeway.1 proto 119 onlink")

	t.Run("another VTEP", func(t *testing.T) {
		want.FDB[0].Dst = addr("10.0.0.22")
		wantTexts(t, s.sync(scope, want),
			"replace fdb 02:00:00:00:01:02 dev edgeway.1 dst 10.0.0.22 (was 02:00:00:00:01:02 dev edgeway.1 dst 10.0.0.12)")
		s.lacks("bridge fdb show dev edgeway.1", "10.0.0.12")
	})
	t.Run("a node went away", func(t *testing.T) {
		less := want
		less.FDB, less.Neighs = nil, want.Neighs[1:]
		s.sync(scope, less)
		s.lacks("bridge fdb show dev edgeway.1", "02:00:00:00:01:02")
		s.lacks("ip neigh", "10.10.2.0 ")
		s.sync(scope, want)
	})
	t.Run("another VNI", func(t *testing.T) {
		want.Links[0].VXLAN = &VXLAN{VNI: 2, Port: 8472, Local: addr("10.0.0.11")}
		changes := s.sync(scope, want)
		if len(changes) != 10 {
			t.Errorf("%d changes:\n%s", len(changes), strings.Join(texts(changes), "\n"))
		}
		s.contains("ip -d link show edgeway.1", "vxlan id 2 ")
		s.contains("ip route", "10.10.2.0/24 via 10.10.2.0 dev edgeway.1 proto 119 onlink")
	})
	t.Run("to the underlay without a gap", func(t *testing.T) {
		changes := s.sync(scope, nodeRoutes())
		if c := changes[0]; c.Op != Replace || changes[len(changes)-1].Op != Delete {
			t.Errorf("the link is deleted before its routes have moved to another link:\n%s", strings.Join(texts(changes), "\n"))
		}
		s.lacks("ip link", "edgeway.1")
		s.contains("ip route", "10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119")
	})
}

func TestSysctl(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("sysctl -w net.ipv6.conf.eth0.accept_ra=1")
	want := State{Sysctls: []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}}}
	s.sync(Scope{}, want)
	s.contains("sysctl net.ipv6.conf.eth0.accept_ra", "= 2")
	s.contains("sysctl net.ipv6.conf.eth0.forwarding", "= 1")
	_, err := s.k.Sync(t.Context(), Scope{}, State{Sysctls: []Sysctl{{"net/ipv4/no_such_thing", "1"}}})
	if err == nil {
		t.Fatal("writing a key that does not exist succeeded")
	}
}

// Each change is announced by an event that counts. Without the events of settings, policy rules and next hop objects,
// the daemon saw those changes after 30 s only.
func TestWatch(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	for _, tt := range []struct {
		command string
		event   uint16
	}{
		{"ip route add 10.10.2.0/24 via 10.0.0.12", unix.RTM_NEWROUTE},
		{"ip route del 10.10.2.0/24", unix.RTM_DELROUTE},
		{"ip -6 route add fd00:1::/64 via fd00:10::12", unix.RTM_NEWROUTE},
		{"ip addr add 10.0.0.77/32 dev eth0", unix.RTM_NEWADDR},
		{"ip link set eth0 mtu 1400", unix.RTM_NEWLINK},
		{"sysctl -qw net.ipv4.ip_forward=1", unix.RTM_NEWNETCONF},
		{"sysctl -qw net.ipv4.ip_forward=0", unix.RTM_NEWNETCONF},
		{"sysctl -qw net.ipv6.conf.all.forwarding=1", unix.RTM_NEWNETCONF},
		{"sysctl -qw net.ipv4.conf.eth0.forwarding=1", unix.RTM_NEWNETCONF},
		{"sysctl -qw net.ipv6.conf.eth0.forwarding=0", unix.RTM_NEWNETCONF},
		{"ip rule add pref 90 to 10.10.1.0/24 prohibit", unix.RTM_NEWRULE},
		{"ip -6 rule add pref 90 to fd00:1::/64 prohibit", unix.RTM_NEWRULE},
		{"ip rule del pref 90", unix.RTM_DELRULE},
		{"ip link set eth0 down", unix.RTM_NEWLINK},
	} {
		s.hears(tt.command, tt.event)
	}
	s.run("ip link set eth0 up")
	events := make(chan struct{}, 1)
	stop := s.watched(func() { signal(events) })
	defer stop()
	s.listening(events)
	for _, command := range []string{"nft add table inet edgeway", "nft flush ruleset"} {
		s.run(command)
		select {
		case <-events:
		case <-time.After(10 * time.Second):
			t.Fatalf("the watch did not report the change: %s", command)
		}
	}
}

// Another program let router advertisements in on the link of the tunnel: the kernel announces no such change, and the
// daemon put it back after 30 s only.
func TestSettingsOfTheTunnelAreCompared(t *testing.T) {
	s := newSpace(t)
	s.run("ip link add edgeway.1 type vxlan id 1 local 127.0.0.1 dstport 8472")
	s.run("sysctl -qw net/ipv6/conf/edgeway.1/accept_ra=0 net/ipv6/conf/edgeway.1/accept_redirects=0 net/ipv4/conf/edgeway.1/accept_redirects=0")
	ctx, cancel := context.WithCancel(t.Context())
	events, done := make(chan struct{}), make(chan struct{})
	var tunnels atomic.Bool
	tunnels.Store(true)
	go func() {
		s.k.compareSettings(ctx, &tunnels, func() {
			select {
			case events <- struct{}{}:
			case <-ctx.Done():
			}
		})
		close(done)
	}()
	for range settingsSettle { // the link is new
		<-events
	}
	for _, setting := range []string{"ipv6/conf/edgeway.1/accept_ra=2", "ipv6/conf/edgeway.1/accept_redirects=1", "ipv4/conf/edgeway.1/accept_redirects=1"} {
		s.run("sysctl -qw net/" + setting)
		for range settingsSettle {
			select {
			case <-events:
			case <-time.After(10 * time.Second):
				t.Fatalf("%s was not noticed", setting)
			}
		}
	}
	cancel()
	<-done
}

// Another program (systemd-networkd 256) flushed the next hop objects, and so deleted their routes. The kernel
// does not announce the loss of such routes, so the daemon noticed the loss half a minute later.
func TestRoutesAreBackAfterNextHopsWereFlushed(t *testing.T) {
	s := largeSpace(t)
	want := manyRoutes(bulk + 10)
	s.sync(nodeScope, want)
	s.hears("ip nexthop flush proto 119", unix.RTM_DELNEXTHOP)
	if changes := s.sync(nodeScope, want); len(changes) != bulk+10 {
		t.Errorf("%d changes, want %d", len(changes), bulk+10)
	}
}

// After systemd 256 set net.ipv4.conf.default.forwarding=0, a new link did not forward, and new pods could
// reach nothing outside the node.
func TestLinkForwardsWhateverTheDefaultIs(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0")
	onHost, _ := podStates(pod)
	for _, v6 := range []bool{false, true} {
		onHost.Sysctls = append(onHost.Sysctls, Forwarding("", v6), Forwarding(podLink, v6))
	}
	s.sync(Scope{}, onHost)
	for _, family := range []string{"ipv4", "ipv6"} {
		key := "net." + family + ".conf." + podLink + ".forwarding"
		s.contains("sysctl "+key, "= 1")
		s.run("sysctl -qw " + key + "=0")
	}
	if changes := s.sync(Scope{}, onHost); len(changes) != 2 {
		t.Errorf("changes %v, want the setting of both families", texts(changes))
	}
}

// The kernel takes the greater value of the link and of conf/all, where 2 is loose.
func TestLinkThatChecksSourcesStrictlyIsSeen(t *testing.T) {
	s := newSpace(t)
	s.wire()
	for _, tt := range []struct {
		all, link string
		strict    bool
	}{{"0", "0", false}, {"0", "1", true}, {"1", "0", true}, {"1", "1", true}, {"1", "2", false}, {"2", "1", false}, {"0", "2", false}} {
		s.run("sysctl -qw net.ipv4.conf.all.rp_filter=" + tt.all)
		s.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=" + tt.link)
		h, err := s.k.Host(t.Context())
		if got := slices.Contains(h.Strict, "eth0"); err != nil || got != tt.strict {
			t.Errorf("all %s, eth0 %s: strict %v, %v; want %v", tt.all, tt.link, got, err, tt.strict)
		}
	}
}

// After systemd 256 set net.ipv4.conf.eth0.forwarding=0, pods' packets were dropped, and the daemon did not
// report the cause. IPv6 packets pass whatever the IPv6 setting is.
func TestLinkThatDoesNotForwardIsSeen(t *testing.T) {
	s := newSpace(t)
	s.wire()
	unforwarded := func(want ...string) {
		t.Helper()
		h, err := s.k.Host(t.Context())
		if err != nil || !slices.Equal(h.Unforwarded, want) {
			t.Errorf("links that do not forward: %v, %v; want %v", h.Unforwarded, err, want)
		}
	}
	s.run("sysctl -qw net.ipv4.ip_forward=0")
	unforwarded() // Sync sets ip_forward, and the kernel then sets it on each link
	s.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.forwarding=0")
	unforwarded()
	s.run("sysctl -qw net.ipv4.conf.eth0.forwarding=0")
	unforwarded("eth0")
	s.run("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
	unforwarded()
}

func TestHostAndLookup(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("ip route add default via 10.0.0.1 proto dhcp metric 100")
	s.run("ip route add blackhole 10.0.0.0/8 proto bird")
	s.run("ip -6 route add unreachable fd00:99::/32 proto bird")
	s.sync(nodeScope, nodeRoutes())
	h, err := s.k.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, a := range h.Addrs {
		text = append(text, a.String())
	}
	for _, r := range h.Routes {
		text = append(text, r.String())
	}
	got := strings.Join(text, "\n") + "\n"
	for _, want := range []string{"10.0.0.11/24 dev eth0", "fd00:10::11/64 dev eth0", "default via 10.0.0.1 dev eth0 proto dhcp metric 100", "10.0.0.0/24 dev eth0 proto kernel src 10.0.0.11",
		"blackhole 10.0.0.0/8 proto bird", "unreachable fd00:99::/32 proto bird metric 1024"} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("Host has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "proto 119") {
		t.Errorf("Host must leave out our own routes:\n%s", got)
	}
	r, err := s.k.Lookup(t.Context(), addr("10.10.2.7"))
	if err != nil || r.Via != addr("10.0.0.12") || r.Link != "eth0" || r.Src != addr("10.0.0.11") {
		t.Errorf("lookup of a pod of another node: %+v, %v", r, err)
	}
	if r, err := s.k.Lookup(t.Context(), addr("10.0.0.11")); err != nil || r.Type != "local" {
		t.Errorf("lookup of an address of this machine: %+v, %v; want type local", r, err)
	}
	held, sourceless, err := s.k.Holders(t.Context(), addr("10.0.0.11"), addr("10.10.2.7"), addr("fd77::1"), addr("fd00:10::11"))
	if err != nil || sourceless || len(held) != 2 || held[0].Type != "local" || held[0].Dst != pfx("10.0.0.11/32") || held[1].Type != "local" {
		t.Errorf("holders %+v, %v, %v", held, sourceless, err)
	}
	s.run("ip neigh add 10.0.0.40 lladdr 02:00:00:00:00:40 dev eth0 nud permanent")
	s.run("ip neigh add fd00:10::40 lladdr 02:00:00:00:00:40 dev eth0 nud permanent")
	s.run("ip neigh add 10.0.0.41 lladdr 02:00:00:00:00:41 dev eth0 nud reachable")
	held, _, err = s.k.Holders(t.Context(), addr("10.0.0.40"), addr("10.0.0.41"), addr("fd00:10::40"))
	if err != nil || fmt.Sprint(held) != "[neighbour 10.0.0.40 dev eth0 learned neighbour 10.0.0.41 dev eth0 neighbour fd00:10::40 dev eth0]" {
		t.Errorf("neighbours: %v, %v", held, err)
	}
	held, err = s.k.Answering(t.Context(), held)
	if err != nil || fmt.Sprint(held) != "[neighbour 10.0.0.40 dev eth0 neighbour fd00:10::40 dev eth0]" {
		t.Errorf("neighbours that answer, or that somebody wrote: %v, %v", held, err)
	}
	before := s.k.c.seq
	if again, err := s.k.Answering(t.Context(), held); err != nil || len(again) != 2 || s.k.c.seq != before {
		t.Errorf("Answering sent %d messages although no neighbour was learned: %v, %v", s.k.c.seq-before, again, err)
	}
	if _, err := s.k.Lookup(t.Context(), addr("fd77::1")); err == nil {
		t.Error("lookup without a route succeeded")
	}
	if err := s.k.FlushConntrack(t.Context(), addr("10.10.2.7")); err != nil {
		t.Error(err)
	}
}
