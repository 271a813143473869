package routes

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// overlayNode is one side of two nodes that reach each other's pods through VXLAN.
type overlayNode struct {
	underlay netip.Addr
	mac      string
	cidrs    []netip.Prefix // the VTEP has the first address of each
}

func (n overlayNode) state(other overlayNode) (s State) {
	overhead := 50 // outer Ethernet, IPv4, UDP and VXLAN (RFC 7348 section 5)
	if n.underlay.Is6() {
		overhead = 70
	}
	s.Links = []Link{{Name: "edgeway.1", Kind: "vxlan", MAC: n.mac, MTU: 1500 - overhead, Up: true,
		VXLAN: &VXLAN{VNI: 1, Port: 8472, Local: n.underlay}}}
	for _, c := range n.cidrs {
		s.Addrs = append(s.Addrs, Addr{Link: "edgeway.1", Prefix: netip.PrefixFrom(c.Addr(), c.Addr().BitLen())})
	}
	for _, c := range other.cidrs {
		s.Routes = append(s.Routes, Route{Dst: c, Via: c.Addr(), Link: "edgeway.1", Protocol: ProtoNode, Onlink: true})
		s.Neighs = append(s.Neighs, Neigh{Link: "edgeway.1", IP: c.Addr(), MAC: other.mac})
	}
	s.FDB = []FDB{{Link: "edgeway.1", MAC: other.mac, Dst: other.underlay}}
	return s
}

// twoNodes are two nodes of a LAN whose pods reach each other through the tunnel that scope owns.
func twoNodes(t *testing.T) (a, b *space, nodeA, nodeB overlayNode, scope Scope) {
	t.Helper()
	a, b = newSpace(t), newSpace(t)
	nodeA = overlayNode{addr("10.0.0.11"), "02:00:00:00:01:0a", prefixes("10.10.1.0/24")}
	nodeB = overlayNode{addr("10.0.0.12"), "02:00:00:00:01:0b", prefixes("10.10.2.0/24")}
	a.sync(Scope{}, State{
		Links: []Link{{Name: "eth0", Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: b.f}}},
		Addrs: []Addr{{Link: "eth0", Prefix: netip.PrefixFrom(nodeA.underlay, 24)}},
	})
	b.sync(Scope{}, State{Links: []Link{{Name: "eth0", Up: true}}, Addrs: []Addr{{Link: "eth0", Prefix: netip.PrefixFrom(nodeB.underlay, 24)}}})
	return a, b, nodeA, nodeB, Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
}

// oneOfTwo is the first of them, with what it wants.
func oneOfTwo(t *testing.T) (s *space, scope Scope, want State) {
	t.Helper()
	s, _, nodeA, nodeB, scope := twoNodes(t)
	return s, scope, nodeA.state(nodeB)
}

// TestOverlayCarriesPackets sends packets of both families through VXLAN, over an underlay of
// either family. Nothing is learned, and nothing is flooded.
func TestOverlayCarriesPackets(t *testing.T) {
	for name, underlay := range map[string][2]string{
		"over IPv4": {"10.0.0.11", "10.0.0.12"},
		"over IPv6": {"fd00:10::11", "fd00:10::12"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newSpace(t), newSpace(t)
			nodeA := overlayNode{addr(underlay[0]), "02:00:00:00:01:0a", prefixes("10.10.1.0/24", "fd00:10:1::/64")}
			nodeB := overlayNode{addr(underlay[1]), "02:00:00:00:01:0b", prefixes("10.10.2.0/24", "fd00:10:2::/64")}
			bits := nodeA.underlay.BitLen() - 8
			a.sync(Scope{}, State{
				Links: []Link{{Name: "eth0", Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: b.f}}},
				Addrs: []Addr{{Link: "eth0", Prefix: netip.PrefixFrom(nodeA.underlay, bits)}},
			})
			b.sync(Scope{}, State{
				Links: []Link{{Name: "eth0", Up: true}},
				Addrs: []Addr{{Link: "eth0", Prefix: netip.PrefixFrom(nodeB.underlay, bits)}},
			})
			scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
			a.sync(scope, nodeA.state(nodeB))
			b.sync(scope, nodeB.state(nodeA))
			for i, c := range nodeA.cidrs {
				if got := seenFrom(t, a, b, c.Addr(), nodeB.cidrs[i].Addr()); got != c.Addr() {
					t.Errorf("the packet came from %v, want %v", got, c.Addr())
				}
			}
			// The other node gets another address: only the forwarding entry and the link follow.
			nodeB.underlay = nodeB.underlay.Next()
			b.sync(Scope{}, State{Addrs: []Addr{{Link: "eth0", Prefix: netip.PrefixFrom(nodeB.underlay, bits)}}})
			b.sync(scope, nodeB.state(nodeA))
			if changes := a.sync(scope, nodeA.state(nodeB)); len(changes) != 1 {
				t.Errorf("changes %v, want only the forwarding entry", texts(changes))
			}
			if got := seenFrom(t, a, b, nodeA.cidrs[0].Addr(), nodeB.cidrs[0].Addr()); got != nodeA.cidrs[0].Addr() {
				t.Errorf("the packet came from %v after the move", got)
			}
			a.quiet(scope, nodeA.state(nodeB))
		})
	}
}

