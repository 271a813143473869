package routes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The messages that a neighbour on a link can send, as bytes behind the IP header.

// advertisement is a router advertisement (RFC 4861 section 4.2) with the sender's link-layer address
// and an on-link prefix for autoconfiguration (sections 4.6.1, 4.6.2).
func advertisement(mac string, prefix netip.Addr) []byte {
	hw, _ := net.ParseMAC(mac)
	m := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lifetime 1800 s
	m = append(append(m, 1, 1), hw...)
	m = append(m, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
	return append(m, prefix.AsSlice()...)
}

// redirect6 says that dst is reached by target (RFC 4861 section 4.5).
func redirect6(target, dst netip.Addr, mac string) []byte {
	hw, _ := net.ParseMAC(mac)
	m := append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	m = append(m, dst.AsSlice()...)
	return append(append(m, 2, 1), hw...)
}

// sum16 is the Internet checksum (RFC 1071).
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ipv6Frame is an Ethernet frame to all nodes of the link.
func ipv6Frame(mac string, src netip.Addr, icmp []byte) []byte {
	hw, _ := net.ParseMAC(mac)
	dst := addr("ff02::1")
	pseudo := binary.BigEndian.AppendUint32(append(src.AsSlice(), dst.AsSlice()...), uint32(len(icmp)))
	icmp = bytes.Clone(icmp)
	binary.BigEndian.PutUint16(icmp[2:], sum16(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), icmp))
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, hw...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(append(append(f, unix.IPPROTO_ICMPV6, 255), src.AsSlice()...), dst.AsSlice()...)
	return append(f, icmp...)
}

// frame sends one Ethernet frame out of the link.
func (s *space) frame(link string, frame []byte) {
	s.t.Helper()
	err := inside(netns.NsHandle(s.f.Fd()), func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index})
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// datagram sends UDP to a port.
func (s *space) datagram(to string, payload []byte) {
	s.t.Helper()
	s.datagramFrom("", to, payload)
}

