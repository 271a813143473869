package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

// apiServer is as much of an API server as the source asks of one: lists, and watches that go on
// from a version. Faults are put before it.
type apiServer struct {
	*httptest.Server
	mu       sync.Mutex
	version  int
	compact  int                       // versions before it are gone
	objects  map[string]map[string]any // by path of the kind, then by name
	history  []change
	news     chan struct{} // closed at each change
	requests []string      // "list nodes", "watch nodes 12"
	fault    func(w http.ResponseWriter, r *http.Request) bool
	end      chan struct{} // closed to cut watches
	over     bool          // and none lasts any more
	open     int           // watches
}

type change struct {
	version    int
	path, name string
	event      string
	object     any
}

// servedByFake are the names of the kinds that the fakes of an API server have.
func servedByFake() []string { return append(ownKinds(), kindNode, kindSecret, kindSlice.kind) }

func apiKind(name string) kind {
	if name == kindSlice.kind {
		return kindSlice
	}
	return kind{APIVersion(name), name}
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{version: 100, objects: map[string]map[string]any{}, news: make(chan struct{}), end: make(chan struct{})}
	for _, name := range servedByFake() {
		s.objects["/"+apiKind(name).path()] = map[string]any{}
	}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() { s.shut(s.Server) })
	return s
}

// kubeconfig writes the file that leads to the server.
func (s *apiServer) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, path, kubeconfigOf(s.URL, ""))
	return path
}

