package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Machine is a network namespace that plays the part of a host, a router, a switch, a node or a pod.
type Machine struct {
	*Space
	Name  string
	Addrs []netip.Addr // in the order of the configuration
	Dir   string       // the machine's files

	outlives bool // programs may outlive this process; Sweep or Down ends them
}

// Netns is the name of the machine's network namespace for `ip netns exec`: "ew-4f2a-Node-1".
func (m *Machine) Netns() string { return filepath.Base(m.Path) }

// Addr returns the machine's first address of like's family, or an invalid address.
func (m *Machine) Addr(like netip.Addr) netip.Addr {
	for _, a := range m.Addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Run runs a command inside the machine and returns its standard output.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := m.Space.Run(ctx, name, args...)
	if err != nil {
		err = fmt.Errorf("%s: %w", m.Name, err)
	}
	return out, err
}

// Spawn starts a program inside the machine, in the machine's directory. In a laboratory the program may
// outlive this process.
func (m *Machine) Spawn(log string, argv ...string) (*Process, error) {
	p, err := Program{Argv: argv, Log: log, Dir: m.Dir, Space: m.Space, Outlives: m.outlives}.Start()
	if err != nil {
		err = fmt.Errorf("%s: %w", m.Name, err)
	}
	return p, err
}

// Route is a route in the kernel of a machine.
type Route struct {
	Dst netip.Prefix
	Via []netip.Addr // sorted; several for a multipath route, none for a route on the link
	Dev string
}

// String leaves out the device of a route with a next hop: "10.10.1.0/24 via 10.0.0.11".
func (r Route) String() string {
	s := r.Dst.String()
	for _, via := range r.Via {
		s += " via " + via.String()
	}
	if len(r.Via) == 0 && r.Dev != "" {
		s += " dev " + r.Dev
	}
	return s
}

// Routes lists the routes of the main table that `ip route show FILTER` selects. If the filter contains a
// prefix, only its family is listed; otherwise both families are.
func (m *Machine) Routes(ctx context.Context, filter ...string) ([]Route, error) {
	var all []Route
	for _, family := range families(filter) {
		out, err := m.Run(ctx, "ip", slices.Concat([]string{"-json", family, "route", "show"}, filter)...)
		if err != nil {
			return nil, err
		}
		routes, err := parseRoutes(out)
		if err != nil {
			return nil, fmt.Errorf("%s: ip %s route: %w", m.Name, family, err)
		}
		all = append(all, routes...)
	}
	slices.SortFunc(all, func(a, b Route) int {
		return strings.Compare(sortKey(a.Dst), sortKey(b.Dst))
	})
	return all, nil
}

// families returns iproute2's family options for a filter.
func families(filter []string) []string {
	for _, word := range filter {
		if p, err := netip.ParsePrefix(word); err == nil && p.Addr().Is4() {
			return []string{"-4"}
		} else if err == nil {
			return []string{"-6"}
		}
	}
	return []string{"-4", "-6"}
}

func sortKey(p netip.Prefix) string {
	return fmt.Sprintf("%03d %x %03d", p.Addr().BitLen(), p.Addr().AsSlice(), p.Bits())
}

func parseRoutes(out string) ([]Route, error) {
	type hop struct {
		Gateway netip.Addr `json:"gateway"`
		Dev     string     `json:"dev"`
		Via     struct {
			Host netip.Addr `json:"host"`
		} `json:"via"` // a gateway of the other family (RFC 8950)
	}
	var raw []struct {
		hop
		Dst      string `json:"dst"`
		Nexthops []hop  `json:"nexthops"`
	}
	if strings.TrimSpace(out) == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(out), &raw); err != nil {
		return nil, err
	}
	var routes []Route
	for _, r := range raw {
		route := Route{Dev: r.Dev}
		hops := append(r.Nexthops, r.hop)
		for _, h := range hops {
			for _, via := range []netip.Addr{h.Gateway, h.Via.Host} {
				if via.IsValid() && !slices.Contains(route.Via, via) {
					route.Via = append(route.Via, via)
				}
			}
		}
		slices.SortFunc(route.Via, netip.Addr.Compare)
		var err error
		if route.Dst, err = parseDst(r.Dst, route.Via); err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	return routes, nil
}

// parseDst reads a destination in iproute2's format: "default", a host address or a prefix.
func parseDst(s string, via []netip.Addr) (netip.Prefix, error) {
	if s == "default" {
		if len(via) > 0 && via[0].Is6() {
			return netip.MustParsePrefix("::/0"), nil
		}
		return netip.MustParsePrefix("0.0.0.0/0"), nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}
