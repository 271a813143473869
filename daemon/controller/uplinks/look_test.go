package uplinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/scripts/ens"
)

// objects is an API server that has EdgeNodes by name, and the taints of all Nodes, and no more.
type objects struct {
	mu     sync.Mutex // guards the fields below
	edges  map[string]map[string]any
	taints []any
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var body struct {
		Metadata, Spec map[string]any
	}
	if text, err := io.ReadAll(r.Body); err == nil && len(text) > 0 {
		_ = json.Unmarshal(text, &body) // a request that cannot be read changes nothing, and its test fails
	}
	w.Header().Set("Content-Type", "application/json")
	write := func(code int, kind string, fields map[string]any) {
		fields = maps.Clone(fields)
		fields["kind"], fields["apiVersion"] = kind, map[string]string{"Node": "v1", "EdgeNode": "network.edgeway.io/v1alpha1", "Status": "v1"}[kind]
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(fields) // the caller may have gone
	}
	name := path.Base(r.URL.Path)
	if r.Method == http.MethodPost {
		name, _ = body.Metadata["name"].(string)
	}
	meta := map[string]any{"name": name, "resourceVersion": "1"}
	switch isNode := strings.Contains(r.URL.Path, "/nodes/"); {
	case isNode && r.Method == http.MethodPatch:
		o.taints, _ = body.Spec["taints"].([]any)
		fallthrough
	case isNode:
		write(http.StatusOK, "Node", map[string]any{"metadata": meta, "spec": map[string]any{"taints": o.taints}})
	case r.Method == http.MethodDelete:
		delete(o.edges, name)
		write(http.StatusOK, "Status", map[string]any{"status": "Success"})
	case r.Method == http.MethodPost, r.Method == http.MethodPatch:
		o.edges[name] = map[string]any{"metadata": meta, "spec": body.Spec}
		write(http.StatusOK, "EdgeNode", o.edges[name])
	case o.edges[name] == nil:
		write(http.StatusNotFound, "Status", map[string]any{"status": "Failure", "reason": "NotFound", "code": http.StatusNotFound})
	default:
		write(http.StatusOK, "EdgeNode", o.edges[name])
	}
}

func (o *objects) tainted() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.taints) > 0
}

// looker is caller with an API server. Its informers know what the test adds.
func looker(t *testing.T) (*Controller, *ens.Cloud, *node, *objects) {
	t.Helper()
	c, fake, n, _ := caller(t)
	o := &objects{edges: map[string]map[string]any{}}
	api := httptest.NewServer(o)
	t.Cleanup(api.Close)
	s, err := newServer(&rest.Config{Host: api.URL}, c.Service)
	if err != nil {
		t.Fatal(err)
	}
	s.nodes = cache.NewSharedIndexInformer(&cache.ListWatch{}, &corev1.Node{}, 0, nil)
	s.edges = cache.NewSharedIndexInformer(&cache.ListWatch{}, &unstructured.Unstructured{}, 0, nil)
	c.server, c.nodes["n1"] = s, n
	c.Terms.PerInterface, c.Terms.Release = cloud.MostAddresses, On
	return c, fake, n, o
}

// A node was full when the cloud went away. Pods ended, and no new pod was scheduled to it for a day.
func TestTaintGoes(t *testing.T) {
	for _, test := range []struct {
		name, provider string
		free           int
		want           bool
		labelled       bool
	}{
		{"full", "ens", 0, true, true},
		{"an address is free, and the cloud is away", "ens", 1, false, true},
		{"a person writes the list now", "static", 0, false, true},
		{"the controller of the other service decides", "ecs", 1, true, true},
		{"the Node has lost its label", "ens", 0, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, fake, n, o := looker(t)
			fake.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: http.StatusServiceUnavailable} })
			c.TaintWhenFull, n.Tainted = true, true
			o.taints = []any{map[string]any{"key": fullTaint, "effect": "NoSchedule"}}
			o.edges["n1"] = map[string]any{"metadata": map[string]any{"name": "n1", "resourceVersion": "1"}, "spec": map[string]any{"uplinks": map[string]any{"provider": test.provider}},
				"status": map[string]any{"uplinks": map[string]any{"free": test.free}}}
			if test.labelled {
				c.look(t.Context(), n)
			} else {
				c.meet(t.Context(), nil)
			}
			if got := o.tainted(); got != test.want {
				t.Errorf("tainted: %v, want %v", got, test.want)
			}
		})
	}
}

