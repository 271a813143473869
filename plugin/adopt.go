package plugin

import (
	"context"
	"slices"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Adopted converts a lease that another IPAM plugin gave. The lease counts as made by another main
// plugin, so that it lasts as long as its namespace. Its address remembers the pod for network, which
// serves the pod when it comes back. No main plugin's type contains a slash, so GC of any network leaves
// the lease alone.
func Adopted(l ipam.Lease, network string) ipam.Lease {
	l.Network, l.RememberAs = network+"/adopted/host-local", network
	return l
}

// unplug removes the pod's interface, and with it the other end, of an attachment that another main
// plugin made: the address must not be leased again while a pod answers for it. A namespace that cannot
// be opened is gone. The interface must have one of the lease's addresses, since a path such as
// /proc/PID/ns/net may come to name another pod's namespace.
func (n *Node) unplug(ctx context.Context, rq request, l ipam.Lease) error {
	netns := rq.netns
	if netns == nil {
		f, err := OpenLeased(l)
		if f == nil {
			return err
		}
		defer f.Close()
		netns = f
	}
	if n.podNetns(request{cni: rq.cni, netns: netns}) != nil {
		return nil // the host's namespace, or not a namespace
	}
	pod, err := n.dial(netns)
	if err != nil {
		return fault(codeIO, "enter network namespace %s: %w", l.Netns, err).next("check that the namespace exists: its container may have ended")
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

// Lives reports whether the holder of a lease without a link lives, which Recover cannot see
// (ipam.Options.Lives).
func Lives(l ipam.Lease) bool {
	boot, err := BootID()
	return err == nil && judge(l, nil, boot, netnsOf).Lives()
}
