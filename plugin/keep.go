package plugin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// claimWait bounds the wait for a plugin process that works on an attachment without the daemon. Such an
// attachment is looked at later.
const claimWait = 50 * time.Millisecond

// Keep compares both ends of the attachments that live with what ADD makes, and gives the host's ends
// what they lack. It returns what it found: Done says that it is mended. Verbs of other attachments run
// meanwhile; an attachment that a verb works on is left out. Unlike Repair it ends no lease, and deletes
// nothing.
func (n *Node) Keep(ctx context.Context) ([]Finding, error) { return n.keep(ctx, n.auditPod) }

// KeepHosts is Keep without a look into the pods, except into those whose host's end is not right. It
// costs a tenth of Keep.
func (n *Node) KeepHosts(ctx context.Context) ([]Finding, error) {
	return n.keep(ctx, func(context.Context, *audit, ipam.Lease, *wiring) error { return nil })
}

// keep looks twice. Verbs run during the first look, which may see half an attachment: its findings only
// say where to look again, with the verbs of that attachment kept off.
func (n *Node) keep(ctx context.Context, first podAudit) ([]Finding, error) {
	host, done, err := n.look(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	glance, err := n.auditOf(ctx, host, nil, first)
	if err != nil || len(glance.suspects) == 0 {
		return nil, err
	}
	held, release := n.hold(ctx, glance.suspects)
	defer release()
	if len(held) == 0 {
		return nil, nil
	}
	before, err := n.auditOf(ctx, host, held, n.auditPod)
	if err != nil || len(before.findings) == 0 {
		return nil, err
	}
	_, refused := host.Sync(ctx, routes.Scope{}, before.want)
	after, err := n.auditOf(ctx, host, held, n.auditPod)
	if err != nil {
		return nil, errors.Join(refused, err)
	}
	return settled(before, after), nil // what was refused is found again
}

// auditOf is audit of the attachments that are held; nil: of all. Those that ended are left to Sweep.
func (n *Node) auditOf(ctx context.Context, host kernel, held map[ipam.Attachment]bool, look podAudit) (a audit, err error) {
	all, _, err := n.attached(ctx, host)
	if err != nil {
		return a, err
	}
	all = slices.DeleteFunc(all, func(one Attached) bool {
		return !one.lives() || held != nil && !held[one.Lease.Attachment]
	})
	err = n.auditAttached(ctx, host, &a, all, look)
	return a, err
}

// hold keeps the verbs off the attachments of those leases that no verb works on, and returns these
// attachments.
func (n *Node) hold(ctx context.Context, leases []ipam.Lease) (held map[ipam.Attachment]bool, release func()) {
	held = map[ipam.Attachment]bool{}
	if n.Store == nil || !n.sweep.TryRLock() {
		return held, func() {}
	}
	undo := []func(){n.sweep.RUnlock}
	for _, l := range leases {
		if held[l.Attachment] {
			continue
		}
		unlock, free := n.attachments.try(l.Attachment)
		if !free {
			continue
		}
		undo = append(undo, unlock)
		wait, cancel := context.WithTimeout(ctx, claimWait)
		unclaim, err := ipam.Claim(wait, n.Store.Path(), l.Attachment)
		cancel()
		if err != nil {
			continue
		}
		undo = append(undo, func() { _ = unclaim() }) // closes a file that nothing was written to
		held[l.Attachment] = true
	}
	return held, func() {
		slices.Reverse(undo)
		for _, f := range undo {
			f()
		}
	}
}
