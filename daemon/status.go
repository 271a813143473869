package daemon

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/daemon/report"
	"github.com/edgeway-cni/edgeway/routes"
)

// status compares the machine's present state with the plan of the last look.
func (d *Daemon) status(ctx context.Context) api.Status {
	v := d.loop.seen.Load()
	if v == nil {
		v = &view{World: policy.World{Self: d.config.NodeName, Config: d.config}}
	}
	w := v.World
	s := api.Status{
		Node: w.Self, Version: d.options.Version, Started: d.started, Now: time.Now(), Mode: string(w.Config.Mode),
		World: api.World{Source: w.Cluster.Source, ReadAt: w.Cluster.ReadAt, FromDisk: w.Cluster.FromDisk,
			Nodes: len(w.Cluster.Nodes), Peerings: len(w.Cluster.Peerings)},
	}
	if self, ok := w.Cluster.Node(w.Self); ok {
		s.Mode, s.NetworkPool = string(cmp.Or(v.Plan.Mode, w.Config.Mode)), v.Plan.NetworkPool
		for _, c := range self.PodCIDRs {
			s.PodCIDRs = append(s.PodCIDRs, c.String())
		}
		for _, a := range self.Addresses {
			s.Addresses = append(s.Addresses, a.String())
		}
	}
	sessions := d.speaker.Status(ctx)
	s.Sessions = sessionStatus(sessions)
	problems := slices.Concat(v.Problems, sessionProblems(sessions), lacks(sessions))
	observe := func(scope routes.Scope, desired routes.State) routes.State {
		have, err := d.kernel.Observe(ctx, scope, desired)
		if err != nil {
			problems = append(problems, cluster.Problem{Object: "kernel", Reason: cluster.HostUnreadable, Got: err.Error(), Next: "see the log"})
		}
		return have
	}
	have := observe(policy.Scope(), v.Plan.Routes)
	s.Tunnels = tunnelStatus(have, v.Plan.Routes, d.unreachable(ctx, v))
	s.Firewall = firewallStatus(have.Passages, v.Plan.Routes.Passages)
	s.Routes = routeStatus(w.Cluster.Nodes, have.Routes, v.Plan.Routes)
	if len(v.Plan.Lessons) > 0 {
		have := observe(routes.Scope{}, v.Plan.Learned)
		s.Learned = learnedStatus(v.Plan.Lessons, have.Routes)
	}
	leases, found := d.pods.Status(ctx)
	s.Leases, s.Paths = leases, d.pathStatus()
	s.Appeared = map[string]int{}
	for reason, n := range d.loop.journal.appearances() {
		s.Appeared[string(reason)] = n
	}
	s.Uplinks = d.uplinks(v)
	wrong, advice := cluster.Divide(policy.Sorted(problems, found))
	s.Problems, s.Advice = problemStatus(wrong), problemStatus(advice)
	return s
}

func problemStatus(problems []cluster.Problem) (out []api.Problem) {
	for _, p := range problems {
		out = append(out, api.Problem{Object: p.Object, Reason: string(p.Reason), Want: p.Want, Got: p.Got, Next: p.Next})
	}
	return out
}

// firewallStatus lists the rules of edgeway in other programs' chains, and those that are wanted and are not there.
func firewallStatus(have, want []routes.Passage) (out []api.Passage) {
	for _, p := range have {
		out = append(out, api.Passage{Chain: p.Place.String(), Accepts: p.Words(), State: api.Installed})
	}
	for _, p := range want {
		if !slices.ContainsFunc(have, func(h routes.Passage) bool { return h.Place == p.Place }) {
			out = append(out, api.Passage{Chain: p.Place.String(), Accepts: p.Words(), State: api.Missing})
		}
	}
	return out
}

// tunnelStatus compares the wanted VXLAN links with the kernel's. away says which addresses are not reached.
func tunnelStatus(have, want routes.State, away map[netip.Addr]api.Unreachable) (out []api.Tunnel) {
	for _, l := range want.Links {
		if l.VXLAN == nil {
			continue // an uplink
		}
		ends := map[netip.Addr]bool{}
		for _, f := range want.FDB {
			if f.Link == l.Name {
				ends[f.Dst] = true
			}
		}
		var lost []api.Unreachable
		for a := range ends {
			if u, ok := away[a]; ok {
				lost = append(lost, u)
			}
		}
		slices.SortFunc(lost, func(a, b api.Unreachable) int { return cmp.Compare(a.Node, b.Node) })
		t := api.Tunnel{Device: l.Name, VNI: l.VXLAN.VNI, Port: l.VXLAN.Port, Local: l.VXLAN.Local.String(), MTU: l.MTU, Peers: len(ends), Unreachable: lost, State: api.Missing,
			SoftChecksums: slices.Contains(want.Sysctls, routes.SoftChecksum(l.Name))}
		if slices.ContainsFunc(have.Links, func(h routes.Link) bool { return h.Name == l.Name }) {
			t.State = api.Installed
			for _, c := range routes.Diff(of(l.Name, have), of(l.Name, want)) {
				t.State, t.Differs = api.Differs, append(t.Differs, c.String())
			}
		}
		out = append(out, t)
	}
	return out
}

