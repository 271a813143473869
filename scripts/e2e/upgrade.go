package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	// upgradePing is the interval of the pings while versions change.
	upgradePing = 50 * time.Millisecond
	// moved is a pod that goes and comes in the middle of an upgrade. No pings go there.
	moved = "till-1"
)

// clusterGoesUp: the commands of the page for kubeadm replace the earlier version by this one: first the image
// alone, so that the new programs run with the earlier DaemonSet, and then everything.
func (s *story) clusterGoesUp(ctx context.Context) error {
	err := s.versions(ctx, "the new image in the earlier DaemonSet", func() error {
		if err := s.control.Apply(filepath.Join(s.deploy, "crds")); err != nil {
			return err
		}
		if _, err := s.control.Kubectl("apply", "-k", filepath.Join(s.deploy, "rbac")); err != nil {
			return err
		}
		_, err := s.control.Kubectl("-n", "kube-system", "set", "image", "daemonset/edgewayd", "*=localhost/edgeway:e2e")
		return err
	})
	if err != nil {
		return err
	}
	return s.versions(ctx, "all manifests of this version", func() error {
		all, err := s.control.Kubectl("kustomize", s.deploy)
		if err != nil {
			return err
		}
		return s.control.ApplyText(strings.ReplaceAll(all, "localhost/edgeway:latest", "localhost/edgeway:e2e"))
	})
}

// clusterGoesBack: the earlier version's manifests bring the earlier version back. CRDs, roles and
// objects that it does not know stay.
func (s *story) clusterGoesBack(ctx context.Context) error {
	return s.versions(ctx, "all manifests of the earlier version", func() error {
		_, err := s.control.Kubectl("apply", "-k", filepath.Join(s.from, "deploy/kubernetes"))
		return err
	})
}

// versions has the change replace the daemons while pods talk.
func (s *story) versions(ctx context.Context, what string, change func() error) (err error) {
	if s.monitor, err = s.switchA.Monitor(ctx, s.switchA.Proto()); err != nil {
		return err
	}
	flows, err := s.startFlows(ctx, moved, upgradePing)
	if err != nil {
		return err
	}
	stream, err := s.startStream(ctx, s.pod("door-node-1"), s.pod("door-node-3"))
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := change(); err != nil {
		return err
	}
	if err := s.waitRollout(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := s.wantSessions(ctx); err != nil {
		return err
	}
	if err := s.podIsReplaced(ctx); err != nil {
		return err
	}
	var versions []string
	for _, n := range s.nodes {
		err := lab.Wait(ctx, readyLimit, func() error {
			status, err := n.status(ctx)
			if err != nil {
				return err
			}
			if len(status.Problems) > 0 {
				return fmt.Errorf("%s has problems: %+v", n.Name, status.Problems)
			}
			versions = append(versions, status.Version)
			return nil
		})
		if err != nil {
			return err
		}
	}
	sent, err := stopFlows(flows)
	arrived, _ := stream.Arrived()
	if err := errors.Join(err, stream.Stop()); err != nil {
		return err
	}
	s.pass("%s: rolled out in %.0f s, the daemons say that they are %s and have no problem: none of %d pings is lost, one TCP connection carried %d MB",
		what, took.Seconds(), strings.Join(versions, ", "), sent, arrived/1e6)
	if err := s.wantNoRouteEvents(ctx); err != nil {
		return err
	}
	_, err = s.monitor.Stop(ctx)
	return err
}

// startStream sends over one TCP connection between two pods.
func (s *story) startStream(ctx context.Context, from, to pod) (*lab.Stream, error) {
	a, err := s.node(from.Node).machine(ctx, from.Addrs[0])
	if err != nil {
		return nil, err
	}
	b, err := s.node(to.Node).machine(ctx, to.Addrs[0])
	if err != nil {
		return nil, err
	}
	return a.StartStream(b, to.Addrs[0])
}
