package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	namespace = "kube-system"
	every     = 15 * time.Second
	// share is the part of the time in which the API server is asked while a roll-out stands still: the pods and Nodes
	// of 5,000 nodes are 120 MB.
	share = 20
	page  = "500" // objects of one answer
	// actWithin bounds the time from the last read to the deletion: longer than two requests over a slow line.
	actWithin = 10 * time.Second
)

// Options of Run.
type Options struct {
	Server     cluster.KubernetesOptions
	DaemonSets []string // in kube-system; one that does not exist is ignored
	Every      time.Duration
	Log        *slog.Logger
}

// Run lets the roll-outs of the DaemonSets go on until ctx ends.
func Run(ctx context.Context, o Options) error {
	if o.Every == 0 {
		o.Every = every
	}
	r := &roller{Options: o, said: map[string]string{}}
	defer r.close()
	for {
		begin := time.Now()
		for _, name := range o.DaemonSets {
			why, err := r.look(ctx, name)
			if err != nil {
				why = err.Error()
			}
			r.say(ctx, name, why)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(o.Every, share*time.Since(begin))):
		}
	}
}

type roller struct {
	Options
	server *cluster.Connection // nil: none yet
	said   map[string]string   // the last reason that was logged, by DaemonSet
}

// say logs why a roll-out waits, once.
func (r *roller) say(ctx context.Context, name, why string) {
	if r.said[name] != why && ctx.Err() == nil {
		if r.said[name] = why; why != "" {
			r.Log.Info("the roll-out waits", "daemonset", name, "why", why)
		}
	}
}

func (r *roller) close() {
	if r.server != nil {
		r.server.Close()
	}
}

// connect makes a connection, and another when the token or another file has changed.
func (r *roller) connect() error {
	if r.server != nil && !r.server.Stale() {
		return nil
	}
	server, err := cluster.Connect(r.Server)
	if err != nil {
		return err
	}
	r.close()
	r.server = server
	return nil
}

// daemonSet is the part of an apps/v1 DaemonSet that is read.
type daemonSet struct {
	Metadata struct {
		UID, ResourceVersion string
		Generation           int64
	}
	Spec struct {
		Selector        struct{ MatchLabels map[string]string }
		MinReadySeconds int
		UpdateStrategy  struct {
			Type          string
			RollingUpdate struct{ MaxUnavailable intstr.IntOrString }
		}
	}
	Status struct {
		ObservedGeneration                             int64
		DesiredNumberScheduled, UpdatedNumberScheduled int
	}
}

// rollsOut reports whether a roll-out is not done: false also where an operator decides, and before Kubernetes has looked.
func (d daemonSet) rollsOut() bool {
	return d.Spec.UpdateStrategy.Type == "RollingUpdate" && d.Status.ObservedGeneration == d.Metadata.Generation &&
		d.Status.UpdatedNumberScheduled < d.Status.DesiredNumberScheduled
}

// object is the part of a ControllerRevision, a Pod or a Node that is read.
type object struct {
	Metadata struct {
		Name, UID, ResourceVersion           string
		Labels                               map[string]string
		OwnerReferences                      []struct{ UID string }
		CreationTimestamp, DeletionTimestamp time.Time
	}
	Revision int64
	Spec     struct{ NodeName string }
	Status   struct {
		StartTime  time.Time
		Conditions []struct {
			Type, Status       string
			LastTransitionTime time.Time
		}
	}
}

// condition returns a condition's status and when it took it.
func (o object) condition(name string) (string, time.Time) {
	for _, c := range o.Status.Conditions {
		if c.Type == name {
			return c.Status, c.LastTransitionTime
		}
	}
	return "", time.Time{}
}

