package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
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
	h, err := netlink.NewHandleAt(k.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("probe neighbours: %w", err)
	}
	defer h.Close()
	heard := map[Neighbour]Heard{}
	known := map[string]map[netip.Addr]netlink.Neigh{} // by link
	index := map[string]int{}
	var errs []error
	for _, n := range neighbours {
		if _, ok := known[n.Link]; !ok {
			index[n.Link], known[n.Link], err = neighboursOn(h, n.Link)
			errs = append(errs, err)
		}
		if index[n.Link] == 0 {
			continue
		}
		entry, ok := known[n.Link][n.IP]
		heard[n] = Heard{hearing(entry, ok), entry.HardwareAddr.String()}
		errs = append(errs, probe(h, entry, ok, n, index[n.Link]))
	}
	return heard, errors.Join(errs...)
}

func neighboursOn(h *netlink.Handle, link string) (int, map[netip.Addr]netlink.Neigh, error) {
	l, err := h.LinkByName(link)
	if err != nil {
		return 0, nil, fmt.Errorf("probe neighbours on %s: %w", link, err)
	}
	list, err := h.NeighList(l.Attrs().Index, unix.AF_UNSPEC)
	if err != nil {
		return 0, nil, fmt.Errorf("list neighbours on %s: %w", link, err)
	}
	known := make(map[netip.Addr]netlink.Neigh, len(list))
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok {
			known[ip.Unmap()] = n
		}
	}
	return l.Attrs().Index, known, nil
}

// hearing says what an entry tells. A permanent or NOARP entry tells nothing: the kernel never probes it.
func hearing(n netlink.Neigh, ok bool) Hearing {
	switch {
	case !ok:
		return Unsure
	case n.State&unix.NUD_REACHABLE != 0:
		return Answers
	case n.State&unix.NUD_FAILED != 0:
		return Silent
	}
	return Unsure
}

// probe makes the kernel probe a neighbour. An entry with a MAC is probed at once, however fresh it is. An
// entry without a MAC is resolved as for a packet.
func probe(h *netlink.Handle, entry netlink.Neigh, ok bool, n Neighbour, index int) error {
	ask := &netlink.Neigh{LinkIndex: index, IP: n.IP.AsSlice(), Family: int(family(n.IP)), State: unix.NUD_NONE, Flags: netlink.NTF_USE}
	switch {
	case ok && entry.State&(unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_PROBE|unix.NUD_INCOMPLETE) != 0:
		return nil
	case ok && entry.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY) != 0:
		ask.State, ask.Flags, ask.HardwareAddr = unix.NUD_PROBE, 0, entry.HardwareAddr
	}
	// EHOSTDOWN or ENETDOWN: the link is down, which is an answer too.
	if err := h.NeighSet(ask); err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EHOSTDOWN) {
		return fmt.Errorf("probe %s on %s: %w", n.IP, n.Link, err)
	}
	return nil
}
