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
	// guardEvery is the time between two looks at the firewalls and the gateways. nftables announces each change; legacy
	// iptables does not. To see that nothing changed takes 6 ms beside 5,000 rules of legacy iptables, and a question to
	// nftables. A look at 5,000 rules of kube-proxy takes 25 ms.
	guardEvery = 5 * time.Second
	// guardSettles is the pause after a change of nftables: programs change it in many steps.
	guardSettles = 200 * time.Millisecond
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
	// generation is the firewall's when the barriers were found, if rules of ours stand in it or are wanted there: after a
	// change they may be gone, or no longer stand at the end.
	generation uint32
	judged     bool // the firewalls were read: barriers has all of them
	dead       map[routes.Neighbour]bool
}

func (g guarding) equal(o guarding) bool {
	return slices.Equal(g.barriers, o.barriers) && g.generation == o.generation && g.judged == o.judged && maps.Equal(g.dead, o.dead)
}

// guard looks at the firewalls of this machine and at its gateways until ctx ends. It changes nothing: policy.Decide
// reads what it found.
func (l *loop) guard(ctx context.Context, k firewall) error {
	w := watchman{k: k, misses: map[routes.Neighbour]int{}, heard: memory{}}
	var due time.Time // to listen
	for {
		if v := l.seen.Load(); v != nil {
			var heard error
			if !time.Now().Before(due) {
				due, heard = time.Now().Add(guardEvery), w.listen(ctx, v.Plan)
			}
			w.cut = l.proven != nil && len(l.proven().Problems) > 0
			now, err := w.look(ctx, v.Plan)
			if err = errors.Join(heard, err); err != nil {
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
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-l.firewall:
		}
		timer.Stop()
		if !pause(ctx, guardSettles) {
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
	heard      memory
	dead       map[routes.Neighbour]bool
	cut        bool // a question to another node's canary is not answered
}

// judgeEvery bounds how long a change of the table nat of legacy iptables stays unseen: its changes are not counted. While
// packets are lost, each look reads it.
const judgeEvery = 30 * time.Second

// look returns what it could find, and what it found before of the rest.
func (w *watchman) look(ctx context.Context, plan policy.Plan) (guarding, error) {
	err := w.judge(ctx, plan.Guarded)
	out := guarding{barriers: w.barriers, judged: !w.judged.IsZero(), dead: w.dead}
	if slices.ContainsFunc(w.barriers, func(b policy.Barrier) bool { return b.Finding.Passable() }) {
		out.generation = w.generation
	}
	return out, err
}

// listen counts how often each gateway was silent.
func (w *watchman) listen(ctx context.Context, plan policy.Plan) error {
	w.dead = map[routes.Neighbour]bool{}
	heard, err := w.k.Listen(ctx, plan.Gateways)
	w.heard.settle(heard)
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
			w.dead[g] = true
		}
	}
	w.misses = misses
	return err
}

// judge asks what the firewalls do to the packets, if anything may have changed.
func (w *watchman) judge(ctx context.Context, packets []routes.Packet) error {
	generation, err := w.k.Generation(ctx)
	if err != nil || generation == w.generation && slices.Equal(packets, w.packets) && time.Since(w.judged) < judgeEvery && !w.cut {
		return err
	}
	all, err := w.k.Judge(ctx, packets...)
	if err != nil {
		return err
	}
	w.generation, w.packets, w.judged, w.barriers = generation, packets, time.Now(), policy.Barriers(packets, all)
	return nil
}
