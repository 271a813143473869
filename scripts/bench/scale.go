package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// manyPaths grows a LAN from ten nodes to 5,000 while two switches listen.
func (b *bench) manyPaths(ctx context.Context) (err error) {
	const few = 10
	l, err := b.newLAN(ctx, 2, few-1, false)
	if l != nil && l.Lab != nil {
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	if err != nil {
		return err
	}
	t := table{Name: "bgp/5000", Title: "A speaker with two sessions, and 5,000 nodes that appear at once",
		Columns: columns("nodes", "in the speaker's kernel (s)", "in both switches' kernels (s)", "speaker's CPU (s)", "resident (MiB)", "anonymous (MiB)", "of the daemon alone (MiB)")}
	idle, err := l.memory(ctx)
	if err != nil {
		return err
	}
	t.row(few, nil, nil, nil, idle.resident, idle.anonymous, idle.daemon)
	b.out.keep("memory/10/daemon", idle.daemon)
	before, err := cpuOf(l.node.PID())
	if err != nil {
		return err
	}
	start, err := l.growAtOnce(nodes - 1)
	if err != nil {
		return err
	}
	var own time.Duration // time until the speaker's own kernel had all routes
	for _, all := range []func(context.Context) error{l.routed, l.heard} {
		if err := all(ctx); err != nil {
			return err
		}
		if own == 0 {
			own = time.Since(start)
		}
	}
	took := time.Since(start)
	full, err := l.memory(ctx)
	if err != nil {
		return err
	}
	b.out.keep("memory/5000/all", full.anonymous)
	after, err := cpuOf(l.node.PID())
	if err != nil {
		return err
	}
	t.row(nodes, own.Seconds(), took.Seconds(), (after - before).Seconds(), full.resident, full.anonymous, full.daemon)
	t.note("The %d new nodes come in one file; times begin when it appears. Resident (Pss) and anonymous memory are of the daemon and its sessions' processes, before and after.", nodes-few)
	b.out.add(t)
	return nil
}

// growAtOnce adds nodes in one file until the LAN has the wanted number. It returns the time at which the
// file appeared.
func (l *lan) growAtOnce(nodes int) (start time.Time, err error) {
	var text strings.Builder
	for ; l.nodes < nodes; l.nodes++ {
		text.WriteString("---\n" + l.text(l.nodes))
	}
	draft := filepath.Join(l.Dir, "draft.yaml")
	if err := os.WriteFile(draft, []byte(text.String()), 0o644); err != nil {
		return start, err
	}
	start = time.Now()
	return start, os.Rename(draft, filepath.Join(l.ClusterDir, "more.yaml"))
}

// unwanted has the switch advertise a hundred thousand routes that the speaker does not want.
func (b *bench) unwanted(ctx context.Context) (err error) {
	const routes = 100_000
	l, err := b.newLAN(ctx, 1, 9, true)
	if l != nil && l.Lab != nil {
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	if err != nil {
		return err
	}
	idle, err := l.memory(ctx)
	if err != nil {
		return err
	}
	before, err := cpuOf(l.node.PID())
	if err != nil {
		return err
	}
	start := time.Now()
	if err := l.announce(ctx, routes); err != nil {
		return err
	}
	took := time.Since(start)
	if err := l.settled(ctx, time.Second); err != nil {
		return err
	}
	after, err := cpuOf(l.node.PID())
	if err != nil {
		return err
	}
	full, err := l.memory(ctx)
	if err != nil {
		return err
	}
	status, err := l.node.Status(ctx)
	if err != nil {
		return err
	}
	t := table{Name: "bgp/unwanted", Title: "100,000 routes that the switch announces and nobody wants",
		Columns: columns("routes", "sent in (s)", "speaker's CPU (s)", "resident before (MiB)", "resident after (MiB)", "session")}
	t.row(routes, took.Seconds(), (after - before).Seconds(), idle.resident, full.resident, status.Sessions[0].State)
	b.out.add(t)
	return nil
}

// announce adds static routes to the first switch and waits until they are sent to the neighbour.
func (l *lan) announce(ctx context.Context, n int) error {
	s := l.switches[0]
	path := filepath.Join(s.Dir, "bird.conf")
	conf, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.Write(conf)
	b.WriteString("protocol static unwanted { ipv4;\n")
	for i := range n {
		fmt.Fprintf(&b, "\troute %d.%d.%d.0/24 blackhole;\n", 20+i>>16, i>>8&255, i&255)
	}
	b.WriteString("}\n")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return err
	}
	if out, err := s.Console(ctx, "configure"); err != nil || !strings.Contains(out, "Reconfigur") {
		return fmt.Errorf("%s: birdc configure: %w: %s", s.Name, err, out)
	}
	return lab.Wait(ctx, routesLimit, func() error {
		out, err := s.Console(ctx, "show", "protocols", "all", s.Spec.Neighbors[0].Name)
		if err != nil {
			return err
		}
		var most int
		for line := range strings.Lines(out) {
			var imported, exported int
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "Routes: %d imported, %d exported", &imported, &exported); err == nil {
				most = max(most, exported)
			}
		}
		if most < n {
			return fmt.Errorf("%s has sent %d of %d routes", s.Name, most, n)
		}
		return nil
	})
}
