package plugin

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// ensureUplinks makes the rules of a node with uplinks, before there is a pod. The daemon does that while it runs;
// without a daemon, after a reboot, the first ADD does it. Addresses of interfaces that are not there are not leased.
func (n *Node) ensureUplinks(ctx context.Context, host kernel, o order) (order, error) {
	if n.reopen == nil || o.pool != nil || o.conf.delegated() {
		return o, nil
	}
	u, err := uplink.Read(filepath.Join(n.Dir, uplink.File))
	if err != nil {
		return o, fault(codeIO, "%w", err).next("start edgewayd")
	}
	if len(u.Interfaces) == 0 {
		return o, nil
	}
	var h routes.Host
	for made := true; made && err == nil; { // a VLAN link gets its rules once it is there
		var changes []routes.Change
		if h, err = host.Host(ctx); err == nil {
			changes, err = host.Sync(ctx, routes.Scope{}, u.State(h))
		}
		made = slices.ContainsFunc(changes, func(c routes.Change) bool { _, link := c.Object.(routes.Link); return link && c.Op == routes.Add })
	}
	if err != nil {
		return o, fault(codeWiring, "the node's uplinks: %w", err).next("check ip rule, ip link and dmesg of the host")
	}
	if missing := u.Missing(h); len(missing) > 0 {
		o.pool, err = n.reserve(o.pool, missing)
	}
	return o, err
}

// SetProxies says to a process that keeps the store, which is the daemon, what its last look at the uplinks decided about
// proxy entries.
func (n *Node) SetProxies(decided []routes.ProxyNeigh) { n.decided.Store(&decided) }

// proxies returns the proxy entries for the addresses of all uplinks.
func (n *Node) proxies(ctx context.Context, host kernel) ([]routes.ProxyNeigh, error) {
	if n.reopen == nil {
		if decided := n.decided.Load(); decided != nil {
			return *decided, nil
		}
		return nil, nil
	}
	u, err := uplink.Read(filepath.Join(n.Dir, uplink.File))
	if err != nil || len(u.Interfaces) == 0 {
		return nil, err
	}
	h, err := host.Host(ctx)
	return u.State(h).Proxies, err
}

// answer makes the kernel answer neighbour solicitations for those of a pod's IPv6 addresses that are of an uplink
// (routes.ProxyNeigh), when the pod has started, and no more when it has ended. The daemon's next look would do so too, some
// 100 ms later: a neighbour would ask in vain, and ask again after a second (RFC 4861, section 10: RETRANS_TIMER).
func (n *Node) answer(ctx context.Context, host kernel, addrs []netip.Addr) error {
	if !slices.ContainsFunc(addrs, netip.Addr.Is6) {
		return nil
	}
	all, err := n.proxies(ctx, host)
	var its []routes.ProxyNeigh
	for _, p := range all {
		if p.IP.Is6() && slices.Contains(addrs, p.IP) {
			its = append(its, p)
		}
	}
	if err != nil || len(its) == 0 {
		return err
	}
	_, err = host.Sync(ctx, routes.Scope{}, routes.State{Proxies: its})
	return err
}

// announce announces those of a pod's IPv4 addresses that are of an uplink to its LAN, which may know them at another node. A
// process that serves many calls does not wait for that. A LAN that does not hear it, or a kernel without the table
// (routes.Announced), finds the pod once the LAN asks again. Neighbour discovery of IPv6 asks within a minute (RFC 4861,
// section 7.3).
func (n *Node) announce(ctx context.Context, host kernel, addrs []netip.Addr) {
	all, err := n.proxies(ctx, host)
	var its []routes.ProxyNeigh
	for _, p := range all {
		if p.IP.Is4() && slices.Contains(addrs, p.IP) {
			its = append(its, p)
		}
	}
	if err != nil || len(its) == 0 {
		return
	}
	if n.reopen != nil {
		for _, p := range its {
			_ = host.Announce(ctx, p.Link, p.IP)
		}
		return
	}
	n.announcing.Go(func() {
		host, done, err := n.host()
		if err != nil {
			return
		}
		defer done()
		for _, p := range its {
			_ = host.Announce(context.WithoutCancel(ctx), p.Link, p.IP)
		}
	})
}
