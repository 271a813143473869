package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// publisher keeps the NodeSlices as the Nodes are, while this replica leads. It follows all Nodes and hears their
// heartbeats, so that the nodes need not.
//
//	Nodes (list, then watch) ──┐
//	BGPPeer, BGPClusterConfig, ├──> pack, sliceWrites ──> NodeSlices, each with the version that was read
//	NetworkPool, their labels ─┘
//
// Another replica that also writes makes a write fail (409): the session ends, and the next one reads everything.
type publisher struct {
	client kubernetes.Interface
	log    *slog.Logger
	settle time.Duration // before a round of writes: a new Node has its pod CIDR some milliseconds later
	space  time.Duration // between two rounds of writes, so that bursts are written together
	retry  time.Duration // after an error, at first
	absent time.Duration // after several errors, and while the API server does not have a kind
	every  time.Duration // between two beats

	mu    sync.Mutex
	nodes map[string]cluster.SlicedNode // with all labels
	said  map[string]said               // resources, by kind
	wake  chan struct{}                 // one slot
}

func newPublisher(c kubernetes.Interface, log *slog.Logger) *publisher {
	return &publisher{client: c, log: log, settle: 50 * time.Millisecond, space: 200 * time.Millisecond, retry: time.Second, absent: time.Minute, every: cluster.SliceBeat, wake: make(chan struct{}, 1)}
}

// said are the resources of a kind.
type said struct {
	cluster.World
	all         []cluster.SlicedResource // also those that are not valid: each node says so
	generations map[string]int64         // by name; a status has none
}

// errNoSlices says that the API server has no NodeSlices, or that the controller may not write them.
var errNoSlices = errors.New("the API server has no NodeSlices, or does not allow them")

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	last, wait := "", p.retry
	for ctx.Err() == nil {
		start := time.Now()
		err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); text != last {
			last = text
			p.log.Warn("publish NodeSlices", "err", err, "next", "nodes read Nodes meanwhile; the controller tries again by itself")
		}
		if time.Since(start) > p.absent {
			wait = p.retry
		}
		pause(ctx, wait) // an API server that has just started refuses what its caches do not know yet
		wait = min(2*wait, p.absent)
	}
}

// session reads everything, and publishes changes until an error.
func (p *publisher) session(ctx context.Context) error {
	have, err := p.slices(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.nodes, p.said = map[string]cluster.SlicedNode{}, map[string]said{}
	p.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel(nil)
	follow := func(f func(context.Context) error) {
		following.Go(func() { cancel(f(ctx)) })
	}
	version, err := p.list(ctx)
	if err != nil {
		return err
	}
	kinds := cluster.SharedKinds()
	versions := map[string]string{}
	for _, kind := range kinds {
		if versions[kind], err = p.read(ctx, kind); err != nil {
			return err
		}
	}
	follow(func(ctx context.Context) error { return p.followNodes(ctx, version) })
	for _, kind := range kinds {
		follow(func(ctx context.Context) error { return p.followResources(ctx, kind, versions[kind]) })
	}
	beat := time.NewTimer(0)
	defer beat.Stop()
	for {
		if have, err = p.publish(ctx, have); err != nil {
			return err
		}
		written := time.Now()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.wake:
			pause(ctx, max(p.settle, p.space-time.Since(written)))
		case <-beat.C:
			if have, err = p.beat(ctx); err != nil {
				return err
			}
			beat.Reset(p.every)
		}
	}
}

// beat reads the NodeSlices again, repairs them, and then says that they are right: somebody may have edited or deleted
// one, and an etcd that was restored has older ones.
func (p *publisher) beat(ctx context.Context) ([]cluster.NodeSlice, error) {
	have, err := p.slices(ctx)
	if err == nil {
		have, err = p.publish(ctx, have)
	}
	if err != nil {
		return nil, err
	}
	alive := cluster.SliceSpec{PublishedAt: time.Now().UTC().Format(time.RFC3339)}
	return p.write(ctx, have, sliceWrite{NodeSlice: with(slot(have, cluster.SliceAlive), alive)})
}

