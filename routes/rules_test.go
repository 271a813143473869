package routes

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func uplinkState() State {
	table := UplinkTable([6]byte{0, 0x16, 0x3e, 0x08, 0x60, 0x0a})
	return State{
		Links: []Link{{Name: "eth0", Up: true}},
		Addrs: []Addr{{Link: "eth0", Prefix: pfx("10.0.0.21/32")}},
		Routes: []Route{
			{Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: ProtoNode},
			{Dst: pfx("10.0.0.253/32"), Link: "eth0", Protocol: ProtoNode, Table: table},
			{Dst: pfx("0.0.0.0/0"), Via: addr("10.0.0.253"), Link: "eth0", Protocol: ProtoNode, Table: table, Onlink: true},
			{Dst: pfx("10.0.0.31/32"), Protocol: ProtoNode, Type: "unreachable", Metric: 4278198272},
		},
		Rules: []Rule{
			{Priority: 512, Longer: 31},
			{Priority: 600, Mark: 0x20},
			{Priority: 2048, From: pfx("10.0.0.21/32"), Table: table},
			{Priority: 2048, From: pfx("10.0.0.40/29"), Table: table},
		},
		Proxies:   []ProxyNeigh{{Link: "eth0", IP: addr("10.0.0.31")}},
		Symmetric: &Symmetric{Mark: 0x20, Uplinks: []string{"eth1", "eth0"}, Inside: []netip.Prefix{pfx("10.0.0.0/8"), pfx("10.0.0.0/24"), pfx("fd00::/8")}},
	}
}

// Rules, tables and proxies of an uplink come, are repaired and go. Those of others stay.
func TestUplink(t *testing.T) {
	s := newSpace(t)
	s.wire()
	for _, foreign := range []string{
		"ip rule add pref 2048 from 10.0.0.99 lookup 77", "ip rule add pref 700 lookup 77 proto 119", "ip rule add pref 3000 lookup 77 proto 119", "ip rule add pref 2048 from 10.0.0.98 lookup main proto 3",
		"ip route add 10.99.0.0/24 via 10.0.0.9 table 77 proto 119", "ip route add 10.99.0.0/24 via 10.0.0.9 table 1694523402 proto 3", "ip neigh add proxy 10.0.0.98 dev eth0",
		"ip rule add pref 2048 from 10.0.0.21 lookup 1694523402",
	} {
		s.run(foreign)
	}
	scope, want := Scope{Protocol: ProtoNode, Rules: true}, uplinkState()
	changes := texts(s.sync(scope, want))
	if got := strings.Join(changes, "\n"); !strings.Contains(got, "delete rule 700: from all lookup 77") || len(changes) != 1+4+1+4+1+1 {
		t.Errorf("changes:\n%s", got)
	}
	s.contains("ip rule", "512: from all lookup main suppress_prefixlength 31")
	s.contains("ip rule", "600: from all fwmark 0x20/0x20 lookup main")
	s.contains("ip rule", "2048: from 10.0.0.40/29 lookup 1695047690 proto 119")
	s.contains("ip route show table 1695047690", "default via 10.0.0.253 dev eth0 proto 119 onlink")
	s.contains("ip route", "unreachable 10.0.0.31 proto 119 metric 4278198272")
	s.contains("ip neigh show proxy", "10.0.0.31 dev eth0")
	s.contains("nft list table inet edgeway-uplink", `"eth1" }`)
	s.contains("nft list table inet edgeway-uplink", "ip daddr != @inside4")

	for _, fault := range []string{
		"ip rule del pref 512", "ip rule del pref 2048 from 10.0.0.40/29", "ip rule flush", "ip route flush table 1695047690", "ip neigh del proxy 10.0.0.31 dev eth0",
		"nft flush chain inet edgeway-uplink prerouting", "nft add element inet edgeway-uplink uplinks { eth7 }",
		"nft add element inet edgeway-uplink inside4 { 192.0.2.0/24 }", "nft delete element inet edgeway-uplink inside6 { fd00::/8 }", "nft delete table inet edgeway-uplink",
		"ip link set eth0 down", "ip route del unreachable 10.0.0.31 metric 4278198272",
	} {
		s.run(fault)
		if len(s.sync(scope, want)) == 0 {
			t.Errorf("%s: nothing was repaired", fault)
		}
		if fault == "ip link set eth0 down" {
			s.run("ip route add 10.99.0.0/24 via 10.0.0.9 dev eth0 onlink table 77 proto 119")
		}
		if fault == "ip rule flush" {
			s.run("ip rule add pref 32766 lookup main")
			s.run("ip rule add pref 2048 from 10.0.0.99 lookup 77")
		}
	}
	s.sync(scope, State{})
	s.lacks("ip rule", "proto 119")
	s.lacks("ip rule", "suppress_prefixlength")
	s.contains("ip rule", "2048: from 10.0.0.99 lookup 77")
	s.lacks("ip route show table all", "table 1695047690")
	s.contains("ip route show table 77", "10.99.0.0/24 via 10.0.0.9 dev eth0 proto 119 onlink")
	s.lacks("ip neigh show proxy", "10.0.0.31")
	s.lacks("nft list ruleset", "edgeway-uplink")
}

