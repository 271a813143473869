package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/pods"
)

const (
	// leaseFor bounds how long a command about leases waits: an audit enters every pod.
	leaseFor = 2 * time.Minute
	// leaseLines is the number of leases that fit on the screen.
	leaseLines = 40
	// shortID is the printed length of a container ID, as in crictl.
	shortID = 13
)

type leaseFlags struct {
	*flags
	output string
}

func ipamCommand(f *flags) *cobra.Command {
	l := &leaseFlags{flags: f}
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "show, check, release and import the addresses of this node's pods",
		Long: `ipam asks the daemon who holds which address. Where no daemon runs, it opens the store of leases
itself and does the same.`,
		Args: knowsArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return oneOf(l.output, "json", "yaml")
		},
	}
	cmd.PersistentFlags().StringVarP(&l.output, "output", "o", "", "json or yaml: for programs")
	cmd.AddCommand(listCommand(l), showCommand(l), releaseCommand(l), ipamCheckCommand(l), importCommand(l))
	return cmd
}

// ask asks the daemon about leases, or answers itself if no daemon runs.
func (l *leaseFlags) ask(ctx context.Context, answer any, args ...string) error {
	socket, err := l.where()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseFor)
	defer cancel()
	reply, err := api.Call(ctx, socket, api.Request{Op: "ipam", Args: args}, nil)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return unreachable(err)
	case errors.Is(err, api.ErrNoDaemon) && l.socket != "" && l.config == "":
		return fmt.Errorf("%w: name its configuration with --config, to read the store without it", err)
	case errors.Is(err, api.ErrNoDaemon):
		c, err := l.read()
		if err != nil {
			return err
		}
		if reply.Output, err = pods.Answer(ctx, c, args); err != nil {
			return err
		}
	case err != nil:
		return err
	case reply.Error != "":
		return errors.New(reply.Error)
	}
	if err := json.Unmarshal(reply.Output, answer); err != nil {
		return fmt.Errorf("daemon's answer: %w; the daemon is of another version than this command", err)
	}
	return nil
}

// items is a document that is a list.
type items[T any] struct {
	Items []T `json:"items"`
}

// print writes the answer as a document, or calls text.
func (l *leaseFlags) print(out io.Writer, kind string, answer any, text func(io.Writer)) error {
	if l.output != "" {
		return writeDocument(out, l.output, kind, answer)
	}
	text(out)
	return nil
}

func confirm(cmd *cobra.Command, question string, yes *bool) error {
	if *yes {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if ok {
		_, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
		ok = err == nil
	}
	if !ok {
		return fmt.Errorf("%s: standard input is not a terminal, so nobody can confirm; add --yes", cmd.CommandPath())
	}
	fmt.Fprint(cmd.ErrOrStderr(), question+" [y/N] ")
	line, err := bufio.NewReader(in).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(line)); (a == "y" || a == "yes") && err == nil {
		return nil
	}
	return fmt.Errorf("%s: not confirmed; nothing was changed", cmd.CommandPath())
}

func listCommand(l *leaseFlags) *cobra.Command {
	var remembered, all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "who holds which address since when, and how many are free",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var a api.LeaseList
			if err := l.ask(cmd.Context(), &a, "list"); err != nil {
				return err
			}
			most := leaseLines
			if all {
				most = 0
			}
			return l.print(cmd.OutOrStdout(), "LeaseList", a, func(out io.Writer) {
				if remembered {
					printRemembered(out, a, most)
				} else {
					printLeases(out, a, most)
				}
				printPools(out, a)
			})
		},
	}
	cmd.Flags().BoolVar(&remembered, "remembered", false, "the free addresses that wait for their last pod, instead")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every line, however many")
	return cmd
}

func showCommand(l *leaseFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show WHAT...",
		Short: "everything about a lease: both ends of its link, routes, namespace, memory",
		Long:  `show prints everything that is known of WHAT: a pod (namespace/name), an address, the beginning of a container ID, or a link.`,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var a api.LeaseDetails
			if err := l.ask(cmd.Context(), &a, append([]string{"show"}, args...)...); err != nil {
				return err
			}
			return l.print(cmd.OutOrStdout(), "LeaseDetails", a, func(out io.Writer) { printDetails(out, a) })
		},
	}
}

