package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
)

// lost is a check of DEL after something went missing: DEL must succeed, clean the host and free the
// address.
func lost(id, asks string, l level, needs need, lose func(t *T, p *pod) reply) check {
	return check{id: id, level: l, section: "2", asks: asks, needs: needs, run: func(t *T) {
		t.trySmall(2)
		before := t.quiet()
		p, _ := t.addPod()
		t.wants(lose(t, p), "DEL")
		t.gone(p)
		t.nothingNew(before, "DEL")
		t.tryRoom(2)
	}}
}

func delChecks() []check {
	return slices.Concat(delBasics(), delLosses(), delOthers())
}

func delBasics() []check {
	return []check{
		{id: "del.interface", level: must, section: "2", asks: "DEL removes CNI_IFNAME from the container", each: true, run: func(t *T) {
			p, _ := t.addPod()
			t.del(p)
			t.noInterface(p)
		}},
		{id: "del.host-clean", level: must, section: "2", asks: "DEL undoes what ADD did on the host", each: true, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			t.del(p)
			t.nothingNew(before, "DEL")
		}},
		{id: "del.no-output", level: robust, section: "2", asks: "DEL prints nothing when it succeeds", run: func(t *T) {
			p, _ := t.addPod()
			if r := t.tryDel(p); r.ok() && len(r.stdout) > 0 {
				t.Errorf("%.200q", r.stdout)
			}
		}},
		{id: "del.frees-address", level: should, section: "2", asks: "DEL frees the address", needs: needRanges, run: func(t *T) {
			t.small(1)
			for range 3 {
				p, _ := t.addPod()
				t.del(p)
			}
		}},
		{id: "del.twice", level: must, section: "2", asks: "repeated DEL of the same attachment succeeds", run: func(t *T) {
			p, _ := t.addPod()
			for range 3 {
				t.del(p)
			}
			t.wants(t.each(p, "DEL", p.envWithout("DEL", "CNI_NETNS"), nil), "DEL without anything")
		}},
		{id: "del.unknown", level: must, section: "2", asks: "DEL of an attachment that never existed succeeds", each: true, run: func(t *T) {
			p := t.pod()
			t.wants(t.tryDel(p), "DEL")
		}},
		{id: "del.unknown-no-netns", level: must, section: "2", asks: "DEL of an attachment that never existed succeeds without a namespace", run: func(t *T) {
			p := t.pod()
			p.netns = ""
			t.wants(t.tryDel(p), "DEL")
		}},
		{id: "del.first-call-ever", level: robust, section: "2", asks: "DEL on a host that never saw an ADD succeeds and changes nothing", run: func(t *T) {
			before := t.snap()
			t.wants(t.tryDel(t.pod()), "DEL")
			t.nothingNew(before, "DEL")
		}},
		{id: "del.no-prevresult", level: must, section: "2", asks: "DEL without prevResult succeeds and removes the attachment", run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			t.wants(t.each(p, "DEL", p.env("DEL"), nil), "DEL")
			t.noInterface(p)
			t.nothingNew(before, "DEL")
		}},
	}
}

