package bgp

import (
	"fmt"
	"slices"
	"time"
)

const (
	// leastTrial and mostTrial bound how long new terms are tried: far less than the restart time.
	leastTrial = 20 * time.Second
	mostTrial  = time.Minute
)

// session is a Speaker's knowledge of one session. Callers of its methods hold Speaker.mu.
//
// New terms of an Established session are tried without a Cease, so that the switch keeps the paths. If
// the new terms fail, the session goes back to the terms that worked:
//
//	runs on its terms ──new terms──> trial ──Established──────────────────────> runs on the new terms
//	                                       ──NOTIFICATION, or time is over────> runs on the old terms, refused
//	refused ──other terms──> trial        refused ──old terms fail, too────────> trial
type session struct {
	key    Key
	want   Session  // normal
	terms  Peer     // proc was started on them: want.Peer, or good after a failed trial
	proc   *process // nil: none runs
	last   answer   // the last answer of proc
	before Status   // the status before proc; it counts while there is no proc

	good    Peer      // terms that worked, during a trial and after a failed trial
	trial   time.Time // the end of a trial; zero: no trial is under way
	refused Peer      // the terms of the last failed trial
	failure Reset     // why that trial failed

	whole    bool // proc has done everything in want
	told     table
	reported *process // the process at the last changes; nil: no process was reported
	why      string   // why the process before proc ended

	backoff time.Duration // the pause after the last crash
	retryAt time.Time
	wake    *time.Timer // calls Options.Changed
}

// newSession returns a new session. past is the last status of an earlier session with the same Key.
func newSession(want Session, past Status, changed func()) *session {
	p := want.Peer
	s := &session{key: p.Key(), want: want, terms: p, told: table{}, wake: time.AfterFunc(time.Hour, changed), before: Status{
		State: stateIdle, Since: time.Now(), Flaps: past.Flaps, LastReset: past.LastReset,
		Reason: reasonConnecting, Detail: fmt.Sprintf("connecting to %s port %d", p.Address, p.Port),
	}}
	s.wake.Stop()
	return s
}

// decide sets the terms of the process. It returns why another process is necessary; "" if none is.
func (s *session) decide(now time.Time) (why string) {
	st := s.status()
	wanted, up := s.terms == s.want.Peer, st.State == stateEstablished
	span := trialTime(s.want.Peer)
	switch {
	case wanted && up:
		s.good, s.trial, s.refused, s.failure = Peer{}, noTime, Peer{}, Reset{}
		return ""
	case wanted && s.trial.IsZero():
		return ""
	case wanted && now.Before(s.trial) && !s.last.Sure:
		s.wake.Reset(s.trial.Sub(now))
		return ""
	case wanted: // the trial failed
		if st.Reason == reasonReset { // nothing else is known: the switch takes the connection, and is silent
			st.Reason, st.Detail = reasonHoldTimer, fmt.Sprintf("the switch did not answer within %s: check that BGP runs there and knows this node", span)
		}
		s.refused, s.failure, s.trial = s.want.Peer, Reset{now, st.Reason, s.good.differs(s.terms) + ": " + st.Detail}, noTime
		s.terms = s.good
		return "the new settings failed (" + st.Reason + "), back to the earlier ones"
	case s.refused == s.want.Peer && (up || now.Sub(st.Since) < span || now.Sub(s.failure.At) < span):
		s.wake.Reset(span) // if the old terms fail too, the new terms are tried again
		return ""
	}
	if why = s.terms.differs(s.want.Peer); why == "" {
		s.terms = s.want.Peer // only the name differs
		return ""
	}
	if up {
		s.good = s.terms
	}
	s.terms, s.trial = s.want.Peer, noTime
	if s.good != (Peer{}) && s.good != s.terms {
		s.trial = now.Add(span)
		s.wake.Reset(span)
	}
	return why
}

var noTime time.Time // read only

// trialTime is how long new terms are tried.
func trialTime(p Peer) time.Duration { return max(leastTrial, min(mostTrial, p.RestartTime/4)) }

// status combines the status of the process with the status before the process started.
func (s *session) status() Status {
	st := s.before
	if now := s.last.Status; s.proc != nil && now.State != "" {
		if now.Reason == reasonConnecting { // a crash or a restart is a better reason
			now.Reason, now.Detail = st.Reason, st.Detail
		}
		now.Flaps += st.Flaps
		if now.LastReset.At.IsZero() {
			now.LastReset = st.LastReset
		}
		st = now
	}
	st.Peer, st.Refused = s.want.Peer, Reset{}
	if s.refused == s.want.Peer {
		st.Refused = s.failure
	}
	return st
}

// ended records that the process has ended, or is about to end, and why.
func (s *session) ended(reason, detail, why string) {
	was, now := s.status(), time.Now()
	s.before = Status{State: "Idle", Since: was.Since, Reason: reason, Detail: detail, Flaps: was.Flaps, LastReset: was.LastReset}
	if was.State == "Established" {
		s.before.Since, s.before.LastReset = now, Reset{now, reason, detail}
		s.before.Flaps++
	}
	s.proc, s.last, s.whole, s.why = nil, answer{}, false, why
}

// crashed records that the process ended by itself after that time, or that no process could be started. It
// returns the pause before the next process.
func (s *session) crashed(err error, lived time.Duration) time.Duration {
	s.backoff = min(max(2*s.backoff, time.Second), maxRespawn)
	if lived > steadyProcess {
		s.backoff = 0
	}
	s.retryAt = time.Now().Add(s.backoff)
	s.ended(reasonCrashed, fmt.Sprintf("the process of this session ended: %v; it is restarted after %s; check the switch's log for the messages that it sent, and report this", err, s.backoff), "its process ended: "+err.Error())
	return s.backoff
}

// did records that proc has done everything in want, and returns the changes since the last call.
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

// hurry forgets the pause after a crash.
func (s *session) hurry() { s.backoff, s.retryAt = 0, noTime }

func (s Session) equal(other Session) bool {
	return s.Peer == other.Peer && slices.Equal(s.Paths, other.Paths) && slices.Equal(s.Learn, other.Learn) && s.Sole == other.Sole
}

// normal returns a copy of s in which all addresses are normal.
func (s Session) normal() Session {
	s.Peer, s.Paths, s.Learn = s.Peer.normal(), slices.Clone(s.Paths), slices.Clone(s.Learn)
	for i := range s.Paths {
		s.Paths[i].NextHop = s.Paths[i].NextHop.Unmap()
	}
	return s
}
