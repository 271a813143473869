package routes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Hearing is the kernel's knowledge of a neighbour's presence on the link.
type Hearing uint8

// Answers: the neighbour answered its last probe. Silent: it did not. Unsure: the probe runs, or never ran.
const (
	Unsure Hearing = iota
	Answers
	Silent
)

// Heard is what the kernel knows of a neighbour.
type Heard struct {
	Hearing
	MAC string // of the last answer; "": none is known
}

// Neighbour is another machine on a link.
type Neighbour struct {
	Link string
	IP   netip.Addr
}

// Listen returns the result of each neighbour's last probe and probes the neighbours again: the kernel sends
// up to three ARP requests or neighbour solicitations, a second apart (net/core/neighbour.c: NUD_PROBE,
// NUD_INCOMPLETE). Traffic to a neighbour under probe continues. A second Listen finds the answers after
// three seconds or more.
func (k *Kernel) Listen(ctx context.Context, neighbours []Neighbour) (map[Neighbour]Heard, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := newView(k.c)
	heard := map[Neighbour]Heard{}
	known := map[string]map[netip.Addr]entry{} // by link
	var errs []error
	var asked []Neighbour
	var msgs []message
	for _, n := range neighbours {
		index, err := v.index(n.Link)
		if _, ok := known[n.Link]; !ok {
			known[n.Link] = map[netip.Addr]entry{}
			var list []entry
			if err == nil {
				list, err = v.entries(unix.AF_UNSPEC, index, math.MaxUint16)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("probe neighbours on %s: %w", n.Link, err))
			}
			for _, e := range list {
				known[n.Link][e.ip] = e
			}
		}
		if index == 0 {
			continue
		}
		e := known[n.Link][n.IP]
		heard[n] = Heard{e.hearing(), e.mac}
		if m := e.probe(n.IP, index); m != nil {
			asked, msgs = append(asked, n), append(msgs, m)
		}
	}
	for i, err := range k.c.change(msgs...) {
		// EHOSTDOWN or ENETDOWN: the link is down, which is an answer too.
		if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EHOSTDOWN) {
			errs = append(errs, fmt.Errorf("probe %s on %s: %w", asked[i].IP, asked[i].Link, err))
		}
	}
	return heard, errors.Join(errs...)
}

// hearing reads the state of the entry, which is zero if there is no entry. A permanent or NOARP entry is
// no evidence: the kernel never probes such an entry.
func (e entry) hearing() Hearing {
	switch {
	case e.state&unix.NUD_REACHABLE != 0:
		return Answers
	case e.state&unix.NUD_FAILED != 0:
		return Silent
	}
	return Unsure
}

// probe returns the request that makes the kernel probe a neighbour, or nil if no probe is needed. The kernel
// probes an entry with a MAC at once, however fresh the entry is. An entry without a MAC is resolved as for a packet.
func (e entry) probe(ip netip.Addr, index int) message {
	ask := func(state uint16, ntf uint8) message {
		return neighMessage(unix.RTM_NEWNEIGH, createOrSet, family(ip), index, state, ntf).attrAddr(unix.NDA_DST, ip)
	}
	switch mac, err := hardwareAddr(e.mac); {
	case e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_PROBE|unix.NUD_INCOMPLETE) != 0:
		return nil
	case err == nil && e.state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY) != 0:
		return ask(unix.NUD_PROBE, 0).attr(unix.NDA_LLADDR, mac)
	}
	return ask(unix.NUD_NONE, unix.NTF_USE)
}
