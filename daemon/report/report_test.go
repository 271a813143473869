package report

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

var quickReports = reportPace{
	coalesce: 20 * time.Millisecond, count: 20 * time.Millisecond, settle: 50 * time.Millisecond, check: time.Hour, others: time.Hour,
	refused: 50 * time.Millisecond, retryLeast: 5 * time.Millisecond, retryMost: 40 * time.Millisecond, own: 40 * time.Millisecond,
}

var since = time.Date(2026, 11, 26, 5, 0, 0, 0, time.UTC)

func up(resource string, prefixes int) Session {
	return Session{
		Resource: resource, Peer: netip.MustParseAddr("10.0.0.1"), PeerASN: 65001, State: "Established",
		Since: since, Advertised: prefixes, RestartTime: 600 * time.Second,
	}
}

func down(resource string, reason cluster.Reason, message string) Session {
	return Session{
		Resource: resource, Peer: netip.MustParseAddr("10.0.0.1"), PeerASN: 65001, State: "Active",
		Since: since, Reason: reason, Message: message,
	}
}

// fakeAPI is an API server's part in this: who applied what, and what it answers.
type fakeAPI struct {
	*httptest.Server

	mu       sync.Mutex
	spec     map[string][]string                           // resource ref: its speakers
	status   map[string]map[string]reportStatus            // resource ref: field manager: its entries
	uid      map[string]string                             // resource ref: its UID
	events   map[string]corev1.Event                       // by name
	requests []string                                      // "PATCH bgppeers/p/status edgewayd-n1"
	fault    func(*http.Request) func(http.ResponseWriter) // nil: none
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	f := &fakeAPI{
		spec: map[string][]string{}, status: map[string]map[string]reportStatus{}, uid: map[string]string{},
		events: map[string]corev1.Event{},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeAPI) add(ref, uid string, speakers ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spec[ref], f.uid[ref], f.status[ref] = speakers, uid, map[string]reportStatus{}
}

func (f *fakeAPI) fail(fault func(*http.Request) func(http.ResponseWriter)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// answer is a fault: every request gets that code.
func answer(code int, reason string) func(*http.Request) func(http.ResponseWriter) {
	return func(*http.Request) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { writeStatusCode(w, code, reason) }
	}
}

func writeStatusCode(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"%s here","reason":"%s","code":%d}`, reason, reason, code)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Audit-Id", "one")
	body, _ := io.ReadAll(q.Body)
	if q.Method == http.MethodGet {
		w.Header().Set("Content-Type", "application/json") // every Node lives
		_, _ = io.WriteString(w, `{"kind":"NodeList","items":[{"status":{"conditions":[{"type":"Ready","status":"True"}]}}]}`)
		return
	}
	f.mu.Lock()
	manager := q.URL.Query().Get("fieldManager")
	f.requests = append(f.requests, fmt.Sprintf("%s %s %s", q.Method, q.URL.Path[strings.Index(q.URL.Path[6:], "/")+7:], manager))
	fault := f.fault
	f.mu.Unlock()
	if fault != nil {
		if do := fault(q); do != nil {
			do(w)
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(q.URL.Path, "/api/v1/namespaces/default/events/") {
		var e corev1.Event
		if err := json.Unmarshal(body, &e); err != nil {
			writeStatusCode(w, http.StatusBadRequest, "BadRequest")
			return
		}
		f.events[e.Name] = e
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
		return
	}
	var a statusApply
	if err := json.Unmarshal(body, &a); err != nil {
		writeStatusCode(w, http.StatusBadRequest, "BadRequest")
		return
	}
	ref := a.Kind + "/" + a.Metadata["name"]
	if f.uid[ref] == "" {
		writeStatusCode(w, http.StatusNotFound, "NotFound")
		return
	}
	delete(f.status[ref], manager)
	if a.Status != nil {
		f.status[ref][manager] = *a.Status
	}
	speakers := []speakerStatus{}
	for _, m := range slices.Sorted(maps.Keys(f.status[ref])) {
		speakers = append(speakers, f.status[ref][m].Speakers...)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"apiVersion": a.APIVersion, "kind": a.Kind, "metadata": map[string]string{"name": a.Metadata["name"], "uid": f.uid[ref]},
		"spec": map[string]any{"localSpeakers": f.spec[ref]}, "status": map[string]any{"speakers": speakers},
	})
}

// says returns what the status of a resource says, one line per session.
func (f *fakeAPI) says(ref string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, m := range slices.Sorted(maps.Keys(f.status[ref])) {
		for _, e := range f.status[ref][m].Speakers {
			fmt.Fprintf(&b, "%s %s %s %s %d\n", e.Node, e.Address, e.State, e.Reason, e.Prefixes)
		}
	}
	return b.String()
}

func (f *fakeAPI) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// kubeconfig writes a file that leads to f.
func (f *fakeAPI) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, f.URL)
	return path
}

func writeKubeconfig(t *testing.T, path, url string) {
	t.Helper()
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"` + url + `"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fakeAPI) connect(t *testing.T) func() (*cluster.Connection, error) {
	o := cluster.KubernetesOptions{Kubeconfig: f.kubeconfig(t)}
	return func() (*cluster.Connection, error) { return cluster.Connect(o) }
}

// reporting starts a Reporter of the node toward f.
func reporting(t *testing.T, f *fakeAPI, node string, p reportPace) *Reporter {
	t.Helper()
	r := newReporter(node, f.connect(t), p)
	running(t, r.Run)
	return r
}

// running runs until the test ends.
func running(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// longest bounds a wait for something that happens: a machine with much other work takes long.
const longest = time.Minute

// eventually waits until got returns want.
func eventually[T any](t *testing.T, what string, want T, got func() T) {
	t.Helper()
	deadline := time.Now().Add(longest)
	for {
		d := cmp.Diff(want, got())
		if d == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: want (-) and got (+):\n%s", what, d)
		}
		<-time.After(time.Millisecond)
	}
}

func TestReporter(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1", "n2")
	f.add("BGPClusterConfig/b", "uid-b", "n1")
	n1, n2 := reporting(t, f, "n1", quickReports), reporting(t, f, "n2", quickReports)
	says := func() [2]string { return [2]string{f.says("BGPPeer/a"), f.says("BGPClusterConfig/b")} }

	if n := f.count(); n != 0 {
		t.Errorf("%d requests before the first Sync, want none", n)
	}
	n1.Sync([]Session{up("BGPPeer/a", 3), up("BGPClusterConfig/b", 3)})
	n2.Sync([]Session{down("BGPPeer/a", "refused", "start BGP")})
	eventually(t, "two speakers", [2]string{"n1 10.0.0.1 Established  3\nn2 10.0.0.1 Active refused 0\n", "n1 10.0.0.1 Established  3\n"}, says)

	n1.Sync([]Session{up("BGPPeer/a", 4)})
	eventually(t, "one more prefix, one session less", [2]string{"n1 10.0.0.1 Established  4\nn2 10.0.0.1 Active refused 0\n", ""}, says)

	n1.Sync(nil)
	eventually(t, "no speaker any more", [2]string{"n2 10.0.0.1 Active refused 0\n", ""}, says)
}

// A switch that refuses for a week is one write, whatever its message and state machine do.
func TestReporterWritesNewsOnly(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	r := reporting(t, f, "n1", quickReports)
	for i := range 500 {
		s := down("BGPPeer/a", "refused", fmt.Sprintf("attempt %d", i))
		s.State = []string{"Idle", "Connect", "Active"}[i%3]
		r.Sync([]Session{s})
		if i == 0 {
			eventually(t, "the first", "n1 10.0.0.1 Idle refused 0\n", func() string { return f.says("BGPPeer/a") })
		}
	}
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "it comes up", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
	if n := f.count(); n != 2 {
		t.Errorf("%d writes, want 2: the refusal and the session", n)
	}
}

// A session that flaps is written at most once per coalescing time, and ends as it is.
func TestReporterCoalesces(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	r := reporting(t, f, "n1", quickReports)
	began := time.Now()
	for i := range 2000 {
		r.Sync([]Session{up("BGPPeer/a", i)})
	}
	eventually(t, "the last", "n1 10.0.0.1 Established  1999\n", func() string { return f.says("BGPPeer/a") })
	if most := 2 + int(time.Since(began)/quickReports.coalesce); f.count() > most {
		t.Errorf("%d writes of 2000 changes, want at most %d", f.count(), most)
	}
}

// A kubeconfig that is broken does not end the connection that was made of the one before.
func TestReporterKubeconfigBroken(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, f.URL)
	r := New(cluster.KubernetesOptions{Kubeconfig: path, Node: "n1", UserAgent: "edgewayd/test"})
	r.pace = quickReports
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { stop(); <-done }()
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "the first", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Sync([]Session{up("BGPPeer/a", 2)})
	eventually(t, "the second", "n1 10.0.0.1 Established  2\n", func() string { return f.says("BGPPeer/a") })

	other := newFakeAPI(t)
	other.add("BGPPeer/a", "uid-a", "n1")
	writeKubeconfig(t, path, other.URL)
	r.Sync([]Session{up("BGPPeer/a", 3)})
	eventually(t, "the third", "n1 10.0.0.1 Established  3\n", func() string { return other.says("BGPPeer/a") })
}

// The number of prefixes alone can wait; it goes along with what cannot.
func TestReporterCountWaits(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	p := quickReports
	p.count = time.Hour
	r := reporting(t, f, "n1", p)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "the first", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
	for i := range 100 {
		r.Sync([]Session{up("BGPPeer/a", i)})
	}
	later := up("BGPPeer/a", 7)
	later.Since = since.Add(time.Minute)
	r.Sync([]Session{later})
	eventually(t, "a new session", "n1 10.0.0.1 Established  7\n", func() string { return f.says("BGPPeer/a") })
	if n := f.count(); n != 2 {
		t.Errorf("%d writes, want 2", n)
	}
}

// A session that has just started is not reported for a while: it usually comes up at once.
func TestReporterWaitsForNewSession(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	p := quickReports
	p.settle = time.Hour
	r := reporting(t, f, "n1", p)
	s := down("BGPPeer/a", "connecting", "")
	s.Since = time.Now()
	r.Sync([]Session{s})
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "up", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
	if n := f.count(); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
}

// However the API server fails: callers never wait, and when it is back it has the present.
func TestReporterFaults(t *testing.T) {
	faults := map[string]func(*http.Request) func(http.ResponseWriter){
		"500": answer(http.StatusInternalServerError, "InternalError"),
		"503": answer(http.StatusServiceUnavailable, "ServiceUnavailable"),
		"401": answer(http.StatusUnauthorized, "Unauthorized"),
		"409": answer(http.StatusConflict, "Conflict"),
		"429": answer(http.StatusTooManyRequests, "TooManyRequests"),
		"not JSON": func(*http.Request) func(http.ResponseWriter) {
			return func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>captive portal") }
		},
		"reset": func(*http.Request) func(http.ResponseWriter) {
			return func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.add("BGPPeer/a", "uid-a", "n1")
			f.fail(fault)
			r := reporting(t, f, "n1", quickReports)
			for i := range 3600 {
				s := []Session{up("BGPPeer/a", i), down("BGPPeer/a", "refused", "start BGP")}[i%2]
				r.Sync([]Session{s})
				r.Event(s.Event("n1"))
			}
			eventually(t, "tries again", true, func() bool { return f.count() > 3 })
			f.fail(nil)
			eventually(t, "the present", "n1 10.0.0.1 Active refused 0\n", func() string { return f.says("BGPPeer/a") })
			eventually(t, "one event", []string{"FailedEstablish x1"}, f.told)
			if p := r.Problems(); len(p) != 0 {
				t.Errorf("problems %v, want none: the source says that the API server is away", p)
			}
		})
	}
}

// told returns the events, each with its count.
func (f *fakeAPI) told() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, e := range f.events {
		all = append(all, fmt.Sprintf("%s x%d", e.Reason, e.Count))
	}
	slices.Sort(all)
	return all
}

// One resource that the API server fails at does not hold up another.
func TestReporterOneFails(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	f.add("BGPPeer/b", "uid-b", "n1")
	f.fail(func(q *http.Request) func(http.ResponseWriter) {
		if !strings.Contains(q.URL.Path, "bgppeers/a/") {
			return nil
		}
		return answer(http.StatusInternalServerError, "InternalError")(q)
	})
	r := reporting(t, f, "n1", quickReports)
	for i := range 5 {
		b := up("BGPPeer/b", i)
		r.Sync([]Session{up("BGPPeer/a", i), b})
		eventually(t, "the other", fmt.Sprintf("n1 10.0.0.1 Established  %d\n", i), func() string { return f.says("BGPPeer/b") })
		r.Event(up("BGPPeer/a", i).Event("n1"))
		r.Event(b.Event("n1"))
		eventually(t, "its event", []string{fmt.Sprintf("Established x%d", i+1)}, f.told)
	}
}

// A request that never ends does not make a caller wait.
func TestReporterNeverBlocks(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	asked, release := make(chan struct{}, 1), make(chan struct{})
	f.fail(func(*http.Request) func(http.ResponseWriter) {
		return func(http.ResponseWriter) { asked <- struct{}{}; <-release }
	})
	r := reporting(t, f, "n1", quickReports)
	t.Cleanup(func() { close(release) })
	r.Sync([]Session{up("BGPPeer/a", 1)})
	<-asked
	began := time.Now()
	for i := range 10_000 {
		s := up("BGPPeer/a", i)
		r.Sync([]Session{s})
		r.Event(s.Event("n1"))
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("20,000 calls took %v while a request hung", took)
	}
}

// A refusal is a problem with its next step, until it is over.
func TestReporterRefused(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	f.fail(answer(http.StatusForbidden, "Forbidden"))
	r := reporting(t, f, "n1", quickReports)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "a problem", []string{
		"BGPPeer/a: want its status.speakers written by this node, got 403: Forbidden here; apply deploy/kubernetes/rbac; BGP itself does not depend on it",
	}, func() []string { return texts(r.Problems()) })
	f.fail(nil)
	eventually(t, "written", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
	eventually(t, "no problem", nil, func() []string { return texts(r.Problems()) })

	// A node that is no speaker says of a resource that nobody speaks for it. It need not be allowed to.
	f.fail(answer(http.StatusForbidden, "Forbidden"))
	nobody := Session{Resource: "BGPPeer/a", Peer: netip.MustParseAddr("10.0.0.9"), State: "Idle", Reason: cluster.NoSuchSpeaker, Since: time.Now()}
	r.Sync([]Session{nobody, up("BGPPeer/a", 2)})
	eventually(t, "a problem", 1, func() int { return len(r.Problems()) })
	r.Sync([]Session{nobody})
	eventually(t, "no problem", nil, func() []string { return texts(r.Problems()) })
	f.fail(nil)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "written", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })

	f.fail(func(q *http.Request) func(http.ResponseWriter) {
		if !strings.Contains(q.URL.Path, "/events/") {
			return nil
		}
		return answer(http.StatusForbidden, "Forbidden")(q)
	})
	r.Event(up("BGPPeer/a", 1).Event("n1"))
	eventually(t, "a problem", []string{
		"BGPPeer/a: want its events written by this node, got 403: Forbidden here; apply deploy/kubernetes/rbac; BGP itself does not depend on it",
	}, func() []string { return texts(r.Problems()) })
	f.fail(nil)
	eventually(t, "told", []string{"Established x1"}, f.told)
	eventually(t, "no problem", nil, func() []string { return texts(r.Problems()) })
}

// A refusal of the API server stops being a problem when this node has nothing to report there.
func TestReporterRefusedThenNoSpeaker(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	r := reporting(t, f, "n1", quickReports)
	kinds := func() (reasons []cluster.Reason) {
		for _, p := range r.Problems() {
			reasons = append(reasons, p.Reason)
		}
		return reasons
	}
	f.fail(answer(http.StatusForbidden, "Forbidden"))
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "a status refused", []cluster.Reason{cluster.StatusRefused}, kinds)
	r.Sync(nil)
	eventually(t, "nothing to say", nil, kinds)

	f.fail(func(q *http.Request) func(http.ResponseWriter) {
		if !strings.Contains(q.URL.Path, "/events/") {
			return nil
		}
		return answer(http.StatusForbidden, "Forbidden")(q)
	})
	r.Sync([]Session{up("BGPPeer/a", 1)})
	r.Event(up("BGPPeer/a", 1).Event("n1"))
	eventually(t, "an event refused", []cluster.Reason{cluster.EventsRefused}, kinds)
	r.Sync(nil)
	eventually(t, "nothing to say", nil, kinds)
}

func texts(problems []cluster.Problem) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.String())
	}
	return all
}

// A deleted resource is not a problem. When it is recreated, it gets its status again.
func TestReporterResourceGone(t *testing.T) {
	f := newFakeAPI(t)
	r := reporting(t, f, "n1", quickReports)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "asked", true, func() bool { return f.count() > 1 })
	if p := r.Problems(); len(p) != 0 {
		t.Errorf("problems %v, want none", p)
	}
	f.add("BGPPeer/a", "uid-a", "n1")
	eventually(t, "written", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
}

// The next check corrects what others changed, and keeps the message.
func TestReporterChecks(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1")
	p := quickReports
	p.check = 20 * time.Millisecond
	r := reporting(t, f, "n1", p)
	r.Sync([]Session{down("BGPPeer/a", "refused", "first")})
	eventually(t, "written", "n1 10.0.0.1 Active refused 0\n", func() string { return f.says("BGPPeer/a") })
	r.Sync([]Session{down("BGPPeer/a", "refused", "second")})
	f.add("BGPPeer/a", "uid-new", "n1")
	eventually(t, "written again", "n1 10.0.0.1 Active refused 0\n", func() string { return f.says("BGPPeer/a") })
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.status["BGPPeer/a"]["edgewayd-n1"].Speakers[0].Message; got != "first" {
		t.Errorf("message %q, want the first: another text is no news", got)
	}
}

// A speaker removes the entries of a node that has stopped being a speaker and cannot remove them itself.
func TestReporterRemovesStrays(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPPeer/a", "uid-a", "n1", "n2", "dead")
	for _, node := range []string{"n2", "dead"} {
		s := []speakerStatus{up("BGPPeer/a", 1).status(node)}
		f.status["BGPPeer/a"][manager(node)] = reportStatus{Speakers: s}
	}
	r := reporting(t, f, "n1", quickReports)
	r.Sync([]Session{up("BGPPeer/a", 1)})
	eventually(t, "all three", 3, func() int { return strings.Count(f.says("BGPPeer/a"), "\n") })
	f.mu.Lock()
	f.spec["BGPPeer/a"] = []string{"n1", "n2"}
	f.mu.Unlock()
	r.Sync([]Session{up("BGPPeer/a", 2)})
	eventually(t, "two", "n1 10.0.0.1 Established  2\nn2 10.0.0.1 Established  1\n", func() string { return f.says("BGPPeer/a") })
}

func TestManager(t *testing.T) {
	long := strings.Repeat("n", 253)
	for node, want := range map[string]int{"n1": len("edgewayd-n1"), long: 117, long[:252] + "x": 117} {
		if got := manager(node); len(got) != want || len(got) > 128 {
			t.Errorf("manager(%q) = %q, of %d characters, want %d", node, got, len(got), want)
		}
	}
	if manager(long) == manager(long[:252]+"x") {
		t.Error("two nodes have one field manager")
	}
}

// Two names for one switch are one entry: the API server refuses a key twice.
func TestReporterOneEntryPerSwitch(t *testing.T) {
	f := newFakeAPI(t)
	f.add("BGPClusterConfig/b", "uid-b", "n1")
	r := reporting(t, f, "n1", quickReports)
	usual, named := up("BGPClusterConfig/b", 1), up("BGPClusterConfig/b", 1)
	usual.PeerName, named.PeerName, named.Port = "s1", "s2", 179
	r.Sync([]Session{usual, named})
	eventually(t, "one", "n1 10.0.0.1 Established  1\n", func() string { return f.says("BGPClusterConfig/b") })
}
