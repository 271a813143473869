package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// checkSources has the host drop what pods send from addresses that are not their own, or not.
func (h *host) checkSources(t *testing.T, want *routes.SourceCheck) []routes.Change {
	t.Helper()
	k, err := routes.OpenNetns(h.file)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	changes, err := k.Sync(t.Context(), routes.Scope{SourceCheck: true}, routes.State{SourceCheck: want})
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// keepSources calls checkSources at each event of the node, as the daemon does.
func (h *host) keepSources(t *testing.T) (stop func()) {
	t.Helper()
	k, err := routes.OpenNetns(h.file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done, heard := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		done <- k.Watch(ctx, routes.Watched{Node: func() {
			select {
			case heard <- struct{}{}:
			default:
			}
			if _, err := k.Sync(t.Context(), routes.Scope{SourceCheck: true}, routes.State{SourceCheck: &routes.SourceCheck{}}); err != nil {
				t.Error(err)
			}
		}})
	}()
	until(t, "the watch hears", func() bool {
		h.sh(t, "ip addr add 192.0.2.99/32 dev up0; ip addr del 192.0.2.99/32 dev up0")
		return len(heard) > 0
	})
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.Close()
	}
}

// hear opens a UDP socket in the namespace.
func (s *space) hear(t *testing.T, a string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	s.run(t, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(a)})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// sendAs sends its source and the number as a UDP payload, from a source address that the namespace
// need not have.
func (s *space) sendAs(t *testing.T, from string, to net.Addr, n int) {
	t.Helper()
	s.run(t, func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}, Control: func(network, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				if strings.HasSuffix(network, "6") {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
				} else {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
				}
			})
			if cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := d.DialContext(context.Background(), "udp", to.String())
		if err != nil {
			return fmt.Errorf("from %s: %w", from, err)
		}
		defer c.Close()
		_, _ = fmt.Fprint(c, from, " ", n) // an earlier packet may have been refused
		return nil
	})
}

// heard reads payloads until done.
func heard(t *testing.T, c *net.UDPConn, send func(n int), done func(from []string) bool) (from []string) {
	t.Helper()
	buf := make([]byte, 100)
	deadline := time.Now().Add(patience)
	for n := 0; !done(from); n++ {
		if time.Now().After(deadline) {
			t.Fatalf("%v heard from %v alone", c.LocalAddr(), from)
		}
		send(n)
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		for {
			size, err := c.Read(buf)
			if err != nil {
				break
			}
			who, _, _ := strings.Cut(string(buf[:size]), " ")
			if !slices.Contains(from, who) {
				from = append(from, who)
			}
		}
	}
	slices.Sort(from)
	return from
}

// A pod sent with the addresses of another pod, of the node and of machines elsewhere, and other pods,
// the node and the LAN got its packets.
func TestPodSendsFromAnAddressThatIsNotItsOwn(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	lan := neighbourOf(t, h)
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
	var calls []call
	var pods []*space
	for _, id := range []string{"attacker", "victim", "third"} {
		pod := newSpace(t)
		c := call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
		h.must(t, c)
		calls, pods = append(calls, c), append(pods, pod)
	}
	attacker, victim := pods[0], pods[1]
	attacker.sh(t, "ip addr add 10.99.0.77/32 dev eth0; ip addr add fd00:99::77/128 dev eth0 nodad")
	families := []struct {
		own     string
		spoofed []string // another pod's, a free one of the pod CIDR, the LAN machine's, elsewhere, the pod's gateway
		node    string
		targets map[string]*space
	}{
		{"10.99.0.1", []string{"10.99.0.3", "10.99.0.77", "198.51.100.2", "203.0.113.9", "169.254.1.1"}, "192.0.2.1",
			map[string]*space{"10.99.0.2": victim, "192.0.2.1": h.space, "198.51.100.2": lan}},
		{"fd00:99::1", []string{"fd00:99::3", "fd00:99::77", "2001:db8:1::2", "2001:db8:f::9"}, "2001:db8::1",
			map[string]*space{"fd00:99::2": victim, "2001:db8::1": h.space, "2001:db8:1::2": lan}},
	}
	for _, check := range []*routes.SourceCheck{nil, {}} {
		h.checkSources(t, check)
		for _, f := range families {
			for target, at := range f.targets {
				conn := at.hear(t, target)
				send := func(n int) {
					for _, from := range append(f.spoofed, f.node, f.own) {
						attacker.sendAs(t, from, conn.LocalAddr(), n)
					}
				}
				want := func(from []string) bool { return slices.Contains(from, f.own) }
				if check == nil {
					want = func(from []string) bool { // so that the test can tell
						return slices.Contains(from, f.own) && slices.Contains(from, f.spoofed[0]) && slices.Contains(from, f.spoofed[1]) && slices.Contains(from, f.spoofed[3])
					}
				}
				from := heard(t, conn, send, want)
				if check != nil && !slices.Equal(from, []string{f.own}) {
					t.Errorf("%s heard from %v, want %s alone", target, from, f.own)
				} else if check == nil {
					t.Logf("without the check %s hears from %v", target, from)
				}
				conn.Close()
			}
		}
	}
	attacker.sh(t, "ip addr del 10.99.0.77/32 dev eth0; ip addr del fd00:99::77/128 dev eth0")
	for _, to := range []string{"10.99.0.2", "192.0.2.1", "198.51.100.2", "fd00:99::2", "2001:db8::1", "2001:db8:1::2", "169.254.1.1", "fe80::1%eth0"} {
		attacker.sh(t, "ping -c1 -W5 "+to)
	}
	attacker.sh(t, "ip neigh flush all nud permanent; ping -c1 -W5 fd00:99::2; ping -c1 -W5 10.99.0.2") // asks for its gateway
	h.sh(t, "ping -c1 -W5 10.99.0.1; ping -c1 -W5 fd00:99::1")
	h.end(t, calls...)
}

