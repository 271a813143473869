package routes

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// observeRoutes reads our routes by their protocol, and the routes in the place of desired ones. It reads
// other owners' routes only if one of ours is wrong, or if one is missing and the caller wants to know the
// holder of its place. Sync need not know in advance: the kernel refuses to add a route where there is one
// (NLM_F_EXCL).
func (v *view) observeRoutes(scope Scope, desired []Route) ([]Route, error) {
	var out []Route
	var errs []error
	v.right = make([]bool, len(desired))
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := v.observeFamily(fam, scope, desired)
		out, errs = append(out, routes...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// owner is the filter of a dump of our routes.
type owner struct {
	table    int // 0: any
	protocol Protocol
}

func (v *view) observeFamily(fam uint8, scope Scope, desired []Route) ([]Route, error) {
	var owners []owner
	if scope.Protocol != 0 && scope.Rules { // one list of all tables finds those of former uplinks too
		owners = append(owners, owner{0, scope.Protocol})
	} else if scope.Protocol != 0 {
		owners = append(owners, owner{mainTable, scope.Protocol})
	}
	of := func(r Route) bool { return r.Dst.IsValid() && family(r.Dst.Addr()) == fam }
	n := 0
	for _, r := range desired {
		if of(r) {
			n++
		}
	}
	want := make(map[routeKey]int, n) // to index in desired
	for i, r := range desired {
		if of(r) {
			k := keyOfRoute(r)
			want[k] = i
			if o := (owner{k.table, r.Protocol}); !slices.Contains(owners, o) && !slices.Contains(owners, owner{0, r.Protocol}) {
				owners = append(owners, o)
			}
		}
	}
	if out, ok := v.observeHosts(scope, want, desired); ok {
		return out, nil
	}
	brief := v.brief && len(want) == n // two desired routes in one place are both observed: Diff reports them
	var out []Route
	right, wrong := 0, false
	for _, o := range owners {
		all, err := v.compare(fam, o, want, desired, brief)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			if l.entry == nil {
				v.right[l.at] = true
				right++
				continue
			}
			if l.at < 0 && !scope.owns(l.entry.Table, l.entry.Protocol) {
				continue
			}
			r := v.route(*l.entry)
			if l.at >= 0 && normal(r) == normal(desired[l.at]) {
				right++
			} else if l.at >= 0 {
				wrong = true
			}
			out = append(out, r)
		}
	}
	if !wrong && (right >= len(want) || !v.holders) {
		return out, nil
	}
	for _, at := range want {
		v.right[at] = false
	}
	return v.observeTables(fam, scope, want, owners)
}

// owns reports whether every route of the protocol in the table is in the scope.
func (s Scope) owns(table int, p Protocol) bool {
	return s.Protocol != 0 && p == s.Protocol && (table == mainTable || s.Rules && isUplinkTable(table))
}

// wrong returns the desired routes that are not marked as right.
func (v *view) wrong(desired []Route) (out []Route) {
	for i, r := range desired {
		if !v.right[i] {
			out = append(out, r)
		}
	}
	return out
}

// listed is a route that the kernel listed.
type listed struct {
	at    int       // index of the desired route in its place; -1: no desired route is there
	entry *fibEntry // nil: the desired route itself
}

// compare lists the owner's routes. If brief is set, it compares them with the desired routes while the kernel
// lists them, and leaves out the entries of the routes that are right. Usually nearly all routes are right.
func (v *view) compare(fam uint8, o owner, want map[routeKey]int, desired []Route, brief bool) ([]listed, error) {
	link := ""
	for _, r := range desired { // while the kernel lists routes, nothing else can be asked
		if brief && r.Link != link {
			link = r.Link
			_, _, _ = v.named(link) // an unknown link is asked for again, with its error
		}
	}
	index := 0
	all, err := listRoutes(v.c, fam, o, len(want), func(e fibEntry) (listed, bool) {
		at, ok := want[keyOfRoute(e.Route)]
		if !ok {
			at = -1
		}
		if ok && brief {
			if e.index != index {
				index, link = e.index, v.byIndex[e.index].Name
			}
			if e.Link = link; normal(e.Route) == normal(desired[at]) {
				return listed{at, nil}, true
			}
		}
		kept := e
		return listed{at, &kept}, true
	})
	var entries []*fibEntry
	for _, l := range all {
		if l.entry != nil {
			entries = append(entries, l.entry)
		}
	}
	return all, errors.Join(err, v.reveal(entries))
}

// observeTables reads whole tables, so that other owners' routes in the place of ours are
// seen in the kernel's order.
func (v *view) observeTables(fam uint8, scope Scope, want map[routeKey]int, owners []owner) ([]Route, error) {
	var tables []int
	for _, o := range owners {
		if !slices.Contains(tables, o.table) {
			tables = append(tables, o.table)
		}
	}
	if slices.Contains(tables, 0) {
		tables = []int{0} // all of them
	}
	var out []Route
	for _, table := range tables {
		entries, err := v.fib(fam, table, 0, len(want))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			_, wanted := want[keyOfRoute(e.Route)]
			if wanted || scope.owns(e.Table, e.Protocol) {
				out = append(out, v.route(e))
			}
		}
	}
	return out, nil
}

