package controller

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// hurry are times for tests.
func hurry() times {
	return times{lease: 3 * time.Second, renew: 2 * time.Second, retry: 100 * time.Millisecond, pace: pace{
		courtesy: time.Millisecond, quiet: 2 * time.Second, busy: time.Second, retryLeast: 10 * time.Millisecond, retryMost: 100 * time.Millisecond,
		spaceLeast: 5 * time.Millisecond, spaceMost: 20 * time.Millisecond, repeat: time.Hour}}
}

// journal is a log that a test can read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// start runs a controller until stop is called or the test ends.
func start(t *testing.T, f *fake, name string, pools ...Pool) (log *journal, stop func()) {
	t.Helper()
	log = &journal{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{API: f.config(), Pools: pools, Identity: name, Log: slog.New(slog.NewTextHandler(log, nil)), times: hurry()})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, log)
		}
	})
	t.Cleanup(stop)
	return log, stop
}

// until waits for a condition.
func until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute, not: %s", what)
		}
	}
}

// served reports whether all Nodes have both families.
func (f *fake) served(nodes int) func() bool {
	return func() bool {
		all := f.podCIDRs()
		for _, c := range all {
			if strings.Count(c, "/") != 2 {
				return false
			}
		}
		return len(all) == nodes
	}
}

func TestNodesGetPodCIDRs(t *testing.T) {
	f := newFake(t)
	f.create("old", "10.10.1.0/24", "fd00:10:0:1::/64")
	f.create("a")
	log, stop := start(t, f, "one", pool(t, "10.10.0.0/16", "fd00:10::/48"))
	until(t, "a has pod CIDRs", f.served(2))
	f.create("b") // the watch says so
	until(t, "b has pod CIDRs", f.served(3))
	f.remove("a")
	f.create("c")
	until(t, "c has pod CIDRs", f.served(3))
	got, want := fmt.Sprint(f.podCIDRs()), "map[b:10.10.2.0/24, fd00:10:0:2::/64 c:10.10.3.0/24, fd00:10:0:3::/64 old:10.10.1.0/24, fd00:10:0:1::/64]"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	stop()
	for _, line := range []string{"msg=leading identity=one", `msg="pod CIDRs given" node=a podCIDRs="10.10.0.0/24, fd00:10::/64"`, `msg=stopped nodes="keep what they have"`} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("no line %s in\n%s", line, log)
		}
	}
	// Who stops leaves the Lease: the next one does not wait for its end.
	begin := time.Now()
	start(t, f, "two", pool(t, "10.10.0.0/16", "fd00:10::/48"))
	f.create("d")
	until(t, "d has pod CIDRs", f.served(4))
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the next leader took %v", took)
	}
}

// Requests fail in every way, replicas are stopped and started, nodes come and go.
func TestStorm(t *testing.T) {
	f := newFake(t)
	f.set(storm(25))
	p := pool(t, "10.10.0.0/19", "fd00:10::/59") // 32 blocks
	stops := make([]func(), 3)
	for i := range stops {
		_, stops[i] = start(t, f, fmt.Sprint("r", i), p)
	}
	for round := range 4 {
		for i := range 7 {
			f.create(fmt.Sprint("n", round, "-", i))
		}
		if round > 0 {
			f.remove(fmt.Sprint("n", round-1, "-", 3))
		}
		stops[round%3]()
		_, stops[round%3] = start(t, f, fmt.Sprint("r", round, "again"), p)
	}
	until(t, "all 25 nodes have pod CIDRs", f.served(25))
}

// Replicas that all believe that they lead, for as long as the test lasts.
func TestStormWithoutElection(t *testing.T) {
	f := newFake(t)
	f.set(storm(25))
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	for range 3 {
		c, err := newClient(f.config())
		if err != nil {
			t.Fatal(err)
		}
		w := newWorker(Options{Pools: []Pool{pool(t, "10.10.0.0/19", "fd00:10::/59")}, Log: slog.New(slog.DiscardHandler), times: hurry()}, c)
		wait.Go(func() { w.run(ctx) })
	}
	for round := range 6 {
		for i := range 5 {
			f.create(fmt.Sprint("n", round, "-", i))
		}
		if round > 1 {
			f.remove(fmt.Sprint("n", round-1, "-", 3))
			f.remove(fmt.Sprint("n", round-2, "-", 4))
		}
	}
	until(t, "all 22 nodes have pod CIDRs", f.served(22))
}

func TestServerAway(t *testing.T) {
	f := newFake(t)
	away := func(*http.Request) fault { return fault{status: -1} }
	f.set(away)
	log, _ := start(t, f, "one", pool(t, "10.10.0.0/16", "fd00:10::/48"))
	until(t, "it says why it waits", func() bool { return strings.Contains(log.String(), "msg=lease") })
	f.set(nil)
	f.create("a")
	until(t, "a has pod CIDRs", f.served(1))
	// While it leads, for longer than a Lease lasts: it no longer leads, and stays.
	f.set(away)
	until(t, "it no longer leads", func() bool { return strings.Contains(log.String(), `msg="leadership lost"`) })
	f.create("b")
	f.set(nil)
	until(t, "b has pod CIDRs", f.served(2))
}

// One Node that the API server lets nobody patch does not hold up the others; it is told.
func TestDenied(t *testing.T) {
	f := newFake(t)
	f.set(func(r *http.Request) fault {
		if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/a") {
			return fault{status: 403}
		}
		return fault{}
	})
	f.create("a")
	f.create("b")
	log, _ := start(t, f, "one", pool(t, "10.10.0.0/16", "fd00:10::/48"))
	until(t, "b has pod CIDRs and a an Event", func() bool {
		f.mu.Lock()
		events := strings.Join(f.events, "\n")
		f.mu.Unlock()
		return f.podCIDRs()["b"] != "" && strings.HasPrefix(events, "a PodCIDRNotAvailable: Nodes: want to set the pod CIDRs of a, got patch Node a: denied: made to fail")
	})
	f.set(nil)
	until(t, "a has pod CIDRs", f.served(2))
	until(t, "the log says so", func() bool { return strings.Contains(log.String(), "msg=solved reason=grantDenied object=Nodes") })
}

