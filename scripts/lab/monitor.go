package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"
)

// Monitor is `ip monitor route` on one machine: it records each change of the kernel's routes.
type Monitor struct {
	Machine *Machine
	proc    *Process
	proto   string
	from    int               // events before this index come from the monitor's own start
	begin   map[string]string // routes at the start, by destination, as `ip` prints them
}

// The probe is a route in a table that nothing uses. When its events appear in the log, the monitor listens
// and all earlier events have been written.
const (
	probeAddr  = "203.0.113.77" // RFC 5737
	probeRoute = "blackhole " + probeAddr + " proto static table 7777"
)

// monitorTimeout bounds the time in which an event of the kernel reaches the file: two programs run until then,
// which takes seconds on a busy machine.
const monitorTimeout = 30 * time.Second

// Monitor watches the routes of one origin, which is named as in `ip route`.
func (m *Machine) Monitor(ctx context.Context, proto string) (*Monitor, error) {
	log, err := os.CreateTemp(m.Dir, "monitor-*.log")
	if err != nil {
		return nil, fmt.Errorf("%s: monitor: %w", m.Name, err)
	}
	log.Close()
	p, err := m.Spawn(log.Name(), "ip", "-timestamp", "monitor", "route")
	if err != nil {
		return nil, err
	}
	mon := &Monitor{Machine: m, proc: p, proto: proto}
	if err := mon.sync(ctx); err != nil {
		_ = p.Kill()
		return nil, err
	}
	mon.from = len(mon.all())
	// Read the routes while the monitor listens. A change in between is seen twice, which does not count as
	// a change.
	if mon.begin, err = m.printed(ctx, proto); err != nil {
		_ = p.Kill()
		return nil, err
	}
	return mon, nil
}

func (m *Machine) printed(ctx context.Context, proto string) (map[string]string, error) {
	routes := map[string]string{}
	for _, family := range []string{"-4", "-6"} {
		out, err := m.Run(ctx, "ip", family, "route", "show")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); strings.Contains(line+" ", " proto "+proto+" ") {
				routes[destination(line)] = line
			}
		}
	}
	return routes, nil
}

func destination(line string) string {
	dst, _, _ := strings.Cut(line, " ")
	return dst
}

// changes leaves out routes that were written again without a change. A switch writes such a route when its
// best path moves to another speaker with the same next hop.
func changes(events []string, routes map[string]string) []string {
	routes = maps.Clone(routes)
	var out []string
	for _, e := range events {
		gone, deleted := strings.CutPrefix(e, "Deleted ")
		switch {
		case deleted:
			delete(routes, destination(gone))
		case routes[destination(e)] == e:
			continue
		default:
			routes[destination(e)] = e
		}
		out = append(out, e)
	}
	return out
}

// sync returns when every event so far is in the log.
func (mon *Monitor) sync(ctx context.Context) error {
	before := strings.Count(mon.text(), probeAddr)
	return Wait(ctx, monitorTimeout, func() error {
		if err := mon.proc.Err(); err != nil {
			return fmt.Errorf("%s: monitor: %w", mon.Machine.Name, err)
		}
		if err := mon.Machine.IP(ctx, "route add "+probeRoute+"\nroute del "+probeRoute+"\n"); err != nil {
			return err
		}
		if strings.Count(mon.text(), probeAddr) == before {
			return fmt.Errorf("%s: ip monitor shows nothing", mon.Machine.Name)
		}
		return nil
	})
}

// Events returns the changes of routes seen so far, as `ip monitor` prints them.
func (mon *Monitor) Events(ctx context.Context) ([]string, error) {
	all, err := mon.Writes(ctx)
	return changes(all, mon.begin), err
}

// Writes returns all writes of routes seen so far, also those that changed nothing.
func (mon *Monitor) Writes(ctx context.Context) ([]string, error) {
	if err := mon.sync(ctx); err != nil {
		return nil, err
	}
	return mon.all()[mon.from:], nil
}

// Stop ends the monitor and returns the changes that it saw.
func (mon *Monitor) Stop(ctx context.Context) ([]string, error) {
	events, err := mon.Events(ctx)
	if e := mon.proc.Kill(); err == nil {
		err = e
	}
	return events, err
}

func (mon *Monitor) text() string {
	b, _ := os.ReadFile(mon.proc.log) // a missing file gives no text, which sync reports
	return string(b)
}

func (mon *Monitor) all() []string {
	var events []string
	for line := range strings.Lines(mon.text()) {
		if strings.Contains(line, " proto "+mon.proto+" ") {
			events = append(events, strings.TrimSpace(line))
		}
	}
	return events
}
