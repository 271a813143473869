package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// election says which replica works. It only saves work: the ledger stays correct while several replicas
// believe that they lead.
type election struct {
	lock  *lock
	times times
	log   *slog.Logger
}

func newElection(o Options) (*election, error) {
	config := rest.CopyConfig(o.API)
	config.Timeout = o.times.renew / 2 // so that a renewal has time for two tries
	c, err := newClient(config)
	if err != nil {
		return nil, err
	}
	return &election{times: o.times, log: o.Log, lock: &lock{log: o.Log, Interface: &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name}, Client: c.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}}}, nil
}

// run calls work whenever this replica holds the Lease, one call at a time, until ctx ends.
func (e *election) run(ctx context.Context, work func(context.Context)) error {
	var terms sync.Mutex // held while work runs: client-go does not wait until a term's work has ended
	identity := e.lock.Identity()
	config := leaderelection.LeaderElectionConfig{
		Lock: e.lock, LeaseDuration: e.times.lease, RenewDeadline: e.times.renew, RetryPeriod: e.times.retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) {
				terms.Lock()
				defer terms.Unlock()
				if term.Err() == nil {
					e.log.Info("leading", "identity", identity)
					work(term)
				}
				if ctx.Err() == nil {
					e.log.Warn("leadership lost", "next", "this replica stands for it again by itself; another replica can lead meanwhile")
				}
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(leader string) {
				if leader != identity && leader != "" {
					e.log.Info("standing by", "leader", leader)
				}
			},
		},
	}
	quiet := klog.NewContext(ctx, logr.Discard()) // client-go logs each attempt; lock logs each cause
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(config)
		if err != nil {
			return fmt.Errorf("election: %w", err)
		}
		elector.Run(quiet)
	}
	terms.Lock()
	defer terms.Unlock()
	e.release()
	return nil
}

// release gives up the Lease, so that another replica need not wait until it expires. A Lease that another
// replica has taken meanwhile is left alone. client-go's own release (ReleaseOnCancel) will not do: it comes
// before the term's work is told to stop, and, while the API server is away, it delays that for longer than
// the Lease lasts.
func (e *election) release() {
	ctx, cancel := context.WithTimeout(context.Background(), e.times.renew/2)
	defer cancel()
	r, _, err := e.lock.Interface.Get(ctx)
	if err == nil && r.HolderIdentity == e.lock.Identity() {
		r.HolderIdentity, r.LeaseDurationSeconds = "", 1
		err = e.lock.Interface.Update(ctx, *r)
	}
	if err != nil {
		e.log.Debug("release", "err", err) // the Lease then expires by itself
	}
}

// lock is the Lease. It logs why the Lease cannot be taken or kept, once for each cause. Only the elector's
// goroutine uses it.
type lock struct {
	resourcelock.Interface
	log    *slog.Logger
	failed string // the error that was logged last
}

// Get implements resourcelock.Interface.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if apierrors.IsNotFound(err) {
		return record, raw, err // the elector creates it next
	}
	return record, raw, l.note(ctx, "read", err)
}

// Create implements resourcelock.Interface.
func (l *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(ctx, "create", l.Interface.Create(ctx, r))
}

// Update implements resourcelock.Interface.
func (l *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.note(ctx, "write", l.Interface.Update(ctx, r))
}

// note logs err, unless err was logged last, and returns it. It does not log a conflict, which means that
// another replica was faster.
func (l *lock) note(ctx context.Context, what string, err error) error {
	switch {
	case err == nil:
		l.failed = ""
	case ctx.Err() == context.Canceled, apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
	case err.Error() != l.failed:
		l.failed = err.Error()
		l.log.Warn("lease", "err", fmt.Errorf("%s Lease %s: %w", what, l.Describe(), err), "next", "the controller tries again by itself")
	}
	return err
}
