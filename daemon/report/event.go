package report

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	eventComponent = "edgewayd"
	// eventNamespace holds the events of objects without a namespace: the API server accepts them in no other
	// namespace.
	eventNamespace = "default"
	// eventLifetime is how long an API server keeps an event (--event-ttl). After that, counting starts from
	// one.
	eventLifetime = time.Hour
	// maxEventMessage is an API server's limit, in bytes.
	maxEventMessage = 1024
	// maxPendingEvents bounds the events that wait for the API server. A node has a few sessions.
	maxPendingEvents = 256
)

// EventType is the type of a Kubernetes event.
type EventType string

// The types of events.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Event is one line that `kubectl describe` lists below a BGPPeer, a BGPClusterConfig or a Node.
type Event struct {
	Resource string // "BGPPeer/peer-a", "Node/node-1"
	About    string // what of the resource: a session's switch and port, or a problem
	Type     EventType
	Reason   string // Established, FailedEstablish, or the reason of a problem: PoolFull
	Message  string
}

// Event returns the event for the session's present state: Established, or FailedEstablish with the reason
// and the next step.
func (s Session) Event(node string) Event {
	peer := "switch " + s.Peer.String()
	if s.PeerName != "" {
		peer = "switch " + s.PeerName + " " + s.Peer.String()
	}
	if port := s.endpoint().Port(); port != defaultPort {
		peer += fmt.Sprintf(" port %d", port)
	}
	e := Event{Resource: s.Resource, About: s.endpoint().String()}
	if s.Established() {
		restart := "no graceful restart: switch it on there"
		if s.RestartTime > 0 {
			restart = fmt.Sprintf("graceful restart %d s", int(s.RestartTime/time.Second))
		}
		e.Type, e.Reason = Normal, "Established"
		e.Message = fmt.Sprintf("%s has a BGP session with %s, AS %d: %d prefixes advertised, %s", node, peer, s.PeerASN, s.Advertised, restart)
		return e
	}
	e.Type, e.Reason = Warning, "FailedEstablish"
	e.Message = fmt.Sprintf("%s has no BGP session with %s, AS %d (%s)", node, peer, s.PeerASN, cmp.Or(s.Reason, Connecting))
	if s.Message != "" {
		e.Message += ": " + s.Message
	}
	return e
}

// eventKey identifies a session or a problem of this node. Only its latest event counts.
type eventKey struct{ resource, about string }

// pendingEvent is the latest event of a session or problem that has not been sent.
type pendingEvent struct {
	Event
	first, last time.Time
	count       int // times it happened since it was last sent
}

// then returns the pending event when e happens now. Only the present counts: an API server that was away for
// an hour gets one event.
func (p pendingEvent) then(e Event, now time.Time) pendingEvent {
	if p.count == 0 || p.Type != e.Type || p.Reason != e.Reason {
		return pendingEvent{Event: e, first: now, last: now, count: 1}
	}
	return pendingEvent{Event: e, first: p.first, last: now, count: p.count + 1}
}

// eventRecord is the API server's event for one reason of one session or problem.
type eventRecord struct {
	uid         string // of the resource
	first, last time.Time
	count       int
}

// after returns the record after p has also been sent, for the resource uid.
func (r eventRecord) after(p pendingEvent, uid string) eventRecord {
	if r.uid != uid || p.last.Sub(r.last) > eventLifetime {
		r = eventRecord{uid: uid, first: p.first}
	}
	r.last = p.last
	r.count += p.count
	return r
}

// eventObject holds the fields of a v1 Event that we write.
type eventObject struct {
	APIVersion         string            `json:"apiVersion"`
	Kind               string            `json:"kind"`
	Metadata           map[string]string `json:"metadata"`
	InvolvedObject     map[string]string `json:"involvedObject"`
	Type               EventType         `json:"type"`
	Reason             string            `json:"reason"`
	Message            string            `json:"message"`
	Source             map[string]string `json:"source"`
	FirstTimestamp     time.Time         `json:"firstTimestamp"`
	LastTimestamp      time.Time         `json:"lastTimestamp"`
	Count              int               `json:"count"`
	ReportingComponent string            `json:"reportingComponent"`
	ReportingInstance  string            `json:"reportingInstance"`
}

// eventText returns the name of the event's object and the text to send. The name is the same for every event
// of that reason and session or problem, also after a restart, so that repeated events are counted.
func eventText(node string, p pendingEvent, r eventRecord) (name string, text []byte, err error) {
	kind, object, _ := strings.Cut(p.Resource, "/")
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s", r.uid, node, p.About, p.Reason))
	name = fmt.Sprintf("%s.%x", strings.TrimRight(object[:min(len(object), 200)], "-."), sum[:8])
	e := eventObject{
		APIVersion: "v1", Kind: "Event", Metadata: map[string]string{"name": name, "namespace": eventNamespace},
		InvolvedObject: map[string]string{"apiVersion": cluster.APIVersion(kind), "kind": kind, "name": object, "uid": r.uid},
		Type:           p.Type, Reason: p.Reason, Message: shorten(p.Message, maxEventMessage),
		Source:         map[string]string{"component": eventComponent, "host": node},
		FirstTimestamp: r.first.UTC().Truncate(time.Second), LastTimestamp: r.last.UTC().Truncate(time.Second), Count: r.count,
		ReportingComponent: eventComponent, ReportingInstance: node,
	}
	text, err = json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("event of %s: %w", p.Resource, err)
	}
	return name, text, nil
}

// shorten cuts s to at most n bytes.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}
