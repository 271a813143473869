package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	// guardEvery is the time between two looks at the firewalls and the gateways. nftables says by a number whether
	// anything changed; legacy iptables does not. A look at 5,000 rules of kube-proxy takes 25 ms.
	guardEvery = 5 * time.Second
	// deadAfter is how many looks in a row must find a gateway silent. The kernel gives up after three questions.
	deadAfter = 3
)

// firewall is routes.Kernel as the guard asks it.
type firewall interface {
	listener
	Generation(ctx context.Context) (uint32, error)
	Judge(ctx context.Context, packets ...routes.Packet) ([][]routes.Finding, error)
}

// guarding is what the last look of the guard found.
type guarding struct {
	barriers []policy.Barrier
	dead     map[routes.Neighbour]bool
}

func (g guarding) equal(o guarding) bool {
	return slices.Equal(g.barriers, o.barriers) && maps.Equal(g.dead, o.dead)
}

// guard looks at the firewalls of this machine and at its gateways until ctx ends. It changes nothing: policy.Decide
// reads what it found.
func (l *loop) guard(ctx context.Context, k firewall) error {
	w := watchman{k: k, misses: map[routes.Neighbour]int{}}
	for {
		if v := l.seen.Load(); v != nil {
			now, err := w.look(ctx, v.Plan)
			if err != nil {
				l.log.Debug("look at the firewall", "err", err) // what was found last still counts
			}
			if was := l.guarded.Load(); was == nil || !was.equal(now) {
				l.guarded.Store(&now)
				l.look.fire()
			}
		}
		wait := guardEvery
		if l.guarded.Load() == nil {
			wait = time.Second // the first look of the loop
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// watchman is the memory of the guard.
type watchman struct {
	k          firewall
	generation uint32
	packets    []routes.Packet
	judged     time.Time
	barriers   []policy.Barrier
	misses     map[routes.Neighbour]int
}

// judgeEvery bounds how long a change of legacy iptables stays unseen.
const judgeEvery = 30 * time.Second

// look returns what it could find, and what it found before of the rest.
func (w *watchman) look(ctx context.Context, plan policy.Plan) (guarding, error) {
	out := guarding{dead: map[routes.Neighbour]bool{}}
	heard, err := w.k.Listen(ctx, plan.Gateways)
	misses := map[routes.Neighbour]int{}
	for _, g := range plan.Gateways {
		misses[g] = w.misses[g]
		switch heard[g].Hearing {
		case routes.Answers:
			misses[g] = 0
		case routes.Silent:
			misses[g]++
		}
		if misses[g] >= deadAfter {
			out.dead[g] = true
		}
	}
	w.misses = misses
	err = errors.Join(err, w.judge(ctx, plan.Guarded))
	out.barriers = w.barriers
	return out, err
}

// judge asks what the firewalls do to the packets, if anything may have changed.
func (w *watchman) judge(ctx context.Context, packets []routes.Packet) error {
	generation, err := w.k.Generation(ctx)
	if err != nil || generation == w.generation && slices.Equal(packets, w.packets) && time.Since(w.judged) < judgeEvery {
		return err
	}
	all, err := w.k.Judge(ctx, packets...)
	if err != nil {
		return err
	}
	w.generation, w.packets, w.judged, w.barriers = generation, packets, time.Now(), policy.Barriers(packets, all)
	return nil
}
