package controller

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// counts are what a Prometheus server reads, in its text format: few numbers, written by hand, so
// that this package needs no client of it.
type counts struct {
	mu      sync.Mutex      // guards what is below
	term    context.Context // nil before the first; this replica works until it ends
	given   int
	waiting int
	ranges  []rangeCount
	reasons map[string]int
}

type rangeCount struct {
	cidr   netip.Prefix
	blocks float64
	nodes  int
}

// leads notes that this replica works until ctx ends.
func (c *counts) leads(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term = ctx
}

func (c *counts) granted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given++
}

// set notes what a look left: nodes with what was granted, and what is wrong.
func (c *counts) set(pools []Pool, nodes []Node, problems []Problem) {
	var ranges []rangeCount
	for _, p := range pools {
		for _, in := range p.CIDRs {
			r := rangeCount{cidr: in, blocks: math.Exp2(float64(p.Mask.of(in.Addr()) - in.Bits()))}
			for _, n := range nodes {
				if slices.ContainsFunc(n.PodCIDRs, in.Overlaps) {
					r.nodes++
				}
			}
			ranges = append(ranges, r)
		}
	}
	reasons := map[string]int{}
	for _, p := range problems {
		reasons[p.Reason]++
	}
	waiting := 0
	for _, n := range nodes {
		if poolOf(pools, n.Labels) != nil && !n.hasPodCIDRs() {
			waiting++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ranges, c.reasons, c.waiting = ranges, reasons, waiting
}

// write writes them all.
func (c *counts) write(out io.Writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	metric := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	leads := 0
	if c.term != nil && c.term.Err() == nil {
		leads = 1
	}
	metric("edgeway_controller_leading", "gauge", "1 on the replica that gives pod CIDRs.")
	fmt.Fprintf(&b, "edgeway_controller_leading %d\n", leads)
	metric("edgeway_controller_given_total", "counter", "Nodes that this replica gave pod CIDRs.")
	fmt.Fprintf(&b, "edgeway_controller_given_total %d\n", c.given)
	metric("edgeway_controller_waiting_nodes", "gauge", "Selected Nodes that got no pod CIDRs at the last look.")
	fmt.Fprintf(&b, "edgeway_controller_waiting_nodes %d\n", c.waiting)
	metric("edgeway_controller_blocks", "gauge", "Blocks that a range has for nodes.")
	for _, r := range c.ranges {
		fmt.Fprintf(&b, "edgeway_controller_blocks{range=%q} %g\n", r.cidr, r.blocks)
	}
	metric("edgeway_controller_held", "gauge", "Nodes that hold pod CIDRs of a range.")
	for _, r := range c.ranges {
		fmt.Fprintf(&b, "edgeway_controller_held{range=%q} %d\n", r.cidr, r.nodes)
	}
	metric("edgeway_controller_problems", "gauge", "What an operator should mend, by reason; the log and the Nodes' Events say more.")
	for _, reason := range slices.Sorted(maps.Keys(c.reasons)) {
		fmt.Fprintf(&b, "edgeway_controller_problems{reason=%q} %d\n", reason, c.reasons[reason])
	}
	_, err := io.WriteString(out, b.String())
	return err
}
