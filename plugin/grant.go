package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// grant is what an attachment may use, from the store or from another IPAM plugin.
type grant struct {
	lease  ipam.Lease // zero when delegated
	addrs  []netip.Addr
	routes []podRoute
	dns    types.DNS
}

// order is an ADD with everything that it asks for checked.
type order struct {
	request
	pod    ipam.Pod
	mac    string
	addrs  []netip.Addr
	pool   *ipam.Pool
	routes []podRoute
}

// newOrder checks all that can be checked without touching anything.
func newOrder(rq request) (order, error) {
	o := order{request: rq}
	a, err := parseArgs(rq.cni.Args)
	if err != nil {
		return o, err
	}
	o.pod = a.pod
	if o.mac, err = rq.conf.mac(a); err != nil {
		return o, err
	}
	if o.addrs, err = rq.conf.requested(a); err != nil {
		return o, err
	}
	if rq.conf.delegated() {
		return o, nil // the rest of ipam is the other plugin's
	}
	if o.pool, err = rq.conf.pool(); err != nil {
		return o, err
	}
	if o.pool != nil {
		if err := o.pool.Validate(); err != nil {
			return o, err
		}
	}
	o.routes, err = rq.conf.routes()
	return o, err
}

func (c conf) routes() (out []podRoute, err error) {
	for _, r := range c.IPAM.Routes {
		parsed, err := r.parse()
		if err != nil {
			return nil, err
		}
		out = append(out, parsed)
	}
	return out, nil
}

// obtain gets the addresses of the order.
func (n *Node) obtain(ctx context.Context, k kernel, o order) (grant, error) {
	if o.conf.delegated() {
		return n.delegateAdd(ctx, o.request)
	}
	lease, err := n.Store.Allocate(ctx, ipam.Request{
		Attachment: o.attachment, Network: o.conf.network(), Pod: o.pod, Pool: o.pool, Addrs: o.addrs,
		Netns: o.cni.Netns, Dead: n.dead(ctx, k, o.attachment),
	})
	if err != nil {
		return grant{}, fmt.Errorf("network %s: %w", o.conf.Name, err)
	}
	return grant{lease: lease, addrs: lease.Addrs, routes: podRoutes(o.routes, lease.Addrs), dns: o.conf.DNS}, nil
}

// giveBack ends what obtain got.
func (n *Node) giveBack(ctx context.Context, rq request) error {
	if rq.conf.delegated() {
		return n.delegate(ctx, rq, "DEL")
	}
	return n.release(ctx, rq.attachment)
}

// dead judges a lease of this boot: its holder is gone when its link is. A verb that works on
// the holder proves it alive: its link may be in the making. An attachment of another main plugin
// has no link of ours, and is gone with its namespace.
func (n *Node) dead(ctx context.Context, k kernel, self ipam.Attachment) func(ipam.Lease) bool {
	return func(l ipam.Lease) bool {
		if l.Attachment != self && n.attachments.busy(l.Attachment) {
			return false
		}
		if isForeign(l) {
			return netnsGone(l.Netns)
		}
		exists, err := linkExists(ctx, k, linkOf(l))
		return err == nil && !exists
	}
}

// netnsGone reports that nothing is at path any more, or a plain file: the rest of an unmounted
// namespace.
func netnsGone(path string) bool {
	if path == "" {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return !isNetnsFile(f)
}

// endFlows makes the next holder of the addresses start afresh.
func endFlows(ctx context.Context, k kernel, addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		errs = append(errs, k.DelMasq(ctx, a), k.FlushConntrack(ctx, a))
	}
	return errors.Join(errs...)
}

// addrsOn are the pod addresses that lead to a host link: its permanent neighbours.
func addrsOn(ctx context.Context, k kernel, link string) ([]netip.Addr, error) {
	observed, err := k.Observe(ctx, routes.Scope{Links: []string{link}}, routes.State{})
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, n := range observed.Neighs {
		if n.Link == link && !n.IP.IsMulticast() {
			out = append(out, n.IP)
		}
	}
	return out, nil
}
