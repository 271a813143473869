package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/pods"
	"github.com/edgeway-cni/edgeway/routes"
)

func keepCanaryCommand(f *flags) *cobra.Command {
	var try bool
	cmd := &cobra.Command{
		Use:   "keep-canary",
		Short: "make the canary live on when the daemon ends",
		Long: `keep-canary makes the network namespace of the pod edgeway/canary and mounts it beside the daemon's
socket, in canary/netns. The next daemon that starts puts the canary there, and the canary lives on when that
daemon ends. A namespace that is there stays as it is. With "paths: {canary: false}" keep-canary removes it.

It runs before the daemon, which may not mount: in the systemd unit, or in an init container with privileges.
Without it the canary ends with the daemon, and the next daemon makes it again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.read()
			if err != nil {
				return err
			}
			path := pods.CanaryNetns(c)
			keep := routes.PinNetns
			if !c.Paths.Canary {
				keep = routes.UnpinNetns
			}
			err = keep(path)
			if err != nil && try {
				fmt.Fprintf(cmd.ErrOrStderr(), "keep-canary: %v; the canary will end with the daemon\n", err)
				return nil
			}
			if err != nil {
				return fmt.Errorf("keep-canary: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&try, "try", false, "succeed also where the namespace cannot be mounted, and say why")
	return cmd
}
