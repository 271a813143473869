package controller

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	leasesPath = "/apis/coordination.k8s.io/v1/namespaces/" + Namespace + "/leases"
	leasePath  = leasesPath + "/" + Name
)

// election is for which replica works. It spares work and no more: that several replicas believe
// at once that they lead is taken care of by the ledger.
//
// Its Lease is one as Kubernetes' own programs keep it, and is read as they read it: never by the
// clock of another machine. A Lease is over when it has not changed for its duration by our own
// clock.
//
//	              not ours, changes                 not renewed for times.renew,
//	                 ┌─────┐                        or somebody else has it
//	                 v     │    free, or over      ┌──────────────────────────┐
//	start ──────> standing by ────────────────> leading ──────> waiting for work to end
//	                 ^                                                        │
//	                 └────────────────────────────────────────────────────────┘
type election struct {
	client   *client
	identity string
	times    times
	log      *slog.Logger

	seen   leaseObject // as it was read last
	at     time.Time   // when it was first seen like this
	failed string      // the error that was logged last
	leader string      // who was logged last
}

type leaseObject struct {
	stored
	Spec leaseSpec `json:"spec"`
}

type leaseSpec struct {
	HolderIdentity       string `json:"holderIdentity"`
	LeaseDurationSeconds int    `json:"leaseDurationSeconds,omitempty"`
	AcquireTime          string `json:"acquireTime,omitempty"`
	RenewTime            string `json:"renewTime,omitempty"`
	LeaseTransitions     int    `json:"leaseTransitions"`
}

// run calls work whenever this replica holds the Lease, one call after the other, until ctx ends.
func (e *election) run(ctx context.Context, work func(context.Context)) {
	for ctx.Err() == nil {
		if began := time.Now(); e.hold(ctx) {
			e.lead(ctx, began, work)
			continue
		}
		// Replicas that began at one moment do not ask at one moment for ever.
		pause(ctx, e.times.retry+rand.N(e.times.retry/4+1))
	}
}

// lead has work done for as long as the Lease is renewed; held is when it was had.
func (e *election) lead(ctx context.Context, held time.Time, work func(context.Context)) {
	e.log.Info("leading", "identity", e.identity)
	e.leader = e.identity
	working, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		work(working)
	}()
	for {
		pause(ctx, e.times.retry)
		began := time.Now()
		if ctx.Err() != nil {
			break
		}
		if e.hold(ctx) {
			held = began
		} else if time.Since(held) > e.times.renew || e.seen.Spec.HolderIdentity != e.identity {
			e.log.Warn("leadership lost", "next", "it is stood for again by itself; another replica can lead meanwhile")
			break
		}
	}
	cancel()
	<-done
	if ctx.Err() != nil {
		e.release()
	}
}

// hold takes or renews the Lease, and reports whether this replica has it now.
func (e *election) hold(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, e.times.renew/2) // so that a renewal can be tried twice
	defer cancel()
	var now leaseObject
	switch err := e.client.do(ctx, request{method: http.MethodGet, path: leasePath}, &now); {
	case codeOf(err) == http.StatusNotFound:
		now = leaseObject{}
	case err != nil:
		return e.fail(ctx, "read", err)
	}
	if now.version() != e.seen.version() || e.at.IsZero() {
		e.seen, e.at = now, time.Now()
	}
	holder := now.Spec.HolderIdentity
	over := time.Duration(now.Spec.LeaseDurationSeconds) * time.Second
	if holder != "" && holder != e.identity && time.Since(e.at) < over {
		if e.leader != holder {
			e.leader = holder
			e.log.Info("standing by", "leader", holder)
		}
		return e.fail(ctx, "", nil)
	}
	return e.write(ctx, now)
}

// write writes the Lease as ours over the version that was read.
func (e *election) write(ctx context.Context, was leaseObject) bool {
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00") // a MicroTime
	next := was
	if was.Spec.HolderIdentity != e.identity {
		next.Spec.AcquireTime = now
		next.Spec.LeaseTransitions++
	}
	next.Spec.HolderIdentity, next.Spec.RenewTime = e.identity, now
	next.Spec.LeaseDurationSeconds = int(e.times.lease / time.Second)
	r := request{method: http.MethodPut, path: leasePath, query: manager, body: &next}
	if was.version() == "" {
		next.stored, next.Spec.LeaseTransitions = newStored("coordination.k8s.io/v1", "Lease"), 0
		r.method, r.path = http.MethodPost, leasesPath
	}
	var written leaseObject
	if err := e.client.do(ctx, r, &written); err != nil {
		if codeOf(err) == http.StatusConflict { // another replica was faster
			err = nil
		}
		return e.fail(ctx, "write", err)
	}
	e.seen, e.at = written, time.Now()
	e.fail(ctx, "", nil)
	return true
}

// release gives the Lease up, so that another replica need not wait for its end. One that somebody
// else has by now is left alone.
func (e *election) release() {
	if e.seen.Spec.HolderIdentity != e.identity {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.times.renew/2)
	defer cancel()
	next := e.seen
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = "", 1
	if err := e.client.do(ctx, request{method: http.MethodPut, path: leasePath, query: manager, body: &next}, nil); err != nil {
		e.log.Debug("release", "err", err) // then it ends by itself
	}
}

// fail logs why the Lease cannot be had or kept, once for each cause. It returns false.
func (e *election) fail(ctx context.Context, what string, err error) bool {
	switch {
	case err == nil:
		e.failed = ""
	case context.Cause(ctx) == context.Canceled:
	case err.Error() != e.failed:
		e.failed = err.Error()
		e.log.Warn("lease", "err", fmt.Errorf("%s Lease %s/%s: %w", what, Namespace, Name, err), "next", "it is tried again by itself")
	}
	return false
}
