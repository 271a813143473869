package plugin

import (
	"context"
	"slices"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Adopted is how a lease that another IPAM plugin gave is kept: it is of an attachment that another
// main plugin made, so that it lasts as long as its namespace. Its address remembers the pod for
// network, which serves it when it comes back. Another main plugin's type has no slash, so GC of
// no network ends it.
func Adopted(l ipam.Lease, network string) ipam.Lease {
	l.Network, l.RememberAs = network+"/adopted/host-local", network
	return l
}

// unplug removes the pod's interface, and with it the other end, of an attachment that another
// main plugin made: its address must not be leased again while a pod answers for it. A namespace
// that cannot be opened is gone. The interface must have one of the lease's addresses: paths such
// as /proc/PID/ns/net come to name another pod's namespace.
func (n *Node) unplug(ctx context.Context, rq request, l ipam.Lease) error {
	netns := rq.netns
	if netns == nil {
		f, err := openLeased(l)
		if f == nil {
			return err
		}
		defer f.Close()
		netns = f
	}
	if n.podNetns(request{cni: rq.cni, netns: netns}) != nil {
		return nil // the host's own, or none
	}
	pod, err := n.dial(netns)
	if err != nil {
		return fault(codeIO, "enter network namespace %s: %w", l.Netns, err)
	}
	defer pod.Close()
	link := l.Attachment.IfName
	observed, err := pod.Observe(ctx, routes.Scope{Links: []string{link}}, routes.State{})
	if err != nil {
		return err
	}
	ours := slices.ContainsFunc(observed.Addrs, func(a routes.Addr) bool {
		return a.Link == link && slices.Contains(l.Addrs, a.Prefix.Addr())
	})
	if !ours {
		return nil
	}
	if err := deleteLinks(ctx, pod, link); err != nil {
		return fault(codeWiring, "delete link %s of %s: %w", link, l.Netns, err).next("check ip link inside %s", l.Netns)
	}
	return nil
}

// Gone reports that the attachment of a lease ended with its namespace.
func Gone(l ipam.Lease) bool { return netnsOf(l) == gone }

// Lives reports whether a lease lives that Recover does not see, for it has no link
// (ipam.Options.Lives).
func Lives(l ipam.Lease) bool {
	boot, err := BootID()
	return err == nil && judge(l, nil, boot, netnsOf).Lives()
}