// Two pools have different VNIs and ports: each node sends with those of the receiver. The entry of a
// receiver that changes them is replaced.
func TestOverlayToAnotherVNI(t *testing.T) {
	a, b, nodeA, nodeB, scope := twoNodes(t)
	for _, at := range []VXLAN{{VNI: 7, Port: 8472}, {VNI: 1, Port: 4789}, {VNI: 7, Port: 4789}} {
		wantA, wantB := nodeA.state(nodeB), nodeB.state(nodeA)
		wantB.Links[0].VXLAN.VNI, wantB.Links[0].VXLAN.Port = at.VNI, at.Port
		toB, toA := &wantA.FDB[0], &wantB.FDB[0]
		if at.VNI != 1 {
			toB.VNI, toA.VNI = at.VNI, 1
		}
		if at.Port != 8472 {
			toB.Port, toA.Port = at.Port, 8472
		}
		a.sync(scope, wantA)
		b.sync(scope, wantB)
		for _, way := range []struct {
			from, to *space
			src, dst netip.Addr
		}{{a, b, addr("10.10.1.0"), addr("10.10.2.0")}, {b, a, addr("10.10.2.0"), addr("10.10.1.0")}} {
			if got := seenFrom(t, way.from, way.to, way.src, way.dst); got != way.src {
				t.Errorf("%+v: the packet came from %v, want %v", at, got, way.src)
			}
		}
		a.quiet(scope, wantA)
		b.quiet(scope, wantB)
	}
}

// TestLargeOverlay: a node that joins a large overlay makes all objects in one Sync. The routes use next
// hop objects on the new link.
func TestLargeOverlay(t *testing.T) {
	s := newSpace(t)
	s.wire()
	var want State
	for i := range bulk + 88 {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 16 + byte(i>>8), byte(i), 0}), 24)
		other := overlayNode{
			underlay: netip.AddrFrom4([4]byte{10, 0, 1 + byte(i>>8), byte(i)}), mac: fmt.Sprintf("02:00:00:00:%02x:%02x", 1+i>>8, byte(i)),
			cidrs: []netip.Prefix{cidr},
		}
		one := overlayNode{addr("10.0.0.11"), "02:00:00:00:00:01", prefixes("10.10.1.0/24")}.state(other)
		want.Links, want.Addrs = one.Links, one.Addrs
		want.Routes, want.Neighs, want.FDB = append(want.Routes, one.Routes...), append(want.Neighs, one.Neighs...), append(want.FDB, one.FDB...)
	}
	scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
	changes := s.sync(scope, want)
	if n := 3*(bulk+88) + 2; len(changes) != n {
		t.Errorf("%d changes, want %d", len(changes), n)
	}
	if n := strings.Count(s.run("ip nexthop show proto 119"), "onlink"); n != bulk+88 {
		t.Errorf("%d objects, want %d", n, bulk+88)
	}
	s.sync(scope, State{})
	if out := s.run("ip nexthop") + s.run("ip route show proto 119"); out != "" {
		t.Errorf("objects still exist:\n%s", out)
	}
}

// TestLinkOfAnotherMaker: another program made a link of our name with attributes that Sync never sets. It is made
// again, with all objects on it, and the change says why.
func TestLinkOfAnotherMaker(t *testing.T) {
	s, scope, want := oneOfTwo(t)
	for options, text := range map[string]string{
		"nolearning noudpcsum":                          "",
		"learning noudpcsum":                            "learning",
		"nolearning noudpcsum ttl 1 proxy l2miss":       "nolearning ttl 1 proxy l2miss",
		"nolearning noudpcsum l3miss rsc":               "nolearning rsc l3miss",
		"nolearning noudpcsum tos 0x10 ageing 60":       "nolearning tos 0x10 ageing 60",
		"nolearning noudpcsum gbp":                      "nolearning gbp",
		"nolearning noudpcsum dev eth0 remote 10.0.0.9": "nolearning remote dev",
		"nolearning noudpcsum srcport 1000 2000":        "nolearning srcport",
		"nolearning noudpcsum df set maxaddress 5":      "nolearning df maxaddress 5",
	} {
		s.sync(scope, State{})
		s.run("ip link add edgeway.1 type vxlan id 1 local 10.0.0.11 dstport 8472 " + options)
		changes := s.sync(scope, want)
		first := texts(changes)[0]
		if text == "" && changes[0].Op != Replace || text != "" && (changes[0].Op != Delete || !strings.HasSuffix(first, " dstport 8472 "+text)) {
			t.Errorf("%s: first change: %s", options, first)
		}
	}
}

