// Package uplink says how the host of a node looks whose pods have addresses of secondary interfaces.
//
// It owns that decision for the daemon, and for the plugin where no daemon runs: both read the same [Uplinks].
// The decision is pure, and depends on the addresses granted to the node and not on its pods. It never talks to
// the kernel, the cluster or a cloud.
//
//	pod 10.0.0.31 ──ew3f...── node ──eth1 10.0.0.21── LAN, or a cloud's network
//	                           └─────eth0 10.0.0.11── the node's own traffic
//
//	512:  from all lookup main suppress_prefixlength 31     the host routes of this node's pods
//	600:  from all fwmark 0x20/0x20 lookup main             answers go back the way that the questions came
//	2048: from 10.0.0.31 lookup 0x65086000 | ...            all else from an address of eth1 leaves by eth1
//
// An interface with both families is two entries of the list. IPv6 has the same rules (suppress_prefixlength 127), in
// the same table.
//
//	u, err := uplink.Read("/var/lib/edgeway/uplinks.json")
//	state := u.State(host) // routes.State: links, addresses, rules, routes, proxies, settings
package uplink

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	// File is the name of the file in the state directory.
	File = "uplinks.json"
	// ReturnMark is the bit of the packet's and the connection's mark for connections that did not come by an uplink,
	// where Uplinks.Mark does not say another one.
	ReturnMark = 0x20
	// fallbackMetric is that of routes that count while no other does: a pod's host route has metric 0.
	fallbackMetric = 4278198272
	// vlanAlias is what ip link shows of a VLAN link.
	vlanAlias = "made by edgeway"

	priorityPods, priorityReturn, priorityUplink = 512, 600, 2048
)

// Uplinks are the secondary interfaces of a node, with all addresses that pods may have.
type Uplinks struct {
	// NodeEgress: what is not for Inside, nor for a subnet on the link, leaves by the node's own default route.
	NodeEgress bool           `json:"nodeEgress,omitempty"`
	Inside     []netip.Prefix `json:"inside,omitempty"`
	Mark       uint32         `json:"mark,omitempty"` // one bit; 0: ReturnMark
	Interfaces []Interface    `json:"interfaces"`
}

// Interface is one secondary interface with addresses of one family.
type Interface struct {
	MAC  string `json:"mac,omitempty"` // in lower case; "": Name says which link it is
	Name string `json:"name,omitempty"`
	// VLAN: the link Name is made, and kept, on the link Parent. "": the link is there already.
	Parent  string       `json:"parent,omitempty"`
	ID      uint16       `json:"id,omitempty"`
	Seen    string       `json:"seen,omitempty"` // the MAC that the link Name last had, for the time when it is gone
	Address netip.Addr   `json:"address"`        // the interface's own
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
	// AnswerARP: the LAN does not know by itself that the addresses of pods are here. The same for neighbour discovery.
	AnswerARP bool `json:"answerARP,omitempty"`
	// OnLink: the subnet is reached directly.
	OnLink    bool         `json:"onLink,omitempty"`
	Addresses []netip.Addr `json:"addresses"` // of pods, sorted
}

// String names the interface as the resource does.
func (i Interface) String() string {
	if i.MAC != "" {
		return i.MAC
	}
	return i.Name
}

// Equal reports whether both say the same.
func (u Uplinks) Equal(o Uplinks) bool {
	return u.NodeEgress == o.NodeEgress && u.Mark == o.Mark && slices.Equal(u.Inside, o.Inside) && slices.EqualFunc(u.Interfaces, o.Interfaces, func(a, b Interface) bool {
		return slices.Equal(a.Addresses, b.Addresses) && a.key() == b.key()
	})
}

// key is the interface without its list.
func (i Interface) key() any {
	return struct {
		mac, name, parent, seen string
		id                      uint16
		address, gateway        netip.Addr
		subnet                  netip.Prefix
		answer, onLink          bool
	}{i.MAC, i.Name, i.Parent, i.Seen, i.ID, i.Address, i.Gateway, i.Subnet, i.AnswerARP, i.OnLink}
}

// Read reads the file that the daemon wrote. A missing file is not an error: the node has no uplinks.
func Read(path string) (u Uplinks, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &u)
	}
	if err != nil {
		return Uplinks{}, fmt.Errorf("read uplinks %s: %w; edgewayd writes the file again when it starts", path, err)
	}
	return u, nil
}

