package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/plan"
	"github.com/edgeway-cni/edgeway/routes"
)

// live is the argument of --against that means the running daemon.
const live = "live"

// planFlags say which manifests are planned, and for which machines.
type planFlags struct {
	*flags
	manifests string
	subnets   []string
	secrets   bool // are there, whether or not the manifests have them
}

func (p *planFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&p.manifests, "filename", "f", "", "a directory of manifests, one manifest, or - for standard input")
	cmd.Flags().StringSliceVar(&p.subnets, "subnet", nil, "a subnet of the nodes, where it is not a /24 or a /64 (10.0.0.0/16)")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
}

func planCommand(f *flags) *cobra.Command {
	p := &planFlags{flags: f}
	var against, format string
	cmd := &cobra.Command{
		Use:   "plan -f DIR|FILE",
		Short: "what every node and switch would do with these manifests, before they are applied",
		Long: `plan reads manifests and prints what every node would route, what every speaker would advertise, the table
that each switch would have, and every problem. It needs no root, no daemon and no cluster, and changes nothing.
The nodes' daemons decide in the same way.

No manifest says which subnets the machines have. plan takes each node for a machine with one link, on a /24 and
a /64; --subnet names others. With --node-name it plans for one node only. Settings of the daemons, such as the
mode, are read from --config.

--against compares with other manifests, or with what the daemon of this machine knows: "live". Manifests without
any Node are planned with the Nodes of the other side.

Exit status: 0 no problem and, with --against, no difference; 1 the input cannot be read; 2 a difference;
3 problems, with or without a difference.`,
		Example: `  edgewayd plan -f cluster.d
  kubectl get nodes -o yaml | edgewayd plan -f -
  edgewayd plan -f new --against old
  edgewayd plan -f cluster.d --against live
  edgewayd plan -f cluster.d -o svg >lan.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(format, "text", "json", "yaml", "svg"); err != nil {
				return err
			}
			after, before, err := p.inputs(cmd, against)
			if err != nil {
				return err
			}
			planned := plan.Of(after)
			var changes []plan.Change
			if before != nil {
				changes = plan.Diff(plan.Of(*before), planned)
			}
			if err := writePlan(cmd.OutOrStdout(), format, planned, changes, against); err != nil {
				return err
			}
			switch {
			case len(planned.Problems) > 0:
				return exitProblems
			case len(changes) > 0:
				return exitChanged
			}
			return nil
		},
	}
	p.add(cmd)
	cmd.Flags().StringVar(&against, "against", "", "compare with this directory or manifest, or with what the daemon knows (live)")
	cmd.Flags().BoolVar(&p.secrets, "assume-secrets", false, "take the Secrets with the passwords for there: a repository does not hold them")
	cmd.Flags().StringVarP(&format, "output", "o", "", "text, json, yaml or svg (a picture); text unless set")
	return cmd
}

func writePlan(out io.Writer, format string, planned plan.Plan, changes []plan.Change, against string) error {
	switch format {
	case "svg":
		return planned.SVG(out)
	case "json", "yaml":
		return writeDocument(out, format, "Plan", planned.Document(changes))
	}
	if against == "" {
		planned.Text(out)
		return nil
	}
	// Whoever compares wants the difference alone; the problems are all printed.
	fmt.Fprintf(out, "Changes against %s: %s\n", against, plural(len(changes), "object"))
	plan.WriteChanges(out, changes)
	planned.Nodes, planned.Switches = nil, nil
	fmt.Fprintln(out)
	planned.Text(out)
	return nil
}

// input reads the manifests.
func (p *planFlags) input(cmd *cobra.Command) (in plan.Input, err error) {
	if in.Config, err = p.read(); err != nil {
		return in, err
	}
	in.Only = p.node
	if in.Subnets, err = prefixes("--subnet", p.subnets); err != nil {
		return in, err
	}
	in.Cluster, err = p.side(cmd, p.manifests)
	return in, err
}

// side reads the manifests of one side.
func (p *planFlags) side(cmd *cobra.Command, path string) (w cluster.World, err error) {
	if path == "-" {
		text, err := io.ReadAll(cmd.InOrStdin())
		if err != nil {
			return w, fmt.Errorf("read standard input: %w", err)
		}
		w, err = cluster.ParseManifest("standard input", text)
		return p.assume(w), err
	}
	w, err = cluster.ReadManifests(cmd.Context(), path)
	return p.assume(w), err
}

func (p *planFlags) assume(w cluster.World) cluster.World {
	if p.secrets {
		return w.AssumeSecrets()
	}
	return w
}

// inputs returns the input, and the input to compare with, or nil.
func (p *planFlags) inputs(cmd *cobra.Command, against string) (after plan.Input, before *plan.Input, err error) {
	if after, err = p.input(cmd); err != nil {
		return after, nil, err
	}
	if against == "" {
		return after, nil, p.needsNodes(after.Cluster)
	}
	other := after
	if against == live {
		known, self, err := p.live(cmd.Context())
		if err != nil {
			return after, nil, err
		}
		after.Machines = map[string]routes.Host{self: known.Host}
		other.Cluster, other.Machines = known.Cluster, after.Machines
	} else if other.Cluster, err = p.side(cmd, against); err != nil {
		return after, nil, err
	}
	// A repository often holds the BGP resources only, and the cluster makes the Nodes.
	if len(after.Cluster.Nodes) == 0 {
		after.Cluster.Nodes = other.Cluster.Nodes
	} else if len(other.Cluster.Nodes) == 0 {
		other.Cluster.Nodes = after.Cluster.Nodes
	}
	return after, &other, p.needsNodes(after.Cluster)
}

// needsNodes returns an error if the cluster has no Node: without one nothing is decided, and nothing is wrong.
func (p *planFlags) needsNodes(w cluster.World) error {
	if len(w.Nodes)+len(w.Problems) > 0 {
		return nil
	}
	return fmt.Errorf("%s has no Node; add what kubectl get nodes -o yaml prints, or compare with --against live", p.manifests)
}

// live asks the daemon what it knows, and for which node.
func (p *planFlags) live(ctx context.Context) (known daemon.Known, self string, err error) {
	text, err := ask(ctx, p.flags, api.Request{Op: "known"})
	if err != nil {
		return known, "", err
	}
	if err := json.Unmarshal(text, &known); err != nil {
		return known, "", fmt.Errorf("daemon's answer: %w; the daemon is of another version than this command", err)
	}
	if known.Cluster.ReadAt.IsZero() {
		return known, "", errors.New("the daemon does not know the cluster yet; edgewayd status says why")
	}
	return known, known.Self, nil
}
