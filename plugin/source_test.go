package plugin

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"
)

// listen has the pod answer each TCP connection, as a probe makes it, with the address that it sees.
func (s *space) listen(t *testing.T, port string) {
	t.Helper()
	var l net.Listener
	s.run(t, func() (err error) {
		l, err = net.Listen("tcp", ":"+port)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			seen, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(strings.TrimPrefix(seen, "::ffff:") + "\n"))
			c.Close()
		}
	}()
}

// seen is the address from which the host reaches the pod's port.
func (h *host) seen(t *testing.T, pod, port string) (from string) {
	t.Helper()
	h.run(t, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(pod, port), 2*time.Second)
		if err != nil {
			from = err.Error()
			return nil
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		from, _ = bufio.NewReader(c).ReadString('\n')
		from = strings.TrimSpace(from)
		return nil
	})
	return from
}

// A host whose link got no address, or lost it in an outage, sent to its pods from 0.0.0.0: no probe of
// the kubelet was answered. The address comes and goes in any order.
func TestProbesFailWithoutAHostAddress(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	h.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1")
	pods := map[string]string{} // address to port
	start := func(id, addr string) call {
		pod := newSpace(t)
		c := call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
		added := string(c.do(t, n).Output)
		if got := parseResult(t, added).addrs(); got[0] != addr {
			t.Fatalf("pod %s has %v", id, got)
		}
		pod.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
		pod.listen(t, "80")
		pods[addr] = "80"
		check := c
		check.verb, check.conf = "CHECK", with(c.conf, "prevResult", added)
		return check
	}
	reach := func(from string) {
		t.Helper()
		for pod, port := range pods {
			if got := h.seen(t, pod, port); got != from {
				t.Errorf("pod %s was reached from %q, want %s", pod, got, from)
			}
			if out, err := h.try(t, "ping -c1 -W2 "+pod); err != nil {
				t.Errorf("ping %s: %s", pod, out)
			}
		}
	}
	const node, gateway = "192.0.2.1", "169.254.1.1"
	checks := []call{start("c1", "10.99.0.1")}
	reach(node)

	h.sh(t, "ip -4 addr flush dev up0")
	audited(t, n.KeepHosts)
	reach(gateway)
	checks = append(checks, start("c2", "10.99.0.2")) // a pod that starts in the outage
	reach(gateway)
	h.sh(t, "ip link set up0 down")
	if found := audited(t, n.Keep); len(found) > 0 {
		t.Errorf("a second look found %+v", found)
	}
	reach(gateway)
	for _, c := range checks {
		c.does(t, n)
	}

	h.sh(t, "ip link set up0 up; ip addr add 192.0.2.1/24 dev up0")
	for _, c := range checks {
		c.does(t, n) // before anything is corrected
	}
	audited(t, n.KeepHosts)
	reach(node)

	// As version 0.1 wired the second pod, in an outage, without IPv6.
	h.sh(t, "ip -4 addr flush dev up0; ip -6 addr flush dev up0; ip route replace 10.99.0.2 dev "+HostLink(attachmentOf(checks[1]))+" proto 101")
	if got := h.seen(t, "10.99.0.2", "80"); got == gateway {
		t.Error("the fault is not there")
	}
	audited(t, n.KeepHosts)
	reach(gateway)
	if out, err := h.try(t, "ping -c1 -W2 fd00:99::1"); err != nil {
		t.Errorf("ping without an IPv6 address: %s", out)
	}
	h.endAll(t, n, "c1", "c2")
}

// kube-proxy in mode iptables and the portmap plugin set route_localnet. From the next change of any address of the
// node on, each pod saw 169.254.1.1 in place of its node; a pod that came later saw it at once.
func TestPodSees169InPlaceOfItsNode(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	start := func(id string) (addr string) {
		pod := newSpace(t)
		added := string(call{verb: "ADD", id: id, ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}.do(t, n).Output)
		pod.listen(t, "80")
		return parseResult(t, added).addrs()[0]
	}
	pods := []string{start("c1")}
	h.sh(t, "sysctl -qw net.ipv4.conf.all.route_localnet=1")
	pods = append(pods, start("c2"))
	for _, change := range []string{"true", "ip addr add 192.0.2.7/32 dev up0", "ip addr del 192.0.2.7/32 dev up0"} {
		h.sh(t, change)
		for _, pod := range pods {
			if got := h.seen(t, pod, "80"); got != "192.0.2.1" {
				t.Errorf("after %s pod %s was reached from %q, want the node's address", change, pod, got)
			}
		}
	}
	h.endAll(t, n, "c1", "c2")
}
