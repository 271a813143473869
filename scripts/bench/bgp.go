package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/routes"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	// sessionLimit includes the speaker's first dial and BIRD's own delays.
	sessionLimit = 30 * time.Second
	// routesLimit is enough for thousands of routes on a busy machine.
	routesLimit = 2 * time.Minute
)

// lan is one speaker, Node-1, with its switches. All other nodes exist only as manifests.
type lan struct {
	*lab.Lab
	node     *lab.Node
	switches []*lab.Switch
	nodes    int // number of nodes that are only manifests
}

// newLAN starts a speaker with sessions to a number of switches, and waits until the switches know all
// nodes.
func (b *bench) newLAN(ctx context.Context, switches, nodes int, announce bool) (l *lan, err error) {
	l = &lan{}
	if l.Lab, err = lab.New(lab.Options{Bin: b.bin}); err != nil {
		return nil, err
	}
	speaker := netip.MustParseAddr("10.0.0.11")
	link := func(a netip.Addr) []lab.LinkSpec {
		return []lab.LinkSpec{{LAN: "lan", Addrs: []netip.Prefix{netip.PrefixFrom(a, 16)}}}
	}
	t := lab.Topology{Nodes: []lab.NodeSpec{{
		HostSpec: lab.HostSpec{Name: "Node-1", Links: link(speaker)},
		Config:   map[string]any{"bgp": map[string]any{"withdrawAfter": "0s"}}, // the other nodes do not answer probes
	}}}
	manifest := nodeManifest("Node-1", speaker.String(), "[10.64.0.0/24]")
	for i := range switches {
		addr, name := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}), fmt.Sprintf("switch-%d", i)
		t.Switches = append(t.Switches, lab.SwitchSpec{HostSpec: lab.HostSpec{Name: name, Links: link(addr)}, ASN: uint32(65100 + i),
			Neighbors: []lab.NeighborSpec{{Name: "node_1", Address: speaker, ASN: 65010, Announce: announce}}})
		manifest += fmt.Sprintf("---\napiVersion: network.openyurt.io/v1alpha1\nkind: BGPPeer\nmetadata: {name: %s}\nspec:\n  localSpeakers: [Node-1]\n"+
			"  localAsNumber: 65010\n  peerIP: %s\n  peerAsNumber: %d\n  nodeSelector: ASN=65010\n", name, addr, 65100+i)
	}
	if err := l.Build(ctx, t); err != nil {
		return l, err
	}
	for i := range switches {
		l.switches = append(l.switches, l.Switch(fmt.Sprintf("switch-%d", i)))
	}
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "lan.yaml"), []byte(manifest), 0o644); err != nil {
		return l, err
	}
	if err := l.grow(nodes); err != nil {
		return l, err
	}
	l.node = l.Node("Node-1")
	if err := l.node.Start(ctx); err != nil {
		return l, err
	}
	return l, l.heard(ctx)
}

