package main

import "fmt"

// goals compares the results of the run with edgeway's goals. A goal is a count, a size, or a ratio to a peer of
// the same run. A goal that was not measured is left out.
func (b *bench) goals() {
	t := table{Name: "goals", Title: "Goals", Columns: columns("what", "at most", "measured", "least possible", "which is")}
	for _, g := range []struct {
		what, key string
		most      float64
	}{
		{"ADD p50, one at a time, to ptp + host-local", "pods/v4/1/add", 0.30},
		{"ADD processor time, one at a time, to ptp", "pods/v4/1/add-cpu", 0.30},
		{"ADDs a second, 32 at once: ptp's to ours", "pods/v4/32/add-rate", 0.20},
		{"ADD p99, 32 at once, to ptp", "pods/v4/32/add-p99", 0.25},
		{"DEL p50, one at a time, to ptp", "pods/v4/1/del", 0.15},
		{"DELs a second, 32 at once: ptp's to ours", "pods/v4/32/del-rate", 0.20},
		{"ADDs a second without daemon, 32 at once: ptp's to ours", "pods/v4/32/alone-rate", 0.67},
		{"dual-stack ADD p50, one at a time, to our IPv4 ADD", "pods/dual-v4", 1.15},
		{"dual-stack ADD p50, one at a time, to ptp's", "pods/dual/1/add", 0.005},
		{"execs of one ADD", "counts/v4/ADD/execs", 1},
		{"system calls of the plugin in one ADD", "counts/v4/ADD/syscalls", 240},
		{"minor faults of the plugin in one ADD", "counts/v4/ADD/faults", 215},
		{"system calls of the daemon in one ADD", "counts/v4/ADD/daemon", 170},
		{"netlink sends of one ADD", "counts/v4/ADD/sends", 3},
		{"netlink sends of one dual-stack ADD", "counts/dual/ADD/sends", 4},
		{"lease beside 4,000 leases to beside 10, p50", "store/4000", 1.1},
		{"lease beside 60,000 leases to beside 10, p50", "store/60000", 1.1},
		{"pairs a second, 32 callers: bbolt.Update's to ours", "store/update/32", 0.25},
		{"ADD p50 with source NAT for the pod, one at a time, to one without", "masquerade/1/add", 1.05},
		{"ADD p50 with an uplink, one at a time, to one with a pod CIDR", "uplinks/1/add", 1.05},
		{"fsyncs of a slow disk that a lone ADD waits for", "slowdisk/1/fsyncs", 1},
		{"anonymous memory of a daemon among 10 nodes, MiB", "memory/10/daemon", 6},
		{"anonymous memory of daemon and two sessions among 5,000 nodes, MiB", "memory/5000/all", 60},
		{"first sync of 5,000 routes to ip -batch", "routes/first sync", 0.09},
		{"sync with nothing changed to ip -batch replacing", "routes/nothing changed", 0.02},
		{"heap growth of all syncs with nothing changed, MiB", "routes/nothing changed/heap", 0.1},
		{"kernel events of a sync with nothing changed", "routes/nothing changed/0/events", 0},
		{"processor time for a KiB, pod to pod on another node, to node to node", "path/1/cost", 1.2},
		{"round trip p50, pod to pod on another node, to node to node", "path/1/rr", 1.45},
		{"processor time for a KiB, pod to pod on a node, to a veth pair", "path/3/cost", 1.2},
	} {
		v := b.out.Values
		if single, ok := v["pods/v4/1/add-ms"]; ok && v["pods/dual/1/add-ms"] > 0 {
			v["pods/dual-v4"] = v["pods/dual/1/add-ms"] / single
		}
		got, ok := v[g.key]
		if !ok {
			continue
		}
		reached := map[bool]string{true: "reached", false: "missed"}[got <= g.most]
		var least any // of a plugin in Go
		if n, ok := v[g.key+"/least"]; ok {
			least = n
		}
		t.row(g.what, fmt.Sprint(g.most), got, least, reached)
		b.out.Goals = append(b.out.Goals, goal{g.what, g.most, got, got <= g.most})
	}
	if len(t.Rows) > 0 {
		t.note("The least possible is the start of a Go program that does nothing and the kernel's part alone, and for a rate also this program's own part.")
		b.out.add(t)
	}
}
