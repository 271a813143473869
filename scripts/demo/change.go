package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// The pool of the act changes from one mode to the other by one edit of a manifest.
const (
	poolFile = "networkpools.yaml"
	poolEdit = "s/mode: overlay/mode: underlay/"
)

// modeChange takes the nodes of a pool out of the tunnel, under traffic and with a monitor on the switch's routing
// table.
func (s *stage) modeChange(ctx context.Context) error {
	s.out.heading(fmt.Sprintf("one command takes the pool out of the tunnel; pings at %d/s go on", time.Second/pingInterval))
	for _, n := range s.nodes {
		// Strict checks of this machine would drop packets between two nodes of which one has moved.
		if err := n.Sysctl("net/ipv4/conf/all/rp_filter", "2"); err != nil {
			return err
		}
	}
	if err := s.way(ctx); err != nil {
		return err
	}
	monitors, err := s.monitors(ctx)
	if err != nil {
		return err
	}
	streams, err := s.streams(s.act.change)
	if err != nil {
		return err
	}
	if err := pause(ctx, settle/2); err != nil {
		return err
	}
	file := filepath.Join(s.lab.ClusterDir, poolFile)
	s.out.printf("\n")
	s.out.command(fmt.Sprintf("sed -i '%s' %s", poolEdit, file))
	start := time.Now()
	if out, err := exec.CommandContext(ctx, "sed", "-i", poolEdit, file).CombinedOutput(); err != nil {
		return fmt.Errorf("sed %s: %w: %s", file, err, out)
	}
	err = lab.Wait(ctx, sessionTimeout, func() error { return s.tunnelled(ctx) })
	s.verdict.check(s.act.name, "change of the mode: every node has left the tunnel", err)
	s.out.printf("    no node has a route into a tunnel after %s\n\n", since(start))
	if err := pause(ctx, settle); err != nil {
		return err
	}
	if err := s.way(ctx); err != nil {
		return err
	}
	s.out.printf("\n")
	s.losses("change of the mode", streams)
	return s.events(ctx, "change of the mode", monitors)
}

// way shows the way from the act's node to the pod of the first pair.
func (s *stage) way(ctx context.Context) error {
	n, to := s.lab.Node(s.act.node), s.act.change[0][1]
	addr := s.end(to).m.Addrs[0].String()
	text, err := n.Run(ctx, "ip", "route", "get", addr)
	if err != nil {
		return err
	}
	s.out.command(fmt.Sprintf("ip route get %-12s (%s, to pod %s)", addr, n.Name, to))
	first, _, _ := strings.Cut(text, "\n")
	s.out.block(first)
	return nil
}

// tunnelled returns an error that names a node with a route into a tunnel.
func (s *stage) tunnelled(ctx context.Context) error {
	for _, n := range s.nodes {
		routes, err := n.Routes(ctx, "proto", "119", "dev", "edgeway.1")
		if err != nil {
			return err
		}
		if len(routes) > 0 {
			return fmt.Errorf("%s still reaches %s through the tunnel", n.Name, routes[0].Dst)
		}
	}
	return nil
}
