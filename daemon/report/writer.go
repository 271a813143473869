package report

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// reportTimeout bounds one request: a WAN that swallows packets must not delay the next request.
	reportTimeout = 15 * time.Second

	eventsOf = "events of " // prefix of a resource: the key of its events in Reporter.problems
)

// reportWriter sends the Reporter's sessions and events. Only one goroutine uses it.
type reportWriter struct {
	*Reporter
	server   *cluster.Connection // nil until the configuration could be read
	known    map[string]*reported
	events   map[eventRecordKey]*sentEvent
	edgeNode edgeNode
	wait     time.Duration // the last back-off
	retryAt  time.Time     // nothing is sent earlier: the API server is away
}

// reported is our part of one resource's status, as far as we know it.
type reported struct {
	uid       string
	entries   []speakerStatus // as last written; none: the status has nothing of ours
	notBefore time.Time       // for news
	countAt   time.Time       // for a number of prefixes alone
	checkAt   time.Time
	othersAt  time.Time // when the Nodes of other speakers are asked for

	refusedFor time.Duration // the last wait after a refusal; 0: the last write was accepted
}

type eventRecordKey struct {
	eventKey
	reason string
}

type sentEvent struct {
	eventRecord
	notBefore time.Time
}

func newReportWriter(r *Reporter) *reportWriter {
	w := &reportWriter{Reporter: r, known: map[string]*reported{}, events: map[eventRecordKey]*sentEvent{}}
	w.edgeNode.notBefore = time.Now().Add(jitter(r.pace.start))
	return w
}

type job struct {
	at    time.Time // zero: there is no request
	do    func(context.Context) error
	label string
}

func (j job) before(other job) bool {
	return !j.at.IsZero() && (other.at.IsZero() || j.at.Before(other.at) || j.at.Equal(other.at) && j.label < other.label)
}

// work sends the requests that are due. It returns when the next is due; zero: when something changes.
func (w *reportWriter) work(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		next := w.next()
		if next.at.IsZero() {
			return time.Time{}
		}
		if at := later(next.at, w.retryAt); at.After(time.Now()) {
			return at
		}
		err := w.connected()
		if err == nil {
			err = next.do(ctx)
		}
		if err == nil {
			w.wait = 0
			continue
		}
		w.wait = min(max(2*w.wait, w.pace.retryLeast), w.pace.retryMost)
		w.retryAt = time.Now().Add(jitter(w.wait))
		w.retryAt = later(w.retryAt, time.Now().Add(min(cluster.RetryAfter(err), w.pace.retryMost)))
	}
	return time.Time{}
}

// next returns the request that is due first.
func (w *reportWriter) next() job {
	w.mu.Lock()
	defer w.mu.Unlock()
	var first job
	if w.wanted == nil {
		return first // this node's sessions are not known yet: nothing may be removed
	}
	if w.back {
		w.wait, w.retryAt, w.back = 0, time.Time{}, false
	}
	if w.moved {
		w.edgeNode.read, w.edgeNode.notBefore, w.moved = false, time.Time{}, false
	}
	if w.self != nil {
		want := *w.self
		first = job{at: w.edgeNode.due(want, w.pace), label: kindEdgeNode, do: func(ctx context.Context) error { return w.writeSelf(ctx, want) }}
	}
	for ref := range w.wanted {
		if w.known[ref] == nil {
			w.known[ref] = &reported{}
		}
	}
	for ref, have := range w.known {
		want := w.wanted[ref]
		if len(want) == 0 && len(have.entries) == 0 {
			delete(w.known, ref)
			delete(w.problems, ref)
			delete(w.problems, eventsOf+ref)
			continue
		}
		at, entries := have.due(want, w.pace)
		j := job{at: at, label: ref, do: func(ctx context.Context) error { return w.writeStatus(ctx, ref, entries) }}
		if j.before(first) {
			first = j
		}
	}
	for key, p := range w.pending {
		uid, node := strings.CutPrefix(key.resource, "Node/") // a kubelet too gives its Node's name as the UID
		if have := w.known[key.resource]; !node && (have == nil || have.uid == "") {
			continue // its status is written first, which returns the UID
		} else if !node {
			uid = have.uid
		}
		at := p.first
		if sent := w.events[eventRecordKey{key, p.Reason}]; sent != nil {
			at = later(at, sent.notBefore)
		}
		j := job{at: at, label: key.resource, do: func(ctx context.Context) error { return w.writeEvent(ctx, key, p, uid) }}
		if j.before(first) {
			first = j
		}
	}
	return first
}

