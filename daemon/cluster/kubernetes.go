package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// ErrNotRead is wrapped by the error of World while the API server has not answered yet and still may: there
// is nothing to report.
var ErrNotRead = errors.New("not read yet")

// kubernetes is an API server.
//
//	     kubeconfig, its files
//	             │ connect, anew when they change
//	             v
//	┌── feed NodeSlice         ──┐
//	├── or feed Node           ──┤
//	├── or feed BGPPeer        ──┤ items   merge with last
//	├── or BGPClusterConfig    ──┤
//	├── or NetworkPool         ──┤
//	├── feed EdgeNode/self     ──┼─────────────────────────> World
//	└── feed Secret/name, ...  ──┘                             │
//	         ^     those that the World's resources name       │
//	         └─────────────────────────────────────────────────┘
type kubernetes struct {
	options  KubernetesOptions
	patience patience
	clock    func() time.Time
	connect  func() (*Connection, error)
	named    chan struct{} // one slot: World names other Secrets than before

	mu      sync.Mutex
	server  string           // that the feeds connect to; "": none yet
	used    *Connection      // the last that the feeds used; nil: none yet
	fault   error            // why there is no connection, or why the present files give none
	started time.Time        // when the first attempt began
	feeds   map[string]*feed // by ref
	given   bool             // World has returned one
	changed func()
	silent  bool          // the last attempt did not reach the server
	back    chan struct{} // closed when the server is reached again
	resume  time.Time     // when a feed next asks a server that all feeds lost
	size    int           // number of nodes of the cluster
	// labelKeys are the keys of the labels and annotations that matter to this node, sorted.
	labelKeys  []string
	wrongSince time.Time // since when the NodeSlices do not count; zero: they count
}

// Kubernetes is the source that asks an API server, through any URL that a kubeconfig can name, such as that
// of OpenYurt's yurthub on this node. It asks nothing before Watch runs.
//
// A kind counts once all of it has been read. Until then, and whenever the server is away, the last known
// state counts. Secrets are read one by one, and only those that hold a password for a session of this node, or
// that the options name.
func Kubernetes(o KubernetesOptions) Source { return newKubernetes(o, defaultPatience) }

func newKubernetes(o KubernetesOptions, p patience) *kubernetes {
	k := &kubernetes{options: o, patience: p, clock: time.Now, named: make(chan struct{}, 1),
		feeds: map[string]*feed{}, changed: func() {}, back: make(chan struct{})}
	k.connect = func() (*Connection, error) { return connectWith(o, p) }
	own := &feed{kind: kind{APIVersion(kindEdgeNode), kindEdgeNode}, name: o.Node} // the others are of no use here
	k.feeds[own.ref()] = own
	k.feeds[kindSlice.kind] = &feed{kind: kindSlice} // Nodes and resources only where these do not count
	return k
}

// Watch reads the API server until ctx ends. It calls changed when it read something that counts, or when a
// Problem came or went. The status that kubelets write every few minutes does not count.
func (k *kubernetes) Watch(ctx context.Context, changed func()) error {
	k.mu.Lock()
	k.changed = changed
	if k.started.IsZero() {
		k.started = k.clock()
	}
	k.mu.Unlock()
	for ctx.Err() == nil {
		c, err := k.connect()
		k.connected(c, err)
		if err == nil {
			k.serve(ctx, c)
			c.Close()
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(k.patience.files):
		}
	}
	return nil
}

// serve runs all feeds over one connection, until ctx ends or the files give a new connection.
func (k *kubernetes) serve(ctx context.Context, c *Connection) {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	k.mu.Lock()
	k.resume = time.Time{} // the feeds of the last connection are gone
	k.mu.Unlock()
	running := map[*feed]context.CancelFunc{}
	files := time.NewTicker(k.patience.files)
	defer files.Stop()
	for {
		k.run(ctx, c, running, &wait)
		select {
		case <-ctx.Done():
			return
		case <-k.named:
		case <-files.C:
			k.update(k.reviewed)
			if !c.Stale() {
				k.connected(c, nil) // also after the files were different for a while
				continue
			}
			next, err := k.connect()
			if err == nil {
				next.Close()
				return
			}
			k.connected(nil, err) // the old connection stays in use
		}
	}
}

// run starts the wanted feeds that do not run, and stops the feeds that are no longer wanted.
func (k *kubernetes) run(ctx context.Context, c *Connection, running map[*feed]context.CancelFunc, wait *sync.WaitGroup) {
	wanted := k.wanted()
	for f, stop := range running {
		if !slices.Contains(wanted, f) {
			stop()
			delete(running, f)
		}
	}
	for _, f := range wanted {
		if running[f] == nil {
			ctx, stop := context.WithCancel(ctx)
			running[f] = stop
			wait.Go(func() { k.follow(ctx, c, f) })
		}
	}
}

