package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// place runs a function in a namespace: of a space, or of a laboratory's machine.
type place func(func() error) error

// path is one connection to measure.
type path struct {
	name           string
	client, server place
	to             netip.Addr
	limit          int // row of the path to compare with
}

// paths compares connections between pods with connections between their nodes, and with a bare veth pair
// between two namespaces.
func (b *bench) paths(ctx context.Context) error {
	rounds := 12
	if b.quick {
		rounds = 3
	}
	l, err := lab.New(lab.Options{Bin: b.bin})
	if err != nil {
		return err
	}
	defer l.Close()
	all, done, err := layPaths(ctx, l)
	defer done()
	if err != nil {
		return err
	}
	streams, transactions := make([]stream, len(all)), make([]sample, len(all))
	for round := range rounds {
		for _, i := range rotated(len(all), round) {
			if err := all[i].measure(&streams[i], &transactions[i]); err != nil {
				return fmt.Errorf("%s: %w", all[i].name, err)
			}
		}
	}
	t := table{Name: "path", Title: "Data path: one TCP connection, both ends in this process",
		Columns: columns("from - to", "stream (Gb/s)", "CPU/KiB (ns)", "CPU/KiB to limit", "1-byte round trip p50 (µs)", "to limit", "CPU/round trip (µs)", "to limit", "limit")}
	for i, p := range all {
		s, r, ls, lr := &streams[i], &transactions[i], &streams[p.limit], &transactions[p.limit]
		t.row(p.name, s.rate(), s.cost(), s.cost()/ls.cost(), us(r.p50()), float64(r.p50())/float64(lr.p50()),
			us(r.cpuEach()), float64(r.cpuEach())/float64(lr.cpuEach()), all[p.limit].name)
		b.out.keep(fmt.Sprintf("path/%d/cost", i), s.cost()/ls.cost())
		b.out.keep(fmt.Sprintf("path/%d/rr", i), float64(r.p50())/float64(lr.p50()))
	}
	t.note("The two nodes are namespaces on a bridge, so \"node - node\" is itself memory to memory: look at the ratios.")
	b.out.add(t)
	return nil
}

// layPaths builds two nodes with pods, and a bare veth pair.
func layPaths(ctx context.Context, l *lab.Lab) (all []path, done func(), err error) {
	done = func() {}
	topology, err := lab.ParseTopology([]byte("nodes:\n- {name: Node-1, links: [{lan: lan, addrs: [10.0.0.11/24]}]}\n- {name: Node-2, links: [{lan: lan, addrs: [10.0.0.12/24]}]}\n"))
	if err != nil {
		return nil, done, err
	}
	if err := l.Build(ctx, topology); err != nil {
		return nil, done, err
	}
	manifests := nodeManifest("Node-1", "10.0.0.11", "[10.64.1.0/24]") + "---\n" + nodeManifest("Node-2", "10.0.0.12", "[10.64.2.0/24]")
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "nodes.yaml"), []byte(manifests), 0o644); err != nil {
		return nil, done, err
	}
	var pods []*lab.Pod
	for i, node := range []string{"Node-1", "Node-1", "Node-2"} {
		n := l.Node(node)
		if n.PID() == 0 {
			if err := n.Start(ctx); err != nil {
				return nil, done, err
			}
		}
		p, err := n.AddPod(ctx, "default", fmt.Sprintf("pod-%d", i))
		if err != nil {
			return nil, done, err
		}
		pods = append(pods, p)
	}
	for _, p := range pods[1:] {
		if err := lab.Wait(ctx, sessionLimit, func() error { _, err := pods[0].Ping(ctx, p.Addrs[0]); return err }); err != nil {
			return nil, done, err
		}
	}
	left, err := newSpace("/run/netns/veth-0")
	if err != nil {
		return nil, done, err
	}
	right, err := newSpace("/run/netns/veth-1")
	if err != nil {
		return nil, left.Remove, err
	}
	done = func() { left.Remove(); right.Remove() }
	err = errors.Join(left.IP(ctx, "link add eth0 type veth peer name eth0 netns veth-1\nlink set eth0 up\naddr add 10.1.0.1/24 dev eth0\n"),
		right.IP(ctx, "link set eth0 up\naddr add 10.1.0.2/24 dev eth0\n"))
	return []path{
		{"node - node", l.Machine("Node-1").Do, l.Machine("Node-2").Do, netip.MustParseAddr("10.0.0.12"), 0},
		{"pod - pod on another node", pods[0].Do, pods[2].Do, pods[2].Addrs[0], 0},
		{"two ends of a veth pair", left.Do, right.Do, netip.MustParseAddr("10.1.0.2"), 2},
		{"pod - pod on the same node", pods[0].Do, pods[1].Do, pods[1].Addrs[0], 2},
	}, done, err
}

