package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// slicedOf returns the entry of a Node object as edgeway-controller makes it, or false for an object that Kubernetes'
// own type cannot hold.
func slicedOf(t *testing.T, text json.RawMessage, keys []string) (SlicedNode, bool) {
	t.Helper()
	var n corev1.Node
	if json.Unmarshal(text, &n) != nil {
		return SlicedNode{}, false
	}
	var addresses []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			addresses = append(addresses, a.Address)
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	return SlicedNode{Name: n.Name, Labels: n.Labels, Annotations: n.Annotations, Addresses: addresses, PodCIDRs: cidrs}.Only(keys), true
}

// slicedResource returns the entry of a resource as edgeway-controller makes it.
func slicedResource(kind string, object map[string]any) SlicedResource {
	r := SlicedResource{Kind: kind, Name: object["metadata"].(map[string]any)["name"].(string)}
	if spec, ok := object["spec"]; ok {
		r.Spec = mustJSON(spec)
	}
	return r
}

// slice puts a NodeSlice.
func (s *apiServer) slice(t *testing.T, name string, spec SliceSpec) {
	t.Helper()
	s.put(kindSlice.kind, jsonOf(t, string(mustJSON(NewNodeSlice(name, spec)))))
}

func (s *apiServer) alive(t *testing.T, age time.Duration) {
	t.Helper()
	s.slice(t, SliceAlive, SliceSpec{PublishedAt: time.Now().Add(-age).UTC().Format(time.RFC3339)})
}

func sliceNode(i int) SlicedNode {
	return SlicedNode{Name: fmt.Sprint("n", i), Addresses: []string{fmt.Sprint("192.0.2.", 10+i)}, PodCIDRs: []string{fmt.Sprintf("10.10.%d.0/24", i)}}
}

// The same World, byte for byte, comes out of the Nodes and resources and of their slices, over all stories.
func TestSlicesSayWhatNodesSay(t *testing.T) {
	for path, objects := range stories(t) {
		t.Run(path, func(t *testing.T) {
			byNodes, bySlices, keys := newAPIServer(t), newAPIServer(t), []string(nil)
			var resources []SlicedResource
			for ref, text := range objects { // the resources first: they say which labels matter
				kind, _, _ := strings.Cut(ref, "/")
				if kind != kindNode {
					object := jsonOf(t, string(text))
					maps.DeleteFunc(object, func(key string, _ any) bool { return !slices.Contains(objectKeys, key) }) // as an API server does
					byNodes.put(kind, object)
					if slices.Contains(SharedKinds(), kind) {
						resources = append(resources, slicedResource(kind, object))
					} else {
						bySlices.put(kind, jsonOf(t, string(text)))
					}
					if w, err := ParseManifest("x.json", text); err == nil {
						keys = append(keys, w.NodeKeys()...)
					}
				}
			}
			slices.Sort(keys)
			keys = slices.Compact(keys)
			halves := [2]SliceSpec{}
			for ref, text := range objects {
				if !strings.HasPrefix(ref, kindNode+"/") {
					continue
				}
				if n, ok := slicedOf(t, text, keys); ok {
					object := jsonOf(t, string(text))
					if spec, _ := object["spec"].(map[string]any); spec != nil && len(n.PodCIDRs) > 0 {
						spec["podCIDRs"] = n.PodCIDRs // as an API server copies the one key into the other
					}
					byNodes.put(kindNode, object)
					halves[len(n.Name)%2].Nodes = append(halves[len(n.Name)%2].Nodes, n)
				}
			}
			index := SliceSpec{LabelKeys: keys}
			for i, half := range halves {
				if name := fmt.Sprint("nodes-", i); len(half.Nodes) > 0 {
					bySlices.slice(t, name, half)
					index.Slices = append(index.Slices, name)
				}
			}
			for i, r := range resources {
				index.ResourceSlices = append(index.ResourceSlices, fmt.Sprint("resources-", i))
				bySlices.slice(t, index.ResourceSlices[i], SliceSpec{Resources: []SlicedResource{r}})
			}
			bySlices.slice(t, SliceIndex, index)
			bySlices.alive(t, 0)
			for _, s := range []*apiServer{byNodes, bySlices} {
				s.fails(func(w http.ResponseWriter, r *http.Request) bool { // the server knows this node, whatever the story says
					if r.URL.Query().Get("fieldSelector") != "metadata.name="+self || !strings.HasSuffix(r.URL.Path, "/nodes") {
						return false
					}
					_, _ = w.Write([]byte(`{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"n1"}}]}`))
					return true
				})
			}
			whole := func(w World, err error) bool { return err == nil && len(w.Nodes)+len(w.Problems) > 0 }
			a, b := newClient(t, byNodes.kubeconfig(t), hasty), newClient(t, bySlices.kubeconfig(t), hasty)
			text := func(w World) string {
				w = canonical(w)
				w.Source, w.ReadAt = "", time.Time{}
				return string(mustJSON(w)) + fmt.Sprint(w.Problems)
			}
			if len(halves[0].Nodes)+len(halves[1].Nodes) == 0 {
				t.Skip("a story without Nodes")
			}
			a.until(t, "Nodes", whole)
			b.until(t, "slices", whole)
			eventually(t, "the same World", "", func() string {
				x, errX := a.source.World(t.Context(), World{})
				y, errY := b.source.World(t.Context(), World{})
				if one, other := text(x), text(y); one != other || errX != nil || errY != nil {
					return fmt.Sprintf("%v %v %s", errX, errY, cmp.Diff(strings.Split(one, ";"), strings.Split(other, ";")))
				}
				return ""
			})
			if asked := bySlices.asked(); slices.ContainsFunc(asked, func(s string) bool {
				return s == "list nodes" || strings.HasPrefix(s, "watch nodes ") || len(resources) > 0 && (strings.Contains(s, "bgp") || strings.Contains(s, "pools"))
			}) {
				t.Errorf("with slices the Nodes or the resources were asked for: %v", asked)
			}
		})
	}
}