// look reads one DaemonSet and, if its roll-out stands still, its pods. It replaces at most one pod, and returns why it
// replaces none.
func (r *roller) look(ctx context.Context, name string) (why string, err error) {
	if err := r.connect(); err != nil {
		return "", err
	}
	ds, err := r.daemonSet(ctx, name)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil || !ds.rollsOut() {
		return "", err
	}
	lost, err := r.lost(ctx)
	if err != nil {
		return "", err
	}
	// A node that comes back gives Kubernetes its budget back at once, if the node's daemon ran on: its kubelet says that
	// the pod was ready all the time. Kubernetes then replaces a pod, and writes the DaemonSet's status right after that.
	// So a decision counts only while the DaemonSet is the same. The Nodes, most of what is read, are read before.
	if ds, err = r.daemonSet(ctx, name); err != nil || !ds.rollsOut() {
		return "", err
	}
	s, err := r.state(ctx, ds)
	if err != nil {
		return "", err
	}
	s.Lost = lost
	next, why := s.Next()
	if next == nil {
		return why, nil
	}
	ctx, cancel := context.WithTimeout(ctx, actWithin)
	defer cancel()
	switch now, err := r.daemonSet(ctx, name); {
	case err != nil:
		return "", err
	case now.Metadata.ResourceVersion != ds.Metadata.ResourceVersion:
		return "the DaemonSet changed while its pods were read", nil
	}
	if err := r.server.Delete(ctx, "api/v1/namespaces/"+namespace+"/pods/"+next.Name, next.UID, next.Version); err != nil {
		return "", fmt.Errorf("delete pod %s: %w", next.Name, err)
	}
	r.Log.Info("replaced", "pod", next.Name, "node", next.Node, "daemonset", name, "because", "only offline nodes stop the roll-out", "offline", len(s.Lost))
	return "", nil
}

func (r *roller) daemonSet(ctx context.Context, name string) (ds daemonSet, err error) {
	err = r.read(ctx, "apis/apps/v1/namespaces/"+namespace+"/daemonsets/"+name, nil, &ds)
	return ds, err
}

// lost reads which nodes are offline, and since when.
func (r *roller) lost(ctx context.Context) (map[string]time.Time, error) {
	lost := map[string]time.Time{}
	err := r.list(ctx, "api/v1/nodes", nil, func(o object) {
		// Unknown: no kubelet writes it. False is what a kubelet says, such as one whose new daemon is broken.
		if ready, since := o.condition("Ready"); ready == "Unknown" {
			lost[o.Metadata.Name] = since
		}
	})
	return lost, err
}

// state reads what Next decides by, but for the nodes that are offline.
func (r *roller) state(ctx context.Context, ds daemonSet) (s State, err error) {
	var labels []string
	for key, value := range ds.Spec.Selector.MatchLabels {
		labels = append(labels, key+"="+value)
	}
	of := url.Values{"labelSelector": {strings.Join(labels, ",")}}
	s = State{Nodes: ds.Status.DesiredNumberScheduled}
	if s.MaxUnavailable, err = intstr.GetScaledValueFromIntOrPercent(&ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, s.Nodes, true); err != nil {
		return s, err
	}
	owned := func(o object) bool {
		return len(o.Metadata.OwnerReferences) > 0 && o.Metadata.OwnerReferences[0].UID == ds.Metadata.UID
	}
	const revision = "controller-revision-hash"
	newest := int64(-1)
	err = r.list(ctx, "apis/apps/v1/namespaces/"+namespace+"/controllerrevisions", of, func(o object) {
		if owned(o) && o.Revision > newest {
			newest, s.Current = o.Revision, o.Metadata.Labels[revision]
		}
	})
	if err != nil {
		return s, err
	}
	err = r.list(ctx, "api/v1/namespaces/"+namespace+"/pods", of, func(o object) {
		if !owned(o) {
			return
		}
		p := Pod{Name: o.Metadata.Name, UID: o.Metadata.UID, Version: o.Metadata.ResourceVersion, Node: o.Spec.NodeName, Revision: o.Metadata.Labels[revision]}
		ready, since := o.condition("Ready")
		minReady := time.Duration(ds.Spec.MinReadySeconds) * time.Second
		p.Available = ready == "True" && o.Metadata.DeletionTimestamp.IsZero() && time.Since(since) >= minReady
		switch p.Started = o.Status.StartTime; {
		case !o.Metadata.DeletionTimestamp.IsZero():
			p.Started = time.Time{}
		case !p.Started.IsZero() && p.Started.Before(o.Metadata.CreationTimestamp):
			p.Started = o.Metadata.CreationTimestamp // the node's clock is behind
		}
		s.Pods = append(s.Pods, p)
	})
	return s, err
}

// list calls each for every object of a list.
func (r *roller) list(ctx context.Context, path string, query url.Values, each func(object)) error {
	next := url.Values{"limit": {page}}
	for key, value := range query {
		next[key] = value
	}
	for {
		var answer struct {
			Metadata struct{ Continue string }
			Items    []object
		}
		if err := r.read(ctx, path, next, &answer); err != nil {
			return err
		}
		for _, o := range answer.Items {
			each(o)
		}
		if answer.Metadata.Continue == "" {
			return nil
		}
		next.Set("continue", answer.Metadata.Continue)
	}
}

func (r *roller) read(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := r.server.Get(ctx, path, query)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return errors.Join(json.NewDecoder(body).Decode(into), body.Close())
}