// Somebody changes the table; Sync makes it whole, and writes nothing when it is.
func TestSourceCheckIsRepaired(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	want := &routes.SourceCheck{}
	h.checkSources(t, want)
	for _, damage := range []string{
		"true", "nft flush chain inet edgeway-source prerouting", "nft insert rule inet edgeway-source prerouting accept",
		"nft delete table inet edgeway-source",
	} {
		h.sh(t, damage)
		changes := 1
		if damage == "true" {
			changes = 0
		}
		if got := h.checkSources(t, want); len(got) != changes {
			t.Errorf("after %s: changes %v", damage, got)
		}
	}
	h.checkSources(t, nil)
	if out := h.sh(t, "nft list ruleset"); strings.Contains(out, "edgeway-source") {
		t.Errorf("the table stays:\n%s", out)
	}
}

// A pod with two links answers by its default route, whichever link the question came by. It may use
// each of its addresses on both, and no other pod's.
func TestCheckedPodWithTwoInterfaces(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h, pod, other := newHost(t), newSpace(t), newSpace(t)
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
	var calls []call
	var addrs []string
	stop := h.keepSources(t)
	for _, name := range []string{"eth0", "net1"} {
		c := call{verb: "ADD", id: "c1", ifName: name, netns: pod.path, conf: h.conf("1.1.0")}
		addrs = append(addrs, parseResult(t, h.must(t, c)).addrs()...)
		calls = append(calls, c)
	}
	last := call{verb: "ADD", id: "c2", ifName: "eth0", netns: other.path, conf: h.conf("1.1.0")}
	third := parseResult(t, h.must(t, last)).addrs()
	for _, a := range append(addrs, third...) {
		until(t, "the node reaches "+a, func() bool {
			_, err := h.try(t, "ping -c1 -W1 "+a)
			return err == nil
		})
	}
	stop()
	if again := h.checkSources(t, &routes.SourceCheck{}); len(again) > 0 {
		t.Errorf("changed again: %v", again)
	}
	for i, node := range []string{"192.0.2.1", "2001:db8::1"} {
		conn := h.hear(t, node)
		own := addrs[i]
		from := heard(t, conn, func(n int) {
			pod.sendAs(t, third[i], conn.LocalAddr(), n)
			pod.sendAs(t, own, conn.LocalAddr(), n)
		}, func(from []string) bool { return slices.Contains(from, own) })
		if !slices.Equal(from, []string{own}) {
			t.Errorf("the node heard from %v, want %s alone", from, own)
		}
	}
	gone := calls[1]
	h.end(t, gone)
	if changes := h.checkSources(t, &routes.SourceCheck{}); len(changes) != 1 {
		t.Errorf("after DEL of net1: changes %v, want its addresses gone", changes)
	}
	if out := h.sh(t, "nft list table inet edgeway-source"); strings.Contains(out, addrs[2]) || strings.Contains(out, addrs[3]) {
		t.Errorf("the addresses of net1 stay:\n%s", out)
	}
	h.end(t, calls[0], last)
}