// due returns when the status must next be written, and with which entries.
func (r *reported) due(want []speakerStatus, p reportPace) (time.Time, []speakerStatus) {
	if sameNews(want, r.entries) {
		return r.checkAt, r.entries // the same text, so that the API server sees no change
	}
	if sameButCount(want, r.entries) {
		return r.countAt, want
	}
	return later(r.notBefore, settled(want, p.settle), longAgo), want
}

// longAgo means due now; the zero time means never.
var longAgo = time.Unix(0, 0)

// writeStatus writes this node's part of a resource's status. Its error means that the API server is away. An
// answer is not an error, whatever it says.
func (w *reportWriter) writeStatus(ctx context.Context, ref string, entries []speakerStatus) error {
	have := w.known[ref]
	a, err := w.applyStatus(ctx, ref, manager(w.node), entries)
	now := time.Now()
	if away(err) {
		// Other requests go first next time: the fault may be this resource's alone (a failing webhook).
		have.notBefore, have.countAt, have.checkAt = later(have.notBefore, now), later(have.countAt, now), later(have.checkAt, now)
		return err
	}
	w.solve(ref, err)
	have.notBefore, have.countAt, have.checkAt = now.Add(w.pace.coalesce), now.Add(w.pace.count), now.Add(jitter(w.pace.check))
	switch {
	case answered(err, http.StatusNotFound):
		// The resource is gone, and our entries with it, or its kind is not installed yet.
		*have = reported{notBefore: now.Add(jitter(w.pace.refused))}
		return nil
	case err != nil:
		// Try again soon at first: an API server that just started refuses what its caches do not know yet.
		have.refusedFor = min(max(2*have.refusedFor, w.pace.retryLeast), w.pace.refused)
		again := now.Add(jitter(have.refusedFor))
		have.notBefore, have.countAt, have.checkAt = again, again, again
		return nil
	}
	have.refusedFor = 0
	have.uid, have.entries = a.Metadata.UID, entries
	ask := alive
	if now.After(have.othersAt) {
		have.othersAt = now.Add(jitter(w.pace.others))
		ask = func(node string) (life, error) { return w.life(ctx, node) }
	}
	return w.amendOthers(ctx, ref, a, ask)
}

// applyStatus makes entries the field manager's only fields in a resource's status.
func (w *reportWriter) applyStatus(ctx context.Context, ref, manager string, entries []speakerStatus) (applied, error) {
	var a applied
	text, err := statusText(ref, entries)
	if err != nil {
		return a, err
	}
	name, object, _ := strings.Cut(ref, "/")
	body, err := w.apply(ctx, cluster.Path(name)+"/"+object+"/status", manager, text)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("status of %s: the answer is not from an API server: %w", ref, err)
	}
	return a, nil
}

// apply makes text the field manager's only fields in the object at path.
func (w *reportWriter) apply(ctx context.Context, path, manager string, text []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return w.server.Apply(ctx, path, manager, text)
}