// A node reads slices while they count, and Nodes while they do not: before there is a controller, while a resource
// selects by a label that the slices do not have yet, and when the controller has been dead for a while.
func TestSlicesAndNodesTakeTurns(t *testing.T) {
	s := newAPIServer(t)
	for i := range 3 {
		n := sliceNode(i)
		s.put(kindNode, apiNode(t, n.Name, n.Addresses[0], n.PodCIDRs[0]))
	}
	quick := hasty
	quick.first = 300 * time.Millisecond
	c := newClient(t, s.kubeconfig(t), quick)
	c.untilIs(t, "n0 n1 n2")
	reads := func(nodes bool) {
		t.Helper()
		eventually(t, "reads Nodes", nodes, func() bool {
			c.source.mu.Lock()
			defer c.source.mu.Unlock()
			return c.source.feeds[kindNode] != nil
		})
	}
	reads(true)
	s.slice(t, "nodes-1", SliceSpec{Nodes: []SlicedNode{sliceNode(0), sliceNode(1), sliceNode(2)}})
	s.alive(t, 0)
	s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1"}})
	reads(false)
	c.untilIs(t, "n0 n1 n2")

	// A node that leaves a slice is gone, and a slice that the index names and that is not there loses none.
	s.slice(t, "nodes-1", SliceSpec{Nodes: []SlicedNode{sliceNode(0), sliceNode(1)}})
	c.untilIs(t, "n0 n1")
	s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1", "nodes-2"}})
	s.slice(t, "nodes-1", SliceSpec{})
	reads(true)
	c.untilIs(t, "n0 n1 n2") // the Nodes say that all are there
	s.slice(t, "nodes-1", SliceSpec{Nodes: []SlicedNode{sliceNode(0), sliceNode(1)}})
	s.slice(t, "nodes-2", SliceSpec{Nodes: []SlicedNode{sliceNode(2), sliceNode(3)}})
	c.untilIs(t, "n0 n1 n2 n3")
	reads(false)

	// No resource counts while the labels by which it selects are unknown: it would select nothing, and what the
	// earlier version selected would be withdrawn.
	narrow := func(w World, err error) bool {
		for _, p := range w.Peerings {
			if !slices.ContainsFunc(w.Nodes, func(n Node) bool { return p.Selector.Selects(n.Labels) }) {
				t.Fatalf("%s selects nothing", p.Ref())
			}
		}
		return err == nil && len(w.Peerings) == 1
	}
	for i := range 4 {
		n := sliceNode(i)
		s.put(kindNode, apiNode(t, n.Name, n.Addresses[0], n.PodCIDRs[0])) // with the label pool
	}
	p := apiPeer(t, "lan", `"n1"`)
	p["spec"].(map[string]any)["nodeSelector"] = "pool=a"
	delete(p["spec"].(map[string]any), "authPassword")
	s.put(kindPeer, p)
	c.until(t, "the new label, by Nodes", narrow)
	reads(true)
	all := SliceSpec{}
	for i := range 4 {
		n := sliceNode(i)
		n.Labels = map[string]string{"pool": "a"}
		all.Nodes = append(all.Nodes, n)
	}
	s.slice(t, "nodes-1", SliceSpec{Nodes: all.Nodes[:2]})
	s.slice(t, "nodes-2", SliceSpec{Nodes: all.Nodes[2:]})
	s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1", "nodes-2"}, LabelKeys: []string{"pool"}})
	reads(false)
	c.until(t, "the new label, by slices", narrow)

	s.alive(t, time.Hour)
	reads(true)
	s.alive(t, 0)
	reads(false)
	s.remove(kindSlice.kind, SliceIndex)
	reads(true)
	c.untilIs(t, "n0 n1 n2 n3 BGPPeer/lan")
}