// TestUpgradeLosesNoPacketOfTheTunnel: the link of an earlier version has a checksum in the outer header, which the kernel
// cannot change. It was deleted and made again, and each node's pods lost packets for up to 0.25 s.
func TestUpgradeLosesNoPacketOfTheTunnel(t *testing.T) {
	s, scope, want := oneOfTwo(t)
	s.run("ip link add edgeway.1 address " + want.Links[0].MAC + " mtu 1450 type vxlan id 1 local 10.0.0.11 dstport 8472 nolearning udpcsum")
	s.run("ip link set edgeway.1 up")
	for _, c := range s.sync(scope, want) {
		if _, ok := c.Object.(Link); ok {
			t.Errorf("change: %v", c)
		}
	}
	s.quiet(scope, want)
}

// TestTunnelSurvivesMasquerade: a rule of the machine gives all packets that leave a random port, and the card computes
// no checksums, so what the kernel writes is what arrives. The outer checksum was wrong then, and nothing got through.
func TestTunnelSurvivesMasquerade(t *testing.T) {
	a, b, nodeA, nodeB, scope := twoNodes(t)
	a.sync(Scope{}, State{Sysctls: []Sysctl{SoftChecksum("eth0")}})
	a.run("nft add table ip others")
	a.run("nft add chain ip others out { type nat hook postrouting priority 100 ; }")
	a.run("nft add rule ip others out udp dport 8472 masquerade fully-random")
	a.sync(scope, nodeA.state(nodeB))
	b.sync(scope, nodeB.state(nodeA))
	if got := seenFrom(t, a, b, nodeA.cidrs[0].Addr(), nodeB.cidrs[0].Addr()); got != nodeA.cidrs[0].Addr() {
		t.Errorf("the packet came from %v, want %v", got, nodeA.cidrs[0].Addr())
	}
}

// TestSoftChecksum: a kernel with a fault needs checksums that are computed before the VXLAN link. The setting lasts:
// the kernel announces its change, and the next Sync repairs it.
func TestSoftChecksum(t *testing.T) {
	s, scope, want := oneOfTwo(t)
	s.sync(scope, want)
	if value, err := s.k.checksums("edgeway.1"); value != "on" || err != nil {
		t.Fatalf("checksums are %s before, %v", value, err)
	}
	want.Sysctls = append(want.Sysctls, SoftChecksum("edgeway.1"))
	const off = "net/ethtool/features/edgeway.1/tx-checksum-ip-generic = off"
	wantTexts(t, s.sync(scope, want), "replace sysctl "+off+" (was net/ethtool/features/edgeway.1/tx-checksum-ip-generic = on)")
	events := make(chan struct{}, 1)
	defer s.watched(func() { signal(events) })()
	s.listening(events)
	if err := s.k.setChecksums("edgeway.1", "on"); err != nil {
		t.Fatal(err)
	}
	<-events
	s.sync(scope, want)
	s.run("ip link del edgeway.1")
	s.sync(scope, want) // with the link made again
	if value, err := s.k.checksums("edgeway.1"); value != "off" || err != nil {
		t.Errorf("checksums are %s, %v", value, err)
	}
}

// TestForwardingEntryThatAgesOut: another program wrote forwarding entries that are not permanent, one of them in the
// place of ours, which would be gone after five minutes.
func TestForwardingEntryThatAgesOut(t *testing.T) {
	s, scope, want := oneOfTwo(t)
	s.sync(scope, want)
	s.run("bridge fdb add 02:00:00:00:09:09 dev edgeway.1 dst 10.0.0.9 dynamic")
	s.run("bridge fdb replace 02:00:00:00:01:0b dev edgeway.1 dst 10.0.0.12 dynamic")
	wantTexts(t, s.sync(scope, want),
		"replace fdb 02:00:00:00:01:0b dev edgeway.1 dst 10.0.0.12 (was 02:00:00:00:01:0b dev edgeway.1 dst 10.0.0.12 temporary)",
		"delete fdb 02:00:00:00:09:09 dev edgeway.1 dst 10.0.0.9 temporary")
	s.contains("bridge fdb show dev edgeway.1", "02:00:00:00:01:0b dst 10.0.0.12 self permanent")
	s.lacks("bridge fdb show dev edgeway.1", "02:00:00:00:09:09")
}