// hostRoutesAtOnce is how many routes are looked up one by one before a dump is cheaper.
const hostRoutesAtOnce = 4

// observeHosts looks up the few host routes of one attachment, without reading the routes of all other
// attachments. The longest match of a whole address is the host route of the address, if there is a host
// route. ok is false if only a dump can tell.
func (v *view) observeHosts(scope Scope, want map[routeKey]int, desired []Route) (out []Route, ok bool) {
	if scope.Protocol != 0 || v.holders || len(want) > hostRoutesAtOnce {
		return nil, false
	}
	for k, at := range want {
		if !k.dst.IsSingleIP() || k.table != mainTable {
			return nil, false
		}
		e, err := v.match(k.dst.Addr(), unix.RTM_F_FIB_MATCH|unix.RTM_F_LOOKUP_TABLE)
		switch {
		case errors.Is(err, unix.ENETUNREACH):
			// no route at all
		case err != nil || e.Table != mainTable:
			return nil, false // a rule or a type without next hop: the main table may hold more
		case e.Dst == k.dst:
			r := v.route(e)
			if normal(r) != normal(desired[at]) {
				return nil, false
			}
			out = append(out, r)
		}
	}
	return out, true
}

// match returns the kernel's choice of a route to a.
func (v *view) match(a netip.Addr, flags uint32) (fibEntry, error) {
	body, err := v.c.get(lookup(a, flags))
	if err != nil {
		return fibEntry{}, err
	}
	return chosen(body)
}

// lookup asks which route the kernel takes to a.
func lookup(a netip.Addr, flags uint32) message {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = family(a), uint8(a.BitLen())
	if a.Is6() { // an IPv6 answer always has the table, and the kernel refuses a request for it
		flags &^= unix.RTM_F_LOOKUP_TABLE
	}
	binary.NativeEndian.PutUint32(h[8:], flags)
	return newMessage(unix.RTM_GETROUTE, 0, h).attrAddr(unix.RTA_DST, a)
}

// chosen parses the answer to lookup.
func chosen(body []byte) (fibEntry, error) {
	if len(body) >= unix.SizeofRtMsg { // the answer is marked as a copy of a route, which parseRoute skips
		flags := binary.NativeEndian.Uint32(body[8:])
		binary.NativeEndian.PutUint32(body[8:], flags&^unix.RTM_F_CLONED)
	}
	e, ok := parseRoute(body)
	if !ok {
		return e, errors.New("the kernel's answer does not contain a usable route")
	}
	return e, nil
}
