package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	readyLimit = 3 * time.Minute // for a pod or a node, on a busy machine
	routeLimit = time.Minute
	podCount   = 9 // three workloads with one pod on each node
	pingEvery  = 20 * time.Millisecond
	pingLong   = 100 * time.Millisecond // for an act that takes a minute or more
)

// story is the stage with the observations so far.
type story struct {
	*stage
	begin   time.Time
	pods    []pod
	monitor *lab.Monitor // of the routes that the switch has learned
}

// acts lists the acts in order. Between apiServerGoes and apiServerComesBack the nodes are on their own.
func (s *story) acts() []func(context.Context) error {
	if s.from != "" {
		return []func(context.Context) error{
			s.nodesBecomeReady, s.podsRun, s.podsReachEachOther, s.switchKnowsTheWay,
			s.clusterGoesUp, s.podsReachEachOther, s.clusterGoesBack, s.podsReachEachOther,
		}
	}
	return []func(context.Context) error{
		s.nodesBecomeReady, s.podsRun, s.podsReachEachOther, s.switchKnowsTheWay, s.resourceTells,
		s.daemonsAreReplaced, s.rolloutPassesAnOfflineNode, s.wanIsCut,
		s.apiServerGoes, s.sandboxDies, s.daemonIsAwayToo, s.powerFails, s.apiServerComesBack, s.podsReachEachOther,
		s.podIsReplaced, s.nodeLeaves,
	}
}

func (s *story) pass(format string, args ...any) { s.say("PASS", format, args...) }

func (s *story) say(verdict, format string, args ...any) {
	fmt.Printf("%s  %6.1fs  %s\n", verdict, time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
}

// show prints the output of a program.
func show(out string) {
	for line := range strings.Lines(strings.TrimSpace(out)) {
		fmt.Print("              | ", strings.TrimRight(line, "\n"), "\n")
	}
}

func (s *story) version() string {
	out, err := s.control.Kubectl("version")
	if err != nil {
		return err.Error()
	}
	_, version, _ := strings.Cut(strings.TrimSpace(out), "Server Version: ")
	return version
}

// nodesBecomeReady: containerd waits for the network configuration. edgewayd writes it as soon as it knows
// the node's pod CIDRs, and then the node becomes ready.
func (s *story) nodesBecomeReady(ctx context.Context) error {
	if err := s.admit(); err != nil {
		return err
	}
	if err := s.control.ApplyText(bgpPeer); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.each(ctx, (*node).Start); err != nil {
		return err
	}
	if err := s.waitNodes(ctx); err != nil {
		return err
	}
	s.pass("%d nodes are Ready %.1f s after they were switched on", len(s.nodes), time.Since(begin).Seconds())
	for _, kind := range []string{"nodes", "pods"} {
		out, err := s.control.Kubectl("get", kind, "-o", "wide", "-n", "kube-system")
		if err != nil {
			return err
		}
		show(out)
	}
	return nil
}

func (s *story) waitNodes(ctx context.Context) error {
	return lab.Wait(ctx, readyLimit, func() error {
		nodes, err := s.list("nodes")
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if ready, why := n.ready(); !ready {
				return fmt.Errorf("%s is not ready: %s", n.Metadata.Name, why)
			}
		}
		if len(nodes) != len(s.nodes) {
			return fmt.Errorf("%d nodes, want %d", len(nodes), len(s.nodes))
		}
		return nil
	})
}

// podsRun: the pods of a DaemonSet and of a StatefulSet and the static pods run, each with addresses of its
// node.
func (s *story) podsRun(ctx context.Context) (err error) {
	begin := time.Now()
	if err := s.control.ApplyText(strings.ReplaceAll(workloads, "CONTAINER", container)); err != nil {
		return err
	}
	if s.pods, err = s.waitPods(ctx, podCount, readyLimit); err != nil {
		return err
	}
	nodes, err := s.list("nodes")
	if err != nil {
		return err
	}
	for _, p := range s.pods {
		i := slices.IndexFunc(nodes, func(n object) bool { return n.Metadata.Name == p.Node })
		if i < 0 {
			return fmt.Errorf("%v: no such node", p)
		}
		for k, cidr := range nodes[i].Spec.PodCIDRs {
			if !cidr.Contains(p.Addrs[k]) {
				return fmt.Errorf("%v: want addresses of %v", p, nodes[i].Spec.PodCIDRs)
			}
		}
	}
	s.pass("%d pods are Ready after %.1f s: DaemonSet, StatefulSet and static, one of each on a node", len(s.pods), time.Since(begin).Seconds())
	return s.showPods()
}

func (s *story) showPods() error {
	out, err := s.control.Kubectl("get", "pods", "-o", "custom-columns=NAME:.metadata.name,NODE:.spec.nodeName,ADDRESSES:.status.podIPs[*].ip,RESTARTS:.status.containerStatuses[0].restartCount")
	show(out)
	return err
}

