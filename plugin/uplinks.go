package plugin

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// ensureUplinks makes the rules of a node with uplinks, before there is a pod. The daemon does that while it runs;
// without a daemon, after a reboot, the first ADD does it. Addresses of interfaces that are not there are not leased.
func (n *Node) ensureUplinks(ctx context.Context, host kernel, o order) (order, error) {
	if n.reopen == nil || o.pool != nil || o.conf.delegated() {
		return o, nil
	}
	u, err := uplink.Read(filepath.Join(n.Dir, uplink.File))
	if err != nil {
		return o, fault(codeIO, "%w", err).next("start edgewayd")
	}
	if len(u.Interfaces) == 0 {
		return o, nil
	}
	var h routes.Host
	for made := true; made && err == nil; { // a VLAN link gets its rules once it is there
		var changes []routes.Change
		if h, err = host.Host(ctx); err == nil {
			changes, err = host.Sync(ctx, routes.Scope{}, u.State(h))
		}
		made = slices.ContainsFunc(changes, func(c routes.Change) bool { _, link := c.Object.(routes.Link); return link && c.Op == routes.Add })
	}
	if err != nil {
		return o, fault(codeWiring, "the node's uplinks: %w", err).next("check ip rule, ip link and dmesg of the host")
	}
	if missing := u.Missing(h); len(missing) > 0 {
		o.pool, err = n.reserve(o.pool, missing)
	}
	return o, err
}
