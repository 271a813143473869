package bgp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// returnsFor is how long the paths that a switch sends back must have been the same before those that it
// does not send back count as lost: twice the time that a switch may wait between UPDATEs
// (MinRouteAdvertisementIntervalTimer, RFC 4271, section 10).
const returnsFor = time.Minute

// returns are the paths of this session that the switch sends back to it. A switch that has no outbound
// filter and does not suppress the sender's own paths (FRR) sends back each path that it keeps. So a path
// that stays away while others of its family come back was not kept. If none comes back, nothing is known.
type returns struct {
	own     map[netip.Prefix]bool // the session's paths; nil: what comes back need not be the session's
	back    map[netip.Prefix]bool // of own, the paths that came back in this session
	read    bool                  // back holds all paths that came back in this session
	since   time.Time             // since when own and back have not changed
	missing []netip.Prefix        // of own, sorted: not back for returnsFor
}

func (r *returns) begin(now time.Time) {
	r.read = r.own != nil
	r.change(now)
	r.back = make(map[netip.Prefix]bool)
}

// change records that own or back changed.
func (r *returns) change(now time.Time) { r.since, r.missing = now, nil }

// ask sets the session's paths. It reports whether the switch must send its paths again, because those that
// came before were not read.
func (r *returns) ask(sole, up, refresh bool, paths []Path, now time.Time) (again bool) {
	if !sole {
		r.own, r.read = nil, false
		r.change(now)
		return false
	}
	own := make(map[netip.Prefix]bool, len(paths))
	for _, p := range paths {
		own[p.Prefix] = true
	}
	if maps.Equal(own, r.own) {
		return false
	}
	r.own = own
	r.change(now)
	again = up && refresh && !r.read
	r.read = r.read || again
	return again
}

// update takes the content of an UPDATE. It reports whether the missing paths are no longer known.
func (r *returns) update(p Peer, u update, now time.Time) bool {
	known := len(r.missing) > 0
	ours := !u.withdraw && len(u.asPath) > 1 && u.asPath[len(u.asPath)-1] == p.LocalASN &&
		!slices.ContainsFunc(u.asPath[:len(u.asPath)-1], func(asn uint32) bool { return asn != p.ASN })
	for _, prefix := range u.gone {
		r.set(prefix, false, now)
	}
	for _, prefix := range u.reach {
		r.set(prefix, ours, now)
	}
	return known && len(r.missing) == 0
}

func (r *returns) set(prefix netip.Prefix, back bool, now time.Time) {
	if !r.own[prefix] || r.back[prefix] == back {
		return
	}
	if back {
		r.back[prefix] = true
	} else {
		delete(r.back, prefix)
	}
	r.change(now)
}

// tick looks for paths that stay away. It reports whether there are new ones.
func (r *returns) tick(o offer, now time.Time) bool {
	if !r.read || len(r.missing) > 0 || now.Sub(r.since) < returnsFor {
		return false
	}
	r.since = now // look again after returnsFor
	var some4, some6 bool
	for prefix := range r.back {
		some4, some6 = some4 || prefix.Addr().Is4(), some6 || prefix.Addr().Is6()
	}
	for prefix := range r.own {
		if !r.back[prefix] && o.takes(prefix) && (some4 && prefix.Addr().Is4() || some6 && prefix.Addr().Is6()) {
			r.missing = append(r.missing, prefix)
		}
	}
	slices.SortFunc(r.missing, netip.Prefix.Compare)
	return len(r.missing) > 0
}

// lack describes the paths that stay away.
func (r *returns) lack() string {
	if len(r.missing) == 0 {
		return ""
	}
	var names []string
	for _, prefix := range r.missing[:min(len(r.missing), 3)] {
		names = append(names, prefix.String())
	}
	which := strings.Join(names, ", ")
	if more := len(r.missing) - len(names); more > 0 {
		which += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("the switch sends this node's paths back, but not %s: look for an inbound filter or a limit on the switch that drops it, or for a filter of what the switch sends to this node", which)
}
