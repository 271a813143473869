package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// askFor bounds how long a command waits for the daemon.
const askFor = 15 * time.Second

func ask(ctx context.Context, f *flags, req api.Request) ([]byte, error) {
	socket, err := f.where()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	reply, err := api.Call(ctx, socket, req, nil)
	if err != nil {
		return nil, unreachable(err)
	}
	if reply.Error != "" {
		return nil, errors.New(reply.Error)
	}
	return reply.Output, nil
}

// screenful is the number of table lines that fit on the screen.
const screenful = 12

// tunnelPeers is the number of unreachable peers of a tunnel that fit on the screen.
const tunnelPeers = 3

// page writes the status as tables.
type page struct {
	out   io.Writer
	table *tabwriter.Writer
	most  int // lines of a table; 0: all
}

// marked marks the line of a reason that something is not right.
func marked(reason string) string {
	if reason == "" {
		return ""
	}
	return reason + markBad
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
		fmt.Fprintf(p.out, "  ... and %d more; --all shows them\n", n-shown)
	}
}

// newPage returns a page for out. A page that shows all has every row.
func newPage(out *screen, all bool) *page {
	p := &page{out: out, table: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), most: screenful}
	if all {
		p.most = 0
	}
	return p
}

// status writes the one screen that an operator needs.
func (p *page) status(s api.Status) {
	mode := s.Mode
	if s.NetworkPool != "" {
		mode += " by " + s.NetworkPool
	}
	p.row("Node", fmt.Sprintf("%s   addresses %s   pod CIDRs %s   mode %s", s.Node, list(s.Addresses), list(s.PodCIDRs), mode))
	p.row("Daemon", fmt.Sprintf("edgewayd %s, up %s", s.Version, age(s.Now.Sub(s.Started))))
	p.row("Cluster", clusterLine(s))
	p.row("Leases", leasesLine(s.Leases))
	for _, t := range s.Tunnels {
		mark := ""
		if t.SoftChecksums {
			mark = "   checksums in software: this kernel spoils others"
		}
		if t.State != api.Installed {
			mark += "   " + marked(t.State)
		}
		if len(t.Differs) > 0 {
			mark = "   " + marked(fmt.Sprintf("%s: %s", t.State, t.Differs[0]))
		}
		peers := fmt.Sprintf("peers %d", t.Peers)
		if len(t.Unreachable) > 0 {
			peers += fmt.Sprintf(", %d unreachable", len(t.Unreachable))
		}
		p.row("Tunnel", fmt.Sprintf("%s   from %s   VNI %d   UDP port %d   MTU %d   %s%s", t.Device, t.Local, t.VNI, t.Port, t.MTU, peers, mark))
		for i, u := range t.Unreachable {
			if p.most > 0 && i == tunnelPeers {
				p.row("", fmt.Sprintf("... and %d more; --all shows them", len(t.Unreachable)-i))
				break
			}
			p.row("", u.Node+": "+marked(u.Why))
		}
	}
	for _, f := range s.Firewall {
		mark := ""
		if f.State != api.Installed {
			mark = "   " + marked(f.State)
		}
		p.row("Firewall", fmt.Sprintf("rules of edgeway accept at the end of %s: %s%s", f.Chain, strings.Join(f.Accepts, ", "), mark))
	}
	if len(s.Paths.Canary) > 0 {
		p.row("Paths", pathsLine(s.Paths))
	}
	p.table.Flush()
	if s.Uplinks != nil {
		fmt.Fprintln(p.out)
		p.uplinks(*s.Uplinks)
	}
	views := []func(api.Status){p.routes, p.sessions, p.learned, p.problems}
	if len(s.Learned) == 0 {
		views = slices.Delete(views, 2, 3)
	}
	for _, view := range views {
		fmt.Fprintln(p.out)
		view(s)
	}
}

// uplinks shows the secondary interfaces that serve pods.
func (p *page) uplinks(u api.Uplinks) {
	pods := ""
	if u.MaxPods > 0 {
		pods = fmt.Sprintf("; kubelet maxPods %d", u.MaxPods)
	}
	if u.MostPods > 0 && u.MaxPods > u.MostPods {
		pods += fmt.Sprintf(": set %d or fewer", u.MostPods)
	}
	p.heading(markHead, "Uplinks: %s, egress by the %s: %d addresses in use, %d free%s", cmp.Or(u.Provider, "the resource is gone"), u.Egress, u.Used, u.Free, pods)
	p.row("  LINK", "INTERFACE", "OWN ADDRESS", "GATEWAY", "USED", "STATE")
	for _, i := range u.Interfaces {
		state := i.State
		if state != api.UplinkUp {
			state = marked(state)
		}
		p.row("  "+cmp.Or(i.Link, "-"), cmp.Or(i.MAC, i.Name), i.Address, i.Gateway, fmt.Sprintf("%d of %d", i.Used, i.Addresses), state)
	}
	p.table.Flush()
}

