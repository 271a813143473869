package bgp

import (
	"fmt"
	"slices"
	"time"
)

// session is what a Speaker knows of one session. Callers of its methods hold Speaker.mu.
type session struct {
	key    Key
	want   Session  // normal; proc was started on its terms
	proc   *process // nil: none runs
	last   answer   // the last one from proc
	before Status   // of the time before proc; it counts while there is no proc

	whole    bool // proc has done all of want
	told     table
	reported *process // the process at the last changes; nil: none was reported
	why      string   // why the process before proc ended

	backoff time.Duration // the pause after the last crash
	retryAt time.Time
}

// newSession returns a session that was just asked for. past is the status that an earlier session of
// the same Key ended with.
func newSession(want Session, past Status) *session {
	p := want.Peer
	return &session{key: p.Key(), want: want, told: table{}, before: Status{
		State: "Idle", Since: time.Now(), Flaps: past.Flaps, LastReset: past.LastReset,
		Reason: reasonConnecting, Detail: fmt.Sprintf("connecting to %s port %d", p.Address, p.Port),
	}}
}

// status combines the process's own status with what happened before the process began.
func (s *session) status() Status {
	st := s.before
	if now := s.last.Status; s.proc != nil && now.State != "" {
		if now.Reason == reasonConnecting { // a crash or a restart says more
			now.Reason, now.Detail = st.Reason, st.Detail
		}
		now.Flaps += st.Flaps
		if now.LastReset.At.IsZero() {
			now.LastReset = st.LastReset
		}
		st = now
	}
	st.Peer = s.want.Peer
	return st
}

// ended records that the process has ended, or is about to, and why.
func (s *session) ended(reason, detail, why string) {
	was, now := s.status(), time.Now()
	s.before = Status{State: "Idle", Since: was.Since, Reason: reason, Detail: detail, Flaps: was.Flaps, LastReset: was.LastReset}
	if was.State == "Established" {
		s.before.Since, s.before.LastReset = now, Reset{now, reason, detail}
		s.before.Flaps++
	}
	s.proc, s.last, s.whole, s.why = nil, answer{}, false, why
}

// crashed records that the process ended by itself after it had lived that long, or that no process
// could be started. It returns the pause before the next one.
func (s *session) crashed(err error, lived time.Duration) time.Duration {
	s.backoff = min(max(2*s.backoff, time.Second), maxRespawn)
	if lived > steadyProcess {
		s.backoff = 0
	}
	s.retryAt = time.Now().Add(s.backoff)
	s.ended(reasonCrashed, fmt.Sprintf("the process of this session ended: %v; it is restarted after %s; look at what the switch sends, and report this", err, s.backoff), "its process ended: "+err.Error())
	return s.backoff
}

// did records that proc has done all of want, and returns what changed since the last call.
func (s *session) did(proc *process) []Change {
	if s.proc != proc {
		return nil // proc ended meanwhile
	}
	var out []Change
	switch s.reported {
	case proc:
	case nil:
		out = append(out, Change{Op: "add", Object: s.want.Peer.object()})
	default:
		out = append(out, Change{Op: "reset", Object: s.want.Peer.object(), Why: s.why})
	}
	for _, step := range s.told.steps(s.want.Paths) {
		out = append(out, step.change(s.want.Peer))
		s.told.take(step)
	}
	s.reported, s.whole = proc, true
	return out
}

func (s Session) equal(other Session) bool {
	return s.Peer == other.Peer && slices.Equal(s.Paths, other.Paths) && slices.Equal(s.Learn, other.Learn)
}

// normal returns a copy of s, with normal addresses throughout.
func (s Session) normal() Session {
	s.Peer, s.Paths, s.Learn = s.Peer.normal(), slices.Clone(s.Paths), slices.Clone(s.Learn)
	for i := range s.Paths {
		s.Paths[i].NextHop = s.Paths[i].NextHop.Unmap()
	}
	return s
}
