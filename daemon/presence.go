package daemon

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// listenEvery is the time between two rounds of probes: the kernel needs three seconds for one.
const listenEvery = 5 * time.Second

// probeMost bounds one round: each neighbour that does not answer takes an entry of the kernel's
// neighbour table, which holds 1024 by default (net.ipv4.neigh.default.gc_thresh3). In a larger
// LAN the rounds take turns.
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

// next chooses whom a round probes: everybody, or the first (a switch) and the next in turn.
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

// round takes what was heard in one round and returns which of all are silent now. Those that
// the round did not ask keep their count.
func (p *presence) round(all []routes.Neighbour, heard map[routes.Neighbour]routes.Hearing) map[netip.Addr]bool {
	misses, anybody := map[routes.Neighbour]int{}, false
	for _, n := range all {
		misses[n] = p.misses[n]
		switch heard[n] { // Unsure where it was not asked
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
		if time.Duration(count)*listenEvery >= p.after {
			silent[n.IP] = true
		}
	}
	return silent
}

// listen probes the LAN of a speaker until ctx ends. It withdraws nothing itself: who is silent
// is one more thing that desired knows.
func (d *Daemon) listen(ctx context.Context) error {
	p := &presence{after: time.Duration(d.config.BGP.WithdrawAfter)}
	if p.after == 0 {
		<-ctx.Done()
		return nil
	}
	for pause(ctx, listenEvery) {
		v := d.seen.Load()
		if v == nil {
			continue
		}
		all := v.World.neighbours()
		heard, err := d.kernel.Listen(ctx, p.next(all))
		if err != nil {
			d.options.Log.Debug("probe the LAN", "err", err) // who could not be asked stays as he was
		}
		if silent := p.round(all, heard); !maps.Equal(silent, v.World.Silent) {
			d.silent.Store(&silent)
			d.look.fire()
		}
	}
	return nil
}

// markOwn has each switch drop this node's own pod CIDRs when the restart time after this speaker's
// loss is over, and not keep them for the long-lived time too, where another speaker tells it of them.
// That one knows whether this node lives, withdraws them when it does not, and cannot withdraw what
// the dead one told; when both are lost, the switch keeps what each told of the other.
func (p *plan) markOwn() {
	if p.Config.BGP.LongLivedTime == 0 {
		return
	}
	for _, s := range p.bgp.Sessions {
		if !slices.ContainsFunc(p.Cluster.Peerings, func(r cluster.Peering) bool { return p.othersTell(r, s.Peer) }) {
			continue
		}
		for i := range s.Paths {
			s.Paths[i].NoLongLived = slices.Contains(p.self.PodCIDRs, s.Paths[i].Prefix)
		}
	}
}

// othersTell reports whether r has another node of the cluster tell the switch of this one.
func (p *plan) othersTell(r cluster.Peering, to bgp.Peer) bool {
	return r.Selector.Selects(p.self.Labels) && slices.ContainsFunc(r.Speakers, func(s cluster.Speaker) bool {
		_, known := p.Cluster.Node(s.Node)
		return known && s.Node != p.self.Name && slices.ContainsFunc(s.Peers, func(peer cluster.Peer) bool {
			return peer.Address == to.Address && cmp.Or(peer.Port, uint16(p.Config.BGP.Port)) == to.Port
		})
	})
}
