package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/plugin"
)

// printLeases writes at most that many leases as a table; 0: all. Leases that need attention come first.
func printLeases(out io.Writer, a api.LeaseList, most int) {
	if len(a.Leases) == 0 {
		fmt.Fprintln(out, "No pod holds an address.")
		return
	}
	rows := slices.Clone(a.Leases)
	slices.SortStableFunc(rows, func(x, y api.Lease) int { return cmp.Compare(rank(x), rank(y)) })
	p := newTable(out)
	head := []any{"ADDRESS", "POD", "CONTAINER", "INTERFACE", "NETWORK", "SINCE", "STATE"}
	ofUplinks := slices.ContainsFunc(rows, func(l api.Lease) bool { return l.Uplink != "" })
	if ofUplinks {
		head = append(head, "UPLINK")
	}
	p.row(head...)
	for _, l := range cutTo(rows, most) {
		row := []any{cmp.Or(strings.Join(l.Addrs, ","), "-"), cmp.Or(l.Pod, "-"), short(l.ContainerID), cmp.Or(l.IfName, "-"), networkText(l.Network), age(a.Now.Sub(l.Since)), l.State}
		if ofUplinks {
			row = append(row, cmp.Or(l.Uplink, "-"))
		}
		p.row(row...)
	}
	p.table.Flush()
	more(out, len(rows), most)
}

// rank orders the leases: a lease that needs attention comes first.
func rank(l api.Lease) int {
	switch plugin.Standing(l.State) {
	case plugin.Alive:
		return 2
	case plugin.Foreign:
		return 1
	}
	return 0
}

// runs reports whether the pod of the lease runs, or may run.
func runs(l api.Lease) bool { return plugin.Standing(l.State).Lives() }

func cutTo[T any](rows []T, most int) []T {
	if most > 0 && len(rows) > most {
		return rows[:most]
	}
	return rows
}

func more(out io.Writer, n, most int) {
	if most > 0 && n > most {
		fmt.Fprintf(out, "... and %d more; --all shows them\n", n-most)
	}
}

// networkText names the network, and who wired the pod if edgeway did not (plugin.Adopted, conf.network).
func networkText(network string) string {
	name, by, foreign := strings.Cut(network, "/")
	switch {
	case strings.HasPrefix(by, "adopted/"):
		return name + " (imported)"
	case foreign:
		return name + " (" + by + ")"
	}
	return cmp.Or(network, "-")
}

func printRemembered(out io.Writer, a api.LeaseList, most int) {
	if len(a.Remembered) == 0 {
		fmt.Fprintln(out, "No free address waits for a pod.")
		return
	}
	p := newTable(out)
	p.row("ADDRESS", "LAST POD", "INTERFACE", "NETWORK")
	for _, m := range cutTo(a.Remembered, most) {
		p.row(m.Addr, m.Pod, m.IfName, networkText(m.Network))
	}
	p.table.Flush()
	more(out, len(a.Remembered), most)
}

// printPools counts the addresses of each pod CIDR.
func printPools(out io.Writer, a api.LeaseList) {
	fmt.Fprintln(out)
	p := newTable(out)
	p.row("POD CIDR", "USED", "FREE", "REMEMBERED")
	for _, u := range a.Pools {
		p.row(u.CIDR, count(u.Used), count(u.Free), count(u.Remembered))
	}
	if len(a.Pools) == 0 {
		p.row("not known yet")
	}
	p.table.Flush()
	if a.Outside > 0 {
		fmt.Fprintf(out, "%d held addresses are outside of the pod CIDRs\n", a.Outside)
	}
}

func printDetails(out io.Writer, a api.LeaseDetails) {
	p := newTable(out)
	for i, d := range a.Leases {
		if i > 0 {
			p.row()
		}
		link := "none: another plugin made the interface"
		switch {
		case d.Link != "" && d.LinkExists:
			link = d.Link + "   MAC " + d.MAC
		case d.Link != "":
			link = d.Link + "   does not exist"
		}
		pod := d.IfName + "   MAC " + d.PodMAC
		if d.NoPod != "" {
			pod = d.NoPod
		}
		for _, l := range [][2]string{
			{"Pod", cmp.Or(d.Lease.Pod, "not known")}, {"Addresses", strings.Join(d.Addrs, ", ")}, {"State", d.State},
			{"Since", fmt.Sprintf("%s (%s ago)", d.Since.Format("2006-01-02 15:04:05 MST"), age(a.Now.Sub(d.Since)))},
			{"Network", networkText(d.Network)}, {"Container", d.ContainerID}, {"Namespace", cmp.Or(d.Netns, "not known")},
			{"Host's end", link}, {"Pod's end", pod},
		} {
			p.row(l[0], l[1])
		}
		if d.Uplink != "" {
			p.row("Uplink", d.Uplink)
		}
		if d.KeptFor != "" {
			p.row("Kept for", fmt.Sprintf("pod %s on network %s, when it comes back", d.Lease.Pod, networkText(d.KeptFor)))
		}
		p.table.Flush()
		for _, end := range []struct {
			name  string
			lines []string
		}{{"On the host", d.HostEnd}, {"In the pod", d.PodEnd}} {
			if len(end.lines) > 0 {
				fmt.Fprintf(out, "%s\n  %s\n", end.name, strings.Join(end.lines, "\n  "))
			}
		}
	}
	for _, m := range a.Remembered {
		fmt.Fprintf(out, "%s is free and waits for pod %s, interface %s, network %s\n", m.Addr, m.Pod, m.IfName, networkText(m.Network))
	}
}

func printFindings(out io.Writer, a api.Findings) {
	for _, f := range a.Findings {
		fmt.Fprintf(out, "%s: %s\n", f.Object, f.Got)
		switch {
		case f.Done:
			fmt.Fprintf(out, "      repaired: %s\n", f.Repair)
		case f.Repair != "":
			fmt.Fprintf(out, "      --repair: %s\n", f.Repair)
		default:
			fmt.Fprintf(out, "      next:     %s\n", f.Next)
		}
	}
	if len(a.Findings) == 0 {
		agree := "agree"
		if a.Leases == 1 {
			agree = "agrees"
		}
		fmt.Fprintf(out, "%s %s with the links, routes and namespaces of this node.\n", plural(a.Leases, "lease"), agree)
	}
}
