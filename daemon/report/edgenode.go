package report

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	kindEdgeNode = "EdgeNode"

	// mostProblems, mostSessions and mostMessage, in bytes, bound the status of an EdgeNode: a node of a large
	// cluster can have thousands of problems at once.
	mostProblems, mostSessions, mostMessage = 16, 32, 512
)

// Node is what this node says of itself, in the status of its EdgeNode.
type Node struct {
	// Generation of the EdgeNode that the node follows; 0: it knows none.
	Generation int64
	Mode       string
	Version    string // of the daemon
	MTU        int    // of the pods' links, in bytes
	Addresses  []Addresses
	Sessions   []Session
	Paths      Paths
	Problems   []cluster.Problem // without advice
	Uplinks    *cluster.UplinksStatus
}

// Addresses are the pods' addresses of one family.
type Addresses struct {
	Family string `json:"family"` // IPv4, IPv6
	Used   uint64 `json:"used"`   // the pods have
	Free   uint64 `json:"free"`   // for more pods
}

// Paths says which other nodes' pods this node's pods reach.
type Paths struct {
	Probed    int // one for each node and family
	Reached   int // of them, which answered the last question
	Cut       int // of them, of which the node itself answers, and its pods do not, or not to full-size packets
	Away      int // of them, of which nothing answers
	Loss      float64
	RoundTrip time.Duration     // the longest
	Problems  []cluster.Problem // that they prove
}

// The conditions of an EdgeNode.
const (
	ready       = "Ready"
	pathsProven = "PathsProven"
	sessionsUp  = "SessionsUp"
)

