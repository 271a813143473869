package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// apiServerGoes: the control plane stops, and the nodes are on their own.
func (s *story) apiServerGoes(ctx context.Context) (err error) {
	if s.monitor, err = s.switchA.Monitor(ctx, s.switchA.Proto()); err != nil {
		return err
	}
	if err := errors.Join(s.control.StopAPIServer(), s.control.Stop("kube-controller-manager"), s.control.Stop("kube-scheduler")); err != nil {
		return err
	}
	s.pass("the control plane is gone: no API server, no controller, no scheduler")
	return nil
}

// sandboxDies: a pod's sandbox is killed. The kubelet makes a new sandbox with the same address, and no
// other pod loses a packet.
func (s *story) sandboxDies(ctx context.Context) error {
	return s.restartQuietly(ctx, s.podOf("till", "node-2"), "without API server")
}

// daemonIsAwayToo: the same happens without the node's daemon. The plugin works alone, and the switch waits
// for the daemon's return (RFC 4724). If the daemon is a pod, the kubelet restarts it.
func (s *story) daemonIsAwayToo(ctx context.Context) error {
	n := s.node("node-1")
	if s.install == byDaemonSet {
		if err := n.kill(n.Machine, "/edgewayd"); err != nil {
			return err
		}
	} else if err := n.Program("edgewayd").End(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.restartQuietly(ctx, s.podOf("agent", "node-1"), "without API server, and edgewayd ended"); err != nil {
		return err
	}
	if s.install == byPackage {
		if err := n.startEdgewayd(ctx); err != nil {
			return err
		}
	}
	if err := s.wantSessions(ctx); err != nil {
		return err
	}
	s.pass("edgewayd of %s is back with the cluster state that it saved, and has its BGP session", n.Name)
	return s.wantNoRouteEvents(ctx)
}

// restartQuietly restarts a pod's sandbox. It fails if a packet between other pods is lost, or if the
// switch's table changes.
func (s *story) restartQuietly(ctx context.Context, p pod, when string) error {
	flows, err := s.startFlows(ctx, p.Name, pingEvery)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := s.restartSandbox(ctx, p); err != nil {
		return err
	}
	took := time.Since(begin)
	sent, err := stopFlows(flows)
	if err != nil {
		return err
	}
	s.pass("%s: the sandbox of %s is killed, and the pod is back at %v after %.1f s; none of %d pings between other pods is lost",
		when, p.Name, p.Addrs, took.Seconds(), sent)
	return s.wantNoRouteEvents(ctx)
}

// restartSandbox kills a pod's sandbox and waits until the pod answers at the same addresses from a new
// sandbox.
func (s *story) restartSandbox(ctx context.Context, p pod) error {
	n := s.node(p.Node)
	before, err := n.machine(ctx, p.Addrs[0])
	if err != nil {
		return err
	}
	if err := n.killSandbox(ctx, p.Addrs[0]); err != nil {
		return err
	}
	return lab.Wait(ctx, readyLimit, func() error {
		after, err := n.machine(ctx, p.Addrs[0])
		if err != nil {
			return err
		}
		if after.Path == before.Path {
			return fmt.Errorf("%s has no new sandbox yet", p.Name)
		}
		return s.wantAnswers(ctx, p)
	})
}

// wantAnswers returns nil if the switch gets a pod's page at both of the pod's addresses.
func (s *story) wantAnswers(ctx context.Context, p pod) error {
	for _, addr := range p.Addrs {
		if err := wantAnswer(ctx, s.switchA.Machine, p, addr); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) podOf(workload, node string) pod {
	for _, p := range s.pods {
		if strings.HasPrefix(p.Name, workload+"-") && p.Node == node {
			return p
		}
	}
	return pod{Name: workload}
}

func (s *story) pod(name string) pod {
	for _, p := range s.pods {
		if p.Name == name {
			return p
		}
	}
	return pod{Name: name}
}

// startFlows pings all pods except one: from the switch, and from the DaemonSet's pods on other nodes.
func (s *story) startFlows(ctx context.Context, but string, every time.Duration) (flows []*lab.Flow, err error) {
	start := func(m *lab.Machine, to pod) error {
		for _, addr := range to.Addrs {
			f, err := m.StartFlow(addr, every)
			if err != nil {
				return err
			}
			f.To = to.Name
			flows = append(flows, f)
		}
		return nil
	}
	for _, p := range s.pods {
		if p.Name == but {
			continue
		}
		if err := start(s.switchA.Machine, p); err != nil {
			return flows, err
		}
		if !strings.HasPrefix(p.Name, "agent-") {
			continue
		}
		m, err := s.node(p.Node).machine(ctx, p.Addrs[0])
		if err != nil {
			return flows, err
		}
		m.Name = p.Name
		for _, to := range s.pods {
			if to.Node != p.Node && to.Name != but {
				if err := start(m, to); err != nil {
					return flows, err
				}
			}
		}
	}
	return flows, nil
}

// stopFlows returns the number of pings sent. The error names the flows that lost pings.
func stopFlows(flows []*lab.Flow) (sent int, err error) {
	var errs []error
	results := make(chan error)
	counts := make(chan int)
	for _, f := range flows {
		go func() { // each flow waits for its last answers
			lost := f.Stop()
			counts <- lost.Sent
			if lost.Lost > 0 || lost.Err != nil {
				results <- fmt.Errorf("ping from %s to %s (%s): %v", f.From, f.To, f.Addr, lost)
			} else {
				results <- nil
			}
		}()
	}
	for range flows {
		sent += <-counts
		errs = append(errs, <-results)
	}
	return sent, errors.Join(errs...)
}

// wantNoRouteEvents returns nil if the switch's table has not changed since the monitor started.
func (s *story) wantNoRouteEvents(ctx context.Context) error {
	events, err := s.monitor.Events(ctx)
	if err != nil {
		return err
	}
	if len(events) > 0 {
		return fmt.Errorf("the switch's routes changed:\n%s", strings.Join(events, "\n"))
	}
	s.pass("the switch's table has not changed")
	return nil
}

// powerFails: all nodes lose power at once and come back while the API server is still away. The static
// pods need no API server and start with their old addresses. The switch keeps every route.
func (s *story) powerFails(ctx context.Context) error {
	if err := s.each(ctx, (*node).PowerOff); err != nil {
		return err
	}
	s.pass("power cut: every process of all nodes is dead, pods included")
	begin := time.Now()
	if err := s.each(ctx, (*node).PowerOn); err != nil {
		return err
	}
	for _, name := range nodeNames {
		p := s.pod("door-" + name)
		if err := lab.Wait(ctx, readyLimit, func() error { return s.wantAnswers(ctx, p) }); err != nil {
			return err
		}
	}
	s.pass("power is back, the API server is not: the static pods have the addresses that they had, %.1f s after the start", time.Since(begin).Seconds())
	from := s.node("node-1")
	m, err := from.machine(ctx, s.pod("door-node-1").Addrs[0])
	if err != nil {
		return err
	}
	m.Addrs = s.pod("door-node-1").Addrs
	for _, name := range nodeNames {
		for _, addr := range s.pod("door-" + name).Addrs {
			if err := lab.Wait(ctx, routeLimit, func() error { return wantAnswer(ctx, m, s.pod("door-"+name), addr) }); err != nil {
				return err
			}
		}
	}
	if s.install == byDaemonSet { // the kubelets do not know the daemon's pods before the API server is back
		s.pass("they reach each other without edgewayd: the switch kept the routes and forwards the packets")
		return s.wantNoRouteEvents(ctx)
	}
	s.pass("they reach each other: edgewayd read the cluster state from its disk")
	if err := s.wantSessions(ctx); err != nil {
		return err
	}
	s.pass("the speakers have their BGP sessions again %.1f s after the start", time.Since(begin).Seconds())
	out, err := from.RunInside(ctx, from.edgewayd, "status")
	if err != nil {
		return err
	}
	show(out)
	return s.wantNoRouteEvents(ctx)
}

// wantSessions waits until the sessions of both speakers with the switch are up again.
func (s *story) wantSessions(ctx context.Context) error {
	return lab.Wait(ctx, readyLimit, func() error {
		sessions, err := s.switchA.Sessions(ctx)
		if err != nil {
			return err
		}
		for _, session := range sessions {
			if session.State != "Established" {
				return fmt.Errorf("switch: session %v", session)
			}
		}
		for _, n := range s.nodes[:2] {
			status, err := n.status(ctx)
			if err != nil {
				return err
			}
			if len(status.Sessions) != 1 || status.Sessions[0].State != "Established" {
				return fmt.Errorf("%s: sessions %+v", n.Name, status.Sessions)
			}
		}
		return nil
	})
}

// apiServerComesBack: the kubelets see the other pods again, and these pods also keep their addresses.
func (s *story) apiServerComesBack(ctx context.Context) error {
	begin := time.Now()
	if err := s.control.StartAPIServer(); err != nil {
		return err
	}
	if err := errors.Join(s.control.Run("kube-controller-manager"), s.control.Run("kube-scheduler")); err != nil {
		return err
	}
	s.pass("the control plane is back")
	var after []pod
	err := lab.Wait(ctx, readyLimit, func() (err error) {
		if after, err = s.waitPods(ctx, podCount, readyLimit); err != nil {
			return err
		}
		for _, p := range after { // until the kubelets report, the API server returns the state before the power cut
			if err := s.wantAnswers(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := sameAddrs(s.pods, after); err != nil {
		return err
	}
	s.pass("all %d pods are Ready after %.1f s, each with the addresses that it had before the power cut", len(after), time.Since(begin).Seconds())
	if err := s.showPods(); err != nil {
		return err
	}
	if err := s.wantSessions(ctx); err != nil {
		return err
	}
	s.pass("both speakers have their BGP sessions %.1f s after the control plane began to start", time.Since(begin).Seconds())
	if err := s.wantNoRouteEvents(ctx); err != nil {
		return err
	}
	return s.wantLearned(ctx, routeLimit)
}

// podIsReplaced: a pod of a StatefulSet is deleted. The new pod has the same name, and so the same
// addresses.
func (s *story) podIsReplaced(ctx context.Context) error {
	p := s.pod("till-1")
	if _, err := s.control.Kubectl("delete", "pod", p.Name, "--wait=true"); err != nil {
		return err
	}
	after, err := s.waitPods(ctx, podCount, readyLimit)
	if err != nil {
		return err
	}
	if err := sameAddrs([]pod{p}, after); err != nil {
		return err
	}
	s.pass("%s was deleted; the StatefulSet's new pod of that name has %v again", p.Name, []netip.Addr(p.Addrs))
	return nil
}

// nodeLeaves: a node is switched off and removed from the cluster. The switch loses this node's routes and
// no others.
func (s *story) nodeLeaves(ctx context.Context) error {
	gone := s.node("node-3")
	status, err := gone.status(ctx)
	if err != nil {
		return err
	}
	if err := gone.PowerOff(ctx); err != nil {
		return err
	}
	if err := s.wantNoRouteEvents(ctx); err != nil { // a switched-off node keeps its routes
		return err
	}
	begin := time.Now()
	if _, err := s.control.Kubectl("delete", "node", gone.Name); err != nil {
		return err
	}
	if err := s.wantLearned(ctx, routeLimit); err != nil {
		return err
	}
	took := time.Since(begin)
	events, err := s.monitor.Stop(ctx)
	if err != nil {
		return err
	}
	// One speaker withdraws a route first. The switch then writes the other speaker's route with the same
	// next hop, and deletes it when the other speaker withdraws it too.
	for _, event := range events {
		if !slices.ContainsFunc(status.PodCIDRs, func(cidr string) bool { return strings.Contains(event, cidr+" via ") }) {
			return fmt.Errorf("%s left, and the switch changed another route: %s", gone.Name, event)
		}
	}
	for _, cidr := range status.PodCIDRs {
		if !strings.Contains(strings.Join(events, "\n"), "Deleted "+cidr+" ") {
			return fmt.Errorf("%s left, and the switch did not remove its route %s: %v", gone.Name, cidr, events)
		}
	}
	s.pass("%s was switched off, and the switch kept its routes; it was deleted from the cluster, and its routes were gone after %.1f s; no other route changed",
		gone.Name, took.Seconds())
	return nil
}
