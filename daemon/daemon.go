// Package daemon keeps one node's network as the cluster says it should be.
//
// It owns the loop that makes a plan true, the socket, the status and the metrics. It decides nothing:
// package policy decides, once for each look. It never speaks to the kernel, the switches or the store's file
// itself: packages routes, bgp and pods do.
//
//	               manifests ──> cluster.World ─┐
//	addresses and routes of this machine ───────┼─> policy.Decide ─> Plan ─> kernel, switches, pods
//	                             configuration ─┘                      └───> status, metrics, report
//	runtime ─> edgeway ─> socket ─> pods.Pods ─> ipam.Store, kernel
//
// An event (an edited manifest, a route deleted by hand, a lost session) only means "look again": the loop
// observes everything and changes what differs. When the daemon stops, it leaves the kernel and the switches
// alone. When it starts, it finds them right.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/pods"
	"github.com/edgeway-cni/edgeway/daemon/report"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	// backupEvery is the time between two copies of the store.
	backupEvery = 10 * time.Minute
	// sweepEvery is the time between two searches for attachments that no DEL will ever remove.
	sweepEvery = 5 * time.Minute
)

// Options of a daemon that are not configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	Level   *slog.LevelVar // of Log, changeable through the socket; nil: fixed
	// Ready is called once, when the socket answers and the first look is done. Alive is called after every
	// look (systemd's READY=1 and WATCHDOG=1, sd_notify(3)). Both may be nil.
	Ready, Alive func()
	// Health is a host and a port where each path answers 200 while the daemon is healthy; see healthz. Empty: none.
	Health string
	// Session is a command that calls ServeSession, so that each BGP session runs in its own process. Without
	// the command no session can start.
	Session []string
}

// ServeSession is the process of one BGP session. link is file descriptor 3, which the process was started
// with. See bgp.ServeSession.
func ServeSession(link *os.File) error { return bgp.ServeSession(link) }

// Daemon is one node's daemon. Two daemons with different directories and sockets can run in two network
// namespaces of one machine.
type Daemon struct {
	config  config.Config
	options Options
	started time.Time
	kernel  *routes.Kernel
	speaker *bgp.Speaker
	pods    *pods.Pods
	loop    *loop
	metrics *metrics
	prober  *paths.Prober
}

// Run runs the daemon until ctx ends. At the end it changes nothing: routes stay, and the switches keep the
// advertised paths for the graceful restart time.
func Run(ctx context.Context, c config.Config, o Options) error {
	k, err := routes.Open()
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w; edgewayd needs CAP_NET_ADMIN", err)
	}
	defer k.Close()
	d := &Daemon{config: c, options: o, started: time.Now(), kernel: k, pods: pods.New(c, o.Log)}
	d.metrics = newMetrics(d.status)
	d.pods.Served = d.metrics.observe
	d.loop = newLoop(c, o.Log)
	d.loop.source, d.loop.kernel, d.loop.pods, d.loop.turned = c.Source(o.Version), k, d.pods, d.alive()
	d.speaker = bgp.NewSpeaker(bgp.Options{Command: o.Session, Changed: d.loop.look.fire})
	d.loop.speaker = d.speaker
	d.prober = d.newProber()
	d.loop.proven, d.loop.version = d.prober.Report, o.Version
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		o.Log.Warn("state directory", "err", err) // the loop warns too, each time it cannot save
	}
	if err := d.loop.recall(); err != nil {
		o.Log.Warn("saved cluster state", "err", err)
	}
	if d.loop.granted, err = uplink.Read(filepath.Join(c.StateDir, uplink.File)); err != nil {
		o.Log.Warn("saved uplinks", "err", err)
	}
	listener, err := listen(ctx, c.Socket)
	if err != nil {
		return err
	}
	return d.serve(ctx, listener)
}

