package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func addChecks() []check {
	return []check{
		{id: "add.interface", level: must, section: "2", asks: "ADD makes CNI_IFNAME inside CNI_NETNS", each: true, run: func(t *T) {
			p, _ := t.addPod()
			if p.link(p.ifName) == nil {
				t.Errorf("%s is not there", p.ifName)
			}
			if t.host.link(p.ifName) != nil {
				t.Errorf("%s is on the host", p.ifName)
			}
		}},
		{id: "add.interface-up", level: should, section: "2", asks: "the interface is up when ADD returns", run: func(t *T) {
			p, _ := t.addPod()
			if l := p.link(p.ifName); l == nil || l.Attrs().RawFlags&1 == 0 {
				t.Errorf("it is down")
			}
		}},
		{id: "add.connectivity", level: should, section: "2", asks: "\"ensure it has connectivity\": host and pod reach each other", run: func(t *T) {
			p := t.pod()
			t.connected(p, t.add(p))
		}},
		{id: "add.pod-to-pod", level: should, section: "overview", asks: "two pods of the network reach each other at their own addresses", run: func(t *T) {
			p, q := t.pod(), t.pod()
			rp, rq := t.add(p), t.add(q)
			for i, a := range rq.addrs() {
				source, err := reach(p.space, q.space, a)
				t.OK(err, "pod to pod")
				if i < len(rp.addrs()) && source != rp.addrs()[i] {
					t.Errorf("%s arrives as %s", rp.addrs()[i], source)
				}
			}
		}},
		{id: "add.masquerade", level: should, section: "1", asks: "with ipMasq a machine beyond the host, which has no route to the pod, answers the pod", needs: needMasq | needPrivate, run: func(t *T) {
			p := t.pod()
			for _, a := range t.add(p).addrs() {
				to, host := netip.MustParseAddr(otherIP), netip.MustParseAddr(hostIP)
				if a.Is6() {
					to, host = netip.MustParseAddr(otherIP6), netip.MustParseAddr(hostIP6)
				}
				source, err := reach(p.space, t.outside, to)
				if err != nil || source != host {
					t.Errorf("%s arrives as %v: %v", a, source, err)
				}
			}
		}},
		{id: "add.existing-interface", level: must, section: "2", asks: "ADD fails when the container has an interface of that name", run: func(t *T) {
			t.refuses(t.exec(t.takenPod().main("ADD", nil)), "ADD")
		}},
		{id: "add.existing-interface-kept", level: robust, section: "2", asks: "an ADD that fails because the interface's name is taken changes neither pod nor host", run: func(t *T) {
			before := t.quiet()
			p := t.takenPod()
			t.OK(p.script(addAddr(p.ifName, "203.0.113.5/24")), "add an address")
			t.unchanged(p, func() { t.exec(p.main("ADD", nil)) })
			t.nothingNew(before, "the refused ADD")
		}},
		{id: "add.two-containers", level: must, section: "2", asks: "two containers get different addresses", run: func(t *T) {
			t.distinct(t.add(t.pod()), t.add(t.pod()))
		}},
		{id: "add.two-interfaces", level: must, section: "2", asks: "one container has two interfaces; DEL of the second leaves the first", run: func(t *T) {
			p := t.pod()
			q := p.again("net1")
			rp, rq := t.add(p), t.add(q)
			t.distinct(rp, rq)
			t.connected(p, rp)
			t.del(q)
			if p.link("net1") != nil {
				t.Errorf("net1 is there after its DEL")
			}
			t.connected(p, rp)
			t.checks(p, "CHECK of the other")
			t.del(p)
		}},
		{id: "add.two-interfaces-first", level: must, section: "2", asks: "one container has two interfaces; DEL of the first leaves the second", run: func(t *T) {
			before := t.quiet()
			p := t.pod()
			q := p.again("net1")
			t.add(p)
			rq := t.add(q)
			t.del(p)
			for _, a := range rq.addrs() {
				if have, err := p.addrs("net1"); err != nil || !slices.ContainsFunc(have, func(x netip.Prefix) bool { return x.Addr() == a }) {
					t.Errorf("net1 has lost %s: %v %v", a, have, err)
				}
			}
			t.del(q)
			t.nothingNew(before, "DEL of both")
		}},
		{id: "add.ifname-15", level: must, section: "2", asks: "an interface name of 15 characters works", run: func(t *T) {
			p := t.pod()
			p.ifName = "abcdefghij-k_.5"
			r := t.add(p)
			if p.link(p.ifName) == nil {
				t.Errorf("it is not there")
			}
			t.connected(p, r)
			t.del(p)
		}},
		{id: "add.ifname", level: robust, section: "2", asks: "a '%' in the interface name is kept or refused, and never filled in by the kernel", run: func(t *T) {
			before := t.quiet()
			p := t.pod()
			p.ifName = "eth%d"
			r := t.tryAdd(p)
			if p.link("eth0") != nil {
				t.Errorf("ADD made eth0 (%s)", r.said())
			}
			if r.ok() {
				t.del(p)
			}
			t.nothingNew(before, "ADD of eth%d")
		}},
		{id: "add.no-prevresult-needed", level: must, section: "3", asks: "the first ADD of a chain works without prevResult", run: func(t *T) { t.add(t.pod()) }},
		{id: "add.duplicate", level: robust, section: "2", asks: "a second ADD of the same attachment does not harm the first", run: func(t *T) {
			p, r := t.addPod()
			t.refuses(t.exec(p.main("ADD", nil)), "the second ADD")
			t.connected(p, r)
			t.checks(p, "CHECK of the first")
		}},
		{id: "add.retry-new-netns", level: robust, section: "2", asks: "ADD of the same ID works in a new namespace when the old one is gone (a restart after a crash)", run: func(t *T) {
			p, _ := t.addPod()
			p.remove()
			q := t.pod()
			q.id = p.id
			// The kernel removes the host's end with the namespace, but in its own time.
			t.gone(p)
			r := t.add(q)
			t.connected(q, r)
			t.del(q)
		}},
		{id: "add.failed-rolls-back", level: robust, section: "2", asks: "an ADD that fails leaves nothing on the host and frees its address", needs: needRanges, run: func(t *T) {
			t.small(2)
			before := t.quiet()
			for range 4 {
				t.refuses(t.exec(t.takenPod().main("ADD", nil)), "ADD with a taken name")
			}
			t.nothingNew(before, "the failed ADD")
			t.room(2)
		}},
		{id: "add.others-untouched", level: must, section: "2", asks: "ADD of one pod leaves another as it is", run: func(t *T) {
			p, r := t.addPod()
			t.unchanged(p, func() { t.add(t.pod()) })
			t.connected(p, r)
		}},
		{id: "add.host-kept", level: robust, section: "2", asks: "ADD leaves the host's addresses, links and routes as they were", run: func(t *T) {
			before := t.snap()
			t.addPod()
			if lost := before.minus(t.snap()); len(lost) > 0 {
				t.Errorf("lost: %s", strings.Join(lost, ", "))
			}
		}},
		{id: "add.pod-kept", level: robust, section: "2", asks: "ADD and DEL leave the pod's other links as they were", run: func(t *T) {
			p := t.pod()
			t.OK(p.veth("net9", "peer9"), "make a link in the pod")
			t.OK(p.script(addAddr("net9", "203.0.113.5/24")), "add an address")
			before, err := p.look()
			t.OK(err, "look at the pod")
			t.add(p)
			t.del(p)
			now, err := p.look()
			t.OK(err, "look at the pod")
			if diff := before.minus(now); len(diff) > 0 {
				t.Errorf("lost: %s", strings.Join(diff, ", "))
			}
		}},
		{id: "add.ipv6-disabled", level: robust, section: "2", asks: "IPv6 works in a namespace whose default is disable_ipv6=1", run: func(t *T) {
			p := t.pod()
			for _, k := range []string{"all", "default"} {
				t.OK(p.Sysctl("net/ipv6/conf/"+k+"/disable_ipv6", "1"), "sysctl")
			}
			r := t.add(p)
			if !slices.ContainsFunc(r.addrs(), netip.Addr.Is6) {
				t.Skipf("the network has no IPv6")
			}
			t.connected(p, r)
		}},
		{id: "add.strict-sysctls", level: robust, section: "2", asks: "ADD works on a host with strict reverse path filter and ARP settings", needs: needFresh, run: func(t *T) {
			for k, v := range map[string]string{"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/default/rp_filter": "1",
				"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2", "net/ipv6/conf/all/accept_ra": "0"} {
				t.OK(t.host.Sysctl(k, v), "sysctl")
			}
			p := t.pod()
			t.connected(p, t.add(p))
		}},
		{id: "ips.capability", level: should, section: "CONV", asks: "runtimeConfig.ips is honoured where the configuration declares it", needs: needRanges, run: func(t *T) {
			if !t.net.capable("ips") {
				t.Skipf("the configuration declares no capability ips")
			}
			t.asksFor(func(p *pod, want string) object { return object{"runtimeConfig": object{"ips": []string{want}}} })
		}},
		{id: "ips.args", level: should, section: "CONV", asks: "args.cni.ips is honoured", needs: needRanges, run: func(t *T) {
			t.asksFor(func(p *pod, want string) object {
				return object{"args": object{"cni": object{"ips": []string{want}}}}
			})
		}},
		{id: "ips.cni-args", level: should, section: "CONV", asks: "IP in CNI_ARGS is honoured", needs: needRanges, run: func(t *T) {
			t.asksFor(func(p *pod, want string) object {
				p.args = "IgnoreUnknown=1;IP=" + want
				return nil
			})
		}},
		{id: "ips.args-before-cni-args", level: should, section: "CONV", asks: "args.cni.ips takes precedence over IP in CNI_ARGS", needs: needRanges, run: func(t *T) {
			t.asksFor(func(p *pod, want string) object {
				other := offset(netip.MustParsePrefix(want).Addr(), 1)
				p.args = "IgnoreUnknown=1;IP=" + other.String()
				return object{"args": object{"cni": object{"ips": []string{want}}}}
			})
		}},
		{id: "mac.capability", level: should, section: "CONV", asks: "runtimeConfig.mac is honoured where the configuration declares it", run: func(t *T) {
			if !t.net.capable("mac") {
				t.Skipf("the configuration declares no capability mac")
			}
			const mac = "c2:11:22:33:44:55"
			p := t.pod()
			t.addWith(p, object{"runtimeConfig": object{"mac": mac}})
			if l := p.link(p.ifName); l == nil || l.Attrs().HardwareAddr.String() != mac {
				t.Errorf("the interface has another")
			}
		}},
	}
}

