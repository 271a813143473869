package plugin

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pod that answers for addresses of others, by ARP, by neighbour discovery or by having them, gets none
// of their packets, and its router advertisements reach no other pod. docs/security.md says why.
func TestPodTakesThePacketsOfOthers(t *testing.T) {
	kernelTest(t)
	h, thief, victim := newHost(t), newSpace(t), newSpace(t)
	n := h.node(t)
	call{verb: "ADD", id: "c1", ifName: "eth0", netns: thief.path, conf: h.conf("1.1.0")}.does(t, n)
	add := call{verb: "ADD", id: "c2", ifName: "eth0", netns: victim.path, conf: h.conf("1.1.0")}
	add.does(t, n)
	const gateway, uplinkMAC = "192.0.2.254", "02:00:00:00:00:fe"
	h.sh(t, "ip neigh replace "+gateway+" lladdr "+uplinkMAC+" nud reachable dev up0")
	victim.listen(t, "80")
	claimed := []string{"10.99.0.2", gateway, "192.0.2.1", "169.254.1.1"}
	for _, a := range claimed {
		thief.sh(t, "ip addr add "+a+"/32 dev eth0")
	}
	thief.sh(t, "ip -6 addr add fd00:99::2/128 dev eth0 nodad")
	link := HostLink(attachmentOf(call{id: "c1", ifName: "eth0"}))
	until(t, "the host hears the claims", func() bool {
		for _, a := range claimed {
			thief.claims(t, netip.MustParseAddr(a))
		}
		thief.advertise(t)
		return strings.Contains(h.sh(t, "ip -6 neigh show dev "+link), "02:00:00:00:66:66")
	})
	if got := h.seen(t, "10.99.0.2", "80"); got != "192.0.2.1" {
		t.Errorf("the other pod was reached from %q", got)
	}
	if out, err := h.try(t, "ping -c1 -W2 fd00:99::2"); err != nil {
		t.Errorf("%s", out)
	}
	if way := h.sh(t, "ip neigh show "+gateway+" dev up0; ip route get 10.99.0.2; ip -6 route get fd00:99::2"); strings.Contains(way, link) || !strings.Contains(way, uplinkMAC) {
		t.Errorf("packets go elsewhere:\n%s", way)
	}
	if out := victim.sh(t, "ip -6 route; ip neigh show 169.254.1.1"); strings.Contains(out, "proto ra") || !strings.Contains(out, macOf(attachmentOf(add), "host")) {
		t.Errorf("the other pod follows:\n%s", out)
	}
	h.endAll(t, n, "c1", "c2")
}

// claims sends an unsolicited ARP answer (RFC 826) to all: the address is at eth0's MAC.
func (s *space) claims(t *testing.T, a netip.Addr) {
	t.Helper()
	s.run(t, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		frame := append(append(append([]byte{}, all...), eth0.HardwareAddr...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
		frame = append(append(frame, eth0.HardwareAddr...), a.AsSlice()...)
		frame = append(append(frame, all...), a.AsSlice()...)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index})
	})
}

// At 169.254.1.1 a pod finds what listens on all addresses of the host, and nothing that listens on the
// host's loopback.
func TestPodReachesTheHostsLoopback(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}.does(t, n)
	var ports []string
	for _, on := range []string{"0.0.0.0:0", "127.0.0.1:0"} {
		var l net.Listener
		h.run(t, func() (err error) {
			l, err = net.Listen("tcp4", on)
			return err
		})
		t.Cleanup(func() { l.Close() })
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	pod.sh(t, `sysctl -qw net.ipv4.conf.all.route_localnet=1
		ip route add 127.0.0.0/9 via 169.254.1.1 table 7; ip rule add pref 1 to 127.0.0.0/9 lookup 7
		ip rule add pref 2 lookup local; ip rule del pref 0`)
	dial := func(to string) (err error) {
		pod.run(t, func() error {
			var c net.Conn
			if c, err = net.DialTimeout("tcp4", to, time.Second); err == nil {
				c.Close()
			}
			return nil
		})
		return err
	}
	if err := dial("169.254.1.1:" + ports[0]); err != nil {
		t.Error(err)
	}
	for _, to := range []string{"169.254.1.1:" + ports[1], "127.0.0.1:" + ports[1]} {
		if dial(to) == nil {
			t.Errorf("the pod reached %s", to)
		}
	}
	h.sh(t, "sysctl -qw net.ipv4.conf.all.route_localnet=1")
	if err := dial("127.0.0.1:" + ports[1]); err != nil {
		t.Errorf("the packets did not get as far as the host: %v", err)
	}
	h.endAll(t, n, "c1")
}

// Packets with a source that is not the pod's pass, unless the host's rp_filter is strict.
func TestPodSendsFromOthersAddresses(t *testing.T) {
	kernelTest(t)
	h, thief, victim := newHost(t), newSpace(t), newSpace(t)
	n := h.node(t)
	call{verb: "ADD", id: "c1", ifName: "eth0", netns: thief.path, conf: h.conf("1.1.0")}.does(t, n)
	call{verb: "ADD", id: "c2", ifName: "eth0", netns: victim.path, conf: h.conf("1.1.0")}.does(t, n)
	thief.sh(t, "ip addr add 198.51.100.7/32 dev eth0")
	heard := func() string {
		_, _ = thief.try(t, "ping -c1 -W1 -I 198.51.100.7 10.99.0.2") // nobody can answer
		return victim.sh(t, "awk '/^Icmp: [0-9]/ {print $2}' /proc/net/snmp")
	}
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1")
	before := heard()
	if after := heard(); after != before {
		t.Errorf("with a strict rp_filter the other pod heard %s packets, then %s", before, after)
	}
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done")
	if after := heard(); after == before {
		t.Error("without rp_filter the other pod heard nothing")
	}
	h.endAll(t, n, "c1", "c2")
}