// publish writes what differs from have, and returns what the API server then has.
func (p *publisher) publish(ctx context.Context, have []cluster.NodeSlice) ([]cluster.NodeSlice, error) {
	start := time.Now()
	p.mu.Lock()
	var all said
	for _, kind := range cluster.SharedKinds() {
		of, known := p.said[kind]
		if !known { // the kind is not installed: nobody deleted what there was
			of.all = resourcesOf(have, kind)
		}
		all.Peerings, all.Pools, all.all = append(all.Peerings, of.Peerings...), append(all.Pools, of.Pools...), append(all.all, of.all...)
	}
	keys, nodes := all.NodeKeys(), make(map[string]cluster.SlicedNode, len(p.nodes))
	for name, n := range p.nodes {
		nodes[name] = n.Only(keys)
	}
	p.mu.Unlock()
	writes := sliceWrites(have, append(pack(have, nodes), packResources(have, all.all)...), keys)
	var err error
	for _, w := range writes {
		if have, err = p.write(ctx, have, w); err != nil {
			return nil, err
		}
	}
	if len(writes) > 0 {
		p.log.Info("NodeSlices published", "nodes", len(nodes), "writes", len(writes), "took", time.Since(start))
	}
	return have, nil
}

// slot returns the slice of that name, or a new one.
func slot(have []cluster.NodeSlice, name string) cluster.NodeSlice {
	for _, s := range have {
		if s.Metadata.Name == name {
			return s
		}
	}
	return cluster.NewNodeSlice(name, cluster.SliceSpec{})
}

// rest is the client of the kinds that client-go has no types for.
func (p *publisher) rest() rest.Interface { return p.client.CoreV1().RESTClient() }

// write sends one write. The API server refuses it when the slice has another version than the one that was read.
func (p *publisher) write(ctx context.Context, have []cluster.NodeSlice, w sliceWrite) ([]cluster.NodeSlice, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := w.Metadata.Name
	text, err := json.Marshal(w.NodeSlice)
	if err != nil {
		return nil, fmt.Errorf("write NodeSlice %s: %w", name, err)
	}
	path := "/" + cluster.SlicePath()
	var q *rest.Request
	switch {
	case w.gone:
		q = p.rest().Delete().AbsPath(path, name)
	case w.Metadata.ResourceVersion == "":
		q = p.rest().Post().AbsPath(path).Body(text).Param("fieldManager", FieldManager)
	default:
		q = p.rest().Put().AbsPath(path, name).Body(text).Param("fieldManager", FieldManager)
	}
	body, err := q.SetHeader("Accept", "application/json").SetHeader("Content-Type", "application/json").DoRaw(ctx)
	out := slices.DeleteFunc(slices.Clone(have), func(s cluster.NodeSlice) bool { return s.Metadata.Name == name })
	switch {
	case w.gone && (err == nil || apierrors.IsNotFound(err)):
		return out, nil
	case err != nil:
		return nil, fmt.Errorf("write NodeSlice %s: %w", name, err)
	}
	var stored cluster.NodeSlice
	if err := json.Unmarshal(body, &stored); err != nil || stored.Metadata.ResourceVersion == "" {
		return nil, fmt.Errorf("write NodeSlice %s: an answer without resourceVersion (%v); check what answers for the API server", name, err)
	}
	return append(out, stored), nil
}

// slices lists the NodeSlices.
func (p *publisher) slices(ctx context.Context) ([]cluster.NodeSlice, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	text, err := p.rest().Get().AbsPath("/"+cluster.SlicePath()).SetHeader("Accept", "application/json").DoRaw(ctx)
	if code := codeOf(err); code == http.StatusNotFound || code == http.StatusForbidden {
		return nil, fmt.Errorf("%w: %w; apply deploy/kubernetes/crds and the ClusterRole edgeway-controller of this version", errNoSlices, err)
	}
	if err != nil {
		return nil, fmt.Errorf("list NodeSlices: %w", err)
	}
	var list struct{ Items []cluster.NodeSlice }
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("list NodeSlices: %w", err)
	}
	return list.Items, nil
}

// sliced returns the fields of a Node that nodes use, with all its labels.
func sliced(o *corev1.Node) cluster.SlicedNode {
	n := cluster.SlicedNode{Name: o.Name, Labels: o.Labels, Annotations: cluster.FlannelAnnotations(o.Annotations), PodCIDRs: o.Spec.PodCIDRs}
	if len(n.PodCIDRs) == 0 && o.Spec.PodCIDR != "" {
		n.PodCIDRs = []string{o.Spec.PodCIDR}
	}
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			n.Addresses = append(n.Addresses, a.Address)
		}
	}
	return n
}

// list reads all Nodes as they are at one moment, and returns the version of that moment.
func (p *publisher) list(ctx context.Context) (string, error) {
	options, nodes := metav1.ListOptions{Limit: pageSize}, map[string]cluster.SlicedNode{}
	for {
		page, err := nodePage(ctx, p.client, options)
		if err != nil {
			return "", err
		}
		for i := range page.Items {
			nodes[page.Items[i].Name] = sliced(&page.Items[i])
		}
		if options.Continue = page.Continue; page.Continue == "" {
			p.mu.Lock()
			p.nodes = nodes
			p.mu.Unlock()
			return page.ResourceVersion, nil
		}
	}
}

