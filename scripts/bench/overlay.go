package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// overlayPool makes the nodes that the selector names a pool in mode overlay.
func overlayPool(selector string) string {
	return fmt.Sprintf("apiVersion: network.edgeway.io/v1alpha1\nkind: NetworkPool\nmetadata: {name: far}\nspec: {nodeSelector: %q, mode: overlay}\n", selector)
}

// card is a setting of the nodes' cards, or of their tunnels.
type card struct {
	name string
	eth0 string // features for ethtool -K
	vx   string // of edgeway.1
}

// cards are the settings that are compared. Each names every feature, so that it undoes the one before.
func cards() []card {
	tunnel := func(onOff string) string {
		return "tx-udp_tnl-segmentation " + onOff + " tx-udp_tnl-csum-segmentation " + onOff
	}
	return []card{
		{"all offloads, GRO too", "gso on tso on gro on " + tunnel("on"), "tx on tso on gso on"},
		{"no UDP-tunnel segmentation", "gso on tso on gro on " + tunnel("off"), "tx on tso on gso on"},
		{"no segmentation, no GRO", "gso off tso off gro off " + tunnel("off"), "tx on tso on gso on"},
		{"checksums in software (old kernels)", "gso on tso on gro on " + tunnel("on"), "tx off"},
	}
}

// overlayPaths compares packets between pods in the underlay and in the overlay with packets between their nodes.
func (b *bench) overlayPaths(ctx context.Context) error {
	rounds := 10
	if b.quick {
		rounds = 2
	}
	l, err := lab.New(lab.Options{Bin: b.bin})
	if err != nil {
		return err
	}
	defer l.Close()
	all, err := layOverlay(ctx, l)
	if err != nil {
		return err
	}
	settings := cards()
	streams, transactions := make([][3]stream, len(settings)), make([][3]sample, len(settings))
	for round := range rounds {
		for _, c := range rotated(len(settings), round) {
			if err := settings[c].set(ctx, l); err != nil {
				return err
			}
			for _, i := range rotated(len(all), round) {
				if err := all[i].measure(&streams[c][i], &transactions[c][i]); err != nil {
					return fmt.Errorf("%s: %s: %w", settings[c].name, all[i].name, err)
				}
			}
		}
	}
	t := table{Name: "overlay/path", Title: "Node, underlay, overlay: one TCP connection, both ends in this process",
		Columns: columns("cards of the nodes", "from - to", "stream (Gb/s)", "to node", "CPU/KiB (ns)", "to node", "1-byte round trip p50 (µs)", "to node", "CPU/round trip (µs)", "to node")}
	for c, setting := range settings {
		for i, p := range all {
			s, r, ns, nr := &streams[c][i], &transactions[c][i], &streams[c][0], &transactions[c][0]
			t.row(setting.name, p.name, s.rate(), s.rate()/ns.rate(), s.cost(), s.cost()/ns.cost(), us(r.p50()), ratio(r.p50(), nr.p50()), us(r.cpuEach()), ratio(r.cpuEach(), nr.cpuEach()))
		}
	}
	t.note("The three nodes are namespaces on a bridge: memory to memory. Node-1 and Node-2 are in the underlay, Node-3 is in a pool in mode overlay. All settings and all paths take turns.")
	b.out.add(t)
	return nil
}

