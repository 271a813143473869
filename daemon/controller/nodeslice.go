package controller

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// pack puts every node into a slice, and changes as few slices as it can: a node stays in the slice that has it. A
// new node goes to a slice with nodes of the same labels, which are of the same LAN and pool, else to the fullest
// slice that has room. have are the present slices. The result is sorted by name and has no empty slice.
func pack(have []cluster.NodeSlice, nodes map[string]cluster.SlicedNode) []cluster.NodeSlice {
	var out []*cluster.NodeSlice
	used, placed := map[string]bool{}, map[string]bool{}
	for _, s := range slices.SortedFunc(slices.Values(have), func(a, b cluster.NodeSlice) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) }) {
		if !hasNodes(s) {
			continue
		}
		used[s.Metadata.Name] = true
		kept := []cluster.SlicedNode{}
		for _, n := range s.Spec.Nodes {
			if now, ok := nodes[n.Name]; ok && !placed[n.Name] && len(kept) < cluster.SliceMost {
				placed[n.Name] = true
				kept = append(kept, now)
			}
		}
		s.Spec = cluster.SliceSpec{Nodes: kept}
		out = append(out, &s)
	}
	var homeless []cluster.SlicedNode
	for name, n := range nodes {
		if !placed[name] {
			homeless = append(homeless, n)
		}
	}
	slices.SortFunc(homeless, func(a, b cluster.SlicedNode) int {
		return cmp.Or(cmp.Compare(group(a), group(b)), cmp.Compare(a.Name, b.Name))
	})
	rooms := newRooms(out)
	for _, n := range homeless {
		s := rooms.find(group(n))
		if s == nil {
			name := ""
			for i := len(used) + 1; name == ""; i++ {
				if try := fmt.Sprintf("nodes-%d", i); !used[try] {
					name = try
				}
			}
			used[name] = true
			fresh := cluster.NewNodeSlice(name, cluster.SliceSpec{})
			s = &fresh
			out = append(out, s)
			rooms.add(s)
		}
		s.Spec.Nodes = append(s.Spec.Nodes, n)
		rooms.put(s, group(n))
	}
	var want []cluster.NodeSlice
	for _, s := range out {
		if len(s.Spec.Nodes) > 0 {
			slices.SortFunc(s.Spec.Nodes, func(a, b cluster.SlicedNode) int { return cmp.Compare(a.Name, b.Name) })
			want = append(want, *s)
		}
	}
	slices.SortFunc(want, func(a, b cluster.NodeSlice) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	return want
}

// rooms are the slices that have room, and the groups that each has.
type rooms struct {
	open []*cluster.NodeSlice
	of   map[string]*cluster.NodeSlice // one slice with room for each group that has such a slice
}

func newRooms(all []*cluster.NodeSlice) *rooms {
	r := &rooms{of: map[string]*cluster.NodeSlice{}}
	for _, s := range all {
		r.add(s)
		for _, n := range s.Spec.Nodes {
			if len(s.Spec.Nodes) < cluster.SliceMost {
				r.of[group(n)] = s
			}
		}
	}
	return r
}

func (r *rooms) add(s *cluster.NodeSlice) {
	if len(s.Spec.Nodes) < cluster.SliceMost {
		r.open = append(r.open, s)
	}
}

// find returns the slice for a node of the group, or nil where no slice has room.
func (r *rooms) find(group string) *cluster.NodeSlice {
	if s := r.of[group]; s != nil && len(s.Spec.Nodes) < cluster.SliceMost {
		return s
	}
	r.open = slices.DeleteFunc(r.open, func(s *cluster.NodeSlice) bool { return len(s.Spec.Nodes) >= cluster.SliceMost })
	if len(r.open) == 0 {
		return nil
	}
	return slices.MaxFunc(r.open, func(a, b *cluster.NodeSlice) int { return cmp.Compare(len(a.Spec.Nodes), len(b.Spec.Nodes)) })
}

func (r *rooms) put(s *cluster.NodeSlice, group string) { r.of[group] = s }

// group is what nodes of one LAN and pool have in common: LANs and pools select by these labels alone.
func group(n cluster.SlicedNode) string { return fmt.Sprint(n.Labels) } // fmt sorts the keys

func hasNodes(s cluster.NodeSlice) bool {
	return s.Metadata.Name != cluster.SliceIndex && s.Metadata.Name != cluster.SliceAlive && !hasResources(s)
}

// resourceSlice begins the names of the slices with resources.
const resourceSlice = "resources-"

func hasResources(s cluster.NodeSlice) bool {
	return strings.HasPrefix(s.Metadata.Name, resourceSlice)
}

// resourcesOf returns the resources of a kind in the slices.
func resourcesOf(have []cluster.NodeSlice, kind string) (all []cluster.SlicedResource) {
	for _, s := range have {
		for _, r := range s.Spec.Resources {
			if r.Kind == kind {
				all = append(all, r)
			}
		}
	}
	return all
}

