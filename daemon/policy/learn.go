package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// Lesson is a prefix that a switch announces and bgp.learn asks for, with the path that counts and whether
// this node has a route for it.
type Lesson struct {
	bgp.LearnedPath
	Link string
	Why  string // an identifier for why it has no route here; "": it has a route
}

// The reasons why a lesson is not taken.
const (
	lessonPodCIDR   = "podCIDR"   // overlaps a pod CIDR of the cluster, whose route comes from the Node
	lessonSubnet    = "subnet"    // overlaps a subnet of this host
	lessonReserved  = "reserved"  // link-local, multicast, loopback, or not a destination at all
	lessonHeld      = "held"      // the host has its own route to the prefix
	lessonOffSubnet = "offSubnet" // the next hop is not one hop away
	lessonSelf      = "self"      // the next hop is this node
	lessonLinkDown  = "linkDown"
	lessonTooMany   = "tooMany"
)

// neverLearned are destinations that no network routes: RFC 6890, section 2.2; RFC 4291, section 2.4.
func neverLearned() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8"} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// lessons decides about each prefix that the switches announce, in order. If several switches announce a
// prefix, the first usable path in the order of bgp.LearnedPath.Compare counts.
func (d *draft) lessons() []Lesson {
	var refused refusals
	var out []Lesson
	taken := 0
	for at := 0; at < len(d.Learned); {
		next := at + 1
		for next < len(d.Learned) && d.Learned[next].Prefix == d.Learned[at].Prefix {
			next++
		}
		l := Lesson{LearnedPath: d.Learned[at], Why: lessonTooMany}
		if taken < d.Config.BGP.LearnMost {
			if refused.held == nil {
				refused = d.refusals()
			}
			if l.Why = refused.why(l.Prefix); l.Why == "" {
				l = d.usable(d.Learned[at:next])
			}
			if l.Why == "" {
				taken++
			}
		}
		out = append(out, l)
		at = next
	}
	return out
}

// usable returns the first path whose next hop is a neighbour.
func (d *draft) usable(paths []bgp.LearnedPath) Lesson {
	why := lessonOffSubnet
	for _, path := range paths {
		link, near := d.linkTo(path.NextHop)
		switch {
		case slices.ContainsFunc(d.Host.Addrs, func(a routes.Addr) bool { return a.Prefix.Addr() == path.NextHop }):
			why = lessonSelf
		case near && d.isDown(link):
			why = lessonLinkDown
		case near:
			return Lesson{LearnedPath: path, Link: link}
		}
	}
	return Lesson{LearnedPath: paths[0], Why: why}
}

// refusals are the prefixes that no learned prefix may overlap, and the host's own routes.
type refusals struct {
	pods    map[netip.Prefix]bool
	reasons []refusal
	held    map[netip.Prefix]bool
}

type refusal struct {
	netip.Prefix
	why string
}

func (d *draft) refusals() refusals {
	r := refusals{pods: map[netip.Prefix]bool{}, held: map[netip.Prefix]bool{}}
	for _, p := range neverLearned() {
		r.reasons = append(r.reasons, refusal{p, lessonReserved})
	}
	for _, a := range d.Host.Addrs {
		if !a.Prefix.IsSingleIP() {
			r.reasons = append(r.reasons, refusal{a.Prefix.Masked(), lessonSubnet})
		}
	}
	for _, n := range d.Cluster.Nodes {
		for _, c := range n.PodCIDRs {
			r.pods[c] = true
			r.reasons = append(r.reasons, refusal{c, lessonPodCIDR})
		}
	}
	for _, route := range d.Host.Routes {
		r.held[route.Dst] = true
	}
	return r
}

// why returns the reason that forbids the prefix. A default route is forbidden only if the host has one.
func (r refusals) why(p netip.Prefix) string {
	if r.pods[p] { // the most frequent case: the pod CIDRs of other LANs
		return lessonPodCIDR
	}
	if p.Bits() > 0 {
		for _, other := range r.reasons {
			if other.Overlaps(p) {
				return other.why
			}
		}
	}
	if r.held[p] {
		return lessonHeld
	}
	return ""
}

// learn turns the paths that the switches announce into routes. It comes before the routes to other nodes: a
// learned route may be the way to their LAN.
func (d *draft) learn() {
	if len(d.Learned) == 0 {
		return
	}
	d.plan.Lessons = d.lessons()
	count := map[string]int{}
	for _, l := range d.plan.Lessons {
		count[l.Why]++
		if l.Why == "" {
			d.plan.Learned.Routes = append(d.plan.Learned.Routes, routes.Route{Dst: l.Prefix, Via: l.NextHop, Link: l.Link, Protocol: routes.ProtoLearned})
		}
	}
	const object = "bgp.learn"
	if n := count[lessonTooMany]; n > 0 {
		d.problem(object, cluster.TooManyLearned, fmt.Sprintf("at most %d prefixes", d.Config.BGP.LearnMost),
			fmt.Sprintf("%d that the switches announce; the last %d of them have no route", len(d.plan.Lessons), n),
			"let the switches announce fewer prefixes, or set longer prefixes in bgp.learn, or raise bgp.learnMost")
	}
	if n := count[lessonOffSubnet]; n > 0 {
		d.problem(object, cluster.LearnedOffSubnet, "prefixes with a next hop on a subnet of this node", fmt.Sprintf("another next hop for %d of them", n),
			"set next-hop-self for this neighbour on the switch; status -o json names them")
	}
	if n := count[lessonHeld]; n > 0 {
		d.problem(object, cluster.LearnedHeld, "prefixes to which this host has no route of its own", fmt.Sprintf("a route of its own to %d of them", n),
			"delete the host's route, or take the prefix out of bgp.learn; status -o json names them")
	}
}
