package main

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const sinceCheck = "0.4.0"

// sees tests that CHECK fails after something was broken.
func sees(id, asks string, l level, needs need, breaks func(t *T, p *pod, r result)) check {
	return check{id: id, level: l, section: "2", asks: "CHECK reports that " + asks, since: sinceCheck, needs: needs, run: func(t *T) {
		p, r := t.addPod()
		t.wants(t.check(p), "CHECK before")
		breaks(t, p, r)
		t.refuses(t.check(p), "CHECK")
	}}
}

// tolerates tests that CHECK passes after a change that does not concern the plugin.
func tolerates(id, asks string, l level, changes func(t *T, p *pod, r result)) check {
	return check{id: id, level: l, section: "2", asks: "CHECK allows for " + asks, since: sinceCheck, run: func(t *T) {
		p, r := t.addPod()
		changes(t, p, r)
		t.wants(t.check(p), "CHECK")
	}}
}

func checkChecks() []check {
	return append(checkBasics(), append(checkSees(), checkTolerates()...)...)
}

func checkBasics() []check {
	return []check{
		{id: "check.passes", level: must, section: "2", asks: "CHECK right after ADD succeeds", each: true, since: sinceCheck, run: func(t *T) {
			p, _ := t.addPod()
			for range 3 {
				t.wants(t.check(p), "CHECK")
			}
		}},
		{id: "check.no-output", level: robust, section: "2", asks: "CHECK prints nothing when it succeeds", since: sinceCheck, run: func(t *T) {
			p, _ := t.addPod()
			if r := t.check(p); r.ok() && len(r.stdout) > 0 {
				t.Errorf("%.200q", r.stdout)
			}
		}},
		{id: "check.changes-nothing", level: robust, section: "2", asks: "CHECK changes neither host nor pod", since: sinceCheck, run: func(t *T) {
			p, _ := t.addPod()
			before := t.snap()
			t.unchanged(p, func() { t.check(p) })
			t.sameAs(before, "CHECK")
		}},
		{id: "check.no-prevresult", level: should, section: "2", asks: "CHECK without prevResult fails: it must be consulted", since: sinceCheck, run: func(t *T) {
			p, _ := t.addPod()
			t.refuses(t.each(p, "CHECK", p.env("CHECK"), nil), "CHECK")
		}},
	}
}

func checkSees() []check {
	return []check{
		sees("check.iface-missing", "the interface is gone", should, 0, func(t *T, p *pod, _ result) {
			t.OK(p.deleteLink(p.ifName), "delete the interface")
		}),
		sees("check.iface-replaced", "another link has taken the interface's name", should, 0, func(t *T, p *pod, r result) {
			t.OK(p.deleteLink(p.ifName), "delete the interface")
			t.OK(p.veth(p.ifName, "other"), "make another")
		}),
		sees("check.iface-down", "the interface is down", should, 0, func(t *T, p *pod, _ result) {
			t.OK(p.setDown(p.ifName), "set it down")
		}),
		sees("check.address-missing", "an address is gone", should, 0, func(t *T, p *pod, _ result) {
			t.OK(p.flush(p.ifName), "remove addresses")
		}),
		sees("check.route-missing", "a route is gone", should, 0, func(t *T, p *pod, r result) {
			if len(r.Routes) == 0 {
				t.Skipf("the result has no routes")
			}
			t.OK(p.dropRoute(r.Routes[0].Dst), "delete the route")
		}),
		sees("check.mac-changed", "the interface has another MAC address than prevResult says", robust, 0, func(t *T, p *pod, _ result) {
			t.OK(p.setMAC(p.ifName), "change the MAC address")
		}),
		sees("check.netns-other", "the pod is in another namespace than its interface", robust, 0, func(t *T, p *pod, _ result) {
			p.netns = t.pod().Path
		}),
		sees("check.netns-gone", "the namespace is gone", should, 0, func(t *T, p *pod, _ result) { p.remove() }),
		sees("check.host-link-down", "the host's end is down", should, 0, func(t *T, p *pod, _ result) {
			for _, name := range t.hostEnds(p) {
				t.OK(t.host.setDown(name), "set it down")
			}
		}),
		sees("check.host-detached", "the host's end is cut off: its bridge port or its routes are gone", should, 0, func(t *T, p *pod, r result) {
			t.detach(p, r)
		}),
		sees("check.reservation-lost", "the address is no longer reserved", should, needState, func(t *T, p *pod, _ result) {
			if len(t.stateFiles()) == 0 {
				t.Skipf("nothing lies below the state directory")
			}
			t.emptyState()
		}),
		sees("check.masquerade-lost", "the masquerade rules are gone", should, needMasq, func(t *T, p *pod, _ result) {
			t.flushRules()
		}),
		sees("check.unknown-container", "the attachment does not exist", should, 0, func(t *T, p *pod, _ result) { t.del(p) }),
	}
}

