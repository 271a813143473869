package daemon

import (
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
)

// reports says for each switch that a resource gives this node what became of the session, for
// the resource's status. A session that two resources share is reported under both; one that is
// held down, with the reason.
func reports(plan policy.Plan, sessions []bgp.Status) (out []cluster.SessionReport) {
	for _, want := range plan.Sessions {
		out = append(out, report(want, sessions))
	}
	return out
}

// report is what became of one session. Since is zero for a session that is not tried.
func report(want policy.Session, sessions []bgp.Status) cluster.SessionReport {
	out := cluster.SessionReport{Resource: want.Resource, Peer: want.Peer.Address, Port: want.Key.Port, PeerName: want.Peer.Name, PeerASN: want.Peer.ASN, State: "Idle"}
	if why := want.Held; want.IsHeld() {
		out.Reason, out.Message = why.Reason, "want "+why.Want+", got "+why.Got+"; "+why.Next
		return out
	}
	i := slices.IndexFunc(sessions, func(s bgp.Status) bool { return s.Peer.Key() == want.Key })
	if i < 0 {
		out.Reason, out.Message = "switchNotTold", "the session was refused; edgewayd status on this node says why"
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
	for _, path := range want.Paths {
		if told[path.Prefix] {
			out.Advertised++
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
