package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// isForeign: the lease is of an attachment that another main plugin made (see conf.network).
func isForeign(l ipam.Lease) bool { return strings.Contains(l.Network, "/") }

// linkOf is the host link of a lease of ours.
func linkOf(l ipam.Lease) string {
	if isRecovered(l) {
		return l.Attachment.ContainerID
	}
	return HostLink(l.Attachment)
}

// recovered is the key of the attachment's lease when the store was rebuilt from the node's links.
// No CNI attachment lacks an interface name.
func recovered(a ipam.Attachment) ipam.Attachment { return ipam.Attachment{ContainerID: HostLink(a)} }

func isRecovered(l ipam.Lease) bool { return l.Attachment.IfName == "" }

// Sweep removes what crashes left behind: leases without link and links without lease. Verbs
// wait until it is done. It also makes the links that stay refuse routers and redirects. It returns
// what it did, a sentence each.
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
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	did, err := n.collect(ctx, host, alive(boot))
	set, rerr := refuse(ctx, host)
	return append(did, set...), errors.Join(err, rerr)
}

// refuse makes the host's ends of all attachments refuse routers and redirects: links that an earlier
// version made, and links whose settings somebody changed.
func refuse(ctx context.Context, host kernel) (did []string, err error) {
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var want routes.State
	for _, l := range links {
		if l.Kind == "veth" && hostLinkShape(l.Name) {
			want.Sysctls = append(want.Sysctls, routes.Refusals(l.Name)...)
		}
	}
	changes, err := host.Sync(ctx, routes.Scope{}, want)
	for _, c := range changes {
		if c.Err == nil {
			did = append(did, fmt.Sprintf("set %v: the pod could change the routes of this node", c.Object))
		}
	}
	return did, err
}

// hostLinkShape reports whether a host end of ours can have the name.
func hostLinkShape(name string) bool {
	digits := strings.TrimPrefix(name, linkPrefix)
	return digits != name && (len(digits) == linkDigits || len(digits) == delegatedNetwork+delegatedDigits) &&
		strings.Trim(digits, "0123456789abcdef") == ""
}

// alive is what Sweep keeps: a lease with its link. An attachment of another main plugin has none;
// it lasts as long as its namespace, which no reboot leaves.
func alive(boot string) func(l ipam.Lease, linked bool) bool {
	return func(l ipam.Lease, linked bool) bool {
		if isForeign(l) {
			return l.BootID == boot && !netnsGone(l.Netns)
		}
		return linked
	}
}

// litter is what crashes left behind.
type litter struct {
	leases []ipam.Lease
	linked []string // links of those leases
	links  []string // that no lease owns
}

// litter finds the leases that keep refuses, and the links that have none.
func (n *Node) litter(ctx context.Context, host kernel, keep func(l ipam.Lease, linked bool) bool) (out litter, err error) {
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return out, fmt.Errorf("list links: %w", err)
	}
	leases, err := n.leases()
	if err != nil {
		return out, err
	}
	unowned := map[string]bool{}
	for _, l := range links {
		if isOwnLink(l.Name) {
			unowned[l.Name] = true
		}
	}
	for _, l := range leases {
		link := linkOf(l)
		linked := unowned[link]
		delete(unowned, link)
		if keep(l, linked) {
			continue
		}
		out.leases = append(out.leases, l)
		if linked {
			out.linked = append(out.linked, link)
		}
	}
	out.links = slices.Sorted(maps.Keys(unowned))
	return out, nil
}

// collect ends the leases that keep refuses, and deletes the links that have none. All links go
// at once: to delete one takes its caller twenty milliseconds of waiting.
func (n *Node) collect(ctx context.Context, host kernel, keep func(l ipam.Lease, linked bool) bool) (did []string, err error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	found, err := n.litter(ctx, host, keep)
	if err != nil {
		return nil, err
	}
	var errs []error
	left := map[string]bool{} // a link that stays keeps its addresses; the others are ended all the same
	if err := deleteLinks(ctx, host, append(found.linked, found.links...)...); err != nil {
		errs = append(errs, fmt.Errorf("delete links: %w", err))
		links, err := host.Links(ctx, linkPrefix)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		for _, l := range links {
			left[l.Name] = true
		}
	}
	for _, link := range found.links {
		if !left[link] {
			did = append(did, "delete link "+link+", which no lease owns")
		}
	}
	for _, l := range found.leases {
		if !isForeign(l) && left[linkOf(l)] {
			continue
		}
		// Of an earlier boot the kernel knows nothing.
		if l.BootID == boot && !isForeign(l) {
			if err := forget(ctx, host, l.Addrs); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if err := n.release(ctx, l.Attachment); err != nil {
			errs = append(errs, err)
			continue
		}
		did = append(did, fmt.Sprintf("release %v of %s", l.Addrs, l.Attachment))
	}
	return did, errors.Join(errs...)
}

// Recover says which leases are true on the node: the store asks when its file is new or damaged
// (ipam.Options.Recover). The host namespace is the calling thread's. A link's alias tells its
// attachment; the lease of one without is kept under the link's name (see recovered).
func Recover() ([]ipam.Lease, error) {
	n, err := NewNode(nil)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	host, done, err := n.host()
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), verbTimeout)
	defer cancel()
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var own []string
	alias := map[string]string{}
	for _, l := range links {
		if isOwnLink(l.Name) {
			own = append(own, l.Name)
			alias[l.Name] = l.Alias
		}
	}
	addrs, err := addrsOn(ctx, host, own...)
	if err != nil {
		return nil, err
	}
	var out []ipam.Lease
	for _, link := range own {
		if len(addrs[link]) == 0 {
			continue
		}
		l, ok := named(link, alias[link])
		if !ok {
			l = ipam.Lease{Attachment: ipam.Attachment{ContainerID: link}}
		}
		l.Addrs, l.BootID, l.Since = addrs[link], boot, time.Now()
		out = append(out, l)
	}
	return out, nil
}
