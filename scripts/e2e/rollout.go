package main

import (
	"context"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// rolloutLimit is for three daemons one after another, each with the 30 s that the DaemonSet gives
// to its BGP sessions.
const rolloutLimit = 8 * time.Minute

// daemonsAreReplaced: a new version of the DaemonSet, or an unchanged one, replaces the daemons node
// by node.
func (s *story) daemonsAreReplaced(ctx context.Context) (err error) {
	if s.install != byDaemonSet {
		return nil
	}
	if err := s.waitRollout(ctx); err != nil { // those that are young may be replaced at once
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
	s.pass("kubectl rollout restart replaced all daemons, one after another, in %.0f s: of %d pings none is lost", took.Seconds(), sent)
	if err := s.wantNoRouteEvents(ctx); err != nil {
		return err
	}
	_, err = s.monitor.Stop(ctx)
	return err
}

// waitRollout waits until every node's daemon is of the version that the DaemonSet wants, and has
// been ready for as long as it wants.
func (s *story) waitRollout(ctx context.Context) error {
	return lab.Wait(ctx, rolloutLimit, func() error {
		_, err := s.control.Kubectl("-n", "kube-system", "rollout", "status", "daemonset/edgewayd", "--timeout=5s")
		return err
	})
}