// The cloud is away, has too many calls, or takes the controller's clock for wrong: the node keeps what it has, no call changes
// anything, and one problem says which of these it is.
func TestCloudAwayChangesNothing(t *testing.T) {
	for want, fault := range map[string]func(*ens.Cloud){
		"503 Service Unavailable": func(f *ens.Cloud) {
			f.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: http.StatusServiceUnavailable} })
		},
		"Throttling.User": func(f *ens.Cloud) {
			f.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Code: "Throttling.User"} })
		},
		"set the clock": func(f *ens.Cloud) { f.SetSkew(20 * time.Minute) },
	} {
		c, fake, n, o := looker(t)
		c.look(t.Context(), n)
		was := fmt.Sprint(o.edges["n1"]["spec"])
		before := len(fake.Calls())
		fault(fake)
		c.look(t.Context(), n)
		if len(n.problems) != 1 || n.problems[0].Reason != cloudUnreachable || !strings.Contains(n.problems[0].Got, want) {
			t.Errorf("problems %v, want %s", n.problems, want)
		}
		if got := fmt.Sprint(o.edges["n1"]["spec"]); got != was {
			t.Errorf("%s: got %s, want %s", want, got, was)
		}
		for _, call := range fake.Calls()[before:] {
			if call.Action != "" && !strings.HasPrefix(call.Action, "Describe") {
				t.Errorf("%s: %+v", want, call)
			}
		}
	}
}

// A vSwitch is empty: the problem says which one, and how many addresses are free.
func TestEmptyVSwitchIsNamed(t *testing.T) {
	c, fake, n, _ := looker(t)
	fake.Limit("vsw-1", 0)
	for range 2 { // the call is refused, and then nothing is left to do
		c.look(t.Context(), n)
	}
	if len(n.problems) == 0 || n.problems[0].Reason != fewAddresses || n.problems[0].Got != "2; vSwitch vsw-1 has 0 free" {
		t.Errorf("problems %v", n.problems)
	}
}

// The goal: 500 nodes cost the account at most 5 calls a second.
func TestFiveHundredNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds")
	}
	const count = 500
	c, fake, _, _ := looker(t)
	fake.AddVSwitch("vsw-2", netip.MustParsePrefix("10.1.0.0/16"))
	c.Terms.PerInterface = 1
	clear(c.nodes)
	for i := range count {
		name := fmt.Sprint("n", i)
		fake.AddInstance("i-"+name, "vsw-2", "sg-1")
		fake.Bind("i-" + name)
		c.nodes[name] = &node{Node: Node{Name: name, Instance: "i-" + name}}
	}
	due := func() bool {
		for _, n := range c.nodes {
			if !n.due.After(time.Now()) {
				return true
			}
		}
		return false
	}
	for due() {
		c.round(t.Context())
	}
	joined := len(fake.Calls())
	for _, n := range c.nodes {
		n.due = time.Time{}
	}
	began := time.Now()
	c.round(t.Context())
	took, calls := time.Since(began), len(fake.Calls())-joined
	// The looks at a node are at least 0.8 of the time apart, and each node's instance and vSwitch are asked for once an hour.
	p := defaultTimes()
	aSecond := float64(calls)/(0.8*p.full.Seconds()) + count/p.subnets.Seconds()
	t.Logf("%d nodes: %d calls to join with an address each, %d for a look at all, which took %v: %.2f calls a second", count, joined, calls, took.Round(time.Millisecond), aSecond)
	if calls > count || aSecond > float64(p.callsASec) {
		t.Errorf("%d calls for a look at all nodes, %.1f a second", calls, aSecond)
	}
}

// The cloud could not serve one node: its list, or its interface, ended each call with an internal error. No node after it got
// addresses.
func TestNodeThatFailsHoldsUpNoOther(t *testing.T) {
	for _, action := range []string{"DescribeNetworkInterfaces", "AssignPrivateIpAddresses"} {
		c, fake, _, _ := looker(t)
		c.times.least, c.times.mostPause = 20*time.Millisecond, 100*time.Millisecond
		c.Terms.PerInterface = 5
		fake.AddInstance("i-2", "vsw-1", "sg-1")
		broken := fake.Interfaces("i-1")[1].ID
		fake.Bind("i-2")
		c.nodes["n2"] = &node{Node: Node{Name: "n2", Instance: "i-2"}}
		fake.SetFaults(func(call ens.Call) ens.Fault {
			if call.Action == action && (call.Query["InstanceId"] == "i-1" || call.Query["NetworkInterfaceId"] == broken) {
				return ens.Fault{Code: "CallInterface"}
			}
			return ens.Fault{}
		})
		for deadline := time.Now().Add(5 * time.Second); len(fake.Interfaces("i-2")[1].Addresses) < 5; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: n2 has %d addresses", action, len(fake.Interfaces("i-2")[1].Addresses))
			}
			c.round(t.Context())
		}
	}
}

