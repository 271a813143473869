package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Sweep removes what crashes left behind: leases without a link and links without a lease. Verbs wait
// until it is done. It also makes the remaining links refuse routers and redirects. It returns one
// sentence for each change.
func (n *Node) Sweep(ctx context.Context) (did []string, err error) {
	if err := n.ready(ctx); err != nil {
		return nil, err
	}
	err = n.alone(func(host kernel) error {
		ended, err := n.collect(ctx, host, Attached.lives)
		set, rerr := refuse(ctx, host)
		did = append(ended, set...)
		return errors.Join(err, rerr)
	})
	return did, err
}

// refuse makes the host's ends of all attachments refuse routers and redirects. It covers links that an
// earlier version made, and links whose settings were changed.
func refuse(ctx context.Context, host kernel) (did []string, err error) {
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var want routes.State
	for _, l := range links {
		if l.Kind == "veth" && (isOwnLink(l.Name) || isDelegatedLink(l.Name)) {
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

func (a Attached) lives() bool { return a.Standing.Lives() }

// collect ends the leases for which keep is false, and deletes unowned links. All links go at once:
// deleting one makes the caller wait twenty milliseconds.
func (n *Node) collect(ctx context.Context, host kernel, keep func(Attached) bool) (did []string, err error) {
	all, unowned, err := n.attached(ctx, host)
	if err != nil {
		return nil, err
	}
	ended := slices.DeleteFunc(all, keep)
	links := slices.Clone(unowned)
	for _, a := range ended {
		if a.Linked {
			links = append(links, a.Link)
		}
	}
	var errs []error
	left := map[string]bool{} // a link that stays keeps its addresses; the other leases are still ended
	if err := deleteLinks(ctx, host, links...); err != nil {
		errs = append(errs, fmt.Errorf("delete links: %w", err))
		still, err := host.Links(ctx, "")
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		for _, l := range still {
			left[l.Name] = true
		}
	}
	for _, link := range unowned {
		if !left[link] {
			did = append(did, "delete link "+link+", which no lease owns")
		}
	}
	for _, a := range ended {
		l := a.Lease
		if a.Linked && left[a.Link] {
			continue
		}
		// The kernel knows nothing of an earlier boot.
		if a.Standing != EarlierBoot && !isForeign(l) {
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
	return did, errors.Join(append(errs, endStrayMasquerade(ctx, host))...)
}

// Recover says which leases of the store in dir are true on the node. The store asks when its file is new
// or damaged (ipam.Options.Recover). The host namespace is the calling thread's. A link's alias names its
// attachment; the lease of a link without an alias is kept under the link's name (see recovered).
func Recover(dir string) ([]ipam.Lease, error) {
	n, err := NewNode(nil, dir)
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
	seen, err := n.sight(ctx, host)
	if err != nil {
		return nil, err
	}
	var now []string
	for _, l := range seen.links {
		now = append(now, l.Name)
	}
	addrs, err := addrsOn(ctx, host, now...)
	if err != nil {
		return nil, err
	}
	var out []ipam.Lease
	for name, link := range seen.links {
		if len(addrs[link.Name]) == 0 {
			continue
		}
		if _, store := parseAlias(link.Alias); store != "" && store != n.Dir {
			continue // ADD passes over the addresses of another store's link
		}
		l, ok := named(name, link.Alias)
		if !ok {
			l = ipam.Lease{Attachment: ipam.Attachment{ContainerID: name}}
		}
		l.Addrs, l.BootID, l.Since = addrs[link.Name], seen.boot, time.Now()
		out = append(out, l)
	}
	return out, nil
}