// serve runs the daemon's parts until ctx ends.
func (d *Daemon) serve(ctx context.Context, listener *net.UnixListener) error {
	l, o := d.loop, d.options
	var wait sync.WaitGroup
	start := func(what string, f func(context.Context) error) {
		wait.Go(func() { persist(ctx, o.Log, what, f) })
	}
	if server, ok := d.config.APIServer(o.Version); ok {
		r := report.New(server)
		l.reporter = r
		l.announcer.tell = func(s report.Session) { r.Event(s.Event(d.config.NodeName)) }
		start("report", r.Run)
		l.annotations = report.NewAnnotations(server)
		start("annotate the Node", l.annotations.Run)
	}
	start("watch kernel", func(ctx context.Context) error {
		return d.kernel.Watch(ctx, routes.Watched{Node: l.look.fire, Pods: l.harmed.fire, Firewall: l.firewall.fire})
	})
	start("watch cluster", func(ctx context.Context) error { return l.source.Watch(ctx, l.reread.fire) })
	start("watch cni.confDir", func(ctx context.Context) error { return watchDir(ctx, d.config.CNI.ConfDir, l.look.fire) })
	start("serve metrics", func(ctx context.Context) error {
		return serveHTTP(ctx, d.config.Metrics, d.metrics.handler(d.healthz))
	})
	start("serve health", func(ctx context.Context) error { return serveHTTP(ctx, o.Health, http.HandlerFunc(d.healthz)) })
	start("probe the LAN", func(ctx context.Context) error { return l.probe(ctx, d.kernel) })
	start("guard", func(ctx context.Context) error { return l.guard(ctx, d.kernel) })
	if d.config.Paths.Canary {
		start("prove the paths", d.prober.Run)
	}
	start("back up the store", every(backupEvery, d.pods.Backup))
	start("sweep", every(sweepEvery, d.pods.Sweep))
	start("keep the pods' links", func(ctx context.Context) error { return d.pods.Keep(ctx, l.harmed) })

	wait.Go(func() {
		defer d.pods.GiveUp()
		l.run(ctx)
	})
	o.Log.Info("started", "node", d.config.NodeName, "version", o.Version, "socket", d.config.Socket, "savedState", l.known)
	err := api.Serve(ctx, listener, d.answer)
	wait.Wait()
	d.speaker.Stop()
	err = errors.Join(err, d.pods.Close())
	o.Log.Info("stopped", "routes", "kept", "switches", "keep their routes for the graceful restart time")
	return err
}

// persist runs a part of the daemon again whenever it ends, until ctx ends. A failure that stays the same, such as a port
// that another program has, is logged once a minute.
func persist(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) {
	var said string
	var at time.Time
	for ctx.Err() == nil {
		err := f(ctx)
		if err != nil && ctx.Err() == nil && (err.Error() != said || time.Since(at) >= time.Minute) {
			log.Warn(what, "err", err)
			said, at = err.Error(), time.Now()
		}
		if !pause(ctx, retryLeast) {
			return
		}
	}
}

// confEvery is the time between two looks at cni.confDir: the runtime reads it at its next pod.
const confEvery = 2 * time.Second

// watchDir calls changed whenever a file of the directory was made, renamed or deleted, until ctx ends.
func watchDir(ctx context.Context, dir string, changed func()) error {
	names := func() (out []string) {
		all, err := os.ReadDir(dir) // it may not exist, or not be readable; writing there says why
		for _, e := range all {
			out = append(out, e.Name())
		}
		return append(out, fmt.Sprint(err))
	}
	for was := names(); pause(ctx, confEvery); {
		is := names()
		if !slices.Equal(is, was) {
			changed()
		}
		was = is
	}
	return nil
}

// every returns a function that calls f at intervals until ctx ends or f fails.
func every(wait time.Duration, f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for pause(ctx, wait) {
			if err := f(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// alive counts the look, and tells the service manager that the loop runs and, after the first look, that the daemon is ready.
func (d *Daemon) alive() func(worked bool, took time.Duration) {
	var once sync.Once
	return func(worked bool, took time.Duration) {
		d.metrics.looked(worked, took)
		if d.options.Ready != nil {
			once.Do(d.options.Ready)
		}
		if d.options.Alive != nil {
			d.options.Alive()
		}
	}
}

// listen takes the socket, unless another daemon answers on it.
func listen(ctx context.Context, socket string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	ping, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch _, err := api.Call(ping, socket, api.Request{Op: "ping"}, nil); {
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

// answerWith is a reply that has v as JSON.
func answerWith(v any) api.Reply {
	text, err := json.Marshal(v)
	if err != nil {
		return api.Reply{Failed: true, Error: err.Error()}
	}
	return api.Reply{Output: text}
}

// logLevel sets the level of the log, if args name one, and answers with the present level.
func (d *Daemon) logLevel(args []string) api.Reply {
	level := d.options.Level
	if level == nil {
		return api.Reply{Failed: true, Error: "the level of this daemon's log is fixed"}
	}
	if len(args) > 0 {
		if err := level.UnmarshalText([]byte(args[0])); err != nil {
			return api.Reply{Failed: true, Error: fmt.Sprintf("log level %q: want debug, info, warn or error", args[0])}
		}
		d.options.Log.Info("log level", "level", level)
	}
	return answerWith(level)
}

// answer answers one request on the socket.
func (d *Daemon) answer(ctx context.Context, req api.Request, netns *os.File) api.Reply {
	switch req.Op {
	case "ping":
		return api.Reply{}
	case "cni":
		return d.pods.CNI(ctx, req, netns)
	case "status":
		return answerWith(d.status(ctx))
	case "known":
		return answerWith(d.known())
	case "logLevel":
		return d.logLevel(req.Args)
	case "ipam":
		return d.pods.IPAM(ctx, req)
	}
	return api.Reply{Failed: true, Error: fmt.Sprintf("request %q: not known to edgewayd %s; update it, or use the edgewayd that is running", req.Op, d.options.Version)}
}
