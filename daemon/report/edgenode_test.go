package report

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// ofNode is an API server's part in an EdgeNode: one object, and what it was asked.
type ofNode struct {
	mu       sync.Mutex
	there    bool
	node     bool // there is such a Node
	status   nodeStatus
	requests []string // "PATCH edgenodes/n1/status edgewayd"
	refuse   map[string]int
}

func (f *ofNode) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Audit-Id", "one")
	body, _ := io.ReadAll(q.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	path := q.URL.Path[strings.LastIndex(q.URL.Path, "/v1")+1:]
	f.requests = append(f.requests, strings.TrimSpace(q.Method+" "+strings.TrimPrefix(path, "v1alpha1/")+" "+q.URL.Query().Get("fieldManager")))
	w.Header().Set("Content-Type", "application/json")
	var in struct{ Status nodeStatus }
	if code := f.refuse[q.Method]; code != 0 {
		writeStatusCode(w, code, http.StatusText(code))
		return
	}
	switch {
	case q.Method == http.MethodGet && q.URL.Query().Get("fieldSelector") != "metadata.name=n1":
		writeStatusCode(w, http.StatusForbidden, "Forbidden")
	case q.Method == http.MethodGet && strings.HasSuffix(path, "/nodes"):
		items := map[bool]string{true: `{"metadata":{"name":"n1","uid":"u"},"status":{"capacity":{"pods":"110"}}}`}[f.node]
		fmt.Fprintf(w, `{"kind":"NodeList","items":[%s]}`, items)
	case q.Method == http.MethodGet:
		items := []any{}
		if f.there {
			items = append(items, map[string]any{"status": f.status})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "EdgeNodeList", "items": items})
	case q.Method == http.MethodPost:
		if !strings.Contains(string(body), `"uid":"u"`) || strings.Contains(string(body), "status") {
			writeStatusCode(w, http.StatusBadRequest, "BadRequest")
			return
		}
		f.there = true
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	case !f.there:
		writeStatusCode(w, http.StatusNotFound, "NotFound")
	case json.Unmarshal(body, &in) != nil:
		writeStatusCode(w, http.StatusBadRequest, "BadRequest")
	default:
		f.status = in.Status
		_, _ = w.Write(body)
	}
}

// do runs f under the lock.
func (f *ofNode) do(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count returns the number of requests that begin with the text.
func (f *ofNode) count(text string) (n int) {
	f.do(func() {
		for _, q := range f.requests {
			if strings.HasPrefix(q, text) {
				n++
			}
		}
	})
	return n
}

func (f *ofNode) used() (n uint64) {
	f.do(func() {
		if len(f.status.Addresses) > 0 {
			n = f.status.Addresses[0].Used
		}
	})
	return n
}

// telling starts a Reporter of the node n1 toward f.
func (f *ofNode) telling(t *testing.T, p reportPace) *Reporter {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, s.URL)
	r := newReporter("n1", func() (*cluster.Connection, error) {
		return cluster.Connect(cluster.KubernetesOptions{Kubeconfig: path})
	}, p)
	running(t, r.Run)
	r.Sync(nil)
	return r
}

func peaceful(used uint64) Node {
	return Node{Generation: 1, Mode: "underlay", Version: "1.4.0", MTU: 1500, Addresses: []Addresses{{"IPv4", used, 254 - used}}, Paths: Paths{Probed: 3, Reached: 3, RoundTrip: time.Millisecond}}
}

// A node without an EdgeNode creates it, with its Node as owner, and only if it has a Node: what is deleted with the
// Node must not come back.
func TestEdgeNodeIsCreatedByItsNode(t *testing.T) {
	f := &ofNode{}
	r := f.telling(t, quickReports)
	first := peaceful(1)
	first.Generation = 0
	r.Self(first)
	eventually(t, "it looks for its Node", true, func() bool { return f.count("GET v1/nodes") > 2 })
	if n := f.count("POST"); n > 0 {
		t.Errorf("%d creations without a Node", n)
	}
	f.do(func() { f.node = true })
	eventually(t, "a status", 1, f.used)
	if n := f.count("POST edgenodes edgewayd"); n != 1 {
		t.Errorf("%d creations, want 1", n)
	}

	// It is deleted by hand: the source hears it, and the EdgeNode is back.
	r.Self(peaceful(1))
	f.do(func() { f.there, f.status = false, nodeStatus{} })
	r.Self(first)
	eventually(t, "it is back", 1, f.used)
}

