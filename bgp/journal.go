package bgp

import (
	"fmt"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// journal keeps what is known of one session from the lines that GoBGP logs. They are the only
// place where v3 says why a connection failed, and they come in order, from whatever goroutine
// it happens in and often under GoBGP's locks: the methods write down and return.
type journal struct {
	mu       sync.Mutex // guards all below
	peer     Peer
	state    bgp.FSMState
	since    time.Time // of being Established, or of not being so
	flaps    int
	reset    Reset // the last time that it left Established
	last     cause // evidence so far of why it is not Established
	hint     cause // of the next change of state
	evidence evidence
	dialled  time.Time     // since when dials have ended as the last one did
	probing  bool          // a probe is under way
	probeAt  time.Time     // not probed before
	pause    time.Duration // after the last probe
	lost     bool          // left Established, and nobody has taken note yet
	farewell bool          // the switch ended it for good, and nobody has taken note yet
	down     chan struct{}
	notify   func() // must not block
	lifetime time.Duration
}

// newJournal returns the journal of a session that has not been Established since then.
func newJournal(p Peer, since time.Time, notify func()) *journal {
	down := make(chan struct{})
	close(down)
	return &journal{
		peer:   p,
		since:  since,
		last:   cause{reason: reasonConnecting},
		down:   down,
		notify: notify,
	}
}

// forgetDials starts the search for a cause anew. Callers hold mu.
func (j *journal) forgetDials() { j.evidence, j.probeAt, j.pause = evidence{}, time.Time{}, 0 }

// established reports whether the session is up, and a channel that is closed when it is not.
func (j *journal) established() (bool, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state == bgp.BGP_FSM_ESTABLISHED, j.down
}

// takeLoss reports once after each loss of the session, with how long it had lived.
func (j *journal) takeLoss() (time.Duration, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	lost := j.lost
	j.lost = false
	return j.lifetime, lost
}

// takeFarewell reports once that the switch said that it is done with us: it has withdrawn all.
func (j *journal) takeFarewell() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	farewell := j.farewell
	j.farewell = false
	return farewell
}

// session returns the number of the established session, and whether there is one.
func (j *journal) session() (int, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.flaps, j.state == bgp.BGP_FSM_ESTABLISHED
}

// stateChanged follows GoBGP's state machine.
func (j *journal) stateChanged(next bgp.FSMState, why string) {
	j.mu.Lock()
	old := j.state
	if old != next && next == bgp.BGP_FSM_IDLE {
		if c := j.explain(old, why); c.reason != "" {
			j.last = c
		}
		j.hint = cause{}
	}
	switch next {
	case bgp.BGP_FSM_OPENSENT:
		j.forgetDials()
	case bgp.BGP_FSM_ESTABLISHED:
		j.last, j.hint = cause{}, cause{}
	}
	if old == bgp.BGP_FSM_ESTABLISHED && next != old {
		j.lost = true
		j.reset = Reset{time.Now(), j.last.reason, j.last.detail}
	}
	j.moved(next)
	j.mu.Unlock()
	j.notify()
}

// moved sets the state. Callers hold mu.
func (j *journal) moved(next bgp.FSMState) {
	old := j.state
	j.state = next
	switch {
	case next == bgp.BGP_FSM_ESTABLISHED && old != next:
		j.since = time.Now()
		j.down = make(chan struct{})
	case old == bgp.BGP_FSM_ESTABLISHED && next != old:
		j.lifetime = time.Since(j.since)
		j.since = time.Now()
		j.flaps++
		close(j.down)
	}
}

// explain says why a session fell back to Idle from old. Callers hold mu.
func (j *journal) explain(old bgp.FSMState, why string) cause {
	if j.hint.reason != "" {
		return j.hint
	}
	switch old {
	case bgp.BGP_FSM_OPENSENT:
		return cause{reasonUnknownToSwitch, unknown(j.peer)}
	case bgp.BGP_FSM_OPENCONFIRM:
		if why == "read-failed" {
			return cause{reasonConnectionLost, "the switch ended the connection after both OPENs, without a NOTIFICATION: look at the switch's log"}
		}
		return openRefusedThere(j.peer)
	case bgp.BGP_FSM_ESTABLISHED:
		return cause{reasonConnectionLost, fmt.Sprintf("the connection to the switch ended without a NOTIFICATION (%s): look whether the switch restarted or a filter cut it", why)}
	}
	return cause{}
}

// dialFailed notes why the last attempt to connect failed.
func (j *journal) dialFailed(err error) {
	j.mu.Lock()
	if !isTimeout(err) || !isTimeout(j.evidence.err) {
		j.dialled = time.Now()
	}
	j.evidence.err, j.evidence.silent = err, time.Since(j.dialled)
	if !j.evidence.puzzles(j.peer) {
		j.evidence.reply = reply{}
	}
	news := j.conclude() || j.probeDue(time.Now())
	j.mu.Unlock()
	if news {
		j.notify()
	}
}

