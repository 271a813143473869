package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/doctor"
)

func doctorCommand(f *flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "examine this machine: firewalls, links, routes, neighbours, plugin, kernel",
		Long: `doctor looks at everything that one machine can see alone, changes nothing, and prints each check with its result
and the next step: rules of nftables, iptables and legacy iptables that drop or translate the pods' packets;
the plugin and the runtime's network configuration; links, MTU, forwarding, policy rules and routes; the gateways and the
other nodes of the LAN as neighbours; another machine with this node's address; capabilities, kernel, clock, disk, ports.
It needs no daemon, and takes some five seconds. Run it as root. It exits 3 when there is a problem.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(format, "json", "yaml"); err != nil {
				return err
			}
			c, err := f.read()
			if err != nil {
				return err
			}
			if f.socket != "" {
				c.Socket = f.socket
			}
			r, err := doctor.Examine(cmd.Context(), c, doctor.Options{Version: version, Plugin: pluginVersion})
			if err != nil {
				return err
			}
			if format != "" {
				err = writeDocument(cmd.OutOrStdout(), format, "Examination", r)
			} else {
				printReport(newScreen(cmd.OutOrStdout(), false), r)
			}
			if err == nil && r.Problems() > 0 {
				err = exitProblems
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json or yaml: for programs")
	return cmd
}

// pluginVersion executes the plugin as a person would.
func pluginVersion(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	words := strings.Fields(string(out)) // edgeway version V (commit C)
	if len(words) < 3 || words[0] != "edgeway" {
		return "", fmt.Errorf("%s --version says %q: it is another program", path, strings.TrimSpace(string(out)))
	}
	return words[2], nil
}

// printReport prints the checks by group.
func printReport(out *screen, r doctor.Report) {
	marks := map[string]string{doctor.OK: markGood, doctor.Problem: markBad}
	last := ""
	for _, c := range r.Checks {
		if c.Group != last {
			fmt.Fprintln(out, c.Group+markHead)
			last = c.Group
		}
		line := fmt.Sprintf("  %-8s %s", c.State, c.Name)
		if c.Got != "" {
			line += ": " + c.Got
		}
		fmt.Fprintln(out, line+marks[c.State])
		if c.Next != "" {
			fmt.Fprintln(out, "           next: "+c.Next)
		}
	}
	if n := r.Problems(); n > 0 {
		fmt.Fprintln(out, plural(n, "problem")+markBad)
	} else {
		fmt.Fprintln(out, "no problem"+markGood)
	}
}
