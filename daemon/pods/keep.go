package pods

import (
	"context"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/plugin"
)

const (
	// keepEvery is the time between two looks at both ends of every pod's link. A change inside a pod causes
	// no event on the host.
	keepEvery = 30 * time.Second
	// keepLeast is the pause after a look: a burst of events costs one more look.
	keepLeast = 100 * time.Millisecond
	// keepShare bounds the processor time: after a look the pause is this many times as long, up to keepMost.
	// A look on a busy machine takes long because it waits.
	keepShare = 20
	keepMost  = 5 * time.Second
)

// Keep keeps the pods' links as ADD made them, until ctx ends. It looks at its start, whenever harmed fires
// (the host's ends only), and every keepEvery. It logs each repair. Status shows the remaining faults.
func (p *Pods) Keep(ctx context.Context, harmed <-chan struct{}) error {
	if p.opened(ctx) == nil {
		return nil // the caller tries again soon
	}
	for whole := true; ; {
		begin := time.Now()
		if err := p.keep(ctx, whole); err != nil {
			return err
		}
		pause := min(max(keepLeast, keepShare*time.Since(begin)), keepMost)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-harmed:
			whole = len(*p.broken.Load()) > 0 // only a whole look tells what is still broken
		case <-p.again:
			whole = true
		case <-time.After(keepEvery):
			whole = true
		}
	}
}

// lookAgain makes Keep look again if a pod is broken: a DEL of a pod without a link causes no event.
func (p *Pods) lookAgain() {
	if left := p.broken.Load(); left == nil || len(*left) == 0 {
		return
	}
	select {
	case p.again <- struct{}{}:
	default:
	}
}

func (p *Pods) keep(ctx context.Context, whole bool) error {
	n := p.leases.Load()
	if n == nil {
		p.broken.Store(&[]plugin.Finding{})
		return nil
	}
	n.busy.RLock()
	defer n.busy.RUnlock()
	look := n.verbs.KeepHosts
	if whole {
		look = n.verbs.Keep
	}
	found, err := look(ctx)
	if err != nil {
		return err
	}
	var before []plugin.Finding
	if known := p.broken.Load(); known != nil {
		before = *known
	}
	left := []plugin.Finding{}
	for _, f := range found {
		switch {
		case f.Done:
			p.log.Info("repaired "+f.Object, "got", f.Got, "did", f.Repair)
			continue
		case f.Of == plugin.Canary(): // nobody uses it: it is made again
			if err := p.endCanary(ctx, n, f.Got); err != nil {
				return err
			}
			continue
		case !slices.Contains(before, f):
			p.log.Warn("podBroken", "object", f.Object, "got", f.Got, "next", nextOf(f))
		}
		left = append(left, f)
	}
	p.broken.Store(&left)
	return nil
}

// unkept returns the problems of the pods whose links Keep could not repair.
func (p *Pods) unkept() (out []cluster.Problem) {
	left := p.broken.Load()
	if left == nil {
		return nil
	}
	for _, f := range *left {
		out = append(out, cluster.Problem{Object: f.Object, Reason: cluster.PodBroken, Want: "both ends of its link as ADD made them", Got: f.Got, Next: nextOf(f)})
	}
	return out
}

func nextOf(f plugin.Finding) string {
	if f.Next == "" {
		return "edgewayd ipam check --repair: " + f.Repair
	}
	return f.Next
}
