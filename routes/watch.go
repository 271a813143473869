package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// harmSettles is how long a pod's link must outlive a loss before Watch reports the loss: a pod that ends
// loses everything on its link, and then the link.
const harmSettles = 150 * time.Millisecond

// settingsEvery is how often Watch reads the settings of the daemon's links: the kernel announces some of them
// (forwarding, rp_filter) and not the others (accept_ra, accept_redirects).
const settingsEvery = 500 * time.Millisecond

// settingsSettle is how often in a row settings must be other than before to be the new ones. A setting that is put
// back and changed again between two reads is the same at both.
const settingsSettle = 3

// Watched has the functions that Watch calls. Watch calls them from several goroutines, and waits for each.
type Watched struct {
	// Node is called whenever a link, address, route, policy rule, neighbour or the forwarding of the
	// namespace changes, a next hop object is deleted, an nftables table of ours changes, or a setting of the
	// daemon's links is another than half a second ago. Only neighbours
	// of the daemon's links (edgeway.*) count: their entries are permanent, while ARP learns and forgets
	// entries elsewhere all the time. Events of pods' links do not count: each pod causes dozens, and pods'
	// links are not part of the node's state, except the routes of a pod with several links (see SourceCheck), and the
	// IPv6 routes of pods on a node with IPv6 proxies (see ProxyNeigh).
	Node func()
	// Firewall is called whenever nftables changes, also for tables of ours. Firewall may be nil.
	Firewall func()
	// Pods is called when a pod's link may lack something that its wiring needs: the link went down, it lost
	// an address, a route or its forwarding, or another route may have taken the pod's packets. The start or
	// end of a pod causes no call. Pods may be nil.
	Pods func()
}

// Watch calls back when something changes, and once whenever the kernel says that it lost events. It
// returns when ctx ends.
func (k *Kernel) Watch(ctx context.Context, changed Watched) error {
	if changed.Pods == nil {
		changed.Pods = func() {}
	}
	if changed.Firewall == nil {
		changed.Firewall = func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rtnl, err := k.subscribe(unix.NETLINK_ROUTE, nodeGroups()...)
	if err != nil {
		return fmt.Errorf("watch links and routes: %w", err)
	}
	defer rtnl.Close()
	w := newWatcher()
	w.proxied = &k.proxied
	devices, err := newView(k.c).all()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	for _, d := range devices {
		w.note(d)
	}
	streams := []stream{{rtnl, w.counts, w.harmed, func() {}}}
	// A firewall that restarts flushes every table. A kernel without nftables has no such events.
	if nft, err := k.subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err == nil {
		defer nft.Close()
		streams = append(streams, stream{nft, ourTable, nil, changed.Firewall})
	}
	done := make(chan error, len(streams)+1)
	go func() { k.compareSettings(ctx, &w.tunnels, changed.Node); done <- nil }()
	for _, s := range streams {
		go func() { done <- s.read(ctx, changed) }()
	}
	for range cap(done) {
		err = errors.Join(err, <-done)
		cancel() // if one ends, the others must end too
	}
	return err
}

// compareSettings calls changed whenever a setting of the daemon's links changed, once there is such a link.
func (k *Kernel) compareSettings(ctx context.Context, tunnels *atomic.Bool, changed func()) {
	tick := time.NewTicker(settingsEvery)
	defer tick.Stop()
	settled, seen := map[string]string{}, map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !tunnels.Load() {
			continue
		}
		for _, link := range []string{VXLANLink, VXLANLink6} {
			conf := newView(k.c).linkConf(link)
			now := string(conf["ipv4"]) + string(conf["ipv6"])
			if now == "" || now == settled[link] {
				seen[link] = 0
				continue
			}
			changed() // also for a link that was just made: a setting may have changed since
			if seen[link]++; seen[link] == settingsSettle {
				settled[link], seen[link] = now, 0
			}
		}
	}
}

// nodeGroups returns the rtnetlink multicast groups that announce changes on a node. The loss of a next hop
// object deletes its routes too, and announces none of them (net/ipv4/nexthop.c: remove_nexthop).
func nodeGroups() []int {
	return []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}
}

// subscribe opens a socket for events in the runtime's poller, so that a deadline ends reads.
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

// stream is one socket of events.
type stream struct {
	f      *os.File
	counts func(datagram []byte) bool
	harmed map[int]bool // pods' links that lost something, until they are reported
	any    func()       // called with each event
}

