package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// slicedNodes returns nodes of shops with five nodes each.
func slicedNodes(n int) map[string]cluster.SlicedNode {
	out := map[string]cluster.SlicedNode{}
	for i := range n {
		name := fmt.Sprintf("shop-%04d-n%d", i/5, i%5)
		out[name] = cluster.SlicedNode{Name: name, Labels: map[string]string{"shop": fmt.Sprint("s", i/5), "pool": fmt.Sprint("p", i/500), "other": "x"},
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", i/2500, i/10%250, 10+i%10)}, PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)}}.Only([]string{"pool", "shop"})
	}
	return out
}

// published is what the API server holds after some of the writes.
func published(have []cluster.NodeSlice, writes []sliceWrite) (out []cluster.NodeSlice) {
	all := map[string]cluster.NodeSlice{}
	for _, s := range have {
		all[s.Metadata.Name] = s
	}
	for _, w := range writes {
		if delete(all, w.Metadata.Name); !w.gone {
			all[w.Metadata.Name] = w.NodeSlice
		}
	}
	return slices.Collect(maps.Values(all))
}

// read is what a node reads from the slices: the nodes, and the label keys of the index.
func readBack(t *testing.T, all []cluster.NodeSlice) (map[string]cluster.SlicedNode, []string) {
	t.Helper()
	by := map[string]cluster.NodeSlice{}
	for _, s := range all {
		by[s.Metadata.Name] = s
		if len(s.Spec.Nodes) > cluster.SliceMost {
			t.Fatalf("%s has %d nodes", s.Metadata.Name, len(s.Spec.Nodes))
		}
	}
	out := map[string]cluster.SlicedNode{}
	for _, name := range by[cluster.SliceIndex].Spec.Slices {
		s, ok := by[name]
		if !ok {
			t.Fatalf("the index names %s, which is not there", name)
		}
		for _, n := range s.Spec.Nodes {
			out[n.Name] = n
		}
	}
	return out, by[cluster.SliceIndex].Spec.LabelKeys
}

// 20,000 nodes are 200 slices. One changed node changes one slice; a node that leaves changes one, and a node that
// comes one; no node ever moves.
func TestSlicesChangeAsLittleAsTheNodes(t *testing.T) {
	keys := []string{"pool", "shop"}
	nodes := slicedNodes(20000)
	all := published(nil, sliceWrites(nil, pack(nil, nodes), keys))
	if len(all) != 201 {
		t.Errorf("%d slices with the index, want 201", len(all))
	}
	if again := sliceWrites(all, pack(all, nodes), keys); len(again) != 0 {
		t.Errorf("a second time writes %d slices", len(again))
	}
	changed := nodes["shop-0100-n1"]
	changed.Addresses = []string{"192.0.2.1"}
	steps := map[string]func(){
		"an address":  func() { nodes["shop-0100-n1"] = changed },
		"a node gone": func() { delete(nodes, "shop-0200-n2") },
		"a node more": func() { nodes["new"] = cluster.SlicedNode{Name: "new"} },
	}
	for _, what := range slices.Sorted(maps.Keys(steps)) {
		steps[what]()
		writes := sliceWrites(all, pack(all, nodes), keys)
		if len(writes) != 1 {
			t.Errorf("%s: %d writes, want 1", what, len(writes))
		}
		all = published(all, writes)
	}
	// A shop's nodes lie together, so that work on a shop is one slice.
	for _, s := range all {
		if hasNodes(s) && len(s.Spec.Nodes)%5 > 1 {
			t.Errorf("%s has %d nodes", s.Metadata.Name, len(s.Spec.Nodes))
		}
	}
}

// Whatever happens to nodes and labels: after each single write a node reads every node that is there before and
// after, with the labels that the index promises. A second controller that wrote in between changes nothing about it.
func TestSlicesLoseNoNodeBetweenWrites(t *testing.T) {
	source := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c"}
	for range 60 {
		var have []cluster.NodeSlice
		nodes, keys := map[string]cluster.SlicedNode{}, []string(nil)
		for range 12 {
			before := maps.Clone(nodes)
			keys = nil
			for _, key := range names {
				if source.IntN(2) == 0 {
					keys = append(keys, key)
				}
			}
			for range source.IntN(300) {
				name := fmt.Sprint("n", source.IntN(400))
				if delete(nodes, name); source.IntN(3) > 0 {
					nodes[name] = cluster.SlicedNode{Name: name, Addresses: []string{fmt.Sprint(source.IntN(9))}}
				}
			}
			for name, n := range nodes {
				nodes[name] = cluster.SlicedNode{Name: name, Labels: map[string]string{"a": "1", "b": "1", "c": "1"}, Addresses: n.Addresses}.Only(keys)
			}
			writes := sliceWrites(have, pack(have, nodes), keys)
			for i := range writes {
				got, promised := readBack(t, published(have, writes[:i+1]))
				if _, indexed := readBackIndex(have); !indexed && i+1 < len(writes) {
					continue // nothing counts before there is an index
				}
				for name := range nodes {
					if _, was := before[name]; !was {
						continue
					}
					n, ok := got[name]
					if !ok {
						t.Fatalf("after write %d of %d, %s is missing", i+1, len(writes), name)
					}
					for _, key := range promised {
						if n.Labels[key] == "" {
							t.Fatalf("after write %d of %d, %s lacks the label %s", i+1, len(writes), name, key)
						}
					}
				}
			}
			have = published(have, writes)
			got, _ := readBack(t, have)
			if !maps.EqualFunc(got, nodes, cluster.SlicedNode.Equal) {
				t.Fatalf("%d nodes are read, want %d", len(got), len(nodes))
			}
		}
	}
}

func readBackIndex(all []cluster.NodeSlice) (cluster.NodeSlice, bool) {
	i := slices.IndexFunc(all, func(s cluster.NodeSlice) bool { return s.Metadata.Name == cluster.SliceIndex })
	if i < 0 {
		return cluster.NodeSlice{}, false
	}
	return all[i], true
}

// Two controllers that both placed a new node leave it in one slice.
func TestSlicesNodeInTwoSlices(t *testing.T) {
	n := cluster.SlicedNode{Name: "n"}
	have := []cluster.NodeSlice{cluster.NewNodeSlice("nodes-2", cluster.SliceSpec{Nodes: []cluster.SlicedNode{n}}),
		cluster.NewNodeSlice("nodes-1", cluster.SliceSpec{Nodes: []cluster.SlicedNode{n}})}
	if got := pack(have, map[string]cluster.SlicedNode{"n": n}); len(got) != 1 || got[0].Metadata.Name != "nodes-1" {
		t.Errorf("got %v", got)
	}
}

// Whatever happens to resources: after each single write a node reads every resource that is there before and after, or
// reads the resources themselves. Few resources, and large ones, have no slices. One changed resource changes one slice.
func TestSlicesLoseNoResourceBetweenWrites(t *testing.T) {
	source := rand.New(rand.NewPCG(3, 4))
	read := func(all []cluster.NodeSlice) map[string]cluster.SlicedResource {
		index, _ := readBackIndex(all)
		if len(index.Spec.ResourceSlices) == 0 {
			return nil
		}
		out := map[string]cluster.SlicedResource{}
		for _, name := range index.Spec.ResourceSlices {
			in := slot(all, name).Spec.Resources
			if len(in) == 0 || len(in) > cluster.ResourceMost {
				t.Fatalf("%s has %d resources", name, len(in))
			}
			for _, r := range in {
				out[r.Ref()] = r
			}
		}
		return out
	}
	nodes := slicedNodes(5)
	for range 40 {
		var have []cluster.NodeSlice
		all := map[string]cluster.SlicedResource{}
		for range 12 {
			before := maps.Clone(all)
			for range source.IntN(200) {
				r := cluster.SlicedResource{Kind: "BGPPeer", Name: fmt.Sprint("p", source.IntN(300)), Spec: []byte(fmt.Sprintf(`{"localAsNumber":%d}`, source.IntN(9)))}
				if delete(all, r.Ref()); source.IntN(3) > 0 {
					all[r.Ref()] = r
				}
			}
			writes := sliceWrites(have, append(pack(have, nodes), packResources(have, slices.Collect(maps.Values(all)))...), nil)
			for i := range writes {
				got := read(published(have, writes[:i+1]))
				if got == nil {
					continue
				}
				for ref := range all {
					_, was := before[ref]
					if _, is := got[ref]; was && !is {
						t.Fatalf("after write %d of %d, %s is missing", i+1, len(writes), ref)
					}
				}
			}
			have = published(have, writes)
			if got := read(have); (got == nil) != (len(all) <= cluster.ResourceFew) || got != nil && !maps.EqualFunc(got, all, cluster.SlicedResource.Equal) {
				t.Fatalf("%d resources are read, want %d", len(got), len(all))
			}
		}
		all["BGPPeer/new"] = cluster.SlicedResource{Kind: "BGPPeer", Name: "new", Spec: []byte("{}")}
		for i := range 2 * cluster.ResourceFew {
			r := cluster.SlicedResource{Kind: "NetworkPool", Name: fmt.Sprint("p", i)}
			all[r.Ref()] = r
		}
		want := func() []cluster.NodeSlice {
			return append(pack(have, nodes), packResources(have, slices.Collect(maps.Values(all)))...)
		}
		have = published(have, sliceWrites(have, want(), nil))
		all["BGPPeer/new"] = cluster.SlicedResource{Kind: "BGPPeer", Name: "new", Spec: []byte(`{"localAsNumber":1}`)}
		if writes := sliceWrites(have, want(), nil); len(writes) != 1 {
			t.Fatalf("one changed resource: %d writes", len(writes))
		}
		all["BGPPeer/new"] = cluster.SlicedResource{Kind: "BGPPeer", Name: "new", Spec: make([]byte, cluster.ResourceLarge+1)}
		if have = published(have, sliceWrites(have, want(), nil)); read(have) != nil || slices.ContainsFunc(have, hasResources) {
			t.Fatal("a large resource is in a slice")
		}
	}
}
