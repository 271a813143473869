package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	// sessionTimeout bounds the time in which a switch learns the routes. It includes the daemons' first
	// dial and BIRD's own delays.
	sessionTimeout = 20 * time.Second
	// convergeTimeout bounds the first packets after the routes are there.
	convergeTimeout = 5 * time.Second
)

// stage is one act with its laboratory.
type stage struct {
	act     act
	lab     *lab.Lab
	out     *page
	verdict *verdict
	nodes   []*lab.Node
	ends    []end
	owners  map[netip.Addr]string // machine names by address, to label next hops
}

// play builds the act's laboratory and plays its scenes.
func (s *stage) play(ctx context.Context) error {
	s.out.title(s.act.title)
	s.out.printf("%s\n", s.act.picture)
	scenes := []func(context.Context) error{s.build, s.daemons, s.pods}
	if len(s.act.expect) > 0 {
		scenes = append(scenes, s.switches)
	}
	scenes = append(scenes, s.status, s.pairs)
	if s.act.router != "" {
		scenes = append(scenes, s.plainRouter)
	}
	if len(s.act.restart) > 0 {
		scenes = append(scenes, s.restarts)
	}
	if len(s.act.change) > 0 {
		scenes = append(scenes, s.modeChange)
	}
	for _, scene := range scenes {
		if err := scene(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (s *stage) build(ctx context.Context) error {
	t, err := s.act.topology()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := s.lab.Build(ctx, t); err != nil {
		return err
	}
	var made []string
	for _, kind := range []struct {
		count     int
		one, many string
	}{{len(t.Switches), "BIRD switch", "BIRD switches"}, {len(t.Nodes), "node", "nodes"}, {len(t.Hosts), "host or router", "hosts and routers"}} {
		if kind.count > 0 {
			made = append(made, plural(kind.count, kind.one, kind.many))
		}
	}
	s.out.heading(fmt.Sprintf("network namespaces %s-*: %s  (%s)", s.lab.Prefix, strings.Join(made, ", "), since(start)))
	s.owners = map[netip.Addr]string{}
	add := func(h lab.HostSpec) {
		for _, link := range h.Links {
			for _, a := range link.Addrs {
				s.owners[a.Addr()] = h.Name
			}
		}
	}
	for _, h := range t.Hosts {
		add(h)
	}
	for _, sw := range t.Switches {
		add(sw.HostSpec)
	}
	for _, n := range t.Nodes {
		add(n.HostSpec)
		s.nodes = append(s.nodes, s.lab.Node(n.Name))
	}
	return s.act.copyManifests(s.lab.ClusterDir)
}

// daemons starts edgewayd on every node at once.
func (s *stage) daemons(ctx context.Context) error {
	entries, err := s.act.manifests()
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	s.out.heading("edgewayd on each node, configured by " + strings.Join(names, ", "))
	took := make([]time.Duration, len(s.nodes))
	var g errgroup.Group
	for i, n := range s.nodes {
		g.Go(func() error {
			start := time.Now()
			defer func() { took[i] = time.Since(start) }()
			return n.Start(ctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	rows := [][]string{{"NODE", "ADDRESSES", "POD CIDRS", "BGP", "READY IN"}}
	for i, n := range s.nodes {
		status, err := n.Status(ctx)
		if err != nil {
			return err
		}
		role := "no speaker"
		if len(status.Sessions) > 0 {
			role = fmt.Sprintf("speaker, AS %d", status.Sessions[0].LocalASN)
		}
		cidrs := cmp.Or(strings.Join(status.PodCIDRs, " "), "none: see EdgeNode")
		rows = append(rows, []string{n.Name, join(n.Addrs), cidrs, role, millis(took[i])})
	}
	s.out.table(rows)
	return nil
}

// pods adds the act's pods through the plugin, as a container runtime does.
func (s *stage) pods(ctx context.Context) error {
	s.out.heading("pods, wired by the edgeway plugin (CNI ADD through libcni, as a container runtime does)")
	rows := [][]string{{"POD", "NODE", "ADDRESSES", "ADD TOOK"}}
	for _, spec := range s.act.pods {
		p, err := s.lab.Node(spec.node).AddPod(ctx, "default", spec.name)
		if err != nil {
			return err
		}
		for _, a := range p.Addrs {
			s.owners[a] = p.Name
		}
		rows = append(rows, []string{p.Name, spec.node, join(p.Addrs), millis(p.Took)})
		s.ends = append(s.ends, end{name: p.Name, part: "pod", node: spec.node, lan: s.lanOf(spec.node), m: p.Machine})
	}
	for _, g := range s.act.guests {
		s.ends = append(s.ends, end{name: g.machine, part: g.part, m: s.lab.Machine(g.machine)})
	}
	s.out.table(rows)
	return nil
}

// lanOf is the /24 of a node's first address.
func (s *stage) lanOf(node string) string {
	prefix, err := s.lab.Machine(node).Addrs[0].Prefix(24)
	if err != nil {
		return ""
	}
	return prefix.String()
}

// switches waits until the switches have learned the expected routes, and shows them.
func (s *stage) switches(ctx context.Context) error {
	start := time.Now()
	for _, name := range s.switchNames() {
		want := s.act.expect[name]
		err := lab.Wait(ctx, sessionTimeout, func() error {
			return errors.Join(s.missing(ctx, name, want), s.down(ctx, name))
		})
		s.verdict.check(s.act.name, "switch learned every next hop: "+name, err)
		if err != nil && ctx.Err() != nil {
			return err
		}
	}
	s.out.heading(fmt.Sprintf("what the switches learned by BGP  (complete after %s)", since(start)))
	for _, name := range s.switchNames() {
		if err := s.show(ctx, s.lab.Switch(name)); err != nil {
			return err
		}
	}
	return nil
}

// missing returns an error that names the wanted routes that the switch has not learned.
func (s *stage) missing(ctx context.Context, name string, want []string) error {
	routes, err := s.lab.Switch(name).Learned(ctx)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, r := range routes {
		have[r.String()] = true
	}
	var missing []string
	for _, w := range want {
		if !have[w] {
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s has not learned %s", name, strings.Join(missing, ", "))
	}
	return nil
}

// down returns an error that names the switch's sessions that are not established.
func (s *stage) down(ctx context.Context, name string) error {
	sessions, err := s.lab.Switch(name).Sessions(ctx)
	if err != nil {
		return err
	}
	for _, session := range sessions {
		if session.State != "Established" {
			err = errors.Join(err, fmt.Errorf("%s: session with %s: %s", name, session.Name, session.State))
		}
	}
	return err
}

// show prints a switch's sessions and routes as birdc does. Each route also shows the machine that has the
// next hop's address.
func (s *stage) show(ctx context.Context, sw *lab.Switch) error {
	sessions, routes := sw.Tables()
	text, err := sw.Run(ctx, sessions[0], sessions[1:]...)
	if err != nil {
		return err
	}
	s.out.printf("\n")
	s.out.command("birdc show protocols      (" + sw.Name + ")")
	s.out.block(onlyBGP(text))
	text, err = sw.Run(ctx, routes[0], routes[1:]...)
	if err != nil {
		return err
	}
	s.out.command("birdc show route          (" + sw.Name + ": what leads to pods and to the VPC, best first)")
	rows := [][]string{{"PREFIX", "NEXT HOP", "WHICH IS", "HEARD FROM"}}
	for _, h := range heard(text) {
		if shown(h.prefix) {
			rows = append(rows, []string{h.prefix.String(), h.via.String(), s.owners[h.via], strings.Join(h.from, " ")})
		}
	}
	s.out.table(rows)
	return nil
}

// onlyBGP keeps the head and the BGP lines of `show protocols`.
func onlyBGP(text string) string {
	var keep []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && (f[1] == "BGP" || f[0] == "Name") {
			keep = append(keep, strings.TrimRight(line, "\n"))
		}
	}
	return strings.Join(keep, "\n")
}

// shown selects the routes to pods and to the VPC. It leaves out the switch's own LANs.
func shown(p netip.Prefix) bool {
	for _, of := range []string{"10.10.0.0/16", "fd00:10:10::/48", "192.168.0.0/16", "fd00:192:168::/48"} {
		if netip.MustParsePrefix(of).Overlaps(p) {
			return true
		}
	}
	return false
}

// hearsay is one prefix with the next hop that the switch chose, and the neighbors that advertise the
// prefix, the chosen one first.
type hearsay struct {
	prefix netip.Prefix
	via    netip.Addr
	from   []string
}

// birdRoute is the first line of a route in `birdc show route`. Of several routes to a prefix, only the
// first has the prefix in its line, and it is the best.
var birdRoute = regexp.MustCompile(`^(\S*)\s+unicast \[(\S+) `)

// heard reads `birdc show route`: a prefix, the neighbor that advertises it, and on the next line the
// next hop.
func heard(text string) []hearsay {
	var all []hearsay
	for line := range strings.Lines(text) {
		if m := birdRoute.FindStringSubmatch(line); m != nil {
			if prefix, err := netip.ParsePrefix(m[1]); err == nil {
				all = append(all, hearsay{prefix: prefix})
			}
			if len(all) > 0 {
				last := &all[len(all)-1]
				last.from = append(last.from, m[2])
			}
		} else if f := strings.Fields(line); len(f) > 1 && f[0] == "via" && len(all) > 0 {
			if last := &all[len(all)-1]; !last.via.IsValid() {
				last.via, _ = netip.ParseAddr(f[1]) // anything but an address shows as invalid
			}
		}
	}
	slices.SortFunc(all, func(a, b hearsay) int { return a.prefix.Compare(b.prefix) })
	return all
}

// plainRouter shows that the router has routes to its own subnets only.
func (s *stage) plainRouter(ctx context.Context) error {
	routes, err := s.lab.Machine(s.act.router).Routes(ctx, "type", "unicast")
	if err != nil {
		return err
	}
	s.out.heading("what the router knows: its own subnets, and nothing of pods")
	s.out.command("ip route                  (" + s.act.router + ")")
	for _, r := range routes {
		if len(r.Via) > 0 {
			err = fmt.Errorf("%s has the route %s", s.act.router, r)
		}
		if r.Dst.Addr().Is4() {
			s.out.block(r.String())
		}
	}
	s.verdict.check(s.act.name, "the router has no route to pods", err)
	return nil
}

// status shows the status of the act's daemon.
func (s *stage) status(ctx context.Context) error {
	n := s.lab.Node(s.act.node)
	text, err := n.Command(ctx, "status")
	if err != nil {
		return err
	}
	s.out.heading("what a node says of itself")
	s.out.command("edgewayd status           (" + n.Name + ")")
	s.out.block(text)
	return nil
}

// lookAround says how to look around in a kept laboratory.
func (s *stage) lookAround() {
	out := s.out
	out.heading("look around: " + s.act.name + "  (" + s.lab.Prefix + ", files in " + s.lab.Dir + ")")
	node := s.lab.Node(s.act.node)
	if node == nil { // the build did not get that far
		return
	}
	first, last := s.lab.Pod(s.act.pods[0].name), s.lab.Pod(s.act.pods[len(s.act.pods)-1].name)
	if first != nil && last != nil {
		out.printf("  %-12s ip netns exec %s ping %s\n", "pod to pod", first.Netns(), last.Addrs[0])
	}
	out.printf("  %-12s ip netns exec %s ip route\n", "a node", node.Netns())
	out.printf("  %-12s %s status --config %s\n", "its daemon", node.Program(), node.Config)
	out.printf("  %-12s %s\n", "its log", node.Log())
	for _, name := range s.switchNames() {
		_, routes := s.lab.Switch(name).Tables()
		out.printf("  %-12s %s\n", name, strings.Join(routes, " "))
	}
	out.printf("  %-12s edit the manifests in %s\n", "the cluster", s.lab.ClusterDir)
}

func (s *stage) switchNames() []string { return slices.Sorted(maps.Keys(s.act.expect)) }

func join(addrs []netip.Addr) string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func since(start time.Time) string { return fmt.Sprintf("%.1f s", time.Since(start).Seconds()) }

// workers is the number of checks that run at once.
func workers() int { return 4 * runtime.GOMAXPROCS(0) }