func (i Interface) vlan() routes.VLAN { return routes.VLAN{Parent: i.Parent, ID: i.ID} }

// Holder returns the link of somebody else in the place of a VLAN link: it has the name, or the kernel keeps the tag for it.
func (i Interface) Holder(h routes.Host) (link routes.Link, ok bool) {
	for _, l := range h.Links {
		of := l.VLAN != nil && l.VLAN.Parent == i.Parent && l.VLAN.ID == i.ID
		if i.Parent != "" && (l.Name == i.Name || of) && (l.VLAN == nil || l.VLAN.Foreign) {
			return l, true
		}
	}
	return link, false
}

// Makes returns the link on which the interface is made, and false for an interface that cannot be made now, or is there
// already without this package.
func (i Interface) Makes(h routes.Host) (parent routes.Link, ok bool) {
	at := slices.IndexFunc(h.Links, func(l routes.Link) bool { return i.Parent != "" && l.Name == i.Parent })
	if _, held := i.Holder(h); held || at < 0 {
		return routes.Link{}, false
	}
	return h.Links[at], true
}

// V6 reports whether the interface's addresses are IPv6.
func (i Interface) V6() bool { return i.Subnet.Addr().Is6() }

// Same reports whether both are the entry of the same interface and family, also where one has the name of the link
// and the other its MAC.
func (i Interface) Same(o Interface, h routes.Host) bool {
	if i.V6() != o.V6() || i.MAC == o.MAC && i.Name == o.Name {
		return i.V6() == o.V6()
	}
	a, there := i.Link(h)
	b, too := o.Link(h)
	return there && too && a.Name == b.Name || !there && !too && (i.MAC == "") != (o.MAC == "") && i.Now(h) == o.Now(h)
}

// Link returns the interface's link on the host. ok is false if there is none, or more than one with the MAC.
func (i Interface) Link(h routes.Host) (link routes.Link, ok bool) {
	if _, makes := i.Makes(h); i.Parent != "" && !makes {
		return link, false
	}
	for _, l := range h.Links {
		made := l.VLAN != nil && !l.VLAN.Foreign // with the MAC of its parent
		if i.MAC != "" && (!strings.EqualFold(l.MAC, i.MAC) || made) || i.MAC == "" && l.Name != i.Name {
			continue
		}
		if i.Parent != "" && *l.VLAN != i.vlan() {
			continue // a link of ours that must be made again
		}
		if ok {
			return routes.Link{}, false
		}
		link, ok = l, true
	}
	return link, ok
}

// Now returns the MAC of the interface, or the MAC that it last had.
func (i Interface) Now(h routes.Host) string {
	if i.MAC != "" {
		return i.MAC
	}
	if l, ok := i.Link(h); ok {
		return l.MAC
	}
	return i.Seen
}

// Table is the number of the interface's routing table; ok is false if its MAC is not known.
func (i Interface) Table(h routes.Host) (table int, ok bool) {
	if i.Parent != "" {
		return i.vlan().Table(), true
	}
	mac, err := net.ParseMAC(i.Now(h))
	if err != nil || len(mac) != 6 {
		return 0, false
	}
	return routes.UplinkTable([6]byte(mac)), true
}

// Missing returns the addresses of the interfaces that the host does not have.
func (u Uplinks) Missing(h routes.Host) (addrs []netip.Addr) {
	for _, i := range u.Interfaces {
		if _, ok := i.Link(h); !ok {
			addrs = append(addrs, i.Addresses...)
		}
	}
	return addrs
}