func (c card) set(ctx context.Context, l *lab.Lab) error {
	for _, node := range []string{"Node-1", "Node-2", "Node-3"} {
		for _, of := range [][2]string{{"eth0", c.eth0}, {routes.VXLANLink, c.vx}} {
			if _, err := l.Machine(node).Run(ctx, "ethtool", append([]string{"-K", of[0]}, strings.Fields(of[1])...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// layOverlay builds three nodes with a pod each, the third in mode overlay.
func layOverlay(ctx context.Context, l *lab.Lab) ([]path, error) {
	var t lab.Topology
	manifests := overlayPool("pool=far")
	names := []string{"Node-1", "Node-2", "Node-3"}
	for i, name := range names {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(11 + i)})
		t.Nodes = append(t.Nodes, lab.NodeSpec{HostSpec: lab.HostSpec{Name: name, Links: []lab.LinkSpec{{LAN: "lan", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}}}}})
		manifest := nodeManifest(name, addr.String(), fmt.Sprintf("[10.64.%d.0/24]", i+1))
		if name == "Node-3" {
			manifest = strings.Replace(manifest, "labels: {", "labels: {pool: far, ", 1)
		}
		manifests += "---\n" + manifest
	}
	if err := l.Build(ctx, t); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "nodes.yaml"), []byte(manifests), 0o644); err != nil {
		return nil, err
	}
	var pods []*lab.Pod
	for i, name := range names {
		if err := l.Node(name).Start(ctx); err != nil {
			return nil, err
		}
		p, err := l.Node(name).AddPod(ctx, "default", fmt.Sprintf("pod-%d", i))
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	for _, p := range pods[1:] {
		if err := lab.Wait(ctx, sessionLimit, func() error { _, err := pods[0].Ping(ctx, p.Addrs[0]); return err }); err != nil {
			return nil, err
		}
	}
	out, err := l.Machine("Node-1").Run(ctx, "ip", "route", "show", "dev", routes.VXLANLink)
	if err == nil && !strings.Contains(out, "10.64.3.0/24") {
		err = fmt.Errorf("the way to Node-3 is no tunnel: %s", out)
	}
	return []path{
		{"node - node", l.Machine(names[0]).Do, l.Machine(names[1]).Do, netip.MustParseAddr("10.0.0.12"), 0},
		{"pod - pod, underlay", pods[0].Do, pods[1].Do, pods[1].Addrs[0], 0},
		{"pod - pod, overlay", pods[0].Do, pods[2].Do, pods[2].Addrs[0], 0},
	}, err
}

// overlayNodes compares a node that joins an overlay of many others with `ip -batch` and `bridge -batch`.
func (b *bench) overlayNodes(ctx context.Context) error {
	rounds := 5
	if b.quick {
		rounds = 2
	}
	steps := []string{"first sync", "nothing changed", "link remade", "removal"}
	t := table{Name: "overlay/nodes", Title: "A node among many in the overlay: for each a route, a neighbour and a forwarding entry",
		Columns: columns("nodes", "what", "by", "p50 (ms)", "most (ms)", "to ip and bridge -batch", "CPU (ms)", "rounds")}
	for _, n := range []int{1000, nodes} {
		var all []router
		for i, kind := range []func(*lab.Space, int) (router, error){overlaySync, overlayBatch} {
			s, err := newWire(ctx, fmt.Sprintf("overlay-%d-%d", n, i))
			if err != nil {
				return err
			}
			defer s.Remove()
			r, err := kind(s, n)
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		samples := make([][4]sample, len(all))
		for round := range rounds {
			for _, i := range rotated(len(all), round) {
				for j, what := range steps {
					if what == "link remade" { // another program deletes the link, and the kernel all that is on it
						if err := all[i].space.IP(ctx, "link del "+routes.VXLANLink+"\n"); err != nil {
							return err
						}
					}
					own, start := ownCPU(), time.Now()
					cpu, err := all[i].steps[j](ctx)
					if err != nil {
						return fmt.Errorf("%s: %s: %w", all[i].name, what, err)
					}
					samples[i][j].add(sample{took: []time.Duration{time.Since(start)}, cpu: cpu + ownCPU() - own})
				}
			}
		}
		for j, what := range steps {
			for i, r := range all {
				s, peer := &samples[i][j], &samples[1][j]
				t.row(n, what, r.name, ms(s.p50()), ms(s.quantile(1)), ratio(s.p50(), peer.p50()), ms(s.cpuEach()), rounds)
			}
			b.out.keep(fmt.Sprintf("overlay/%d/%s", n, what), ratio(samples[0][j].p50(), samples[1][j].p50()))
		}
	}
	t.note("The two programs of iproute2 run one after the other, and replace everything where nothing changed. The removal of the link alone is their removal.")
	b.out.add(t)
	return nil
}

// phantomMAC is the MAC of a node's end of the tunnel.
func phantomMAC(i int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255) }

const ownVTEP, ownMAC = "10.63.0.0/32", "02:00:00:00:ff:ff"

// overlaySync writes the overlay with edgeway's own package.
func overlaySync(s *lab.Space, n int) (r router, err error) {
	var k *routes.Kernel
	if err := s.Do(func() (err error) { k, err = routes.Open(); return err }); err != nil {
		return r, err
	}
	const link = routes.VXLANLink
	full := routes.State{
		Links: []routes.Link{{Name: link, Kind: "vxlan", MAC: ownMAC, MTU: 1450, Up: true, VXLAN: &routes.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("10.0.0.11")}}},
		Addrs: []routes.Addr{{Link: link, Prefix: netip.MustParsePrefix(ownVTEP)}},
	}
	for i := range n {
		addr, cidr := phantom(i)
		full.Routes = append(full.Routes, routes.Route{Dst: cidr, Via: cidr.Addr(), Link: link, Onlink: true, Protocol: routes.ProtoNode})
		full.Neighs = append(full.Neighs, routes.Neigh{Link: link, IP: cidr.Addr(), MAC: phantomMAC(i)})
		full.FDB = append(full.FDB, routes.FDB{Link: link, MAC: phantomMAC(i), Dst: addr})
	}
	sync := func(want routes.State, changes int) step {
		return func(ctx context.Context) (time.Duration, error) {
			got, err := k.Sync(ctx, routes.Scope{Protocol: routes.ProtoNode, Links: []string{link}}, want)
			if err == nil && len(got) != changes {
				err = fmt.Errorf("%d changes, want %d", len(got), changes)
			}
			return 0, err
		}
	}
	return router{"edgeway", s, []step{sync(full, 3*n+2), sync(full, 0), sync(full, 3*n+2), sync(routes.State{}, 3*n+2)}}, nil
}

