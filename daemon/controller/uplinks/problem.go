package uplinks

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Reasons of problems. docs/ens.md has a line for each.
const (
	cloudUnreachable cluster.Reason = "cloudUnreachable"
	noInterface      cluster.Reason = "noInterface"
	fewAddresses     cluster.Reason = "fewAddresses"
	addressLost      cluster.Reason = "addressLost"
	gatewayGuessed   cluster.Reason = "gatewayGuessed"
	tooManyPods      cluster.Reason = "tooManyPods"
	securityGroup    cluster.Reason = "securityGroup"
	sharedInstance   cluster.Reason = "sharedInstance"
	notOurs          cluster.Reason = "notOurs"
	edgeNodeRefused  cluster.Reason = "edgeNodeRefused"
)

// reasons are all of them.
func reasons() []cluster.Reason {
	return []cluster.Reason{cloudUnreachable, noInterface, fewAddresses, addressLost, gatewayGuessed, tooManyPods, securityGroup, sharedInstance, notOurs, edgeNodeRefused}
}

// hostPods is how many pods of the host network a node is taken to have: they need no address, and the kubelet's
// maxPods counts them.
const hostPods = 10

// token is a text that no withdrawal had before.
func token() string { return strings.ToLower(rand.Text()[:10]) }

func (n *node) problem(p cluster.Problem) { n.problems = append(n.problems, p) }

// judge finds the problems of a node whose look succeeded and changed nothing.
func (c *Controller) judge(ctx context.Context, n *node, seen Cloud, spec *cluster.Uplinks) {
	object := "EdgeNode/" + n.Name
	if spec == nil || len(spec.Interfaces) == 0 {
		n.problem(cluster.Problem{Object: "Node/" + n.Name, Reason: noInterface, Want: "a secondary interface of " + n.Instance, Got: "none",
			Next: "drain the node and run eni-tool --instance " + n.Instance})
		return
	}
	want := 0
	for _, u := range spec.Interfaces {
		for _, w := range u.Withdrawn {
			if strings.HasPrefix(w.Token, lost) {
				n.problem(cluster.Problem{Object: object, Reason: addressLost, Want: w.Address.String() + " on " + u.ID, Got: "the cloud no longer has it there",
					Next: "delete the pod that has it: nothing reaches the pod. The address is forgotten when no pod has it"})
				break
			}
		}
		i := slices.IndexFunc(seen.Interfaces, func(i cloud.Interface) bool { return i.ID == u.ID })
		if i < 0 {
			continue
		}
		want += c.Terms.PerInterface
		vswitch := seen.Interfaces[i].VSwitch
		if have := len(addresses(u)); c.Terms.Fill.Free == 0 && have < c.Terms.PerInterface && c.Terms.Release != Off {
			n.problem(cluster.Problem{Object: object, Reason: fewAddresses, Want: fmt.Sprintf("%d addresses on %s", c.Terms.PerInterface, u.ID),
				Got:  fmt.Sprintf("%d; vSwitch %s has %d free", have, vswitch, seen.Subnets[vswitch].Free),
				Next: "free addresses of the vSwitch, or bind an interface of another vSwitch with eni-tool; the controller tries again by itself"})
		}
		if _, sure := gatewayOf(n.gateways, u.Subnet); !sure {
			n.problem(cluster.Problem{Object: object, Reason: gatewayGuessed, Want: "the gateway of " + u.Subnet.String(), Got: u.Gateway.String() + ", which is a guess",
				Next: "the instance has no address in this subnet that names it; check that pods of " + u.ID + " reach other hosts"})
		}
		for _, g := range seen.Interfaces[i].Groups {
			c.checkGroup(ctx, n, g, u.Subnet)
		}
	}
	if n.MaxPods > want+hostPods {
		n.problem(cluster.Problem{Object: "Node/" + n.Name, Reason: tooManyPods, Want: fmt.Sprintf("maxPods of about %d (%d interfaces of %d addresses, and pods of the host network)", want, len(spec.Interfaces), c.Terms.PerInterface),
			Got: fmt.Sprint(n.MaxPods), Next: "set maxPods in the kubelet's configuration, or bind another interface with eni-tool"})
	}
}