// A rule of another owner that says the same stays when ours goes.
func TestEqualRuleOfAnotherOwnerStays(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("ip rule add pref 2048 from 10.0.0.31 lookup main proto 3")
	scope, want := Scope{Protocol: ProtoNode, Rules: true}, State{Rules: []Rule{{Priority: 2048, From: pfx("10.0.0.31/32")}}}
	changes, err := s.k.Sync(t.Context(), scope, want)
	if err != nil || len(changes) != 1 {
		t.Errorf("got %v, %v, want our rule beside it", texts(changes), err)
	}
	s.quiet(scope, want)
	s.sync(scope, State{})
	s.contains("ip rule", "2048: from 10.0.0.31 lookup main proto boot")
}

// scattered are 9 interfaces with 25 addresses each, and the addresses are not next to each other.
func scattered() (want State) {
	want.Rules = []Rule{{Priority: 512, Longer: 31}, {Priority: 600, Mark: 0x20}}
	for i := range 9 {
		table := UplinkTable([6]byte{5: byte(i + 1)})
		want.Routes = append(want.Routes, Route{Dst: pfx("0.0.0.0/0"), Via: addr("10.0.0.253"), Link: "eth0", Protocol: ProtoNode, Table: table, Onlink: true})
		for j := range 25 {
			a := pfx(fmt.Sprintf("10.%d.0.%d/32", i+1, 2*j+1))
			want.Rules = append(want.Rules, Rule{Priority: 2048, From: a, Table: table})
			want.Routes = append(want.Routes, Route{Dst: a, Protocol: ProtoNode, Type: "unreachable", Metric: 4278198272})
			want.Proxies = append(want.Proxies, ProxyNeigh{"eth0", a.Addr()})
		}
	}
	return want
}

