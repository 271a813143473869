package plugin

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// lend is ADD for another main plugin: addresses without links.
func (n *Node) lend(ctx context.Context, o order) (reply api.Reply, err error) {
	release, err := n.enter(ctx, o.request)
	if err != nil {
		return reply, err
	}
	defer release()
	if o.pool, err = n.lendPool(o.pool); err != nil {
		return reply, err
	}
	host, done, err := n.host()
	if err != nil {
		return reply, err
	}
	defer done()
	var cookie uint64
	if o.netns != nil {
		cookie, _ = cookieIn(o.netns) // without the number only the path counts
	}
	g, err := n.obtain(ctx, host, o, cookie, true)
	if err != nil {
		return reply, err
	}
	reply, err = printed(o.lent(g.lease), o.conf.CNIVersion)
	if err = errors.Join(err, g.commit(ctx)); err != nil {
		return api.Reply{}, errors.Join(err, n.giveBack(context.WithoutCancel(ctx), o.request))
	}
	reply.Undelivered = func(ctx context.Context) { n.withdraw(ctx, o.request, g.lease) }
	return reply, nil
}

// lent is the abbreviated result of an IPAM plugin (SPEC 1.1.0 section 5): addresses with the length and
// gateway of their subnets.
func (o order) lent(l ipam.Lease) *current.Result {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: o.conf.DNS}
	for _, a := range l.Addrs {
		ip := &current.IPConfig{Address: ipNet(single(a))}
		for _, set := range o.pool.Sets {
			for _, r := range set {
				if r.Subnet.Contains(a) {
					ip.Address = ipNet(netip.PrefixFrom(a, r.Subnet.Bits()))
					ip.Gateway = gatewayOf(r).AsSlice()
				}
			}
		}
		out.IPs = append(out.IPs, ip)
	}
	for _, r := range o.routes {
		out.Routes = append(out.Routes, r.asked())
	}
	return out
}

// lendPool is the pool with each subnet's gateway named, so that the gateway is never leased: the main
// plugin gives it to the host.
func (n *Node) lendPool(pool *ipam.Pool) (*ipam.Pool, error) {
	pool, err := n.poolOf(pool)
	if err != nil {
		return nil, err
	}
	out := &ipam.Pool{Reserved: pool.Reserved}
	for _, set := range pool.Sets {
		set = slices.Clone(set)
		for i := range set {
			set[i].Gateway = gatewayOf(set[i])
		}
		out.Sets = append(out.Sets, set)
	}
	return out, nil
}

// gatewayOf is the subnet's gateway: by default the first address, as in host-local.
func gatewayOf(r ipam.Range) netip.Addr {
	if r.Gateway.IsValid() {
		return r.Gateway
	}
	return r.Subnet.Masked().Addr().Next()
}

// asked is the route as configured: the main plugin fills in the next hop.
func (r podRoute) asked() *types.Route {
	out := &types.Route{Dst: ipNet(r.dst), MTU: r.mtu, AdvMSS: r.advMSS, Priority: r.priority, Table: r.table, Scope: r.scope}
	if r.via.IsValid() {
		out.GW = r.via.AsSlice()
	}
	return out
}