// The source check drops nothing of a pod whose packets other plugins shape, translate or send back to it.
func TestCheckedPodInAChain(t *testing.T) {
	kernelTest(t)
	need(t, "nft", "tc")
	h := newHost(t)
	lan := neighbourOf(t, h)
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
	c := newChain(t, h, h.conf("1.1.0", `"ipMasq":true`), `{"type":"tuning","mac":"02:00:00:00:00:d1"}`,
		`{"type":"portmap","backend":"nftables","snat":true,"capabilities":{"portMappings":true}}`,
		`{"type":"bandwidth","ingressRate":100000000,"ingressBurst":100000000,"egressRate":100000000,"egressBurst":100000000}`)
	c.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}}}
	h.checkSources(t, &routes.SourceCheck{})
	c.add(t)
	for _, at := range []string{"10.99.0.1:8080", "[fd00:99::1]:8080"} {
		c.pod.run(t, func() error { return tellClients(t, at) })
	}
	// seen is the client's address as the pod's server sees it.
	seen := func(from *space, to string) (saw string) {
		t.Helper()
		from.run(t, func() error {
			conn, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			b, err := io.ReadAll(conn)
			saw = string(b)
			return err
		})
		return saw
	}
	for _, tt := range []struct {
		name     string
		from     *space
		to, want string
	}{
		{"host port, from the LAN", lan, "192.0.2.1:18080", "198.51.100.2"},
		{"host port, IPv6, from the LAN", lan, "[2001:db8::1]:18080", "2001:db8:1::2"},
		{"own host port", c.pod, "192.0.2.1:18080", "192.0.2.1"}, // portmap masquerades it
		{"from the LAN", lan, "10.99.0.1:8080", "198.51.100.2"},
		{"from the node", h.space, "10.99.0.1:8080", "192.0.2.1"}, // although portmap sets route_localnet
		{"from the node, IPv6", h.space, "[fd00:99::1]:8080", "2001:db8::1"},
	} {
		if got := seen(tt.from, tt.to); got != tt.want {
			t.Errorf("%s: the pod saw %q, want %q", tt.name, got, tt.want)
		}
	}
	lan.sh(t, "ip route del default; ip -6 route del default") // an answer proves the masquerade
	lan.sh(t, "ip route add 192.0.2.0/24 via 198.51.100.1; ip -6 route add 2001:db8::/64 via 2001:db8:1::1")
	c.pod.sh(t, "ping -c1 -W5 198.51.100.2; ping -c1 -W5 2001:db8:1::2")
	c.must(t, "CHECK")
	c.must(t, "DEL")
}

// tellClients listens on a TCP address, and tells each client its address.
func tellClients(t *testing.T, at string) error {
	server, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
			conn.Close()
		}
	}()
	return nil
}

// A pod's DHCP and LLMNR reach programs of the host that listen on every link, or on the pod's, with and
// without the check of sources: nothing is held there (docs/security.md).
func TestPodSpeaksToListenersOfTheHost(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	var calls []call
	send := map[string]func(to string, n int){}
	for _, id := range []string{"asks", "own"} {
		pod := newSpace(t)
		c := call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
		h.must(t, c)
		calls = append(calls, c)
		send[id] = func(to string, n int) {
			pod.run(t, func() error {
				d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
					cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth0") })
					return errors.Join(cerr, err)
				}}
				c, err := d.DialContext(context.Background(), "udp4", to)
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = fmt.Fprint(c, id, " ", n)
				return err
			})
		}
		if id == "asks" { // a client of DHCP: it sends from 0.0.0.0
			pod.sh(t, "ip addr del 10.99.0.1/32 dev eth0")
		}
	}
	var llmnr *net.UDPConn
	h.run(t, func() error {
		link, err := net.InterfaceByName(HostLink(ipam.Attachment{ContainerID: "own", IfName: "eth0"}))
		if err == nil {
			llmnr, err = net.ListenMulticastUDP("udp4", link, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 252)})
		}
		return err
	})
	defer llmnr.Close()
	port := func(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port }
	for _, check := range []*routes.SourceCheck{nil, {}} {
		h.checkSources(t, check)
		dhcp := h.hear(t, "0.0.0.0")
		heard(t, dhcp, func(n int) {
			send["asks"](fmt.Sprint("255.255.255.255:", port(dhcp)), n)
			send["own"](fmt.Sprint("255.255.255.255:", port(dhcp)), n)
		}, func(from []string) bool { return len(from) == 2 })
		heard(t, llmnr, func(n int) { send["own"](fmt.Sprint("224.0.0.252:", port(llmnr)), n) }, func(from []string) bool { return len(from) > 0 })
	}
	h.end(t, calls...)
}
