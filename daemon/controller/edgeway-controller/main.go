// Command edgeway-controller gives Nodes their pod CIDRs where kube-controller-manager does not, publishes the
// NodeSlices, and gives ENS and ECS instances the addresses of their interfaces. It runs beside the cluster's control
// plane, never on a node.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/controller"
)

// Set by the linker; see the Makefile.
var (
	version = "unknown"
	commit  = "unknown"
)

// defaultConfig is read if it exists, unless --config names another file.
const defaultConfig = "/etc/edgeway/edgeway-controller.yaml"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "edgeway-controller:", err)
		os.Exit(1)
	}
}

// flags are a pod's command line. They stand in for the configuration file.
type flags struct {
	config, kubeconfig, identity, listen, level string
	selector                                    string
	podCIDRs, exclude                           []string
	mask                                        controller.Mask
}

func command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "edgeway-controller",
		Short: "give nodes their pod CIDRs and uplinks, and publish what nodes read of all Nodes",
		Long: `edgeway-controller runs beside the cluster's control plane, on no node. Of several replicas, one works.

Pod CIDRs: each selected Node that has no pod CIDRs gets one block of each family. Pools come from the
configuration's "controller" section, or one pool comes from flags:

  edgeway-controller --pod-cidr 10.10.0.0/16,fd00:10::/48 --node-selector pool=hybrid

The controller never changes a Node that has pod CIDRs, and it stands back where another program gives them.

NodeSlices: the controller publishes the names, addresses, pod CIDRs and labels that nodes need of all Nodes.
Nodes read the NodeSlices instead of all Nodes, and read Nodes again when the controller is gone.

Uplinks: with "controller.ens" or "controller.ecs" in the configuration, each Node that is an ENS or ECS instance
gets the addresses of the instance's secondary interfaces. docs/ens.md says how.`,
		Version:       fmt.Sprintf("%s (commit %s)", version, commit),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := f.options()
			if err != nil {
				return err
			}
			return controller.Run(cmd.Context(), options)
		},
	}
	f.addTo(cmd)
	return cmd
}

func (f *flags) addTo(cmd *cobra.Command) {
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file (default "+defaultConfig+" where it exists)")
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the API server (default: cluster.kubeconfig, else the pod's service account)")
	cmd.Flags().StringSliceVar(&f.podCIDRs, "pod-cidr", nil, "ranges to give from, one or more of each family; instead of the configuration's pools")
	cmd.Flags().StringSliceVar(&f.exclude, "exclude", nil, "CIDRs within them that no node gets")
	cmd.Flags().StringVar(&f.selector, "node-selector", "", "the nodes to serve: a label selector, or all()")
	cmd.Flags().IntVar(&f.mask.IPv4, "node-mask-ipv4", 0, "prefix length of a node's IPv4 pod CIDR (default 24)")
	cmd.Flags().IntVar(&f.mask.IPv6, "node-mask-ipv6", 0, "prefix length of a node's IPv6 pod CIDR (default 64)")
	cmd.Flags().StringVar(&f.listen, "listen", "", "host:port of /healthz and /metrics (default: controller.listen, else none)")
	cmd.Flags().StringVar(&f.identity, "identity", "", "this replica's name, which no other replica has (default: the host name and something random)")
	cmd.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
}

func (f flags) options() (controller.Options, error) {
	c, err := f.read()
	if err != nil {
		return controller.Options{}, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return controller.Options{}, fmt.Errorf("--log-level %q: want debug, info, warn or error", f.level)
	}
	pools, err := f.pools(c)
	if err != nil {
		return controller.Options{}, err
	}
	api, err := cluster.ClientConfig(cmp.Or(f.kubeconfig, c.Kubeconfig), "edgeway-controller/"+version)
	if err != nil {
		return controller.Options{}, fmt.Errorf("the controller needs an API server: %w", err)
	}
	if f.identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return controller.Options{}, fmt.Errorf("host name: %w; set --identity", err)
		}
		f.identity = host + "_" + rand.Text()[:8]
	}
	return controller.Options{
		API: api, Pools: pools, Uplinks: c.Uplinks, Identity: f.identity, Listen: cmp.Or(f.listen, c.Listen),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}, nil
}

// read reads the configuration: the named file, else the default file, else an empty configuration.
func (f flags) read() (controller.Config, error) {
	if f.config == "" {
		if _, err := os.Stat(defaultConfig); os.IsNotExist(err) {
			return controller.Config{}, nil
		}
	}
	return controller.ReadConfig(cmp.Or(f.config, defaultConfig))
}

func (f flags) pools(c controller.Config) ([]controller.Pool, error) {
	pools := c.Pools
	switch {
	case len(f.podCIDRs) > 0:
		p, err := controller.ParsePool(f.selector, f.podCIDRs, f.exclude, f.mask)
		if err != nil {
			return nil, err
		}
		pools = []controller.Pool{p}
	case f.selector != "" || len(f.exclude) > 0 || f.mask != (controller.Mask{}):
		return nil, errors.New("--node-selector, --exclude and --node-mask-* describe the pool of --pod-cidr; set --pod-cidr too, or write all of them in the configuration's controller section")
	}
	return pools, controller.CheckPools(pools)
}
