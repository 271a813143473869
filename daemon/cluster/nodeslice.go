package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// NodeSlice (network.edgeway.io/v1alpha1) holds what nodes need of some of the cluster's Nodes. A Node has 20 KB
// and its kubelet writes it every few minutes, which each node of the cluster would hear; a slice changes when a
// name, an address, a pod CIDR, a label or an annotation that matters changes, and at no heartbeat. edgeway-controller writes
// the slices, and each node reads them instead of the Nodes.
//
//	nodes-1 ... nodes-200   Spec.Nodes, at most SliceMost of them
//	resources-1 ...         Spec.Resources, at most ResourceMost of them
//	index                   Spec.Slices, Spec.ResourceSlices: those that count; Spec.LabelKeys: the labels and annotations that they have
//	alive                   Spec.PublishedAt: when the controller last compared them with all Nodes
//
// The index is written after a new slice and before a slice goes. A Node never moves from one slice to another.
// So the slices of the index are all Nodes at each moment, and none of them is empty.
//
// A cluster of many LANs has a BGP resource for each of them. Their status, which speakers write at each change of a
// session, would go to every node, and after a restart of the API server all of them. So the controller publishes the
// resources in slices too, unless they are few (ResourceFew) or one of them is large (ResourceLarge): then the index
// names no such slice, and each node reads the resources themselves.
type NodeSlice struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   SliceMeta `json:"metadata"`
	Spec       SliceSpec `json:"spec"`
}