// packResources is pack for resources: a resource stays in the slice that has it, and a new one goes to the first slice
// that has room. There are no slices where each node is to read the resources itself.
func packResources(have []cluster.NodeSlice, all []cluster.SlicedResource) (want []cluster.NodeSlice) {
	if len(all) <= cluster.ResourceFew || slices.ContainsFunc(all, func(r cluster.SlicedResource) bool { return len(r.Spec) > cluster.ResourceLarge }) {
		return nil
	}
	homeless := map[string]cluster.SlicedResource{}
	for _, r := range all {
		homeless[r.Ref()] = r
	}
	was := map[string]cluster.NodeSlice{}
	for _, s := range have {
		if hasResources(s) {
			was[s.Metadata.Name] = s
		}
	}
	names := slices.Sorted(maps.Keys(was))
	kept := map[string][]cluster.SlicedResource{}
	for _, name := range names {
		for _, r := range was[name].Spec.Resources {
			if now, ok := homeless[r.Ref()]; ok && len(kept[name]) < cluster.ResourceMost {
				kept[name] = append(kept[name], now)
				delete(homeless, r.Ref())
			}
		}
	}
	fresh := slices.Sorted(maps.Keys(homeless))
	for i := 0; i < len(names) || len(fresh) > 0; i++ {
		if i == len(names) {
			n := len(names) + 1
			for slices.Contains(names, fmt.Sprint(resourceSlice, n)) {
				n++
			}
			names = append(names, fmt.Sprint(resourceSlice, n))
		}
		in := kept[names[i]]
		for ; len(fresh) > 0 && len(in) < cluster.ResourceMost; fresh = fresh[1:] {
			in = append(in, homeless[fresh[0]])
		}
		if len(in) > 0 {
			slices.SortFunc(in, func(a, b cluster.SlicedResource) int { return cmp.Compare(a.Ref(), b.Ref()) })
			s := slot(have, names[i])
			s.Spec = cluster.SliceSpec{Resources: in}
			want = append(want, s)
		}
	}
	return want
}

// sliceWrite is a write of a slice, or its deletion.
type sliceWrite struct {
	cluster.NodeSlice
	gone bool
}

// sliceWrites returns the writes that turn the present slices into want, in their order. After each of them the
// slices of the index hold every node and resource that is there before and after all of them, with the labels of the
// index.
func sliceWrites(have []cluster.NodeSlice, want []cluster.NodeSlice, keys []string) (out []sliceWrite) {
	was := map[string]cluster.NodeSlice{}
	for _, s := range have {
		was[s.Metadata.Name] = s
	}
	full := cluster.SliceSpec{LabelKeys: keys}
	for _, s := range want {
		if hasResources(s) {
			full.ResourceSlices = append(full.ResourceSlices, s.Metadata.Name)
		} else {
			full.Slices = append(full.Slices, s.Metadata.Name)
		}
	}
	index, there := was[cluster.SliceIndex]
	if !there {
		index = cluster.NewNodeSlice(cluster.SliceIndex, cluster.SliceSpec{})
	}
	now := index.Spec
	set := func(to cluster.SliceSpec) {
		if there && slices.Equal(now.Slices, to.Slices) && slices.Equal(now.ResourceSlices, to.ResourceSlices) && slices.Equal(now.LabelKeys, to.LabelKeys) {
			return
		}
		now, there = to, true
		out = append(out, sliceWrite{NodeSlice: with(index, to)})
	}
	if there {
		set(cluster.SliceSpec{Slices: both(now.Slices, full.Slices), ResourceSlices: both(now.ResourceSlices, full.ResourceSlices), LabelKeys: both(now.LabelKeys, keys)})
	}
	for _, s := range want {
		if old, ok := was[s.Metadata.Name]; !ok || !slices.EqualFunc(old.Spec.Nodes, s.Spec.Nodes, cluster.SlicedNode.Equal) ||
			!slices.EqualFunc(old.Spec.Resources, s.Spec.Resources, cluster.SlicedResource.Equal) {
			out = append(out, sliceWrite{NodeSlice: with(s, s.Spec)})
		}
	}
	set(full)
	for _, s := range have {
		if name := s.Metadata.Name; hasNodes(s) && !slices.Contains(full.Slices, name) || hasResources(s) && !slices.Contains(full.ResourceSlices, name) {
			out = append(out, sliceWrite{s, true})
		}
	}
	return out
}

// with returns the slice with another content, to be written over the present one.
func with(s cluster.NodeSlice, spec cluster.SliceSpec) cluster.NodeSlice {
	out := cluster.NewNodeSlice(s.Metadata.Name, spec)
	out.Metadata.ResourceVersion = s.Metadata.ResourceVersion
	return out
}

// both returns what a and b have in common, in a's order.
func both(a, b []string) (out []string) {
	for _, x := range a {
		if slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}
