package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/routes"
)

// node is what serves pods: the open store, and the verbs on it.
type node struct {
	store *ipam.Store
	verbs *plugin.Node
	busy  sync.RWMutex // held for reading by each verb, so that close waits for them
}

// close closes the store when no verb runs any more.
func (n *node) close() error {
	n.busy.Lock()
	defer n.busy.Unlock()
	return errors.Join(n.verbs.Close(), n.store.Close())
}

// copied makes a last copy of the store, from which a damaged one is rebuilt.
func (n *node) copied() error {
	if n.store.Damage() != nil {
		return nil // the next start rebuilds it
	}
	ctx, cancel := context.WithTimeout(context.Background(), backupTimeout)
	defer cancel()
	return n.store.Backup(ctx)
}

// openNode opens the store, reads it through once, and removes what a crash left behind.
func openNode(ctx context.Context, stateDir string) (*node, []string, error) {
	open := func() (*ipam.Store, error) {
		return plugin.OpenStore(ctx, filepath.Join(stateDir, plugin.StoreFile), storeWait)
	}
	store, err := open()
	if err != nil {
		return nil, nil, err
	}
	if err := store.Check(); err != nil {
		// Opened again, it is rebuilt.
		if err := errors.Join(err, store.Close()); !errors.Is(err, ipam.ErrDamaged) {
			return nil, nil, err
		}
		if store, err = open(); err != nil {
			return nil, nil, err
		}
	}
	verbs, err := plugin.NewNode(store)
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	n := &node{store: store, verbs: verbs}
	swept, err := verbs.Sweep(ctx)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("sweep: %w", err), n.close())
	}
	return n, swept, nil
}

// pods makes this machine ready to start pods: the store open, the pool set, and then the
// network configuration where the runtime finds it.
func (d *Daemon) pods(ctx context.Context, w World, state routes.State) ([]cluster.Problem, error) {
	defer d.tried.lift()
	n := d.node.Load()
	if n != nil && n.store.Damage() != nil {
		d.options.Log.Warn("store is damaged and opened anew", "err", n.store.Damage())
		d.node.Store(nil)
		if err := n.close(); err != nil {
			return nil, err
		}
		n = nil
	}
	if n == nil {
		opened, swept, err := openNode(ctx, d.config.StateDir)
		if err != nil {
			return nil, fmt.Errorf("%w; pods that run go on, new ones wait", err)
		}
		d.swept(swept)
		if r, ok := opened.store.Rebuilt(); ok {
			d.options.Log.Warn("store was damaged and is rebuilt", "err", r.Cause, "kept", r.Kept, "copied", r.Copied, "found", r.Found, "ended", r.Ended)
		}
		d.node.Store(opened)
		n = opened
	}
	pool, ok := podPool(w)
	if !ok {
		return nil, nil // desired said why
	}
	have, _, err := n.store.Pool()
	if err != nil {
		return nil, err
	}
	if !samePool(have, pool) {
		if err := n.store.SetPool(ctx, pool); err != nil {
			return nil, fmt.Errorf("set pool: %w", err)
		}
		d.options.Log.Info("pool set", "ranges", pool.Sets)
	}
	tunnel := 0
	for _, l := range state.Links {
		tunnel = l.MTU
	}
	problems, err := writeConflist(w.Config, podMTU(w, tunnel))
	return append(problems, n.rebuilt()...), err
}

// backupEvery is the time between two copies of the store, from which it is rebuilt when its file
// is damaged: what a copy does not know, the node's links tell.
const backupEvery = 10 * time.Minute

const (
	// backupTimeout bounds the last copy: whoever stops the daemon waits for it.
	backupTimeout = 5 * time.Second
	// storeWait bounds the wait for plugins that work on the store without the daemon.
	storeWait = 5 * time.Second
)