// State is what the host needs for all granted addresses, before there is a pod. Without uplinks it is empty.
func (u Uplinks) State(h routes.Host) routes.State {
	var s state
	if len(u.Interfaces) == 0 {
		return s.State
	}
	mark := cmp.Or(u.Mark, ReturnMark)
	s.Symmetric = &routes.Symmetric{Mark: mark}
	if u.NodeEgress {
		s.Symmetric.Inside = slices.Clone(u.Inside)
		for _, i := range u.Interfaces {
			s.Symmetric.Inside = append(s.Symmetric.Inside, i.Subnet)
		}
	}
	var parents []string
	alone := map[string]bool{} // links that answer ARP for their own addresses only
	families := map[bool]bool{}
	for _, i := range u.Interfaces {
		link, found := i.Link(h)
		if !families[i.V6()] {
			families[i.V6()] = true
			s.ofFamily(i.V6(), mark)
		}
		if table, ok := i.Table(h); ok {
			for _, p := range Aggregate(append(slices.Clone(i.Addresses), i.Address)) {
				s.Rules = append(s.Rules, routes.Rule{Priority: priorityUplink, From: p, Table: table})
			}
			s.Routes = append(s.Routes, i.routes(table, link.Name, found)...)
		}
		for _, a := range i.Addresses {
			s.Routes = append(s.Routes, routes.Route{Dst: single(a), Type: "unreachable", Protocol: routes.ProtoNode, Metric: fallbackMetric})
		}
		one := routes.Link{Name: link.Name, Up: true}
		if parent, makes := i.Makes(h); makes {
			vlan := i.vlan()
			// A link that is not there yet is made first, and down: the kernel may refuse it. The next look finds it.
			one = routes.Link{Name: i.Name, Kind: "vlan", MTU: parent.MTU, Alias: vlanAlias, Up: found, VLAN: &vlan}
			parents = append(parents, i.Parent)
		}
		if one.Name != "" && !slices.ContainsFunc(s.Links, func(l routes.Link) bool { return l.Name == one.Name }) { // else of the other family
			s.Links = append(s.Links, one)
		}
		if !found {
			continue
		}
		if !slices.Contains(s.Symmetric.Uplinks, link.Name) {
			s.Symmetric.Uplinks = append(s.Symmetric.Uplinks, link.Name)
			// A router of the LAN would give the node a second default route, and addresses.
			s.Sysctls = append(s.Sysctls, routes.Refusals(link.Name)...)
		}
		// By the rules of RFC 6724 the node would ask its pods from this IPv6 address, because theirs are like it.
		s.Addrs = append(s.Addrs, routes.Addr{Link: link.Name, Prefix: single(i.Address), HostScope: i.V6()})
		s.Sysctls = append(s.Sysctls, routes.Forwarding(link.Name, i.V6()))
		if i.V6() { // else the answers to neighbours come from the node's usual address, of another link: RFC 4861, section 4.4
			s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: "net/ipv6/conf/" + link.Name + "/use_oif_addrs_only", Value: "1"})
			// Neighbours are asked from a link-local address (net/ipv6/ndisc.c: ndisc_solicit). The kernel makes it when the
			// link goes up, and somebody may remove it.
			if ip, ok := linkLocal(link.MAC); ok && link.Up {
				s.Addrs = append(s.Addrs, routes.Addr{Link: link.Name, Prefix: netip.PrefixFrom(ip, 64)})
			}
		} else {
			alone[link.Name] = true
			for _, a := range h.Addrs {
				if i.Subnet.Contains(a.Prefix.Addr()) {
					alone[a.Link] = true
				}
			}
		}
		if i.AnswerARP {
			neigh := "net/ipv4/neigh/"
			if i.V6() {
				neigh = "net/ipv6/neigh/"
				s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: "net/ipv6/conf/" + link.Name + "/proxy_ndp", Value: "1"})
			}
			s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: neigh + link.Name + "/proxy_delay", Value: "0"})
			for _, a := range i.Addresses {
				s.Proxies = append(s.Proxies, routes.ProxyNeigh{Link: link.Name, IP: a})
			}
			if !i.V6() {
				s.Announced = &routes.Announced{}
			}
		}
	}
	for _, p := range parents { // a parent may carry several VLANs, and be an uplink itself
		if !slices.ContainsFunc(s.Links, func(l routes.Link) bool { return l.Name == p }) {
			s.Links = slices.Insert(s.Links, 0, routes.Link{Name: p, Up: true})
		}
	}
	for _, l := range h.Links {
		if alone[l.Name] { // net/ipv4/arp.c: arp_ignore
			s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: "net/ipv4/conf/" + l.Name + "/arp_ignore", Value: "1"})
		}
	}
	return s.State
}

// state is a routes.State in the making.
type state struct{ routes.State }

