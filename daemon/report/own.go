package report

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// own writes one part of an object that is this node's own: server-side apply, with a field manager of its own.
type own struct {
	node          string
	path, manager string
	dial          func() (*cluster.Connection, error)
	pace          reportPace
	wake          chan struct{} // one slot: write again
	// refused makes the problem of an answer that an operator can repair.
	refused func(err error) cluster.Problem

	mu      sync.Mutex // guards the fields below
	wanted  []byte     // the text to apply; nil: nothing
	problem *cluster.Problem
}

func newOwn(o cluster.KubernetesOptions, kind, manager string) own {
	return own{node: o.Node, path: cluster.Path(kind) + "/" + o.Node + "/status", manager: manager,
		dial: func() (*cluster.Connection, error) { return cluster.Connect(o) }, pace: defaultReportPace, wake: make(chan struct{}, 1)}
}

// want sets the text. It does not block, and only the latest text counts.
func (w *own) want(text []byte) {
	w.mu.Lock()
	same := string(text) == string(w.wanted)
	if w.wanted = text; text == nil {
		w.problem = nil
	}
	w.mu.Unlock()
	if !same {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Problems returns why the API server refuses what is written, which an operator can repair.
func (w *own) Problems() []cluster.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.problem == nil {
		return nil
	}
	return []cluster.Problem{*w.problem}
}

// Run writes until ctx ends. What should be right is written again from time to time: it may have been lost with its
// object.
func (w *own) Run(ctx context.Context) error {
	retry := w.pace.retryLeast
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
		w.mu.Lock()
		text := w.wanted
		w.mu.Unlock()
		if wait = w.pace.check; text == nil {
			continue
		}
		err := w.write(ctx, text)
		switch {
		case err == nil:
			retry = w.pace.retryLeast
		case apierrors.ReasonForError(err) != "":
			wait = w.pace.refused
		default:
			wait, retry = retry, min(2*retry, w.pace.retryMost)
		}
		select { // the least time between two writes
		case <-ctx.Done():
			return nil
		case <-time.After(min(wait, w.pace.coalesce)):
		}
	}
}

func (w *own) write(ctx context.Context, text []byte) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	c, err := w.dial()
	if err != nil {
		return err // the source reports it
	}
	defer c.Close()
	_, err = c.Apply(ctx, w.path, w.manager, text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problem = nil
	if code := apierrors.ReasonForError(err); code != "" && !apierrors.IsNotFound(err) && w.wanted != nil { // an object that is gone needs nothing
		p := w.refused(err)
		w.problem = &p
	}
	return err
}