// backup copies the store now and then until ctx ends.
func (d *Daemon) backup(ctx context.Context) error {
	for pause(ctx, backupEvery) {
		if n := d.node.Load(); n != nil {
			if err := n.store.Backup(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepEvery is the time between two searches for what no DEL will ever remove: containerd calls
// neither GC nor, for a pod that died with its namespace, always DEL.
const sweepEvery = 5 * time.Minute

// sweep ends attachments that are gone, now and then until ctx ends. What lives is told by the
// node's links and namespaces alone.
func (d *Daemon) sweep(ctx context.Context) error {
	for pause(ctx, sweepEvery) {
		n := d.node.Load()
		if n == nil {
			continue
		}
		n.busy.RLock()
		swept, err := n.verbs.Sweep(ctx)
		n.busy.RUnlock()
		d.swept(swept)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) swept(what []string) {
	for _, w := range what {
		d.options.Log.Info("swept", "what", w)
	}
}

// rebuilt is the problem of a store that had to be rebuilt, until the daemon starts anew.
func (n *node) rebuilt() []cluster.Problem {
	r, ok := n.store.Rebuilt()
	if !ok {
		return nil
	}
	return []cluster.Problem{{Object: "store", Reason: "storeRebuilt", Want: "a file as it was written", Got: fmt.Sprint(r.Cause),
		Next: fmt.Sprintf("look after the disk; the leases were made anew from the last copy (%d), and from the node's links (%d); the old file is %s", r.Copied, r.Found, r.Kept)}}
}

// full is the problem of a pool that has no address for another pod. Pods that run are not touched:
// STATUS succeeds.
func (n *node) full(ctx context.Context) []cluster.Problem {
	full, err := n.verbs.Full(ctx)
	if err != nil || full == "" {
		return nil // leaseStatus says why the store cannot be read
	}
	return []cluster.Problem{{Object: "pool", Reason: "poolFull", Want: "an address for the next pod", Got: full,
		Next: "delete pods of this node, or give the node a larger pod CIDR; new pods wait until then"}}
}

// podPool is the pool of this node: one address of each of its pod CIDRs for each pod. The host's
// own addresses, such as the gateway of the bridge that served before, are no pod's.
func podPool(w World) (ipam.Pool, bool) {
	self, ok := w.Cluster.Node(w.Self)
	if !ok || len(self.PodCIDRs) == 0 {
		return ipam.Pool{}, false
	}
	var pool ipam.Pool
	for _, c := range self.PodCIDRs {
		pool.Sets = append(pool.Sets, ipam.RangeSet{{Subnet: c}})
		for _, a := range w.Host.Addrs {
			if host := a.Prefix.Addr(); c.Contains(host) {
				pool.Reserved = append(pool.Reserved, netip.PrefixFrom(host, host.BitLen()))
			}
		}
	}
	slices.SortFunc(pool.Reserved, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	pool.Reserved = slices.Compact(pool.Reserved)
	return pool, true
}

func samePool(a, b ipam.Pool) bool {
	return slices.EqualFunc(a.Sets, b.Sets, func(x, y ipam.RangeSet) bool { return slices.Equal(x, y) }) && slices.Equal(a.Reserved, b.Reserved)
}

// openPatience is how long after its start the daemon lets verbs wait for the store. To open it takes
// a moment, behind a first look at machine and cluster; runtimes wait minutes for a verb.
const openPatience = 10 * time.Second

// gate holds back until it is opened. The zero gate is not ready: see newGate.
type gate struct {
	once *sync.Once
	open chan struct{}
}

func newGate() gate { return gate{&sync.Once{}, make(chan struct{})} }

// lift opens the gate for good.
func (g gate) lift() { g.once.Do(func() { close(g.open) }) }

// opened is the node once the daemon has tried to open its store; nil when that did not work, or not
// in time.
func (d *Daemon) opened(ctx context.Context) *node {
	ctx, cancel := context.WithDeadline(ctx, d.started.Add(openPatience))
	defer cancel()
	select {
	case <-d.tried.open:
	case <-ctx.Done():
	}
	return d.node.Load()
}

// cni runs one verb of the plugin, as the plugin itself would without a daemon.
func (d *Daemon) cni(ctx context.Context, req api.Request, netns *os.File) api.Reply {
	if req.CNI == nil {
		return api.Reply{Failed: true, Error: "request cni: it names no verb"}
	}
	begin := time.Now()
	verbs := &plugin.Node{} // without a store it asks the runtime to try again later
	if n := d.opened(ctx); n != nil {
		n.busy.RLock()
		defer n.busy.RUnlock()
		if d.node.Load() == n { // not closed meanwhile
			verbs = n.verbs
		}
	}
	reply := verbs.Do(ctx, plugin.Call{CNI: *req.CNI, NetnsFile: netns})
	took := time.Since(begin)
	d.metrics.observe(req.CNI.Command, reply.Failed, took)
	if reply.Failed {
		d.options.Log.Warn("cni "+req.CNI.Command, "attachment", req.CNI.ContainerID+"/"+req.CNI.IfName, "took", took, "err", string(reply.Output))
	} else {
		d.options.Log.Info("cni "+req.CNI.Command, "attachment", req.CNI.ContainerID+"/"+req.CNI.IfName, "took", took)
	}
	return reply
}
