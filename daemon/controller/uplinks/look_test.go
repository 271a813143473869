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
	"os"
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

// objects is an API server that has the Node n1 and its EdgeNode, and no more.
type objects struct {
	mu     sync.Mutex // guards the fields below
	edge   map[string]any
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
	meta := map[string]any{"name": "n1", "resourceVersion": "1"}
	switch isNode := strings.HasSuffix(r.URL.Path, "/nodes/n1"); {
	case isNode && r.Method == http.MethodPatch:
		o.taints, _ = body.Spec["taints"].([]any)
		fallthrough
	case isNode:
		write(http.StatusOK, "Node", map[string]any{"metadata": meta, "spec": map[string]any{"taints": o.taints}})
	case r.Method == http.MethodDelete:
		o.edge = nil
		write(http.StatusOK, "Status", map[string]any{"status": "Success"})
	case r.Method == http.MethodPost, r.Method == http.MethodPatch:
		o.edge = map[string]any{"metadata": meta, "spec": body.Spec}
		write(http.StatusOK, "EdgeNode", o.edge)
	case o.edge == nil:
		write(http.StatusNotFound, "Status", map[string]any{"status": "Failure", "reason": "NotFound", "code": http.StatusNotFound})
	default:
		write(http.StatusOK, "EdgeNode", o.edge)
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
	o := &objects{}
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
			o.edge = map[string]any{"metadata": map[string]any{"name": "n1", "resourceVersion": "1"}, "spec": map[string]any{"uplinks": map[string]any{"provider": test.provider}},
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

// A Node joined before the cloud's list had its instance: it had no limits and no gateway for an hour.
func TestInstanceThatIsListedLate(t *testing.T) {
	c, fake, _, _ := caller(t)
	n := &node{Node: Node{Name: "n2", Instance: "i-2"}}
	for _, want := range []string{"", "i-2"} {
		if _, err := c.ask(t.Context(), n); err != nil || n.instance.ID != want {
			t.Errorf("got %q, %v, want %q", n.instance.ID, err, want)
		}
		fake.AddInstance("i-2", "vsw-1", "sg-1")
	}
}

// A Node was deleted while its instance ran on. One list without the instance, and its EdgeNode was gone.
func TestOneListDeletesNoEdgeNode(t *testing.T) {
	c, fake, _, o := looker(t)
	clear(c.nodes)
	o.edge = map[string]any{"metadata": map[string]any{"name": "n1", "resourceVersion": "1", "annotations": map[string]any{instanceAnnotation(cloud.ENS): "i-1"}},
		"spec": map[string]any{"uplinks": map[string]any{"provider": "ens"}}}
	if err := c.server.edges.GetStore().Add(&unstructured.Unstructured{Object: o.edge}); err != nil {
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
