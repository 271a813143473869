package report

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const node = "Node"

// Annotations writes annotations of this node's Node, by which other programs know where the node receives packets. It
// asks the API server for nothing while the Node lacks none: so they may also be written by hand.
//
// It writes them as part of the Node's status (PATCH nodes/status), as flannel does: the right to do that allows less
// than the right to patch Nodes, which includes taints and pod CIDRs. It is a server-side apply with a field manager of its
// own.
//
// It takes no annotation away: flannel goes on sending to a node that has no annotations any more (pkg/subnet/kube:
// handleUpdateLeaseEvent).
type Annotations struct {
	node string
	dial func() (*cluster.Connection, error)
	pace reportPace
	wake chan struct{} // one slot: write again

	mu      sync.Mutex // guards the fields below
	wanted  []byte     // the text to apply; nil: nothing
	problem *cluster.Problem
}

// NewAnnotations returns the writer for the node o.Node. It sends nothing before Run.
func NewAnnotations(o cluster.KubernetesOptions) *Annotations {
	return newAnnotations(o.Node, func() (*cluster.Connection, error) { return cluster.Connect(o) }, defaultReportPace)
}

func newAnnotations(node string, dial func() (*cluster.Connection, error), p reportPace) *Annotations {
	return &Annotations{node: node, dial: dial, pace: p, wake: make(chan struct{}, 1)}
}

// Sync sets the annotations that the Node lacks. It does not block, and only the latest call counts.
func (a *Annotations) Sync(lacks map[string]string) error {
	if len(lacks) == 0 {
		a.want(nil)
		return nil
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": cluster.APIVersion(node), "kind": node, "metadata": map[string]any{"name": a.node, "annotations": lacks},
	})
	if err != nil {
		return fmt.Errorf("annotations of Node/%s: %w", a.node, err)
	}
	a.want(text)
	return nil
}

func (a *Annotations) want(text []byte) {
	a.mu.Lock()
	same := string(text) == string(a.wanted)
	if a.wanted = text; text == nil {
		a.problem = nil
	}
	a.mu.Unlock()
	if !same {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// Problems returns why the API server refuses what is written, which an operator can repair.
func (a *Annotations) Problems() []cluster.Problem {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem == nil {
		return nil
	}
	return []cluster.Problem{*a.problem}
}

// Run writes until ctx ends. What should be right is written again from time to time: it may have been lost with its
// object.
func (a *Annotations) Run(ctx context.Context) error {
	retry := a.pace.retryLeast
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
		a.mu.Lock()
		text := a.wanted
		a.mu.Unlock()
		if wait = a.pace.check; text == nil {
			continue
		}
		err := a.write(ctx, text)
		switch {
		case err == nil:
			retry = a.pace.retryLeast
		case away(err):
			wait, retry = retry, min(2*retry, a.pace.retryMost)
		default:
			wait = a.pace.refused
		}
		select { // the least time between two writes
		case <-ctx.Done():
			return nil
		case <-time.After(min(wait, a.pace.coalesce)):
		}
	}
}

// write sends the text. A fault of the API server leaves the problem as it is: the source reports the fault.
func (a *Annotations) write(ctx context.Context, text []byte) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Apply(ctx, cluster.Path(node)+"/"+a.node+"/status", "edgewayd-annotations", text)
	if away(err) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problem = nil
	if err != nil && !answered(err, http.StatusNotFound) && a.wanted != nil { // a Node that is gone needs nothing
		a.problem = &cluster.Problem{Object: "Node/" + a.node, Reason: cluster.AnnotationRefused, Want: "flannel's annotations written by this node", Got: err.Error(),
			Next: "kubectl apply -k deploy/kubernetes/rbac/flannel (Helm: flannel.enabled=true), or write them: docs/network-pools.md; nodes of flannel send nothing to this node's pods until then"}
	}
	return err
}