// An interface took no more addresses. Each time that the controller tried again, the log had the problem as solved, and the
// Node got one more Event.
func TestProblemThatStaysIsSaidOnce(t *testing.T) {
	c, fake, n, _ := looker(t)
	var events []string
	n.UID = "u"
	c.Tell = func(_ context.Context, name, _, reason, _ string) error {
		events = append(events, name+" "+reason)
		return nil
	}
	look := func() {
		c.look(t.Context(), n)
		c.say(t.Context(), n)
	}
	fake.SetFaults(func(call ens.Call) ens.Fault {
		if call.Action == "AssignPrivateIpAddresses" {
			return ens.Fault{Code: "QuotaExceeded.PrivateIpAddress"}
		}
		return ens.Fault{}
	})
	for range 3 {
		clear(c.blocks)
		look() // the call is refused
		look() // nothing is left to do
	}
	if got, want := fmt.Sprint(events), "[n1 FewAddresses n1 SecurityGroup n1 SecurityGroup]"; got != want { // ingress and egress
		t.Errorf("events %s, want %s", got, want)
	}
}

// A key was replaced by a file that others could read. After the chmod that the error asks for, the controller went on with
// the old key.
func TestNewKeyAfterChmod(t *testing.T) {
	c, _, _, _ := caller(t)
	old, err := c.client()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.Credentials, 0o644); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(c.Credentials, later, later); err != nil { // written again
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.client(); !errors.Is(err, cloud.ErrReadable) {
			t.Errorf("got %v", err)
		}
	}
	if err := os.Chmod(c.Credentials, 0o600); err != nil {
		t.Fatal(err)
	}
	if now, err := c.client(); err != nil || now == old {
		t.Errorf("the old client: %v, %v", now == old, err)
	}
}

// The key of another account was put in place: its lists are empty. Within a minute all nodes had lost all addresses.
func TestKeyOfAnotherAccount(t *testing.T) {
	c, fake, n, o := looker(t)
	c.times.oldest = time.Nanosecond
	c.Terms.PerInterface = 2
	c.look(t.Context(), n)
	granted := func() string { return fmt.Sprint(o.edges["n1"]["spec"]) }
	was := granted()
	if !strings.Contains(was, "10.0.0.3") {
		t.Fatal(was)
	}
	fake.RemoveInstance("i-1") // what it has of its own, the new account does not know
	for range 3 {
		c.look(t.Context(), n)
	}
	if got := granted(); got != was {
		t.Errorf("got %s, want %s", got, was)
	}
	if len(n.problems) != 1 || n.problems[0].Reason != noInterface {
		t.Errorf("problems %v", n.problems)
	}
}

// A Node joined before the cloud's list had its instance: it had no limits and no gateway for an hour.
func TestInstanceThatIsListedLate(t *testing.T) {
	c, fake, _, _ := caller(t)
	n := &node{Node: Node{Name: "n2", Instance: "i-2"}}
	for _, want := range []string{"", "i-2"} {
		if _, err := c.ask(t.Context(), n); cloud.Is(err, cloud.NotFound) != (want == "") || n.instance.ID != want {
			t.Errorf("got %q, %v, want %q", n.instance.ID, err, want)
		}
		fake.AddInstance("i-2", "vsw-1", "sg-1")
	}
}

// A Node was deleted while its instance ran on. One list without the instance, and its EdgeNode was gone.
func TestOneListDeletesNoEdgeNode(t *testing.T) {
	c, fake, _, o := looker(t)
	clear(c.nodes)
	o.edges["n1"] = map[string]any{"metadata": map[string]any{"name": "n1", "resourceVersion": "1", "annotations": map[string]any{instanceAnnotation(cloud.ENS): "i-1"}},
		"spec": map[string]any{"uplinks": map[string]any{"provider": "ens"}}}
	if err := c.server.edges.GetStore().Add(&unstructured.Unstructured{Object: o.edges["n1"]}); err != nil {
		t.Fatal(err)
	}
	leave := func(want bool) {
		t.Helper()
		for key, b := range c.blocks {
			b.until = time.Time{}
			c.blocks[key] = b
		}
		c.leave(t.Context())
		if e, err := c.server.edgeNode(t.Context(), "n1"); err != nil || e.version != "" != want {
			t.Errorf("got %+v, %v, want that it exists: %v", e, err, want)
		}
	}
	leave(true)
	fake.RemoveInstance("i-1")
	leave(true)
	fake.SetFaults(func(ens.Call) ens.Fault { return ens.Fault{Status: http.StatusServiceUnavailable} })
	leave(true)
	fake.SetFaults(nil)
	leave(true)
	leave(false)
}
