package daemon

import (
	"context"
	"maps"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/routes"
)

// listenEvery is the time between two rounds of probes: the kernel needs three seconds for one.
const listenEvery = 5 * time.Second

// presence counts the rounds in which a neighbour did not answer.
//
//	answers ──> 0 misses                  back at once
//	silent ───> one more miss ──> after `withdrawAfter`: silent, as long as somebody answers
//	nobody answers: our own link is cut; nothing is concluded from that
type presence struct {
	after  time.Duration
	misses map[routes.Neighbour]int
}

// round takes what was heard in one round and returns who is silent now.
func (p *presence) round(heard map[routes.Neighbour]routes.Hearing) map[netip.Addr]bool {
	misses, anybody := map[routes.Neighbour]int{}, false
	for n, h := range heard {
		misses[n] = p.misses[n]
		switch h {
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
		if _, asked := heard[n]; asked && time.Duration(count)*listenEvery >= p.after {
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
		heard, err := d.kernel.Listen(ctx, v.World.neighbours())
		if err != nil {
			return err
		}
		if silent := p.round(heard); !maps.Equal(silent, v.World.Silent) {
			d.silent.Store(&silent)
			d.look.fire()
		}
	}
	return nil
}
