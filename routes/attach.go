package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses, neighbours and forwarding entries: the objects on a link.

// addrMessage switches off duplicate address detection, which takes a second or two (RFC 4862 section
// 5.4): our addresses are leased. A single address gets no prefix route.
func addrMessage(typ uint16, flags int, a Addr, index int) message {
	ip := a.Prefix.Addr()
	h := make([]byte, unix.SizeofIfAddrmsg)
	h[0], h[1] = family(ip), uint8(a.Prefix.Bits())
	if a.HostScope && ip.Is4() {
		h[3] = unix.RT_SCOPE_HOST
	}
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	m := newMessage(typ, flags, h).attrAddr(unix.IFA_LOCAL, ip).attrAddr(unix.IFA_ADDRESS, ip)
	var ifa uint32
	if ip.Is6() {
		ifa |= unix.IFA_F_NODAD
	}
	if a.Prefix.IsSingleIP() {
		ifa |= unix.IFA_F_NOPREFIXROUTE
	}
	if typ == unix.RTM_NEWADDR && ifa != 0 {
		m = m.attr32(unix.IFA_FLAGS, ifa)
	}
	if typ == unix.RTM_NEWADDR && a.HostScope && ip.Is6() { // struct ifa_cacheinfo: preferred for 0 s, valid for ever
		m = m.attr(unix.IFA_CACHEINFO, append(binary.NativeEndian.AppendUint32(make([]byte, 4), math.MaxUint32), make([]byte, 8)...))
	}
	return m
}

// ifAddr is one answer of an address dump.
type ifAddr struct {
	prefix netip.Prefix
	index  int
	// aside: the address is not a source while there is another (Addr.HostScope).
	aside bool
	scope uint8
}

func parseAddr(b []byte) (ifAddr, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return ifAddr{}, false
	}
	a := ifAddr{index: int(binary.NativeEndian.Uint32(b[4:])), scope: b[3]}
	a.aside = b[0] == unix.AF_INET && a.scope == unix.RT_SCOPE_HOST
	var address, local netip.Addr
	for typ, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_ADDRESS:
			address = attrAddr(v)
		case unix.IFA_LOCAL:
			local = attrAddr(v)
		case unix.IFA_FLAGS:
			a.aside = a.aside || b[0] == unix.AF_INET6 && attrUint32(v)&unix.IFA_F_DEPRECATED != 0
		}
	}
	if local.IsValid() {
		address = local // on a point-to-point link, IFA_ADDRESS is the address of the other end
	}
	a.prefix = netip.PrefixFrom(address, int(b[1]))
	return a, a.prefix.IsValid()
}