// grow writes manifests, one file each, until the LAN has this many nodes besides the speaker.
func (l *lan) grow(nodes int) error {
	for ; l.nodes < nodes; l.nodes++ {
		if err := os.WriteFile(l.manifest(l.nodes), []byte(l.text(l.nodes)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (l *lan) manifest(i int) string {
	return filepath.Join(l.ClusterDir, fmt.Sprintf("node-%04d.yaml", i))
}

func (l *lan) text(i int) string {
	addr, cidr := phantom(i)
	return nodeManifest(fmt.Sprintf("phantom-%d", i), addr.String(), fmt.Sprintf("[%s]", cidr))
}

// heard waits until every switch has a route to every node in its kernel.
func (l *lan) heard(ctx context.Context) error {
	return lab.Wait(ctx, routesLimit+sessionLimit, func() error {
		for _, s := range l.switches {
			n, err := installed(s.Machine, unix.RTPROT_BIRD)
			if err == nil && n != l.nodes+1 {
				err = fmt.Errorf("%s has %d routes, want %d", s.Name, n, l.nodes+1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// routed waits until the speaker has a route to every other node in its own kernel.
func (l *lan) routed(ctx context.Context) error {
	return lab.Wait(ctx, routesLimit, func() error {
		n, err := installed(l.node.Machine, int(routes.ProtoNode))
		if err == nil && n != l.nodes {
			err = fmt.Errorf("%s has %d routes, want %d", l.node.Name, n, l.nodes)
		}
		return err
	})
}

// installed counts the IPv4 routes in the machine's kernel that have this origin and a gateway.
func installed(m *lab.Machine, protocol int) (n int, err error) {
	err = m.Do(func() error {
		list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: netlink.RouteProtocol(protocol)}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range list {
			if r.Gw != nil { // skips the speaker's own pod CIDR, whose packets must not leave the node
				n++
			}
		}
		return err
	})
	return n, err
}

// memory is in MiB. All processes are the daemon and its sessions'.
type memory struct {
	resident  float64 // of all; shared memory, such as the program's text, counts once (Pss)
	anonymous float64 // of all
	daemon    float64 // anonymous, of the daemon alone
}

// memory returns the memory of the speaker. It waits until the daemon has settled.
func (l *lan) memory(ctx context.Context) (m memory, err error) {
	if err := l.settled(ctx, time.Second); err != nil {
		return m, err
	}
	for i, pid := range processes(l.node.PID()) {
		var sizes [2]float64
		for k, name := range []string{"Pss", "Anonymous"} {
			kib, err := strconv.Atoi(strings.TrimSuffix(field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), name), " kB"))
			if err != nil {
				return m, fmt.Errorf("%s of process %d: %w", name, pid, err)
			}
			sizes[k] = float64(kib) / 1024
		}
		m.resident, m.anonymous = m.resident+sizes[0], m.anonymous+sizes[1]
		if i == 0 {
			m.daemon = sizes[1]
		}
	}
	return m, nil
}

// settled waits until the speaker has used almost no processor time for a while.
func (l *lan) settled(ctx context.Context, still time.Duration) error {
	const little = 20 * time.Millisecond
	var since time.Time
	var then time.Duration
	return lab.Wait(ctx, time.Minute, func() error {
		now, err := cpuOf(l.node.PID())
		if err != nil {
			return err
		}
		if since.IsZero() || now-then > little {
			since, then = time.Now(), now
		}
		if time.Since(since) < still {
			return errors.New("the speaker is still busy")
		}
		return nil
	})
}

// appear measures the time until a new node has its route, in LANs of several sizes.
func (b *bench) appear(ctx context.Context) error {
	n, sizes := 50, []int{10, 100, 1000}
	if b.quick {
		n, sizes = 5, []int{10, 1000}
	}
	t := table{Name: "bgp/appear", Title: "From a Node's manifest in the watched directory to the route in the kernel of the BIRD switch",
		Columns: columns("nodes in the LAN", "there p50 (ms)", "p99 (ms)", "gone p50 (ms)", "p99 (ms)", "speaker's CPU (ms)", "resident (MiB)", "times")}
	for _, size := range sizes {
		l, err := b.newLAN(ctx, 1, size-1, false)
		if err == nil {
			err = l.appearances(ctx, n, &t)
		}
		if l != nil && l.Lab != nil {
			err = errors.Join(err, l.Close())
		}
		if err != nil {
			return fmt.Errorf("LAN of %d nodes: %w", size, err)
		}
	}
	t.note("The daemon waits 75 ms after the last event of the directory for an editor to be done, and reads twice before it believes that a node is gone; both are in these times. " +
		"CPU is the daemon's for one coming and going. A manifest is written elsewhere and renamed into the directory.")
	b.out.add(t)
	return nil
}

// appearances adds and removes one more node, n times.
func (l *lan) appearances(ctx context.Context, n int, t *table) error {
	var there, gone sample
	size := l.nodes + 1
	err := l.switches[0].Do(func() error {
		updates, done := make(chan netlink.RouteUpdate, 1024), make(chan struct{})
		defer close(done)
		if err := netlink.RouteSubscribe(updates, done); err != nil {
			return err
		}
		draft := filepath.Join(l.Dir, "draft.yaml")
		for range n {
			_, cidr := phantom(l.nodes)
			if err := l.settled(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			if err := os.WriteFile(draft, []byte(l.text(l.nodes)), 0o644); err != nil {
				return err
			}
			before, err := cpuOf(l.node.PID())
			if err != nil {
				return err
			}
			took, err := awaited(ctx, updates, unix.RTM_NEWROUTE, cidr, func() error { return os.Rename(draft, l.manifest(l.nodes)) })
			if err != nil {
				return err
			}
			there.took = append(there.took, took)
			took, err = awaited(ctx, updates, unix.RTM_DELROUTE, cidr, func() error { return os.Remove(l.manifest(l.nodes)) })
			if err != nil {
				return err
			}
			gone.took = append(gone.took, took)
			after, err := cpuOf(l.node.PID())
			if err != nil {
				return err
			}
			there.cpu += after - before
		}
		return nil
	})
	if err != nil {
		return err
	}
	m, err := l.memory(ctx)
	t.row(size, ms(there.p50()), ms(there.p99()), ms(gone.p50()), ms(gone.p99()), ms(there.cpuEach()), m.resident, n)
	return err
}

// awaited returns the time from cause until the kernel announces the route.
func awaited(ctx context.Context, updates <-chan netlink.RouteUpdate, kind uint16, dst netip.Prefix, cause func() error) (time.Duration, error) {
	start := time.Now()
	if err := cause(); err != nil {
		return 0, err
	}
	limit := time.After(sessionLimit)
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return 0, errors.New("the kernel's announcements ended")
			}
			if u.Type == kind && u.Dst != nil && u.Dst.String() == dst.String() {
				return time.Since(start), nil
			}
		case <-limit:
			return 0, fmt.Errorf("no news of route %s within %v", dst, sessionLimit)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
