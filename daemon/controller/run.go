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

	"k8s.io/client-go/rest"
)

// Options of a controller.
type Options struct {
	API      *rest.Config
	Pools    []Pool
	Identity string // of this replica, in the Lease: no two may have the same
	Listen   string // host:port of /healthz and /metrics; "" is none
	Log      *slog.Logger
	times    times // zero: the defaults; tests are in a hurry
}

// times are the Lease's and the worker's.
type times struct {
	lease time.Duration // after which another replica takes over
	renew time.Duration // after which the leader gives up
	retry time.Duration
	pace  pace
}

func defaultTimes() times {
	// The Lease's are those of Kubernetes' own programs.
	return times{lease: 15 * time.Second, renew: 10 * time.Second, retry: 2 * time.Second, pace: defaultPace()}
}

// Run gives Nodes their pod CIDRs whenever this replica leads, until ctx ends. An API server that
// is away is waited for; the error is one of the options.
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
	listening, err := serve(ctx, o, w.count)
	if err != nil {
		return err
	}
	o.Log.Info("started", "identity", o.Identity, "pools", len(o.Pools))
	e := &election{client: c, identity: o.Identity, times: o.times, log: o.Log}
	e.run(ctx, func(ctx context.Context) {
		w.count.leads(ctx)
		w.run(ctx)
	})
	listening.Wait()
	o.Log.Info("stopped", "nodes", "keep what they have")
	return nil
}

// newWorker returns a worker that asks the API server.
func newWorker(o Options, c *client) *worker {
	return &worker{pools: o.Pools, objects: &server{client: c}, log: o.Log, pace: o.times.pace, count: &counts{}}
}

// serve answers /healthz and /metrics until ctx ends. Alive means that the process answers: no
// restart mends an API server that is away.
func serve(ctx context.Context, o Options, count *counts) (*sync.WaitGroup, error) {
	var wait sync.WaitGroup
	if o.Listen == "" {
		return &wait, nil
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w; set another controller.listen", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		if err := count.write(w); err != nil {
			o.Log.Debug("metrics", "err", err)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { s.Close() })
	wait.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Warn("serve metrics", "err", err)
		}
	})
	return &wait, nil
}
