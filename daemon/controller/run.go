package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/controller/uplinks"
)

// Options of a controller.
type Options struct {
	API      *rest.Config
	Pools    []Pool
	Uplinks  []uplinks.Config // of the services of the cloud whose instances are nodes
	Identity string           // of this replica, in the Lease: unique among the replicas
	Listen   string           // host:port of /healthz and /metrics; "": neither is served
	Log      *slog.Logger
	times    times // zero: the defaults; tests use shorter times
}

type times struct {
	lease time.Duration // after which another replica takes over
	renew time.Duration // after which the leader gives up
	retry time.Duration
	pace  pace
}

func defaultTimes() times {
	// Kubernetes' own programs use the same Lease times.
	return times{lease: 15 * time.Second, renew: 10 * time.Second, retry: 2 * time.Second, pace: defaultPace()}
}

// Run gives Nodes their pod CIDRs, and instances of the cloud their uplinks, and publishes the NodeSlices, whenever this
// replica leads, until ctx ends. Run waits for an API server
// that is away. It returns an error only for options that cannot work.
func Run(ctx context.Context, o Options) error {
	if err := CheckPools(o.Pools); err != nil {
		return err
	}
	if o.times == (times{}) {
		o.times = defaultTimes()
	}
	c, err := newClient(o.API)
	if err != nil {
		return err
	}
	w := newWorker(o, c)
	calls := uplinks.NewMetrics()
	var clouds []*uplinks.Controller
	for _, config := range o.Uplinks {
		u, err := uplinks.New(uplinks.Options{Config: config, API: o.API, Log: o.Log, UserAgent: o.API.UserAgent, Metrics: calls, Tell: func(ctx context.Context, name, uid, reason, message string) error {
			return w.objects.tell(ctx, Node{Name: name, UID: uid}, reason, message)
		}})
		if err != nil {
			return err
		}
		clouds = append(clouds, u)
	}
	e, err := newElection(o)
	if err != nil {
		return err
	}
	listening, err := serve(ctx, o, w.metrics, calls)
	if err != nil {
		return err
	}
	o.Log.Info("started", "identity", o.Identity, "pools of the file", len(o.Pools))
	if err := e.run(ctx, func(ctx context.Context) {
		w.metrics.leads(ctx)
		var beside sync.WaitGroup
		for _, u := range clouds {
			beside.Go(func() { u.Run(ctx) })
		}
		beside.Go(func() { newPublisher(c, o.Log).run(ctx) })
		w.run(ctx)
		beside.Wait()
	}); err != nil {
		return err
	}
	listening.Wait()
	o.Log.Info("stopped", "nodes", "keep what they have")
	return nil
}

// serve answers /healthz and /metrics until ctx ends. /healthz says only that the process answers: a restart
// does not bring back an API server that is away.
func serve(ctx context.Context, o Options, m *metrics, calls *uplinks.Metrics) (*sync.WaitGroup, error) {
	var wait sync.WaitGroup
	if o.Listen == "" {
		return &wait, nil
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w; set another controller.listen", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m) // its descriptions are constant and differ
	if len(o.Uplinks) > 0 {
		registry.MustRegister(calls)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { s.Close() })
	wait.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Warn("serve metrics", "err", err)
		}
	})
	return &wait, nil
}
