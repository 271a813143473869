package daemon

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

// refusedNext is the next step for a session that runs on earlier settings.
const refusedNext = "correct the resource, or the switch"

func refusedGot(s bgp.Status) string {
	return fmt.Sprintf("the settings failed (%s: %s), and the session runs on the earlier ones", s.Refused.Reason, s.Refused.Detail)
}

// reports returns a report for each switch that a resource gives this node, for the status of the resource. A
// session that two resources share is reported under both. A session that is held is reported with the
// reason, and so is a session that nobody has.
func reports(plan policy.Plan, sessions []bgp.Status) (out []report.Session) {
	for _, want := range slices.Concat(plan.Sessions, plan.Unspoken) {
		out = append(out, sessionReport(want, sessions))
	}
	return out
}

// sessionReport returns the report of one session. Its Since is zero if the session is not tried.
func sessionReport(want policy.Session, sessions []bgp.Status) report.Session {
	out := report.Session{Resource: want.Resource, Peer: want.Peer.Address, Port: want.Key.Port, PeerName: want.Peer.Name, PeerASN: want.Peer.ASN, State: "Idle"}
	if why := want.Held; want.IsHeld() {
		out.Reason, out.Message = why.Reason, "want "+why.Want+", got "+why.Got+"; "+why.Next
		return out
	}
	i := slices.IndexFunc(sessions, func(s bgp.Status) bool { return s.Peer.Key() == want.Key })
	if i < 0 {
		out.Reason, out.Message = cluster.SwitchNotTold, "the session was refused; edgewayd status on this node says why"
		return out
	}
	s := sessions[i]
	out.State, out.Since, out.Reason, out.Message = s.State, s.Since, cluster.Reason(s.Reason), s.Detail
	if r := s.Refused; !r.At.IsZero() {
		out.Since, out.Reason, out.Message = r.At, cluster.SettingsRefused, refusedGot(s)+"; "+refusedNext
	}
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

// sinceHeld sets Since of each session that is not tried: to its time in was, or to now. It returns these
// times for the next call.
func sinceHeld(was map[sessionKey]time.Time, sessions []report.Session, now time.Time) map[sessionKey]time.Time {
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

// self says how this node is, for the status of its EdgeNode.
func (l *loop) self(v *view, o outcome) report.Node {
	e, _ := v.World.Cluster.EdgeNode(v.World.Self)
	n := report.Node{Generation: e.Generation, Mode: string(cmp.Or(v.Plan.Mode, v.World.Config.Mode)), Version: l.version, MTU: v.Plan.MTU,
		Sessions: o.sessions, Paths: pathsReport(o.paths)}
	n.Problems, _ = cluster.Divide(policy.Sorted(o.problems, l.found, o.ofPods, o.ofSessions))
	for _, f := range o.leases.Families {
		n.Addresses = append(n.Addresses, report.Addresses(f))
	}
	if len(v.Plan.Uplinks.Interfaces) > 0 {
		n.Uplinks = uplinksStatus(v, l.pods.Held())
	}
	return n
}

func pathsReport(r paths.Report) (out report.Paths) {
	out.Problems = r.Problems
	for _, f := range r.Findings {
		out.Probed++
		switch {
		case f.Canary == paths.Answers:
			out.Reached++
			out.Loss, out.RoundTrip = max(out.Loss, float64(f.Lost)/float64(max(f.Sent, 1))), max(out.RoundTrip, f.RTT)
			if f.Full == paths.Silent {
				out.Cut++
			}
		case f.Canary == paths.Silent && f.Host == paths.Silent:
			out.Away++
		case f.Canary == paths.Silent && f.Host == paths.Answers && f.Said.HasCanary(): // else it has no canary
			out.Cut++
		}
	}
	return out
}