// writeEvent sends the latest event of a session or problem. Its error means that the API server is away.
func (w *reportWriter) writeEvent(ctx context.Context, key eventKey, p pendingEvent, uid string) error {
	record := eventRecordKey{key, p.Reason}
	sent := w.events[record]
	if sent == nil {
		sent = &sentEvent{}
	}
	next := sent.after(p, uid)
	name, text, err := eventText(w.node, p, next)
	if err != nil {
		return err
	}
	_, err = w.apply(ctx, "api/v1/namespaces/"+eventNamespace+"/events/"+name, manager(w.node), text)
	now := time.Now()
	if away(err) {
		w.events[record] = &sentEvent{sent.eventRecord, now} // other events go first
		return err
	}
	about := p.Resource
	if strings.HasPrefix(about, "Node/") {
		about = "Node/" + w.node
	}
	w.solve(eventsOf+about, err)
	w.events[record] = &sentEvent{next, now.Add(w.pace.coalesce)}
	if err != nil {
		w.events[record] = &sentEvent{sent.eventRecord, now.Add(jitter(w.pace.refused))}
		return nil
	}
	w.forgetEvents(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending[key] == p { // else the event happened again meanwhile
		delete(w.pending, key)
	} else if again, ok := w.pending[key]; ok && again.Reason == p.Reason {
		again.count -= p.count
		w.pending[key] = again
	}
	return nil
}

// forgetEvents drops the records of events that the API server has dropped.
func (w *reportWriter) forgetEvents(now time.Time) {
	for key, sent := range w.events {
		if now.Sub(sent.last) > eventLifetime {
			delete(w.events, key)
		}
	}
}

// connected ensures a connection with the present credentials, as a kubelet's credentials are renewed. While
// they cannot be read, the earlier connection stays in use, as in the source.
func (w *reportWriter) connected() error {
	if w.server != nil && !w.server.Stale() {
		return nil
	}
	server, err := w.dial()
	switch {
	case err != nil && w.server == nil:
		return err
	case err != nil:
		return nil
	case w.server != nil:
		w.server.Close()
	}
	w.server = server
	return nil
}

// solve records the API server's answer to a request, for Problems.
func (w *reportWriter) solve(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil || answered(err, http.StatusNotFound) || answered(err, http.StatusForbidden) && w.speaksOfNobody(what) {
		delete(w.problems, what)
		return
	}
	object, event := strings.CutPrefix(what, eventsOf)
	p := cluster.Problem{
		Object: object, Reason: cluster.StatusRefused, Want: "its status.speakers written by this node", Got: err.Error(),
		Next: "apply deploy/kubernetes/crds of this version; BGP itself does not depend on it",
	}
	ofNode := strings.HasPrefix(object, kindEdgeNode+"/")
	if ofNode {
		p.Want, p.Next = "its status written by this node", "apply deploy/kubernetes/crds and deploy/kubernetes/rbac of this version, and see docs/kubernetes.md for credentials that name no node; "+
			"pods are not affected, but no address goes back to a cloud"
	}
	if event {
		p.Reason, p.Want = cluster.EventsRefused, "its events written by this node"
	}
	if answered(err, http.StatusForbidden) && !ofNode {
		p.Next = "apply deploy/kubernetes/rbac; BGP itself does not depend on it"
	}
	w.problems[what] = p
}

// speaksOfNobody reports whether the node has no session of the resource and only says that nobody has. A node
// that is no speaker need not have the right to write that; w.mu is held.
func (w *reportWriter) speaksOfNobody(ref string) bool {
	entries := w.wanted[strings.TrimPrefix(ref, eventsOf)]
	return len(entries) > 0 && !slices.ContainsFunc(entries, func(e speakerStatus) bool { return e.Reason != cluster.NoSuchSpeaker })
}

// away reports whether the API server could not be asked, or could not answer, so that the same request may
// succeed later. Every other answer is about the request.
func away(err error) bool {
	status := (*apierrors.StatusError)(nil)
	if err == nil || !errors.As(err, &status) {
		return err != nil
	}
	switch code := status.ErrStatus.Code; code {
	case http.StatusUnauthorized: // credentials are renewed
	case http.StatusConflict: // several other writers were faster, and the API server gave up
	case http.StatusTooManyRequests:
	case http.StatusInternalServerError:
		return !strings.Contains(status.ErrStatus.Message, earlierKind)
	default:
		return code > http.StatusInternalServerError
	}
	return true
}

// earlierKind is in the answer to an apply with a field that the kind at the API server does not have: an upgrade leaves
// CustomResourceDefinitions as they are, above all Helm's. The API server takes it for an error of its own, 500
// (structured-merge-diff: typed/validate.go; apimachinery: managedfields/internal/structuredmerge.go).
const earlierKind = "field not declared in schema"

// answered reports whether err is an API server's answer with that code.
func answered(err error, code int32) bool {
	status := (*apierrors.StatusError)(nil)
	return errors.As(err, &status) && status.ErrStatus.Code == code
}

// manager is a node's field manager. It tells the node's entries from those of other nodes. The API server
// accepts 128 characters.
func manager(node string) string {
	name := eventComponent + "-" + node
	if len(name) <= 128 {
		return name
	}
	sum := sha256.Sum256([]byte(node))
	return fmt.Sprintf("%s-%x", name[:100], sum[:8])
}

// jitter returns d, changed by up to a quarter either way: thousands of nodes that lost the API server at one
// moment do not return at one moment.
func jitter(d time.Duration) time.Duration {
	return d - d/4 + rand.N(max(d/2, 1))
}

func later(times ...time.Time) time.Time {
	var latest time.Time
	for _, t := range times {
		if t.After(latest) {
			latest = t
		}
	}
	return latest
}
