package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// maxGranted bounds the addresses of a node's uplinks: each is a route, and on a plain LAN a proxy entry.
const maxGranted = 4096

// Held is what this node's pods and its store say of the addresses of uplinks.
type Held struct {
	// Granted is what the node last wrote about its uplinks (uplink.File).
	Granted uplink.Uplinks
	// Known says that the store was read, and that Pods and Pool are true.
	Known bool
	Pods  map[netip.Addr]string // leased addresses, with the names of their pods
	// Canary are the addresses of the node's canary, which gives way: they count as free.
	Canary []netip.Addr
	Pool   ipam.Pool // from which ADD leases now
}

// inUse reports whether a pod has the address, or could get it before the next look.
func (h Held) inUse(a netip.Addr) bool {
	_, leased := h.Pods[a]
	return !h.Known || leased || slices.Contains(h.Canary, a) || Leases(h.Pool, a)
}

// Used is the number of addresses that pods have.
func (h Held) Used(u uplink.Uplinks) (n int) {
	for _, i := range u.Interfaces {
		for _, a := range i.Addresses {
			if _, leased := h.Pods[a]; leased {
				n++
			}
		}
	}
	return n
}

// Free is the number of addresses for more pods.
func (h Held) Free() (n int) {
	for _, set := range h.Pool.Sets {
		for _, r := range set {
			for a := r.First; a.IsValid() && a.Compare(r.Last) <= 0; a = a.Next() {
				if _, leased := h.Pods[a]; !leased && Leases(h.Pool, a) {
					n++
				}
			}
		}
	}
	return n
}

// Leases reports whether a pod can get the address from the pool.
func Leases(p ipam.Pool, a netip.Addr) bool {
	if slices.ContainsFunc(p.Reserved, func(r netip.Prefix) bool { return r.Contains(a) }) {
		return false
	}
	return slices.ContainsFunc(p.Sets, func(set ipam.RangeSet) bool {
		return slices.ContainsFunc(set, func(r ipam.Range) bool {
			return r.Subnet.Contains(a) && (!r.First.IsValid() || r.First.Compare(a) <= 0) && (!r.Last.IsValid() || a.Compare(r.Last) <= 0)
		})
	})
}

// uplinks decides about the node's secondary interfaces. An address that the resource no longer grants leaves
// the pool at once. Its rules go when the store says that no pod has it: a resource that is deleted by mistake
// stops new pods and cuts no running pod.
func (d *draft) uplinks() {
	spec := d.Uplinks(d.Self)
	if !d.Grants() {
		return
	}
	ref := cluster.EdgeNode{Name: d.Self}.Ref()
	withheld := map[netip.Addr]bool{} // granted, and not leased to new pods
	want := uplink.Uplinks{NodeEgress: d.Held.Granted.NodeEgress, Inside: d.Held.Granted.Inside, Mark: d.Held.Granted.Mark}
	if spec != nil {
		want = d.granted(ref, *spec, withheld)
		if len(d.self.PodCIDRs) > 0 {
			d.problem(ref, cluster.BothModes, "uplinks or pod CIDRs", fmt.Sprintf("uplinks, and the pod CIDRs %v of the Node", d.self.PodCIDRs),
				"delete spec.uplinks, or recreate the Node without pod CIDRs; until then new pods get addresses of the uplinks")
		}
	}
	wanted := families(want)
	all := d.keep(ref, want, withheld)
	for n := range all.Interfaces {
		if i := &all.Interfaces[n]; i.MAC == "" {
			i.Seen = i.Now(d.Host)
		}
	}
	d.plan.Uplinks = all
	for _, i := range all.Interfaces {
		link, ok := i.Link(d.Host)
		if ok {
			d.carry(link.MTU)
			d.alone(ref, i, link.Name)
			continue
		}
		for _, a := range i.Addresses {
			withheld[a] = true
		}
		d.missing(ref, i)
	}
	s := all.State(d.Host)
	r := &d.plan.Routes
	r.Links, r.Addrs, r.Rules = append(r.Links, s.Links...), append(r.Addrs, s.Addrs...), append(r.Rules, s.Rules...)
	r.Routes, r.Proxies, r.Sysctls, r.Symmetric = append(r.Routes, s.Routes...), append(r.Proxies, s.Proxies...), append(r.Sysctls, s.Sysctls...), s.Symmetric
	r.Announced = s.Announced
	native := d.toNodes(all)
	d.plan.Pool = all.Pool(func(a netip.Addr) bool { return !withheld[a] })
	// A family that the resource took out keeps no new pod waiting while a pod still has an address of it.
	if sets := slices.DeleteFunc(slices.Clone(d.plan.Pool.Sets), func(s ipam.RangeSet) bool { return !wanted[s[0].Subnet.Addr().Is6()] }); len(sets) > 0 {
		d.plan.Pool.Sets = sets
	}
	if all.NodeEgress {
		r.Symmetric.Inside = append(r.Symmetric.Inside, native...)
		nat := &routes.NAT{Sources: slices.Clone(d.self.PodCIDRs), Exclude: slices.Clone(r.Symmetric.Inside)}
		for _, i := range all.Interfaces {
			nat.Sources = append(nat.Sources, uplink.Aggregate(i.Addresses)...)
		}
		for _, a := range d.self.Addresses {
			nat.Exclude = append(nat.Exclude, netip.PrefixFrom(a, a.BitLen()))
		}
		r.NAT = nat
	}
	d.foreign(ref, all)
	if spec != nil && d.Held.Known {
		d.confirm(*spec)
	}
}

