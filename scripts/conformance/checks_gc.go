package main

import "fmt"

const sinceGC = "1.1.0"

// collects is a check of GC with a full pool of two addresses: keep must survive, and drop's address must
// be free.
func collects(id, asks string, l level, valid func(t *T, keep, drop *pod) reply) check {
	return check{id: id, level: l, section: "2", asks: asks, since: sinceGC, needs: needRanges, run: func(t *T) {
		t.small(2)
		keep, drop := t.pod(), t.pod()
		r := t.add(keep)
		t.add(drop)
		drop.remove()
		t.gone(drop)
		t.wants(valid(t, keep, drop), "GC")
		p := t.pod()
		if r := t.tryAdd(p); !r.ok() {
			t.Errorf("the stale address is not free: %s", r.said())
		}
		t.connected(keep, r)
		t.wants(t.check(keep), "CHECK of the valid attachment")
	}}
}

// freesNothing is a check of a GC that must free nothing.
func freesNothing(id, asks string, l level, gc func(t *T, p *pod)) check {
	return check{id: id, level: l, section: "2", asks: asks, since: sinceGC, run: func(t *T) {
		t.trySmall(1)
		p, r := t.addPod()
		before := t.snap()
		gc(t, p)
		if lost := before.minus(t.snap()); len(lost) > 0 {
			t.Errorf("lost: %v", lost)
		}
		t.wants(t.check(p), "CHECK")
		t.connected(p, r)
		if t.net.hasRanges() {
			if r := t.tryAdd(t.pod()); r.ok() {
				t.Errorf("its reservation is gone")
			}
		}
	}}
}

func gcChecks() []check {
	return []check{
		{id: "gc.succeeds", level: must, section: "2", asks: "GC succeeds, without output, with no variable but CNI_COMMAND and CNI_PATH", since: sinceGC, run: func(t *T) {
			p, _ := t.addPod()
			r := t.gc(p)
			t.wants(r, "GC")
			if r.ok() && len(r.stdout) > 0 {
				t.Errorf("prints %.200q", r.stdout)
			}
		}},
		{id: "gc.nothing-there", level: should, section: "2", asks: "GC on a host without attachments succeeds", since: sinceGC, run: func(t *T) {
			t.wants(t.gc(), "GC")
		}},
		freesNothing("gc.valid-kept", "GC keeps the attachments in the list", must, func(t *T, p *pod) {
			t.wants(t.gc(p), "GC")
			t.wants(t.gc(p), "the second GC")
		}),
		collects("gc.stale-freed", "GC frees the address of an attachment that is not in the list", should, func(t *T, keep, drop *pod) reply {
			return t.gc(keep)
		}),
		{id: "gc.by-ifname", level: should, section: "2", asks: "GC tells apart one container's attachments by interface name", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(2)
			p := t.pod()
			q := p.again("net1")
			r := t.add(p)
			t.add(q)
			t.OK(p.deleteLink("net1"), "delete net1")
			t.wants(t.gc(p), "GC")
			if r := t.tryAdd(t.pod()); !r.ok() {
				t.Errorf("the address of net1 is not free: %s", r.said())
			}
			t.connected(p, r)
			t.wants(t.check(p), "CHECK of eth0")
		}},
		{id: "gc.empty-list", level: should, section: "2", asks: "GC with an empty list frees all addresses", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(2)
			for range 2 {
				p, _ := t.addPod()
				p.remove()
				t.gone(p)
			}
			t.wants(t.gc(), "GC")
			t.room(2)
		}},
		{id: "gc.host-side", level: should, section: "2", asks: "GC removes the links, routes and rules of a stale attachment from the host", since: sinceGC, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			p.remove()
			t.gone(p)
			t.wants(t.gc(), "GC")
			t.nothingNew(before, "GC")
		}},
		{id: "gc.masquerade", level: should, section: "2", asks: "GC removes the firewall rules of a stale attachment", since: sinceGC, needs: needMasq, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			if len(t.snap().rules()) == 0 {
				t.Skipf("ADD makes no rules that are seen here")
			}
			p.remove()
			t.gone(p)
			t.wants(t.gc(), "GC")
			t.noNewRules(before, "GC")
		}},
		freesNothing("gc.no-list", "GC without a list frees nothing", robust, func(t *T, p *pod) {
			t.gcWith(nil) // GC may also fail
		}),
		freesNothing("gc.bad-list", "GC with an invalid list is refused and frees nothing", robust, func(t *T, p *pod) {
			for _, list := range []any{"x", 5, object{"containerID": p.id}, []string{"x"}, []object{{"containerID": p.id}}} {
				t.refuses(t.gcWith(object{"cni.dev/valid-attachments": list}), fmt.Sprintf("GC with %v", list))
			}
		}),
		freesNothing("gc.other-network", "GC leaves the attachments of another network alone", must, func(t *T, p *pod) {
			old := t.net
			t.net.name += "-other"
			t.wants(t.gc(), "GC of the other network")
			t.net = old
		}),
		freesNothing("gc.valid-netns-gone", "GC keeps an attachment in the list although its namespace is gone", robust, func(t *T, p *pod) {
			netns := p.netns
			p.netns = ""
			t.wants(t.gc(p), "GC")
			p.netns = netns
		}),
		freesNothing("gc.many", "GC with a list of 5000 attachments works", robust, func(t *T, p *pod) {
			list := []object{p.valid()}
			for i := range 5000 {
				list = append(list, object{"containerID": fmt.Sprintf("64dfdb433c1f938a8f7b8757cae02325dca94803231bb3a51a8b593f56d%05d", i), "ifname": "eth0"})
			}
			t.wants(t.gcWith(object{"cni.dev/valid-attachments": list}), "GC")
		}),
		freesNothing("gc.unknown-in-list", "GC ignores an attachment in the list that never existed", robust, func(t *T, p *pod) {
			t.wants(t.gc(p, &pod{id: "never-was", ifName: "eth0"}), "GC")
		}),
		collects("gc.old-key", "GC reads the list under its older name, cni.dev/attachments", robust, func(t *T, keep, drop *pod) reply {
			return t.gcWith(object{"cni.dev/attachments": []object{keep.valid()}})
		}),
		collects("gc.both-keys", "GC reads the list under both names, as libcni sends it", robust, func(t *T, keep, drop *pod) reply {
			list := []object{keep.valid()}
			return t.gcWith(object{"cni.dev/valid-attachments": list, "cni.dev/attachments": list})
		}),
		collects("gc.after-garbage", "GC frees the address that a failed DEL left", should, func(t *T, keep, drop *pod) reply {
			t.each(drop, "DEL", drop.env("DEL"), object{"prevResult": "garbage"})
			return t.gc(keep)
		}),
		{id: "gc.then-del", level: must, section: "2,3", asks: "DEL after GC succeeds", since: sinceGC, run: func(t *T) {
			p, _ := t.addPod()
			t.wants(t.gc(), "GC")
			t.del(p)
		}},
		{id: "gc.no-path", level: robust, section: "2", asks: "GC without CNI_PATH works where nothing is delegated", since: sinceGC, run: func(t *T) {
			if len(t.net.types()) > len(t.net.plugins) {
				t.Skipf("the plugin delegates")
			}
			e := t.netEnv("GC")
			delete(e, "CNI_PATH")
			t.wants(t.each(nil, "GC", e, onlyValid()), "GC")
		}},
	}
}