// addrs reads the addresses of a link; index 0 means every link.
func (v *view) addrs(index int) ([]ifAddr, error) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	addrs, err := dump(v.c, newMessage(unix.RTM_GETADDR, 0, h), 0, func(b []byte) (ifAddr, bool) {
		a, ok := parseAddr(b)
		return a, ok && (index == 0 || a.index == index)
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

// neighMessage has a struct ndmsg (linux/neighbour.h). AF_BRIDGE means the forwarding table, any other
// family the neighbour table.
func neighMessage(typ uint16, flags int, family uint8, index int, state uint16, ntf uint8) message {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = family
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	binary.NativeEndian.PutUint16(h[8:], state)
	h[10] = ntf
	return newMessage(typ, flags, h)
}

const (
	createOrSet = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// getNeigh asks for the neighbour entry of an address on the link.
func getNeigh(a netip.Addr, index int) message {
	return neighMessage(unix.RTM_GETNEIGH, 0, family(a), index, 0, 0).attrAddr(unix.NDA_DST, a)
}

// messages gives an entry that learns the state NUD_STALE: the kernel uses it at once and checks it later.
// All namespaces share the neighbour tables. The flag NTF_EXT_LEARNED keeps the kernel from dropping the
// entry when a table is full (net/core/neighbour.c: neigh_update_gc_list).
func (n Neigh) messages(typ uint16, index int) ([]message, error) {
	if typ == unix.RTM_DELNEIGH {
		return []message{neighMessage(typ, 0, family(n.IP), index, 0, 0).attrAddr(unix.NDA_DST, n.IP)}, nil
	}
	mac, err := hardwareAddr(n.MAC)
	if err != nil {
		return nil, err
	}
	var out []message
	state, ntf := uint16(unix.NUD_PERMANENT), uint8(0)
	if n.Learns {
		state, ntf = unix.NUD_STALE, unix.NTF_EXT_LEARNED
		out = append(out, patience(family(n.IP), index))
	}
	m := neighMessage(typ, createOrSet, family(n.IP), index, state, ntf)
	return append(out, m.attrAddr(unix.NDA_DST, n.IP).attr(unix.NDA_LLADDR, mac)), nil
}

// Attributes of neighbour tables (linux/neighbour.h: NDTA_, NDTPA_).
const (
	ndtaName          = 1
	ndtaParms         = 6
	ndtpaIfIndex      = 1
	ndtpaUcastProbes  = 10
	ndtpaMcastReprobe = 17
)

// patience makes the kernel ask for a known neighbour of the link by broadcast at once, and never give the
// neighbour up while it asks (net/core/neighbour.c: neigh_timer_handler, neigh_max_probes). By default the
// kernel asks the old MAC first, and drops an entry that does not answer three times. A pod whose rp_filter
// refuses the host's address answers no ARP, but is reachable all the same.
func patience(family uint8, index int) message {
	table := "arp_cache"
	if family == unix.AF_INET6 {
		table = "ndisc_cache"
	}
	m := newMessage(unix.RTM_SETNEIGHTBL, 0, []byte{family, 0, 0, 0}).attrString(ndtaName, table)
	return m.nest(ndtaParms|unix.NLA_F_NESTED, func(m message) message {
		return m.attr32(ndtpaIfIndex, uint32(index)).attr32(ndtpaUcastProbes, 0).attr32(ndtpaMcastReprobe, math.MaxInt32)
	})
}

func (f FDB) message(typ uint16, index int) (message, error) {
	mac, err := hardwareAddr(f.MAC)
	if err != nil {
		return nil, err
	}
	flags := 0
	if typ == unix.RTM_NEWNEIGH {
		flags = createOrSet
		if keyOfFDB(f).Dst.IsValid() {
			flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
		}
	}
	m := neighMessage(typ, flags, unix.AF_BRIDGE, index, unix.NUD_PERMANENT|unix.NUD_NOARP, unix.NTF_SELF)
	m = m.attr(unix.NDA_LLADDR, mac).attrAddr(unix.NDA_DST, f.Dst)
	if f.VNI != 0 {
		m = m.attr32(unix.NDA_VNI, f.VNI)
	}
	if f.Port != 0 {
		m = m.attr(unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, f.Port))
	}
	return m, nil
}

// entry is one answer of a neighbour or forwarding dump.
type entry struct {
	index    int
	state    uint16
	flags    uint8
	ip       netip.Addr
	mac      string
	vni      uint32 // 0: that of the link, as the kernel omits it (drivers/net/vxlan/vxlan_core.c: vxlan_fdb_info)
	port     uint16 // likewise
	protocol Protocol
	age      time.Duration // since the state changed
}

func parseNeigh(b []byte) (entry, bool) {
	if len(b) < unix.SizeofNdMsg {
		return entry{}, false
	}
	e := entry{index: int(binary.NativeEndian.Uint32(b[4:])), state: binary.NativeEndian.Uint16(b[8:]), flags: b[10]}
	for typ, v := range attrs(b[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			e.ip = attrAddr(v)
		case unix.NDA_LLADDR:
			e.mac = LinkAddr(net.HardwareAddr(v))
		case unix.NDA_VNI:
			if len(v) == 4 {
				e.vni = binary.NativeEndian.Uint32(v)
			}
		case unix.NDA_CACHEINFO: // struct nda_cacheinfo; ndm_updated is in hundredths of a second (USER_HZ)
			if len(v) >= 12 {
				e.age = time.Duration(binary.NativeEndian.Uint32(v[8:])) * (time.Second / 100)
			}
		case ndaProtocol:
			if len(v) > 0 {
				e.protocol = Protocol(v[0])
			}
		case unix.NDA_PORT:
			if len(v) == 2 {
				e.port = binary.BigEndian.Uint16(v)
			}
		}
	}
	return e, e.ip.IsValid()
}

// usable are the states in which the kernel sends packets to the entry's MAC.
const usable = unix.NUD_PERMANENT | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE

// entries reads the entries of a link that are in one of the states.
func (v *view) entries(family uint8, index int, states uint16) ([]entry, error) {
	m := neighMessage(unix.RTM_GETNEIGH, 0, family, 0, 0, 0).attr32(unix.NDA_IFINDEX, uint32(index))
	if family == unix.AF_BRIDGE { // rtnetlink.c: valid_fdb_dump_strict
		m = neighMessage(unix.RTM_GETNEIGH, 0, family, index, 0, 0)
	}
	entries, err := dump(v.c, m, 0, func(b []byte) (entry, bool) {
		e, ok := parseNeigh(b)
		return e, ok && e.index == index && e.state&states != 0 && e.flags&unix.NTF_PROXY == 0
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("list neighbours of link %s: %w", v.name(index), err)
	}
	return entries, nil
}

// observeAddrs reads all addresses of our links, and the desired addresses of other links.
func (v *view) observeAddrs(scope Scope, desired []Addr) (out []Addr, err error) {
	want := map[Addr]bool{}
	links := slices.Clone(scope.Links)
	for _, a := range desired {
		want[a] = true
		links = append(links, a.Link)
	}
	return eachLink(v, links, func(d device) (out []Addr, err error) {
		found, err := v.addrs(d.index)
		for _, f := range found {
			a := Addr{d.Name, f.prefix, f.aside}
			clash := slices.ContainsFunc(desired, func(w Addr) bool {
				return w.Link == a.Link && w.Prefix.Addr() == a.Prefix.Addr() && a.Prefix.Addr().Is6()
			})
			if want[a] || clash || (f.scope == unix.RT_SCOPE_UNIVERSE && slices.Contains(scope.Links, d.Name)) {
				out = append(out, a)
			}
		}
		return out, err
	})
}

// observeNeighs reads all neighbours of our links, and the desired neighbours of other links. An entry that
// the kernel found by itself has no owner.
func (v *view) observeNeighs(scope Scope, desired []Neigh) ([]Neigh, error) {
	want := map[Neigh]bool{}
	links := slices.Clone(scope.Links)
	for _, n := range desired {
		want[Neigh{Link: n.Link, IP: n.IP}] = true
		links = append(links, n.Link)
	}
	return eachLink(v, links, func(d device) (out []Neigh, err error) {
		found, err := v.entries(unix.AF_UNSPEC, d.index, usable)
		for _, e := range found {
			permanent := e.state&unix.NUD_PERMANENT != 0
			given := permanent || e.flags&unix.NTF_EXT_LEARNED != 0
			if want[Neigh{Link: d.Name, IP: e.ip}] || given && slices.Contains(scope.Links, d.Name) {
				out = append(out, Neigh{d.Name, e.ip, e.mac, !permanent})
			}
		}
		return out, err
	})
}

// observeFDB reads the forwarding entries, as observeNeighs does. The kernel finds none by itself on a link that does
// not learn.
func (v *view) observeFDB(scope Scope, desired []FDB) ([]FDB, error) {
	want := map[FDB]bool{}
	links := slices.Clone(scope.Links)
	for _, f := range desired {
		want[keyOfFDB(f)] = true
		links = append(links, f.Link)
	}
	return eachLink(v, links, func(d device) (out []FDB, err error) {
		if d.Kind != "vxlan" {
			return nil, nil
		}
		found, err := v.entries(unix.AF_BRIDGE, d.index, math.MaxUint16)
		for _, e := range found {
			f := FDB{d.Name, e.mac, e.ip, e.vni, e.port, e.state&unix.NUD_PERMANENT == 0}
			if want[keyOfFDB(f)] || slices.Contains(scope.Links, d.Name) {
				out = append(out, f)
			}
		}
		return out, err
	})
}

// eachLink collects the results of read for each named link that exists.
func eachLink[T any](v *view, names []string, read func(device) ([]T, error)) (out []T, err error) {
	slices.Sort(names)
	var errs []error
	for _, name := range slices.Compact(names) {
		d, ok, err := v.named(name)
		if ok {
			var found []T
			found, err = read(d)
			out = append(out, found...)
		}
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}
