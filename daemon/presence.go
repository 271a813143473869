package daemon

import (
	"context"
	"errors"
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
//
// Where one machine answers for several neighbours (proxy ARP), its answers prove nothing. There the switch must
// say that it cannot reach a neighbour, which is a miss; the neighbour's own answer brings it back at once, and
// each round without any such word takes a miss back.
//
// The kernel gives an entry that failed a MAC only when it hears from the neighbour: an answer, or a request of the
// neighbour's own, after which the entry is stale (net/ipv4/arp.c: arp_process). Both bring the neighbour back.
type presence struct {
	after  time.Duration
	misses map[routes.Neighbour]int
	failed map[routes.Neighbour]bool // had no answer in the last round
	silent map[netip.Addr]bool       // after the last round
	macs   map[netip.Addr]string     // of the last answers
	turn   int                       // where the next round begins
}

// memory is what was heard last of each neighbour.
type memory map[routes.Neighbour]routes.Heard

// settle finds the neighbours that were silent between two looks, although the kernel asks for them again. A question
// takes the kernel three seconds, less than the time between two looks: who was asked for at the last look, or had a MAC
// then, and is asked for now, did not answer meanwhile.
func (m memory) settle(heard map[routes.Neighbour]routes.Heard) {
	for n, h := range heard {
		if was := m[n]; h.Asking && (was.Asking || was.Hearing == routes.Silent || was.MAC != "") {
			h.Hearing = routes.Silent
			heard[n] = h
		}
		m[n] = h
	}
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

// sharing returns the neighbours that answered with the MAC of another neighbour of their family on their link. The
// IPv4 and the IPv6 address of a node share its MAC, which proves nothing.
func sharing(heard map[routes.Neighbour]routes.Heard) []routes.Neighbour {
	type seen struct {
		link, mac string
		ipv4      bool
	}
	by := map[seen][]routes.Neighbour{}
	for n, h := range heard {
		if h.Hearing == routes.Answers {
			at := seen{n.Link, h.MAC, n.IP.Is4()}
			by[at] = append(by[at], n)
		}
	}
	var out []routes.Neighbour
	for _, all := range by {
		if len(all) > 1 {
			out = append(out, all...)
		}
	}
	return out
}

// round takes the answers of one round, and what came back from the neighbours that share a MAC. It returns what
// the LAN says now. Neighbours that the round did not probe keep their count.
func (p *presence) round(all []routes.Neighbour, heard map[routes.Neighbour]routes.Heard, reached map[routes.Neighbour]routes.Hearing) lan {
	misses, answered := map[routes.Neighbour]int{}, map[string]bool{}
	for _, n := range all {
		answered[n.Link] = answered[n.Link] || heard[n].Hearing == routes.Answers
	}
	failed := map[routes.Neighbour]bool{}
	out := lan{silent: map[netip.Addr]bool{}, macs: map[netip.Addr]string{}}
	for _, n := range all {
		misses[n] = p.misses[n]
		h := heard[n] // Unsure where n was not probed
		gone := h.Hearing == routes.Silent && answered[n.Link]
		failed[n] = h.Hearing == routes.Silent
		switch {
		case h.Hearing == routes.Answers:
			out.macs[n.IP] = h.MAC
		case !gone && p.macs[n.IP] != "":
			out.macs[n.IP] = p.macs[n.IP]
		}
		switch back, asked := reached[n]; {
		case gone:
			misses[n]++
		case p.failed[n] && h.Hearing == routes.Unsure && h.MAC != "":
			misses[n] = 0
		case h.Hearing != routes.Answers:
		case !asked || back == routes.Answers:
			misses[n] = 0
		case back == routes.Silent:
			misses[n] = min(misses[n]+1, p.enough())
		default:
			misses[n] = max(misses[n]-1, 0)
		}
		if misses[n] >= p.enough() || misses[n] > 0 && p.silent[n.IP] {
			out.silent[n.IP] = true
		}
	}
	p.misses, p.failed, p.silent, p.macs = misses, failed, out.silent, out.macs
	return out
}

// enough is the number of misses after which a neighbour is silent.
func (p *presence) enough() int { return int((p.after + config.ProbeEvery - 1) / config.ProbeEvery) }

// lan is what the neighbours' answers say.
type lan struct {
	silent map[netip.Addr]bool   // see policy.World
	macs   map[netip.Addr]string // see policy.World
}

func (l lan) equal(o lan) bool { return maps.Equal(l.silent, o.silent) && maps.Equal(l.macs, o.macs) }

// listener is routes.Kernel as the loop probes with it.
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
	last := memory{}
	var r routes.Reacher
	defer r.Close()
	for pause(ctx, config.ProbeEvery) {
		v := l.seen.Load()
		if v == nil {
			continue
		}
		all := v.Plan.Neighbours
		heard, err := k.Listen(ctx, p.next(all))
		last.settle(heard)
		reached, unsent := r.Reach(ctx, sharing(heard))
		if err := errors.Join(err, unsent); err != nil {
			l.log.Debug("probe the LAN", "err", err) // a neighbour that could not be probed keeps its count
		}
		if now := p.round(all, heard, reached); !now.equal(lan{v.World.Silent, v.World.MACs}) {
			l.lan.Store(&now)
			l.look.fire()
		}
	}
	return nil
}