// families says of which families pods get addresses: by true, IPv6.
func families(u uplink.Uplinks) map[bool]bool {
	out := map[bool]bool{}
	for _, i := range u.Interfaces {
		out[i.V6()] = out[i.V6()] || len(i.Addresses) > 0
	}
	return out
}

// alone reports what another program, above all a DHCP client or the kernel after a router advertisement, has given
// the interface.
func (d *draft) alone(ref string, i uplink.Interface, link string) {
	var got []string
	for _, a := range d.Host.Addrs {
		if a.Link == link && a.Prefix.Addr().Is6() == i.V6() && a.Prefix.Addr() != i.Address {
			got = append(got, "the address "+a.Prefix.String())
		}
	}
	for _, r := range d.Host.Routes {
		if r.Link == link && r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == i.V6() {
			got = append(got, "the default route by "+r.Via.String())
		}
	}
	if len(got) > 0 {
		d.problem(ref, cluster.ForeignDHCP, "only "+i.Address.String()+" on "+link+", and no default route by it", strings.Join(got, ", "),
			"edgewayd unmanage keeps networkd, NetworkManager and cloud-init away from it; then remove them with ip")
	}
}

// foreign reports the rules of others that can decide about packets of pods before ours do. Another network plugin
// leaves them behind, and some programs have their rules for everything.
func (d *draft) foreign(ref string, u uplink.Uplinks) {
	var found []routes.ForeignRule
	for _, r := range d.Host.Foreign {
		if slices.ContainsFunc(u.Interfaces, func(i uplink.Interface) bool { return slices.ContainsFunc(i.Addresses, r.Catches) }) {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return
	}
	got, ip := found[0].Text, "ip"
	if found[0].V6 {
		ip = "ip -6"
	}
	if more := len(found) - 1; more > 0 {
		got += fmt.Sprintf(", and %d more", more)
	}
	d.problem(ref, cluster.ForeignRules, "no rules of others at the priorities 512 to 2048, and none before these for the addresses of pods", got,
		fmt.Sprintf("stop the program that made them, such as another network plugin, and then: %s rule del pref %d; ours stand beside them", ip, found[0].Priority))
}

// Grants reports whether the node has, or had, addresses of uplinks: only then Held matters.
func (w World) Grants() bool {
	return w.Uplinks(w.Self) != nil || len(w.Held.Granted.Interfaces) > 0
}

// Uplinks returns the uplinks of the node; nil if it has none.
func (w World) Uplinks(node string) *cluster.Uplinks {
	e, _ := w.Cluster.EdgeNode(node)
	return e.Uplinks
}

// granted returns what the resource grants, without the addresses that somebody else has.
func (d *draft) granted(ref string, spec cluster.Uplinks, withheld map[netip.Addr]bool) uplink.Uplinks {
	u := uplink.Uplinks{NodeEgress: spec.Egress == cluster.EgressNode, Inside: spec.Inside, Mark: spec.Mark}
	seen, count := map[netip.Addr]string{}, 0
	for n, i := range spec.Interfaces {
		path := fmt.Sprintf("spec.uplinks.interfaces[%d]", n)
		out := uplink.Interface{MAC: i.MAC, Name: i.LinkName(), Parent: i.VLAN.Parent, ID: i.VLAN.ID, Address: i.Address, Subnet: i.Subnet, Gateway: i.Gateway, AnswerARP: i.AnswerARP, OnLink: i.OnLink}
		if !i.Subnet.Contains(i.Address) || !i.Subnet.Contains(i.Gateway) && !i.Gateway.IsLinkLocalUnicast() {
			d.problem(ref, cluster.UplinkAddress, fmt.Sprintf("address and gateway in the subnet %s of %s", i.Subnet, path), fmt.Sprintf("%s and %s", i.Address, i.Gateway), "correct them")
		}
		if at := slices.IndexFunc(d.Held.Granted.Interfaces, func(old uplink.Interface) bool { return i.Name != "" && old.Name == i.Name }); at >= 0 {
			out.Seen = d.Held.Granted.Interfaces[at].Seen
		}
		owners := d.owners(i)
		for _, r := range i.Addresses {
			for a := r.First; a.Compare(r.Last) <= 0; a = a.Next() {
				if count++; count > maxGranted {
					break
				}
				owner := owners(a)
				if seen[a] != "" {
					owner = seen[a]
				}
				if owner != "" {
					correct := "what else has it"
					if !i.Subnet.Contains(a) {
						correct = "the subnet"
					}
					d.problem(ref, cluster.UplinkAddress, fmt.Sprintf("addresses for pods alone in %s.addresses", path), fmt.Sprintf("%s, which is %s", a, owner),
						"take it out of this list, or correct "+correct+"; no pod gets it until then")
				}
				if owner == "" {
					out.Addresses = append(out.Addresses, a)
				}
				seen[a] = "in " + path + " too"
			}
		}
		for _, w := range i.Withdrawn {
			withheld[w.Address] = true
		}
		slices.SortFunc(out.Addresses, netip.Addr.Compare)
		u.Interfaces = append(u.Interfaces, out)
	}
	if count > maxGranted {
		d.problem(ref, cluster.UplinkAddress, fmt.Sprintf("at most %d addresses in spec.uplinks", maxGranted), "more", "take some out; the first ones count")
	}
	return u
}

// owners returns a function that says who else has an address; "": nobody.
func (d *draft) owners(i cluster.Uplink) func(netip.Addr) string {
	known := map[netip.Addr]string{i.Gateway: "the gateway", i.Address: "the interface's own address"}
	type network struct {
		of   string
		cidr netip.Prefix
	}
	var near []network // pod CIDRs that overlap the subnet: of thousands of nodes, hardly any
	for _, n := range d.Cluster.Nodes {
		for _, a := range n.Addresses {
			if i.Subnet.Contains(a) {
				known[a] = "the address of Node/" + n.Name
			}
		}
		for _, c := range n.PodCIDRs {
			if c.Overlaps(i.Subnet) {
				near = append(near, network{n.Name, c})
			}
		}
	}
	for _, a := range d.Host.Addrs {
		if known[a.Prefix.Addr()] == "" {
			known[a.Prefix.Addr()] = "an address of the link " + a.Link
		}
	}
	type granted struct {
		of     string
		ranges []cluster.AddressRange
	}
	var others []granted
	for _, e := range d.Cluster.EdgeNodes {
		if e.Name == d.Self || e.Uplinks == nil {
			continue
		}
		for _, o := range e.Uplinks.Interfaces {
			others = append(others, granted{e.Ref(), append(slices.Clone(o.Addresses), cluster.AddressRange{First: o.Address, Last: o.Address})})
		}
	}
	return func(a netip.Addr) string {
		if !i.Subnet.Contains(a) {
			return "outside the subnet " + i.Subnet.String()
		}
		if who := known[a]; who != "" {
			return who
		}
		for _, n := range near {
			if n.cidr.Contains(a) {
				return "in the pod CIDR of Node/" + n.of
			}
		}
		for _, o := range others {
			if slices.ContainsFunc(o.ranges, func(r cluster.AddressRange) bool { return r.Contains(a) }) {
				return "in " + o.of + " too"
			}
		}
		return ""
	}
}

// keep adds what was granted before and is still in use, and withholds it. An address that moves to another
// interface does so when no pod has it.
func (d *draft) keep(ref string, want uplink.Uplinks, withheld map[netip.Addr]bool) uplink.Uplinks {
	same := func(old uplink.Interface) int {
		return slices.IndexFunc(want.Interfaces, func(i uplink.Interface) bool { return old.Same(i, d.Host) })
	}
	granted := map[netip.Addr]int{} // to the index of the interface in want
	for n, i := range want.Interfaces {
		for _, a := range i.Addresses {
			granted[a] = n
		}
	}
	for _, old := range d.Held.Granted.Interfaces {
		var kept []netip.Addr
		for _, a := range old.Addresses {
			now, there := granted[a]
			if there && now == same(old) || !d.Held.inUse(a) {
				continue
			}
			if there {
				i := &want.Interfaces[now]
				i.Addresses = slices.DeleteFunc(i.Addresses, func(b netip.Addr) bool { return a == b })
			}
			kept, withheld[a] = append(kept, a), true
			if pod, leased := d.Held.Pods[a]; leased && !there {
				d.problem(ref, cluster.AddressRemoved, "the addresses of running pods in spec.uplinks", fmt.Sprintf("%s of pod %s in none of its interfaces", a, pod),
					"delete the pod, which gets another address, or add the address again; it works until then")
			}
		}
		if len(kept) == 0 {
			continue
		}
		at := same(old)
		if at < 0 {
			at, old.Addresses = len(want.Interfaces), nil
			want.Interfaces = append(want.Interfaces, old)
		}
		i := &want.Interfaces[at]
		i.Addresses = append(i.Addresses, kept...)
		slices.SortFunc(i.Addresses, netip.Addr.Compare)
	}
	return want
}

// missing reports an interface that the node does not have. A VLAN link that is about to be made is not reported: the
// kernel may refuse it, and that is a problem of its own.
func (d *draft) missing(ref string, i uplink.Interface) {
	until := "; its addresses are not given to pods until then" + d.podsOf(i.Addresses)
	holder, held := i.Holder(d.Host)
	_, makes := i.Makes(d.Host)
	switch {
	case held:
		d.problem(ref, cluster.UplinkMissing, fmt.Sprintf("no link of others with the name %s, or for VLAN %d of %s", i.Name, i.ID, i.Parent), "the link "+holder.Name+", which edgeway did not make",
			fmt.Sprintf("delete it (ip link del %s), or keep it, and set name: %s instead of vlan%s", holder.Name, holder.Name, until))
	case makes:
	case i.Parent != "":
		d.problem(ref, cluster.UplinkMissing, fmt.Sprintf("the interface %s on this node, for the VLAN link %s", i.Parent, i.Name), "none", "attach the interface, or correct spec.uplinks.interfaces"+until)
	default:
		d.problem(ref, cluster.UplinkMissing, "one interface "+i.String()+" on this node", d.candidates(i), "attach the interface, or correct spec.uplinks.interfaces"+until)
	}
}

// candidates says what the node has instead of the interface.
func (d *draft) candidates(i uplink.Interface) string {
	var with []string
	for _, l := range d.Host.Links {
		if i.MAC != "" && strings.EqualFold(l.MAC, i.MAC) {
			with = append(with, l.Name)
		}
	}
	if len(with) > 1 {
		return "several links with this MAC: " + strings.Join(with, ", ")
	}
	return "none"
}

// podsOf names the pods that have the addresses, as the end of a sentence.
func (d *draft) podsOf(addrs []netip.Addr) string {
	var names []string
	for _, a := range addrs {
		if pod, ok := d.Held.Pods[a]; ok {
			names = append(names, pod)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ", and these pods reach nobody outside: " + strings.Join(names, ", ")
}

// toNodes adds routes to the pod CIDRs of nodes that are in the subnet of an uplink on a plain LAN: the router
// there need not know them. It returns the CIDRs.
func (d *draft) toNodes(u uplink.Uplinks) (native []netip.Prefix) {
	for _, i := range u.Interfaces {
		link, found := i.Link(d.Host)
		table, ok := i.Table(d.Host)
		if !found || !ok || !i.OnLink {
			continue
		}
		for _, n := range d.Cluster.Nodes {
			at := slices.IndexFunc(n.Addresses, i.Subnet.Contains)
			if n.Name == d.Self || at < 0 || d.Mode(n) == cluster.Overlay {
				continue
			}
			for _, c := range n.PodCIDRs {
				if c.Addr().Is6() == i.V6() && !d.isDisputed(c) && !c.Overlaps(i.Subnet) {
					native = append(native, c)
					d.plan.Routes.Routes = append(d.plan.Routes.Routes, routes.Route{Dst: c, Via: n.Addresses[at], Link: link.Name, Table: table, Onlink: uplink.Onlink(n.Addresses[at]), Protocol: routes.ProtoNode})
				}
			}
		}
	}
	return native
}

// confirm says which withdrawals are done. The store, which is on disk, no longer leases the address.
func (d *draft) confirm(spec cluster.Uplinks) {
	for _, i := range spec.Interfaces {
		for _, w := range i.Withdrawn {
			if !d.Held.inUse(w.Address) {
				d.plan.Confirmed = append(d.plan.Confirmed, w)
			}
		}
	}
}
