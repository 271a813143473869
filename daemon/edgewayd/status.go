package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// askFor bounds how long a command waits for the daemon.
const askFor = 15 * time.Second

func statusCommand(f *flags) *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show what the node knows, routes and advertises, and what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %q: want json", output)
			}
			text, err := ask(cmd.Context(), f, api.Request{Op: "status"})
			if err != nil {
				return err
			}
			var s api.Status
			if err := json.Unmarshal(text, &s); err != nil {
				return fmt.Errorf("daemon's answer: %w; the daemon is of another version than this command", err)
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			printStatus(cmd.OutOrStdout(), s, all)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json: for programs")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every route, prefix and problem, however many")
	return cmd
}

func ask(ctx context.Context, f *flags, req api.Request) ([]byte, error) {
	socket, err := f.where()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	reply, err := api.Call(ctx, socket, req, nil)
	if errors.Is(err, api.ErrNoDaemon) {
		return nil, fmt.Errorf("%w: start it with systemctl start edgewayd, or name its socket with --socket", err)
	}
	if err != nil {
		return nil, err
	}
	if reply.Error != "" {
		return nil, errors.New(reply.Error)
	}
	return reply.Output, nil
}

// screenful is the number of table lines that fit on the screen.
const screenful = 12

// page writes the status as tables.
type page struct {
	out   io.Writer
	table *tabwriter.Writer
	most  int // lines of a table; 0: all
}

func (p *page) row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(p.table, strings.TrimRight(strings.Join(text, "\t"), "\t "))
}

// rows writes all n rows, or as many as fit and the number of the rest.
func (p *page) rows(n int, row func(i int)) {
	shown := n
	if p.most > 0 && n > p.most {
		shown = p.most
	}
	for i := range shown {
		row(i)
	}
	p.table.Flush()
	if shown < n {
		fmt.Fprintf(p.out, "  ... and %d more; status --all shows them\n", n-shown)
	}
}

// printStatus writes the one screen that an operator needs.
func printStatus(out io.Writer, s api.Status, all bool) {
	p := &page{out: out, table: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), most: screenful}
	if all {
		p.most = 0
	}
	p.row("Node", fmt.Sprintf("%s   addresses %s   pod CIDRs %s   mode %s", s.Node, list(s.Addresses), list(s.PodCIDRs), s.Mode))
	p.row("Daemon", fmt.Sprintf("edgewayd %s, up %s", s.Version, age(s.Now.Sub(s.Started))))
	p.row("Cluster", clusterLine(s))
	p.row("Leases", leasesLine(s.Leases))
	p.table.Flush()
	p.routes(s.Routes)
	p.sessions(s)
	p.learned(s.Learned)
	p.problems(s.Problems)
}

// routes shows the wrong routes first.
func (p *page) routes(all []api.Route) {
	var bad, good []api.Route
	for _, r := range all {
		if r.State == api.Installed {
			good = append(good, r)
		} else {
			bad = append(bad, r)
		}
	}
	fmt.Fprintf(p.out, "\nRoutes to other nodes: %d of %d installed\n", len(good), len(all))
	all = append(bad, good...)
	p.rows(len(all), func(i int) {
		r := all[i]
		p.row("  "+r.Dst, "via "+cmp.Or(r.Via, "-"), "dev "+cmp.Or(r.Dev, "-"), r.Node, strings.TrimSuffix(r.State, api.Installed))
	})
}

// learned shows the wrong routes first. It only counts the ignored prefixes.
func (p *page) learned(all []api.Learned) {
	if len(all) == 0 {
		return
	}
	var bad, good []api.Learned
	for _, l := range all {
		switch l.State {
		case api.Installed:
			good = append(good, l)
		case api.Ignored:
		default:
			bad = append(bad, l)
		}
	}
	fmt.Fprintf(p.out, "\nLearned from switches: %d of %d\n", len(good), len(all))
	shown := append(bad, good...)
	p.rows(len(shown), func(i int) {
		l := shown[i]
		kept := ""
		if l.Kept {
			kept = "kept"
		}
		p.row("  "+l.Dst, "via "+l.Via, "dev "+cmp.Or(l.Dev, "-"), "from "+l.Switch, strings.TrimSpace(strings.TrimSuffix(l.State, api.Installed)+" "+kept))
	})
}

