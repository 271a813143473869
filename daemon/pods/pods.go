// Package pods serves the pods of one node, in the daemon's process.
//
// It owns the open store of leases, the plugin's verbs on the store, the answers to operators about leases,
// the network configuration (conflist) that tells the container runtime about the plugin, and the node's canary
// pod. It never decides the pods' addresses or MTU: the [policy.Plan] holds both.
//
//	p := pods.New(config, log)
//	problems, err := p.Sync(ctx, plan)       // store open, pool set, conflist written
//	reply := p.CNI(ctx, request, netns)      // ADD, DEL, CHECK, GC, STATUS
package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
)

const (
	// openPatience is how long after its start the daemon lets verbs wait for the store. The store opens
	// after a first look at the machine and the cluster, which takes a moment. Runtimes wait minutes for a
	// verb.
	openPatience = 10 * time.Second
	// backupTimeout bounds the last copy of the store, which delays the end of the daemon.
	backupTimeout = 5 * time.Second
)

// Pods serves this node's pods.
type Pods struct {
	config config.Config
	log    *slog.Logger
	begun  time.Time
	// Served, when set, is called after each CNI verb.
	Served func(verb string, failed bool, took time.Duration)

	leases atomic.Pointer[leases]           // nil while the store is not open
	tried  chan struct{}                    // closed when Sync has tried to open the store
	mtu    atomic.Int64                     // of new pods, in bytes; 0: not known yet
	lift   func()                           // closes tried, once
	broken atomic.Pointer[[]plugin.Finding] // what Keep's last look could not repair; nil before the first
	again  chan struct{}                    // one slot: a broken pod may have been repaired or ended

	canary     atomic.Pointer[Canary] // nil: there is none
	canaryBusy sync.Mutex             // held to make or end the canary
}

// New returns the Pods of a daemon that starts now. The first Sync opens the store.
func New(c config.Config, log *slog.Logger) *Pods {
	p := &Pods{config: c, log: log, begun: time.Now(), tried: make(chan struct{}), again: make(chan struct{}, 1)}
	p.lift = sync.OnceFunc(func() { close(p.tried) })
	return p
}

// Sync makes this machine ready to start pods: it opens the store, sets the pool, and then writes the network
// configuration where the runtime finds it.
func (p *Pods) Sync(ctx context.Context, plan policy.Plan) ([]cluster.Problem, error) {
	defer p.lift()
	n, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	n.verbs.SetProxies(plan.Routes.Proxies)
	if len(plan.Pool.Sets) == 0 {
		return nil, nil // the plan says why there is no pool
	}
	have, _, err := n.store.Pool()
	if err != nil {
		return nil, err
	}
	if !samePool(have, plan.Pool) {
		if err := n.store.SetPool(ctx, plan.Pool); err != nil {
			return nil, fmt.Errorf("set pool: %w", err)
		}
		p.log.Info("pool set", "ranges", plan.Pool.Sets)
	}
	p.mtu.Store(int64(plan.MTU))
	problems, err := writeConflist(p.config, plan.MTU, p.log)
	return slices.Concat(problems, n.rebuilt(), p.keepCanary(ctx, n, plan)), err
}

func samePool(a, b ipam.Pool) bool {
	return slices.EqualFunc(a.Sets, b.Sets, func(x, y ipam.RangeSet) bool { return slices.Equal(x, y) }) && slices.Equal(a.Reserved, b.Reserved)
}

// open returns the open store. If the store is damaged, open closes and opens it again, which rebuilds it.
func (p *Pods) open(ctx context.Context) (*leases, error) {
	n := p.leases.Load()
	if n != nil && n.store.Damage() != nil {
		p.log.Warn("store is damaged; opening it again", "err", n.store.Damage())
		p.leases.Store(nil)
		if err := n.close(); err != nil {
			return nil, err
		}
		n = nil
	}
	if n != nil {
		return n, nil
	}
	n, swept, err := openLeases(ctx, p.config.StateDir)
	if err != nil {
		return nil, fmt.Errorf("%w; running pods are not touched, new pods wait", err)
	}
	p.swept(swept)
	if r, ok := n.store.Rebuilt(); ok {
		p.log.Warn("store was damaged and is rebuilt", "err", r.Cause, "kept", r.Kept, "copied", r.Copied, "found", r.Found, "ended", r.Ended)
	}
	p.leases.Store(n)
	return n, nil
}

