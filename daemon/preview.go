package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// Plan is what the daemon would do, in an operator's words.
type Plan struct {
	Text     string
	Problems []cluster.Problem
}

// Preview reads what the daemon would read and decides what it would decide, and changes
// nothing.
func Preview(ctx context.Context, c Config) (Plan, error) {
	last, _, err := loadWorld(filepath.Join(c.StateDir, "world.json"))
	if err != nil {
		return Plan{}, err
	}
	next, err := c.readOnce(ctx, last)
	if err != nil {
		return Plan{}, err
	}
	next, found := admit(last, next)
	k, err := routes.Open()
	if err != nil {
		return Plan{}, err
	}
	defer k.Close()
	host, err := k.Host(ctx)
	if err != nil {
		return Plan{}, err
	}
	state, sessions, problems := desired(World{Cluster: next, Self: c.NodeName, Config: c, Host: host})
	problems = sortProblems(append(append(problems, found...), next.Problems...))
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s", state, sessions)
	for _, p := range problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return Plan{Text: b.String(), Problems: problems}, nil
}
