package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Messages and attributes of connection tracking (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP = 1
	ctaIPv4Src = 1 // then IPv4 destination, IPv6 source, IPv6 destination
	ctaIPv6Src = 3
)

// FlushConntrack deletes the tracked connections that have a as source or destination, in either
// direction, so that the next holder of the address does not inherit them. A kernel without
// connection tracking is not an error.
//
// The kernel filters (Linux 5.8, CTA_FILTER), so a table of many thousand entries is not copied.
func (k *Kernel) FlushConntrack(ctx context.Context, a netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := k.netfilter()
	if err != nil {
		return ifTracked(a, err)
	}
	for _, tuple := range []uint16{ctaTupleOrig, ctaTupleReply} {
		for end := range uint16(2) {
			doomed, err := dump(c, flowsOf(a, tuple, end), 0, func(b []byte) (message, bool) { return flowDeletion(b, a) })
			if err != nil {
				return ifTracked(a, err)
			}
			for _, err := range c.change(doomed...) {
				if err != nil && !absent(err) {
					return ifTracked(a, err)
				}
			}
		}
	}
	return nil
}

func ifTracked(a netip.Addr, err error) error {
	if unsupported(err) {
		return nil // the kernel has no nf_conntrack_netlink
	}
	return fmt.Errorf("delete tracked connections of %v: %w", a, err)
}

// unsupported reports whether the kernel lacks a part of netfilter (net/netfilter/nfnetlink.c:
// nfnetlink_rcv_msg).
func unsupported(err error) bool {
	return slices.ContainsFunc([]error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL, unix.EAFNOSUPPORT}, func(none error) bool { return errors.Is(err, none) })
}

func ctMessage(typ uint16, a netip.Addr) message {
	return newMessage(typ, 0, []byte{family(a), unix.NFNETLINK_V0, 0, 0})
}

// flowsOf requests the flows that have a at one end (0: source, 1: destination) of one tuple.
func flowsOf(a netip.Addr, tuple, end uint16) message {
	ip := ctaIPv4Src + end
	if a.Is6() {
		ip = ctaIPv6Src + end
	}
	m := ctMessage(ctGet, a)
	m = m.nest(tuple|unix.NLA_F_NESTED, func(m message) message {
		return m.nest(ctaTupleIP|unix.NLA_F_NESTED, func(m message) message { return m.attrAddr(ip, a) })
	})
	// An attribute's number names a tuple, and its flags say which fields of the tuple count.
	return m.nest(ctaFilter|unix.NLA_F_NESTED, func(m message) message {
		for t := uint16(ctaTupleOrig); t <= ctaTupleReply; t++ {
			flags := uint32(0)
			if t == tuple {
				flags = 1 << end // CTA_FILTER_F_CTA_IP_SRC, _DST
			}
			m = m.attr32(t, flags)
		}
		return m
	})
}

// flowDeletion returns the request that deletes the flow in b, if the flow contains a. An old kernel does
// not filter and lists every flow.
func flowDeletion(b []byte, a netip.Addr) (message, bool) {
	if len(b) < 4 {
		return nil, false
	}
	m, has := ctMessage(ctDelete, a), false
	for typ, v := range attrs(b[4:]) { // after struct nfgenmsg
		switch typ {
		case ctaTupleOrig:
			m = m.attr(typ|unix.NLA_F_NESTED, v)
			has = has || tupleHas(v, a)
		case ctaTupleReply:
			has = has || tupleHas(v, a)
		case ctaID, ctaZone:
			m = m.attr(typ, v)
		}
	}
	return m, has
}

func tupleHas(tuple []byte, a netip.Addr) bool {
	for typ, v := range attrs(tuple) {
		if typ != ctaTupleIP {
			continue
		}
		for _, ip := range attrs(v) {
			if attrAddr(ip) == a {
				return true
			}
		}
	}
	return false
}
