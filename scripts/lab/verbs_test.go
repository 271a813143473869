package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/edgeway-cni/edgeway/scripts/lab"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"
)

// verb is one command of a story: what it prints, or why it fails.
type verb func(s *story, args []string) (string, error)

// verbs are what stories are written in, beside testscript's own cp, mv, rm, cmp and stdout.
//
//	lab TOPOLOGY                      build it; the script's directory cluster is what nodes read
//	daemon start|kill|stop NODE...    kill is SIGKILL, stop is SIGTERM
//	config NODE FILE                  merge FILE into its configuration, which takes effect at the next start;
//	                                  $WORK in it is the script's directory
//	switch start|kill|stop SWITCH     its routing daemons
//	cut NODE...                       reset its BGP connections, and wait until each session is up again
//	reboot NODE...                    only the disk is left; the daemon is not started
//	portmap BACKEND NODE...           chain that plugin after ours; BACKEND is iptables or nftables; takes effect at the next start
//	install DIR PROGRAM... on NODE...    the programs of another release; a daemon has to be started again
//	pod add NODE NAME... | pod del NAME... | pod check NAME...    NAME:PORT has a hostPort to its port 8080
//	pod visit NODE...                 all verbs there: a pod comes, is checked with all others, goes, and gets its address again
//	addr MACHINE                      its addresses
//	routes MACHINE [FILTER...]        what `ip route show FILTER` selects, sorted
//	learned SWITCH                    the routes that BGP put into its kernel
//	sessions SWITCH
//	status NODE [-o json]
//	edgewayd NODE ARGS...             another command of its daemon's program
//	plan NODE ARGS...                 what the manifests would do, planned there
//	log NODE                          its daemon's log
//	in MACHINE COMMAND...             run there
//	advertise MACHINE LINK PREFIX     a router advertisement
//	ping FROM TO...                   every address of TO, which may be an address itself, answers
//	tcp FROM TO...                    every address of TO sees FROM's own address
//	traffic start FROM TO... | traffic for PACKETS | traffic stop [MAX]    MAX lost in each flow
//	stream start FROM TO... | stream for BYTES | stream stop    a TCP connection, always sending
//	monitor start MACHINE... | monitor stop [MAX]    what BGP changes in a switch's or a node's kernel
//	phantoms COUNT FILE               manifests of nodes that exist on paper only
//	kube start MACHINE [DIR] | kube bind NODE... | kube stop | kube resume    an API server, which nodes read instead of cluster
//	kubectl ARGS...                   as the administrator
//	controller MACHINE                edgeway-controller runs there
//	proxy MODE [CIDR]                 kube-proxy runs on each node; CIDR is its clusterCIDR
//	serve MACHINE...                  a server on port 8080
//	expose [local] MACHINE:PORT...    a Service for each server, with a node port
//	seen CLIENT... to TARGET...       the machine whose address each server sees; svc/NAME is a Service, NODE:PORT a node port
//	ask MACHINE...                    the API server, at the address of its Service
//	count VERB...                     how many lines it prints
//	until [-SECONDS] VERB... [== FILE | ~ REGEXP]    repeat until it succeeds and prints that
func verbs() map[string]verb {
	return map[string]verb{
		"lab":        (*story).build,
		"daemon":     (*story).daemon,
		"install":    (*story).install,
		"config":     (*story).config,
		"switch":     (*story).switches,
		"cut":        (*story).cut,
		"reboot":     (*story).reboot,
		"portmap":    (*story).portmap,
		"pod":        (*story).pod,
		"addr":       (*story).addr,
		"routes":     (*story).routes,
		"learned":    (*story).learned,
		"sessions":   (*story).sessions,
		"status":     (*story).status,
		"edgewayd":   (*story).edgewayd,
		"plan":       (*story).plan,
		"in":         (*story).in,
		"log":        (*story).log,
		"advertise":  (*story).advertise,
		"ping":       (*story).ping,
		"tcp":        (*story).tcp,
		"traffic":    (*story).traffic,
		"stream":     (*story).stream,
		"monitor":    (*story).monitor,
		"phantoms":   (*story).phantoms,
		"kube":       (*story).kube,
		"kubectl":    (*story).kubectl,
		"controller": (*story).controller,
		"proxy":      (*story).proxy,
		"serve":      (*story).serve,
		"expose":     (*story).expose,
		"seen":       (*story).seen,
		"ask":        (*story).ask,
	}
}

