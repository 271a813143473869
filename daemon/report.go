package daemon

import (
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// reports says for each switch that a resource gives this node what became of the session, for
// the resource's status. A session that two resources share is reported under both; one that is
// held down, with the reason.
func reports(w World, sessions []bgp.Status) []cluster.SessionReport {
	p := &plan{World: w, vxlan: w.Config.VXLAN}
	if !p.findSelf() {
		return nil
	}
	var out []cluster.SessionReport
	for _, r := range w.Cluster.Peerings {
		for _, s := range r.Speakers {
			if s.Node != p.self.Name {
				continue
			}
			for _, peer := range s.Peers {
				out = append(out, p.report(r, peer, sessions))
			}
		}
	}
	return out
}

// sinceHeld says of each session that is not tried since when that is so: now, unless was knows
// better. It returns what will be known next time.
func sinceHeld(was map[sessionKey]time.Time, sessions []cluster.SessionReport, now time.Time) map[sessionKey]time.Time {
	still := map[sessionKey]time.Time{}
	for i := range sessions {
		s := &sessions[i]
		if !s.Since.IsZero() {
			continue
		}
		key := keyOf(*s)
		if s.Since = was[key]; s.Since.IsZero() {
			s.Since = now
		}
		still[key] = s.Since
	}
	return still
}

// report is what became of one session.
func (p *plan) report(r cluster.Peering, peer cluster.Peer, sessions []bgp.Status) cluster.SessionReport {
	p.problems = nil
	want, ok := p.terms(r, peer)
	out := cluster.SessionReport{Resource: r.Ref(), Peer: peer.Address, Port: want.Port, PeerName: peer.Name, PeerASN: peer.ASN, State: "Idle"}
	if !ok {
		why := p.problems[len(p.problems)-1]
		out.Reason, out.Message = why.Reason, "want "+why.Want+", got "+why.Got+"; "+why.Next
		return out
	}
	i := slices.IndexFunc(sessions, func(s bgp.Status) bool { return s.Peer.Same(want) })
	if i < 0 {
		out.Reason, out.Message = "conflict", "another resource has a session of this node with "+peer.Address.String()+" on other terms; make the two agree"
		return out
	}
	s := sessions[i]
	out.State, out.Since, out.Reason, out.Message = s.State, s.Since, s.Reason, s.Detail
	if s.Restart {
		out.RestartTime = s.RestartTime
	}
	told := make(map[netip.Prefix]bool, len(s.Advertised))
	for _, path := range s.Advertised {
		told[path.Prefix] = true
	}
	for _, n := range p.Cluster.Nodes {
		for _, c := range n.PodCIDRs {
			if told[c] && r.Selector.Selects(n.Labels) {
				out.Advertised++
			}
		}
	}
	return out
}
