package controller

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics hold the state after the last look, for a Prometheus server.
type metrics struct {
	mu       sync.Mutex      // guards the fields below
	term     context.Context // nil before the first term; this replica works until term ends
	given    int
	waiting  int
	ranges   []rangeUse
	problems map[string]int // by reason
}

// rangeUse says how much of a pool's range is in use.
type rangeUse struct {
	cidr   netip.Prefix
	blocks float64 // blocks in the range
	nodes  int     // nodes that hold pod CIDRs of the range
}

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("edgeway_controller_"+name, help, labels, nil)
}

var (
	leadingDesc  = metric("leading", "1 on the replica that gives pod CIDRs.")
	givenDesc    = metric("given_total", "Nodes that this replica gave pod CIDRs.")
	waitingDesc  = metric("waiting_nodes", "Selected Nodes that got no pod CIDRs at the last look.")
	blocksDesc   = metric("blocks", "Blocks that a range has for nodes.", "range")
	heldDesc     = metric("held", "Nodes that hold pod CIDRs of a range.", "range")
	problemsDesc = metric("problems", "Problems that an operator should solve, by reason; the log and the Nodes' Events say more.", "reason")
)

// leads notes that this replica works until ctx ends.
func (m *metrics) leads(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.term = ctx
}

func (m *metrics) granted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.given++
}

// set notes the result of a look: the nodes with their grants, and the problems.
func (m *metrics) set(pools []Pool, nodes []Node, problems []Problem) {
	var ranges []rangeUse
	for _, p := range pools {
		for _, in := range p.CIDRs {
			r := rangeUse{cidr: in, blocks: math.Exp2(float64(p.Mask.of(in.Addr()) - in.Bits()))}
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
		reasons[string(p.Reason)]++
	}
	waiting := 0
	for _, n := range nodes {
		if poolOf(pools, n.Labels) != nil && !n.hasPodCIDRs() {
			waiting++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ranges, m.problems, m.waiting = ranges, reasons, waiting
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leadingDesc, givenDesc, waitingDesc, blocksDesc, heldDesc, problemsDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	leading := 0.0
	if m.term != nil && m.term.Err() == nil {
		leading = 1
	}
	gauge(leadingDesc, leading)
	out <- prometheus.MustNewConstMetric(givenDesc, prometheus.CounterValue, float64(m.given))
	gauge(waitingDesc, float64(m.waiting))
	for _, r := range m.ranges {
		gauge(blocksDesc, r.blocks, r.cidr.String())
		gauge(heldDesc, float64(r.nodes), r.cidr.String())
	}
	for reason, n := range m.problems {
		gauge(problemsDesc, float64(n), reason)
	}
}