func releaseCommand(l *leaseFlags) *cobra.Command {
	var yes, force, remembered bool
	cmd := &cobra.Command{
		Use:   "release WHAT...",
		Short: "end leases as the runtime's DEL would, or forget remembered addresses",
		Long: `release ends the lease of WHAT: a pod (namespace/name), an address, the beginning of a container ID,
or a link. The link goes first, the lease last. The address keeps waiting for its pod; release
--remembered ADDRESS ends that too. The lease of a running pod is released with --force only.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remembered {
				return l.forget(cmd, args, &yes)
			}
			return l.release(cmd, args, force, &yes)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&force, "force", false, "also the lease of a running pod, which loses its network at once")
	cmd.Flags().BoolVar(&remembered, "remembered", false, "forget the last pods of these free addresses")
	return cmd
}

func (l *leaseFlags) release(cmd *cobra.Command, words []string, force bool, yes *bool) error {
	var found api.LeaseDetails
	if err := l.ask(cmd.Context(), &found, append([]string{"show"}, words...)...); err != nil {
		return err
	}
	args := []string{"release"}
	if force {
		args = append(args, pods.Force)
	}
	running := 0
	for _, d := range found.Leases {
		args = append(args, d.ContainerID+"/"+d.IfName)
		if runs(d.Lease) {
			running++
		}
	}
	switch {
	case len(found.Leases) == 0:
		return fmt.Errorf("release %s: it has no lease; its address is free and is kept for it; release --remembered ADDRESS ends that", strings.Join(words, " "))
	case len(found.Leases) > len(words):
		printLeases(cmd.ErrOrStderr(), api.LeaseList{Leases: plain(found.Leases), Now: found.Now}, 0)
		return fmt.Errorf("release %s: names %d leases; name each by address or container ID", strings.Join(words, " "), len(found.Leases))
	case running > 0 && !force:
		return fmt.Errorf("release %s: its pod is running (%s); delete the pod instead, or add --force: its link is removed and the pod loses its network at once",
			strings.Join(words, " "), podOrContainer(found.Leases[0].Lease))
	}
	if !*yes {
		printLeases(cmd.ErrOrStderr(), api.LeaseList{Leases: plain(found.Leases), Now: found.Now}, 0)
	}
	question := fmt.Sprintf("Release %d?", len(found.Leases))
	if running > 0 {
		question = fmt.Sprintf("Release %d? %d of them belong to running pods: their links are removed, and these pods lose their network.", len(found.Leases), running)
	}
	if err := confirm(cmd, question, yes); err != nil {
		return err
	}
	var done []api.Released
	if err := l.ask(cmd.Context(), &done, args...); err != nil {
		return err
	}
	var errs []error
	for _, r := range done {
		if r.Error != "" {
			errs = append(errs, fmt.Errorf("release %s: %s", podOrContainer(r.Lease), r.Error))
		}
	}
	return errors.Join(append(errs, l.print(cmd.OutOrStdout(), "ReleasedList", items[api.Released]{done}, func(out io.Writer) {
		for _, r := range done {
			if r.Error == "" {
				fmt.Fprintf(out, "released %s of %s\n", strings.Join(r.Addrs, ", "), podOrContainer(r.Lease))
			}
		}
	}))...)
}

func (l *leaseFlags) forget(cmd *cobra.Command, addrs []string, yes *bool) error {
	question := fmt.Sprintf("Forget the last pod of %s? Any new pod may get the address then.", strings.Join(addrs, ", "))
	if err := confirm(cmd, question, yes); err != nil {
		return err
	}
	var done []api.Remembered
	if err := l.ask(cmd.Context(), &done, append([]string{"forget"}, addrs...)...); err != nil {
		return err
	}
	return l.print(cmd.OutOrStdout(), "ForgottenList", items[api.Remembered]{done}, func(out io.Writer) {
		for _, m := range done {
			fmt.Fprintf(out, "forgot that %s belonged to %s\n", m.Addr, m.Pod)
		}
	})
}

func plain(all []api.LeaseDetail) (out []api.Lease) {
	for _, d := range all {
		out = append(out, d.Lease)
	}
	return out
}

func podOrContainer(l api.Lease) string { return cmp.Or(l.Pod, "container "+short(l.ContainerID)) }

func short(id string) string { return id[:min(len(id), shortID)] }

func ipamCheckCommand(l *leaseFlags) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "compare leases, links and pods, and say where they disagree",
		Long: `check compares the store with the links of this host and with the pods' network namespaces, and
prints each disagreement with what --repair does about it. It exits 1 when one is left. --repair removes
what no pod owns, and gives the host's end of running pods back what it lacks.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			verb := "check"
			if repair {
				verb = "repair"
			}
			var a api.Findings
			if err := l.ask(cmd.Context(), &a, verb); err != nil {
				return err
			}
			if err := l.print(cmd.OutOrStdout(), "Findings", a, func(out io.Writer) { printFindings(out, a) }); err != nil {
				return err
			}
			left := slices.DeleteFunc(slices.Clone(a.Findings), func(f api.Finding) bool { return f.Done })
			switch {
			case a.Error != "":
				return errors.New(a.Error)
			case len(left) > 0:
				return errors.New(plural(len(left), "disagreement"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "make them agree")
	return cmd
}

func importCommand(l *leaseFlags) *cobra.Command {
	var yes bool
	var results, network string
	cmd := &cobra.Command{
		Use:   "import DIRECTORY",
		Short: "take over the addresses that host-local gave (flannel, bridge, ptp)",
		Long: `import reads the directory of one network of host-local, such as /var/lib/cni/networks/cbr0, and the
runtime's results, shows what it will take over, and asks. Running pods keep their addresses until
they are deleted; a recreated pod gets the address that it had. The import can be repeated. See docs/migration.md.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			leases, said, err := readHostLocal(args[0], results)
			for _, s := range said {
				fmt.Fprintln(cmd.ErrOrStderr(), "skipped", s)
			}
			if err != nil {
				return err
			}
			text, err := json.Marshal(leases)
			if err != nil {
				return err
			}
			return l.importAll(cmd, []string{"import", network, string(text)}, &yes)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&results, "results", "/var/lib/cni/results", "where the runtime keeps results: they name pods and namespaces")
	cmd.Flags().StringVar(&network, "network", "edgeway", "name of the network that serves the pods from now on")
	return cmd
}

func (l *leaseFlags) importAll(cmd *cobra.Command, args []string, yes *bool) error {
	var plan []api.Imported
	if err := l.ask(cmd.Context(), &plan, args...); err != nil {
		return err
	}
	todo := 0
	for _, r := range plan {
		if r.Action == api.Hold || r.Action == api.Remember {
			todo++
		}
	}
	if todo == 0 {
		return l.print(cmd.OutOrStdout(), "ImportedList", items[api.Imported]{plan}, func(out io.Writer) {
			printImport(out, plan)
			fmt.Fprintln(out, "\nNothing is left to import.")
		})
	}
	if !*yes {
		printImport(cmd.ErrOrStderr(), plan)
	}
	if err := confirm(cmd, fmt.Sprintf("\nImport %d?", todo), yes); err != nil {
		return err
	}
	var done []api.Imported
	if err := l.ask(cmd.Context(), &done, append(args, pods.Apply)...); err != nil {
		return err
	}
	return l.print(cmd.OutOrStdout(), "ImportedList", items[api.Imported]{done}, func(out io.Writer) {
		if *yes {
			printImport(out, done)
		}
		fmt.Fprintf(out, "\nImported %d.\n", todo)
	})
}

func printImport(out io.Writer, rows []api.Imported) {
	p := newTable(out)
	p.row("ADDRESS", "POD", "CONTAINER", "INTERFACE", "ACTION", "REMARK")
	for _, r := range rows {
		p.row(strings.Join(r.Addrs, ","), cmp.Or(r.Pod, "-"), short(r.ContainerID), r.IfName, r.Action, r.Why)
	}
	p.table.Flush()
}

func newTable(out io.Writer) *page {
	return &page{out: out, table: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
}
