package daemon

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

// metrics serves a Prometheus server. The gauges show the status at the time of the request; the histograms
// count CNI calls and looks.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	looks    *prometheus.HistogramVec
}

func newMetrics(status func(context.Context) api.Status) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "edgeway_cni_call_duration_seconds", Help: "CNI calls served by the daemon, by verb and result.",
		Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 5},
	}, []string{"verb", "result"})
	m.looks = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "edgeway_reconcile_duration_seconds", Help: "Looks at cluster and machine that changed what differed, by result; error: a part failed and is tried again.",
		Buckets: []float64{.005, .01, .05, .1, .5, 1, 5, 10},
	}, []string{"result"})
	for _, worked := range []bool{true, false} { // there from the start, so that a rule sees the first error
		m.looks.WithLabelValues(result(worked))
	}
	m.registry.MustRegister(m.calls, m.looks, statusCollector{status},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) observe(verb string, failed bool, took time.Duration) {
	m.calls.WithLabelValues(verb, result(!failed)).Observe(took.Seconds())
}

func (m *metrics) looked(worked bool, took time.Duration) {
	m.looks.WithLabelValues(result(worked)).Observe(took.Seconds())
}

func result(worked bool) string {
	if worked {
		return "ok"
	}
	return "error"
}

// handler serves /metrics, and /healthz by healthz.
func (m *metrics) handler(healthz http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", healthz)
	return mux
}

type statusCollector struct {
	status func(context.Context) api.Status
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("edgeway_"+name, help, labels, nil)
}

// Describe sends nothing: the collector is unchecked, and makes its descriptions while it collects.
func (c statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s := c.status(ctx)
	gauge := func(v float64, desc *prometheus.Desc, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	gauge(1, describe("build_info", "Version of the daemon.", "version", "node"), s.Version, s.Node)
	gauge(float64(s.World.Nodes), describe("world_nodes", "Nodes in the cluster state."))
	if !s.World.ReadAt.IsZero() {
		gauge(s.Now.Sub(s.World.ReadAt).Seconds(), describe("world_age_seconds", "Time since the cluster was last read with success."))
	}
	states := map[string]int{api.Installed: 0, api.Missing: 0, api.Foreign: 0}
	for _, r := range s.Routes {
		states[r.State]++
	}
	for state, n := range states {
		gauge(float64(n), describe("node_routes", "Routes to other nodes' pod CIDRs, by state.", "state"), state)
	}
	learned := map[string]int{api.Installed: 0, api.Missing: 0, api.Foreign: 0, api.Ignored: 0}
	for _, l := range s.Learned {
		learned[l.State]++
	}
	for state, n := range learned {
		gauge(float64(n), describe("bgp_learned_prefixes", "Prefixes that the switches announce within bgp.learn, by state.", "state"), state)
	}
	for _, b := range s.Sessions {
		labels := []string{b.Peer, b.Resource, strconv.FormatUint(uint64(b.PeerASN), 10)}
		up := 0.0
		if b.State == api.Established {
			up = 1
		}
		gauge(up, describe("bgp_session_up", "1 when the session is Established.", "peer", "resource", "peer_asn"), labels...)
		if up == 0 {
			gauge(1, describe("bgp_session_down", "1 for a session that is not Established, by reason.", "peer", "resource", "peer_asn", "reason"), append(labels, b.Reason)...)
		}
		gauge(float64(len(b.Advertised)), describe("bgp_advertised_prefixes", "Prefixes that are advertised to the switch.", "peer", "resource", "peer_asn"), labels...)
		out <- prometheus.MustNewConstMetric(describe("bgp_session_flaps_total", "Times the session left Established since the daemon started.", "peer", "resource", "peer_asn"),
			prometheus.CounterValue, float64(b.Flaps), labels...)
		gauge(float64(b.Since.Unix()), describe("bgp_session_since_timestamp_seconds", "When the session reached its present state.", "peer", "resource", "peer_asn"), labels...)
		gauge(float64(b.GracefulRestart), describe("bgp_graceful_restart_seconds", "Negotiated restart time; 0: graceful restart was not negotiated.", "peer", "resource", "peer_asn"), labels...)
	}
	gauge(float64(s.Leases.Total), describe("addresses", "Addresses of the pod pool."))
	gauge(float64(s.Leases.Used), describe("addresses_used", "Addresses that pods hold."))
	gauge(float64(s.Leases.Free), describe("addresses_free", "Addresses that are free for pods."))
	gauge(float64(s.Paths.Probed), describe("paths_probed", "Paths to other nodes' canaries that were asked lately: one for each node and family."))
	gauge(float64(s.Paths.Reached), describe("paths_reached", "Paths to other nodes' canaries that answered the last question."))
	counter := func(v float64, desc *prometheus.Desc, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, labels...)
	}
	counter(float64(s.Paths.Sent), describe("path_questions_total", "Questions to other nodes' canaries since the daemon started."))
	counter(float64(s.Paths.Lost), describe("path_questions_lost_total", "Questions to other nodes' canaries that were not answered."))
	worst := 0.0
	for _, a := range s.Paths.Asked {
		worst = max(worst, a.Seconds)
	}
	gauge(worst, describe("paths_worst_round_trip_seconds", "The longest round trip of the last answers of other nodes' canaries."))
	if s.Uplinks != nil {
		type sums struct{ up, addresses, used float64 }
		byName := map[string]sums{} // an interface with both families is there twice
		for _, u := range s.Uplinks.Interfaces {
			name := cmp.Or(u.MAC, u.Name)
			sum := byName[name]
			if u.State == api.UplinkUp {
				sum.up = 1
			}
			sum.addresses, sum.used = sum.addresses+float64(u.Addresses), sum.used+float64(u.Used)
			byName[name] = sum
		}
		for name, sum := range byName {
			gauge(sum.up, describe("uplink_up", "1 when the uplink is there and up.", "interface"), name)
			gauge(sum.addresses, describe("uplink_addresses", "Addresses that the uplink grants to pods.", "interface"), name)
			gauge(sum.used, describe("uplink_used", "Addresses of the uplink that pods have.", "interface"), name)
		}
		gauge(float64(s.Uplinks.Free), describe("uplink_free", "Addresses of uplinks that are free for pods."))
	}
	// A reason without a problem is 0, so that a rule sees a problem begin and end.
	byReason := func(problems []api.Problem, reasons []string, desc *prometheus.Desc) {
		count := map[string]int{}
		for _, r := range reasons {
			count[r] = 0
		}
		for _, p := range problems {
			count[p.Reason]++
		}
		for reason, n := range count {
			gauge(float64(n), desc, reason)
		}
	}
	problems, advice := everyReason()
	for _, r := range cluster.Reasons() { // the sessions' have bgp_session_flaps_total
		counter(float64(s.Appeared[string(r)]), describe("problem_appearances_total", "How often a problem or advice has appeared since the daemon started, by reason.", "reason"), string(r))
	}
	byReason(s.Problems, problems, describe("problems", "Problems that an operator should solve, by reason; see edgewayd status.", "reason"))
	byReason(s.Advice, advice, describe("advice", "Advice to the operator, by reason; see edgewayd status.", "reason"))
}

// everyReason returns every reason that a problem of status can have, and every reason of advice. A session that
// has just started is not a problem.
func everyReason() (problems, advice []string) {
	problems = slices.DeleteFunc(bgp.Reasons(), func(r string) bool { return cluster.Reason(r) == report.Connecting })
	for _, r := range cluster.Reasons() {
		if r.IsAdvice() {
			advice = append(advice, string(r))
		} else {
			problems = append(problems, string(r))
		}
	}
	return problems, advice
}
