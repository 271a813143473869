package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
)

// isForeign: the lease is of an attachment that another main plugin made (see conf.network).
func isForeign(l ipam.Lease) bool { return strings.Contains(l.Network, "/") }

// linkOf is the host link of a lease of ours.
func linkOf(l ipam.Lease) string { return HostLink(l.Attachment) }

// Sweep removes what crashes left behind: leases without link and links without lease. Verbs
// wait until it is done. It returns what it removed, a sentence each.
func (n *Node) Sweep(ctx context.Context) ([]string, error) {
	if err := n.open(); err != nil {
		return nil, err
	}
	if err := n.needStore(); err != nil {
		return nil, err
	}
	n.sweep.Lock()
	defer n.sweep.Unlock()
	host, done, err := n.host()
	if err != nil {
		return nil, err
	}
	defer done()
	return n.collect(ctx, host, func(l ipam.Lease, linked bool) bool {
		if isForeign(l) {
			return !netnsGone(l.Netns)
		}
		return linked
	})
}

// collect ends the leases that keep refuses, and deletes the links that have none.
func (n *Node) collect(ctx context.Context, host kernel, keep func(l ipam.Lease, linked bool) bool) (did []string, err error) {
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	leases, err := n.leases()
	if err != nil {
		return nil, err
	}
	unowned := map[string]bool{}
	for _, l := range links {
		if isOwnLink(l.Name) {
			unowned[l.Name] = true
		}
	}
	var errs []error
	for _, l := range leases {
		link := linkOf(l)
		linked := unowned[link]
		delete(unowned, link)
		if keep(l, linked) {
			continue
		}
		if err := n.end(ctx, host, l); err != nil {
			errs = append(errs, fmt.Errorf("lease of %s: %w", l.Attachment, err))
			continue
		}
		did = append(did, fmt.Sprintf("release %v of %s", l.Addrs, l.Attachment))
	}
	for link := range unowned {
		if err := deleteLink(ctx, host, link); err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", link, err))
			continue
		}
		did = append(did, "delete link "+link+", which no lease owns")
	}
	return did, errors.Join(errs...)
}