// asksFor requests an address of the first family and fails if the pod gets another address.
func (t *T) asksFor(ask func(p *pod, want string) object) {
	t.small(6)
	s := t.net.subnets()[0]
	ranges := t.net.plugins[0]["ipam"].(object)["ranges"].([]any)[0].([]any)[0].(object)
	want := netip.PrefixFrom(offset(netip.MustParseAddr(ranges["rangeStart"].(string)), 3), s.Bits())
	if len(t.net.subnets()) > 1 { // one family, so that the other set needs no request
		t.net = t.net.withIPAM("ranges", t.net.plugins[0]["ipam"].(object)["ranges"].([]any)[:1])
	}
	p := t.pod()
	r := t.addWith(p, ask(p, want.String()))
	if len(r.addrs()) != 1 || r.addrs()[0] != want.Addr() {
		t.Errorf("asked for %s, got %v", want.Addr(), r.addrs())
	}
}

// room fails unless exactly n more pods get addresses. It deletes all of these pods.
func (t *T) room(n int) {
	var made []*pod
	for i := range n + 1 {
		p := t.pod()
		r := t.tryAdd(p)
		switch {
		case r.ok() && i == n:
			t.Errorf("a pool of %d gives one more", n)
			made = append(made, p)
		case r.ok():
			made = append(made, p)
		case i < n:
			t.Errorf("only %d of %d addresses are free: %s", i, n, r.said())
		}
		if !r.ok() {
			t.tryDel(p)
			break
		}
	}
	for _, p := range made {
		t.del(p)
	}
}

// tryRoom is room if trySmall made the pool small.
func (t *T) tryRoom(n int) {
	if t.net.hasRanges() {
		t.room(n)
	}
}

// gone waits until the host's end of a removed pod has disappeared.
func (t *T) gone(p *pod) {
	res := p.result()
	_ = lab.Wait(context.Background(), reachPatience, func() error { // bridges stay
		for _, name := range res.hostLinks() {
			if l := t.host.link(name); l != nil && l.Type() == "veth" {
				return netlink.LinkNotFoundError{}
			}
		}
		return nil
	})
}
