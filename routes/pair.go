package routes

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// MakePair makes the veth pair l, and adds all objects of furnish's State on the end in this namespace. It does not
// read the new link first, because a new link is empty. So MakePair sends two messages to the kernel, while Sync
// sends ten. peer is the index of the other end, or 0 if the kernel does not report the index (before Linux 6.2).
//
// The first message also asks for the holders of addrs, before the link exists: furnish gets what Holders returns.
// Without addrs it gets nothing.
//
// After an error, also one of furnish, the pair may be incomplete. Sync reports what is wrong.
func (k *Kernel) MakePair(ctx context.Context, l Link, addrs []netip.Addr, furnish func(held []Route, sourceless bool) (State, error)) (peer int, err error) {
	if l.Peer == nil {
		return 0, errors.New("a pair needs a link with a peer")
	}
	m, err := linkMessage(l, 0, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if err != nil {
		return 0, err
	}
	var ask []message
	if len(addrs) > 0 {
		ask = askHolders(addrs)
	}
	v := newView(k.c)
	description, answers, errs, err := k.c.create(ask, m, aliasMessage(l))
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", l.Name, err)
	}
	var held []Route
	var sourceless bool
	if len(addrs) > 0 {
		held, sourceless = k.holders(addrs, answers, errs)
	}
	desired, err := furnish(held, sourceless)
	if err != nil {
		return 0, err
	}
	l.Alias = ""
	desired.Links = []Link{l}
	if d, ok := parseLink(description); ok {
		v.put(d)
		v.noteConf(d.Name, description)
		for typ, value := range attrs(description[unix.SizeofIfInfomsg:]) {
			if typ == unix.IFLA_LINK {
				peer = int(attrUint32(value))
			}
		}
	}
	return peer, k.furnish(ctx, v, desired)
}

// Fill adds all objects that desired has on the link to the empty link with that index, and sets the link
// up. Fill does not read the link first.
func (k *Kernel) Fill(ctx context.Context, index int, desired State) error {
	if len(desired.Links) != 1 || index <= 0 {
		return errors.New("exactly one desired link and its index are needed")
	}
	if slices.ContainsFunc(desired.Addrs, func(a Addr) bool { return a.Prefix.Addr().Is6() }) {
		if _, err := k.c.listenLocal(); err != nil {
			return err
		}
	}
	v := newView(k.c)
	v.put(device{Link: desired.Links[0], index: index})
	return k.furnish(ctx, v, desired)
}

// furnish adds all objects of desired to the new link that desired names.
func (k *Kernel) furnish(ctx context.Context, v *view, desired State) error {
	v.quiet = true
	link := Change{Op: Add, Object: desired.Links[0]}
	a := applier{k: k, v: v, ctx: ctx}
	a.raise(&link)
	elsewhere := State{Masq: desired.Masq, NAT: desired.NAT, Senders: desired.Senders}
	observed, err := k.observe(ctx, v, Scope{}, elsewhere)
	if err != nil {
		return err
	}
	desired.Links = nil
	changes := Diff(observed, desired)
	a.apply(changes)
	errs := []error{link.Err}
	for _, c := range changes {
		errs = append(errs, c.Err)
	}
	return errors.Join(errs...)
}

// aliasMessage sets the alias of a link. The kernel finds the link by its name.
func aliasMessage(l Link) message {
	return linkHeader(unix.RTM_NEWLINK, 0).attrString(unix.IFLA_IFNAME, l.Name).attr(unix.IFLA_IFALIAS, []byte(l.Alias))
}