// No Node is gone because its slice is: while nothing else says what Nodes there are, the last known ones stay.
func TestNodesOutliveTheirSlices(t *testing.T) {
	s := newAPIServer(t)
	publish := func() {
		t.Helper()
		s.slice(t, "nodes-1", SliceSpec{Nodes: []SlicedNode{sliceNode(0), sliceNode(1)}})
		s.slice(t, "nodes-2", SliceSpec{Nodes: []SlicedNode{sliceNode(2)}})
		s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1", "nodes-2"}})
		s.alive(t, 0)
	}
	publish()
	s.put(kindNode, apiNode(t, self, "192.0.2.11", "10.10.1.0/24")) // an empty list is believed of a server that knows it
	s.fails(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/nodes") || r.URL.Query().Has("fieldSelector") {
			return false
		}
		http.Error(w, "{}", http.StatusForbidden)
		return true
	})
	quick := hasty
	quick.first = 300 * time.Millisecond
	c := newClient(t, s.kubeconfig(t), quick)
	const all = "n0 n1 n2"
	c.untilIs(t, all)
	for _, tt := range []struct {
		name string
		harm func()
	}{
		{"the controller is gone", func() { s.alive(t, time.Hour) }},
		{"alive is gone", func() { s.remove(kindSlice.kind, SliceAlive) }},
		{"the index is gone", func() { s.remove(kindSlice.kind, SliceIndex) }},
		{"a slice is gone", func() { s.remove(kindSlice.kind, "nodes-2") }},
		{"a slice is empty", func() { s.slice(t, "nodes-2", SliceSpec{}) }},
		{"a slice is no NodeSlice", func() {
			s.put(kindSlice.kind, jsonOf(t, `{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "NodeSlice", "metadata": {"name": "nodes-2"}, "spec": {"nodes": "x"}}`))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			look := func(what string, sliced bool) {
				t.Helper()
				c.until(t, what, func(w World, err error) bool {
					if got := describe(w); err != nil || got != all {
						t.Fatalf("%s: %s, %v", what, got, err)
					}
					return strings.HasSuffix(w.Source, " (NodeSlices)") == sliced && (len(w.Problems) == 0) == sliced
				})
			}
			tt.harm()
			look("Nodes are asked for", false)
			publish()
			look("slices count again", true)
		})
	}
}

// After a restart of the API server only those slices are sent that changed: what this node has read, and what is so still,
// is left out. What somebody wrote into a slice by hand is not believed for longer than the slice says it.
func TestSlicesAreReadOnceOnly(t *testing.T) {
	s := newAPIServer(t)
	index := SliceSpec{}
	for i := range 8 {
		name := fmt.Sprint("nodes-", i)
		s.slice(t, name, SliceSpec{Nodes: []SlicedNode{sliceNode(i)}})
		index.Slices = append(index.Slices, name)
	}
	s.slice(t, SliceIndex, index)
	s.alive(t, 0)
	s.put(kindNode, apiNode(t, self, "192.0.2.11", "10.10.1.0/24")) // an empty list is believed of a server that knows it
	c := newClient(t, s.kubeconfig(t), hasty)
	c.untilIs(t, "n0 n1 n2 n3 n4 n5 n6 n7")
	waitFor(t, "all watches", func() bool { return s.watches() == len(ownKinds())+1 }) // else a list may be on its way
	forget := func(meanwhile func()) {                                                 // the server restarts, and remembers no version before that
		t.Helper()
		s.fails(dropped)
		s.cut()
		waitFor(t, "no watch", func() bool { return s.watches() == 0 })
		meanwhile()
		s.remove(kindSlice.kind, "nothing")
		s.mu.Lock()
		s.compact = s.version
		s.version++
		s.mu.Unlock()
		s.fails(nil)
	}
	s.asked()
	forget(func() { s.slice(t, "nodes-3", SliceSpec{Nodes: []SlicedNode{sliceNode(3), sliceNode(9)}}) })
	c.untilIs(t, "n0 n1 n2 n3 n4 n5 n6 n7 n9")
	lists := func() string {
		var lists []string
		for _, r := range s.asked() {
			if strings.HasPrefix(r, "list nodeslices") && !strings.HasSuffix(r, " "+self) || r == "list nodes" { // that one says the version
				lists = append(lists, r)
			}
		}
		slices.Sort(lists)
		return strings.Join(slices.Compact(lists), ", ")
	}
	if got := lists(); got != "list nodeslices but 8" {
		t.Errorf("asked for %s", got)
	}
	edited := NewNodeSlice("nodes-3", SliceSpec{Nodes: []SlicedNode{sliceNode(3), sliceNode(9)}}) // the label stays
	edited.Spec = SliceSpec{Nodes: []SlicedNode{sliceNode(9)}}
	s.put(kindSlice.kind, jsonOf(t, string(mustJSON(edited))))
	c.untilIs(t, "n0 n1 n2 n4 n5 n6 n7 n9")
	forget(func() { s.slice(t, "nodes-3", SliceSpec{Nodes: []SlicedNode{sliceNode(3), sliceNode(9)}}) })
	c.untilIs(t, "n0 n1 n2 n3 n4 n5 n6 n7 n9")

	// A slice that has another name, and the content of one that is gone, is read like all others.
	waitFor(t, "all watches", func() bool { return s.watches() == len(ownKinds())+1 })
	s.asked()
	forget(func() {
		s.remove(kindSlice.kind, "nodes-0")
		s.slice(t, "nodes-8", SliceSpec{Nodes: []SlicedNode{sliceNode(0)}})
		index.Slices[0] = "nodes-8"
		s.slice(t, SliceIndex, index)
	})
	waitFor(t, "all watches", func() bool { return s.watches() == len(ownKinds())+1 })
	c.untilIs(t, "n0 n1 n2 n3 n4 n5 n6 n7 n9")
	if got := lists(); got != "list nodeslices, list nodeslices but 8" {
		t.Errorf("asked for %s", got)
	}
}