func statusChecks() []check {
	return []check{
		{id: "status.ready", level: must, section: "2", asks: "STATUS succeeds when ADD would", since: sinceGC, run: func(t *T) {
			t.wants(t.status(), "STATUS before any ADD")
			p, _ := t.addPod()
			t.wants(t.status(), "STATUS with a pod")
			t.del(p)
			t.wants(t.status(), "STATUS after its DEL")
		}},
		{id: "status.no-output", level: robust, section: "2", asks: "STATUS prints nothing when it succeeds", since: sinceGC, run: func(t *T) {
			if r := t.status(); r.ok() && len(r.stdout) > 0 {
				t.Errorf("%.200q", r.stdout)
			}
		}},
		{id: "status.bare-environment", level: must, section: "2", asks: "STATUS needs no variable but CNI_COMMAND, and accepts empty ones (containerd)", since: sinceGC, run: func(t *T) {
			e := t.netEnv("STATUS")
			if len(t.net.types()) == len(t.net.plugins) {
				delete(e, "CNI_PATH") // needed only to find an IPAM plugin
			}
			t.wants(t.each(nil, "STATUS", e, nil), "STATUS")
			e = t.netEnv("STATUS")
			for _, k := range []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"} {
				e[k] = ""
			}
			t.wants(t.each(nil, "STATUS", e, nil), "STATUS with empty variables")
		}},
		{id: "status.no-effect", level: robust, section: "2", asks: "STATUS changes nothing on the host and takes no address", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(1)
			before := t.snap()
			for range 3 {
				t.wants(t.status(), "STATUS")
			}
			t.sameAs(before, "STATUS")
			t.room(1)
		}},
		{id: "status.exhausted", level: robust, section: "2", asks: "STATUS succeeds when no address is left: the kubelet evicts the running pods of a node that is not ready", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(1)
			t.addPod()
			t.wants(t.status(), "STATUS of a full pool")
		}},
		{id: "status.error-shape", level: should, section: "2,5", asks: "an error of STATUS is on standard output, with code 50 or 51", since: sinceGC, run: func(t *T) {
			t.net = t.net.withIPAM("type", "no-such-plugin")
			r := t.status()
			if r.ok() {
				t.Skipf("STATUS accepts an ipam.type that is not installed: see status.ipam-missing")
			}
			t.refuses(r, "STATUS", 50, 51)
		}},
		{id: "status.limited", level: robust, section: "5", asks: "STATUS fails with code 51 while the host does not forward, so that running pods are cut off", since: sinceGC, needs: needFresh, run: func(t *T) {
			t.addPod()
			t.OK(t.host.Sysctl("net/ipv4/ip_forward", "0"), "sysctl")
			t.refuses(t.status(), "STATUS", 51)
			t.OK(t.host.Sysctl("net/ipv4/ip_forward", "1"), "sysctl")
			t.wants(t.status(), "STATUS after that")
		}},
		{id: "status.ipam-missing", level: should, section: "2", asks: "STATUS fails when the IPAM plugin is not installed", since: sinceGC, run: func(t *T) {
			t.net = t.net.withIPAM("type", "no-such-plugin")
			t.refuses(t.status(), "STATUS")
		}},
		{id: "status.add-all-the-same", level: must, section: "2", asks: "CHECK and DEL work when no address is left, and so does the next ADD", since: sinceGC, needs: needRanges, run: func(t *T) {
			t.small(1)
			p, _ := t.addPod()
			t.status()
			t.wants(t.check(p), "CHECK")
			t.del(p)
			t.add(p)
		}},
		{alone: true, id: "status.quick", level: robust, section: "2", asks: "STATUS takes less than a second: the kubelet asks every five seconds", since: sinceGC, run: func(t *T) {
			if r := t.status(); r.took.Seconds() > 1 {
				t.Errorf("took %v", r.took)
			}
		}},
	}
}