func delLosses() []check {
	return []check{
		lost("del.netns-gone", "DEL cleans up when the namespace and its path are gone", should, 0, func(t *T, p *pod) reply {
			p.remove()
			return t.tryDel(p)
		}),
		lost("del.netns-empty", "DEL cleans up when the namespace is gone and CNI_NETNS is empty (the kubelet's second DEL)", should, 0, func(t *T, p *pod) reply {
			p.remove()
			p.netns = ""
			return t.tryDel(p)
		}),
		lost("del.netns-unset", "DEL cleans up when the namespace is gone and CNI_NETNS is not set", should, 0, func(t *T, p *pod) reply {
			p.remove()
			return t.each(p, "DEL", p.envWithout("DEL", "CNI_NETNS"), p.withPrev())
		}),
		lost("del.netns-plain-file", "DEL cleans up when the namespace's path has become a plain file", should, 0, func(t *T, p *pod) reply {
			p.remove()
			t.OK(os.WriteFile(p.netns, nil, 0o444), "leave a file")
			t.Cleanup(func() { _ = os.Remove(p.netns) })
			return t.tryDel(p)
		}),
		lost("del.no-prevresult-no-netns", "DEL cleans up without namespace and prevResult", should, 0, func(t *T, p *pod) reply {
			p.remove()
			return t.each(p, "DEL", p.envWithout("DEL", "CNI_NETNS"), nil)
		}),
		lost("del.iface-gone", "DEL cleans up when the interface was deleted inside the container", should, 0, func(t *T, p *pod) reply {
			t.OK(p.deleteLink(p.ifName), "delete the interface")
			return t.tryDel(p)
		}),
		lost("del.iface-renamed", "DEL cleans up when the interface was renamed inside the container", should, 0, func(t *T, p *pod) reply {
			t.OK(p.script(onLink(p.ifName, func(h *netlink.Handle, l netlink.Link) error {
				return errors.Join(h.LinkSetDown(l), h.LinkSetName(l, "renamed0"))
			})), "rename the interface")
			r := t.tryDel(p)
			p.remove()
			return r
		}),
		lost("del.addresses-gone", "DEL cleans up when the addresses were removed from the interface", should, 0, func(t *T, p *pod) reply {
			t.OK(p.flush(p.ifName), "remove addresses")
			return t.tryDel(p)
		}),
		lost("del.host-tampered", "DEL cleans up when the host's end was deleted", should, 0, func(t *T, p *pod) reply {
			for _, name := range t.hostEnds(p) {
				t.OK(t.host.deleteLink(name), "delete the host's end")
			}
			return t.tryDel(p)
		}),
		lost("del.foreign-prevresult", "DEL cleans up when the prevResult belongs to another pod", robust, 0, func(t *T, p *pod) reply {
			return t.each(p, "DEL", p.env("DEL"), object{"prevResult": t.earlier(p)})
		}),
		lost("del.empty-prevresult", "DEL cleans up when the prevResult has no interfaces and no ips", must, 0, func(t *T, p *pod) reply {
			return t.each(p, "DEL", p.env("DEL"), object{"prevResult": object{"cniVersion": t.net.version}})
		}),
		lost("del.host-side-without-netns", "DEL with an empty CNI_NETNS cuts off a pod whose namespace still exists", robust, 0, func(t *T, p *pod) reply {
			netns := p.netns
			p.netns = ""
			r := t.tryDel(p)
			p.netns = netns
			return r
		}),
		{id: "del.garbage-prevresult", level: robust, section: "2", asks: "DEL frees the address although the prevResult is not a result, at the latest when it is repeated without", needs: needRanges, run: func(t *T) {
			t.small(1)
			p, _ := t.addPod()
			r := t.each(p, "DEL", p.env("DEL"), object{"prevResult": "garbage"})
			if !r.ok() {
				t.Notef("refused: %s", r.said())
				t.wants(t.each(p, "DEL", p.env("DEL"), nil), "DEL without it")
			}
			t.room(1)
		}},
	}
}

func delOthers() []check {
	return []check{
		{id: "del.state-missing", level: should, section: "2", asks: "DEL removes the links when the plugin's state was deleted", needs: needState, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			t.emptyState()
			t.wants(t.tryDel(p), "DEL")
			t.noInterface(p)
			for _, line := range t.snap().minus(before) {
				if strings.HasPrefix(line, "link ") || strings.HasPrefix(line, "route ") {
					t.Errorf("left: %s", line)
				}
			}
		}},
		{id: "del.others-untouched", level: must, section: "2", asks: "DEL of one pod leaves others as they are", run: func(t *T) {
			p, q := t.pod(), t.pod()
			t.add(p)
			r := t.add(q)
			t.unchanged(q, func() { t.del(p) })
			t.connected(q, r)
		}},
		{id: "del.same-prefix-ids", level: must, section: "2", asks: "DEL tells apart container IDs that begin alike", run: func(t *T) {
			p, q := t.pod(), t.pod()
			p.id, q.id = p.id+"-a", p.id+"-ab"
			t.add(p)
			r := t.add(q)
			t.del(p)
			t.connected(q, r)
		}},
		{id: "del.concurrent-same", level: robust, section: "2", asks: "two concurrent DELs of one attachment both succeed", run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			var wg sync.WaitGroup
			replies := make([]reply, 2)
			for i := range replies {
				wg.Go(func() { t.protected(func() { replies[i] = t.tryDel(p) }) })
			}
			wg.Wait()
			for _, r := range replies {
				t.wants(r, "DEL")
			}
			t.nothingNew(before, "both")
		}},
		{id: "del.changed-pool", level: robust, section: "3", asks: "DEL frees an address that is no longer in the configured pool", needs: needRanges, run: func(t *T) {
			before := t.quiet()
			p, _ := t.addPod()
			old := t.net
			t.net = t.net.small(2, t.seq+1)
			t.wants(t.tryDel(p), "DEL")
			t.net = old
			t.nothingNew(before, "DEL")
		}},
		{alone: true, id: "del.quick", level: robust, section: "2", asks: "DEL of an attachment whose namespace is gone takes less than 5 s", run: func(t *T) {
			p, _ := t.addPod()
			p.remove()
			r := t.tryDel(p)
			if r.took.Seconds() > 5 {
				t.Errorf("took %v", r.took)
			}
		}},
	}
}

// hostEnds returns the pod's own links on the host: the other ends of its links.
func (t *T) hostEnds(p *pod) (out []string) {
	res := p.result()
	for _, name := range res.hostLinks() {
		if l := t.host.link(name); l != nil && l.Type() != "bridge" {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		t.Skipf("the result names no link of the pod on the host")
	}
	return out
}

// emptyState deletes everything below the state directory.
func (t *T) emptyState() {
	entries, err := os.ReadDir(t.state)
	t.OK(err, "read the state directory")
	for _, e := range entries {
		t.OK(os.RemoveAll(t.state+"/"+e.Name()), "delete state")
	}
}
