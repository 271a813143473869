package report

import (
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// tellRepeat is the time after which a problem that stays is told again: an API server forgets an event
	// after an hour (--event-ttl).
	tellRepeat = 50 * time.Minute
	// tellAgain is the least time between two events of a problem that comes and goes.
	tellAgain = 10 * time.Minute
)

// telling says since when a problem lasts, and when it was last told.
type telling struct{ since, at time.Time }

// Tell sets the complete list of this node's problems. A problem that lasts for some seconds becomes an event
// of the object that it is about: this Node, a resource that gives this node a session, or a node that this
// speaker found silent. Another Node's problem is that node's to tell, and a fault of the API server cannot be
// told. Tell does not block. It follows a Sync.
func (r *Reporter) Tell(problems []cluster.Problem) {
	now := time.Now()
	r.mu.Lock()
	there := map[eventKey]bool{}
	for _, p := range problems {
		on := r.object(p)
		if on == "" {
			continue
		}
		key := eventKey{on, p.Object + " " + string(p.Reason)}
		there[key] = true
		t := r.told[key]
		if t.since.IsZero() {
			t.since = now
		}
		wait := tellRepeat
		if t.since.After(t.at) {
			wait = tellAgain
		}
		if now.Sub(t.since) >= r.pace.settle && now.Sub(t.at) >= wait {
			t.at = now
			kind := Warning
			if p.Reason.IsAdvice() {
				kind = Normal
			}
			r.event(Event{Resource: on, About: key.about, Type: kind, Reason: eventReason(p.Reason), Message: p.String()})
		}
		r.told[key] = t
	}
	for key, t := range r.told {
		switch {
		case there[key]:
		case now.Sub(t.at) >= tellAgain:
			delete(r.told, key)
		default:
			t.since = time.Time{}
			r.told[key] = t
		}
		if !there[key] {
			delete(r.pending, key)
		}
	}
	if len(there) == 0 {
		delete(r.problems, eventsOf+"Node/"+r.node) // nothing is left to tell
	}
	r.mu.Unlock()
	r.look()
}

// object returns the object whose event tells the problem, or "" where this node does not tell it; r.mu is
// held.
func (r *Reporter) object(p cluster.Problem) string {
	self := "Node/" + r.node
	kind, _, _ := strings.Cut(p.Object, "/")
	switch {
	case p.Reason == cluster.StatusRefused, p.Reason == cluster.EventsRefused, strings.HasPrefix(p.Object, "API server "):
		return ""
	case p.Object == self, p.Reason == cluster.SilentNode, r.wanted[p.Object] != nil:
		return p.Object
	case kind == "Node", cluster.APIVersion(kind) != "":
		return ""
	}
	return self
}

// eventReason writes the reason as Kubernetes does: PoolFull.
func eventReason(r cluster.Reason) string { return strings.ToUpper(string(r[:1])) + string(r[1:]) }