// SliceMeta is the part of a NodeSlice's metadata that is used.
type SliceMeta struct {
	Name            string            `json:"name"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// SliceSpec is the content of a NodeSlice.
type SliceSpec struct {
	Nodes          []SlicedNode     `json:"nodes,omitempty"`     // by name
	Resources      []SlicedResource `json:"resources,omitempty"` // by kind and name
	Slices         []string         `json:"slices,omitempty"`
	ResourceSlices []string         `json:"resourceSlices,omitempty"`
	LabelKeys      []string         `json:"labelKeys,omitempty"`
	PublishedAt    string           `json:"publishedAt,omitempty"` // RFC 3339
}

// SlicedResource is a BGPPeer, BGPClusterConfig or NetworkPool without its status.
type SlicedResource struct {
	Kind string          `json:"kind"`
	Name string          `json:"name"`
	Spec json.RawMessage `json:"spec,omitempty"` // as the API server writes it
}

// Ref names the resource as messages do.
func (r SlicedResource) Ref() string { return r.Kind + "/" + r.Name }

// Equal reports whether both entries say the same.
func (r SlicedResource) Equal(o SlicedResource) bool {
	return r.Ref() == o.Ref() && bytes.Equal(r.Spec, o.Spec)
}

// item returns the resource as the API server would have sent it.
func (r SlicedResource) item() item {
	all := map[string]any{"apiVersion": APIVersion(r.Kind), "kind": r.Kind, "metadata": map[string]any{"name": r.Name}}
	if r.Spec != nil {
		all["spec"] = r.Spec
	}
	it := item{name: r.Name, text: mustJSON(all)}
	it.sum = it.digest()
	return it
}

// SlicedNode has the fields of a Node that nodes use, as the Node has them: the reader checks them by the same
// rules.
type SlicedNode struct {
	Name        string            `json:"name"`
	Addresses   []string          `json:"addresses,omitempty"` // InternalIP, in the Node's order
	PodCIDRs    []string          `json:"podCIDRs,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"` // flannel's, where a NetworkPool asks for flannel
}

// The names of the two NodeSlices that have no nodes.
const (
	SliceIndex = "index"
	SliceAlive = "alive"
)

const (
	// SliceMost is the largest number of nodes in a slice. A slice of 100 nodes has some 12 KB.
	SliceMost = 100
	// ResourceMost is the largest number of resources in a slice, which has some 10 KB with so many BGPPeers.
	ResourceMost = 32
	// ResourceFew is the number of resources up to which each node reads them itself.
	ResourceFew = 32
	// ResourceLarge is the size of a spec above which each node reads the resources itself: etcd accepts 1.5 MB for a slice.
	ResourceLarge = 32 << 10
	// SliceBeat is the longest time between two writes of "alive".
	SliceBeat = 5 * time.Minute
	// sliceStale is the age of "alive" at which the slices no longer count: three beats were missed.
	sliceStale = 3*SliceBeat + time.Minute
)

var kindSlice = kind{groupEdgeway + "/v1alpha1", "NodeSlice"}

// SlicePath is the path under which NodeSlices are listed.
func SlicePath() string { return kindSlice.path() }

// contentLabel is the label with the digest of a NodeSlice's spec, by which nodes ask for the slices that they do not
// have yet.
const contentLabel = groupEdgeway + "/content"

// mostKnown bounds the digests that a request names, so that its line stays below 8 KB, which proxies accept.
const mostKnown = 350

func (s SliceSpec) content() string {
	sum := sha256.Sum256(mustJSON(s))
	return hex.EncodeToString(sum[:8])
}

// NewNodeSlice returns a NodeSlice of that name.
func NewNodeSlice(name string, spec SliceSpec) NodeSlice {
	return NodeSlice{APIVersion: kindSlice.apiVersion, Kind: kindSlice.kind, Spec: spec, Metadata: SliceMeta{Name: name,
		Labels: map[string]string{"app.kubernetes.io/part-of": "edgeway", contentLabel: spec.content()}}}
}

// NodeKeys returns the keys of those labels and annotations of Nodes that matter, sorted: the labels by which
// resources and pools select nodes, and flannel's annotations if a pool asks for flannel.
func (w World) NodeKeys() []string {
	var keys []string
	for _, p := range w.Peerings {
		keys = append(keys, p.Selector.Keys()...)
	}
	for _, p := range w.Pools {
		keys = append(keys, p.Selector.Keys()...)
		if p.Flannel {
			keys = append(keys, flannelKeys()...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Keys returns the keys of the labels by which the selector selects.
func (s Selector) Keys() (keys []string) {
	if s.set == nil {
		return nil
	}
	requirements, _ := s.set.Requirements()
	for _, r := range requirements {
		keys = append(keys, r.Key())
	}
	return keys
}

// Only returns the entry with the labels and annotations of these keys, which are sorted, and no others.
func (n SlicedNode) Only(keys []string) SlicedNode {
	n.Labels, n.Annotations = kept(n.Labels, keys), kept(n.Annotations, keys)
	return n
}

// kept returns the entries of these keys; nil if there are none.
func kept(all map[string]string, keys []string) (out map[string]string) {
	for _, key := range keys {
		if value, ok := all[key]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

// Equal reports whether both entries say the same.
func (n SlicedNode) Equal(o SlicedNode) bool {
	return n.Name == o.Name && slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs) && maps.Equal(n.Labels, o.Labels) && maps.Equal(n.Annotations, o.Annotations)
}

// node returns the text of the Node as the API server would have it.
func (n SlicedNode) node() usedNode {
	u := usedNode{APIVersion: APIVersion(kindNode), Kind: kindNode}
	u.Metadata.Name = n.Name
	if len(n.Labels) > 0 {
		u.Metadata.Labels = mustJSON(n.Labels)
	}
	u.Metadata.Annotations = n.Annotations
	if len(n.PodCIDRs) > 0 {
		u.Spec.PodCIDRs = mustJSON(n.PodCIDRs)
	}
	for _, a := range n.Addresses {
		u.Status.Addresses = append(u.Status.Addresses, typed{Type: "InternalIP", Address: a})
	}
	return u
}

// sliced is a NodeSlice as it was read: its nodes are statements about Nodes, its resources about themselves.
type sliced struct {
	content string          // the digest, which the label of a slice that somebody edited does not say
	spec    SliceSpec       // without nodes and resources
	said    map[string]told // by reference: "Node/n1", "BGPPeer/lan"
	refs    []string        // of what is said, in the slice's order
	wrong   error           // the text is no NodeSlice
}

// known returns the slices whose content a list need not repeat. All slices of 20,000 nodes have 3 MB, and after a restart
// of the API server each node asks. A digest counts in whatever history the server has. A known slice that is gone stays:
// the index no longer names it, or edgeway-controller writes it again. Index and "alive" are always read, so that a
// server that lost its slices is noticed.
func (f *feed) known() map[string]told {
	known := map[string]told{}
	for name, t := range f.items {
		if t.slice != nil && len(t.slice.refs) > 0 && len(known) < mostKnown {
			known[name] = t
		}
	}
	return known
}

// contents returns the digests of slices.
func contents(of map[string]told) (digests []string) {
	for _, t := range of {
		digests = append(digests, t.slice.content)
	}
	return digests
}

// named returns the names in the index.
func (t told) named() []string {
	if t.slice == nil {
		return nil
	}
	return slices.Concat(t.slice.spec.Slices, t.slice.spec.ResourceSlices)
}

// readSlice reads a NodeSlice. A node or a resource that has not changed since was keeps its statement.
func readSlice(it item, was *sliced) *sliced {
	var n NodeSlice
	s := &sliced{said: map[string]told{}}
	if err := json.Unmarshal(it.text, &n); err != nil {
		s.wrong = err
		return s
	}
	add := func(of string, entry item) {
		ref := of + "/" + entry.name
		if was != nil && was.said[ref].sum == entry.sum {
			s.said[ref] = was.said[ref]
		} else {
			s.said[ref] = told{sum: entry.sum, statement: entry.statement(kind{APIVersion(of), of})}
		}
		s.refs = append(s.refs, ref)
	}
	for _, node := range n.Spec.Nodes {
		entry := item{name: node.Name, text: mustJSON(node.node())}
		entry.sum = entry.digest()
		add(kindNode, entry)
	}
	for _, r := range n.Spec.Resources {
		if !slices.Contains(SharedKinds(), r.Kind) {
			s.wrong = fmt.Errorf("a resource of kind %q", r.Kind)
			return s
		}
		add(r.Kind, r.item())
	}
	s.content, s.spec = n.Spec.content(), n.Spec
	s.spec.Nodes, s.spec.Resources = nil, nil
	return s
}

// sliceState is what the NodeSlices are worth.
type sliceState string

const (
	slicesCount   sliceState = ""                            // they are all Nodes
	slicesUnread  sliceState = "not read yet"                // the server has not answered
	slicesAbsent  sliceState = "there are none"              // no controller, no CustomResourceDefinition, no right to read them
	slicesPartial sliceState = "the index names others"      // for a moment, while slices come and go; or somebody edited one
	slicesNarrow  sliceState = "without labels that matter"  // for a moment, after a resource with a new label; or flannel's annotations
	slicesOld     sliceState = "the controller is not alive" // nobody compares them with the Nodes
)

// sliceState says what the slices are worth to a node that needs these label keys; k.mu is held.
func (k *kubernetes) sliceState(need []string) sliceState {
	f := k.feeds[kindSlice.kind]
	if !f.synced {
		if code := code(f.failure); code == http.StatusNotFound || code == http.StatusForbidden {
			return slicesAbsent
		}
		return slicesUnread
	}
	index, alive := f.items[SliceIndex].slice, f.items[SliceAlive].slice
	if index == nil || alive == nil || index.wrong != nil || alive.wrong != nil {
		return slicesAbsent
	}
	at, err := time.Parse(time.RFC3339, alive.spec.PublishedAt)
	if err != nil || k.serverTime().Sub(at) > sliceStale {
		return slicesOld
	}
	for _, name := range f.items[SliceIndex].named() {
		if s := f.items[name].slice; s == nil || s.wrong != nil || len(s.refs) == 0 {
			return slicesPartial
		}
	}
	if !covers(index.spec.LabelKeys, need) {
		return slicesNarrow
	}
	return slicesCount
}

// serverTime is the time at the API server; k.mu is held.
func (k *kubernetes) serverTime() time.Time {
	if k.used == nil {
		return k.clock()
	}
	return k.clock().Add(-time.Duration(k.used.ahead.Load()))
}

// covers reports whether keys, which is sorted, has all keys of need.
func covers(keys, need []string) bool {
	return !slices.ContainsFunc(need, func(key string) bool {
		_, found := slices.BinarySearch(keys, key)
		return !found
	})
}

// carried reports whether the slices have the resources; k.mu is held.
func (k *kubernetes) carried() bool {
	return k.sliceState(nil) == slicesCount && len(k.feeds[kindSlice.kind].items[SliceIndex].slice.spec.ResourceSlices) > 0
}

// review reads Nodes, and resources, if and only if the slices do not count or do not have them; k.mu is held. The
// state is looked at for a moment before all are read: slices that come and go, and labels that are new, are soon
// right.
func (k *kubernetes) review() {
	state, now := k.sliceState(k.labelKeys), k.clock()
	if state == slicesCount {
		k.wrongSince = time.Time{}
		k.want(kindNode, false)
		k.wantResources()
		return
	}
	if k.wrongSince.IsZero() {
		k.wrongSince = now
	}
	f, wait := k.feeds[kindSlice.kind], k.patience.first
	switch {
	case state == slicesAbsent || !k.given:
		wait = 0
	case !f.open && (f.failure == nil || unanswered(f.failure)):
		k.wrongSince = time.Time{} // nothing can be heard: the slices are as old as everything else
		return
	}
	if f.asked && !unanswered(f.failure) && now.Sub(k.wrongSince) >= wait {
		k.want(kindNode, true)
		k.wantResources()
	}
}

// wantResources reads the resources where the slices do not have them; k.mu is held.
func (k *kubernetes) wantResources() {
	direct := !k.carried()
	for _, name := range SharedKinds() {
		k.want(name, direct)
	}
}

// reviewed is review at a time when nothing was read; k.mu is held. It reports whether a feed came or went.
func (k *kubernetes) reviewed() bool {
	before := slices.Sorted(maps.Keys(k.feeds))
	k.review()
	return !slices.Equal(before, slices.Sorted(maps.Keys(k.feeds)))
}

// want starts or ends the feed of a kind; k.mu is held.
func (k *kubernetes) want(name string, wanted bool) {
	if (k.feeds[name] != nil) == wanted {
		return
	}
	delete(k.feeds, name)
	if wanted {
		k.feeds[name] = &feed{kind: kind{APIVersion(name), name}, created: k.clock()}
	}
	k.rename()
}

// rename tells serve that other feeds are wanted.
func (k *kubernetes) rename() {
	select {
	case k.named <- struct{}{}:
	default:
	}
}

// nodes returns what the server says of the Nodes, and whether that is all Nodes; k.mu is held. The slices count
// before the Nodes: both say the same.
func (k *kubernetes) nodes() (said manifest, known bool) {
	if k.sliceState(k.labelKeys) == slicesCount {
		return k.slicesSay(kindNode), true
	}
	said = k.feedSays(kindNode)
	return said, !said.broken
}

// slicesSay returns what slices that count say of a kind; k.mu is held.
func (k *kubernetes) slicesSay(about string) manifest {
	f, size := k.feeds[kindSlice.kind], 0
	index := f.items[SliceIndex].slice.spec
	names := index.ResourceSlices
	if about == kindNode {
		names, size = index.Slices, k.size
	}
	said, there := manifest{about: about, statements: make([]statement, 0, size)}, make(map[string]bool, size)
	for _, name := range slices.Sorted(slices.Values(names)) {
		s := f.items[name].slice
		for _, ref := range s.refs {
			if strings.HasPrefix(ref, about+"/") && !there[ref] { // two controllers may both have placed a new Node, for a moment
				there[ref] = true
				said.statements = append(said.statements, s.said[ref].statement)
			}
		}
	}
	return said
}

// onlyKeys returns the World whose Nodes have the labels and annotations of these keys, which are sorted, and no
// others. A Node and its entry in a slice then say the same.
func (w World) onlyKeys(keys []string) World {
	cloned := false
	for i, n := range w.Nodes {
		labels, annotations := kept(n.Labels, keys), kept(n.Annotations, keys)
		if len(labels) == len(n.Labels) && len(annotations) == len(n.Annotations) {
			continue
		}
		if !cloned {
			w.Nodes, cloned = slices.Clone(w.Nodes), true
		}
		w.Nodes[i].Labels, w.Nodes[i].Annotations = labels, annotations
	}
	return w
}
