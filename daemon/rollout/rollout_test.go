package rollout

import (
	"strings"
	"testing"
	"time"
)

func TestNext(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	pod := func(node, revision string, available bool) Pod {
		return Pod{Name: "pod-" + node, Node: node, Revision: revision, Available: available, Started: now.Add(-time.Hour)}
	}
	pending := func(node string) Pod { return Pod{Name: "pod-" + node, Node: node, Revision: "new"} }
	lost := func(nodes ...string) map[string]time.Time {
		out := map[string]time.Time{}
		for _, n := range nodes {
			out[n] = now
		}
		return out
	}
	justReplaced := pod("n3", "new", false)
	justReplaced.Started = now.Add(-2 * time.Minute)
	for name, c := range map[string]struct {
		pods []Pod
		lost map[string]time.Time
		most int
		next string // the pod, or what the reason contains; "": Kubernetes goes on by itself
	}{
		"nobody is offline":                {[]Pod{pod("n1", "old", true), pod("n2", "old", true)}, nil, 1, ""},
		"an offline node stops it":         {[]Pod{pod("n3", "old", false), pod("n2", "old", true), pod("n1", "old", true)}, lost("n3"), 1, "pod-n1"},
		"one after another":                {[]Pod{pod("n1", "new", false), pod("n2", "old", true), pod("n3", "old", false)}, lost("n3"), 1, "pod pod-n1 on node n1, which is online"},
		"the next":                         {[]Pod{pod("n1", "new", true), pod("n2", "old", true), pod("n3", "old", false)}, lost("n3"), 1, "pod-n2"},
		"only the offline node is left":    {[]Pod{pod("n1", "new", true), pod("n2", "new", true), pod("n3", "old", false)}, lost("n3"), 1, ""},
		"a new pod waits for its node":     {[]Pod{pod("n1", "new", true), pod("n2", "old", true), pending("n3")}, lost("n3"), 1, "pod-n2"},
		"Kubernetes may take more":         {[]Pod{pod("n1", "old", true), pod("n2", "old", true), pod("n3", "old", false)}, lost("n3"), 2, ""},
		"two are offline":                  {[]Pod{pod("n1", "old", true), pod("n2", "old", false), pod("n3", "old", false)}, lost("n2", "n3"), 2, "pod-n1"},
		"a pod is not there yet":           {[]Pod{pod("n1", "old", true), pod("n3", "old", false)}, lost("n3"), 1, "3 nodes should have a pod each, and 2"},
		"the loss is not counted yet":      {[]Pod{pod("n1", "old", true), pod("n2", "old", true), pod("n3", "old", true)}, lost("n3"), 1, ""},
		"lost after its update":            {[]Pod{pod("n1", "old", true), pod("n2", "old", true), justReplaced}, lost("n3"), 1, "node n3 was lost within 5m0s after its daemon was replaced"},
		"lost long after its update":       {[]Pod{pod("n1", "old", true), pod("n2", "old", true), pod("n3", "new", false)}, lost("n3"), 1, "pod-n1"},
		"a broken daemon on an online one": {[]Pod{pod("n1", "old", true), pod("n2", "new", false), pod("n3", "old", false)}, lost("n3"), 1, "n2, which is online"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := max(len(c.pods), 2)
			if name == "a pod is not there yet" {
				nodes = 3
			}
			got, why := State{Current: "new", Nodes: nodes, MaxUnavailable: c.most, Pods: c.pods, Lost: c.lost}.Next()
			if got != nil {
				why = got.Name
			}
			if (why == "") != (c.next == "") || !strings.Contains(why, c.next) {
				t.Errorf("%q, want %q", why, c.next)
			}
		})
	}
}