// conclude says what the dials and the last probe mean, and reports whether that is news. Callers
// hold mu.
func (j *journal) conclude() bool {
	old := j.last
	j.last = dialCause(j.peer, j.evidence)
	return j.last != old
}

// probeDue reports whether it is time for a probe. Callers hold mu.
func (j *journal) probeDue(now time.Time) bool {
	return j.evidence.puzzles(j.peer) && !j.probing && !now.Before(j.probeAt)
}

// takeProbe reports once that a probe is due. Each dial that fails looks at the time.
func (j *journal) takeProbe(now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	due := j.probeDue(now)
	if due {
		j.probing = true
		j.pause = min(max(2*j.pause, probePause), probeRarest)
		j.probeAt = now.Add(j.pause)
	}
	return due
}

// probed notes what the switch said to a probe, if that still matters.
func (j *journal) probed(r reply) {
	j.mu.Lock()
	j.probing = false
	news := false
	if j.evidence.puzzles(j.peer) {
		j.evidence.reply = r
		news = j.conclude()
	}
	j.mu.Unlock()
	if news {
		j.notify()
	}
}

// suspect notes evidence that explains the change of state that follows.
func (j *journal) suspect(c cause) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.hint.reason == "" {
		j.hint = c
	}
}

// logger is what a GoBGP server logs to: the journal of its session. Nothing is ever written anywhere.
type logger struct{ journal *journal }

// GetLevel asks for debug lines only while they can tell something: GoBGP prints every UPDATE
// at that level.
func (l *logger) GetLevel() log.LogLevel {
	if up, _ := l.journal.established(); up {
		return log.InfoLevel
	}
	return log.DebugLevel
}

func (l *logger) SetLevel(log.LogLevel) {}

func (l *logger) Debug(msg string, f log.Fields) {
	j := l.journal
	switch msg {
	case "state changed":
		if next, ok := stateNamed(f["new"]); ok {
			j.stateChanged(next, fmt.Sprint(f["reason"]))
		}
	case "failed to connect":
		if err, ok := f["Error"].(error); ok {
			j.dialFailed(err)
		}
	}
}

func (l *logger) Info(string, log.Fields) {}

func (l *logger) Warn(msg string, f log.Fields) {
	j := l.journal
	switch msg {
	case "received notification":
		code, ok1 := f["Code"].(uint8)
		subcode, ok2 := f["Subcode"].(uint8)
		data, _ := f["Data"].([]byte)
		said, _ := f["Communicated-Reason"].(string)
		if ok1 && ok2 {
			n := notification{code, subcode, said}.opened(data)
			j.suspect(notified(j.peer, n))
			if n.leaves() {
				j.mu.Lock()
				j.farewell = true
				j.mu.Unlock()
			}
		}
	case "sent notification":
		if e, ok := f["Data"].(*bgp.MessageError); ok {
			j.suspect(openRefusedHere(j.peer, e))
		}
	case "hold timer expired":
		j.suspect(cause{reasonHoldTimer, "nothing heard from the switch for the hold time: check the link and the switch"})
	case "Session will be reset due to malformed BGP Header", "Session will be reset due to malformed BGP message",
		"Session will be reset due to malformed BGP update message":
		err := f["Error"]
		if err == nil {
			err = f["error"]
		}
		j.suspect(cause{reasonMalformed, fmt.Sprintf("the switch sent what cannot be parsed: %v; update the switch's software", err)})
	}
}

func (l *logger) Error(string, log.Fields) {}

// Fatal and Panic end the process, as GoBGP expects: it has found itself in a state that it cannot be in.
func (l *logger) Fatal(msg string, f log.Fields) { l.Panic(msg, f) }
func (l *logger) Panic(msg string, f log.Fields) { panic(fmt.Sprintf("%s: %v", msg, f["Data"])) }

func stateNamed(v any) (bgp.FSMState, bool) {
	for s := bgp.BGP_FSM_IDLE; s <= bgp.BGP_FSM_ESTABLISHED; s++ {
		if v == s.String() {
			return s, true
		}
	}
	return 0, false
}

// stateName is the name of RFC 4271, section 8.2.2.
func stateName(s bgp.FSMState) string {
	switch s {
	case bgp.BGP_FSM_CONNECT:
		return "Connect"
	case bgp.BGP_FSM_ACTIVE:
		return "Active"
	case bgp.BGP_FSM_OPENSENT:
		return "OpenSent"
	case bgp.BGP_FSM_OPENCONFIRM:
		return "OpenConfirm"
	case bgp.BGP_FSM_ESTABLISHED:
		return "Established"
	}
	return "Idle"
}