// checkGroup finds out, once a day, whether a security group lets pods of the subnet speak with each other.
func (c *Controller) checkGroup(ctx context.Context, n *node, id string, subnet netip.Prefix) {
	g, known := c.groups[id]
	if !known || time.Since(g.asked) > c.times.groupCheck {
		if c.limit.Wait(ctx) != nil {
			return
		}
		g.asked = time.Now()
		var err error
		if g.rules, err = c.cloud.GroupRules(ctx, id); err != nil {
			c.Log.Warn("read security group", "group", id, "err", err)
			g.rules = nil
			c.groups[id] = g
			return
		}
		if g.rules == nil {
			g.rules = []cloud.Rule{}
		}
		c.groups[id] = g
	}
	if g.rules == nil {
		return // it could not be read
	}
	for _, direction := range []string{"ingress", "egress"} {
		if !slices.ContainsFunc(g.rules, func(r cloud.Rule) bool { return allows(r, direction, subnet) }) {
			n.problem(cluster.Problem{Object: "security group " + id, Reason: securityGroup, Want: "a rule that accepts all " + direction + " traffic of " + subnet.String(), Got: "none",
				Next: "add the rule (protocol all, ports -1/-1); pods cannot reach each other without it"})
		}
	}
}

func allows(r cloud.Rule, direction string, subnet netip.Prefix) bool {
	other := r.SourceCidrIp
	if direction == "egress" {
		other = r.DestCidrIp
	}
	cidr, err := netip.ParsePrefix(other)
	return err == nil && strings.EqualFold(r.Direction, direction) && strings.EqualFold(r.Policy, "Accept") && strings.EqualFold(r.IpProtocol, "all") &&
		r.PortRange == "-1/-1" && cidr.Bits() <= subnet.Bits() && cidr.Contains(subnet.Addr())
}

// subject identifies a problem while its details change.
type subject struct {
	object, want string
	reason       cluster.Reason
}

// say logs each problem of a node when it comes, changes or is solved, and writes an Event when it comes.
func (c *Controller) say(ctx context.Context, n *node) {
	said := map[subject]string{}
	for _, p := range n.problems {
		about := subject{p.Object, p.Want, p.Reason}
		said[about] = p.String()
		if n.said[about] == p.String() {
			continue
		}
		if p.Reason != cloudUnreachable { // logged once for all nodes
			c.Log.Warn(string(p.Reason), "object", p.Object, "want", p.Want, "got", p.Got, "next", p.Next)
		}
		if n.said[about] == "" {
			reason := strings.ToUpper(string(p.Reason[:1])) + string(p.Reason[1:])
			if err := c.Tell(ctx, n.Name, n.UID, reason, p.String()); err != nil {
				c.Log.Debug("event", "node", n.Name, "err", err) // the log counts; an Event is a courtesy
			}
		}
	}
	for about := range n.said {
		if _, ok := said[about]; !ok {
			c.Log.Info("solved", "reason", about.reason, "node", n.Name, "object", about.object)
		}
	}
	n.said = said
}

// Metrics are the calls, and the problems after the last look.
type Metrics struct {
	calls *prometheus.CounterVec

	mu       sync.Mutex // guards problems
	problems map[string]int
}

var problemsDesc = prometheus.NewDesc("edgeway_controller_uplink_problems", "Problems with the uplinks of ENS nodes, by reason; the log and the Nodes' Events say more.", []string{"reason"}, nil)

func newMetrics() *Metrics {
	return &Metrics{calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edgeway_cloud_calls_total", Help: "Calls of the cloud's API; the code is OK, the cloud's own, or why there was no answer."}, []string{"action", "code"})}
}

func (m *Metrics) call(action, code string) { m.calls.WithLabelValues(action, code).Inc() }

func (m *Metrics) set(nodes map[string]*node, away *cluster.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problems = map[string]int{}
	for _, r := range reasons() {
		m.problems[string(r)] = 0
	}
	for _, n := range nodes {
		for _, p := range n.problems {
			if p.Reason != cloudUnreachable {
				m.problems[string(p.Reason)]++
			}
		}
	}
	if away != nil {
		m.problems[string(cloudUnreachable)] = 1
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	m.calls.Describe(out)
	out <- problemsDesc
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.calls.Collect(out)
	m.mu.Lock()
	defer m.mu.Unlock()
	for reason, n := range m.problems {
		out <- prometheus.MustNewConstMetric(problemsDesc, prometheus.GaugeValue, float64(n), reason)
	}
}
