package routes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

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
	// Asking: no MAC is known, and the kernel asks for it (NUD_INCOMPLETE). While packets for a neighbour that is away keep
	// coming, the kernel asks again as soon as it has given up, so that hardly any look finds the neighbour Silent.
	Asking bool
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
		heard[n] = Heard{e.hearing(), e.mac, e.state&unix.NUD_INCOMPLETE != 0}
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
	switch mac, err := hardwareAddr(e.mac); {
	case e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_PROBE|unix.NUD_INCOMPLETE) != 0:
		return nil
	case err == nil && e.state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY) != 0:
		return setNeigh(ip, index, unix.NUD_PROBE, 0).attr(unix.NDA_LLADDR, mac)
	}
	return setNeigh(ip, index, unix.NUD_NONE, unix.NTF_USE)
}

func setNeigh(ip netip.Addr, index int, state uint16, ntf uint8) message {
	return neighMessage(unix.RTM_NEWNEIGH, createOrSet, family(ip), index, state, ntf).attrAddr(unix.NDA_DST, ip)
}

const (
	// askRounds is how often Answering asks for a neighbour: one packet may be lost.
	askRounds = 3
	// askLooks and askPause are how often, and how far apart, a round looks for the answer: for 100 ms. A LAN
	// answers within a few milliseconds. Looks are counted, so that a busy machine waits longer.
	askLooks = 20
	askPause = 5 * time.Millisecond
)

// Answering returns held, the result of Holders, without the learned neighbours that do not answer. A neighbour that
// answers becomes TypeNeighbour. The kernel sends the questions, so CAP_NET_ADMIN is enough: first to the MAC of the
// entry, which the machine may have lost since, and then to everybody on the link (ARP, RFC 826; neighbour
// solicitation, RFC 4861 section 7.2.2). The wait is 300 ms if somebody does not answer, less if all answer, and nothing
// if no neighbour is learned. The entry of a silent neighbour becomes FAILED, as if somebody had sent it a packet.
func (k *Kernel) Answering(ctx context.Context, held []Route) (out []Route, err error) {
	v := newView(k.c)
	index := map[netip.Addr]int{} // of those who have not answered yet
	for _, h := range held {
		if h.Type == TypeLearned {
			if i, err := v.index(h.Link); err == nil {
				index[h.Dst.Addr()] = i
			}
		}
	}
	for round := 0; round < askRounds && len(index) > 0; round++ {
		if err := k.ask(index, round > 0); err != nil {
			return nil, err
		}
		for look := 0; look < askLooks && len(index) > 0; look++ {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(askPause):
			}
			for a, e := range k.known(index) {
				if e.hearing() == Answers {
					delete(index, a)
				}
			}
		}
	}
	for _, h := range held {
		if _, silent := index[h.Dst.Addr()]; h.Type == TypeLearned && !silent {
			h.Type = TypeNeighbour
		}
		if h.Type != TypeLearned {
			out = append(out, h)
		}
	}
	return out, nil
}

// ask makes the kernel probe each address on the link of that index: at the MAC of its entry, or everybody on the
// link. A failed entry has no MAC, so the kernel asks everybody (net/core/neighbour.c: __neigh_event_send).
func (k *Kernel) ask(index map[netip.Addr]int, everybody bool) error {
	var msgs []message
	known := k.known(index)
	for a, i := range index {
		if everybody {
			msgs = append(msgs, setNeigh(a, i, unix.NUD_FAILED, 0), setNeigh(a, i, unix.NUD_NONE, unix.NTF_USE))
		} else if m := known[a].probe(a, i); m != nil {
			msgs = append(msgs, m)
		}
	}
	for _, err := range k.c.change(msgs...) {
		// EHOSTDOWN, ENETDOWN or ENODEV: nobody answers on a link that is down or gone.
		if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EHOSTDOWN) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("probe neighbours: %w", err)
		}
	}
	return nil
}

// known reads the neighbour entries of the addresses on the links of those indexes. An address may have no entry.
func (k *Kernel) known(index map[netip.Addr]int) map[netip.Addr]entry {
	var msgs []message
	for a, i := range index {
		msgs = append(msgs, getNeigh(a, i))
	}
	out := map[netip.Addr]entry{}
	answers, errs := k.c.gets(msgs...)
	for i, b := range answers {
		if e, ok := parseNeigh(b); ok && errs[i] == nil {
			out[e.ip] = e
		}
	}
	return out
}

const (
	// silentAfter is how long a neighbour must leave the kernel's question unanswered. A LAN answers within milliseconds.
	silentAfter = time.Second
	// silentFor bounds how long the kernel's last attempt counts: it tries again only when it has a packet to send.
	silentFor = time.Minute
)

// Unanswered returns the addresses that packets of this machine do not reach as far as its kernel knows, each with the
// next hop that has not answered ARP or neighbour discovery lately. The zero Neighbour means that the kernel has no
// route. Nothing is sent, so an address to which nobody sends anything is not returned.
func (k *Kernel) Unanswered(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]Neighbour, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type place struct {
		index int
		ip    netip.Addr
	}
	silent := map[place]bool{}
	_, err := dump(k.c, neighMessage(unix.RTM_GETNEIGH, 0, unix.AF_UNSPEC, 0, 0, 0), 0, func(b []byte) (entry, bool) {
		e, ok := parseNeigh(b)
		if ok && (e.state&unix.NUD_FAILED != 0 && e.age < silentFor || e.state&unix.NUD_INCOMPLETE != 0 && e.age >= silentAfter) {
			silent[place{e.index, e.ip}] = true
		}
		return e, false
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	var msgs []message
	for _, a := range addrs {
		msgs = append(msgs, lookup(a, 0))
	}
	v, out := newView(k.c), map[netip.Addr]Neighbour{}
	answers, errs := k.c.gets(msgs...)
	for i, a := range addrs {
		switch e, err := chosen(answers[i]); {
		case errs[i] != nil || err != nil || drops(e.Type):
			out[a] = Neighbour{}
		case e.Via.IsValid() && silent[place{e.index, e.Via}]:
			out[a] = Neighbour{v.name(e.index), e.Via}
		case !e.Via.IsValid() && silent[place{e.index, a}]:
			out[a] = Neighbour{v.name(e.index), a}
		}
	}
	return out, nil
}
