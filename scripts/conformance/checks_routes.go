package main

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routed is a check of one route in ipam.routes, in host-local's syntax with the keys of the result's
// routes. It reads the route from the pod's kernel.
func routed(id, asks string, l level, since string, route object, judge func(t *T, p *pod, r result, have netlink.Route)) check {
	return check{id: id, level: l, section: "5", asks: asks, since: since, needs: needRanges, run: func(t *T) {
		dst := netip.MustParsePrefix(route["dst"].(string))
		if !t.family(dst.Addr().Is6()) {
			t.Skipf("the network does not have the family of %s", dst)
		}
		all := []object{route}
		for _, d := range []string{"0.0.0.0/0", "::/0"} {
			if t.family(d == "::/0") {
				all = append(all, object{"dst": d})
			}
		}
		t.net = t.net.withIPAM("routes", all)
		p, r := t.addPod()
		var table *int
		if n, ok := route["table"].(int); ok {
			table = &n
		}
		have, err := p.route(dst, table)
		t.OK(err, "look for the route")
		judge(t, p, r, have)
		t.checks(p, "CHECK")
		t.del(p)
	}}
}

func (t *T) family(v6 bool) bool {
	for _, s := range t.net.subnets() {
		if s.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

func routeChecks() []check {
	none := func(*T, *pod, result, netlink.Route) {}
	return []check{
		routed("routes.plain", "a route of the configuration is in the pod and in the result", should, "", object{"dst": "203.0.113.0/24"}, func(t *T, p *pod, r result, _ netlink.Route) {
			for _, x := range r.Routes {
				if x.Dst.String() == "203.0.113.0/24" {
					return
				}
			}
			t.Errorf("not in the result: %s", p.prev)
		}),
		routed("routes.v6", "an IPv6 route of the configuration is in the pod", should, "", object{"dst": "2001:db8:7::/48"}, none),
		routed("routes.mtu-advmss-priority", "mtu, advmss and priority of a route are in the kernel", should, "1.1.0",
			object{"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200, "priority": 77}, func(t *T, p *pod, r result, have netlink.Route) {
				if have.MTU != 1300 || have.AdvMSS != 1200 || have.Priority != 77 {
					t.Errorf("mtu %d, advmss %d, priority %d", have.MTU, have.AdvMSS, have.Priority)
				}
			}),
		routed("routes.table", "a route is in the table that it names, and CHECK finds it there", should, "1.1.0", object{"dst": "203.0.113.0/24", "table": 177}, none),
		routed("routes.scope-link", "a route of scope link (253) has no gateway", should, "1.1.0", object{"dst": "203.0.113.0/24", "scope": 253}, func(t *T, p *pod, r result, have netlink.Route) {
			if have.Scope != unix.RT_SCOPE_LINK || have.Gw != nil {
				t.Errorf("scope %v via %v", have.Scope, have.Gw)
			}
		}),
		{id: "routes.bad-field", level: should, section: "5", asks: "an invalid route is code 6 or 7", needs: needRanges, run: func(t *T) {
			for _, route := range []object{{"dst": "nonsense"}, {"dst": "203.0.113.0/24", "gw": "nonsense"}, {"dst": "203.0.113.0/99"}} {
				t.refusesConf("a route", t.net.withIPAM("routes", []object{route}), 6, 7)
			}
		}},
		{id: "routes.gateway-outside", level: robust, section: "5", asks: "ADD with a route via an unreachable address fails and leaves nothing, or works", needs: needRanges, run: func(t *T) {
			if !t.family(false) {
				t.Skipf("the network has no IPv4")
			}
			before := t.quiet()
			t.net = t.net.withIPAM("routes", []object{{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}})
			p := t.pod()
			if r := t.tryAdd(p); r.ok() {
				t.del(p)
			} else if p.link(p.ifName) != nil {
				t.Errorf("%s is left in the pod", p.ifName)
			}
			t.nothingNew(before, "ADD")
		}},
	}
}
