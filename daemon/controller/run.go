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

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
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

const (
	// requestsPerSecond and requestBurst let a few hundred Nodes that join at once have their pod
	// CIDRs in seconds. The API server's own fairness bounds them too.
	requestsPerSecond, requestBurst = 50, 100
)

// Run gives Nodes their pod CIDRs whenever this replica leads, until ctx ends. An API server that
// is away is waited for; the error is one of the options.
func Run(ctx context.Context, o Options) error {
	if err := CheckPools(o.Pools); err != nil {
		return err
	}
	if o.times == (times{}) {
		o.times = defaultTimes()
	}
	w, err := newWorker(o)
	if err != nil {
		return err
	}
	leases, err := leasesOf(o)
	if err != nil {
		return err
	}
	listening, err := serve(ctx, o, w.count)
	if err != nil {
		return err
	}
	o.Log.Info("started", "identity", o.Identity, "pools", len(o.Pools))
	elect(ctx, o, leases, func(ctx context.Context) {
		w.count.leads(ctx)
		w.run(ctx)
	})
	listening.Wait()
	o.Log.Info("stopped", "nodes", "keep what they have")
	return nil
}

// newWorker returns a worker that asks the API server.
func newWorker(o Options) (*worker, error) {
	config := rest.CopyConfig(o.API)
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	if config.ContentType == "" { // half the size of JSON
		config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	return &worker{pools: o.Pools, objects: &server{client: client}, log: o.Log, pace: o.times.pace, count: &counts{}}, nil
}

// leasesOf returns a client for the Lease alone, so that renewals do not queue behind Nodes.
func leasesOf(o Options) (coordination.LeasesGetter, error) {
	config := rest.CopyConfig(o.API)
	config.Timeout = o.times.renew / 2 // so that a renewal can be tried twice
	client, err := coordination.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w; correct the kubeconfig", err)
	}
	return client, nil
}

// elect calls work whenever this replica holds the Lease, one call after the other, until ctx
// ends. It spares work and no more: that replicas can believe at once that they lead is taken
// care of by the ledger.
func elect(ctx context.Context, o Options, leases coordination.LeasesGetter, work func(context.Context)) {
	for ctx.Err() == nil {
		term(ctx, o, leases, work)
		if ctx.Err() == nil {
			o.Log.Warn("leadership lost", "next", "it is stood for again by itself; another replica can lead meanwhile")
		}
		pause(ctx, o.times.retry)
	}
}

// term stands for leadership, works as long as it lasts, and returns when work has returned.
func term(ctx context.Context, o Options, leases coordination.LeasesGetter, work func(context.Context)) {
	worked := make(chan struct{})
	lock := &lease{log: o.Log, Interface: &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name}, Client: leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: o.times.lease, RenewDeadline: o.times.renew, RetryPeriod: o.times.retry, Name: Name,
		ReleaseOnCancel: true, // who stops says so: another takes over at once
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				defer close(worked)
				o.Log.Info("leading", "identity", o.Identity)
				work(ctx)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(who string) {
				if who != o.Identity && who != "" {
					o.Log.Info("standing by", "leader", who)
				}
			},
		},
	})
	if err != nil {
		panic(err) // the default times are wrong
	}
	elector.Run(klog.NewContext(ctx, logr.Discard())) // its own lines are no log lines of ours
	if lock.led {
		<-worked
	}
}

// lease logs why the Lease cannot be had or kept, once for each cause. The election uses it from
// one goroutine.
type lease struct {
	resourcelock.Interface
	log  *slog.Logger
	said string
	led  bool // this replica became the leader
}

func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if apierrors.IsNotFound(err) { // the first replica of all makes it
		return record, raw, err
	}
	return record, raw, l.note("read", err)
}

func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note("create", l.Interface.Create(ctx, r))
}

func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note("write", l.Interface.Update(ctx, r))
}

// RecordEvent is how the election says that the Lease was had.
func (l *lease) RecordEvent(string) { l.led = true }

func (l *lease) note(what string, err error) error {
	switch {
	case err == nil:
		l.said = ""
	case errors.Is(err, context.Canceled), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
	case err.Error() != l.said:
		l.said = err.Error()
		l.log.Warn("lease", what, l.Describe(), "err", err, "next", "it is tried again by itself")
	}
	return err
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
