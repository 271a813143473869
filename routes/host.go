package routes

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Host reads what the policy needs to know of the machine. Our own links (ew*, edgeway.*), their
// addresses and routes, and routes of our protocols are left out. The routes of others that drop packets
// (blackhole, unreachable, prohibit) are read too.
func (k *Kernel) Host(ctx context.Context) (Host, error) {
	var h Host
	if err := ctx.Err(); err != nil {
		return h, err
	}
	v := newView(k.c)
	var err error
	h.Links, err = v.links(func(name string) bool { return !ours(name) })
	if err != nil {
		return Host{}, err
	}
	addrs, err := v.addrs(0)
	if err != nil {
		return Host{}, err
	}
	for _, a := range addrs {
		d := v.byIndex[a.index]
		if a.scope == unix.RT_SCOPE_UNIVERSE && !ours(d.Name) {
			h.Addrs = append(h.Addrs, Addr{Link: d.Name, Prefix: a.prefix})
		}
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		entries, err := v.fib(fam, mainTable, 0, 0)
		if err != nil {
			return Host{}, err
		}
		for _, e := range entries {
			if (e.Type == "" || drops(e.Type)) && e.Protocol != ProtoPod && e.Protocol != ProtoNode && e.Protocol != ProtoLearned {
				h.Routes = append(h.Routes, v.hostRoutes(e)...)
			}
		}
	}
	return h, nil
}

// drops reports whether a route of that type drops packets.
func drops(kind string) bool {
	return kind == "blackhole" || kind == "unreachable" || kind == "prohibit"
}

// hostRoutes gives each next hop of a multipath route a Route.
func (v *view) hostRoutes(e fibEntry) (out []Route) {
	hops := e.hops
	if len(hops) == 0 {
		hops = []hop{{e.Via, e.index}}
	}
	for _, h := range hops {
		r := e.Route
		r.Via, r.Link, r.Table, r.NextHopID = h.via, v.name(h.index), 0, 0
		if !ours(r.Link) {
			out = append(out, r)
		}
	}
	return out
}

// RoutesOn returns the routes of all tables that leave by the link.
func (k *Kernel) RoutesOn(ctx context.Context, link string) (out []Route, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := newView(k.c)
	index, err := v.index(link)
	if err != nil {
		return nil, err
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		entries, err := v.fib(fam, 0, 0, 0)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.index == index && e.Type == "" {
				out = append(out, v.route(e))
			}
		}
	}
	return out, nil
}

// Lookup returns the route by which the kernel sends a packet to a: Dst is a itself, Src the source
// address it would take; Type is local for an address of this machine. The error wraps ENETUNREACH when
// there is no route.
func (k *Kernel) Lookup(ctx context.Context, a netip.Addr) (Route, error) {
	if err := ctx.Err(); err != nil {
		return Route{}, err
	}
	v := newView(k.c)
	e, err := v.match(a, 0)
	if err != nil {
		return Route{}, fmt.Errorf("route to %v: %w", a, err)
	}
	if e.Type != "" && e.Type != "local" {
		return e.Route, fmt.Errorf("route to %v: %s: %w", a, e.Type, unix.ENETUNREACH)
	}
	r := v.route(e)
	r.Table = 0
	return r, nil
}

// Holder returns the route of this very address: a host route, or type "local" or "broadcast" for an
// address of this machine. ok is false where only a wider route leads to a. A host route without a
// next hop, such as a blackhole, is not seen.
func (k *Kernel) Holder(ctx context.Context, a netip.Addr) (r Route, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return Route{}, false, err
	}
	v := newView(k.c)
	e, err := v.match(a, unix.RTM_F_FIB_MATCH|unix.RTM_F_LOOKUP_TABLE)
	if err != nil || !e.Dst.IsSingleIP() || e.Dst.Addr() != a {
		return Route{}, false, nil // no route, or one without a next hop
	}
	return v.route(e), true, nil
}