// datagramFrom sends UDP from an address of the namespace.
func (s *space) datagramFrom(from, to string, payload []byte) {
	s.t.Helper()
	err := inside(netns.NsHandle(s.f.Fd()), func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(payload)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

const (
	rogueMAC   = "02:00:00:00:66:66"
	podLink    = "ew0123456789a"
	controlMAC = "02:00:00:00:77:77"
)

var (
	rogue      = addr("fe80::66")
	advertised = addr("2001:db8:bad::")
)

// gullible sends messages until the control link has accepted a message. The control link differs from our
// link only in the settings, so without the settings our link would have accepted the messages too. Our link
// has received its messages before.
func gullible(t *testing.T, s *space, tell func(), fell func() bool) {
	t.Helper()
	eventually(t, "the control link accepts a message", func() bool { tell(); return fell() })
}

func (s *space) advised(link string) bool {
	return strings.Contains(s.run("ip -6 route show default dev "+link), "proto ra")
}

// TestPodBecomesTheNodesIPv6Gateway is CVE-2020-10749: after one router advertisement from a pod, all
// IPv6 traffic of the node left through the pod.
func TestPodBecomesTheNodesIPv6Gateway(t *testing.T) {
	for _, acceptRA := range []string{"1", "2"} {
		t.Run("accept_ra="+acceptRA, func(t *testing.T) {
			s, pod := newSpace(t), newSpace(t)
			s.run("sysctl -qw net.ipv6.conf.default.accept_ra=" + acceptRA)
			s.run("ip link add control type veth peer name peer")
			s.run("ip link set control up")
			s.run("ip link set peer up")
			onHost, _ := podStates(pod)
			onHost.Sysctls = append([]Sysctl{{"net/ipv4/ip_forward", "1"}}, Refusals(podLink)...)
			s.sync(Scope{}, onHost)
			pod.run("ip link set eth0 up")
			s.carrier(podLink)

			frame := ipv6Frame(rogueMAC, rogue, advertisement(rogueMAC, advertised))
			gullible(t, s, func() {
				pod.frame("eth0", frame)
				s.frame("peer", frame)
			}, func() bool {
				return s.advised("control") && strings.Contains(s.run("ip -6 neigh show dev "+podLink), rogueMAC)
			})
			s.lacks("ip -6 route show table all dev "+podLink, "proto ra")
			s.lacks("ip -6 addr show dev "+podLink, "2001:db8:bad:")
			s.lacks("ip -6 route show dev "+podLink, "2001:db8:bad:")

			// Somebody changes the settings. The next Sync restores them.
			s.run("sysctl -qw net.ipv6.conf." + podLink + ".accept_ra=2 net.ipv4.conf." + podLink + ".accept_redirects=1")
			if changes := s.sync(Scope{}, onHost); len(changes) != 2 {
				t.Errorf("changes %v, want both settings", texts(changes))
			}
		})
	}
}

// TestLANHostBecomesTheNodesIPv6Gateway: the same attack through the VXLAN port, from a
// machine that is not a node.
func TestLANHostBecomesTheNodesIPv6Gateway(t *testing.T) {
	for _, acceptRA := range []string{"1", "2"} {
		t.Run("accept_ra="+acceptRA, func(t *testing.T) {
			s := newSpace(t)
			lan := s.wire()
			lan.run("ip addr add 10.0.0.66/24 dev lan0")
			s.run("sysctl -qw net.ipv6.conf.default.accept_ra=" + acceptRA)
			s.run("ip link add control type vxlan id 1 dstport 8473 local 10.0.0.11 nolearning")
			s.run("ip link set control up")
			node := overlayNode{addr("10.0.0.11"), "02:00:00:00:01:0a", prefixes("10.10.1.0/24")}
			want := node.state(overlayNode{addr("10.0.0.12"), "02:00:00:00:01:0b", prefixes("10.10.2.0/24")})
			want.Sysctls = Refusals("edgeway.1")
			scope := Scope{Protocol: ProtoNode, Links: []string{"edgeway.1"}}
			s.sync(scope, want)

			// RFC 7348 section 5: flags, VNI 1.
			packet := append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, ipv6Frame(rogueMAC, rogue, advertisement(rogueMAC, advertised))...)
			gullible(t, s, func() {
				lan.datagram("10.0.0.11:8472", packet)
				lan.datagram("10.0.0.11:8473", packet)
			}, func() bool {
				return s.advised("control") && strings.Contains(s.run("ip -6 neigh show dev edgeway.1"), rogueMAC)
			})
			s.lacks("ip -6 route show table all dev edgeway.1", "proto ra")
			s.lacks("ip -6 addr show dev edgeway.1", "2001:db8:bad:")

			s.run("sysctl -qw net.ipv6.conf.edgeway/1.accept_ra=2")
			if changes := s.sync(scope, want); len(changes) != 1 {
				t.Errorf("changes %v, want only the setting", texts(changes))
			}
		})
	}
}

// TestPodRedirectsTheNode: a pod that claims to be the next hop must not redirect traffic.
func TestPodRedirectsTheNode(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.wire()
	onHost, _ := podStates(pod)
	onHost.Sysctls = append([]Sysctl{{"net/ipv4/ip_forward", "1"}}, Refusals(podLink)...)
	s.run("ip link add control type veth peer name peer")
	s.run("ip link set control up")
	s.run("ip link set peer up")
	s.sync(Scope{}, onHost)
	pod.run("ip link set eth0 up")
	s.carrier(podLink)
	s.run("sysctl -qw net.ipv4.conf.all.accept_redirects=1 net.ipv4.conf.all.rp_filter=0")
	for _, link := range []string{"control", podLink} {
		s.run("sysctl -qw net.ipv4.conf." + link + ".rp_filter=0")
	}
	s.run("sysctl -qw net.ipv4.conf.control.accept_redirects=1 net.ipv6.conf.control.accept_redirects=1")

	t.Run("IPv6", func(t *testing.T) {
		targets := map[string]netip.Addr{podLink: addr("2001:db8:7::1"), "control": addr("2001:db8:8::1")}
		for link, dst := range targets {
			s.run(fmt.Sprintf("ip -6 route add %s via %s dev %s", dst, rogue, link))
		}
		tell := func(via *space, link, at string) {
			via.frame(at, ipv6Frame(rogueMAC, rogue, redirect6(addr("fe80::77"), targets[link], controlMAC)))
		}
		way := func(link string) string { return s.run("ip -6 route get " + targets[link].String()) }
		gullible(t, s, func() {
			tell(pod, podLink, "eth0")
			tell(s, "control", "peer")
		}, func() bool { return strings.Contains(way("control"), "via fe80::77") })
		if got := way(podLink); !strings.Contains(got, "via fe80::66") {
			t.Errorf("the pod redirected the traffic: %s", got)
		}
	})
	t.Run("IPv4", func(t *testing.T) {
		// The pod pretends to be the gateway on the uplink.
		gateway, target, far := addr("10.0.0.1"), addr("10.0.0.66"), addr("203.0.113.5")
		s.run("ip route add 203.0.113.0/24 via 10.0.0.1 dev eth0")
		s.run("ip neigh replace 10.0.0.66 lladdr " + controlMAC + " nud permanent dev eth0")
		var flow *net.UDPConn
		err := inside(netns.NsHandle(s.f.Fd()), func() (err error) {
			flow, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(far, 9)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer flow.Close()
		local := flow.LocalAddr().(*net.UDPAddr).AddrPort()
		packet := redirect4(gateway, target, local, netip.AddrPortFrom(far, 9))
		to := func(link string) []byte {
			d, _, err := newView(s.k.c).fetch(link)
			hw, perr := net.ParseMAC(d.MAC)
			if err != nil || perr != nil {
				t.Fatal(err, perr)
			}
			return append(append(bytes.Clone(hw), 2, 0, 0, 0, 0x66, 0x66, 8, 0), packet...)
		}
		way := func() string { return s.run("ip route get 203.0.113.5") }
		eventually(t, "the kernel counts a redirect", func() bool {
			pod.frame("eth0", to(podLink))
			return strings.Contains(s.run("cat /proc/net/snmp"), "InType5")
		})
		if got := way(); !strings.Contains(got, "via 10.0.0.1 ") {
			t.Errorf("the pod redirected the traffic: %s", got)
		}
		gullible(t, s, func() { s.frame("peer", to("control")) }, func() bool { return strings.Contains(way(), "via 10.0.0.66") })
	})
}

// redirect4 is an IPv4 packet: ICMP redirect for host (RFC 792, type 5, code 1) from old to next, about a
// UDP packet from local to far.
func redirect4(old, next netip.Addr, local, far netip.AddrPort) []byte {
	header := func(proto byte, src, dst netip.Addr, size int) []byte {
		h := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+size))
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], sum16(h))
		return h
	}
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, local.Port()), far.Port())
	udp = append(udp, 0, 8, 0, 0)
	icmp := append([]byte{5, 1, 0, 0}, next.AsSlice()...)
	icmp = append(append(icmp, header(unix.IPPROTO_UDP, local.Addr(), far.Addr(), 8)...), udp...)
	binary.BigEndian.PutUint16(icmp[2:], sum16(icmp))
	return append(header(unix.IPPROTO_ICMP, old, local.Addr(), len(icmp)), icmp...)
}

