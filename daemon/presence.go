package daemon

import (
	"context"
	"maps"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

// probeMost bounds one round. Each neighbour that does not answer takes an entry of the kernel's neighbour
// table, which holds 1024 entries by default (net.ipv4.neigh.default.gc_thresh3). In a larger LAN, the rounds
// take turns.
const probeMost = 256

// presence counts the rounds in which a neighbour did not answer.
//
//	answers ──> 0 misses                  back at once
//	silent ───> one more miss ──> after `withdrawAfter`: silent, as long as somebody answers
//	nobody answers: our own link is cut; nothing is concluded from that
type presence struct {
	after  time.Duration
	misses map[routes.Neighbour]int
	turn   int // where the next round begins
}

// next chooses the neighbours for a round: all of them, or the first (a switch) and the next in turn.
func (p *presence) next(all []routes.Neighbour) []routes.Neighbour {
	if len(all) <= probeMost {
		return all
	}
	round := append(make([]routes.Neighbour, 0, probeMost), all[0])
	for range probeMost - 1 {
		p.turn = p.turn%(len(all)-1) + 1
		round = append(round, all[p.turn])
	}
	return round
}

// round takes the answers of one round and returns the addresses that are now silent. Neighbours that the
// round did not probe keep their count.
func (p *presence) round(all []routes.Neighbour, heard map[routes.Neighbour]routes.Hearing) map[netip.Addr]bool {
	misses, anybody := map[routes.Neighbour]int{}, false
	for _, n := range all {
		misses[n] = p.misses[n]
		switch heard[n] { // Unsure where n was not probed
		case routes.Answers:
			misses[n], anybody = 0, true
		case routes.Silent:
			misses[n]++
		}
	}
	if anybody {
		p.misses = misses
	}
	silent := map[netip.Addr]bool{}
	for n, count := range p.misses {
		if time.Duration(count)*config.ProbeEvery >= p.after {
			silent[n.IP] = true
		}
	}
	return silent
}

// listener is routes.Kernel as probe uses it.
type listener interface {
	Listen(ctx context.Context, neighbours []routes.Neighbour) (map[routes.Neighbour]routes.Hearing, error)
}

// probe probes the LAN of a speaker until ctx ends. It withdraws nothing itself: policy.Decide reads the
// silent addresses.
func (l *loop) probe(ctx context.Context, lan listener) error {
	p := &presence{after: l.config.BGP.WithdrawAfter}
	if p.after == 0 {
		<-ctx.Done()
		return nil
	}
	for pause(ctx, config.ProbeEvery) {
		v := l.seen.Load()
		if v == nil {
			continue
		}
		all := v.Plan.Neighbours
		heard, err := lan.Listen(ctx, p.next(all))
		if err != nil {
			l.log.Debug("probe the LAN", "err", err) // a neighbour that could not be probed keeps its count
		}
		if silent := p.round(all, heard); !maps.Equal(silent, v.World.Silent) {
			l.silent.Store(&silent)
			l.look.fire()
		}
	}
	return nil
}