// heading writes the line above a table.
func (p *page) heading(mark, format string, args ...any) {
	fmt.Fprintf(p.out, format+mark+"\n", args...)
}

// routes shows the wrong routes first.
func (p *page) routes(s api.Status) {
	all := s.Routes
	var bad, good []api.Route
	for _, r := range all {
		if r.State == api.Installed {
			good = append(good, r)
		} else {
			bad = append(bad, r)
		}
	}
	p.heading(markHead, "Routes to other nodes: %d of %d installed", len(good), len(all))
	all = append(bad, good...)
	p.rows(len(all), func(i int) {
		r := all[i]
		p.row("  "+r.Dst, "via "+cmp.Or(r.Via, "-"), "dev "+cmp.Or(r.Dev, "-"), r.Node, marked(strings.TrimSuffix(r.State, api.Installed)))
	})
}

// learned shows the wrong routes first. It only counts the ignored prefixes.
func (p *page) learned(s api.Status) {
	all := s.Learned
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
	p.heading(markHead, "Learned from switches: %d of %d", len(good), len(all))
	shown := append(bad, good...)
	p.rows(len(shown), func(i int) {
		l := shown[i]
		kept := ""
		if l.Kept {
			kept = "kept"
		}
		p.row("  "+l.Dst, "via "+l.Via, "dev "+cmp.Or(l.Dev, "-"), "from "+l.Switch, marked(strings.TrimSpace(strings.TrimSuffix(l.State, api.Installed)+" "+kept)))
	})
}

func (p *page) sessions(s api.Status) {
	if len(s.Sessions) == 0 {
		p.heading(markHead, "BGP: this node has no session")
		return
	}
	p.heading(markHead, "BGP sessions")
	p.row("  SWITCH", "ASN", "OUR ASN", "STATE", "SINCE", "PREFIXES", "RESTART", "RESOURCE")
	for _, b := range s.Sessions {
		p.row("  "+b.Peer, b.PeerASN, b.LocalASN, b.State, age(s.Now.Sub(b.Since)), len(b.Advertised), restart(b), b.Resource, marked(b.Reason))
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

func pathsLine(c api.Paths) string {
	if len(c.Canary) == 0 {
		return "no canary: they are not proven"
	}
	return fmt.Sprintf("%d of %d reached from the canary %s", c.Reached, c.Probed, list(c.Canary))
}

// paths shows the silent paths first.
func (p *page) paths(s api.Status) {
	var bad, good []api.Asked
	for _, a := range s.Paths.Asked {
		if a.Canary == api.Answers && a.FullSize != api.Silent {
			good = append(good, a)
		} else {
			bad = append(bad, a)
		}
	}
	p.heading(markHead, "Paths to pods of other nodes: %s", pathsLine(s.Paths))
	all := append(bad, good...)
	if len(all) > 0 {
		p.row("  NODE", "CANARY", "SMALL", "FULL SIZE", "NODE ITSELF", "ROUND TRIP", "LOST", "MODE", "VERSION")
	}
	p.rows(len(all), func(i int) {
		a := all[i]
		full, trip := a.FullSize, "-" // nothing was measured yet
		if a.FullBytes > 0 {
			full = fmt.Sprintf("%s (%d bytes)", full, a.FullBytes)
		}
		if a.Seconds > 0 {
			trip = fmt.Sprintf("%.1f ms", a.Seconds*1000)
		}
		p.row("  "+a.Node, cmp.Or(a.Address, "-"), a.Canary, full, a.Host, trip, fmt.Sprintf("%d of %d", a.Lost, a.Sent), cmp.Or(a.Mode, "-"), cmp.Or(a.Version, "-"))
	})
}

func (p *page) problems(s api.Status) {
	if len(s.Problems) == 0 {
		p.heading(markGood, "Problems: none")
	} else {
		p.heading(markBad, "Problems: %d", len(s.Problems))
		p.list(s.Problems, markBad)
	}
	if len(s.Advice) > 0 {
		p.heading(markHead, "Advice: %d", len(s.Advice))
		p.list(s.Advice, markHead)
	}
}

func (p *page) list(all []api.Problem, mark string) {
	p.rows(len(all), func(i int) {
		problem := all[i]
		p.heading(mark, "  %s: %s", problem.Object, problem.Reason)
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
