package bgp

import (
	"fmt"
	"slices"
	"time"
)

// session is one session as its Speaker knows it. Its methods need Speaker.mu.
type session struct {
	key    Key
	want   Session  // normal; proc was begun on these terms
	proc   *process // nil: none runs
	last   answer   // what proc said last
	before Status   // what is known of the time before proc; what to say while there is none

	whole    bool // proc did all that want says
	told     table
	reported *process // of the last changes
	why      string   // proc is not the first one

	backoff time.Duration // after the last process that ended by itself
	retryAt time.Time
}

// newSession returns a session that has just been asked for; past is what is known of it from before.
func newSession(want Session, past Status) *session {
	p := want.Peer
	return &session{key: p.Key(), want: want, told: table{}, before: Status{
		State: "Idle", Since: time.Now(), Flaps: past.Flaps, LastReset: past.LastReset,
		Reason: reasonConnecting, Detail: fmt.Sprintf("connecting to %s port %d", p.Address, p.Port),
	}}
}

// status is what the process said last, on top of what was before it.
func (s *session) status() Status {
	st := s.before
	if now := s.last.Status; s.proc != nil && now.State != "" {
		if now.Reason == reasonConnecting { // no news after a crash or a restart
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

// ended notes that the process has ended, or is about to, and why.
func (s *session) ended(reason, detail, why string) {
	was, now := s.status(), time.Now()
	s.before = Status{State: "Idle", Since: was.Since, Reason: reason, Detail: detail, Flaps: was.Flaps, LastReset: was.LastReset}
	if was.State == "Established" {
		s.before.Since, s.before.LastReset = now, Reset{now, reason, detail}
		s.before.Flaps++
	}
	s.proc, s.last, s.whole, s.why = nil, answer{}, false, why
}

// crashed notes that the process has ended by itself after it had lived that long, or that none could
// be begun. It returns the pause before the next one.
func (s *session) crashed(err error, lived time.Duration) time.Duration {
	s.backoff = min(max(2*s.backoff, time.Second), maxRespawn)
	if lived > steadyProcess {
		s.backoff = 0
	}
	s.retryAt = time.Now().Add(s.backoff)
	s.ended(reasonCrashed, fmt.Sprintf("the process of this session ended: %v; it is restarted after %s; look at what the switch sends, and report this", err, s.backoff), "its process ended: "+err.Error())
	return s.backoff
}

// did notes that proc did all that it was told, and returns what that is beyond what was done before.
func (s *session) did(proc *process) []Change {
	if s.proc != proc {
		return nil // it ended meanwhile
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

// normal returns a copy of s in which equal meanings are equal values.
func (s Session) normal() Session {
	s.Peer, s.Paths, s.Learn = s.Peer.normal(), slices.Clone(s.Paths), slices.Clone(s.Learn)
	for i := range s.Paths {
		s.Paths[i].NextHop = s.Paths[i].NextHop.Unmap()
	}
	return s
}
