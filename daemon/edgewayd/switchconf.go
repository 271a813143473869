package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/plan"
	"github.com/edgeway-cni/edgeway/daemon/switchconf"
)

// switchFlags say what a switch is told.
type switchFlags struct {
	planFlags
	vendor, address string
	allow           []string
}

func switchConfigCommand(f *flags) *cobra.Command {
	s := &switchFlags{planFlags: planFlags{flags: f, secrets: true}}
	cmd := &cobra.Command{
		Use:   "switch-config --vendor VENDOR -f DIR|FILE",
		Short: "what the network team puts on each switch, in the vendor's language",
		Long: `switch-config reads manifests as plan does, and prints the configuration of each switch: the speakers as
neighbours, graceful restart for at least the restart time of the daemons, a filter that takes the pod CIDRs of the
nodes only, a limit of prefixes, and nothing sent to the speakers unless bgp.learn of --config asks for it. The last
lines are the commands that verify it. No password is printed: where a session has one, PASSWORD stands.

The filter lists the present pod CIDRs. --allow names the range that the cluster takes pod CIDRs from instead, so
that a new node needs no change on the switch.

Vendors: ` + strings.Join(switchconf.Vendors(), ", ") + `.
frr, bird and openbgpd are run on the real programs by the tests of edgeway. The others are written from the manual
that their template names, and were not run on the device.`,
		Example: `  edgewayd switch-config --vendor cisco-nxos -f cluster.d
  edgewayd switch-config --vendor frr -f cluster.d --switch 10.0.10.1 --allow 10.10.0.0/16`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, _, err := s.inputs(cmd, "")
			if err != nil {
				return err
			}
			allow, err := prefixes("--allow", s.allow)
			if err != nil {
				return err
			}
			planned := plan.Of(in)
			switches, err := s.chosen(planned.Switches)
			if err != nil {
				return err
			}
			for i, sw := range switches {
				text, err := switchconf.Write(s.vendor, switchModel(sw, allow))
				if err != nil {
					return err
				}
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				fmt.Fprint(cmd.OutOrStdout(), text)
			}
			if n := len(planned.Problems); n > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "edgewayd: the manifests have %s; edgewayd plan shows them\n", plural(n, "problem"))
				return exitProblems
			}
			return nil
		},
	}
	s.add(cmd)
	cmd.Flags().StringVar(&s.vendor, "vendor", "", "the switch's software: "+strings.Join(switchconf.Vendors(), ", "))
	cmd.Flags().StringVar(&s.address, "switch", "", "only the switch with this address")
	cmd.Flags().StringSliceVar(&s.allow, "allow", nil, "the range that pod CIDRs are taken from (10.10.0.0/16)")
	_ = cmd.MarkFlagRequired("vendor") // the flag exists
	_ = cmd.RegisterFlagCompletionFunc("vendor", cobra.FixedCompletions(switchconf.Vendors(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func prefixes(flag string, texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return nil, fmt.Errorf("%s %q: want a range such as 10.0.0.0/16", flag, text)
		}
		out = append(out, p)
	}
	return out, nil
}

// chosen returns the switches that are asked for.
func (s *switchFlags) chosen(all []plan.Switch) (out []plan.Switch, err error) {
	var known []string
	for _, sw := range all {
		known = append(known, sw.Address.String())
		if s.address == "" || s.address == sw.Address.String() {
			out = append(out, sw)
		}
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("no speaker has a session with a switch; edgewayd plan says why")
	case len(out) == 0:
		return nil, fmt.Errorf("--switch %s: the manifests have %s", s.address, strings.Join(known, ", "))
	}
	return out, nil
}

// switchModel says what the switch is told. Each family has a limit of twice the present prefixes, so that the
// cluster can grow before somebody raises it.
func switchModel(sw plan.Switch, allow []netip.Prefix) switchconf.Switch {
	const leastLimit = 16
	out := switchconf.Switch{Address: sw.Address, Port: sw.Port, ASN: sw.ASN}
	var learn []netip.Prefix
	for _, s := range sw.Sessions {
		n := switchconf.Neighbour{Node: s.Node, Address: s.Peer.LocalAddress, ASN: s.Peer.LocalASN, MultihopTTL: s.Peer.MultihopTTL, TTLSecurity: s.Peer.TTLSecurity}
		if k := s.Secret; k != nil {
			n.Secret = fmt.Sprintf("the key %s of Secret kube-system/%s", k.Key, k.Name)
		}
		out.Neighbours = append(out.Neighbours, n)
		out.Restart = max(out.Restart, int(s.Peer.RestartTime/time.Second))
		out.LongLived = max(out.LongLived, int(s.Peer.LongLivedTime/time.Second))
		for _, p := range s.Learn {
			if !slices.Contains(learn, p) {
				learn = append(learn, p)
			}
		}
	}
	slices.SortFunc(out.Neighbours, func(a, b switchconf.Neighbour) int { return a.Address.Compare(b.Address) })
	for _, v6 := range []bool{false, true} {
		f := switchconf.Family{IPv6: v6}
		count, shortest, longest := 0, 128, 0
		for _, e := range sw.Table {
			if e.Prefix.Addr().Is6() == v6 {
				count++
				shortest, longest = min(shortest, e.Prefix.Bits()), max(longest, e.Prefix.Bits())
				f.In = append(f.In, switchconf.Exact(e.Prefix))
			}
		}
		if count == 0 {
			continue
		}
		if ranges := ofFamily(allow, v6); len(ranges) > 0 {
			f.In = nil
			for _, p := range ranges {
				f.In = append(f.In, switchconf.Filter{Prefix: p, Least: max(shortest, p.Bits()), Longest: max(longest, p.Bits())})
			}
		}
		for _, p := range ofFamily(learn, v6) {
			f.Out = append(f.Out, switchconf.Inside(p))
		}
		f.Most = max(leastLimit, 2*count)
		out.Families = append(out.Families, f)
	}
	return out
}

// ofFamily returns the prefixes of one family, sorted.
func ofFamily(all []netip.Prefix, v6 bool) (out []netip.Prefix) {
	for _, p := range all {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}
