package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// valid are the attachments that GC must keep. ok is false when the runtime gives no list; nothing is
// freed then.
func (c conf) valid() (keep map[ipam.Attachment]bool, ok bool, err error) {
	list := c.Valid
	if list == nil {
		list = c.ValidOld
	}
	if list == nil {
		return nil, false, nil
	}
	keep = map[ipam.Attachment]bool{}
	for i, a := range *list {
		if a.ContainerID == "" || a.IfName == "" {
			return nil, false, fault(codeConfig, "cni.dev/valid-attachments: entry %d lacks containerID or ifname", i).next("nothing was freed; correct the list")
		}
		keep[ipam.Attachment{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	return keep, true, nil
}

func planGC(rq request) (step, error) {
	keep, ok, err := rq.conf.valid()
	return func(n *Node, ctx context.Context) (api.Reply, error) { return api.Reply{}, n.gc(ctx, rq, keep, ok) }, err
}

// gc removes the network's attachments that the runtime does not list; without a list (ok is false),
// none.
func (n *Node) gc(ctx context.Context, rq request, keep map[ipam.Attachment]bool, ok bool) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verbTimeout)
	defer cancel()
	if rq.conf.delegated() {
		if ok {
			err = n.alone(func(host kernel) error { return n.gcDelegated(ctx, host, rq, keep) })
		}
		return errors.Join(err, n.delegate(ctx, rq, "GC"))
	}
	if !ok {
		return nil
	}
	if err := n.needStore(ctx); err != nil {
		return err
	}
	return n.alone(func(host kernel) error {
		_, err := n.collect(ctx, host, func(a Attached) bool {
			return a.Lease.Network != rq.conf.network() || keep[a.Lease.Attachment]
		})
		return err
	})
}

// gcDelegated removes the links of a network whose addresses another IPAM plugin gives.
func (n *Node) gcDelegated(ctx context.Context, host kernel, rq request, keep map[ipam.Attachment]bool) error {
	prefix := delegatedPrefix(rq.conf.Name)
	links, err := host.Links(ctx, prefix)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	named := map[string]bool{}
	for a := range keep {
		named[delegatedLink(rq.conf.Name, a)] = true
	}
	var errs []error
	for _, l := range links {
		said, _ := parseAlias(l.Alias) // a name proves nothing
		if named[l.Name] || l.Kind != "veth" || l.Name != delegatedLink(rq.conf.Name, said.Attachment) {
			continue
		}
		addrs, err := addrsOn(ctx, host, l.Name)
		if err == nil {
			err = n.cut(ctx, host, l.Name, addrs[l.Name])
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, endStrayMasquerade(ctx, host))...)
}
