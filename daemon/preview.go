package daemon

import (
	"context"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/plan"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// Preview reads and decides for this node as the daemon does, and changes nothing.
func Preview(ctx context.Context, c config.Config) (plan.Plan, error) {
	last, _, err := c.SavedWorld()
	if err != nil {
		return plan.Plan{}, err
	}
	next, err := c.ReadCluster(ctx, last)
	if err != nil {
		return plan.Plan{}, err
	}
	k, err := routes.Open()
	if err != nil {
		return plan.Plan{}, err
	}
	defer k.Close()
	host, err := k.Host(ctx)
	if err != nil {
		return plan.Plan{}, err
	}
	next, found := policy.Admit(last, next, host)
	next.Problems = slices.Concat(next.Problems, found)
	if host.Ruled, err = k.Ruled(ctx, policy.World{Cluster: next, Self: c.NodeName}.Asks()); err != nil {
		return plan.Plan{}, err
	}
	return plan.Of(plan.Input{Cluster: next, Config: c, Machines: map[string]routes.Host{c.NodeName: host}, Only: c.NodeName}), nil
}

// Known is what the daemon decides from, for commands that decide something else from it.
type Known struct {
	Self    string        `json:"self"`    // the node's name
	Cluster cluster.World `json:"cluster"` // with other values in its Secrets
	Host    routes.Host   `json:"host"`
}

// known returns what the last look knew.
func (d *Daemon) known() Known {
	v := d.loop.seen.Load()
	if v == nil {
		return Known{}
	}
	return Known{Self: v.World.Self, Cluster: v.World.Cluster.Masked(), Host: v.World.Host}
}
