package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// del removes an attachment. It needs no more than its name: not the namespace, nor prevResult.
func (n *Node) del(ctx context.Context, rq request) (reply api.Reply, err error) {
	release, err := n.enter(ctx, rq)
	if err != nil {
		return reply, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return reply, n.detach(ctx, rq)
}

// detach removes what the attachment has: first the host's link, and with it the pod's end, the
// routes and neighbours; the lease last. What is absent counts as removed.
func (n *Node) detach(ctx context.Context, rq request) error {
	if rq.conf.ipamOnly() {
		return n.release(ctx, rq.attachment)
	}
	host, done, err := n.host()
	if err != nil {
		return err
	}
	defer done()
	if rq.conf.delegated() {
		addrs, err := addrsOn(ctx, host, rq.hostLink())
		if err == nil {
			err = n.cut(ctx, host, rq.hostLink(), addrs)
		}
		// The other plugin is asked in any case: it knows what it gave.
		return errors.Join(err, n.delegate(ctx, rq, "DEL"))
	}
	lease, ok, err := n.lookup(rq.attachment)
	if err != nil {
		return err
	}
	if !ok {
		// Its addresses may be another's by now.
		return n.cut(ctx, host, rq.hostLink(), nil)
	}
	return n.end(ctx, host, lease)
}

// end removes a leased attachment.
func (n *Node) end(ctx context.Context, host kernel, l ipam.Lease) error {
	if !isForeign(l) {
		if err := n.cut(ctx, host, linkOf(l), l.Addrs); err != nil {
			return err
		}
	}
	return n.release(ctx, l.Attachment)
}

// cut removes a host link and what is kept about its addresses elsewhere in the kernel.
func (n *Node) cut(ctx context.Context, host kernel, link string, addrs []netip.Addr) error {
	if err := deleteLink(ctx, host, link); err != nil {
		return fault(codeWiring, "delete link %s: %w", link, err).next("look at ip link show %s", link)
	}
	if err := endFlows(ctx, host, addrs); err != nil {
		return fmt.Errorf("addresses %v: %w", addrs, err)
	}
	return nil
}