// GiveUp says that the store will not be opened: verbs that wait for it are answered.
func (p *Pods) GiveUp() { p.lift() }

// Close makes a last copy of the store and closes it. No call of Sync may follow.
func (p *Pods) Close() error {
	n := p.leases.Load()
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), backupTimeout)
	defer cancel()
	return errors.Join(p.leaveCanary(ctx, n), n.copied(), n.close())
}

// Backup copies the store. A damaged store is rebuilt from the copy and from the node's links.
func (p *Pods) Backup(ctx context.Context) error {
	n := p.leases.Load()
	if n == nil {
		return nil
	}
	return n.store.Backup(ctx)
}

// Sweep removes the attachments of pods that are gone without a DEL: containerd does not call GC, and does
// not always call DEL for a pod that died with its namespace. Only the node's links and namespaces say which
// pods live.
func (p *Pods) Sweep(ctx context.Context) error {
	n := p.leases.Load()
	if n == nil {
		return nil
	}
	n.busy.RLock()
	defer n.busy.RUnlock()
	swept, err := n.verbs.Sweep(ctx)
	p.swept(swept)
	return err
}

func (p *Pods) swept(what []string) {
	for _, w := range what {
		p.log.Info("swept", "what", w)
	}
}

// Status counts the leases, and returns the problems of the store and the pool.
func (p *Pods) Status(ctx context.Context) (api.Leases, []cluster.Problem) {
	n := p.leases.Load()
	if n == nil {
		return api.Leases{}, nil
	}
	l, err := n.usage()
	if err != nil {
		return l, []cluster.Problem{{Object: "store", Reason: cluster.StoreUnreadable, Got: err.Error(), Next: "see the log"}}
	}
	mtu := int(p.mtu.Load())
	l.OtherMTU = n.otherMTU(ctx, mtu)
	problems := slices.Concat(n.addressTaken(ctx), p.unkept(), adviseMTU(l.OtherMTU, mtu), diskFull(p.config.StateDir))
	if l.Free == 0 {
		problems = append(n.full(ctx), problems...)
	}
	return l, problems
}

// CNI runs one verb of the plugin, as the plugin does without a daemon.
func (p *Pods) CNI(ctx context.Context, req api.Request, netns *os.File) api.Reply {
	if req.CNI == nil {
		return api.Reply{Failed: true, Error: "request cni: it names no verb"}
	}
	begin := time.Now()
	verbs := &plugin.Node{} // without a store, it asks the runtime to try again later
	n := p.opened(ctx)
	if n != nil {
		n.busy.RLock()
		defer n.busy.RUnlock()
		if p.leases.Load() == n { // not closed meanwhile
			verbs = n.verbs
		}
	}
	reply := verbs.Do(ctx, plugin.Call{CNI: *req.CNI, NetnsFile: netns})
	if reply.Failed && req.CNI.Command == "ADD" && p.giveWay(ctx, n, reply) {
		reply = verbs.Do(ctx, plugin.Call{CNI: *req.CNI, NetnsFile: netns})
	}
	if reply.Error != "" {
		return reply // the caller finds another way
	}
	p.lookAgain()
	took := time.Since(begin)
	if p.Served != nil {
		p.Served(req.CNI.Command, reply.Failed, took)
	}
	log := p.log.With("attachment", req.CNI.ContainerID+"/"+req.CNI.IfName, "took", took)
	if reply.Failed {
		log.Warn("cni "+req.CNI.Command, "err", string(reply.Output))
	} else {
		log.Info("cni " + req.CNI.Command)
	}
	return reply
}

// opened waits until Sync has tried to open the store. It returns nil when the store did not open, or did not
// open in time.
func (p *Pods) opened(ctx context.Context) *leases {
	ctx, cancel := context.WithDeadline(ctx, p.begun.Add(openPatience))
	defer cancel()
	select {
	case <-p.tried:
	case <-ctx.Done():
	}
	return p.leases.Load()
}
