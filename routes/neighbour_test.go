package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// paired returns a host and a wired pod, after each of the pod's addresses has answered the host.
func paired(t *testing.T) (host, pod *space) {
	host, pod = newSpace(t), newSpace(t)
	host.wire()
	onHost, inPod := podStates(pod)
	onHost.Sysctls = []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}}
	inPod.Sysctls = []Sysctl{{"net/ipv4/conf/eth0/arp_notify", "1"}, {"net/ipv6/conf/eth0/ndisc_notify", "1"}}
	host.sync(Scope{}, onHost)
	pod.sync(Scope{}, inPod)
	host.quiet(Scope{}, onHost)
	for _, to := range []string{"10.10.1.5", "fd00:10:1::5"} { // IPv6 has no route before the link has a carrier
		eventually(t, to+" answers", func() bool { _, err := host.try("ping -c1 -W1 " + to); return err == nil })
	}
	return host, pod
}

// A chained plugin (tuning) or somebody in the pod changed the MAC address of the pod's interface, and no
// packet reached the pod any more.
func TestPodIsReachedUnderItsNewMAC(t *testing.T) {
	host, pod := paired(t)
	for i, change := range []string{
		"ip link set eth0 address 02:00:00:00:00:d1", // as tuning does
		"ip link set eth0 address 02:00:00:00:00:d2",
	} {
		for _, to := range []string{"10.10.1.5", "fd00:10:1::5"} {
			host.run("ping -c1 -W1 " + to) // the old MAC address is in use
		}
		pod.run(change)
		for _, to := range []string{"10.10.1.5", "fd00:10:1::5"} {
			host.run("ping -c1 -W1 " + to)
		}
		for _, to := range []string{"10.0.0.11", "fd00:10::11", "169.254.1.1", "fe80::1%eth0"} {
			pod.run("ping -c1 -W1 " + to)
		}
		host.contains("ip neigh show dev ew0123456789a", fmt.Sprintf("10.10.1.5 lladdr 02:00:00:00:00:d%d extern_learn", i+1))
	}
	host.contains("ip route get 10.10.1.5", "src 10.0.0.11")
	host.contains("ip -6 route get fd00:10:1::5", "src fd00:10::11")
}

// The kernel finds an unannounced MAC address by asking, as soon as the neighbour entry is in use.
func TestPodIsReachedUnderAMACThatItDidNotAnnounce(t *testing.T) {
	host, pod := paired(t)
	pod.run("sysctl -qw net.ipv4.conf.eth0.arp_notify=0 net.ipv6.conf.eth0.ndisc_notify=0")
	host.run("sysctl -qw net.ipv4.neigh.ew0123456789a.delay_first_probe_time=0 net.ipv6.neigh.ew0123456789a.delay_first_probe_time=0")
	pod.run("ip link set eth0 address 02:00:00:00:00:d1")
	for _, to := range []string{"10.10.1.5", "fd00:10:1::5"} {
		eventually(t, to+" answers", func() bool { _, err := host.try("ping -c1 -W1 " + to); return err == nil })
	}
}

// A pod that answers no ARP request, for example because its rp_filter refuses the host's address,
// was reached by permanent entries. The kernel would drop its usual entries after three requests.
func TestPodThatAnswersNoARPIsReached(t *testing.T) {
	host, pod := paired(t)
	pod.run("sysctl -qw net.ipv4.conf.all.arp_ignore=8")
	const conf = "net.ipv4.neigh.ew0123456789a."
	host.run("sysctl -qw " + conf + "delay_first_probe_time=0 " + conf + "retrans_time_ms=10")
	out := host.listen(netip.MustParseAddrPort("10.0.0.11:0")) // ping would confirm the entry
	eventually(t, "the pod was asked ten times", func() bool {
		if _, err := out.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort("10.10.1.5:9")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		probes := 0
		_, line, _ := strings.Cut(host.run("ip -s neigh show 10.10.1.5 dev ew0123456789a"), "probes ")
		_, _ = fmt.Sscan(line, &probes)
		return probes >= 10
	})
	host.contains("ip neigh show dev ew0123456789a", "10.10.1.5 lladdr 02:00:00:00:00:bb extern_learn PROBE")
	host.run("ping -c1 -W1 10.10.1.5")
}
