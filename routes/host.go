package routes

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Host reads the state of the machine that the policy needs. It leaves out our own links (ew*, edgeway.*),
// their addresses and routes, and routes of our protocols. It includes other owners' routes that drop
// packets (blackhole, unreachable, prohibit).
func (k *Kernel) Host(ctx context.Context) (Host, error) {
	var h Host
	if err := ctx.Err(); err != nil {
		return h, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return h, err
	}
	h.Kernel = unix.ByteSliceToString(name.Release[:])
	v := newView(k.c)
	var err error
	h.Links, err = v.links(func(name string) bool { return !ours(name) })
	if err != nil {
		return Host{}, err
	}
	if on, _ := v.forwards(unix.AF_INET); on == "1" {
		for _, l := range h.Links {
			if v.byName[l.Name].closed {
				h.Unforwarded = append(h.Unforwarded, l.Name)
			}
		}
	}
	all, _ := v.everywhere(unix.AF_INET, netconfRPFilter)
	for _, l := range h.Links {
		if own := v.byName[l.Name].rpFilter; own <= strict && (all == "1" || own == strict && all != "2") {
			h.Strict = append(h.Strict, l.Name)
		}
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
		entries, err := v.fibIf(fam, owner{mainTable, 0}, 0, func(e fibEntry) bool {
			others := e.Protocol != ProtoPod && e.Protocol != ProtoNode && e.Protocol != ProtoLearned
			return others && (e.Type == "" || drops(e.Type))
		})
		if err != nil {
			return Host{}, err
		}
		for _, e := range entries {
			h.Routes = append(h.Routes, v.hostRoutes(e)...)
		}
	}
	return h, nil
}

// strict is the value of rp_filter with which the kernel drops a packet that did not arrive by the link of the
// route to its source (RFC 3704, section 2.2).
const strict = 1

// drops reports whether a route of that type drops packets.
func drops(kind string) bool {
	return kind == "blackhole" || kind == "unreachable" || kind == "prohibit"
}

// hostRoutes returns one Route for each next hop of a multipath route.
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

// OnlyLink returns the link that is up, is not the loopback and has a global address. ok is false if there is
// no such link, or more than one.
func (h Host) OnlyLink() (only Link, ok bool) {
	for _, l := range h.Links {
		if l.Up && l.Name != "lo" && slices.ContainsFunc(h.Addrs, func(a Addr) bool { return a.Link == l.Name }) {
			if ok {
				return Link{}, false
			}
			only, ok = l, true
		}
	}
	return only, ok
}

// RoutesOn returns the routes over the link, from all tables.
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

// Lookup returns the route by which the kernel sends a packet to a. Dst is a itself, and Src is the source
// address that the kernel would choose. Type is local for an address of this machine. The error wraps
// ENETUNREACH if there is no route.
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

// loopback is the index of lo in every namespace (linux/if.h: LOOPBACK_IFINDEX).
const loopback = 1

// Types of a holder that is not a route but a neighbour entry of a link that is not ours. TypeNeighbour: somebody
// wrote the entry, or the neighbour answered (see Answering). TypeLearned: the kernel learned the entry, which proves
// nothing: it outlives the pod of an earlier network plugin on its bridge.
const (
	TypeNeighbour = "neighbour"
	TypeLearned   = "learned neighbour"
)

// Holders returns the routes of exactly these addresses: host routes, or type "local" or "broadcast" for
// addresses of this machine. An address that only a wider route covers has no holder, unless the route leads
// straight to a link of another owner that has a neighbour entry for the address: Holders returns the entry as
// TypeNeighbour or TypeLearned. Holders does not see a host route without a next hop, such as a blackhole (Host
// does), and no neighbours before Linux 5.0.
//
// sourceless reports that this machine has no IPv4 source address for a link without addresses, such as a
// pod's link: packets leave as 0.0.0.0 unless their route names a source. If lo is down, this is not known,
// and sourceless is false. Holders asks for the route of a multicast packet, because the kernel then chooses
// the source by the link alone, as for a route that names no source (net/ipv4/route.c:
// ip_route_output_key_hash_rcu; net/ipv4/devinet.c: inet_select_addr).
func (k *Kernel) Holders(ctx context.Context, addrs ...netip.Addr) (held []Route, sourceless bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	answers, errs := k.c.gets(askHolders(addrs)...)
	held, sourceless = k.holders(addrs, answers, errs)
	return held, sourceless, nil
}

// askHolders are the requests of Holders: for a source, and for the route of each address.
func askHolders(addrs []netip.Addr) []message {
	msgs := []message{lookup(netip.AddrFrom4([4]byte{224, 0, 0, 1}), 0).attr32(unix.RTA_OIF, loopback)}
	for _, a := range addrs {
		msgs = append(msgs, lookup(a, unix.RTM_F_FIB_MATCH|unix.RTM_F_LOOKUP_TABLE))
	}
	return msgs
}

// holders reads the answers to askHolders, and asks for the neighbours of addresses on a link.
func (k *Kernel) holders(addrs []netip.Addr, answers [][]byte, errs []error) (held []Route, sourceless bool) {
	v := newView(k.c)
	var near []message
	if errs[0] == nil {
		e, err := chosen(answers[0])
		sourceless = err == nil && (!e.Src.IsValid() || e.Src.IsUnspecified())
	}
	for i, a := range addrs {
		if errs[i+1] != nil {
			continue // no route, or a route without a next hop
		}
		e, err := chosen(answers[i+1])
		switch {
		case err != nil:
		case e.Dst == netip.PrefixFrom(a, a.BitLen()):
			held = append(held, v.route(e))
		case e.Type == "" && e.index != 0 && !e.Via.IsValid():
			near = append(near, getNeigh(a, e.index))
		}
	}
	if len(near) == 0 {
		return held, sourceless
	}
	answers, errs = k.c.gets(near...)
	for i, err := range errs {
		if err != nil {
			continue // no entry
		}
		e, ok := parseNeigh(answers[i])
		if !ok || e.mac == "" || e.state&usable == 0 || ours(v.name(e.index)) {
			continue
		}
		h := Route{Type: TypeLearned, Dst: netip.PrefixFrom(e.ip, e.ip.BitLen()), Link: v.name(e.index)}
		if e.state&unix.NUD_PERMANENT != 0 || e.flags&unix.NTF_EXT_LEARNED != 0 {
			h.Type = TypeNeighbour
		}
		held = append(held, h)
	}
	return held, sourceless
}