func (p *page) sessions(s api.Status) {
	if len(s.Sessions) == 0 {
		fmt.Fprintln(p.out, "\nBGP: this node has no session")
		return
	}
	fmt.Fprintln(p.out, "\nBGP sessions")
	p.row("  SWITCH", "ASN", "OUR ASN", "STATE", "SINCE", "PREFIXES", "RESTART", "RESOURCE")
	for _, b := range s.Sessions {
		p.row("  "+b.Peer, b.PeerASN, b.LocalASN, b.State, age(s.Now.Sub(b.Since)), len(b.Advertised), restart(b), b.Resource, b.Reason)
	}
	p.table.Flush()
	for _, b := range s.Sessions {
		if r := b.Refused; r != nil {
			fmt.Fprintf(p.out, "  %s: runs on earlier settings since %s: the settings of %s failed: %s: %s\n", b.Peer, age(s.Now.Sub(r.At)), b.Resource, r.Reason, r.Detail)
		}
		if r := b.LastReset; r != nil {
			fmt.Fprintf(p.out, "  %s: resets since the daemon started: %d, last %s ago: %s: %s\n", b.Peer, b.Flaps, age(s.Now.Sub(r.At)), r.Reason, r.Detail)
		}
	}
	for _, b := range s.Sessions {
		if len(b.Advertised) == 0 {
			continue
		}
		fmt.Fprintf(p.out, "\nAdvertised to %s\n", b.Peer)
		p.rows(len(b.Advertised), func(i int) { p.row("  "+b.Advertised[i].Prefix, "next hop "+b.Advertised[i].NextHop) })
	}
}

func (p *page) problems(all []api.Problem) {
	if len(all) == 0 {
		fmt.Fprintln(p.out, "\nProblems: none")
		return
	}
	fmt.Fprintf(p.out, "\nProblems: %d\n", len(all))
	p.rows(len(all), func(i int) {
		problem := all[i]
		fmt.Fprintf(p.out, "  %s: %s\n", problem.Object, problem.Reason)
		for _, l := range []struct{ word, text string }{{"want", problem.Want}, {"got", problem.Got}, {"next", problem.Next}} {
			if l.text != "" {
				fmt.Fprintf(p.out, "      %-5s %s\n", l.word+":", l.text)
			}
		}
	})
}

func clusterLine(s api.Status) string {
	if s.World.ReadAt.IsZero() {
		return "not known yet: it could not be read, and no state was saved; the machine is left as it is"
	}
	from := s.World.Source
	if s.World.FromDisk {
		from = "saved copy of " + from + ", not confirmed since this start"
	}
	return fmt.Sprintf("%s, read %s ago (nodes: %d, BGP resources: %d)", from, age(s.Now.Sub(s.World.ReadAt)), s.World.Nodes, s.World.Peerings)
}

func leasesLine(l api.Leases) string {
	text := fmt.Sprintf("%d used, room for %s more pods", l.Used, count(l.Free))
	if l.Outside > 0 {
		text += fmt.Sprintf(", %d outside the present pod CIDRs", l.Outside)
	}
	return text
}

// count writes large numbers, which only IPv6 pools reach, as powers of two.
func count(n uint64) string {
	if n < 1<<20 {
		return fmt.Sprint(n)
	}
	bits := 0
	for n > 1 {
		n >>= 1
		bits++
	}
	return fmt.Sprintf("about 2^%d", bits)
}

func restart(b api.Session) string {
	if b.GracefulRestart == 0 {
		return "-"
	}
	if b.LongLived > 0 {
		return fmt.Sprintf("%ds+%s", b.GracefulRestart, age(time.Duration(b.LongLived)*time.Second))
	}
	return fmt.Sprintf("%ds", b.GracefulRestart)
}

func list(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ", ")
}

// age writes a duration in its two largest units.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