// The status of a node with uplinks names the maxPods of its kubelet, which the Node has. Other nodes do not ask for it.
func TestMaxPodsOfANodeWithUplinks(t *testing.T) {
	f := &ofNode{there: true, node: true}
	r := f.telling(t, quickReports)
	r.Self(peaceful(1))
	eventually(t, "a status", 1, f.used)
	if n := f.count("GET v1/nodes"); n > 0 || r.MaxPods() != 0 {
		t.Errorf("a node without uplinks asks %d times, and has maxPods %d", n, r.MaxPods())
	}
	with := peaceful(2)
	with.Uplinks = &cluster.UplinksStatus{Used: 2}
	r.Self(with)
	eventually(t, "maxPods", 110, r.MaxPods)
}

// A write is a change that somebody wants to hear at once, or waits for its turn; noise is none.
func TestEdgeNodeIsWrittenOnChangeOnly(t *testing.T) {
	p := quickReports
	p.count, p.own = time.Hour, time.Hour
	f := &ofNode{there: true}
	r := f.telling(t, p)
	r.Self(peaceful(1))
	eventually(t, "the first", 1, f.used)
	for i := range 200 { // pods come and go, round trips differ, a daemon tries again and again
		n := peaceful(uint64(i))
		n.Paths.RoundTrip, n.Paths.Loss = time.Duration(i%3)*time.Millisecond, float64(i%2)/100
		r.Self(n)
	}
	bad := peaceful(77)
	bad.Problems = []cluster.Problem{{Object: "store", Reason: cluster.PoolFull, Got: "1 of 1", Next: "wait"}}
	r.Self(bad)
	eventually(t, "a problem takes the numbers along", 77, f.used)
	if n := f.count("PATCH edgenodes/n1/status edgewayd"); n != 2 {
		t.Errorf("%d writes, want 2: %v", n, f.requests)
	}
	if n := f.count("GET"); n != 1 {
		t.Errorf("%d times read, want once: %v", n, f.requests)
	}
}

// A daemon that restarts and finds what it would write writes nothing, and keeps the times of the conditions.
func TestEdgeNodeAfterARestart(t *testing.T) {
	f := &ofNode{there: true}
	f.status = peaceful(1).status("n1").after(nodeStatus{}, since)
	r := f.telling(t, quickReports)
	r.Self(peaceful(1))
	eventually(t, "it is read", 1, func() int { return f.count("GET edgenodes") })
	bad := peaceful(1)
	bad.Problems = []cluster.Problem{{Object: "Node/n1", Reason: cluster.NoPodCIDR, Next: "wait"}}
	r.Self(bad)
	eventually(t, "one write", 1, func() int { return f.count("PATCH") })
	f.do(func() {
		for _, c := range f.status.Conditions {
			if c.LastTransitionTime.Equal(since) == (c.Type == ready) {
				t.Errorf("%s since %v", c.Type, c.LastTransitionTime)
			}
		}
	})
}

// A refusal is a problem with a next step, unless it is of the right to create: not every cluster gives it.
func TestEdgeNodeRefused(t *testing.T) {
	f := &ofNode{node: true, refuse: map[string]int{http.MethodPost: http.StatusForbidden}}
	r := f.telling(t, quickReports)
	r.Self(peaceful(1))
	eventually(t, "it may not create", true, func() bool { return f.count("POST") > 1 })
	if p := r.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
	f.do(func() { f.there, f.refuse = true, map[string]int{http.MethodPatch: http.StatusForbidden} })
	eventually(t, "a problem", 1, func() int { return len(r.Problems()) })
	if p := r.Problems()[0]; p.Object != "EdgeNode/n1" || p.Reason != cluster.StatusRefused {
		t.Errorf("problem %v", p)
	}
	f.do(func() { f.refuse = nil })
	eventually(t, "it is written", 1, f.used)
	eventually(t, "no problem", 0, func() int { return len(r.Problems()) })
}

// The WAN is away for long, and the wait between attempts is long: what changed is written when the source hears the
// server again, and not later.
func TestEdgeNodeWhenTheServerIsBack(t *testing.T) {
	p := quickReports
	p.retryLeast, p.retryMost = time.Hour, time.Hour
	f := &ofNode{there: true, refuse: map[string]int{http.MethodGet: http.StatusServiceUnavailable}}
	r := f.telling(t, p)
	gone := peaceful(1)
	gone.Problems = []cluster.Problem{{Object: "API server https://10.0.0.1:6443", Reason: cluster.APIServerUnreachable}}
	r.Self(gone)
	eventually(t, "an attempt", 1, func() int { return f.count("GET") })
	f.do(func() { f.refuse = nil })
	r.Self(peaceful(2))
	eventually(t, "written", 2, f.used)
	f.do(func() {
		if f.status.ProblemCount != 0 {
			t.Errorf("problems %v", f.status.Problems)
		}
	})
}