// commands makes verbs callable from scripts.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	all := map[string]func(*testscript.TestScript, bool, []string){}
	add := func(name string, v verb) {
		all[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			out, err := v(ts.Value(storyKey{}).(*story), args)
			fmt.Fprint(ts.Stdout(), out)
			switch {
			case neg && err == nil:
				ts.Fatalf("%s %s: succeeded, but must fail", name, strings.Join(args, " "))
			case neg:
				fmt.Fprintln(ts.Stderr(), err)
			default:
				ts.Check(err)
			}
		}
	}
	for name, v := range verbs() {
		add(name, v)
	}
	add("until", (*story).until)
	add("count", (*story).count)
	return all
}

func (s *story) build(args []string) (string, error) {
	text, err := os.ReadFile(s.file(args[0]))
	if err != nil {
		return "", err
	}
	topology, err := lab.ParseTopology(text)
	if err != nil {
		return "", err
	}
	for i, sw := range topology.Switches {
		if sw.Flavour == "" {
			topology.Switches[i].Flavour = s.flavour
		}
	}
	if s.lab, err = lab.New(lab.Options{Bin: bin(), Cluster: s.file("cluster")}); err != nil {
		return "", err
	}
	return "", s.lab.Build(s.ctx, topology)
}

// each does f for all the named nodes at once.
func (s *story) each(names []string, f func(*lab.Node) error) (string, error) {
	var g errgroup.Group
	for _, name := range names {
		n := s.lab.Node(name)
		if n == nil {
			return "", fmt.Errorf("no node %s", name)
		}
		g.Go(func() error { return f(n) })
	}
	return "", g.Wait()
}

func (s *story) daemon(args []string) (string, error) {
	verbs := map[string]func(*lab.Node) error{
		"start": func(n *lab.Node) error { return n.Start(s.ctx) }, "kill": (*lab.Node).Kill, "stop": (*lab.Node).Terminate,
	}
	if verbs[args[0]] == nil {
		return "", fmt.Errorf("daemon %s: want start, kill or stop", args[0])
	}
	return s.each(args[1:], verbs[args[0]])
}

func (s *story) install(args []string) (string, error) {
	on := slices.Index(args, "on")
	if on < 2 {
		return "", errors.New("install: want DIR PROGRAM... on NODE")
	}
	return s.each(args[on+1:], func(n *lab.Node) error { return n.Install(args[0], args[1:on]...) })
}

func (s *story) config(args []string) (string, error) {
	n := s.lab.Node(args[0])
	if n == nil {
		return "", fmt.Errorf("no node %s", args[0])
	}
	return "", s.edit(n, func(config map[string]any) error {
		text, err := os.ReadFile(s.file(args[1]))
		if err != nil {
			return err
		}
		return yaml.Unmarshal(bytes.ReplaceAll(text, []byte("$WORK"), []byte(s.work)), &config)
	})
}

