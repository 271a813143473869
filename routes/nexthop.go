package routes

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Next hop objects (Linux 5.3, net/ipv4/nexthop.c) make many IPv4 routes cheap. For a plain route the
// kernel searches for an equal fib_info in a hash that ignores the gateway (net/ipv4/fib_semantics.c:
// fib_find_info), so N routes over one link cost N². A route that names an object needs no search. One
// object stands for one next hop. The object carries our protocol number, and is deleted when no route
// uses it.

// bulk is how many routes one Sync must add before it makes objects for their next hops. Fewer plain
// routes are as quick, and print plainly.
const bulk = 512

// firstObject is the lowest number of our objects, far from the numbers that routing daemons count up
// from 1. The protocol number decides ownership, not this number.
const firstObject = 0x65770000

// nextHop is the next hop that an object stands for.
type nextHop struct {
	via    netip.Addr
	index  int
	onlink bool
}

// nexthopObject is one answer of a next hop dump.
type nexthopObject struct {
	nextHop
	id       uint32
	protocol Protocol
	members  []uint32 // of a group
}

const sizeofNhMsg = 8 // struct nhmsg, linux/nexthop.h

func nexthopMessage(typ uint16, flags int, family uint8, protocol Protocol, onlink bool) message {
	h := make([]byte, sizeofNhMsg)
	h[0], h[2] = family, uint8(protocol)
	if onlink {
		binary.NativeEndian.PutUint32(h[4:], unix.RTNH_F_ONLINK)
	}
	return newMessage(typ, flags, h)
}

func parseNexthop(b []byte) (nexthopObject, bool) {
	if len(b) < sizeofNhMsg {
		return nexthopObject{}, false
	}
	o := nexthopObject{protocol: Protocol(b[2])}
	o.onlink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	for typ, v := range attrs(b[sizeofNhMsg:]) {
		switch typ {
		case unix.NHA_ID:
			o.id = attrUint32(v)
		case unix.NHA_OIF:
			o.index = int(attrUint32(v))
		case unix.NHA_GATEWAY:
			o.via = attrAddr(v)
		case unix.NHA_GROUP: // struct nexthop_grp: id, weight
			for ; len(v) >= 8; v = v[8:] {
				o.members = append(o.members, attrUint32(v))
			}
		}
	}
	return o, o.id != 0
}

func (v *view) nexthops() ([]nexthopObject, error) {
	objects, err := dump(v.c, nexthopMessage(unix.RTM_GETNEXTHOP, 0, 0, 0, false), 0, parseNexthop)
	if err != nil {
		return nil, fmt.Errorf("list next hop objects: %w", err)
	}
	return objects, nil
}

// reveal fills in the next hops of routes that the kernel lists only by their object's number
// (sysctl net.ipv4.nexthop_compat_mode = 0).
func (v *view) reveal(entries []*fibEntry) error {
	var byID map[uint32]nexthopObject
	for _, e := range entries {
		if e.NextHopID == 0 || e.index != 0 {
			continue
		}
		if byID == nil {
			objects, err := v.nexthops()
			if err != nil {
				return err
			}
			byID = make(map[uint32]nexthopObject, len(objects))
			for _, o := range objects {
				byID[o.id] = o
			}
		}
		o := byID[e.NextHopID]
		e.Via, e.index, e.Onlink, e.Multipath = o.via, o.index, o.onlink, len(o.members) > 0
	}
	return nil
}

// nextHopOf returns the next hop of r, and whether it can be an object.
func (v *view) nextHopOf(r Route) (nextHop, bool) {
	if !r.Dst.Addr().Is4() || !r.Via.Is4() || r.Type != "" || r.Link == "" {
		return nextHop{}, false
	}
	index, err := v.index(r.Link)
	return nextHop{r.Via, index, r.Onlink}, err == nil
}

// objects returns the objects of the next hops of added routes, or nil if there are few routes or the
// kernel has no objects. An object that cannot be made is left out: its routes are plain, and report the
// error.
func (a *applier) objects(changes []Change) map[nextHop]uint32 {
	want := make(map[nextHop]Protocol, len(changes))
	n := 0
	for _, c := range changes {
		r, ok := c.Object.(Route)
		if !ok || c.Op == Delete || c.Err != nil {
			continue
		}
		if h, ok := a.v.nextHopOf(r); ok {
			want[h] = r.Protocol
			n++
		}
	}
	if n < bulk {
		return nil
	}
	a.flush() // an object needs a link that is up
	there, err := a.v.nexthops()
	if err != nil {
		return nil
	}
	ids, taken := make(map[nextHop]uint32, len(want)), make(map[uint32]bool, len(there))
	for _, o := range there {
		taken[o.id] = true
		if p, ok := want[o.nextHop]; ok && o.protocol == p {
			ids[o.nextHop] = o.id
		}
	}
	msgs, made := make([]message, 0, len(want)), make([]nextHop, 0, len(want))
	next := uint32(firstObject)
	for h, p := range want {
		if ids[h] != 0 {
			continue
		}
		for taken[next] {
			next++
		}
		m := nexthopMessage(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.AF_INET, p, h.onlink)
		msgs = append(msgs, m.attr32(unix.NHA_ID, next).attr32(unix.NHA_OIF, uint32(h.index)).attrAddr(unix.NHA_GATEWAY, h.via))
		made, ids[h] = append(made, h), next
		next++
	}
	for i, err := range a.k.c.change(msgs...) {
		if err != nil {
			delete(ids, made[i])
		}
	}
	return ids
}

// sweep deletes unused objects, if changes took routes from some objects. Deleting an object in use would
// delete its routes, so sweep reads the tables again.
func (a *applier) sweep(changes []Change) error {
	ours := map[Protocol]bool{}
	for _, c := range changes {
		for _, o := range []any{c.Object, c.Was} {
			if r, ok := o.(Route); ok && r.NextHopID != 0 {
				ours[r.Protocol] = true
			}
		}
	}
	if len(ours) == 0 {
		return nil
	}
	objects, err := a.v.nexthops()
	if err != nil {
		return err
	}
	used := map[uint32]bool{}
	entries, err := a.v.fib(unix.AF_INET, 0, 0, len(objects))
	if err != nil {
		return err
	}
	for _, e := range entries {
		used[e.NextHopID] = true
	}
	for _, o := range objects {
		for _, id := range o.members {
			used[id] = true
		}
	}
	var msgs []message
	for _, o := range objects {
		if ours[o.protocol] && !used[o.id] {
			msgs = append(msgs, nexthopMessage(unix.RTM_DELNEXTHOP, 0, 0, 0, false).attr32(unix.NHA_ID, o.id))
		}
	}
	for _, err := range a.k.c.change(msgs...) {
		if err != nil && !absent(err) {
			return fmt.Errorf("delete unused next hop object: %w", err)
		}
	}
	return nil
}
