package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/routes"
)

// lesson is a prefix that a switch announces and bgp.learn asks for: the path that counts, and
// what this node makes of it.
type lesson struct {
	bgp.LearnedPath
	link string
	why  string // not taken: an identifier; "" is taken
}

// The reasons why a lesson is not taken.
const (
	lessonPodCIDR   = "podCIDR"   // overlaps a pod CIDR of the cluster: the cluster knows better
	lessonSubnet    = "subnet"    // overlaps a subnet of this host
	lessonReserved  = "reserved"  // link-local, multicast, loopback, or no destination at all
	lessonHeld      = "held"      // the host has a route of its own to it
	lessonOffSubnet = "offSubnet" // the next hop is not one hop away
	lessonSelf      = "self"      // the next hop is this node
	lessonLinkDown  = "linkDown"
	lessonTooMany   = "tooMany"
)

// neverLearned are destinations that no network routes: RFC 6890, section 2.2; RFC 4291,
// section 2.4.
func neverLearned() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8"} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// lessons decides about each prefix that the switches announce, in order. Of several switches'
// paths the first in the order of bgp.LearnedPath counts that can be used.
func (w World) lessons() []lesson {
	var refused refusals
	var out []lesson
	taken := 0
	for at := 0; at < len(w.Learned); {
		next := at + 1
		for next < len(w.Learned) && w.Learned[next].Prefix == w.Learned[at].Prefix {
			next++
		}
		l := lesson{LearnedPath: w.Learned[at], why: lessonTooMany}
		if taken < int(w.Config.BGP.LearnMost) {
			if refused.held == nil {
				refused = w.refusals()
			}
			if l.why = refused.why(l.Prefix); l.why == "" {
				l = w.usable(w.Learned[at:next])
			}
			if l.why == "" {
				taken++
			}
		}
		out = append(out, l)
		at = next
	}
	return out
}

// usable takes the first path whose next hop is a neighbour.
func (w World) usable(paths []bgp.LearnedPath) lesson {
	why := lessonOffSubnet
	for _, path := range paths {
		link, near := w.linkTo(path.NextHop)
		switch {
		case slices.ContainsFunc(w.Host.Addrs, func(a routes.Addr) bool { return a.Prefix.Addr() == path.NextHop }):
			why = lessonSelf
		case near && w.isDown(link):
			why = lessonLinkDown
		case near:
			return lesson{LearnedPath: path, link: link}
		}
	}
	return lesson{LearnedPath: paths[0], why: why}
}

// refusals are what no prefix may overlap, and what the host routes itself.
type refusals struct {
	pods    map[netip.Prefix]bool
	reasons []refusal
	held    map[netip.Prefix]bool
}

type refusal struct {
	netip.Prefix
	why string
}

func (w World) refusals() refusals {
	r := refusals{pods: map[netip.Prefix]bool{}, held: map[netip.Prefix]bool{}}
	for _, p := range neverLearned() {
		r.reasons = append(r.reasons, refusal{p, lessonReserved})
	}
	for _, a := range w.Host.Addrs {
		if !a.Prefix.IsSingleIP() {
			r.reasons = append(r.reasons, refusal{a.Prefix.Masked(), lessonSubnet})
		}
	}
	for _, n := range w.Cluster.Nodes {
		for _, c := range n.PodCIDRs {
			r.pods[c] = true
			r.reasons = append(r.reasons, refusal{c, lessonPodCIDR})
		}
	}
	for _, route := range w.Host.Routes {
		r.held[route.Dst] = true
	}
	return r
}

// why says what forbids the prefix; of a default route only that the host has one.
func (r refusals) why(p netip.Prefix) string {
	if r.pods[p] { // most of what a switch announces in vain are the other LANs' pods
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

// learn makes routes of what the switches announce. It comes before the routes to other nodes:
// what is learned may be the way to their LAN.
func (p *plan) learn() {
	if len(p.Learned) == 0 {
		return
	}
	lessons := p.lessons()
	count := map[string]int{}
	for _, l := range lessons {
		count[l.why]++
		if l.why == "" {
			r := routes.Route{Dst: l.Prefix, Via: l.NextHop, Link: l.link, Protocol: routes.ProtoLearned}
			p.routes.Routes = append(p.routes.Routes, r)
			p.Host.Routes = append(slices.Clip(p.Host.Routes), r)
		}
	}
	const object = "bgp.learn"
	if n := count[lessonTooMany]; n > 0 {
		p.problem(object, "tooManyLearned", fmt.Sprintf("at most %d prefixes", p.Config.BGP.LearnMost),
			fmt.Sprintf("%d that the switches announce; the last %d of them have no route", len(lessons), n),
			"let the switches announce less, or set longer prefixes in bgp.learn, or raise bgp.learnMost")
	}
	if n := count[lessonOffSubnet]; n > 0 {
		p.problem(object, "learnedOffSubnet", "prefixes with a next hop on a subnet of this node", fmt.Sprintf("another one for %d", n),
			"set next-hop-self for this neighbour on the switch; status -o json names them")
	}
	if n := count[lessonHeld]; n > 0 {
		p.problem(object, "learnedHeld", "prefixes to which this host has no route of its own", fmt.Sprintf("one for %d", n),
			"delete the host's route, or take the prefix out of bgp.learn; status -o json names them")
	}
}

// byOrigin separates what is learned from all else, which belongs to another scope.
func byOrigin(s routes.State) (own, learned routes.State) {
	own = s
	own.Routes = nil
	for _, r := range s.Routes {
		if r.Protocol == routes.ProtoLearned {
			learned.Routes = append(learned.Routes, r)
		} else {
			own.Routes = append(own.Routes, r)
		}
	}
	return own, learned
}

// learn makes the kernel's learned routes the desired ones. Others are deleted only when the
// switches have said all they have: after a start the kernel knows more than this process.
func (l *loop) learn(ctx context.Context, o *outcome, desired routes.State, complete bool) {
	scope := routes.Scope{}
	if complete || len(l.config.BGP.Learn) == 0 {
		scope.Protocol = routes.ProtoLearned
	} else if len(desired.Routes) == 0 {
		return
	}
	changes, err := l.kernel.Sync(ctx, scope, desired)
	l.changed(o, changes, err)
}

// learnedStatus compares what is learned with what the kernel has.
func learnedStatus(w World, have []routes.Route) []api.Learned {
	lessons := w.lessons()
	if len(lessons) == 0 {
		return nil
	}
	there := map[netip.Prefix]routes.Route{}
	for _, r := range have {
		if old, ok := there[r.Dst]; !ok || old.Protocol != routes.ProtoLearned {
			there[r.Dst] = r
		}
	}
	var out []api.Learned
	for _, l := range lessons {
		one := api.Learned{Dst: l.Prefix.String(), Via: l.NextHop.String(), Dev: l.link, Switch: l.From.String(), Kept: l.Kept, State: "missing", Why: l.why}
		r, ok := there[l.Prefix]
		switch {
		case l.why != "":
			one.State = "ignored"
		case ok && r.Protocol != routes.ProtoLearned:
			one.State = "foreign"
		case ok && r.Via == l.NextHop && r.Link == l.link:
			one.State = "installed"
		}
		out = append(out, one)
	}
	return out
}

// learnList are the prefixes that a session learns.
func (c Config) learnList() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range c.BGP.Learn {
		if !slices.Contains(out, p.Prefix) {
			out = append(out, p.Prefix)
		}
	}
	return out
}