// ofFamily adds the rules and settings that a family needs once.
func (s *state) ofFamily(v6 bool, mark uint32) {
	longest := 31
	if v6 {
		longest = 127
	}
	s.Rules = append(s.Rules, routes.Rule{V6: v6, Priority: priorityPods, Longer: longest}, routes.Rule{V6: v6, Priority: priorityReturn, Mark: mark})
	s.Sysctls = append(s.Sysctls, routes.Forwarding("", v6))
	if !v6 {
		s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: "net/ipv4/conf/all/src_valid_mark", Value: "1"})
	}
}

// Onlink reports whether a route of an interface's table by via needs the flag onlink. In IPv6 the kernel looks for via
// in this table first, and refuses the flag where table main has via on another link (net/ipv6/route.c:
// ip6_route_check_nh, ip6_route_check_nh_onlink).
func Onlink(via netip.Addr) bool { return via.Is4() }

// linkLocal returns the link-local address that the kernel makes of a MAC: RFC 4291, appendix A.
func linkLocal(mac string) (netip.Addr, bool) {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}), true
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// routes are those of the interface's table. While the interface is away, its pods' packets leave by no other
// one: a network drops them there, or takes them for the node's. Packets that leave by the node are marked
// (routes.Symmetric), and never get here.
func (i Interface) routes(table int, link string, found bool) (out []routes.Route) {
	add := func(dst netip.Prefix, via netip.Addr) {
		r := routes.Route{Dst: dst, Via: via, Link: link, Table: table, Onlink: Onlink(via), Protocol: routes.ProtoNode}
		if found {
			out = append(out, r)
		}
	}
	gateway := single(i.Gateway)
	if !i.Gateway.IsLinkLocalUnicast() { // a link-local router is on the link without a route
		add(gateway, netip.Addr{})
	}
	if i.OnLink && i.Subnet != gateway {
		add(i.Subnet, netip.Addr{})
	}
	everywhere := netip.PrefixFrom(i.Gateway, 0).Masked()
	add(everywhere, i.Gateway)
	return append(out, routes.Route{Dst: everywhere, Type: "unreachable", Table: table, Metric: fallbackMetric, Protocol: routes.ProtoNode})
}

// Pool is the pool of all granted addresses: a pod gets one of each family that has some. Those for which leasable is
// false are reserved.
func (u Uplinks) Pool(leasable func(netip.Addr) bool) (p ipam.Pool) {
	var sets [2]ipam.RangeSet // of IPv4, of IPv6
	var reserved, all []netip.Addr
	subnet := map[netip.Addr]netip.Prefix{}
	for _, i := range u.Interfaces {
		for _, a := range i.Addresses {
			if _, twice := subnet[a]; !twice && i.Subnet.Contains(a) && i.Subnet.Bits() <= a.BitLen()-2 {
				subnet[a], all = i.Subnet, append(all, a)
			}
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	for _, a := range all {
		if !leasable(a) {
			reserved = append(reserved, a)
		}
		set := &sets[0]
		if a.Is6() {
			set = &sets[1]
		}
		if n := len(*set) - 1; n >= 0 && (*set)[n].Last.Next() == a && (*set)[n].Subnet == subnet[a] {
			(*set)[n].Last = a
		} else if s := subnet[a]; a != s.Addr() && (a.Is6() || s.Contains(a.Next())) { // not the network (IPv6: its routers), nor its broadcast address
			*set = append(*set, ipam.Range{Subnet: s, First: a, Last: a})
		}
	}
	for _, set := range sets {
		if len(set) > 0 {
			p.Sets = append(p.Sets, set)
		}
	}
	if len(p.Sets) > 0 {
		p.Reserved = Aggregate(reserved)
	}
	return p
}

// Aggregate returns the fewest prefixes that have exactly these addresses, sorted.
func Aggregate(addrs []netip.Addr) (out []netip.Prefix) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range slices.Compact(addrs) {
		p := netip.PrefixFrom(a, a.BitLen())
		for n := len(out) - 1; n >= 0 && out[n].Bits() == p.Bits(); n-- { // the last two may be halves of one
			whole := netip.PrefixFrom(out[n].Addr(), p.Bits()-1)
			if whole.Masked() != whole || !whole.Contains(p.Addr()) {
				break
			}
			p, out = whole, out[:n]
		}
		out = append(out, p)
	}
	return out
}