// nodeStatus is the status of an EdgeNode.
type nodeStatus struct {
	Mode         string          `json:"mode,omitempty"`
	Version      string          `json:"version,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	Addresses    []Addresses     `json:"addresses,omitempty"`
	SessionsUp   string          `json:"sessionsUp,omitempty"` // "1/2"
	Sessions     []nodeSession   `json:"sessions,omitempty"`
	PathsReached string          `json:"pathsReached,omitempty"` // "11/12"
	Paths        *nodePaths      `json:"paths,omitempty"`
	ProblemCount int             `json:"problemCount"`
	Problems     []nodeProblem   `json:"problems,omitempty"`
	Conditions   []nodeCondition `json:"conditions,omitempty"`
	cluster.EdgeNodeStatus
}

type nodeSession struct {
	Peer     string         `json:"peer"`
	Resource string         `json:"resource"`
	State    string         `json:"state"` // Established, Down
	Since    time.Time      `json:"since"`
	Reason   cluster.Reason `json:"reason,omitempty"`
}

type nodePaths struct {
	Probed    int `json:"probed"`
	Reached   int `json:"reached"`
	Loss      int `json:"worstLossPercent"`
	RoundTrip int `json:"worstRoundTripMilliseconds"`
}

type nodeProblem struct {
	Object  string         `json:"object"`
	Reason  cluster.Reason `json:"reason"`
	Message string         `json:"message,omitempty"`
}

type nodeCondition struct {
	condition
	Generation int64 `json:"observedGeneration,omitempty"`
}

// Self sets what this node says of itself. It does not block, and only the latest call counts. It follows a Sync.
func (r *Reporter) Self(n Node) {
	away := slices.ContainsFunc(n.Problems, isAway)
	status := n.status(r.node)
	r.mu.Lock()
	if r.self != nil && (r.generation == 0) != (n.Generation == 0) {
		r.moved = true // the object came or went
	}
	r.back = r.back || r.away && !away
	r.self, r.generation, r.away = &status, n.Generation, away
	r.mu.Unlock()
	r.look()
}

// isAway reports that a problem is that the API server cannot be reached. There, nobody reads it while it lasts.
func isAway(p cluster.Problem) bool { return p.Reason == cluster.APIServerUnreachable }

// status returns the status, without the times of the conditions.
func (n Node) status(node string) nodeStatus {
	s := nodeStatus{Mode: n.Mode, Version: n.Version, MTU: n.MTU, Addresses: n.Addresses}
	s.Uplinks = n.Uplinks
	say := func(kind, status string, reason cluster.Reason, message string) {
		s.Conditions = append(s.Conditions, nodeCondition{condition{Type: kind, Status: status, Reason: reason, Message: shorten(message, mostMessage)}, n.Generation})
	}
	own := (*cluster.Problem)(nil)
	for _, p := range n.Problems {
		if isAway(p) || p.Reason == cluster.StatusRefused && p.Object == kindEdgeNode+"/"+node {
			continue
		}
		if own == nil && isOwn(p, node) {
			own = &p
		}
		if s.ProblemCount++; s.ProblemCount <= mostProblems {
			s.Problems = append(s.Problems, nodeProblem{p.Object, p.Reason, shorten(p.String(), mostMessage)})
		}
	}
	if own != nil {
		say(ready, "False", own.Reason, own.String())
	} else {
		say(ready, "True", "NoProblems", "this node has no problem of its own")
	}
	n.Paths.say(say)
	if p := n.Paths; p.Probed > 0 {
		s.PathsReached = fmt.Sprintf("%d/%d", p.Reached, p.Probed)
		s.Paths = &nodePaths{Probed: p.Probed, Reached: p.Reached, Loss: bucket(p.Loss * 100), RoundTrip: bucket(p.RoundTrip.Seconds() * 1000)}
	}
	s.speak(n.Sessions, say)
	return s
}

// isOwn reports that a problem is about this node itself. Another node's problem is that node's, and a session's is
// said by the condition SessionsUp.
func isOwn(p cluster.Problem, node string) bool {
	kind, name, _ := strings.Cut(p.Object, "/")
	return name == node && (kind == "Node" || kind == kindEdgeNode) || kind != "Node" && cluster.APIVersion(kind) == ""
}

// say says the condition PathsProven. A node of which nothing answers is away, which proves nothing of this node,
// unless nobody else answers either.
func (p Paths) say(say func(kind, status string, reason cluster.Reason, message string)) {
	const next = "; edgewayd paths on this node shows each path"
	switch {
	case len(p.Problems) > 0:
		say(pathsProven, "False", p.Problems[0].Reason, p.Problems[0].String())
	case p.Cut > 0:
		say(pathsProven, "False", "PathsCut", fmt.Sprintf("%d of %d paths carry no packets, or no large packets%s", p.Cut, p.Probed, next))
	case p.Probed == 0:
		say(pathsProven, "Unknown", "NothingProbed", "this node has no canary, or knows no other node that has one")
	case p.Away == p.Probed:
		say(pathsProven, "False", "NothingReached", fmt.Sprintf("no node answers on %d paths%s", p.Probed, next))
	default:
		say(pathsProven, "True", "NothingCut", "every node that answers is reached from pod to pod")
	}
}

// speak lists the sessions, and says the condition SessionsUp.
func (s *nodeStatus) speak(sessions []Session, say func(kind, status string, reason cluster.Reason, message string)) {
	up, all, down := 0, 0, (*Session)(nil)
	for _, x := range sessions {
		if x.Reason == cluster.NoSuchSpeaker {
			continue // nobody has this session
		}
		one := nodeSession{Peer: x.Peer.String(), Resource: x.Resource, State: established, Since: x.Since.UTC().Truncate(time.Second)}
		if port := x.endpoint().Port(); port != defaultPort {
			one.Peer = x.endpoint().String()
		}
		if x.Established() {
			up++
		} else {
			one.State, one.Reason = "Down", cmp.Or(x.Reason, Connecting)
			if down == nil {
				down = &x
			}
		}
		if all++; all <= mostSessions {
			s.Sessions = append(s.Sessions, one)
		}
	}
	switch {
	case all == 0:
		say(sessionsUp, "True", "NoSessions", "no BGP resource gives this node a session")
		return
	case down == nil:
		say(sessionsUp, "True", established, "every BGP session is established")
	default:
		e := down.Event("this node")
		say(sessionsUp, "False", cmp.Or(down.Reason, Connecting), e.Message)
	}
	s.SessionsUp = fmt.Sprintf("%d/%d", up, all)
}

// steps are the values of a number that is never still.
var steps = [...]int{0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000}

// bucket returns the least step that is not below v; above all of them: the last.
func bucket(v float64) int {
	i, _ := slices.BinarySearch(steps[:], int(math.Ceil(v)))
	return steps[min(i, len(steps)-1)]
}

// calm returns the number that was said before, unless the new one is more than one step away: a number between two
// steps is no change.
func calm(now, before int) int {
	a, _ := slices.BinarySearch(steps[:], now)
	b, _ := slices.BinarySearch(steps[:], before)
	if a-b >= -1 && a-b <= 1 {
		return before
	}
	return now
}

// after returns the status to write at the time now, where the API server has the status had.
func (s nodeStatus) after(had nodeStatus, now time.Time) nodeStatus {
	if s.Paths != nil && had.Paths != nil {
		p := *s.Paths
		p.Loss, p.RoundTrip = calm(p.Loss, had.Paths.Loss), calm(p.RoundTrip, had.Paths.RoundTrip)
		s.Paths = &p
	}
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		c := &s.Conditions[i]
		c.LastTransitionTime = now.UTC().Truncate(time.Second)
		for _, old := range had.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return s
}

// news returns the part of the status that is worth a write of its own. Numbers and words change with each pod and
// each attempt.
func (s nodeStatus) news() nodeStatus {
	s.Addresses, s.PathsReached, s.Paths = nil, "", nil
	s.Problems, s.Conditions = slices.Clone(s.Problems), slices.Clone(s.Conditions)
	for i := range s.Problems {
		s.Problems[i].Message = ""
	}
	for i := range s.Conditions {
		s.Conditions[i].Message = ""
	}
	return s
}

func (s nodeStatus) equal(other nodeStatus) bool {
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(other)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// edgeNode is this node's EdgeNode as the writer knows it.
type edgeNode struct {
	read, there bool       // it was asked for, and it exists
	has         nodeStatus // its status
	written     time.Time
	notBefore   time.Time // for anything
	checkAt     time.Time
	refusedFor  time.Duration
	podsAt      time.Time // when maxPods is read again
}

// due returns when there must next be a request.
func (e *edgeNode) due(want nodeStatus, p reportPace) time.Time {
	next := want.after(e.has, time.Now())
	switch {
	case !e.read || !e.there:
		return later(e.notBefore, longAgo)
	case next.equal(e.has):
		return e.checkAt
	case next.news().equal(e.has.news()):
		return later(e.notBefore, e.written.Add(p.count), longAgo)
	}
	return later(e.notBefore, e.written.Add(p.coalesce), longAgo)
}

// writeSelf brings the status of this node's EdgeNode up to date. Where the node has none, it creates it, if it has a
// Node: with the Node it goes. Its error means that the API server is away.
func (w *reportWriter) writeSelf(ctx context.Context, want nodeStatus) error {
	e := &w.edgeNode
	if now := time.Now(); e.read && !now.Before(e.checkAt) {
		e.read = false // it may have been changed by others
	}
	err := w.readSelf(ctx)
	if err == nil && want.Uplinks != nil {
		err = w.readMaxPods(ctx)
	}
	if err == nil && e.read && !e.there {
		err = w.createSelf(ctx)
	} else if next := want.after(e.has, time.Now()); err == nil && e.read && !next.equal(e.has) {
		err = w.applySelf(ctx, next)
	}
	if now := time.Now(); away(err) {
		e.notBefore = later(e.notBefore, now) // other requests go first
		return err
	} else if err != nil || !e.there {
		e.refusedFor = min(max(2*e.refusedFor, w.pace.retryLeast), w.pace.own)
		e.read, e.notBefore = false, now.Add(jitter(e.refusedFor))
	} else {
		e.refusedFor = 0
	}
	return nil
}

// readSelf asks for the EdgeNode, unless it is known.
func (w *reportWriter) readSelf(ctx context.Context) error {
	e := &w.edgeNode
	if e.read {
		return nil
	}
	var list struct {
		Kind  string
		Items []struct{ Status nodeStatus }
	}
	if err := w.list(ctx, kindEdgeNode, w.node, &list); err != nil {
		return err // the source reports a refusal
	}
	if list.Kind != kindEdgeNode+"List" {
		return fmt.Errorf("read EdgeNode %s: the answer is not from an API server: kind %q", w.node, list.Kind)
	}
	e.read, e.there, e.has, e.checkAt = true, len(list.Items) > 0, nodeStatus{}, time.Now().Add(jitter(w.pace.own))
	if e.there {
		e.has = list.Items[0].Status
	}
	return nil
}

// readMaxPods asks for this node's Node, unless it did so a short time ago. A refusal changes nothing.
func (w *reportWriter) readMaxPods(ctx context.Context) error {
	if time.Now().Before(w.edgeNode.podsAt) {
		return nil
	}
	l, err := w.life(ctx, w.node)
	if err != nil {
		return err
	}
	w.edgeNode.podsAt = time.Now().Add(w.pace.own)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.maxPods = cmp.Or(l.maxPods, w.maxPods)
	return nil
}

// MaxPods returns the maxPods of this node's kubelet, as the Node had it a short time ago; 0: not known, or the node has no
// uplinks.
func (r *Reporter) MaxPods() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maxPods
}

// createSelf creates the EdgeNode. A cluster whose API server cannot keep nodes from each other's EdgeNodes does not
// give them the right to create: there, a refusal is as it should be.
func (w *reportWriter) createSelf(ctx context.Context) error {
	l, err := w.life(ctx, w.node)
	if err != nil || l.uid == "" {
		return err
	}
	owner := map[string]string{"apiVersion": "v1", "kind": "Node", "name": w.node, "uid": l.uid}
	text, err := json.Marshal(map[string]any{"apiVersion": cluster.APIVersion(kindEdgeNode), "kind": kindEdgeNode,
		"metadata": map[string]any{"name": w.node, "ownerReferences": []any{owner}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if err = w.server.Create(ctx, cluster.Path(kindEdgeNode), eventComponent, text); err != nil {
		return err
	}
	w.edgeNode.there, w.edgeNode.notBefore = true, time.Now().Add(w.pace.retryLeast) // the source hears of it meanwhile
	return nil
}

func (w *reportWriter) applySelf(ctx context.Context, next nodeStatus) error {
	e, ref := &w.edgeNode, kindEdgeNode+"/"+w.node
	text, err := json.Marshal(map[string]any{"apiVersion": cluster.APIVersion(kindEdgeNode), "kind": kindEdgeNode, "metadata": map[string]string{"name": w.node}, "status": next})
	if err != nil {
		return err
	}
	_, err = w.apply(ctx, cluster.Path(kindEdgeNode)+"/"+w.node+"/status", eventComponent, text)
	if away(err) {
		return err
	}
	w.solve(ref, err)
	if answered(err, http.StatusNotFound) {
		e.there = false // it was deleted meanwhile
	} else if err == nil {
		e.has, e.written = next, time.Now()
	}
	return err
}

// list asks for one object as a list, which RBAC allows a node anyway.
func (w *reportWriter) list(ctx context.Context, kind, name string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	body, err := w.server.Get(ctx, cluster.Path(kind), url.Values{"fieldSelector": {"metadata.name=" + name}})
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read %s %s: the answer is not from an API server: %w", kind, name, err)
	}
	return nil
}
