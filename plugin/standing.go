package plugin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Standing says whether the holder of a lease lives. The kernel is asked, never the cluster.
type Standing string

const (
	Alive       Standing = "alive"        // its host link exists, perhaps under another name
	Unlinked    Standing = "unlinked"     // its host link is gone, its network namespace exists
	Foreign     Standing = "foreign"      // another main plugin made the attachment; nothing shows that it is gone
	Dead        Standing = "dead"         // its host link is gone or, if foreign, its namespace
	EarlierBoot Standing = "earlier boot" // its pod ended with the machine's last run
)

// Lives reports whether the pod may still use its addresses: they must not be leased again.
func (s Standing) Lives() bool { return s != Dead && s != EarlierBoot }

// judge alone decides whether the holder of a lease lives. A host link proves that the holder lives.
// Without a link the pod's namespace counts: the interface may have been renamed, moved or deleted while
// the pod still exists. netns is called only then.
func judge(l ipam.Lease, links hostLinks, boot string, netns func(ipam.Lease) presence) Standing {
	if _, linked := links.of(l); linked {
		return Alive
	}
	if l.BootID != boot {
		return EarlierBoot
	}
	switch p := netns(l); {
	case isForeign(l) && p != gone:
		return Foreign
	case p == present:
		return Unlinked
	}
	return Dead
}

// sight is one observation by which leases are judged.
type sight struct {
	boot  string
	links hostLinks
}

func (n *Node) sight(ctx context.Context, host kernel) (s sight, err error) {
	if s.boot, err = BootID(); err != nil {
		return s, err
	}
	s.links, err = findHostLinks(ctx, host)
	return s, err
}

func (s sight) judge(l ipam.Lease) Standing { return judge(l, s.links, s.boot, netnsOf) }

// Attached is a lease and what the kernel says about it.
type Attached struct {
	Lease    ipam.Lease
	Standing Standing
	Link     string // the host's end; "" if another main plugin made it
	Linked   bool   // the link exists
	MTU      int    // of the link, in bytes; 0: the link does not exist
}

// attached judges all leases, oldest first. unowned are host links of this store that no lease owns: a
// name proves nothing, and other stores have links too. Only a caller that keeps verbs off may act on
// unowned: an ADD of the daemon makes the link while the lease is written. Links are read before leases: a
// process without a daemon makes the link when the lease is on disk.
func (n *Node) attached(ctx context.Context, host kernel) (all []Attached, unowned []string, err error) {
	s, err := n.sight(ctx, host)
	if err != nil {
		return nil, nil, err
	}
	leases, err := n.leases()
	if err != nil {
		return nil, nil, err
	}
	rest := maps.Clone(s.links)
	for _, l := range leases {
		a := Attached{Lease: l, Standing: s.judge(l)}
		if !isForeign(l) {
			link, linked := s.links.of(l)
			a.Link, a.Linked, a.MTU = link.Name, linked, link.MTU
			if !linked {
				a.Link = linkOf(l)
			}
			delete(rest, linkOf(l))
		}
		all = append(all, a)
	}
	for name, link := range rest {
		_, ours := named(name, link.Alias)
		if _, store := parseAlias(link.Alias); ours && store == n.Dir && store != "" && link.Kind == "veth" {
			unowned = append(unowned, link.Name)
		}
	}
	slices.Sort(unowned)
	return all, unowned, nil
}

// dead answers ipam.Request.Dead for an ADD of the attachment self. A running verb of another attachment
// proves that attachment alive. ADD replaces the lease of its own attachment unless the link and the
// namespace exist: the link may have been lost, and a retry may come with a new namespace.
func (n *Node) dead(ctx context.Context, host kernel, self ipam.Attachment) func(ipam.Lease) bool {
	look := sync.OnceValues(func() (sight, error) { return n.sight(ctx, host) })
	return func(l ipam.Lease) bool {
		if l.Attachment != self {
			unclaim, err := ipam.TryClaim(n.Store.Path(), l.Attachment)
			if err != nil {
				return false
			}
			_ = unclaim() // nothing was written to the file
		}
		s, err := look()
		if err != nil {
			return false
		}
		standing := s.judge(l)
		if l.Attachment == self && (standing == Unlinked || netnsOf(l) == gone) {
			return true
		}
		return !standing.Lives()
	}
}

// hostLinks are the host's ends of attachments, under the names that ADD gave them. A link may have been
// renamed since.
type hostLinks map[string]routes.Link

// of returns the host link of a lease. An attachment of another main plugin has none.
func (h hostLinks) of(l ipam.Lease) (routes.Link, bool) {
	if isForeign(l) {
		return routes.Link{}, false
	}
	link, ok := h[linkOf(l)]
	return link, ok
}

// findHostLinks lists the host's ends. It knows a renamed link by its alias and MAC.
func findHostLinks(ctx context.Context, host kernel) (hostLinks, error) {
	links, err := host.Links(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := hostLinks{}
	for _, l := range links {
		if isOwnLink(l.Name) {
			out[l.Name] = l
		}
	}
	for _, l := range links {
		said, _ := parseAlias(l.Alias)
		a, name := said.Attachment, HostLink(said.Attachment)
		if l.Name == delegatedLink(said.Network, a) {
			continue // this link has no lease
		}
		if _, taken := out[name]; !taken && l.MAC == macOf(a, "host") {
			delete(out, l.Name)
			out[name] = l
		}
	}
	return out, nil
}

// isForeign reports that another main plugin made the attachment (see conf.network).
func isForeign(l ipam.Lease) bool { return strings.Contains(l.Network, "/") }

// linkOf is the name that ADD gave the host link of our lease.
func linkOf(l ipam.Lease) string {
	if isRecovered(l) {
		return l.Attachment.ContainerID
	}
	return HostLink(l.Attachment)
}

// recovered is the key of the attachment's lease when the store was rebuilt from a link that does not
// name its attachment. Every CNI attachment has an interface name.
func recovered(a ipam.Attachment) ipam.Attachment { return ipam.Attachment{ContainerID: HostLink(a)} }

func isRecovered(l ipam.Lease) bool { return l.Attachment.IfName == "" }
