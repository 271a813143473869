package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Hearing is what the kernel knows of a neighbour's presence on the link.
type Hearing uint8

// The neighbour answered its last probe; it answered none; it is being asked, or never was.
const (
	Unsure Hearing = iota
	Answers
	Silent
)

// Neighbour is another machine on a link.
type Neighbour struct {
	Link string
	IP   netip.Addr
}

// Listen returns what came of the last Probe of each neighbour and probes them again: the kernel
// sends up to three ARP requests or neighbour solicitations, a second apart (net/core/neighbour.c:
// NUD_PROBE, NUD_INCOMPLETE). Traffic to a neighbour under probe goes on. A second Listen not
// earlier than after three seconds finds the answers.
func (k *Kernel) Listen(ctx context.Context, neighbours []Neighbour) (map[Neighbour]Hearing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := newView(k.c)
	heard := map[Neighbour]Hearing{}
	known := map[string]map[netip.Addr]entry{} // by link
	var msgs []message
	var asked []Neighbour
	var errs []error
	for _, n := range neighbours {
		if _, ok := known[n.Link]; !ok {
			entries, err := v.neighboursOn(n.Link)
			known[n.Link] = entries
			errs = append(errs, err)
		}
		if known[n.Link] == nil {
			continue
		}
		e := known[n.Link][n.IP]
		heard[n] = hearing(e)
		index, err := v.index(n.Link)
		errs = append(errs, err)
		if m, ok := probe(n.IP, e, index); ok && err == nil {
			msgs, asked = append(msgs, m), append(asked, n)
		}
	}
	for i, err := range k.c.change(msgs...) {
		// ENETDOWN and EHOSTDOWN: the link is down, which is an answer too.
		if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EHOSTDOWN) {
			errs = append(errs, fmt.Errorf("probe %s on %s: %w", asked[i].IP, asked[i].Link, err))
		}
	}
	return heard, errors.Join(errs...)
}

// neighboursOn are the entries of a link in any state.
func (v *view) neighboursOn(link string) (map[netip.Addr]entry, error) {
	index, err := v.index(link)
	if err != nil {
		return nil, fmt.Errorf("probe neighbours: %w", err)
	}
	m := neighMessage(unix.RTM_GETNEIGH, 0, unix.AF_UNSPEC, 0, 0, 0).attr32(unix.NDA_IFINDEX, uint32(index))
	list, err := dump(v.c, m, 0, func(b []byte) (entry, bool) {
		e, ok := parseNeigh(b)
		return e, ok && e.index == index
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours on %s: %w", link, err)
	}
	known := make(map[netip.Addr]entry, len(list))
	for _, e := range list {
		known[e.ip] = e
	}
	return known, nil
}

// hearing reads the state of an entry; its zero value stands for none.
func hearing(e entry) Hearing {
	switch {
	case e.state&(unix.NUD_REACHABLE|unix.NUD_PERMANENT|unix.NUD_NOARP) != 0:
		return Answers
	case e.state&unix.NUD_FAILED != 0:
		return Silent
	}
	return Unsure
}

// probe makes the kernel ask. An entry with an address is asked at once, however fresh it is; an entry
// without an address is resolved as a packet to it would do. ok is false where nothing is to ask.
func probe(ip netip.Addr, e entry, index int) (m message, ok bool) {
	const use = 1 << 0 // NTF_USE, linux/neighbour.h
	switch {
	case e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_PROBE|unix.NUD_INCOMPLETE) != 0:
		return nil, false
	case e.state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY) != 0:
		mac, err := hardwareAddr(e.mac)
		m = neighMessage(unix.RTM_NEWNEIGH, createOrSet, family(ip), index, unix.NUD_PROBE, 0)
		return m.attrAddr(unix.NDA_DST, ip).attr(unix.NDA_LLADDR, mac), err == nil
	}
	return neighMessage(unix.RTM_NEWNEIGH, createOrSet, family(ip), index, unix.NUD_NONE, use).attrAddr(unix.NDA_DST, ip), true
}