func TestEdgeNodeConditions(t *testing.T) {
	session := func(s Session, reason cluster.Reason) Session { s.Reason = reason; return s }
	problem := func(object string, reason cluster.Reason) cluster.Problem {
		return cluster.Problem{Object: object, Reason: reason}
	}
	dead := session(down("BGPPeer/b", "refused", "start BGP"), "refused")
	dead.Peer, dead.Port = netip.MustParseAddr("10.0.0.2"), 1179
	for name, test := range map[string]struct {
		n    Node
		want string
	}{
		"at peace":         {peaceful(1), "True NoProblems, True NothingCut, True NoSessions; 3/3 "},
		"a full pool":      {Node{Problems: []cluster.Problem{problem("BGPPeer/b", "refused"), problem("store", "poolFull")}}, "False poolFull, Unknown NothingProbed, True NoSessions;  "},
		"its own uplinks":  {Node{Problems: []cluster.Problem{problem("EdgeNode/n1", "uplinkMissing")}}, "False uplinkMissing, Unknown NothingProbed, True NoSessions;  "},
		"others' problems": {Node{Problems: []cluster.Problem{problem("Node/n2", "silentNode"), problem("EdgeNode/n2", "x"), problem("API server a", cluster.APIServerUnreachable)}}, "True NoProblems, Unknown NothingProbed, True NoSessions;  "},
		"sessions":         {Node{Sessions: []Session{up("BGPPeer/a", 1), dead, session(down("BGPPeer/c", "", ""), cluster.NoSuchSpeaker)}}, "True NoProblems, Unknown NothingProbed, False refused;  1/2"},
		"all up":           {Node{Sessions: []Session{up("BGPPeer/a", 1)}}, "True NoProblems, Unknown NothingProbed, True Established;  1/1"},
		"a cut path":       {Node{Paths: Paths{Probed: 4, Reached: 2, Cut: 1, Away: 1}}, "True NoProblems, False PathsCut, True NoSessions; 2/4 "},
		"a proven cause":   {Node{Paths: Paths{Probed: 4, Reached: 2, Cut: 1, Problems: []cluster.Problem{problem("Node/n2", "podCIDRNotRouted")}}}, "True NoProblems, False podCIDRNotRouted, True NoSessions; 2/4 "},
		"a dead neighbour": {Node{Paths: Paths{Probed: 4, Reached: 3, Away: 1}}, "True NoProblems, True NothingCut, True NoSessions; 3/4 "},
		"nobody answers":   {Node{Paths: Paths{Probed: 4, Away: 4}}, "True NoProblems, False NothingReached, True NoSessions; 0/4 "},
	} {
		s := test.n.status("n1")
		var words []string
		for _, c := range s.Conditions {
			words = append(words, c.Status+" "+string(c.Reason))
			if c.Message == "" || c.Generation != test.n.Generation {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if got := strings.Join(words, ", ") + "; " + s.PathsReached + " " + s.SessionsUp; got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	s := Node{Sessions: []Session{up("BGPPeer/a", 1), dead}}.status("n1").Sessions
	want := []nodeSession{{"10.0.0.1", "BGPPeer/a", "Established", since, ""}, {"10.0.0.2:1179", "BGPPeer/b", "Down", since, "refused"}}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
}

// The status stays small in a cluster of thousands of nodes with thousands of problems.
func TestEdgeNodeIsBounded(t *testing.T) {
	n := peaceful(1)
	for i := range 5000 {
		n.Problems = append(n.Problems, cluster.Problem{Object: fmt.Sprint("Node/n", i+2), Reason: cluster.SilentNode, Next: strings.Repeat("ä", 1000)})
		n.Sessions = append(n.Sessions, down("BGPPeer/a", "refused", strings.Repeat("b", 5000)))
	}
	s := n.status("n1")
	text, err := json.Marshal(s)
	if err != nil || len(text) > 24<<10 || s.ProblemCount != 5000 || len(s.Problems) != mostProblems || s.SessionsUp != "0/5000" {
		t.Errorf("%d bytes, %d problems of %d, %s sessions (%v)", len(text), len(s.Problems), s.ProblemCount, s.SessionsUp, err)
	}
}

// A number near the border of two steps must not be written all day.
func TestCalm(t *testing.T) {
	for _, test := range []struct{ now, before, want int }{{1, 1, 1}, {2, 1, 1}, {1, 2, 2}, {5, 1, 5}, {1, 5, 1}, {0, 1, 1}, {2000, 0, 2000}} {
		if got := calm(test.now, test.before); got != test.want {
			t.Errorf("%d after %d: got %d, want %d", test.now, test.before, got, test.want)
		}
	}
	for v, want := range map[float64]int{0: 0, 0.1: 1, 1: 1, 1.1: 2, 21: 50, 5000: 2000} {
		if got := bucket(v); got != want {
			t.Errorf("%v: got %d, want %d", v, got, want)
		}
	}
}
