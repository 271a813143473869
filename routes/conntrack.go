package routes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FlushConntrack forgets the tracked connections that have a as source or destination, in either
// direction, so that the next holder of the address does not inherit them. A kernel without
// connection tracking has none.
func (k *Kernel) FlushConntrack(ctx context.Context, a netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var h *netlink.Handle
	err := inside(k.ns, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return ifTracked(a, err)
	}
	defer h.Close()
	_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family(a)), flowOf(a))
	return ifTracked(a, err)
}

func ifTracked(a netip.Addr, err error) error {
	for _, none := range []error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOENT, unix.EAFNOSUPPORT} {
		if errors.Is(err, none) {
			return nil // no nf_conntrack_netlink in this kernel
		}
	}
	if err != nil {
		return fmt.Errorf("forget connections of %v: %w", a, err)
	}
	return nil
}

// flowOf matches the flows of one address.
type flowOf netip.Addr

func (f flowOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == netip.Addr(f) {
			return true
		}
	}
	return false
}
