// Package daemon keeps one node's network as the cluster says it should be.
//
// It owns all policy, in one pure function (desired, in desired.go), and the loop that makes it
// true. It never speaks to the kernel, the switches or the store's file itself: packages
// routes, bgp, plugin and ipam do.
//
//	               manifests ──> cluster.World ─┐
//	addresses and routes of this machine ───────┼─> desired ─> routes.State ─> kernel
//	                             configuration ─┘          ├─> bgp.State    ─> switches
//	                                                       └─> Problems     ─> status, metrics
//	runtime ─> edgeway ─> socket ─> plugin.Node ─> ipam.Store, kernel
//
// Whatever happens (an edited manifest, a route deleted by hand, a session lost) only means
// "look again": the loop observes everything and changes what differs. When the daemon stops it
// leaves the kernel and the switches alone; when it starts it finds them right.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/routes"
)

// Options of a daemon that are not configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	// Ready is called once, when the socket answers and the first look is done; Alive after
	// every look (systemd's READY=1 and WATCHDOG=1, sd_notify(3)). Both may be nil.
	Ready, Alive func()
	// Session is a command that calls ServeSession; each BGP session runs in a process of its own
	// then. Without it they run in this process.
	Session []string
}

// ServeSession is the process of one BGP session; link is the file descriptor 3 that it was begun
// with. See bgp.ServeSession.
func ServeSession(link *os.File) error { return bgp.ServeSession(link) }

// bgpSpeaker is bgp.Speaker or bgp.Apart.
type bgpSpeaker interface {
	speaker
	Stop()
}

func newSpeaker(o bgp.Options, session []string) bgpSpeaker {
	if len(session) == 0 {
		return bgp.NewSpeaker(o)
	}
	return bgp.NewApart(o, session...)
}

// Daemon is one node's daemon. Two of them with different directories and sockets can run in
// two network namespaces of one machine.
type Daemon struct {
	config  Config
	options Options
	started time.Time
	source  cluster.Source
	kernel  *routes.Kernel
	speaker bgpSpeaker
	look    trigger
	reread  trigger
	seen    atomic.Pointer[view]
	node    atomic.Pointer[node] // nil until the store could be opened
	tried   gate                 // lifted once that was tried
	silent  atomic.Pointer[map[netip.Addr]bool]
	metrics *metrics
}

// Run runs the daemon until ctx ends. Then it ends without a trace: routes stay, and the
// switches keep what they were told for the graceful restart time.
func Run(ctx context.Context, c Config, o Options) error {
	k, err := routes.Open()
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w; edgewayd needs CAP_NET_ADMIN", err)
	}
	defer k.Close()
	d := &Daemon{config: c, options: o, started: time.Now(), source: c.source(o.Version), kernel: k,
		look: newTrigger(), reread: newTrigger(), tried: newGate()}
	d.speaker = newSpeaker(bgp.Options{Changed: d.look.fire}, o.Session)
	d.metrics = newMetrics(d)
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		o.Log.Warn("state directory", "err", err) // the loop says so too, each time it cannot save
	}
	last, known, err := loadWorld(filepath.Join(c.StateDir, "world.json"))
	if err != nil {
		o.Log.Warn("saved world", "err", err)
	}
	listener, err := listen(ctx, c.Socket)
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	start := func(what string, f func(context.Context) error) {
		wait.Go(func() {
			for ctx.Err() == nil {
				if err := f(ctx); err != nil && ctx.Err() == nil {
					o.Log.Warn(what, "err", err)
				}
				if !pause(ctx, retryLeast) {
					return
				}
			}
		})
	}
	start("watch kernel", func(ctx context.Context) error { return k.Watch(ctx, d.look.fire) })
	l := &loop{config: c, source: d.source, kernel: k, speaker: d.speaker, pods: d.pods, log: o.Log, look: d.look, reread: d.reread,
		announcer: announcer{log: o.Log}, seen: &d.seen, silent: &d.silent, alive: d.alive(), last: last, known: known, saved: known,
		save: func(w cluster.World) error { return cluster.Save(filepath.Join(c.StateDir, "world.json"), w) }}
	if server, ok := c.apiServer(o.Version); ok {
		r := cluster.NewReporter(server)
		l.reporter = r
		l.announcer.tell = func(s cluster.SessionReport) { r.Event(s.Event(c.NodeName)) }
		start("report sessions", r.Run)
	}
	start("watch cluster", func(ctx context.Context) error { return d.source.Watch(ctx, d.reread.fire) })
	start("serve metrics", d.metrics.serve)
	start("probe the LAN", d.listen)
	start("back up the store", d.backup)
	start("sweep", d.sweep)

	wait.Go(func() {
		defer d.tried.lift() // nobody will open it any more
		l.run(ctx)
	})
	o.Log.Info("started", "node", c.NodeName, "version", o.Version, "socket", c.Socket, "worldFromDisk", known)
	err = api.Serve(ctx, listener, d.serve)
	wait.Wait()
	d.speaker.Stop()
	if n := d.node.Load(); n != nil {
		err = errors.Join(err, n.copied(), n.close())
	}
	o.Log.Info("stopped", "routes", "kept", "switches", "keep their routes for the graceful restart time")
	return err
}

// alive tells the service manager that the loop turns, and at its first turn that it is ready.
func (d *Daemon) alive() func() {
	var once sync.Once
	return func() {
		if d.options.Ready != nil {
			once.Do(d.options.Ready)
		}
		if d.options.Alive != nil {
			d.options.Alive()
		}
	}
}

// loadWorld reads the World of an earlier run; that there is none is no error.
func loadWorld(path string) (cluster.World, bool, error) {
	w, err := cluster.Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cluster.World{}, false, nil
	case err != nil:
		return cluster.World{}, false, err
	}
	return w, true, nil
}

// listen takes the socket, unless another daemon answers on it.
func listen(ctx context.Context, socket string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	probe, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch _, err := api.Call(probe, socket, api.Request{Op: "ping"}, nil); {
	case err == nil:
		return nil, fmt.Errorf("socket %s: another edgewayd answers on it; stop that one, or set socket", socket)
	case !errors.Is(err, api.ErrNoDaemon):
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	if err := durable.Remove(socket); err != nil {
		return nil, fmt.Errorf("stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	return l, nil
}

// serve answers one request on the socket.
func (d *Daemon) serve(ctx context.Context, req api.Request, netns *os.File) api.Reply {
	switch req.Op {
	case "ping":
		return api.Reply{}
	case "cni":
		return d.cni(ctx, req, netns)
	case "status":
		text, err := json.Marshal(d.status(ctx))
		if err != nil {
			return api.Reply{Failed: true, Error: err.Error()}
		}
		return api.Reply{Output: text}
	case "ipam":
		return d.ipam(ctx, req)
	}
	return api.Reply{Failed: true, Error: fmt.Sprintf("request %q: not known to edgewayd %s; update it, or use the edgewayd that is running", req.Op, d.options.Version)}
}