func checkTolerates() []check {
	return []check{
		tolerates("check.tolerates-extra-route", "a route that a later plugin added", must, func(t *T, p *pod, r result) {
			t.OK(p.script(addRoute(p.ifName, "203.0.113.0/24", "")), "add a route")
		}),
		tolerates("check.tolerates-extra-address", "an address that a later plugin added", must, func(t *T, p *pod, _ result) {
			t.OK(p.script(addAddr(p.ifName, "203.0.113.9/24")), "add an address")
		}),
		tolerates("check.tolerates-extra-link", "a link that a later plugin made", must, func(t *T, p *pod, _ result) {
			t.OK(p.veth("extra0", "extra1"), "make a link")
		}),
		tolerates("check.tolerates-extra-rule", "a routing rule that a later plugin added", must, func(t *T, p *pod, _ result) {
			rule := netlink.NewRule()
			rule.Table, rule.Priority, rule.Family = 177, 1000, unix.AF_INET
			t.OK(p.nl.RuleAdd(rule), "add a rule")
		}),
		tolerates("check.tolerates-route-removed", "a route that a later plugin removed, from prevResult too", must, func(t *T, p *pod, r result) {
			if len(r.Routes) == 0 {
				t.Skipf("the result has no routes")
			}
			t.OK(p.dropRoute(r.Routes[0].Dst), "delete the route")
			p.prev = t.changed(p, func(o object) { o["routes"] = o["routes"].([]any)[1:] })
		}),
		tolerates("check.tolerates-mac", "a MAC address that a later plugin changed, in prevResult too", must, func(t *T, p *pod, r result) {
			t.OK(p.setMAC(p.ifName), "change the MAC address")
			p.prev = t.changed(p, func(o object) {
				for _, i := range o["interfaces"].([]any) {
					if i := i.(object); i["name"] == p.ifName {
						i["mac"] = otherMAC
					}
				}
			})
		}),
		tolerates("check.tolerates-mtu", "an MTU that a later plugin changed, in prevResult too", must, func(t *T, p *pod, r result) {
			t.OK(p.script(onLink(p.ifName, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, 1300) })), "change the MTU")
			p.prev = t.changed(p, func(o object) {
				for _, i := range o["interfaces"].([]any) {
					if i := i.(object); i["name"] == p.ifName && i["mtu"] != nil {
						i["mtu"] = 1300
					}
				}
			})
		}),
		tolerates("check.tolerates-interface-listed", "an interface that a later plugin put into prevResult", must, func(t *T, p *pod, _ result) {
			p.prev = t.changed(p, func(o object) {
				o["interfaces"] = append(o["interfaces"].([]any), object{"name": "ifb9", "mac": "02:00:00:00:00:09"})
			})
		}),
	}
}

func (s *space) dropRoute(dst netip.Prefix) error {
	r, err := s.route(dst, nil)
	if err != nil {
		return err
	}
	return s.nl.RouteDel(&r)
}

// detach removes the pod's link from its bridge, or the pod's routes from the host.
func (t *T) detach(p *pod, r result) {
	did := false
	for _, name := range t.hostEnds(p) {
		l := t.host.link(name)
		if l.Attrs().MasterIndex != 0 {
			t.OK(t.host.nl.LinkSetNoMaster(l), "take it off its bridge")
			did = true
		}
	}
	for _, a := range r.addrs() {
		if err := t.host.dropRoute(netip.PrefixFrom(a, a.BitLen())); err == nil {
			did = true
		}
	}
	if !did {
		t.Skipf("the host has neither a bridge port nor routes for the pod")
	}
}

// flushRules deletes all nftables tables of the host.
func (t *T) flushRules() {
	if len(t.snap().rules()) == 0 {
		t.Skipf("the host has no nftables rules")
	}
	t.OK(t.host.deleteTables(), "delete nftables")
	if left := t.snap().rules(); len(left) > 0 {
		t.OK(errors.New(strings.Join(left, ", ")), "delete nftables")
	}
}
