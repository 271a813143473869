package daemon

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// status says what the machine looks like now beside what the last look decided.
func (d *Daemon) status(ctx context.Context) api.Status {
	v := d.seen.Load()
	if v == nil {
		v = &view{World: World{Self: d.config.NodeName, Config: d.config}}
	}
	w := v.World
	s := api.Status{
		Node: w.Self, Version: d.options.Version, Started: d.started, Now: time.Now(), Mode: string(w.Config.Mode),
		World: api.World{Source: w.Cluster.Source, ReadAt: w.Cluster.ReadAt, FromDisk: w.Cluster.FromDisk,
			Nodes: len(w.Cluster.Nodes), Peerings: len(w.Cluster.Peerings)},
	}
	if self, ok := w.Cluster.Node(w.Self); ok {
		s.Mode = string(w.mode(self))
		for _, c := range self.PodCIDRs {
			s.PodCIDRs = append(s.PodCIDRs, c.String())
		}
		for _, a := range self.Addresses {
			s.Addresses = append(s.Addresses, a.String())
		}
	}
	problems := slices.Clone(v.Problems)
	have, err := d.kernel.Observe(ctx, scope(), v.Routes)
	if err != nil {
		problems = append(problems, cluster.Problem{Object: "kernel", Reason: "hostUnreadable", Got: err.Error(), Next: "see the log"})
	}
	s.Routes = routeStatus(w.Cluster.Nodes, have, v.Routes)
	s.Learned = learnedStatus(w, have.Routes)
	sessions := d.speaker.Status(ctx)
	s.Sessions = sessionStatus(sessions)
	problems = append(problems, sessionProblems(sessions)...)
	if n := d.node.Load(); n != nil {
		leases, err := leaseStatus(n.store)
		if err != nil {
			problems = append(problems, cluster.Problem{Object: "store", Reason: "storeUnreadable", Got: err.Error(), Next: "see the log"})
		}
		s.Leases = leases
		problems = append(problems, n.full(ctx)...)
	}
	for _, p := range sortProblems(problems) {
		s.Problems = append(s.Problems, api.Problem(p))
	}
	return s
}

// routeStatus compares the routes to other nodes with what the kernel has.
func routeStatus(nodes []cluster.Node, have, want routes.State) []api.Route {
	owner := map[netip.Prefix]string{}
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			owner[c] = n.Name
		}
	}
	there := map[netip.Prefix]routes.Route{}
	for _, r := range have.Routes {
		if old, ok := there[r.Dst]; !ok || old.Protocol != routes.ProtoNode {
			there[r.Dst] = r
		}
	}
	var out []api.Route
	for _, r := range want.Routes {
		if r.Type != "" || r.Protocol == routes.ProtoLearned {
			continue // the guard of our own pod CIDR; what learnedStatus shows
		}
		state := "missing"
		if h, ok := there[r.Dst]; ok {
			switch {
			case h.Protocol != r.Protocol:
				state = "foreign"
			case h.Via == r.Via && h.Link == r.Link:
				state = "installed"
			}
		}
		one := api.Route{Dst: r.Dst.String(), Dev: r.Link, Node: owner[r.Dst], State: state}
		if r.Via.IsValid() {
			one.Via = r.Via.String()
		}
		out = append(out, one)
	}
	return out
}

// leaseStatus counts pods, not addresses: a pod takes one of each set, so that the smallest set
// says how many more fit.
func leaseStatus(store *ipam.Store) (api.Leases, error) {
	pool, ok, err := store.Pool()
	if err != nil || !ok {
		return api.Leases{}, err
	}
	var l api.Leases
	for i, set := range pool.Sets {
		u, err := store.Usage(ipam.Pool{Sets: []ipam.RangeSet{set}, Reserved: pool.Reserved})
		if err != nil {
			return l, err
		}
		if i == 0 || u.Free < l.Free {
			l.Total, l.Free = u.Total, u.Free
		}
		l.Used = max(l.Used, u.Used)
	}
	u, err := store.Usage(pool)
	l.Outside = u.Outside
	return l, err
}

func sessionStatus(sessions []bgp.Status) []api.Session {
	var out []api.Session
	for _, st := range sessions {
		s := api.Session{
			Peer: st.Peer.Address.String(), Resource: st.Peer.Name, PeerASN: st.Peer.ASN, LocalASN: st.Peer.LocalASN,
			State: st.State, Since: st.Since, Reason: st.Reason, Detail: st.Detail, Flaps: st.Flaps,
		}
		if r := st.LastReset; !r.At.IsZero() {
			s.LastReset = &api.Reset{At: r.At, Reason: r.Reason, Detail: r.Detail}
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

// sessionProblems names each session that is not up and has not just been started.
func sessionProblems(sessions []bgp.Status) []cluster.Problem {
	var out []cluster.Problem
	for _, s := range sessions {
		if s.Reason != "" && s.Reason != "connecting" {
			out = append(out, cluster.Problem{Object: s.Peer.Name, Reason: s.Reason, Want: "an established session with " + s.Peer.Address.String(),
				Got: s.State, Next: s.Detail})
		}
	}
	return out
}

// sortProblems sorts by object and drops repetitions.
func sortProblems(problems []cluster.Problem) []cluster.Problem {
	problems = slices.Clone(problems)
	slices.SortFunc(problems, func(a, b cluster.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Got, b.Got), cmp.Compare(a.Want, b.Want))
	})
	return slices.Compact(problems)
}
