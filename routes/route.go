package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// fibEntry is one answer of a route dump.
type fibEntry struct {
	Route
	index  int
	family uint8
	hops   []hop // next hops of a multipath route
}

type hop struct {
	via   netip.Addr
	index int
}

// routeMessage fills in the rtmsg header (linux/rtnetlink.h) for the route's place.
func routeMessage(typ uint16, flags int, r Route, scope, kind uint8) message {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = family(r.Dst.Addr()), uint8(r.Dst.Bits())
	if r.Table < 256 {
		h[4] = uint8(r.Table)
	}
	h[5], h[6], h[7] = uint8(r.Protocol), scope, kind
	if r.Onlink {
		binary.NativeEndian.PutUint32(h[8:], unix.RTNH_F_ONLINK)
	}
	m := newMessage(typ, flags, h).attrAddr(unix.RTA_DST, r.Dst.Addr())
	if r.Table >= 256 {
		m = m.attr32(unix.RTA_TABLE, uint32(r.Table))
	}
	if r.Metric != 0 {
		m = m.attr32(unix.RTA_PRIORITY, uint32(r.Metric))
	}
	return m
}

// routeStep makes the change of a route so that the destination always has a route.
//
// The kernel replaces an IPv6 route (NLM_F_REPLACE) without the loss of a packet. When it replaces an IPv4
// route, it marks the old route as dead. A lookup that has already reached the old route then skips the old
// route and continues behind it, so the lookup misses the new route in the old route's place
// (net/ipv4/fib_trie.c: fib_table_insert, fib_table_lookup). So routeStep appends the new route behind the
// old route, where such a lookup finds the new route, and then deletes the old route. If other routes share
// the place, routeStep replaces the old route: an appended route would stand behind the other routes.
func (v *view) routeStep(c *Change, r Route) (s step, err error) {
	s.c = c
	was, replaces := c.Was.(Route)
	switch {
	case c.Op == Delete:
		s.m, err = v.delRoute(r)
		return s, err
	case !replaces:
		s.m, err = v.newRoute(r, unix.NLM_F_EXCL)
		return s, err
	case c.shared || r.Dst.Addr().Is6():
		s.m, err = v.newRoute(r, unix.NLM_F_REPLACE)
		return s, err
	}
	if s.m, err = v.newRoute(r, unix.NLM_F_APPEND); err == nil {
		if s.then, err = v.delRoute(was); absent(err) {
			err = nil // the old route went with its link
		}
	}
	return s, err
}

// newRoute makes r by one RTM_NEWROUTE. The flag (NLM_F_EXCL, NLM_F_REPLACE, NLM_F_APPEND) says what
// happens if the place has a route.
func (v *view) newRoute(r Route, flag int) (message, error) {
	scope := scopeOf(r)
	r = normal(r)
	kind, err := routeType(r.Type)
	if err != nil {
		return nil, err
	}
	if h, ok := v.nextHopOf(r); ok && v.objects[h] != 0 {
		r.NextHopID, r.Onlink = v.objects[h], false // the next hop object carries the flag
	}
	m := routeMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flag, r, scope, kind)
	if m, err = v.way(m, r); err != nil {
		return nil, err
	}
	if r.Src.IsValid() {
		m = m.attrAddr(unix.RTA_PREFSRC, r.Src)
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		m = m.nest(unix.RTA_METRICS, func(m message) message {
			if r.MTU != 0 {
				m = m.attr32(unix.RTAX_MTU, uint32(r.MTU))
			}
			if r.AdvMSS != 0 {
				m = m.attr32(unix.RTAX_ADVMSS, uint32(r.AdvMSS))
			}
			return m
		})
	}
	return m, nil
}

// scopeOf returns the scope of a route. A next hop needs an IPv4 route of scope link to it.
func scopeOf(r Route) uint8 {
	if r.Dst.Addr().Is4() && !r.Via.IsValid() && r.Type == "" && !r.Leaf {
		return unix.RT_SCOPE_LINK
	}
	return unix.RT_SCOPE_UNIVERSE
}

// via adds the next hop; an IPv4 route may have an IPv6 next hop (RFC 5549, RTA_VIA).
func via(m message, r Route) message {
	switch {
	case !r.Via.IsValid():
		return m
	case r.Via.Is4() == r.Dst.Addr().Is4():
		return m.attrAddr(unix.RTA_GATEWAY, r.Via)
	}
	return m.attr(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), r.Via.AsSlice()...))
}

// delRoute names all fields that distinguish r from its neighbours, so that only r is deleted.
func (v *view) delRoute(r Route) (message, error) {
	id := r.NextHopID
	r = normal(r)
	kind, err := routeType(r.Type)
	if err != nil {
		return nil, err
	}
	r.Onlink, r.NextHopID = false, id
	m := routeMessage(unix.RTM_DELROUTE, 0, r, unix.RT_SCOPE_NOWHERE, kind)
	if r.Multipath && id == 0 {
		return m, nil
	}
	return v.way(m, r)
}

// way adds the link and the next hop, or the object that stands for both: a route over an object
// is found only by its object (net/ipv4/fib_semantics.c: fib_nh_match).
func (v *view) way(m message, r Route) (message, error) {
	if r.NextHopID != 0 {
		return m.attr32(rtaNextHopID, r.NextHopID), nil
	}
	if r.Link != "" {
		index, err := v.index(r.Link)
		if err != nil {
			return nil, err
		}
		m = m.attr32(unix.RTA_OIF, uint32(index))
	}
	return via(m, r), nil
}

const rtaNextHopID = 30 // RTA_NH_ID, linux/rtnetlink.h

