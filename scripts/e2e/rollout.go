package main

import (
	"context"
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

// waitRollout waits until every node's daemon has the DaemonSet's version and has been ready for the
// required time.
func (s *story) waitRollout(ctx context.Context) error {
	return lab.Wait(ctx, rolloutLimit, func() error {
		_, err := s.control.Kubectl("-n", "kube-system", "rollout", "status", "daemonset/edgewayd", "--timeout=5s")
		return err
	})
}