// overlayBatch writes the same objects with the programs of iproute2.
func overlayBatch(s *lab.Space, n int) (router, error) {
	const link = routes.VXLANLink
	var ip, bridge strings.Builder
	for i := range n {
		addr, cidr := phantom(i)
		fmt.Fprintf(&ip, "neigh VERB %s lladdr %s dev %s nud permanent\nroute VERB %s via %s dev %s onlink proto 119\n", cidr.Addr(), phantomMAC(i), link, cidr, cidr.Addr(), link)
		fmt.Fprintf(&bridge, "fdb VERB %s dev %s dst %s\n", phantomMAC(i), link, addr)
	}
	run := func(ctx context.Context, program, text string) (cpu time.Duration, err error) {
		err = s.Do(func() error {
			cmd := exec.CommandContext(ctx, program, "-batch", "-")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s -batch: %w: %.300s", program, err, out)
			}
			cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			return nil
		})
		return cpu, err
	}
	batch := func(before, verb string) step {
		texts := [2]string{before + strings.ReplaceAll(ip.String(), "VERB", verb), strings.ReplaceAll(bridge.String(), "VERB", verb)}
		return func(ctx context.Context) (time.Duration, error) {
			one, err := run(ctx, "ip", texts[0])
			if err != nil {
				return 0, err
			}
			two, err := run(ctx, "bridge", texts[1])
			return one + two, err
		}
	}
	up := fmt.Sprintf("link add %s address %s mtu 1450 type vxlan id 1 local 10.0.0.11 dstport 8472 nolearning noudpcsum\nlink set %s up\naddr add %s dev %s\n", link, ownMAC, link, ownVTEP, link)
	again := fmt.Sprintf("link set %s address %s mtu 1450 up\naddr replace %s dev %s\n", link, ownMAC, ownVTEP, link)
	gone := func(ctx context.Context) (time.Duration, error) { return run(ctx, "ip", "link del "+link+"\n") }
	return router{"ip and bridge -batch", s, []step{batch(up, "add"), batch(again, "replace"), batch(up, "add"), gone}}, nil
}

// overlayDaemon measures a whole daemon among many nodes in the overlay, and counts what it writes to its log.
func (b *bench) overlayDaemon(ctx context.Context) error {
	t := table{Name: "overlay/daemon", Title: "A daemon among many nodes in the overlay",
		Columns: columns("nodes", "what", "until the kernel has all (s)", "daemon's CPU (s)", "lines of the log", "resident (MiB)", "anonymous (MiB)")}
	for _, n := range []int{1000, nodes} {
		if err := b.overlayLives(ctx, n, &t); err != nil {
			return fmt.Errorf("%d nodes: %w", n, err)
		}
	}
	t.note("Times begin when the file with all manifests appears, when another program deletes edgeway.1, and when the daemon is started again. The daemon waits 75 ms after the last event of the directory.")
	b.out.add(t)
	return nil
}

func (b *bench) overlayLives(ctx context.Context, n int, t *table) (err error) {
	l, err := b.newLAN(ctx, 0, 1, false)
	if l != nil && l.Lab != nil {
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "pool.yaml"), []byte(overlayPool("all()")), 0o644); err != nil {
		return err
	}
	if err := lab.Wait(ctx, sessionLimit, func() error { _, err := l.node.Run(ctx, "ip", "link", "show", routes.VXLANLink); return err }); err != nil {
		return err
	}
	for _, what := range []string{"they appear", "link deleted", "daemon restarted"} {
		if err := l.settled(ctx, time.Second); err != nil {
			return err
		}
		lines, err := l.logged()
		if err != nil {
			return err
		}
		before, err := cpuOf(l.node.PID())
		if err != nil {
			return err
		}
		start := time.Now()
		switch what {
		case "they appear":
			start, err = l.growAtOnce(n - 1)
		case "link deleted":
			_, err = l.node.Run(ctx, "ip", "link", "del", routes.VXLANLink)
		case "daemon restarted":
			before = 0
			err = errors.Join(l.node.Terminate(), l.node.Start(ctx))
		}
		if err == nil {
			err = l.routed(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		took := time.Since(start)
		m, err := l.memory(ctx)
		if err != nil {
			return err
		}
		after, err := cpuOf(l.node.PID())
		if err != nil {
			return err
		}
		now, err := l.logged()
		if err != nil {
			return err
		}
		t.row(n, what, took.Seconds(), (after - before).Seconds(), now-lines, m.resident, m.anonymous)
		b.out.keep(fmt.Sprintf("overlay/%d/%s/lines", n, what), float64(now-lines))
	}
	return nil
}

// logged returns the number of lines in the daemon's log.
func (l *lan) logged() (int, error) {
	text, err := os.ReadFile(l.node.Log())
	return bytes.Count(text, []byte("\n")), err
}