// TestLinkRefusesBeforeItIsUp: the kernel's own announcements show the settings of each moment.
func TestLinkRefusesBeforeItIsUp(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.wire()
	s.run("sysctl -qw net.ipv6.conf.default.accept_ra=2")
	onHost, _ := podStates(pod)
	onHost.Sysctls = append(onHost.Sysctls, Refusals(podLink)...)
	overlay := overlayNode{addr("10.0.0.11"), "02:00:00:00:01:0a", prefixes("10.10.1.0/24")}.state(overlayNode{})
	overlay.FDB = nil
	overlay.Sysctls = Refusals("edgeway.1")
	down := func(link string) func() { return func() { s.run("ip link set " + link + " down") } }
	gullible := func(link string) func() {
		return func() {
			s.run("sysctl -qw net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra=2")
			down(link)()
		}
	}
	for _, tt := range []struct {
		name, link string
		before     func()
		want       State
	}{
		{"a pod's link", podLink, func() {}, onHost},
		{"a pod's link that was set down", podLink, gullible(podLink), onHost},
		{"the overlay", "edgeway.1", func() {}, overlay},
		{"the overlay that was set down", "edgeway.1", gullible("edgeway.1"), overlay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.before()
			events, err := s.k.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
			if err != nil {
				t.Fatal(err)
			}
			defer events.Close()
			s.sync(Scope{}, tt.want)
			if err := events.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64<<10)
			for up := false; !up; {
				n, err := events.Read(buf)
				if err != nil {
					t.Fatalf("the link is not announced as up: %v", err)
				}
				eachMessage(buf[:n], func(h unix.NlMsghdr, body []byte) {
					v := newView(nil)
					d, ok := parseLink(body)
					if h.Type != unix.RTM_NEWLINK || !ok || d.Name != tt.link || !d.Up {
						return
					}
					v.put(d)
					v.noteConf(d.Name, body)
					for _, want := range Refusals(tt.link) {
						if got, known := v.told(want.Key); !known || got != want.Value {
							t.Errorf("the link is up with %s = %s, want %s", want.Key, got, want.Value)
						}
					}
					up = true
				})
			}
		})
	}
}

// On a kernel without nft_fib, the daemon blamed another program in addition to the right next step. Such a
// kernel answers ENOENT to the rule. Sync continues with the other objects, as after any other error of a
// change.
func TestKernelWithoutAPartOfNftables(t *testing.T) {
	s := newSpace(t)
	c, err := s.k.natConn()
	if err != nil {
		t.Fatal(err)
	}
	missingSet := &expr.Lookup{SourceRegister: 1, SetName: "none"} // the kernel answers ENOENT to this expression too
	tab := SourceCheck{}.table()
	tab.sets, tab.rules = nil, []*nftables.Rule{newRule(tab.chain, false, "", missingSet)}
	err = s.k.setTable(Add, tab)
	change := Change{Op: Add, Object: SourceCheck{}}
	(&applier{}).conclude(&change, err)
	const want = ": no such file or directory; load the kernel modules nf_tables and nft_fib_inet, or set cni.sourceCheck to false"
	if change.Err == nil || !strings.HasSuffix(change.Err.Error(), want) {
		t.Errorf("got %v, want ...%s", change.Err, want)
	}
	if there, err := hasTable(c, inetTable(sourceTable)); err != nil || there {
		t.Errorf("part of the table still exists: %v, %v", there, err)
	}
}