func (s stream) read(ctx context.Context, changed Watched) error {
	stop := context.AfterFunc(ctx, func() { _ = s.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := s.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	buf := make([]byte, 64<<10)
	var report time.Time // time to report the harmed links; zero: there are none
	for {
		if len(s.harmed) > 0 && report.IsZero() {
			report = time.Now().Add(harmSettles)
			_ = s.f.SetReadDeadline(report)
		}
		if !report.IsZero() && !time.Now().Before(report) {
			if len(s.harmed) > 0 {
				changed.Pods()
			}
			clear(s.harmed)
			report = time.Time{}
			_ = s.f.SetReadDeadline(report)
		}
		if ctx.Err() != nil { // the code above may just have moved the deadline that ends the read
			return nil
		}
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("watch: %w", err)
		case errors.Is(rerr, unix.ENOBUFS): // events were lost, so the changes are not known
			changed.Node()
			changed.Pods()
			s.any()
		case rerr != nil:
			return fmt.Errorf("watch: %w", rerr)
		default:
			s.any()
			if s.counts(buf[:n]) {
				changed.Node()
			}
		}
	}
}

// ourTable reports whether one of the nftables events is about a table of ours. Attribute 1 is
// the table's name in messages about tables, chains, rules and sets (linux/netfilter/nf_tables.h).
func ourTable(b []byte) (worth bool) {
	eachMessage(b, func(h unix.NlMsghdr, body []byte) {
		if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || h.Type&0xff == unix.NFT_MSG_NEWGEN || len(body) < 4 {
			return
		}
		for typ, v := range attrs(body[4:]) { // after struct nfgenmsg
			worth = worth || (typ == 1 && slices.Contains([]string{tableName, sendersTable, sourceTable, symmetricTable}, attrName(v)))
		}
	})
	return worth
}

type watcher struct {
	links  map[int]bool // by index: the link is the daemon's
	pods   map[int]bool // by index: the link is a pod's
	up     map[int]bool // by index: the link is a pod's and up
	harmed map[int]bool // pods' links that may have lost something; elsewhere stands for any of them
	peerNS map[int]int  // index of a pod's link to the number of the pod's namespace

	tunnels atomic.Bool  // the daemon has, or had, a link
	proxied *atomic.Bool // the node has proxies that come and go with the IPv6 routes of pods
}

// elsewhere is not the index of any link.
const elsewhere = -1

func newWatcher() *watcher {
	return &watcher{links: map[int]bool{}, pods: map[int]bool{}, up: map[int]bool{}, harmed: map[int]bool{}, peerNS: map[int]int{}, proxied: &atomic.Bool{}}
}

// watched reports whether a link's neighbours are the daemon's. The neighbours of a pod's link are not: the
// kernel probes them twice a minute while they are in use, each time with an event.
func watched(d device) bool { return ours(d.Name) && d.Kind != "veth" }

func (w *watcher) note(d device) {
	w.links[d.index] = watched(d)
	if watched(d) {
		w.tunnels.Store(true)
	}
	w.pods[d.index] = ours(d.Name) && d.Kind == "veth"
	if w.up[d.index] && !d.Up {
		w.harmed[d.index] = true
	}
	w.up[d.index] = w.pods[d.index] && d.Up
	if w.pods[d.index] {
		w.peerNS[d.index] = d.peerNS
	}
}

// oneOfSeveral reports whether the link's pod has other links. Then the link's routes matter to the node's
// SourceCheck.
func (w *watcher) oneOfSeveral(index int) bool {
	ns := w.peerNS[index]
	for other, its := range w.peerNS {
		if ns != 0 && its == ns && other != index {
			return true
		}
	}
	return false
}

func (w *watcher) harm(index int) {
	if w.pods[index] {
		w.harmed[index] = true
	}
}

// ofPod reports whether an event is about an object on a pod's link that belongs to the pod's wiring.
func (w *watcher) ofPod(h unix.NlMsghdr, body []byte) bool {
	switch h.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok := parseAddr(body)
		switch {
		case ok && h.Type == unix.RTM_DELADDR && w.pods[a.index]:
			w.harm(a.index)
		case ok && !w.pods[a.index]: // the host may have lost its last address, or have an address again
			w.harmed[elsewhere] = true
		}
		return ok && w.pods[a.index]
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(body) < unix.SizeofRtMsg {
			return false
		}
		by := body[5] // rtm_protocol
		if by != uint8(ProtoPod) && by != unix.RTPROT_KERNEL {
			if h.Type == unix.RTM_NEWROUTE && (body[1] == 32 || body[1] == 128) { // rtm_dst_len
				w.harmed[elsewhere] = true // the route may take the place of a pod's route
			}
			return false
		}
		for typ, v := range attrs(body[unix.SizeofRtMsg:]) {
			if typ == unix.RTA_OIF {
				index := int(attrUint32(v))
				if h.Type == unix.RTM_DELROUTE && by == uint8(ProtoPod) {
					w.harm(index)
				}
				return w.pods[index] && !w.oneOfSeveral(index) && !(w.proxied.Load() && body[0] == unix.AF_INET6 && by == uint8(ProtoPod))
			}
		}
	}
	return false
}

// forwarding reports whether an event of settings (linux/netconf.h) is about the whole namespace or
// a known link that is not a pod's. A new link announces its settings before itself.
func (w *watcher) forwarding(body []byte) bool {
	index, off := 0, false
	for typ, v := range attrs(body[min(4, len(body)):]) { // after struct netconfmsg
		switch typ {
		case netconfIfIndex:
			index = int(int32(attrUint32(v)))
		case netconfForwarding:
			off = attrUint32(v) == 0
		}
	}
	if off && w.up[index] {
		w.harm(index)
	}
	_, known := w.links[index]
	return index < 0 || known && !w.pods[index]
}

// counts reports whether one of the events needs a look.
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
			worth = worth || !ok || !w.pods[d.index] || w.oneOfSeveral(d.index) || w.proxied.Load()
			if ok && body[0] == unix.AF_UNSPEC { // events about objects on the link came before
				delete(w.links, d.index)
				delete(w.pods, d.index)
				delete(w.up, d.index)
				delete(w.peerNS, d.index)
				delete(w.harmed, d.index)
			}
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			if len(body) < unix.SizeofNdMsg {
				break
			}
			index := int(binary.NativeEndian.Uint32(body[4:]))
			if w.links[index] {
				worth = true
			}
			if binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT != 0 { // ndm_state; our entry never is
				w.harm(index)
			}
		case unix.RTM_NEWNEXTHOP:
			// A new object has no route yet.
		case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
			worth = worth || w.forwarding(body)
		default:
			worth = worth || !w.ofPod(h, body)
		}
	})
	return worth
}