// create sends a request that makes an object together with the request that must follow, behind questions with one
// answer each. A process that is killed has sent all requests or none. create returns the kernel's description of
// the object, or nil before Linux 6.2, and the answer or error of each question.
func (c *conn) create(ask []message, m, then message) (description []byte, answers [][]byte, errs []error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answers, errs = make([][]byte, len(ask)), make([]error, len(ask))
	asked := c.seq + 1
	var out []byte
	for _, q := range ask {
		out = append(out, c.stamp(q)...)
	}
	flags := binary.NativeEndian.Uint16(m[6:]) | unix.NLM_F_ACK | unix.NLM_F_ECHO
	binary.NativeEndian.PutUint16(m[6:], flags)
	binary.NativeEndian.PutUint16(then[6:], binary.NativeEndian.Uint16(then[6:])|unix.NLM_F_ACK)
	c.writes.Add(2)
	if err := c.send(append(append(out, c.stamp(m)...), c.stamp(then)...)); err != nil {
		return nil, nil, nil, err
	}
	first, left := c.seq-1, 2 // the acknowledgements of m and then come last
	for left > 0 {
		rerr := c.receive(func(h unix.NlMsghdr, body []byte) {
			switch i := int(h.Seq - asked); {
			case i >= 0 && i < len(ask) && h.Type == unix.NLMSG_ERROR:
				errs[i] = ackError(h, body)
			case i >= 0 && i < len(ask):
				answers[i] = append([]byte(nil), body...)
			case h.Seq != first && h.Seq != c.seq:
			case h.Type == unix.NLMSG_ERROR:
				left--
				err = cmp.Or(err, ackError(h, body))
			case h.Seq == first:
				description = append([]byte(nil), body...)
			}
		})
		if rerr != nil {
			return nil, nil, nil, rerr
		}
	}
	return description, answers, errs, err
}

// localTimeout bounds the wait for a new IPv6 address. The wait takes 0.1 ms on an idle machine. A machine that
// is busy with other work has needed more than 200 ms, and the pod's first packet was lost.
const localTimeout = 2 * time.Second

// AwaitLocal waits until the namespace receives packets for its new IPv6 addresses. The kernel installs
// their local routes from a work queue, even without duplicate detection (net/ipv6/addrconf.c:
// addrconf_dad_work), and announces them. A route that misses the timeout follows soon.
func (k *Kernel) AwaitLocal(ctx context.Context, addrs []netip.Addr) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), netip.Addr.Is4)
	if len(addrs) == 0 || ctx.Err() != nil {
		return
	}
	since, err := k.c.listenLocal()
	if err != nil {
		return
	}
	if !since { // Fill did not make the addresses: they may exist already
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
			way, err := k.Lookup(ctx, a)
			return err == nil && !way.Via.IsValid()
		})
	}
	k.c.awaitLocal(addrs)
}

// listenLocal makes the kernel announce new IPv6 routes to this socket. The socket was bound when it was
// opened: an unbound socket receives no announcements. before reports whether the socket was already listening.
func (c *conn) listenLocal() (before bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.local != nil {
		return true, nil
	}
	c.local = &[]netip.Addr{}
	return false, unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV6_ROUTE)
}

// noteLocal keeps the address of an announced local route.
func (c *conn) noteLocal(h unix.NlMsghdr, body []byte) {
	if h.Type != unix.RTM_NEWROUTE || len(body) < unix.SizeofRtMsg || body[7] != unix.RTN_LOCAL { // rtm_type
		return
	}
	for typ, v := range attrs(body[unix.SizeofRtMsg:]) {
		if typ == unix.RTA_DST {
			*c.local = append(*c.local, attrAddr(v))
		}
	}
}

func (c *conn) awaitLocal(addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	begin := time.Now()
	for {
		missing := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(*c.local, a) })
		left := localTimeout - time.Since(begin)
		if !missing || left <= 0 {
			break
		}
		wait := unix.NsecToTimeval(left.Nanoseconds())
		if unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait) != nil || c.receive(func(unix.NlMsghdr, []byte) {}) != nil {
			break
		}
	}
	_ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replyTimeout})
}

// Cookie is the number of the namespace. The kernel never reuses the number within a boot. Cookie is 0
// before Linux 5.14.
func (k *Kernel) Cookie() uint64 {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	cookie, err := unix.GetsockoptUint64(k.c.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// Settle makes an end of a pair usable at once. When a carrier comes up, the kernel leaves the rest to a
// work queue for up to a second (net/core/link_watch.c). The end that was set up first needs a queue
// discipline (net/sched/sch_generic.c: dev_activate): without it, everything that the end sends is dropped.
// IPv6 addresses need the state UP (net/ipv6/addrconf.c: addrconf_dad_begin). A request for the carrier
// does both at once (net/ethtool/ioctl.c: ethtool_op_get_link calls linkwatch_sync_dev).
func (k *Kernel) Settle(link string) error {
	if _, err := k.ethtool(link, unix.ETHTOOL_GLINK, 0); err != nil {
		return fmt.Errorf("carrier of %s: %w", link, err)
	}
	return nil
}
