package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon"
	"github.com/edgeway-cni/edgeway/daemon/config"
)

func checkCommand(f *flags) *cobra.Command {
	var manifests, format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "read configuration and manifests, and say what is wrong with them on this node",
		Long: `check reads the configuration and the manifests as the daemon would, changes nothing, and prints
what this node would route and advertise, and every problem. It exits 1 when there is one. plan does the same
for every node, on no node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(format, "json", "yaml"); err != nil {
				return err
			}
			c, err := f.read()
			if err != nil {
				return err
			}
			if manifests != "" {
				c.Cluster = config.Source{Manifests: manifests}
			}
			p, err := daemon.Preview(cmd.Context(), c)
			if err != nil {
				return err
			}
			if format != "" {
				if err := writeDocument(cmd.OutOrStdout(), format, "Plan", p.Document(nil)); err != nil {
					return err
				}
			} else {
				for _, n := range p.Nodes {
					fmt.Fprint(cmd.OutOrStdout(), n.Plan)
				}
				for _, problem := range p.Problems {
					fmt.Fprintf(cmd.OutOrStdout(), "problem: %s\n", problem.Problem)
				}
				for _, advice := range p.Advice {
					fmt.Fprintf(cmd.OutOrStdout(), "advice: %s\n", advice.Problem)
				}
			}
			if n := len(p.Problems); n > 0 {
				return errors.New(plural(n, "problem"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&manifests, "manifests", "", "check this directory of manifests, instead of what the configuration names")
	cmd.Flags().StringVarP(&format, "output", "o", "", "json or yaml: for programs")
	return cmd
}
