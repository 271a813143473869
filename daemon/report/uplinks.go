package report

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const edgeNode = "EdgeNode"

// Uplinks writes status.uplinks of this node's EdgeNode: server-side apply, with a field manager of its own. A
// controller that gives addresses back to a cloud reads there that no pod has them.
type Uplinks struct {
	node string
	dial func() (*cluster.Connection, error)
	pace reportPace
	wake chan struct{} // one slot: write again

	mu      sync.Mutex // guards the fields below
	wanted  []byte     // the text to apply; nil: nothing yet
	problem *cluster.Problem
}

// NewUplinks returns the writer for the node o.Node. It sends nothing before Run.
func NewUplinks(o cluster.KubernetesOptions) *Uplinks {
	return &Uplinks{node: o.Node, dial: func() (*cluster.Connection, error) { return cluster.Connect(o) }, pace: defaultReportPace, wake: make(chan struct{}, 1)}
}

// Sync sets the status. It does not block, and only the latest call counts.
func (u *Uplinks) Sync(s cluster.UplinksStatus) error {
	text, err := json.Marshal(map[string]any{
		"apiVersion": cluster.APIVersion(edgeNode), "kind": edgeNode, "metadata": map[string]string{"name": u.node},
		"status": cluster.EdgeNodeStatus{Uplinks: &s},
	})
	if err != nil {
		return fmt.Errorf("status of EdgeNode/%s: %w", u.node, err)
	}
	u.mu.Lock()
	same := string(text) == string(u.wanted)
	u.wanted = text
	u.mu.Unlock()
	if !same {
		select {
		case u.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// Problems returns why the API server refuses the status, which an operator can repair.
func (u *Uplinks) Problems() []cluster.Problem {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.problem == nil {
		return nil
	}
	return []cluster.Problem{*u.problem}
}

// Run writes until ctx ends. A status that should be right is written again from time to time: it may have been lost
// with its object.
func (u *Uplinks) Run(ctx context.Context) error {
	retry := u.pace.retryLeast
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-u.wake:
		case <-timer.C:
		}
		timer.Stop()
		err := u.write(ctx)
		switch {
		case err == nil:
			wait, retry = u.pace.check, u.pace.retryLeast
		case apierrors.ReasonForError(err) != "":
			wait = u.pace.refused
		default:
			wait, retry = retry, min(2*retry, u.pace.retryMost)
		}
		select { // the least time between two writes
		case <-ctx.Done():
			return nil
		case <-time.After(min(wait, u.pace.coalesce)):
		}
	}
}

func (u *Uplinks) write(ctx context.Context) error {
	u.mu.Lock()
	text := u.wanted
	u.mu.Unlock()
	if text == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	c, err := u.dial()
	if err != nil {
		return err // the source reports it
	}
	defer c.Close()
	_, err = c.Apply(ctx, cluster.Path(edgeNode)+"/"+u.node+"/status", "edgewayd-uplinks", text)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.problem = nil
	if code := apierrors.ReasonForError(err); code != "" && !apierrors.IsNotFound(err) { // an EdgeNode that is gone has no status
		u.problem = &cluster.Problem{Object: "EdgeNode/" + u.node, Reason: cluster.StatusRefused, Want: "its status.uplinks written by this node", Got: err.Error(),
			Next: "apply the roles and the CustomResourceDefinition again; pods are not affected, but no address goes back to a cloud"}
	}
	return err
}
