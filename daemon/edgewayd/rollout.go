package main

import (
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/rollout"
)

func rolloutCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "roll-out [DAEMONSET...]",
		Short: "let roll-outs of the daemons go on while nodes are offline",
		Long: `roll-out runs in the cluster until it is told to stop, as the Deployment edgeway-rollout. Kubernetes stops a
DaemonSet's roll-out while as many nodes are offline as may be unavailable, by default one. Then roll-out deletes the outdated
pods of the other nodes, one after another: never a second before the first is available again. It does nothing in any other case.
It watches the DaemonSets in kube-system that are named, by default edgewayd and edgewayd-speaker.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.read()
			if err != nil {
				return err
			}
			server, ok := c.APIServer(version)
			if !ok {
				return errors.New("roll-out: the configuration names cluster.manifests; set cluster.kubeconfig, or run it as a pod")
			}
			if len(args) == 0 {
				args = []string{"edgewayd", "edgewayd-speaker"}
			}
			return rollout.Run(cmd.Context(), rollout.Options{Server: server, DaemonSets: args, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		},
	}
}