// edit changes the configuration of a node's daemon.
func (s *story) edit(n *lab.Node, change func(map[string]any) error) error {
	config := map[string]any{}
	text, err := os.ReadFile(n.Config)
	if err == nil {
		err = yaml.Unmarshal(text, &config)
	}
	if err == nil {
		err = change(config)
	}
	if err == nil {
		text, err = yaml.Marshal(config)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(n.Config, text, 0o644)
}

func (s *story) switches(args []string) (string, error) {
	sw := s.lab.Switch(args[1])
	switch {
	case sw == nil:
		return "", fmt.Errorf("no switch %s", args[1])
	case args[0] == "start":
		return "", sw.Start(s.ctx)
	case args[0] == "kill":
		return "", sw.Kill()
	case args[0] == "stop":
		return "", sw.Stop()
	}
	return "", fmt.Errorf("switch %s: want start, kill or stop", args[0])
}

func (s *story) cut(args []string) (string, error) {
	return s.each(args, func(n *lab.Node) error {
		before, err := n.Status(s.ctx)
		if err != nil {
			return err
		}
		if _, err := n.Run(s.ctx, "ss", "-K", "dport", "=", "179"); err != nil {
			return err
		}
		// The switch may see the session down for a moment only: the node counts each end.
		return lab.Wait(s.ctx, waitLimit, func() error {
			now, err := n.Status(s.ctx)
			if err != nil {
				return err
			}
			for i, was := range before.Sessions {
				if is := now.Sessions[i]; was.State == "Established" && (is.State != "Established" || is.Flaps == was.Flaps) {
					return fmt.Errorf("%s: session to %s is %s, ended %d times, before the cut %d", n.Name, is.Peer, is.State, is.Flaps, was.Flaps)
				}
			}
			return nil
		})
	})
}

func (s *story) reboot(args []string) (string, error) {
	for _, name := range args {
		if _, err := s.each([]string{name}, func(n *lab.Node) error { return n.Reboot(s.ctx) }); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (s *story) pod(args []string) (out string, err error) {
	if args[0] == "add" {
		for _, word := range args[2:] {
			name, port, hasPort := strings.Cut(word, ":")
			var ports []lab.HostPort
			if hasPort {
				number, err := strconv.Atoi(port)
				if err != nil {
					return out, fmt.Errorf("pod add %s: want NAME:PORT", word)
				}
				ports = []lab.HostPort{{HostPort: number, ContainerPort: servedPort, Protocol: "tcp"}}
			}
			p, err := s.lab.Node(args[1]).AddPod(s.ctx, "default", name, ports...)
			if err != nil {
				return out, err
			}
			out += fmt.Sprintln(name, p.Addrs)
		}
		return out, nil
	}
	if args[0] == "visit" {
		return s.each(args[1:], s.visit)
	}
	for _, name := range args[1:] {
		p := s.lab.Pod(name)
		switch {
		case p == nil:
			err = fmt.Errorf("no pod %s", name)
		case args[0] == "del":
			err = p.Delete(s.ctx)
		case args[0] == "check":
			err = p.Check(s.ctx)
		default:
			err = fmt.Errorf("pod %s: want add, del, check or visit", args[0])
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// portmap installs the reference plugin on the nodes. It takes nftables on a machine without iptables, and iptables
// otherwise: the program that runs it for nftables hides iptables.
func (s *story) portmap(args []string) (string, error) {
	backend := args[0]
	nft, err := exec.LookPath("nft")
	if err != nil {
		return "", err
	}
	built := s.file("portmap.built")
	if _, err := os.Stat(built); err != nil {
		out, err := exec.CommandContext(s.ctx, "go", "build", "-o", built, "github.com/containernetworking/plugins/plugins/meta/portmap").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build portmap: %w: %s", err, out)
		}
	}
	return s.each(args[1:], func(n *lab.Node) error {
		programs := map[string]string{"portmap": built}
		if backend == "nftables" {
			programs = map[string]string{"path/nft": nft}
			script := fmt.Sprintf("#!/bin/sh\nPATH=%s/path exec %s\n", n.Plugins(), built)
			if err := os.MkdirAll(filepath.Join(n.Plugins(), "path"), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(n.Plugins(), "portmap"), []byte(script), 0o755); err != nil {
				return err
			}
		}
		for name, program := range programs {
			if err := os.Symlink(program, filepath.Join(n.Plugins(), name)); err != nil {
				return err
			}
		}
		return s.edit(n, func(config map[string]any) error {
			cni := config["cni"].(map[string]any) // addNode of package lab writes it
			cni["chain"] = []string{"portmap"}
			return nil
		})
	})
}

// visit calls each verb of the plugin on the node.
func (s *story) visit(n *lab.Node) error {
	var first []netip.Addr
	for range 2 {
		guest, err := n.AddPod(s.ctx, "default", "guest-of-"+n.Name)
		if err != nil {
			return err
		}
		for _, p := range n.Pods() {
			if s.lab.Machine(p.Name) != p.Machine {
				continue // the node was rebooted since
			}
			if err := p.Check(s.ctx); err != nil {
				return err
			}
		}
		if err := n.Collect(s.ctx); err != nil {
			return err
		}
		if err := guest.Delete(s.ctx); err != nil {
			return err
		}
		if first == nil {
			first = guest.Addrs
		}
		if !slices.Equal(guest.Addrs, first) {
			return fmt.Errorf("%s: the pod %s had the addresses %v, and has %v", n.Name, guest.Name, first, guest.Addrs)
		}
	}
	return nil
}

func (s *story) machine(name string) (*lab.Machine, error) {
	if m := s.lab.Machine(name); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no machine %s", name)
}

func (s *story) addr(args []string) (out string, err error) {
	m, err := s.machine(args[0])
	if err != nil {
		return "", err
	}
	for _, a := range m.Addrs {
		out += fmt.Sprintln(a)
	}
	return out, nil
}

func (s *story) routes(args []string) (string, error) {
	m, err := s.machine(args[0])
	if err != nil {
		return "", err
	}
	return printRoutes(m.Routes(s.ctx, args[1:]...))
}

func (s *story) learned(args []string) (string, error) {
	sw := s.lab.Switch(args[0])
	if sw == nil {
		return "", fmt.Errorf("no switch %s", args[0])
	}
	return printRoutes(sw.Learned(s.ctx))
}

func printRoutes(routes []lab.Route, err error) (string, error) {
	var out strings.Builder
	for _, r := range routes {
		fmt.Fprintln(&out, r)
	}
	return out.String(), err
}

func (s *story) sessions(args []string) (out string, err error) {
	sw := s.lab.Switch(args[0])
	if sw == nil {
		return "", fmt.Errorf("no switch %s", args[0])
	}
	sessions, err := sw.Sessions(s.ctx)
	for _, session := range sessions {
		out += fmt.Sprintln(session)
	}
	return out, err
}

func (s *story) status(args []string) (string, error) {
	return s.edgewayd(slices.Insert(slices.Clone(args), 1, "status"))
}

func (s *story) edgewayd(args []string) (string, error) {
	n := s.lab.Node(args[0])
	if n == nil {
		return "", fmt.Errorf("no node %s", args[0])
	}
	return n.Command(s.ctx, args[1:]...)
}

// plan plans the laboratory's manifests on a node, which has no more than they say.
func (s *story) plan(args []string) (string, error) {
	n := s.lab.Node(args[0])
	if n == nil {
		return "", fmt.Errorf("no node %s", args[0])
	}
	return n.Command(s.ctx, slices.Concat([]string{"plan", "-f", s.lab.ClusterDir}, args[1:])...)
}

func (s *story) log(args []string) (string, error) {
	n := s.lab.Node(args[0])
	if n == nil {
		return "", fmt.Errorf("no node %s", args[0])
	}
	text, err := os.ReadFile(n.Log())
	return string(text), err
}

func (s *story) in(args []string) (string, error) {
	m, err := s.machine(args[0])
	if err != nil {
		return "", err
	}
	return m.Run(s.ctx, args[1], args[2:]...)
}

func (s *story) advertise(args []string) (string, error) {
	m, err := s.machine(args[0])
	if err != nil {
		return "", err
	}
	prefix, err := netip.ParsePrefix(args[2])
	if err != nil {
		return "", err
	}
	return "", m.AdvertiseRouter(args[1], prefix)
}

// pairs does f from the first machine to every address of the others.
func (s *story) pairs(args []string, f func(from, to *lab.Machine, addr netip.Addr) error) error {
	from, err := s.machine(args[0])
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range args[1:] {
		if addr, err := netip.ParseAddr(name); err == nil {
			errs = append(errs, f(from, &lab.Machine{Name: name}, addr))
			continue
		}
		to, err := s.machine(name)
		if err != nil {
			return err
		}
		for _, addr := range to.Addrs {
			errs = append(errs, f(from, to, addr))
		}
	}
	return errors.Join(errs...)
}

func (s *story) ping(args []string) (string, error) {
	return "", s.pairs(args, func(from, _ *lab.Machine, addr netip.Addr) error {
		_, err := from.Ping(s.ctx, addr)
		return err
	})
}

func (s *story) tcp(args []string) (string, error) {
	return "", s.pairs(args, func(from, to *lab.Machine, addr netip.Addr) error {
		mirror, err := to.Serve()
		if err != nil {
			return err
		}
		defer mirror.Close()
		saw, err := from.Seen(s.ctx, netip.AddrPortFrom(addr, mirror.Port()))
		if err == nil && saw != from.Addr(addr) {
			err = fmt.Errorf("TCP from %s to %s at %s: it saw %s, want %s", from.Name, to.Name, addr, saw, from.Addr(addr))
		}
		return err
	})
}

func (s *story) traffic(args []string) (out string, err error) {
	switch args[0] {
	case "start":
		return "", s.pairs(args[1:], func(from, _ *lab.Machine, addr netip.Addr) error {
			flow, err := from.StartFlow(addr, storyPing)
			if err == nil {
				s.flows = append(s.flows, flow)
			}
			return err
		})
	case "for":
		packets, err := strconv.Atoi(args[1])
		if err != nil {
			return "", err
		}
		targets := make([]int, len(s.flows))
		for i, f := range s.flows {
			targets[i] = f.Sent() + packets
		}
		for i, f := range s.flows {
			err = errors.Join(err, lab.Wait(s.ctx, waitLimit, func() error {
				if sent := f.Sent(); sent < targets[i] {
					return fmt.Errorf("traffic: %d of %d packets sent", sent, targets[i])
				}
				return nil
			}))
		}
		return "", err
	case "stop":
		limit := 0
		if len(args) > 1 {
			if limit, err = strconv.Atoi(args[1]); err != nil {
				return "", err
			}
		}
		for _, f := range s.flows {
			lost := f.Stop()
			row := fmt.Sprintf("%s to %s: %s\n", f.From, f.Addr, lost)
			out += row
			if lost.Lost > limit || lost.Err != nil {
				err = errors.Join(err, errors.New(strings.TrimSpace(row)))
			}
		}
		s.flows = nil
		return out, err
	}
	return "", fmt.Errorf("traffic %s: want start, for or stop", args[0])
}

func (s *story) stream(args []string) (out string, err error) {
	switch args[0] {
	case "start":
		return "", s.pairs(args[1:], func(from, to *lab.Machine, addr netip.Addr) error {
			stream, err := from.StartStream(to, addr)
			if err == nil {
				s.streams = append(s.streams, stream)
			}
			return err
		})
	case "for":
		bytes, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return "", err
		}
		targets := make([]int64, len(s.streams))
		for i, stream := range s.streams {
			now, _ := stream.Arrived()
			targets[i] = now + bytes
		}
		for i, stream := range s.streams {
			err = errors.Join(err, lab.Wait(s.ctx, waitLimit, func() error {
				if now, err := stream.Arrived(); now < targets[i] {
					return errors.Join(fmt.Errorf("TCP from %s to %s at %s: %d of %d bytes arrived", stream.From, stream.To, stream.Addr, now, targets[i]), err)
				}
				return nil
			}))
		}
		return "", err
	case "stop":
		for _, stream := range s.streams {
			now, _ := stream.Arrived()
			out += fmt.Sprintf("%s to %s: %d bytes\n", stream.From, stream.Addr, now)
			err = errors.Join(err, stream.Stop())
		}
		s.streams = nil
		return out, err
	}
	return "", fmt.Errorf("stream %s: want start, for or stop", args[0])
}

func (s *story) monitor(args []string) (out string, err error) {
	if args[0] == "start" {
		for _, name := range args[1:] {
			m, err := s.machine(name)
			if err != nil {
				return "", err
			}
			proto := "121" // a node's learned routes
			if sw := s.lab.Switch(name); sw != nil {
				proto = sw.Proto()
			}
			mon, err := m.Monitor(s.ctx, proto)
			if err != nil {
				return "", err
			}
			s.monitors = append(s.monitors, mon)
		}
		return "", nil
	}
	limit := 0
	if len(args) > 1 {
		if limit, err = strconv.Atoi(args[1]); err != nil {
			return "", err
		}
	}
	for _, mon := range s.monitors {
		events, err := mon.Stop(s.ctx)
		if err != nil {
			return out, err
		}
		out += fmt.Sprintf("%s: %d route changes\n", mon.Machine.Name, len(events))
		if len(events) > limit {
			return out, fmt.Errorf("%s: %d route changes, want at most %d:\n%s", mon.Machine.Name, len(events), limit,
				strings.Join(events[:min(len(events), 10)], "\n"))
		}
	}
	s.monitors = nil
	return out, nil
}

// phantoms writes Node manifests on the LAN 10.0.0.0/16, fd00:10::/64 with the label ASN=65010:
// a switch that batches its work shows a broken restart only with thousands of routes.
func (s *story) phantoms(args []string) (string, error) {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for i := range count {
		high, low := i/250, i%250+1
		fmt.Fprintf(&out, `---
{apiVersion: v1, kind: Node, metadata: {name: phantom-%d, labels: {ASN: "65010"}}, spec: {podCIDRs: [10.%d.%d.0/24, "fd00:10:20:%x::/64"]},
status: {addresses: [{type: InternalIP, address: 10.0.%d.%d}, {type: InternalIP, address: "fd00:10::%x:%x"}]}}
`, i, 100+high, low, i, 10+high, low, 10+high, low)
	}
	return "", os.WriteFile(s.file(args[1]), []byte(out.String()), 0o644)
}