// BenchmarkUplinkRoundTrip sends a datagram from a pod to another machine and back, over the veth pairs of one machine:
// without rules, and with those of scattered, of which the pod's is the last.
func BenchmarkUplinkRoundTrip(b *testing.B) {
	host, pod := newSpace(b), newSpace(b)
	lan := host.wire()
	const own = "10.9.0.49"
	host.sync(Scope{}, State{
		Links:   []Link{{Name: "ew1", Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: pod.f}}},
		Routes:  []Route{{Dst: pfx(own + "/32"), Link: "ew1", Protocol: ProtoPod}},
		Sysctls: []Sysctl{Forwarding("", false)},
	})
	pod.run("ip addr add " + own + "/32 dev eth0")
	pod.run("ip link set eth0 up")
	pod.run("ip route add default via 10.0.0.11 dev eth0 onlink")
	lan.run("ip addr add 10.0.0.253/24 dev lan0")
	lan.run("ip route add " + own + " via 10.0.0.11")
	there, here := lan.listen(netip.MustParseAddrPort("10.0.0.253:0")), pod.listen(netip.MustParseAddrPort(own+":0"))
	to := there.LocalAddr().(*net.UDPAddr).AddrPort()
	go func() {
		text := make([]byte, 1)
		for {
			n, from, err := there.ReadFromUDPAddrPort(text)
			if err != nil {
				return // the end of the benchmark
			}
			_, _ = there.WriteToUDPAddrPort(text[:n], from)
		}
	}()
	trip := func(b *testing.B) {
		text := []byte{1}
		for b.Loop() {
			if _, err := here.WriteToUDPAddrPort(text, to); err != nil {
				b.Fatal(err)
			}
			if _, err := here.Read(text); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("no-rules", trip)
	host.sync(Scope{}, scattered())
	b.Run("225-addresses", trip)
}

func BenchmarkUplinks(b *testing.B) {
	s := newSpace(b)
	s.wire()
	want := scattered()
	scope := Scope{Protocol: ProtoNode, Rules: true}
	for b.Loop() {
		if _, err := s.k.Sync(b.Context(), scope, want); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := s.k.Sync(b.Context(), scope, State{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// The same for IPv6: the kernel would answer for an address that no pod has, so an entry comes and goes with the pod's route.
func TestUplinkIPv6(t *testing.T) {
	s := newSpace(t)
	s.wire()
	for _, foreign := range []string{"ip -6 rule add pref 2048 from fd00:10::99 lookup 77", "ip -6 neigh add proxy fd00:10::98 dev eth0", "ip -6 neigh add proxy fd00:10::32 dev eth0", "ip link add ew1 type veth peer name ew1p", "ip link set ew1p up", "ip link set ew1 up"} {
		s.run(foreign)
	}
	table := UplinkTable([6]byte{0, 0x16, 0x3e, 0x08, 0x60, 0x0a})
	scope, want := Scope{Protocol: ProtoNode, Rules: true}, State{
		Addrs: []Addr{{Link: "eth0", Prefix: pfx("fd00:10::21/128"), HostScope: true}},
		Routes: []Route{
			{Dst: pfx("fd00:10::fe/128"), Link: "eth0", Protocol: ProtoNode, Table: table},
			{Dst: pfx("::/0"), Via: addr("fd00:10::fe"), Link: "eth0", Protocol: ProtoNode, Table: table},
			{Dst: pfx("::/0"), Protocol: ProtoNode, Type: "unreachable", Metric: 4278198272, Table: table},
			{Dst: pfx("fd00:10::31/128"), Protocol: ProtoNode, Type: "unreachable", Metric: 4278198272},
		},
		Rules: []Rule{
			{Priority: 512, Longer: 31}, {V6: true, Priority: 512, Longer: 127},
			{Priority: 600, Mark: 0x20}, {V6: true, Priority: 600, Mark: 0x20},
			{Priority: 2048, From: pfx("fd00:10::30/124"), Table: table},
		},
		Proxies: []ProxyNeigh{{"eth0", addr("fd00:10::31")}, {"eth0", addr("fd00:10::32")}},
	}
	s.sync(scope, want)
	s.contains("ip -6 addr show dev eth0", "inet6 fd00:10::21/128 scope global nodad deprecated noprefixroute")
	s.contains("ip -6 rule", "512: from all lookup main suppress_prefixlength 127 proto 119")
	s.contains("ip -6 rule", "600: from all fwmark 0x20/0x20 lookup main proto 119")
	s.contains("ip -6 rule", "2048: from fd00:10::30/124 lookup 1695047690 proto 119")
	s.contains("ip -6 route show table 1695047690", "default via fd00:10::fe dev eth0 proto 119 metric 1024")
	s.lacks("ip -6 neigh show proxy", "fd00:10::31")
	s.contains("ip -6 neigh show proxy", "fd00:10::32")

	looked := make(chan bool, 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.k.Watch(ctx, Watched{Node: func() {
			select {
			case looked <- true:
			default:
			}
		}})
	}()
	reported := func() bool {
		select {
		case <-looked:
			return true
		default:
			return false
		}
	}
	eventually(t, "Watch reports events", func() bool {
		s.run("ip addr add 10.9.9.9/32 dev eth0")
		s.run("ip addr del 10.9.9.9/32 dev eth0")
		return reported()
	})
	for range 5 { // a pod starts and ends
		s.run("ip -6 route add fd00:10::31 dev ew1 proto 101")
		eventually(t, "the start of a pod is reported", reported)
		s.sync(Scope{}, State{Proxies: want.Proxies}) // as the plugin does it without a daemon
		s.contains("ip -6 neigh show proxy", "fd00:10::31 dev eth0")
		s.quiet(scope, want)
		s.run("ip -6 route del fd00:10::31 dev ew1 proto 101")
		eventually(t, "the end of a pod is reported", reported)
		s.sync(Scope{}, State{Proxies: want.Proxies})
		s.lacks("ip -6 neigh show proxy", "fd00:10::31")
		s.contains("ip -6 neigh show proxy", "fd00:10::32") // of another owner
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.sync(scope, State{})
	s.lacks("ip -6 rule", "proto 119")
	s.contains("ip -6 rule", "2048: from fd00:10::99 lookup 77")
	s.lacks("ip -6 route show table all", "table 1695047690")
	s.contains("ip -6 neigh show proxy", "fd00:10::98 dev eth0")
}