// routeTypes are the types besides unicast, by their names in ip (linux/rtnetlink.h: RTN_*).
func routeTypes() map[string]uint8 {
	return map[string]uint8{
		"local": unix.RTN_LOCAL, "broadcast": unix.RTN_BROADCAST, "anycast": unix.RTN_ANYCAST, "multicast": unix.RTN_MULTICAST,
		"blackhole": unix.RTN_BLACKHOLE, "unreachable": unix.RTN_UNREACHABLE, "prohibit": unix.RTN_PROHIBIT, "throw": unix.RTN_THROW,
	}
}

func routeType(text string) (uint8, error) {
	if text == "" {
		return unix.RTN_UNICAST, nil
	}
	if kind, ok := routeTypes()[text]; ok {
		return kind, nil
	}
	return 0, fmt.Errorf("route type %q is not known", text)
}

func routeTypeText(kind uint8) string {
	if kind == unix.RTN_UNICAST {
		return ""
	}
	for text, k := range routeTypes() {
		if k == kind {
			return text
		}
	}
	return strconv.Itoa(int(kind))
}

func parseRoute(b []byte) (fibEntry, bool) {
	if len(b) < unix.SizeofRtMsg || (b[0] != unix.AF_INET && b[0] != unix.AF_INET6) {
		return fibEntry{}, false
	}
	e := fibEntry{family: b[0]}
	e.Table, e.Protocol, e.Type = int(b[4]), Protocol(b[5]), routeTypeText(b[7])
	flags := binary.NativeEndian.Uint32(b[8:])
	e.Onlink = flags&unix.RTNH_F_ONLINK != 0
	if flags&unix.RTM_F_CLONED != 0 {
		return e, false // an exception of the IPv6 cache, not a route
	}
	dst := netip.IPv4Unspecified()
	if e.family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for typ, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			dst = attrAddr(v)
		case unix.RTA_MULTIPATH:
			e.hops = parseHops(v)
		default:
			e.attr(typ, v)
		}
	}
	if len(e.hops) > 0 {
		e.Via, e.index, e.Multipath = e.hops[0].via, e.hops[0].index, len(e.hops) > 1
	}
	switch b[7] {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		e.index = 0 // IPv6 shows such routes on lo
	}
	e.Dst = netip.PrefixFrom(dst, int(b[1]))
	return e, true
}

// attr reads one attribute of a route.
func (e *fibEntry) attr(typ uint16, v []byte) {
	switch typ {
	case unix.RTA_GATEWAY:
		e.Via = attrAddr(v)
	case unix.RTA_VIA:
		if len(v) > 2 {
			e.Via = attrAddr(v[2:])
		}
	case unix.RTA_OIF:
		e.index = int(attrUint32(v))
	case unix.RTA_PREFSRC:
		e.Src = attrAddr(v)
	case unix.RTA_PRIORITY:
		e.Metric = int(attrUint32(v))
	case unix.RTA_TABLE:
		e.Table = int(attrUint32(v))
	case rtaNextHopID:
		e.NextHopID = attrUint32(v)
	case unix.RTA_METRICS:
		for typ, v := range attrs(v) {
			switch typ {
			case unix.RTAX_MTU:
				e.MTU = int(attrUint32(v))
			case unix.RTAX_ADVMSS:
				e.AdvMSS = int(attrUint32(v))
			}
		}
	}
}

// parseHops walks struct rtnexthop: len, flags, hops, ifindex, attributes.
func parseHops(b []byte) (hops []hop) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return hops
		}
		h := fibEntry{index: int(binary.NativeEndian.Uint32(b[4:]))}
		for typ, v := range attrs(b[unix.SizeofRtNexthop:n]) {
			h.attr(typ, v)
		}
		hops = append(hops, hop{h.Via, h.index})
		b = b[min((n+3)&^3, len(b)):]
	}
	return hops
}

// fib reads one table of one family; table or protocol 0 means any. expect is the likely number of entries.
func (v *view) fib(family uint8, table int, protocol Protocol, expect int) ([]fibEntry, error) {
	return v.fibIf(family, owner{table, protocol}, expect, func(fibEntry) bool { return true })
}

// fibIf reads the owner's entries for which wanted returns true.
func (v *view) fibIf(family uint8, of owner, expect int, wanted func(fibEntry) bool) ([]fibEntry, error) {
	entries, err := listRoutes(v.c, family, of, expect, func(e fibEntry) (fibEntry, bool) { return e, wanted(e) })
	if err != nil {
		return nil, err
	}
	hidden := make([]*fibEntry, len(entries))
	for i := range entries {
		hidden[i] = &entries[i]
	}
	return entries, v.reveal(hidden)
}

// listRoutes calls keep for each route of the owner while the kernel lists the routes, and returns the values
// that keep accepted. If a change interrupts the list, listRoutes calls keep for all routes again.
func listRoutes[T any](c *conn, family uint8, of owner, expect int, keep func(fibEntry) (T, bool)) ([]T, error) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[5] = family, uint8(of.protocol)
	if of.table < 256 {
		h[4] = uint8(of.table)
	}
	m := newMessage(unix.RTM_GETROUTE, 0, h)
	if of.table != 0 {
		m = m.attr32(unix.RTA_TABLE, uint32(of.table))
	}
	kept, err := dump(c, m, expect, func(b []byte) (kept T, ok bool) {
		e, ok := parseRoute(b)
		if !ok || e.family != family || of.table != 0 && e.Table != of.table || of.protocol != 0 && e.Protocol != of.protocol {
			return kept, false
		}
		return keep(e)
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // the table does not exist, or the kernel lacks the family
	case err != nil:
		return nil, fmt.Errorf("list routes of table %d: %w", of.table, err)
	}
	return kept, nil
}

// route returns the entry's Route with its link's name.
func (v *view) route(e fibEntry) Route {
	e.Link = v.name(e.index)
	return e.Route
}