func kubeconfigOf(url, rest string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %s}}]
users: [{name: u, user: {%s}}]
`, url, rest)
}

// put creates or changes an object, given as JSON or YAML would have it.
func (s *apiServer) put(of string, object map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := "/" + apiKind(of).path()
	meta := object["metadata"].(map[string]any)
	name := meta["name"].(string)
	s.version++
	meta["resourceVersion"] = strconv.Itoa(s.version)
	text, _ := json.Marshal(object)
	event := "MODIFIED"
	if s.objects[path][name] == nil {
		event = "ADDED"
	}
	s.objects[path][name] = json.RawMessage(text)
	s.tell(change{s.version, path, name, event, json.RawMessage(text)})
}

func (s *apiServer) remove(of, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := "/" + apiKind(of).path()
	s.version++
	delete(s.objects[path], name)
	s.tell(change{s.version, path, name, eventDeleted, map[string]any{"metadata": map[string]any{"name": name, "resourceVersion": strconv.Itoa(s.version)}}})
}

func (s *apiServer) tell(c change) {
	s.history = append(s.history, c)
	close(s.news)
	s.news = make(chan struct{})
}

// shut ends a server, also when clients still come.
func (s *apiServer) shut(server *httptest.Server) {
	s.mu.Lock()
	if !s.over {
		s.over = true
		close(s.end)
	}
	s.mu.Unlock()
	server.CloseClientConnections()
	server.Close()
}

// watches is the number of watches that are open.
func (s *apiServer) watches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// cut ends all watches that are open.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.end)
	s.end = make(chan struct{})
}

// fails puts a fault before the server; nil takes it away. It returns whether it answered.
func (s *apiServer) fails(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// asked returns the requests so far, and forgets them.
func (s *apiServer) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	return all
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Audit-Id", "one")
	q := r.URL.Query()
	verb := "list " + r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if q.Get("watch") != "" {
		verb = "watch " + r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:] + " " + q.Get("resourceVersion")
	}
	if name := q.Get("fieldSelector"); name != "" {
		verb += " " + strings.TrimPrefix(name, "metadata.name=")
	}
	if known := q.Get("labelSelector"); strings.Contains(known, "notin") {
		verb += fmt.Sprintf(" but %d", 1+strings.Count(known, ","))
	}
	s.mu.Lock()
	s.requests = append(s.requests, verb)
	fault := s.fault
	_, known := s.objects[r.URL.Path]
	s.mu.Unlock()
	switch {
	case fault != nil && fault(w, r):
	case !known:
		status(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	case q.Get("watch") != "":
		s.watch(w, r)
	default:
		s.list(w, r)
	}
}

func status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(statusObject(code, reason, message))
}

func statusObject(code int, reason, message string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []any{}
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		status(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	for name, o := range s.objects[r.URL.Path] {
		var is struct {
			Metadata struct{ Labels map[string]string }
		}
		_ = json.Unmarshal(mustJSON(o), &is) // what is no object has no labels
		if chosen(r, name) && selector.Matches(labels.Set(is.Metadata.Labels)) {
			items = append(items, o)
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kindOf(r.URL.Path) + "List", "metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items,
	})
}

func kindOf(path string) string {
	for _, name := range servedByFake() {
		if "/"+apiKind(name).path() == path {
			return name
		}
	}
	return ""
}

func chosen(r *http.Request, name string) bool {
	only := strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return only == "" || only == name
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	seconds, _ := strconv.Atoi(r.URL.Query().Get("timeoutSeconds"))
	lives := time.After(time.Duration(seconds) * time.Second)
	s.mu.Lock()
	now, compact, end := s.version, s.compact, s.end
	s.mu.Unlock()
	switch {
	case from < compact:
		status(w, http.StatusGone, "Expired", fmt.Sprintf("too old resource version: %d (%d)", from, compact))
		return
	case from > now:
		status(w, http.StatusGatewayTimeout, "Timeout", fmt.Sprintf("Too large resource version: %d, current: %d", from, now))
		return
	}
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	for {
		s.mu.Lock()
		var due []change
		for _, c := range s.history {
			if c.version > from && c.path == r.URL.Path && chosen(r, c.name) {
				due = append(due, c)
			}
		}
		from = max(from, s.version)
		news := s.news
		s.mu.Unlock()
		for _, c := range due {
			_ = json.NewEncoder(w).Encode(map[string]any{"type": c.event, "object": c.object})
		}
		if flush() != nil {
			return
		}
		select {
		case <-news:
		case <-lives:
			return
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// hasty is a patience for tests: every wait is short, and none is so short that a count of
// requests would depend on the machine.
var hasty = patience{
	least: 5 * time.Millisecond, most: 40 * time.Millisecond, probe: 40 * time.Millisecond, steady: time.Hour, watch: time.Hour, trust: time.Hour,
	silence: 10 * time.Second, first: 10 * time.Second, files: 10 * time.Millisecond,
	dial: 10 * time.Second, answer: 10 * time.Second, ping: 10 * time.Second,
}

// client is a source under Watch.
type client struct {
	source *kubernetes
	signal chan struct{} // one slot
	mu     sync.Mutex
	calls  int // of changed
	last   World
	stop   func()
}

const self = "n1"

func newClient(t *testing.T, kubeconfig string, p patience) *client {
	t.Helper()
	return newClientOf(t, KubernetesOptions{Kubeconfig: kubeconfig, Node: self, UserAgent: "edgewayd/test"}, p)
}

func newClientOf(t *testing.T, o KubernetesOptions, p patience) *client {
	t.Helper()
	c := &client{source: newKubernetes(o, p), signal: make(chan struct{}, 1)}
	c.stop = startWatch(t, c.source, func() {
		c.mu.Lock()
		c.calls++
		c.mu.Unlock()
		select {
		case c.signal <- struct{}{}:
		default:
		}
	})
	return c
}

// startWatch runs Watch until the test ends or stop is called.
func startWatch(t *testing.T, s Source, changed func()) (stop func()) {
	t.Helper()
	ctx, done := withCancel(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(ctx, changed) }()
	stop = sync.OnceFunc(func() {
		done()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("watch ended with %v", err)
			}
		case <-time.After(longest):
			t.Error("watch does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// until waits for signals until the World, or the error that there is instead, is as wanted. A
// World that nobody was called for does not count.
func (c *client) until(t *testing.T, what string, ok func(World, error) bool) World {
	t.Helper()
	deadline := time.After(longest)
	for {
		select {
		case <-c.signal:
			w, err := c.source.World(t.Context(), c.last)
			if err == nil {
				c.last = w
			}
			if ok(w, err) {
				return w
			}
		case <-deadline:
			w, err := c.source.World(t.Context(), c.last)
			t.Fatalf("no World of %s; it is %v, %v, %v", what, describe(w), w.Problems, err)
		}
	}
}

func describe(w World) string {
	var names []string
	for _, n := range w.Nodes {
		names = append(names, n.Name)
	}
	for _, p := range w.Peerings {
		names = append(names, p.Ref())
	}
	for _, p := range w.Pools {
		names = append(names, p.Ref())
	}
	for _, e := range w.EdgeNodes {
		names = append(names, e.Ref())
	}
	for _, s := range w.Secrets {
		names = append(names, "Secret/"+s.Name+"="+string(s.Data["password"]))
	}
	return strings.Join(names, " ")
}

// untilIs waits until exactly these objects count, without a problem.
func (c *client) untilIs(t *testing.T, want string) World {
	t.Helper()
	return c.until(t, want, func(w World, err error) bool { return err == nil && describe(w) == want && len(w.Problems) == 0 })
}

// untilProblem waits until these objects count and there is one problem, of that reason.
func (c *client) untilProblem(t *testing.T, want string, reason Reason) Problem {
	t.Helper()
	w := c.until(t, want+" with the problem "+string(reason), func(w World, err error) bool {
		return err == nil && describe(w) == want && len(w.Problems) == 1 && w.Problems[0].Reason == reason
	})
	return w.Problems[0]
}

func jsonOf(t *testing.T, text string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func apiNode(t *testing.T, name, ip, cidr string) map[string]any {
	t.Helper()
	return jsonOf(t, fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"pool":"a"},"annotations":{"a":"b"}},"spec":{"podCIDR":%q,"podCIDRs":[%q]},
		"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}],
		"conditions":[{"type":"DiskPressure","status":"False"},{"type":"Ready","status":"True","lastHeartbeatTime":"2026-11-22T03:00:00Z"}]}}`, name, cidr, cidr, name, ip))
}

func apiPeer(t *testing.T, name string, speakers string) map[string]any {
	t.Helper()
	return jsonOf(t, fmt.Sprintf(`{"apiVersion":"network.openyurt.io/v1alpha1","kind":"BGPPeer","metadata":{"name":%q},"spec":{"localSpeakers":[%s],
		"localAsNumber":65010,"peerIP":"192.0.2.1","peerAsNumber":65001,"nodeSelector":"all()","authPassword":{"secretKeyRef":{"name":"bgp","key":"password"}}}}`, name, speakers))
}

func apiSecret(t *testing.T, name, password string) map[string]any {
	t.Helper()
	text, _ := json.Marshal([]byte(password))
	return jsonOf(t, fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"kube-system"},"data":{"password":%s},"type":"Opaque"}`, name, text))
}
