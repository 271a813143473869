package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// The router and the prefix in a pod's router advertisement.
const (
	rogueRouter = "fe80::bad"
	rogueNet    = "2001:db8:bad::"
)

func podChecks() []check {
	return []check{
		{id: "pod.router-advertisement", level: robust, section: "-", asks: "a pod's router advertisement changes nothing on a host with the kernel's defaults (accept_ra=1, no IPv6 forwarding)", needs: needPrivate, run: func(t *T) {
			if t.net.hasRanges() {
				t.net = t.net.ipv4Only() // IPv6 makes the host forward, and a forwarding host ignores the advertisement
			}
			t.advertised("1")
		}},
		{id: "pod.router-advertisement-2", level: robust, section: "-", asks: "a pod's router advertisement changes nothing on a host with accept_ra=2", needs: needPrivate, run: func(t *T) {
			t.advertised("2")
		}},
		{id: "pod.redirect", level: robust, section: "-", asks: "a pod's forged ICMP redirect changes no route of a host that accepts redirects", needs: needFresh, run: func(t *T) {
			p := t.pod()
			from := t.add(p).addrs()
			if !slices.ContainsFunc(from, netip.Addr.Is4) {
				t.Skipf("the network has no IPv4")
			}
			for _, link := range []string{"all", uplink} {
				t.sysctl("net/ipv4/conf/"+link+"/accept_redirects", "1")
			}
			const third = "192.0.2.253" // a second router beyond the uplink
			t.OK(t.outside.script(addAddr("up1", third+"/32")), "add an address")
			_, err := reach(t.host, t.outside, netip.MustParseAddr(third))
			t.OK(err, "make the second router a neighbour")
			bent, control := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("198.51.100.10")
			via := func(dst netip.Addr) string {
				r, err := t.host.nl.RouteGet(dst.AsSlice())
				t.OK(err, "ask for a route")
				return r[0].Gw.String()
			}
			t.OK(lab.Wait(t.ctx, reachPatience, func() error {
				t.OK(p.redirect(bent, third), "send the pod's redirect")
				t.OK(t.outside.redirect(control, third), "send the router's redirect")
				if gw := via(control); gw != third {
					return fmt.Errorf("%s is via %s", control, gw)
				}
				return nil
			}), "the harness: the router's own redirect is not taken")
			if gw := via(bent); gw != otherIP {
				t.Errorf("%s was via %s and is via %s", bent, otherIP, gw)
			}
		}},
	}
}

// advertised sends router advertisements from a pod, and from a link in a control namespace whose kernel
// accepts them. When the control kernel has accepted one, the host has also received one.
func (t *T) advertised(acceptRA string) {
	for _, conf := range []string{"all", "default"} {
		t.sysctl("net/ipv6/conf/"+conf+"/accept_ra", acceptRA)
	}
	p, control := t.pod(), t.pod()
	t.add(p)
	t.OK(control.Sysctl("net/ipv6/conf/default/accept_ra", "2"), "sysctl")
	t.OK(control.veth("ra0", "ra1"), "make a link")
	t.OK(lab.Wait(t.ctx, 2*reachPatience, func() error {
		t.OK(p.advertise(p.ifName), "send the pod's advertisement")
		t.OK(control.advertise("ra1"), "send an advertisement")
		s, err := control.look()
		if taken := rogueLines(s); err == nil && len(taken) < 2 {
			err = fmt.Errorf("taken: %v", taken)
		}
		return err
	}), "the harness: no kernel takes its advertisement")
	if got := rogueLines(t.snap()); len(got) > 0 {
		t.Errorf("the host has %s", strings.Join(got, ", "))
	}
}

// rogueLines returns the default route and the address that come from the advertisement.
func rogueLines(s snapshot) []string {
	return slices.DeleteFunc(s.minus(nil), func(line string) bool {
		return !strings.HasPrefix(line, "addr "+rogueNet[:len(rogueNet)-1]) && !strings.HasPrefix(line, "route default via "+rogueRouter)
	})
}

// advertise sends a router advertisement (RFC 4861 section 4.2) with an address prefix through a link.
func (s *space) advertise(link string) error {
	l, err := s.nl.LinkByName(link)
	if err != nil {
		return err
	}
	from, to := netip.MustParseAddr(rogueRouter), netip.MustParseAddr("ff02::1")
	body := slices.Concat(
		[]byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0},        // a default router for 1800 s
		[]byte{3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0}, // a prefix: on-link, for addresses, for a day
		netip.MustParseAddr(rogueNet).AsSlice())
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6}) // RFC 8200 section 8.1
	binary.BigEndian.PutUint16(body[2:], checksum(slices.Concat(pseudo, body)))
	frame := slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, l.Attrs().HardwareAddr, []byte{0x86, 0xdd},
		[]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}, from.AsSlice(), to.AsSlice(), body)
	return s.send(unix.AF_PACKET, 0, frame, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}

// redirect sends the host a redirect (RFC 792) to another router for dst, with the source address of the
// host's router.
func (s *space) redirect(dst netip.Addr, via string) error {
	from, to := netip.MustParseAddr(otherIP), netip.MustParseAddr(hostIP)
	body := slices.Concat([]byte{5, 1, 0, 0}, netip.MustParseAddr(via).AsSlice(), ipv4Header(to, dst, 8), make([]byte, 8))
	binary.BigEndian.PutUint16(body[2:], checksum(body))
	return s.send(unix.AF_INET, unix.IPPROTO_RAW, append(ipv4Header(from, to, len(body)), body...), &unix.SockaddrInet4{Addr: to.As4()})
}

// ipv4Header returns the IPv4 header of an ICMP packet (RFC 791 section 3.1).
func ipv4Header(from, to netip.Addr, payload int) []byte {
	h := slices.Concat([]byte{0x45, 0, 0, byte(20 + payload), 0, 0, 0, 0, 64, unix.IPPROTO_ICMP, 0, 0}, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// checksum returns the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

func (s *space) send(family, protocol int, packet []byte, to unix.Sockaddr) error {
	return s.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, to)
	})
}

// sysctl changes a setting of the host until the check ends.
func (t *T) sysctl(key, value string) {
	var old []byte
	t.OK(t.host.Do(func() (err error) {
		old, err = os.ReadFile("/proc/sys/" + key)
		return err
	}), "read a sysctl")
	t.OK(t.host.Sysctl(key, value), "sysctl")
	host := t.host
	t.Cleanup(func() { t.OK(host.Sysctl(key, strings.TrimSpace(string(old))), "sysctl") })
}