// podsReachEachOther: all pairs of pods, both families; also the switch and the network beyond it.
func (s *story) podsReachEachOther(ctx context.Context) error {
	var count int
	err := lab.Wait(ctx, routeLimit, func() (err error) {
		count, err = s.wantAllPairs(ctx, s.pods)
		return err
	})
	if err != nil {
		return err
	}
	s.pass("every pod gets the page of every pod: %d requests, IPv4 and IPv6, each seen from the pod's own address", count)
	count = 0
	for _, m := range []*lab.Machine{s.switchA.Machine, s.vpc} {
		for _, p := range s.pods {
			for _, addr := range p.Addrs {
				if err := lab.Wait(ctx, routeLimit, func() error { return wantAnswer(ctx, m, p, addr) }); err != nil {
					return err
				}
				count++
			}
		}
	}
	s.pass("the switch and the network beyond it get them too: %d requests, no address translated", count)
	return nil
}

// switchKnowsTheWay: the switch has learned from two speakers a route to each of the three nodes, with that
// node as next hop.
func (s *story) switchKnowsTheWay(ctx context.Context) error {
	if err := s.wantLearned(ctx, routeLimit); err != nil {
		return err
	}
	sessions, err := s.switchA.Sessions(ctx)
	if err != nil {
		return err
	}
	s.pass("the switch has %d BGP sessions, and a route to each node's pods by that node: node-3 speaks no BGP", len(sessions))
	routes, err := s.switchA.Learned(ctx)
	if err != nil {
		return err
	}
	for _, r := range routes {
		show(r.String())
	}
	count := 0
	for _, p := range s.pods {
		for _, addr := range p.Addrs {
			if err := s.wantHop(ctx, s.switchA.Machine, 1, p, addr); err != nil {
				return err
			}
			count++
		}
	}
	for _, from := range s.pods {
		for _, to := range s.pods {
			if !strings.HasPrefix(from.Name, "agent") || !strings.HasPrefix(to.Name, "agent") || from.Node == to.Node {
				continue
			}
			m, err := s.node(from.Node).machine(ctx, from.Addrs[0])
			if err != nil {
				return err
			}
			for _, addr := range to.Addrs {
				if err := s.wantHop(ctx, m, 2, to, addr); err != nil {
					return err
				}
				count++
			}
		}
	}
	s.pass("packets to a pod go straight to its node, through no speaker: %d traces from the switch and from pods", count)
	return nil
}

// wantLearned returns nil if the switch has learned exactly the nodes' pod CIDRs, each with its node as
// next hop.
func (s *story) wantLearned(ctx context.Context, limit time.Duration) error {
	nodes, err := s.list("nodes")
	if err != nil {
		return err
	}
	var want []string
	for _, n := range nodes {
		for _, cidr := range n.Spec.PodCIDRs {
			want = append(want, fmt.Sprintf("%s via %s", cidr, n.internalIP(cidr.Addr())))
		}
	}
	slices.Sort(want)
	return lab.Wait(ctx, limit, func() error {
		routes, err := s.switchA.Learned(ctx)
		if err != nil {
			return err
		}
		var got []string
		for _, r := range routes {
			got = append(got, r.String())
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("routes that the switch has learned (-want +got):\n%s", diff)
		}
		return nil
	})
}

// wantHop returns nil if the n-th router on the way to a pod is the pod's node. A packet with n hops left
// ends at that router, which reports it.
func (s *story) wantHop(ctx context.Context, from *lab.Machine, n int, to pod, addr netip.Addr) error {
	want := s.node(to.Node).Addr(addr).String()
	return lab.Wait(ctx, routeLimit, func() error {
		out, err := from.Run(ctx, "ping", "-n", "-c1", "-W2", fmt.Sprintf("-t%d", n), addr.String())
		if strings.Contains(out, "From "+want+" ") || strings.Contains(out, "From "+want+":") {
			return nil
		}
		return errors.Join(fmt.Errorf("hop %d from %s to %v is not %s: %s", n, from.Name, to, want, out), err)
	})
}

// resourceTells: the documented kubectl commands show the sessions.
func (s *story) resourceTells(ctx context.Context) error {
	out, err := s.control.Kubectl("get", "bgppeer", "peer")
	if err != nil {
		return err
	}
	want := regexp.MustCompile(`^NAME +LOCALSPEAKERS +LOCALASNUMBER +PEERIP +PEERASNUMBER +(\S+ +)*AGE\s+peer +\["node-1","node-2"\] +65010 +172\.16\.0\.1 +65001 `)
	if !want.MatchString(out) {
		return fmt.Errorf("kubectl get bgppeer peer prints:\n%s", out)
	}
	s.pass("kubectl get bgppeer prints the columns of the document")
	show(out)
	err = lab.Wait(ctx, routeLimit, func() error {
		up, err := s.control.Kubectl("get", "bgppeer", "peer", "-o", "jsonpath={.status.established}")
		if err != nil {
			return err
		}
		if !strings.Contains(up, `"node-1"`) || !strings.Contains(up, `"node-2"`) { // the order is not fixed
			return fmt.Errorf("status.established of the BGPPeer is %q; want both speakers", up)
		}
		if out, err = s.control.Kubectl("describe", "bgppeer", "peer"); err != nil {
			return err
		}
		events := regexp.MustCompile(`Normal +Established +.* node-[12] has a BGP session`).FindAllString(out, -1)
		if len(events) != 2 || !strings.Contains(out, "Conditions:") {
			return fmt.Errorf("kubectl describe bgppeer peer shows %d events of new sessions, want 2:\n%s", len(events), out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.pass("kubectl describe bgppeer shows the sessions and their events")
	show(out)
	return nil
}
