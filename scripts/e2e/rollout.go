package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// rolloutLimit covers three daemons one after another. The DaemonSet gives each 30 s for its BGP sessions.
const rolloutLimit = 8 * time.Minute

// daemonsAreReplaced: a rollout, even of an unchanged DaemonSet, replaces the daemons node by node.
func (s *story) daemonsAreReplaced(ctx context.Context) (err error) {
	if s.install != byDaemonSet {
		return nil
	}
	if err := s.waitRollout(ctx); err != nil { // a rollout may replace daemons that are not ready yet all at once
		return err
	}
	if s.monitor, err = s.switchA.Monitor(ctx, s.switchA.Proto()); err != nil {
		return err
	}
	flows, err := s.startFlows(ctx, "", pingLong)
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := s.control.Kubectl("-n", "kube-system", "rollout", "restart", "daemonset/edgewayd"); err != nil {
		return err
	}
	if err := s.waitRollout(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := s.wantSessions(ctx); err != nil {
		return err
	}
	sent, err := stopFlows(flows)
	if err != nil {
		return err
	}
	s.pass("kubectl rollout restart replaced all daemons, one after another, in %.0f s: none of %d pings is lost", took.Seconds(), sent)
	if err := s.wantNoRouteEvents(ctx); err != nil {
		return err
	}
	_, err = s.monitor.Stop(ctx)
	return err
}

// rolloutPassesAnOfflineNode: the kubelet of a node is stopped. A roll-out replaces the daemons of the other nodes all the
// same, and this node's when its kubelet is back.
func (s *story) rolloutPassesAnOfflineNode(ctx context.Context) error {
	if s.install != byDaemonSet {
		return nil
	}
	where, err := s.control.Kubectl("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=edgeway-rollout", "-o", "jsonpath={.items[0].spec.nodeName}")
	if err != nil {
		return err
	}
	offline := s.node("node-3")
	if where == offline.Name {
		offline = s.node("node-2") // the other has to act
	}
	if err := offline.Program("kubelet").End(syscall.SIGTERM); err != nil {
		return err
	}
	if _, err := s.control.Kubectl("wait", `--for=jsonpath={.status.conditions[?(@.type=="Ready")].status}=Unknown`, "--timeout=100s", "node/"+offline.Name); err != nil {
		return err
	}
	flows, err := s.startFlows(ctx, "", pingLong)
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := s.control.Kubectl("-n", "kube-system", "rollout", "restart", "daemonset/edgewayd"); err != nil {
		return err
	}
	err = lab.Wait(ctx, rolloutLimit, func() error {
		counts, err := s.control.Kubectl("-n", "kube-system", "get", "daemonset", "edgewayd", "-o", "jsonpath={.status.updatedNumberScheduled} {.status.numberAvailable}")
		if err == nil && counts != "2 2" {
			err = fmt.Errorf("updated and available daemons: %s, want 2 2", counts)
		}
		return err
	})
	if err != nil {
		return err
	}
	took := time.Since(begin)
	if err := offline.startKubelet(ctx); err != nil {
		return err
	}
	if err := s.waitRollout(ctx); err != nil {
		return err
	}
	if err := s.waitNodes(ctx); err != nil {
		return err
	}
	sent, err := stopFlows(flows)
	if err != nil {
		return err
	}
	s.pass("the kubelet of %s was stopped: the daemons of the other nodes were replaced in %.0f s all the same, and its own when it was back: none of %d pings is lost",
		offline.Name, took.Seconds(), sent)
	return s.wantSessions(ctx)
}

// waitRollout waits until every node's daemon has the DaemonSet's version and has been ready for the
// required time.
func (s *story) waitRollout(ctx context.Context) error {
	return lab.Wait(ctx, rolloutLimit, func() error {
		_, err := s.control.Kubectl("-n", "kube-system", "rollout", "status", "daemonset/edgewayd", "--timeout=5s")
		return err
	})
}
