package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/controller"
)

// controllerFlags say in a pod's command line what the configuration file says elsewhere.
type controllerFlags struct {
	kubeconfig, identity, listen, level string
	selector                            string
	podCIDRs, exclude                   []string
	mask                                controller.Mask
}

func controllerCommand(f *flags) *cobra.Command {
	var o controllerFlags
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "give nodes their pod CIDRs, where kube-controller-manager does not",
		Long: `controller gives each selected Node that has no pod CIDRs one block of each family. It runs beside
the cluster's control plane, not on every node; of several replicas one works. Pools come from the
configuration's "controller" section, or one pool from flags:

  edgewayd controller --pod-cidr 10.10.0.0/16,fd00:10::/48 --node-selector pool=hybrid

It never changes a Node that has pod CIDRs, and it stands back where something else gives them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := o.options(f)
			if err != nil {
				return err
			}
			options.API.UserAgent = "edgewayd-controller/" + version
			return controller.Run(cmd.Context(), options)
		},
	}
	o.addTo(cmd)
	return cmd
}

func (o *controllerFlags) addTo(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: cluster.kubeconfig, else the pod's service account)")
	cmd.Flags().StringSliceVar(&o.podCIDRs, "pod-cidr", nil, "ranges to give from, one or more of each family; instead of the configuration's pools")
	cmd.Flags().StringSliceVar(&o.exclude, "exclude", nil, "CIDRs within them that no node gets")
	cmd.Flags().StringVar(&o.selector, "node-selector", "", "the nodes to serve: a label selector, or all()")
	cmd.Flags().IntVar(&o.mask.IPv4, "node-mask-ipv4", 0, "prefix length of a node's IPv4 pod CIDR (default 24)")
	cmd.Flags().IntVar(&o.mask.IPv6, "node-mask-ipv6", 0, "prefix length of a node's IPv6 pod CIDR (default 64)")
	cmd.Flags().StringVar(&o.listen, "listen", "", "host:port of /healthz and /metrics (default: controller.listen, else none)")
	cmd.Flags().StringVar(&o.identity, "identity", "", "this replica's name, that no other has (default: the host name and something random)")
	cmd.Flags().StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
}

// options are what the configuration and the flags say together.
func (o controllerFlags) options(f *flags) (controller.Options, error) {
	c, err := f.read()
	if err != nil {
		return controller.Options{}, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return controller.Options{}, fmt.Errorf("--log-level %q: want debug, info, warn or error", o.level)
	}
	pools, err := o.pools(c.Controller)
	if err != nil {
		return controller.Options{}, err
	}
	api, err := cluster.ClientConfig(cmp.Or(o.kubeconfig, c.Cluster.Kubeconfig), "")
	if err != nil {
		return controller.Options{}, fmt.Errorf("the controller needs an API server: %w", err)
	}
	if o.identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return controller.Options{}, fmt.Errorf("host name: %w; set --identity", err)
		}
		o.identity = host + "_" + rand.Text()[:8]
	}
	return controller.Options{
		API: api, Pools: pools, Identity: o.identity, Listen: cmp.Or(o.listen, c.Controller.Listen),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}, nil
}

// pools are the flags' pool, or those of the configuration.
func (o controllerFlags) pools(c config.Controller) ([]controller.Pool, error) {
	var pools []controller.Pool
	switch {
	case len(o.podCIDRs) > 0:
		p, err := o.pool()
		if err != nil {
			return nil, err
		}
		pools = append(pools, p)
	case o.selector != "" || len(o.exclude) > 0 || o.mask != (controller.Mask{}):
		return nil, errors.New("--node-selector, --exclude and --node-mask-* say more of --pod-cidr; set that too, or write all of it in the configuration's controller section")
	case len(c.Pools) > 0 && (len(c.PodCIDRs) > 0 || c.NodeSelector.String() != "" || len(c.Exclude) > 0 || c.NodeMask.IPv4+c.NodeMask.IPv6 > 0):
		return nil, errors.New("controller: either pools, or podCIDRs and what belongs to them; move the latter into pools")
	case len(c.Pools) > 0:
		for _, p := range c.Pools {
			pools = append(pools, poolOf(p))
		}
	case len(c.PodCIDRs) > 0:
		pools = append(pools, poolOf(c.PodPool))
	}
	for i := range pools {
		m := &pools[i].Mask
		m.IPv4, m.IPv6 = cmp.Or(m.IPv4, 24), cmp.Or(m.IPv6, 64) // as kube-controller-manager has it
	}
	return pools, controller.CheckPools(pools)
}

// poolOf is a pool of the configuration.
func poolOf(p config.PodPool) controller.Pool {
	return controller.Pool{Selector: p.NodeSelector, Mask: controller.Mask(p.NodeMask), CIDRs: p.PodCIDRs, Exclude: p.Exclude}
}

// pool is the flags' pool.
func (o controllerFlags) pool() (p controller.Pool, err error) {
	p.Mask = o.mask
	if p.Selector, err = cluster.ParseSelector(o.selector); err != nil {
		return p, fmt.Errorf("--node-selector: %w", err)
	}
	if p.CIDRs, err = parseCIDRs("--pod-cidr", o.podCIDRs); err != nil {
		return p, err
	}
	p.Exclude, err = parseCIDRs("--exclude", o.exclude)
	return p, err
}

func parseCIDRs(flag string, texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		c, err := netip.ParsePrefix(text)
		if err != nil || c != c.Masked() {
			return nil, fmt.Errorf("%s %q: want a CIDR such as 10.10.0.0/16", flag, text)
		}
		out = append(out, c)
	}
	return out, nil
}
