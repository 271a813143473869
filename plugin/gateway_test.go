package plugin

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// One router advertisement from a pod of an IPv4-only cluster, and the node had a default route through
// the pod (CVE-2020-10749). The link beside it is as a link without our settings.
func TestPodBecomesTheNodesIPv6Gateway(t *testing.T) {
	kernelTest(t)
	for _, acceptRA := range []string{"1", "2"} {
		t.Run("accept_ra="+acceptRA, func(t *testing.T) {
			h, pod, other := newHost(t), newSpace(t), newSpace(t)
			h.sh(t, "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.default.accept_ra="+acceptRA+" net.ipv6.conf.default.accept_dad=0")
			conf := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.99.0.0/24"}]]}`)
			if acceptRA == "2" {
				conf = h.conf("1.1.0") // dual stack
			}
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: conf}
			h.must(t, c)
			link := HostLink(attachmentOf(c))
			h.sh(t, "ip link add control type veth peer name eth0 netns "+other.path+"; ip link set control up")
			other.sh(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0; ip link set eth0 up")
			if acceptRA == "2" {
				h.sh(t, "sysctl -qw net.ipv6.conf.control.accept_ra=2")
			}
			until(t, "a link that does not refuse is taken in", func() bool {
				pod.advertise(t)
				other.advertise(t)
				out := h.sh(t, "ip -6 route show default dev control")
				heard := h.sh(t, "ip -6 neigh show dev "+link)
				return strings.Contains(out, "proto ra") && strings.Contains(heard, "02:00:00:00:66:66")
			})
			if got := h.sh(t, "ip -6 route show dev "+link+"; ip -6 addr show dev "+link); strings.Contains(got, "proto ra") || strings.Contains(got, "2001:db8:bad:") {
				t.Errorf("the pod is a router of the node:\n%s", got)
			}
			h.end(t, c)
		})
	}
}

// advertise sends a router advertisement (RFC 4861 section 4.2) from eth0's link-local address, if it
// has one yet.
func (s *space) advertise(t *testing.T) {
	t.Helper()
	advice := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0,
		1, 1, 2, 0, 0, 0, 0x66, 0x66, // the sender's link-layer address
		3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0, // 2001:db8:bad::/64, for autoconfiguration
		0x20, 0x01, 0x0d, 0xb8, 0x0b, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	s.run(t, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		all := &unix.SockaddrInet6{ZoneId: uint32(eth0.Index), Addr: [16]byte{0: 0xff, 1: 2, 15: 1}}
		_ = unix.Sendto(fd, advice, 0, all)
		return nil
	})
}