// followNodes follows the Nodes from a version on, until an error. When a watch has ended, it lists them all again: etcd may
// have been restored from a backup meanwhile, and a watch from a version of the lost history hears nothing of what the
// backup undid. The API server itself ends a watch only after half an hour to an hour.
func (p *publisher) followNodes(ctx context.Context, version string) error {
	for {
		if err := p.watch(ctx, version); err != nil {
			return err
		}
		pause(ctx, p.retry)
		var err error
		if version, err = p.list(ctx); err != nil {
			return err
		}
		p.look()
	}
}

// watch notes what changes in the Nodes from a version on, until the watch ends.
func (p *publisher) watch(ctx context.Context, version string) error {
	w, err := p.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true})
	if err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		n, ok := event.Object.(*corev1.Node)
		if !ok {
			return fmt.Errorf("watch Nodes: %w", apierrors.FromObject(event.Object))
		}
		p.heard(event.Type == "DELETED", event.Type == "BOOKMARK", sliced(n))
	}
	return ctx.Err()
}

// heard notes a Node, and wakes the publisher where it changed.
func (p *publisher) heard(gone, bookmark bool, n cluster.SlicedNode) {
	p.mu.Lock()
	was, there := p.nodes[n.Name]
	changed := !bookmark && (gone && there || !gone && (!there || !was.Equal(n)))
	if changed {
		if delete(p.nodes, n.Name); !gone {
			p.nodes[n.Name] = n
		}
	}
	p.mu.Unlock()
	if changed {
		p.look()
	}
}

func (p *publisher) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// read lists the resources of a kind, and returns the version of the list, which is "" where the API server does not
// have the kind. A resource that is not valid does not count: nodes that still use its last valid version read Nodes
// where they miss a label.
func (p *publisher) read(ctx context.Context, kind string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	text, err := p.rest().Get().AbsPath("/"+cluster.Path(kind)).SetHeader("Accept", "application/json").DoRaw(ctx)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list %ss: %w", kind, err)
	}
	var list struct {
		Metadata metav1.ListMeta
		Items    []json.RawMessage
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", fmt.Errorf("list %ss: %w", kind, err)
	}
	now := said{generations: map[string]int64{}}
	if len(list.Items) > 0 {
		if now.World, err = cluster.ParseManifest(kind+".json", text); err != nil {
			return "", fmt.Errorf("list %ss: %w", kind, err)
		}
	}
	for _, text := range list.Items {
		var o struct {
			Metadata metav1.ObjectMeta
			Spec     json.RawMessage
		}
		if err := json.Unmarshal(text, &o); err != nil {
			return "", fmt.Errorf("list %ss: %w", kind, err)
		}
		now.generations[o.Metadata.Name] = o.Metadata.Generation
		now.all = append(now.all, cluster.SlicedResource{Kind: kind, Name: o.Metadata.Name, Spec: o.Spec})
	}
	p.mu.Lock()
	p.said[kind] = now
	p.mu.Unlock()
	p.look()
	return list.Metadata.ResourceVersion, nil
}

// followResources reads the resources of a kind again whenever one of them has changed.
func (p *publisher) followResources(ctx context.Context, kind, version string) error {
	for ctx.Err() == nil {
		if version == "" {
			pause(ctx, p.absent)
		} else if !p.changed(ctx, kind, version) {
			pause(ctx, p.space)
		}
		var err error
		if version, err = p.read(ctx, kind); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// changed waits until a resource of the kind comes, goes or has another generation than the one that was read. It
// returns false when the watch ended before.
func (p *publisher) changed(ctx context.Context, kind, version string) bool {
	p.mu.Lock()
	generations := p.said[kind].generations
	p.mu.Unlock()
	stream, err := p.rest().Get().AbsPath("/"+cluster.Path(kind)).SetHeader("Accept", "application/json").
		Param("watch", "true").Param("resourceVersion", version).Stream(ctx)
	if err != nil {
		return false
	}
	defer stream.Close()
	for d := json.NewDecoder(stream); ; {
		var event struct {
			Type   string
			Object struct{ Metadata metav1.ObjectMeta }
		}
		if err := d.Decode(&event); err != nil {
			return false
		}
		if meta := event.Object.Metadata; event.Type != "MODIFIED" || generations[meta.Name] != meta.Generation {
			return true
		}
	}
}
