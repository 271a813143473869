package plugin

import (
	"context"
	"errors"
	"slices"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Keep compares both ends of the living attachments with what ADD makes, and restores what the host's
// ends lack. It returns its findings; Done marks a repaired one. Verbs of other attachments run
// meanwhile; an attachment with a running verb is left out. Unlike Repair, Keep ends no lease and deletes
// nothing.
func (n *Node) Keep(ctx context.Context) ([]Finding, error) { return n.keep(ctx, n.auditPod) }

// KeepHosts is Keep without looking into pods, except pods whose host's end is wrong. It costs a tenth of
// Keep.
func (n *Node) KeepHosts(ctx context.Context) ([]Finding, error) {
	return n.keep(ctx, func(context.Context, *audit, ipam.Lease, *wiring) error { return nil })
}

// keep looks twice. Verbs run during the first pass, which may see half an attachment. Its findings only
// say where to look again, with the verbs of those attachments kept off.
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
	held, release := n.hold(glance.suspects)
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
	return settled(before, after), nil // the second audit finds again what was refused
}

// auditOf audits the held attachments; nil: all. Attachments that ended are left to Sweep.
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

// hold keeps verbs off the attachments of the leases, and returns the held attachments. It skips
// attachments with a running verb.
func (n *Node) hold(leases []ipam.Lease) (held map[ipam.Attachment]bool, release func()) {
	held = map[ipam.Attachment]bool{}
	if n.Store == nil || !n.sweep.TryRLock() {
		return held, func() {}
	}
	undo := []func(){n.sweep.RUnlock}
	for _, l := range leases {
		if held[l.Attachment] {
			continue
		}
		unclaim, err := ipam.TryClaim(n.Store.Path(), l.Attachment)
		if err != nil {
			continue
		}
		undo = append(undo, func() { _ = unclaim() }) // nothing was written to the file
		held[l.Attachment] = true
	}
	return held, func() {
		slices.Reverse(undo)
		for _, f := range undo {
			f()
		}
	}
}
