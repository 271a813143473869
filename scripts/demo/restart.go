package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	pingInterval = 50 * time.Millisecond
	// away is how long the speaker's daemon stays dead. A switch has enough time to react.
	away = 2 * time.Second
	// settle is how long traffic continues after the session is back. BIRD removes stale routes at the
	// End-of-RIB marker, which is when a broken restart shows.
	settle = 2 * time.Second
)

// stream is a flow and its pair.
type stream struct {
	pair [2]string
	flow *lab.Flow
}

// restarts kills the only speaker of a LAN, then stops it, each time under traffic and with a monitor on
// every switch's routing table.
func (s *stage) restarts(ctx context.Context) error {
	n := s.lab.Node(s.act.node)
	s.out.heading(fmt.Sprintf("%s is LAN A's only speaker. Its daemon is killed, then stopped; pings at %d/s go on",
		n.Name, time.Second/pingInterval))
	for _, r := range []struct {
		how string
		end func() error
	}{{"SIGKILL", n.Kill}, {"SIGTERM", n.Terminate}} {
		if err := s.restart(ctx, n, r.how, r.end); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) restart(ctx context.Context, n *lab.Node, how string, stop func() error) (err error) {
	monitors, err := s.monitors(ctx)
	if err != nil {
		return err
	}
	streams, err := s.streams(s.act.restart)
	if err != nil {
		return err
	}
	pid := n.PID()
	if err := pause(ctx, pingInterval*10); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	s.out.printf("\n    %s to edgewayd (pid %d) on %s\n", how, pid, n.Name)
	if err := s.meanwhile(ctx, n); err != nil {
		return err
	}
	start := time.Now()
	if err := n.Start(ctx); err != nil {
		return err
	}
	s.out.printf("    started again (pid %d), answers after %s", n.PID(), since(start))
	if err := n.WaitSession(ctx, sessionTimeout); err != nil {
		return err
	}
	s.out.printf(", its BGP session is back after %s\n", since(start))
	if err := pause(ctx, settle); err != nil {
		return err
	}
	s.losses(how+" of the only speaker", streams)
	return s.events(ctx, how+" of the only speaker", monitors)
}

// meanwhile shows that a node without its daemon still adds pods, and how the switches see the session.
func (s *stage) meanwhile(ctx context.Context, n *lab.Node) error {
	begin := time.Now()
	p, err := n.AddPod(ctx, "default", "newcomer")
	what := "pods start without the daemon"
	if err == nil {
		s.out.printf("    meanwhile a pod starts on %s without its daemon: %s after %s\n", n.Name, join(p.Addrs), millis(p.Took))
		_, err = s.lab.Machine("host").Ping(ctx, p.Addrs[0])
		err = errors.Join(err, p.Delete(ctx))
	}
	s.verdict.check(s.act.name, what, err)
	for _, name := range s.switchNames() {
		sessions, err := s.lab.Switch(name).Sessions(ctx)
		if err != nil {
			return err
		}
		for _, session := range sessions {
			if session.Neighbor == n.Addrs[0] {
				s.out.printf("    %s says of the session: %s\n", name, session.State)
			}
		}
	}
	return pause(ctx, away-time.Since(begin))
}

// streams starts pings from the first to the second of each pair, to all its addresses.
func (s *stage) streams(pairs [][2]string) ([]stream, error) {
	var all []stream
	for _, pair := range pairs {
		to := s.end(pair[1]).m
		for _, addr := range to.Addrs {
			flow, err := s.end(pair[0]).m.StartFlow(addr, pingInterval)
			if err != nil {
				return nil, err
			}
			all = append(all, stream{pair, flow})
		}
	}
	return all, nil
}

func (s *stage) end(name string) end {
	i := slices.IndexFunc(s.ends, func(e end) bool { return e.name == name })
	return s.ends[i]
}

// losses stops the flows and counts their lost packets.
func (s *stage) losses(how string, streams []stream) {
	rows := [][]string{{"PAIR", "IPv4", "IPv6"}}
	for i, st := range streams {
		lost := st.flow.Stop()
		var err error
		if lost.Lost > 0 || lost.Err != nil {
			err = fmt.Errorf("%s to %s (%s): %s", st.pair[0], st.pair[1], st.flow.Addr, lost)
		}
		s.verdict.count(s.act.name, how+": packets", lost.Sent, lost.Lost, err)
		cell := lost.String()
		if err != nil {
			cell = s.out.paint(red, cell)
		}
		if i > 0 && streams[i-1].pair == st.pair {
			rows[len(rows)-1] = append(rows[len(rows)-1], cell)
		} else {
			rows = append(rows, []string{st.pair[0] + " to " + st.pair[1], cell})
		}
	}
	s.out.table(rows)
}

// watch is a monitor on one switch.
type watch struct {
	name string
	mon  *lab.Monitor
}

func (s *stage) monitors(ctx context.Context) ([]watch, error) {
	var all []watch
	for _, name := range s.switchNames() {
		sw := s.lab.Switch(name)
		mon, err := sw.Monitor(ctx, sw.Proto())
		if err != nil {
			return nil, err
		}
		all = append(all, watch{name, mon})
	}
	return all, nil
}

// events stops the monitors and counts their route changes.
func (s *stage) events(ctx context.Context, how string, monitors []watch) error {
	var counts []string
	for _, w := range monitors {
		events, err := w.mon.Stop(ctx)
		if err != nil {
			return err
		}
		counts = append(counts, fmt.Sprintf("%s %d", w.name, len(events)))
		if len(events) > 0 {
			err = fmt.Errorf("%s: %d route changes: %s", w.name, len(events), strings.Join(events[:min(3, len(events))], "; "))
		}
		s.verdict.check(s.act.name, how+": routing tables", err)
	}
	s.out.printf("    route changes that `ip monitor route` saw: %s\n", strings.Join(counts, ", "))
	return nil
}

// pause lets traffic run for d.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