// Before Kubernetes 1.33 the Service kubernetes stands for the Service CIDRs, which nothing names;
// a pool that holds its address gives nothing.
func TestServicesBefore133(t *testing.T) {
	f := newFake(t)
	f.set(func(r *http.Request) fault {
		if strings.Contains(r.URL.Path, "servicecidrs") {
			return fault{status: http.StatusNotFound}
		}
		return fault{}
	})
	f.mu.Lock()
	f.put("/api/v1/namespaces/default/services/kubernetes", object{"spec": object{"clusterIPs": []string{"10.10.0.1", "fd00:96::1"}}})
	f.mu.Unlock()
	f.create("a")
	log, _ := start(t, f, "one", pool(t, "10.10.0.0/16"))
	until(t, "it says why it gives nothing", func() bool {
		return strings.Contains(log.String(), "msg=overlapsServices") && strings.Contains(log.String(), "10.10.0.0/16, which overlaps the Service CIDR 10.10.0.1/32; without pod CIDRs: a")
	})
}

// A redirect is not an answer: nobody else gets the credentials.
func TestNoRedirect(t *testing.T) {
	f := newFake(t)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked somebody else") }))
	defer other.Close()
	f.http.Config.Handler = http.RedirectHandler(other.URL, http.StatusTemporaryRedirect)
	c, err := newClient(f.config())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := (&server{client: c}).ledger(t.Context()); !strings.Contains(fmt.Sprint(err), "307") {
		t.Errorf("got %v", err)
	}
}

// Each of many Nodes that wait is told once, some at each look.
func TestEventsAreBounded(t *testing.T) {
	f := newFake(t)
	for i := range 2*mostEvents + 7 {
		f.create(fmt.Sprint("n", i))
	}
	start(t, f, "one", Pool{Selector: selector(t, "all()"), CIDRs: prefixes("10.96.0.0/16"), Mask: Mask{IPv4: 24}})
	told := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.events)
	}
	until(t, "all are told", func() bool { return told() >= 2*mostEvents+7 })
	f.create("another") // one more look
	until(t, "that one too", func() bool { return told() >= 2*mostEvents+8 })
	if n := told(); n != 2*mostEvents+8 {
		t.Errorf("%d Events for %d Nodes", n, 2*mostEvents+8)
	}
}

// A ledger that somebody edited: nothing is given from what cannot be read.
func TestBadLedger(t *testing.T) {
	f := newFake(t)
	f.mu.Lock()
	f.put("/api/v1/namespaces/kube-system/configmaps/edgeway-controller", object{"data": object{"ledger": "{"}})
	f.mu.Unlock()
	f.create("a")
	log, _ := start(t, f, "one", pool(t, "10.10.0.0/16", "fd00:10::/48"))
	until(t, "it says what is wrong", func() bool {
		return strings.Contains(log.String(), "ConfigMap kube-system/edgeway-controller: ledger: unexpected end of JSON input; correct it, or stop all replicas, delete it and start them again")
	})
	if c := f.podCIDRs()["a"]; c != "" {
		t.Errorf("a has %s", c)
	}
	f.mu.Lock()
	f.put("/api/v1/namespaces/kube-system/configmaps/edgeway-controller", object{"data": object{"ledger": "{}"}})
	f.mu.Unlock()
	until(t, "a has pod CIDRs", f.served(1))
}

func TestMetrics(t *testing.T) {
	f := newFake(t)
	f.create("a")
	f.create("b", "10.10.9.0/24", "fd00:10:0:9::/64")
	wantMetrics(t, f,
		"edgeway_controller_leading 1", "edgeway_controller_given_total 1", "edgeway_controller_waiting_nodes 0",
		`edgeway_controller_blocks{range="10.10.0.0/16"} 256`, `edgeway_controller_held{range="10.10.0.0/16"} 2`,
		`edgeway_controller_blocks{range="fd00:10::/48"} 65536`)
}

// A Node that the API server lets nobody patch waits, and is a problem.
func TestMetricsDenied(t *testing.T) {
	f := newFake(t)
	f.create("a")
	f.create("b")
	f.set(func(r *http.Request) fault {
		if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/a") {
			return fault{status: 403}
		}
		return fault{}
	})
	wantMetrics(t, f,
		"edgeway_controller_given_total 1", "edgeway_controller_waiting_nodes 1",
		`edgeway_controller_held{range="10.10.0.0/16"} 1`, `edgeway_controller_problems{reason="grantDenied"} 1`)
}

// wantMetrics looks at f until nothing changes any more, and wants these lines.
func wantMetrics(t *testing.T, f *fake, lines ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := newClient(f.config())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker(Options{Pools: []Pool{pool(t, "10.10.0.0/16", "fd00:10::/48")}, Log: slog.New(slog.DiscardHandler), times: hurry()}, c)
	w.metrics.leads(ctx)
	for range 2 { // the first look leaves new Nodes alone
		if _, err := w.look(ctx); err != nil {
			t.Fatal(err)
		}
		pause(ctx, 5*time.Millisecond)
	}
	if _, err := w.look(ctx); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(w.metrics)
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range lines {
		if !strings.Contains(answer.Body.String(), line+"\n") {
			t.Errorf("no line %s in\n%s", line, answer.Body)
		}
	}
}