// World returns the known state. It sends no request.
func (k *kubernetes) World(_ context.Context, last World) (World, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.size = len(last.Nodes)
	k.review()
	if err := k.unread(last); err != nil {
		return last, err
	}
	var said []manifest
	for _, kind := range SharedKinds() {
		said = append(said, k.says(kind))
	}
	resources := merge(slices.Clone(said), last)
	k.need(append(resources.passwords(k.options.Node), k.options.Secrets...))
	k.labelKeys = k.keysOf(resources)
	k.review()
	if err := k.unread(last); err != nil {
		return last, err
	}
	if k.given && k.awaits() {
		return last, nil
	}
	k.given = true
	nodes, known := k.nodes()
	said = append(said, nodes)
	for about, f := range k.feeds {
		if f.name != "" {
			said = append(said, k.says(about))
		}
	}
	w := merge(said, last, k.options.Secrets...)
	if !known && !covers(k.keysOf(last), k.labelKeys) {
		w = last // a resource selects by a label that the last known Nodes were not asked for
		w.Problems = nil
	}
	w = w.onlyKeys(k.labelKeys)
	if len(w.Nodes) == 0 && len(last.Nodes) > 0 {
		w = last
		w.Problems = []Problem{k.emptied()}
	}
	w.Problems = append(w.Problems, k.problems(last)...)
	sortProblems(w.Problems)
	w.Source = "API server " + k.server
	if k.sliceState(k.labelKeys) == slicesCount {
		w.Source += " (NodeSlices)"
	}
	if k.used != nil {
		w.Ahead = time.Duration(k.used.ahead.Load())
	}
	w.ReadAt = k.confirmed(last.ReadAt)
	w.FromDisk = last.FromDisk && !known
	return w, nil
}

// keysOf returns the keys of the labels and annotations that matter to this node where the resources are those of w.
func (k *kubernetes) keysOf(w World) []string {
	keys := append(w.NodeKeys(), k.options.LabelKeys...)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// unread returns why there is no World yet; k.mu is held. At the start a World is held back for a moment,
// until each feed has had an answer: Nodes without the BGP resources are another network. A World without any
// Node does not count.
func (k *kubernetes) unread(last World) error {
	if k.given {
		return nil
	}
	if k.fault != nil {
		return k.fault
	}
	var failure error
	pending, synced := false, false
	for _, ref := range slices.Sorted(maps.Keys(k.feeds)) {
		f := k.feeds[ref]
		pending = pending || !f.asked
		if f.kind == kindSlice {
			continue // else the Nodes are read
		}
		synced = synced || f.synced
		if failure == nil {
			failure = f.failure
		}
	}
	if _, known := k.nodes(); known {
		synced = true
	} else if len(last.Nodes) == 0 {
		nodes := k.feeds[kindNode]
		if nodes == nil {
			nodes = k.feeds[kindSlice.kind]
		}
		synced, failure = false, nodes.failure
	}
	switch {
	case pending && k.clock().Sub(k.started) < k.patience.first, failure == nil && !synced:
		return fmt.Errorf("API server %s: %w", k.server, ErrNotRead)
	case !synced:
		return fmt.Errorf("API server %s: %w; %s", k.server, failure, k.remedy(failure))
	}
	return nil
}

// passwords returns the names of the Secrets that hold passwords for the node's sessions.
func (w World) passwords(node string) []string {
	var names []string
	for _, p := range w.Peerings {
		p.Speakers = slices.DeleteFunc(slices.Clone(p.Speakers), func(s Speaker) bool { return s.Node != node })
		names = append(names, p.secretNames()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// need keeps one feed for each of the named Secrets, and no other Secret feed; k.mu is held.
func (k *kubernetes) need(secrets []string) {
	news := false
	for ref, f := range k.feeds {
		if f.kind.kind == kindSecret && !slices.Contains(secrets, f.name) {
			delete(k.feeds, ref)
			news = true
		}
	}
	for _, name := range secrets {
		f := &feed{kind: kind{APIVersion(kindSecret), kindSecret}, name: name, created: k.clock()}
		if k.feeds[f.ref()] == nil {
			k.feeds[f.ref()] = f
			news = true
		}
	}
	if news {
		k.rename()
	}
}

// awaits reports whether a Secret was requested just now; k.mu is held. The resource that names the Secret
// counts once the Secret was answered: until then its sessions would have no password, and end.
func (k *kubernetes) awaits() bool {
	for _, f := range k.feeds {
		if !f.asked && f.kind.kind == kindSecret && k.clock().Sub(f.created) < k.patience.first {
			return true
		}
	}
	return false
}

// says returns what the server has said of a kind of resource, or of an object; k.mu is held. The slices count first: both
// say the same. An object that the server did not mention is not known to be gone.
func (k *kubernetes) says(about string) manifest {
	if slices.Contains(SharedKinds(), about) && k.carried() {
		return k.slicesSay(about)
	}
	return k.feedSays(about)
}

// feedSays returns what a feed has read; k.mu is held.
func (k *kubernetes) feedSays(about string) manifest {
	f := k.feeds[about]
	m := manifest{about: about, broken: f == nil || !f.synced}
	if f != nil {
		for _, t := range f.items {
			m.statements = append(m.statements, t.statement)
		}
	}
	return m
}
