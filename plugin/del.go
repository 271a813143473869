package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/routes"
)

func planDel(rq request) (step, error) {
	return func(n *Node, ctx context.Context) (api.Reply, error) { return api.Reply{}, n.del(ctx, rq) }, nil
}

// del removes an attachment. It needs only the attachment's name, neither the namespace nor prevResult.
func (n *Node) del(ctx context.Context, rq request) error {
	release, err := n.enter(ctx, rq)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return n.detach(ctx, rq)
}

// detach removes an attachment: first the host's link, and with it the pod's end, the routes and
// neighbours; last the lease. An absent object counts as removed.
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
			err = n.cut(ctx, host, rq.hostLink(), addrs[rq.hostLink()])
		}
		// Ask the other plugin in any case: it knows what it gave.
		return errors.Join(err, n.delegate(ctx, rq, "DEL"))
	}
	lease, ok, err := n.lookup(rq.attachment)
	if err != nil {
		return err
	}
	if !ok {
		// The lease was never written, or the store was lost with it, or this is a second DEL. The addresses may
		// belong to another attachment by now.
		err := n.cut(ctx, host, rq.hostLink(), nil)
		return errors.Join(err, endStrayMasquerade(ctx, host))
	}
	if isForeign(lease) {
		err = n.unplug(ctx, rq, lease)
	} else {
		err = n.cut(ctx, host, linkOf(lease), lease.Addrs)
	}
	if err != nil {
		return err
	}
	err = n.release(ctx, lease.Attachment)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// A full disk must not keep the pod from ending. Only the lease is left, and its holder is seen
		// to be gone: a sweep, or the next ADD that needs the address, ends the lease.
		return nil
	}
	return err
}

// cut removes a host link by the name that ADD gave it, and the rest of what the kernel keeps about its
// addresses.
func (n *Node) cut(ctx context.Context, host kernel, link string, addrs []netip.Addr) error {
	existed, err := n.deleteLink(ctx, host, link)
	if err == nil && !existed {
		var links hostLinks
		if links, err = findHostLinks(ctx, host); err == nil && links[link].Name != "" { // renamed
			_, err = n.deleteLink(ctx, host, links[link].Name)
		}
	}
	if err != nil {
		return fault(codeWiring, "delete link %s: %w", link, err).next("check ip link show %s", link)
	}
	_ = n.answer(ctx, host, addrs) // a file that nobody can read must not keep the pod from ending
	return forget(ctx, host, addrs)
}

// deleteLink removes a link of ours and everything on it, and reports whether the link existed.
func (n *Node) deleteLink(ctx context.Context, host kernel, link string) (existed bool, err error) {
	if n.deletions != nil {
		return n.deletions.Delete(ctx, link)
	}
	deleted, err := host.Sync(ctx, routes.Scope{Links: []string{link}}, routes.State{})
	return len(deleted) > 0, err
}

// forget removes what the kernel keeps about addresses apart from their link. It ends masquerade whatever
// the configuration says, since ipMasq may have changed after ADD.
func forget(ctx context.Context, host kernel, addrs []netip.Addr) error {
	err := endMasquerade(ctx, host, addrs)
	if err = errors.Join(err, endFlows(ctx, host, addrs)); err != nil {
		return fmt.Errorf("end masquerade and tracked connections of %v: %w", addrs, err)
	}
	return nil
}
