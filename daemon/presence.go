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
//	silent ───> one more miss ──> after `withdrawAfter`: silent, as long as somebody on its link answers
//	nobody on a link answers: our own end of it is cut; nothing is concluded from that
type presence struct {
	after  time.Duration
	misses map[routes.Neighbour]int
	macs   map[netip.Addr]string // of the last answers
	turn   int                   // where the next round begins
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

// round takes the answers of one round and returns what the LAN says now. Neighbours that the round did not
// probe keep their count.
func (p *presence) round(all []routes.Neighbour, heard map[routes.Neighbour]routes.Heard) lan {
	misses, answered := map[routes.Neighbour]int{}, map[string]bool{}
	for _, n := range all {
		answered[n.Link] = answered[n.Link] || heard[n].Hearing == routes.Answers
	}
	out := lan{silent: map[netip.Addr]bool{}, macs: map[netip.Addr]string{}}
	for _, n := range all {
		misses[n] = p.misses[n]
		switch h := heard[n]; { // Unsure where n was not probed
		case h.Hearing == routes.Answers:
			misses[n] = 0
			out.macs[n.IP] = h.MAC
		case h.Hearing == routes.Silent && answered[n.Link]:
			misses[n]++
		case p.macs[n.IP] != "":
			out.macs[n.IP] = p.macs[n.IP]
		}
		if time.Duration(misses[n])*config.ProbeEvery >= p.after {
			out.silent[n.IP] = true
		}
	}
	p.misses, p.macs = misses, out.macs
	return out
}

// lan is what the neighbours' answers say.
type lan struct {
	silent map[netip.Addr]bool   // see policy.World
	macs   map[netip.Addr]string // see policy.World
}

func (l lan) equal(o lan) bool { return maps.Equal(l.silent, o.silent) && maps.Equal(l.macs, o.macs) }

// listener is routes.Kernel as probe uses it.
type listener interface {
	Listen(ctx context.Context, neighbours []routes.Neighbour) (map[routes.Neighbour]routes.Heard, error)
}

// probe probes the LAN of a speaker until ctx ends. It withdraws nothing itself: policy.Decide reads the
// silent addresses.
func (l *loop) probe(ctx context.Context, k listener) error {
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
		heard, err := k.Listen(ctx, p.next(all))
		if err != nil {
			l.log.Debug("probe the LAN", "err", err) // a neighbour that could not be probed keeps its count
		}
		if now := p.round(all, heard); !now.equal(lan{v.World.Silent, v.World.MACs}) {
			l.lan.Store(&now)
			l.look.fire()
		}
	}
	return nil
}
