package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls changed whenever a link, address, route, neighbour or the forwarding of the namespace
// changes, a next hop object is deleted, or
// an nftables table of ours, and once whenever the kernel says that it lost events. It returns
// when ctx ends. It calls changed from several goroutines, and waits for it.
//
// Of neighbours it reports those of the daemon's own links (edgeway.*), which are permanent: what
// ARP learns elsewhere comes and goes all the time. Events of
// pods' links are ignored: each pod causes dozens, and pods' links are not part of the node's state.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rtnl, err := k.subscribe(unix.NETLINK_ROUTE, nodeGroups()...)
	if err != nil {
		return fmt.Errorf("watch links and routes: %w", err)
	}
	defer rtnl.Close()
	w := watcher{links: map[int]bool{}, pods: map[int]bool{}}
	devices, err := newView(k.c).all()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	for _, d := range devices {
		w.note(d)
	}
	streams := []stream{{rtnl, w.counts}}
	// A firewall that restarts flushes every table. A kernel without nftables has no such events.
	if nft, err := k.subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err == nil {
		defer nft.Close()
		streams = append(streams, stream{nft, ourTable})
	}
	done := make(chan error, len(streams))
	for _, s := range streams {
		go func() { done <- s.read(ctx, changed) }()
	}
	for range streams {
		err = errors.Join(err, <-done)
		cancel() // one that ends ends the other
	}
	return err
}

// nodeGroups are the multicast groups of rtnetlink that tell what changes on a node. The loss of a
// next hop object takes its routes along and announces none of them (net/ipv4/nexthop.c:
// remove_nexthop).
func nodeGroups() []int {
	return []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}
}

// subscribe opens the socket of events, in the runtime's poller so that a deadline ends reads.
func (k *Kernel) subscribe(protocol int, groups ...int) (*os.File, error) {
	var fd int
	err := inside(k.ns, func() (err error) {
		fd, err = socket(protocol, unix.SOCK_NONBLOCK, groups...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// stream is one socket of events, and which of its datagrams are worth a look.
type stream struct {
	f      *os.File
	counts func(datagram []byte) bool
}

func (s stream) read(ctx context.Context, changed func()) error {
	stop := context.AfterFunc(ctx, func() { _ = s.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := s.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch: %w", err)
		case errors.Is(rerr, unix.ENOBUFS):
			changed() // events were lost: what changed is not known
		case rerr != nil:
			return fmt.Errorf("watch: %w", rerr)
		case s.counts(buf[:n]):
			changed()
		}
	}
}

// ourTable reports whether one of the nftables events is about a table of ours. Attribute 1 is
// the table's name in the messages of tables, chains, rules and sets (linux/netfilter/nf_tables.h).
func ourTable(b []byte) (worth bool) {
	eachMessage(b, func(h unix.NlMsghdr, body []byte) {
		if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || h.Type&0xff == unix.NFT_MSG_NEWGEN || len(body) < 4 {
			return
		}
		for typ, v := range attrs(body[4:]) { // behind struct nfgenmsg
			worth = worth || (typ == 1 && (attrName(v) == tableName || attrName(v) == sendersTable))
		}
	})
	return worth
}

type watcher struct {
	links map[int]bool // index to: it is the daemon's own
	pods  map[int]bool // index to: it is a pod's
}

// watched reports that a link's neighbours are the daemon's. Those of a pod's link are not: the
// kernel questions them twice a minute while they are in use, each time with an event.
func watched(d device) bool { return ours(d.Name) && d.Kind != "veth" }

// note records whose link it is.
func (w *watcher) note(d device) {
	w.links[d.index] = watched(d)
	w.pods[d.index] = ours(d.Name) && d.Kind == "veth"
}

// ofPod reports whether an event is about something on a pod's link that a pod's wiring brings.
func (w *watcher) ofPod(h unix.NlMsghdr, body []byte) bool {
	switch h.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok := parseAddr(body)
		return ok && w.pods[a.index]
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(body) < unix.SizeofRtMsg {
			return false
		}
		if by := body[5]; by != uint8(ProtoPod) && by != unix.RTPROT_KERNEL { // rtm_protocol
			return false
		}
		for typ, v := range attrs(body[unix.SizeofRtMsg:]) {
			if typ == unix.RTA_OIF {
				return w.pods[int(attrUint32(v))]
			}
		}
	}
	return false
}

// forwarding reports whether an event of settings (linux/netconf.h) is about the whole
// namespace or a link that is known and no pod's. A new link announces its settings before itself.
func (w *watcher) forwarding(body []byte) bool {
	for typ, v := range attrs(body[min(4, len(body)):]) { // behind struct netconfmsg
		if typ == netconfIfIndex {
			index := int(int32(attrUint32(v)))
			_, known := w.links[index]
			return index < 0 || known && !w.pods[index]
		}
	}
	return false
}

// counts reports whether one of the events is worth a look.
func (w *watcher) counts(b []byte) (worth bool) {
	eachMessage(b, func(h unix.NlMsghdr, body []byte) {
		switch h.Type {
		case unix.RTM_NEWLINK:
			d, ok := parseLink(body)
			if ok {
				w.note(d)
			}
			worth = worth || !ok || !w.pods[d.index]
		case unix.RTM_DELLINK:
			d, ok := parseLink(body)
			worth = worth || !ok || !w.pods[d.index]
			if ok && body[0] == unix.AF_UNSPEC { // what was on the link went before it
				delete(w.links, d.index)
				delete(w.pods, d.index)
			}
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			if len(body) >= sizeofNdMsg && w.links[int(binary.NativeEndian.Uint32(body[4:]))] {
				worth = true
			}
		case unix.RTM_NEWNEXTHOP:
			// It has no route yet.
		case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
			worth = worth || w.forwarding(body)
		default:
			worth = worth || !w.ofPod(h, body)
		}
	})
	return worth
}