// of returns the part of a state that belongs to a VXLAN link.
func of(link string, s routes.State) routes.State {
	return routes.State{
		Links: only(s.Links, func(l routes.Link) bool { return l.Name == link }), Addrs: only(s.Addrs, func(a routes.Addr) bool { return a.Link == link }),
		Neighs: only(s.Neighs, func(n routes.Neigh) bool { return n.Link == link }), FDB: only(s.FDB, func(f routes.FDB) bool { return f.Link == link }),
		Sysctls: only(s.Sysctls, func(s routes.Sysctl) bool { return strings.Contains(s.Key, "/"+link+"/") }), Senders: s.Senders,
	}
}

func only[T any](all []T, keep func(T) bool) (out []T) {
	for _, one := range all {
		if keep(one) {
			out = append(out, one)
		}
	}
	return out
}

// routeStatus compares the wanted routes to other nodes with the kernel's routes.
func routeStatus(nodes []cluster.Node, have []routes.Route, want routes.State) []api.Route {
	owner := map[netip.Prefix]string{}
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			owner[c] = n.Name
		}
	}
	there := standing(have, routes.ProtoNode)
	var out []api.Route
	for _, r := range want.Routes {
		if r.Type != "" || r.Table != 0 {
			continue // the guard of our own pod CIDR, or a route of an uplink
		}
		one := api.Route{Dst: r.Dst.String(), Dev: r.Link, Node: owner[r.Dst], State: there.state(r)}
		if r.Via.IsValid() {
			one.Via = r.Via.String()
		}
		out = append(out, one)
	}
	return out
}

const mainTable = 254 // linux/rtnetlink.h: RT_TABLE_MAIN

type kernelRoutes map[netip.Prefix]routes.Route

// standing keeps one route for each destination. Our own route wins over the route of another owner.
func standing(have []routes.Route, own routes.Protocol) kernelRoutes {
	there := kernelRoutes{}
	for _, r := range have {
		if r.Table != 0 && r.Table != mainTable {
			continue
		}
		if old, ok := there[r.Dst]; !ok || old.Protocol != own {
			there[r.Dst] = r
		}
	}
	return there
}

// state says whether the kernel has the route want, or another route in its place.
func (there kernelRoutes) state(want routes.Route) string {
	have, ok := there[want.Dst]
	switch {
	case ok && have.Protocol != want.Protocol:
		return api.Foreign
	case ok && have.Via == want.Via && have.Link == want.Link:
		return api.Installed
	}
	return api.Missing
}

// learnedStatus compares the lessons with the kernel's routes.
func learnedStatus(lessons []policy.Lesson, have []routes.Route) []api.Learned {
	there := standing(have, routes.ProtoLearned)
	var out []api.Learned
	for _, l := range lessons {
		one := api.Learned{Dst: l.Prefix.String(), Via: l.NextHop.String(), Dev: l.Link, Switch: l.From.String(), Kept: l.Kept, State: api.Ignored, Why: l.Why}
		if l.Why == "" {
			one.State = there.state(routes.Route{Dst: l.Prefix, Via: l.NextHop, Link: l.Link, Protocol: routes.ProtoLearned})
		}
		out = append(out, one)
	}
	return out
}

func sessionStatus(sessions []bgp.Status) []api.Session {
	var out []api.Session
	for _, st := range sessions {
		s := api.Session{
			Peer: st.Peer.Address.String(), Resource: st.Peer.Name, PeerASN: st.Peer.ASN, LocalASN: st.Peer.LocalASN,
			State: st.State, Since: st.Since, Reason: st.Reason, Detail: st.Detail, Flaps: st.Flaps,
		}
		for _, l := range st.Lacks {
			s.Lacks = append(s.Lacks, api.Lack{Reason: l.Reason, Detail: l.Detail})
		}
		if r := st.LastReset; !r.At.IsZero() {
			s.LastReset = &api.Reset{At: r.At, Reason: r.Reason, Detail: r.Detail}
		}
		if r := st.Refused; !r.At.IsZero() {
			s.Refused = &api.Reset{At: r.At, Reason: r.Reason, Detail: r.Detail}
		}
		if st.Restart {
			s.GracefulRestart = int(st.RestartTime / time.Second)
			s.LongLived = int(st.LongLived / time.Second)
		}
		for _, p := range st.Advertised {
			s.Advertised = append(s.Advertised, api.Path{Prefix: p.Prefix.String(), NextHop: p.NextHop.String()})
		}
		out = append(out, s)
	}
	return out
}

// sessionProblems returns a problem for each session that is down, except a session that has just started, and
// for each session that runs on earlier settings.
func sessionProblems(sessions []bgp.Status) []cluster.Problem {
	var out []cluster.Problem
	for _, s := range sessions {
		if s.Reason != "" && cluster.Reason(s.Reason) != report.Connecting {
			out = append(out, cluster.Problem{Object: s.Peer.Name, Reason: cluster.Reason(s.Reason), Want: "an established session with " + s.Peer.Address.String(),
				Got: s.State, Next: s.Detail})
		}
		if !s.Refused.At.IsZero() {
			out = append(out, cluster.Problem{Object: s.Peer.Name, Reason: cluster.SettingsRefused, Want: "the settings of the resource in the session with " + s.Peer.Address.String(),
				Got: refusedGot(s), Next: refusedNext})
		}
	}
	return out
}

// lacks returns a problem for each part that an Established session lacks.
func lacks(sessions []bgp.Status) (out []cluster.Problem) {
	for _, s := range sessions {
		for _, l := range s.Lacks {
			out = append(out, cluster.Problem{Object: s.Peer.Name, Reason: cluster.Reason(l.Reason), Want: "all that the session with " + s.Peer.Address.String() + " asks for", Got: "a session that lacks a part", Next: l.Detail})
		}
	}
	return out
}
