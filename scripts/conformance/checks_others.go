package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// otherChecks are about the neighbours of a plugin on its host: pods that nobody trusts, links and addresses of
// users and of other agents, networks with another state directory, and helpers that hang.
func otherChecks() []check {
	return slices.Concat(podChecks(), occupiedChecks(), otherStateChecks(), foreignLinkChecks(), hangChecks())
}

// What the router advertisement of a pod offers.
const (
	rogueRouter = "fe80::bad"
	rogueNet    = "2001:db8:bad::"
)

func podChecks() []check {
	return []check{
		{id: "pod.router-advertisement", level: robust, section: "-", asks: "a pod's router advertisement changes nothing on a host with the kernel's defaults (accept_ra=1, no IPv6 forwarding)", needs: needPrivate, run: func(t *T) {
			if t.net.hasRanges() {
				t.net = t.net.ipv4Only() // IPv6 would make the host forward, and a host that forwards ignores the advertisement
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

// advertised sends router advertisements from a pod, and from a link in another namespace whose kernel
// takes them. Once that kernel has taken one, the host has seen one as well.
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

// rogueLines are the default route and the address that come from the advertisement.
func rogueLines(s snapshot) []string {
	return slices.DeleteFunc(s.minus(nil), func(line string) bool {
		return !strings.HasPrefix(line, "addr "+rogueNet[:len(rogueNet)-1]) && !strings.HasPrefix(line, "route default via "+rogueRouter)
	})
}

// advertise sends a router advertisement (RFC 4861 section 4.2) with a prefix for addresses out of a link.
func (s *space) advertise(link string) error {
	l, err := s.nl.LinkByName(link)
	if err != nil {
		return err
	}
	from, to := netip.MustParseAddr(rogueRouter), netip.MustParseAddr("ff02::1")
	body := slices.Concat(
		[]byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0},        // a default router for 1800 s
		[]byte{3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0}, // a prefix: on the link, for addresses, for a day
		netip.MustParseAddr(rogueNet).AsSlice())
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6}) // RFC 8200 section 8.1
	binary.BigEndian.PutUint16(body[2:], checksum(slices.Concat(pseudo, body)))
	frame := slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, l.Attrs().HardwareAddr, []byte{0x86, 0xdd},
		[]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}, from.AsSlice(), to.AsSlice(), body)
	return s.send(unix.AF_PACKET, 0, frame, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}

// redirect sends the host a redirect (RFC 792) in the name of its router: dst is to be reached via another one.
func (s *space) redirect(dst netip.Addr, via string) error {
	from, to := netip.MustParseAddr(otherIP), netip.MustParseAddr(hostIP)
	body := slices.Concat([]byte{5, 1, 0, 0}, netip.MustParseAddr(via).AsSlice(), ipv4Header(to, dst, 8), make([]byte, 8))
	binary.BigEndian.PutUint16(body[2:], checksum(body))
	return s.send(unix.AF_INET, unix.IPPROTO_RAW, append(ipv4Header(from, to, len(body)), body...), &unix.SockaddrInet4{Addr: to.As4()})
}

// ipv4Header is a header of an ICMP packet (RFC 791 section 3.1).
func ipv4Header(from, to netip.Addr, payload int) []byte {
	h := slices.Concat([]byte{0x45, 0, 0, byte(20 + payload), 0, 0, 0, 0, 64, unix.IPPROTO_ICMP, 0, 0}, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// send sends a packet, headers and all, out of the namespace.
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

// occupied is a network some of whose addresses lead elsewhere on the host. occupy makes one of them do so.
func occupied(id, asks string, occupy func(prefix string) step) check {
	return check{id: id, level: robust, section: "2", asks: asks, needs: needRanges | needPrivate, run: func(t *T) {
		const size, taken = 6, 3
		t.small(size)
		before := t.quiet()
		t.OK(t.host.veth(foreignLink, foreignLink+"p"), "make a link")
		free := func() { _ = t.host.deleteLink(foreignLink) } // it may be gone
		t.Cleanup(free)
		for _, first := range t.net.firsts() {
			for i := range taken {
				a := offset(first, i)
				t.OK(t.host.script(occupy(netip.PrefixFrom(a, a.BitLen()).String())), "occupy an address")
			}
		}
		full := t.snap()
		var p *pod
		var r reply
		for i := 0; i <= taken && (p == nil || !r.ok()); i++ { // as the kubelet does: the pod's next container
			p = t.pod()
			p.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=e60bc00e-1111-2222-3333-444444444444"
			if r = t.tryAdd(p); !r.ok() {
				t.clean(r, "ADD")
				t.wants(t.tryDel(p), "DEL")
			}
		}
		if !r.ok() {
			t.Fatalf("the pod never starts: %s", r.said())
		}
		res := p.result()
		t.connected(p, res)
		t.del(p)
		if lost := full.minus(t.snap()); len(lost) > 0 {
			t.Errorf("the host has lost: %s", strings.Join(lost, ", "))
		}
		free()
		t.nothingNew(before, "all of it")
		t.room(size)
	}}
}

// foreignLink is a link of a user or of another agent.
const foreignLink = "user0"

func occupiedChecks() []check {
	return []check{
		occupied("pool.foreign-route", "a pod starts, after a few new containers at most, although the host routes some of the pool's addresses elsewhere", func(prefix string) step {
			return addRoute(foreignLink, prefix, "")
		}),
		occupied("pool.foreign-address", "a pod starts, after a few new containers at most, although the host itself has some of the pool's addresses", func(prefix string) step {
			return addAddr(foreignLink, prefix)
		}),
	}
}

// beside is a second network of the same plugins that keeps its state in another directory.
func (t *T) beside() network {
	dir := filepath.Join(t.dir, "state-of-another")
	t.OK(os.Mkdir(dir, 0o755), "make a state directory")
	n, err := t.network(t.net.name+"-beside", dir)
	t.OK(err, "read the configuration")
	n.version = t.net.version
	return n
}

func otherStateChecks() []check {
	return []check{
		{id: "gc.other-state", level: robust, section: "2", asks: "GC of a network leaves the attachments of a network with another state directory alone", since: sinceGC, needs: needRanges | needState, run: func(t *T) {
			one, other := t.net.small(1, t.seq), t.beside().small(1, t.seq+1)
			t.net = one
			p := t.pod()
			r := t.add(p)
			t.net = other
			q := t.pod()
			t.add(q)
			t.wants(t.gc(q), "GC of the other network")
			t.del(q)
			t.wants(t.gc(), "GC of the other network without a pod")
			t.net = one
			t.connected(p, r)
			t.wants(t.check(p), "CHECK")
			t.refuses(t.tryAdd(t.pod()), "ADD while the only address is in use")
		}},
		{id: "state.other-no-duplicate", level: robust, section: "2", asks: "ADD never gives an address that a running pod has from a network with another state directory", needs: needRanges | needState, run: func(t *T) {
			one, other := t.net.small(4, t.seq), t.beside().small(4, t.seq)
			t.net = one
			p := t.pod()
			r := t.add(p)
			t.net = other
			t.duplicate(r)
			t.connected(p, r)
			t.net = one
		}},
	}
}

// lookalikes makes links of a user whose names resemble those of the pod's links on the host, and
// returns a function that says which have been deleted.
func (t *T) lookalikes(p *pod) (lost func() []string) {
	names := t.hostEnds(p)
	made := map[string]int{}
	n := 0
	make := func(l netlink.Link, name string) {
		if t.host.link(name) != nil {
			return
		}
		l.Attrs().Name = name
		t.OK(t.host.nl.LinkAdd(l), "make "+name)
		made[name] = t.host.link(name).Attrs().Index
		t.Cleanup(func() { _ = t.host.deleteLink(name) }) // the plugin may have deleted it
	}
	veth := func(name string) {
		n++
		make(&netlink.Veth{PeerName: fmt.Sprintf("user-peer%d", n)}, name)
	}
	for _, name := range names {
		start, last := name[:min(2, len(name))], "0"
		if strings.HasSuffix(name, last) {
			last = "1"
		}
		make(&netlink.Bridge{}, start+"-bridge02")
		make(&netlink.Bridge{}, start+"an-bridge02")
		veth(start + "-backup01")
		veth(start + "an-backup01")
		veth(name[:len(name)-1] + last)
	}
	return func() (out []string) {
		for _, name := range names { // a name that is free again is anyone's
			if t.host.link(name) == nil {
				make(&netlink.Bridge{}, name)
			}
		}
		for name, index := range made {
			if l := t.host.link(name); l == nil || l.Attrs().Index != index {
				out = append(out, name)
			}
		}
		slices.Sort(out)
		return out
	}
}

// foreignLinks deletes a pod amid a user's links with much the same names, and repeats it when the
// user has a bridge under the very name that the pod's link had.
func foreignLinks(id, asks, since string, end func(t *T, p *pod) reply) check {
	return check{id: id, level: robust, section: "2", asks: asks, since: since, run: func(t *T) {
		p := t.pod()
		t.add(p)
		lost := t.lookalikes(p)
		for _, when := range []string{"the first time", "the second time"} {
			t.wants(end(t, p), when)
			t.gone(p)
			if names := lost(); len(names) > 0 {
				t.Errorf("%s deletes %s of a user", when, strings.Join(names, ", "))
			}
		}
		if names := lost(); len(names) > 0 {
			t.Errorf("deleted: %s", strings.Join(names, ", "))
		}
	}}
}

func foreignLinkChecks() []check {
	return []check{
		foreignLinks("del.foreign-links", "DEL leaves a user's bridges and veths alone, whatever their names", "", func(t *T, p *pod) reply { return t.tryDel(p) }),
		foreignLinks("gc.foreign-links", "GC leaves a user's bridges and veths alone, whatever their names", sinceGC, func(t *T, p *pod) reply {
			p.remove()
			return t.gc()
		}),
	}
}

const (
	// verbPatience is the kubelet's for one call of the runtime (runtimeRequestTimeout).
	verbPatience = 2 * time.Minute
	// statusPatience is how long a runtime may be silent before the kubelet takes the node for not ready.
	statusPatience = 30 * time.Second
)

// hung runs every command at the same time while a helper of the plugin hangs: ADD of a fresh pod, the others
// of an attached one. It returns the fresh pod.
func (t *T) hung(attached *pod) (fresh *pod, replies map[string]reply) {
	fresh = t.pod()
	commands := []string{"ADD", "DEL"}
	if !before(t.net.version, sinceCheck) {
		commands = append(commands, "CHECK")
	}
	if !before(t.net.version, sinceGC) {
		commands = append(commands, "GC", "STATUS")
	}
	pods, command := make([]*pod, len(commands)), map[*pod]string{}
	for i, c := range commands {
		p := *attached
		if c == "ADD" {
			p = *fresh
		}
		pods[i], command[&p] = &p, c
	}
	replies = map[string]reply{}
	for i, r := range t.atOnce(pods, func(t *T, p *pod) reply {
		c := p.main(command[p], p.withPrev())
		c.limit = verbPatience
		switch command[p] {
		case "STATUS":
			c.env, c.stdin, c.limit = t.netEnv("STATUS"), t.net.request(0, nil), statusPatience
		case "GC":
			c.env, c.stdin = t.netEnv("GC"), t.net.request(0, object{"cni.dev/valid-attachments": []object{attached.valid()}})
		}
		return t.exec(c)
	}) {
		replies[commands[i]] = r
		if r.status == -1 {
			t.Errorf("%s has not ended after %v", commands[i], r.took.Round(time.Second))
		} else {
			t.clean(r, commands[i])
		}
	}
	return fresh, replies
}

func hangChecks() []check {
	return []check{
		delegated("delegate.hangs", "when the IPAM plugin never answers, STATUS fails within 30 s and the other commands within two minutes; once it answers again, DEL leaves nothing", robust, "", nil, func(t *T) {
			before := t.snap()
			p := t.pod()
			t.add(p)
			works := t.net
			t.net = t.delegating(object{"hang": true})
			fresh, replies := t.hung(p)
			for command, r := range replies {
				t.refuses(r, command)
			}
			t.net = works
			for _, p := range []*pod{fresh, p} {
				t.wants(t.tryDel(p), "DEL")
				t.noInterface(p)
			}
			t.noNewVeth(before)
		}),
		{alone: true, id: "daemon.hangs", level: robust, section: "-", asks: "when the plugin's daemon never answers, STATUS fails within 30 s and the other commands end within two minutes; once it answers again, DEL leaves nothing", needs: needDaemon, run: func(t *T) {
			before := t.quiet()
			p := t.pod()
			t.add(p)
			group := -t.daemon.PID()
			t.Cleanup(func() { _ = unix.Kill(group, unix.SIGCONT) }) // it may have ended
			t.OK(unix.Kill(group, unix.SIGSTOP), "stop the daemon")
			fresh, replies := t.hung(p)
			t.OK(unix.Kill(group, unix.SIGCONT), "let the daemon go on")
			if r, ok := replies["STATUS"]; ok {
				t.refuses(r, "STATUS", 50, 51)
				t.OK(lab.Wait(context.Background(), daemonPatience, func() error {
					if r := t.status(); !r.ok() {
						return errors.New(r.said())
					}
					return nil
				}), "STATUS of the daemon that goes on")
			}
			for _, p := range []*pod{fresh, p} {
				t.wants(t.tryDel(p), "DEL")
				t.noInterface(p)
			}
			t.nothingNew(before, "all of it")
		}},
	}
}