// A resource in a slice changes and goes as the resource itself does, and is not lost with its slice: while nothing else
// says what resources there are, the last known ones stay.
func TestResourcesOfSlices(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, apiNode(t, self, "192.0.2.11", "10.10.1.0/24"))
	lan := func(name string, asn int) SlicedResource {
		p := apiPeer(t, name, `"n1"`)
		p["spec"].(map[string]any)["localAsNumber"], p["spec"].(map[string]any)["nodeSelector"] = asn, "all()"
		delete(p["spec"].(map[string]any), "authPassword")
		s.put(kindPeer, p)
		return slicedResource(kindPeer, p)
	}
	a, b := lan("a", 65010), lan("b", 65020)
	index := SliceSpec{Slices: []string{"nodes-1"}, ResourceSlices: []string{"resources-1"}}
	publish := func() {
		t.Helper()
		s.slice(t, "nodes-1", SliceSpec{Nodes: []SlicedNode{sliceNode(1)}})
		s.slice(t, "resources-1", SliceSpec{Resources: []SlicedResource{a, b}})
		s.slice(t, SliceIndex, index)
		s.alive(t, 0)
	}
	publish()
	reads := func(c *client, peers bool) {
		t.Helper()
		eventually(t, "reads BGPPeers", peers, func() bool {
			c.source.mu.Lock()
			defer c.source.mu.Unlock()
			return c.source.feeds[kindPeer] != nil
		})
	}
	quick := hasty
	quick.first = 300 * time.Millisecond
	c := newClient(t, s.kubeconfig(t), quick)
	c.untilIs(t, "n1 BGPPeer/a BGPPeer/b")
	reads(c, false)
	a = lan("a", 65030)
	publish()
	c.until(t, "another AS number", func(w World, err error) bool { return err == nil && w.Peerings[0].LocalASN == 65030 })
	s.slice(t, "resources-1", SliceSpec{Resources: []SlicedResource{a}})
	c.untilIs(t, "n1 BGPPeer/a")
	publish()
	c.untilIs(t, "n1 BGPPeer/a BGPPeer/b")

	s.fails(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/nodeslices") || strings.HasSuffix(r.URL.Path, "/edgenodes") {
			return false
		}
		http.Error(w, "{}", http.StatusForbidden)
		return true
	})
	for name, harm := range map[string]func(){
		"the slice is gone":  func() { s.remove(kindSlice.kind, "resources-1") },
		"the slice is empty": func() { s.slice(t, "resources-1", SliceSpec{}) },
		"a resource is strange": func() {
			s.slice(t, "resources-1", SliceSpec{Resources: []SlicedResource{{Kind: kindSecret, Name: "x"}}})
		},
		"the index names none":   func() { s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1"}}) },
		"the controller is gone": func() { s.alive(t, time.Hour) },
	} {
		harm()
		c.until(t, name, func(w World, err error) bool {
			if got := describe(w); err != nil || got != "n1 BGPPeer/a BGPPeer/b" {
				t.Fatalf("%s: %s, %v", name, got, err)
			}
			return len(w.Problems) > 0 // BGPPeers are asked for
		})
		publish()
		reads(c, false)
	}
	s.fails(nil)
	s.slice(t, SliceIndex, SliceSpec{Slices: []string{"nodes-1"}})
	s.remove(kindPeer, "b")
	reads(c, true)
	c.untilIs(t, "n1 BGPPeer/a")
}
