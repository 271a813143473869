package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/doctor"
)

func whyCommand(f *flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "why A B",
		Short: "follow a packet from A to B and its answer back, and say where it stops",
		Long: `why follows the packets of a connection from A to B, and the answers, through this machine: the pod's link, the
kernel's policy rules and routes, the reverse path filter, every firewall, source NAT, the next hop as a neighbour, the tunnel, the
MTU, and who tells the switches. Then it sends the far end a packet. It says where the way stops, and what to do.
A and B are each a pod of this node (namespace/name), a Node, or an address; at least one must be on this node. Run it on
the node of the other end too: each node sees its own part. It changes nothing, needs no daemon, and exits 3 where the way stops.`,
		Example: "  edgewayd why shop/till 10.10.2.5\n  edgewayd why node-2 10.10.1.7",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf(format, "json", "yaml"); err != nil {
				return err
			}
			c, err := f.read()
			if err != nil {
				return err
			}
			var leases api.LeaseList
			if err := (&leaseFlags{flags: f}).ask(cmd.Context(), &leases, "list"); err != nil {
				return err
			}
			a, err := doctor.Why(cmd.Context(), c, leases.Leases, args[0], args[1])
			if err != nil {
				return err
			}
			if format != "" {
				err = writeDocument(cmd.OutOrStdout(), format, "Way", a)
			} else {
				printWay(newScreen(cmd.OutOrStdout(), false), a)
			}
			if err == nil && a.Stops != "" {
				err = exitProblems
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json or yaml: for programs")
	return cmd
}

// printWay prints the steps of both directions.
func printWay(out *screen, a doctor.Answer) {
	for _, leg := range []struct {
		from, to string
		steps    []doctor.Step
	}{{a.A, a.B, a.There}, {a.B, a.A, a.Back}} {
		fmt.Fprintf(out, "%s -> %s, on %s%s\n", leg.from, leg.to, a.Node, markHead)
		for _, s := range leg.steps {
			fmt.Fprintf(out, "  %-8s %s%s\n", s.State, s.Text, map[string]string{doctor.Problem: markBad}[s.State])
			if s.Next != "" && s.State != doctor.Problem {
				fmt.Fprintf(out, "           next: %s\n", s.Next)
			}
		}
	}
	if a.Stops == "" {
		fmt.Fprintln(out, "Nothing on this node stops it."+markGood)
		return
	}
	fmt.Fprintln(out, "It stops here: "+a.Stops+markBad)
	if a.Next != "" {
		fmt.Fprintln(out, "next: "+a.Next)
	}
}
