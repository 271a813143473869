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
	fewInterfaces    cluster.Reason = "fewInterfaces"
	fewAddresses     cluster.Reason = "fewAddresses"
	addressLost      cluster.Reason = "addressLost"
	gatewayGuessed   cluster.Reason = "gatewayGuessed"
	tooManyPods      cluster.Reason = "tooManyPods"
	securityGroup    cluster.Reason = "securityGroup"
	sharedInstance   cluster.Reason = "sharedInstance"
	notOurs          cluster.Reason = "notOurs"
	edgeNodeRefused  cluster.Reason = "edgeNodeRefused"
	eniLeft          cluster.Reason = "eniLeft"
)

// reasons are all of them.
func reasons() []cluster.Reason {
	return []cluster.Reason{cloudUnreachable, noInterface, fewInterfaces, fewAddresses, addressLost, gatewayGuessed, tooManyPods, securityGroup, sharedInstance, notOurs, edgeNodeRefused, eniLeft}
}

// token is a text that no withdrawal had before.
func token() string { return strings.ToLower(rand.Text()[:10]) }

func (n *node) problem(p cluster.Problem) { n.problems = append(n.problems, p) }

// only makes p the only problem of the node: nothing else can be judged.
func (n *node) only(p cluster.Problem) { n.problems = []cluster.Problem{p} }

// passing reports whether a problem is over once a look succeeds.
func passing(p cluster.Problem) bool {
	return p.Reason == cloudUnreachable || p.Reason == edgeNodeRefused
}

// another says how a node gets another interface.
func (c *Controller) another() string {
	if c.Service == cloud.ECS {
		return "raise controller.ecs.interfaces, or attach another interface in the console"
	}
	return "bind another interface with eni-tool"
}

// judge finds the problems of a node whose look succeeded and changed nothing.
func (c *Controller) judge(ctx context.Context, n *node, seen Cloud, spec *cluster.Uplinks, t Terms) {
	n.problems = nil
	object := "EdgeNode/" + n.Name
	secondary := 0
	for _, i := range seen.Interfaces {
		if !i.Primary && i.Status == cloud.InUse {
			secondary++
		}
	}
	if n.refused != nil && secondary < t.Interfaces {
		n.problem(cluster.Problem{Object: object, Reason: fewInterfaces, Want: fmt.Sprintf("%d secondary interfaces of %s", t.Interfaces, n.Instance), Got: fmt.Sprintf("%d; %v", secondary, n.refused),
			Next: "remove the cause, or lower controller.ecs.interfaces; the controller tries again by itself"})
	}
	if spec == nil || len(spec.Interfaces) == 0 {
		next := "drain the node and run eni-tool --instance " + n.Instance
		if c.Service == cloud.ECS {
			next = c.another()
		}
		n.problem(cluster.Problem{Object: "Node/" + n.Name, Reason: noInterface, Want: "a secondary interface of " + n.Instance, Got: "none", Next: next})
		return
	}
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
		vswitch := seen.Interfaces[i].VSwitch
		if have := len(addresses(u)); t.Fill.Free == 0 && have < t.PerInterface && t.Release != Off {
			n.problem(cluster.Problem{Object: object, Reason: fewAddresses, Want: fmt.Sprintf("%d addresses on %s", t.PerInterface, u.ID),
				Got:  fmt.Sprintf("%d; vSwitch %s has %d free", have, vswitch, seen.Subnets[vswitch].Free),
				Next: "free addresses of the vSwitch, or give the node an interface of another vSwitch; the controller tries again by itself"})
		}
		if _, sure := gatewayOf(n.instance.Addresses, u.Subnet); !sure && c.Service == cloud.ENS { // ECS documents the third from the end
			n.problem(cluster.Problem{Object: object, Reason: gatewayGuessed, Want: "the gateway of " + u.Subnet.String(), Got: u.Gateway.String() + ", which is a guess",
				Next: "the instance has no address in this subnet that names it; check that pods of " + u.ID + " reach other hosts"})
		}
		for _, g := range seen.Interfaces[i].Groups {
			c.checkGroup(ctx, n, g, u.Subnet)
		}
	}
	// The primary interface serves no pod.
	if most := max(secondary, t.Interfaces) * t.PerInterface; n.MaxPods > most+cluster.HostPods {
		n.problem(cluster.Problem{Object: "Node/" + n.Name, Reason: tooManyPods, Want: fmt.Sprintf("maxPods of at most %d: %d secondary interfaces x %d addresses, and pods of the host network", most+cluster.HostPods, max(secondary, t.Interfaces), t.PerInterface),
			Got: fmt.Sprint(n.MaxPods), Next: "set maxPods in the kubelet's configuration, or " + c.another()})
	}
}

// checkGroup finds out, once a day, whether a security group lets pods of the subnet speak with each other.
func (c *Controller) checkGroup(ctx context.Context, n *node, id string, subnet netip.Prefix) {
	g, known := c.groups[id]
	if !known || time.Since(g.asked) > c.times.groupCheck {
		if c.limit.Wait(ctx) != nil {
			return
		}
		var err error
		g.Group, err = c.cloud.Group(ctx, id)
		g.known, g.asked = err == nil, time.Now()
		c.groups[id] = g
		if err != nil {
			c.Log.Warn("read security group", "group", id, "err", err)
		}
	}
	if !g.known || g.Inside {
		return
	}
	for _, direction := range []string{"ingress", "egress"} {
		if !slices.ContainsFunc(g.Rules, func(r cloud.Rule) bool { return allows(r, direction, subnet) }) {
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
		if n.said[about] == "" && n.UID != "" {
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
	problems map[cloud.Service]map[string]int
}

var problemsDesc = prometheus.NewDesc("edgeway_controller_uplink_problems", "Problems with the uplinks of instances of the cloud, by reason; the log and the Nodes' Events say more.", []string{"reason"}, nil)

// NewMetrics returns the metrics of the controllers of a process.
func NewMetrics() *Metrics {
	return &Metrics{problems: map[cloud.Service]map[string]int{}, calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edgeway_cloud_calls_total", Help: "Calls of the cloud's API; the code is OK, the cloud's own, or why there was no answer."}, []string{"action", "code"})}
}

func (m *Metrics) call(action, code string) { m.calls.WithLabelValues(action, code).Inc() }

func (m *Metrics) set(of cloud.Service, nodes []*node, away *cluster.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	problems := map[string]int{}
	m.problems[of] = problems
	for _, r := range reasons() {
		problems[string(r)] = 0
	}
	for _, n := range nodes {
		for _, p := range n.problems {
			if p.Reason != cloudUnreachable {
				problems[string(p.Reason)]++
			}
		}
	}
	if away != nil {
		problems[string(cloudUnreachable)] = 1
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
	sum := map[string]int{}
	for _, problems := range m.problems {
		for reason, n := range problems {
			sum[reason] += n
		}
	}
	for reason, n := range sum {
		out <- prometheus.MustNewConstMetric(problemsDesc, prometheus.GaugeValue, float64(n), reason)
	}
}
