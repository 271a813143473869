package daemon

import (
	"context"
	"fmt"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// Preview reads and decides as the daemon does, and changes nothing. It returns the routes and the advertised
// paths as text, and every problem.
func Preview(ctx context.Context, c config.Config) (text string, problems []cluster.Problem, err error) {
	last, _, err := c.SavedWorld()
	if err != nil {
		return "", nil, err
	}
	next, err := c.ReadCluster(ctx, last)
	if err != nil {
		return "", nil, err
	}
	k, err := routes.Open()
	if err != nil {
		return "", nil, err
	}
	defer k.Close()
	host, err := k.Host(ctx)
	if err != nil {
		return "", nil, err
	}
	next, found := policy.Admit(last, next, host)
	w := policy.World{Cluster: next, Self: c.NodeName, Config: c, Host: host}
	if w.Host.Ruled, err = k.Ruled(ctx, w.Asks()); err != nil {
		return "", nil, err
	}
	plan := policy.Decide(w)
	problems = policy.Sorted(plan.Problems, found, next.Problems)
	var b strings.Builder
	b.WriteString(plan.String())
	for _, p := range problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return b.String(), problems, nil
}