// stream is a number of bytes and the time for sending them.
type stream struct {
	bytes     int64
	wall, cpu time.Duration
}

func (s *stream) rate() float64 { return float64(s.bytes) * 8 / s.wall.Seconds() / 1e9 }

// cost is the processor time of both ends in nanoseconds a KiB.
func (s *stream) cost() float64 { return float64(s.cpu.Nanoseconds()) / (float64(s.bytes) / 1024) }

// measure makes one connection, streams for a while, then counts round trips for a while.
func (p *path) measure(s *stream, rr *sample) error {
	const limit = 300 * time.Millisecond
	client, server, err := p.connect()
	if err != nil {
		return err
	}
	defer unix.Close(client)
	echoes := make(chan error, 1)
	cpu, start := ownCPU(), time.Now()
	streamed := make(chan int64, 1)
	go func() { echoes <- serve(server, streamed) }()
	err = send(client, start.Add(limit))
	s.bytes += <-streamed
	s.wall += time.Since(start)
	s.cpu += ownCPU() - cpu
	if err != nil {
		return errors.Join(err, <-echoes)
	}
	cpu, start = ownCPU(), time.Now()
	one := make([]byte, 1)
	for end := start.Add(limit); time.Now().Before(end); {
		at := time.Now()
		if _, err := unix.Write(client, one); err != nil {
			return err
		}
		if n, err := unix.Read(client, one); err != nil || n != 1 {
			return fmt.Errorf("echo: %d bytes: %w", n, err)
		}
		rr.took = append(rr.took, time.Since(at))
	}
	rr.wall += time.Since(start)
	rr.cpu += ownCPU() - cpu
	return errors.Join(unix.Shutdown(client, unix.SHUT_WR), <-echoes)
}

const (
	chunk = 64 << 10
	more  = 0 // first byte of a chunk
	last  = 1 // first byte of the last chunk; round trips follow
)

func send(fd int, until time.Time) error {
	buf := make([]byte, chunk)
	for buf[0] == more {
		if !time.Now().Before(until) {
			buf[0] = last
		}
		for rest := buf; len(rest) > 0; {
			n, err := unix.Write(fd, rest)
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
	return nil
}

// serve receives the stream, reports its length, and echoes everything after it.
func serve(fd int, streamed chan<- int64) error {
	defer unix.Close(fd)
	var total int64
	buf := make([]byte, chunk)
	for buf[0] = more; buf[0] == more; {
		for n := 0; n < chunk; {
			k, err := unix.Read(fd, buf[n:])
			if err != nil || k == 0 {
				streamed <- total
				return errors.Join(errors.New("the stream broke off"), err)
			}
			n += k
		}
		total += chunk
	}
	streamed <- total
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Write(fd, buf[:n]); err != nil {
			return err
		}
	}
}

// connect makes a TCP connection with blocking sockets, outside of Go's poller.
func (p *path) connect() (client, server int, err error) {
	listener, port := -1, 0
	err = p.server(func() (err error) {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(listener, &unix.SockaddrInet4{}); err != nil {
			return err
		}
		if err := unix.Listen(listener, 1); err != nil {
			return err
		}
		name, err := unix.Getsockname(listener)
		if err == nil {
			port = name.(*unix.SockaddrInet4).Port
		}
		return err
	})
	defer unix.Close(listener)
	if err != nil {
		return -1, -1, err
	}
	err = p.client(func() (err error) {
		if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(client, &unix.SockaddrInet4{Addr: p.to.As4(), Port: port})
	})
	if err != nil {
		return -1, -1, fmt.Errorf("connect to %s: %w", p.to, err)
	}
	if server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
		return -1, -1, err
	}
	for _, fd := range []int{client, server} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return -1, -1, err
		}
	}
	return client, server, nil
}
