package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// NetworkPool is a NetworkPool object: the resource, and what the API server adds.
type NetworkPool struct {
	cluster.NetworkPool
	Generation int64
	Created    time.Time
	Status     poolStatus
}

// poolStatus is the status of a NetworkPool, as the API server stores it.
type poolStatus struct {
	ObservedGeneration int64              `json:"observedGeneration"`
	Nodes              int                `json:"nodes"`
	PodCIDRs           []rangeStatus      `json:"podCIDRs"`
	Conditions         []metav1.Condition `json:"conditions"`
}

type rangeStatus struct {
	CIDR   string `json:"cidr"`
	Blocks int    `json:"blocks"`
	Used   int    `json:"used"`
}

// The reasons of the condition Ready where there is no problem.
const (
	allServed = "AllServed"
	nodesWait = "Waiting"
)

// mostBlocks is the number of blocks that the status can hold.
const mostBlocks = 1<<31 - 1

// poolPath is where an API server has the NetworkPools.
func poolPath() string { return "/" + cluster.Path("NetworkPool") }

// pools lists the NetworkPools, and returns the version of the list. A server without the
// CustomResourceDefinition has none, and no version.
func (s *server) pools(ctx context.Context) ([]NetworkPool, string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	text, err := s.client.CoreV1().RESTClient().Get().AbsPath(poolPath()).SetHeader("Accept", "application/json").DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return nil, "", nil
	case apierrors.IsForbidden(err):
		return nil, "", fmt.Errorf("list NetworkPools: %w; apply the ClusterRole edgeway-controller of this version", err)
	case err != nil:
		return nil, "", fmt.Errorf("list NetworkPools: %w", err)
	}
	return readPools(text)
}

// readPools reads a list. A pool that is not valid is an error: its nodes would seem to belong to another pool.
func readPools(text []byte) ([]NetworkPool, string, error) {
	var list struct {
		Metadata metav1.ListMeta
		Items    []struct {
			Metadata metav1.ObjectMeta
			Status   poolStatus
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, "", fmt.Errorf("list NetworkPools: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, list.Metadata.ResourceVersion, nil
	}
	w, err := cluster.ParseManifest("networkpools.json", text)
	if err != nil {
		return nil, "", fmt.Errorf("list NetworkPools: %w", err)
	}
	if len(w.Problems) > 0 {
		p := w.Problems[0]
		return nil, "", fmt.Errorf("%s: want %s, got %s; kubectl edit networkpool %s; no Node gets pod CIDRs until then", p.Object, p.Want, p.Got, strings.TrimPrefix(p.Object, "NetworkPool/"))
	}
	var out []NetworkPool
	for _, p := range w.Pools {
		for _, item := range list.Items {
			if item.Metadata.Name == p.Name {
				out = append(out, NetworkPool{p, item.Metadata.Generation, item.Metadata.CreationTimestamp.Time, item.Status})
			}
		}
	}
	return out, list.Metadata.ResourceVersion, nil
}

// report writes the status of a pool.
func (s *server) report(ctx context.Context, name string, status poolStatus) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]poolStatus{"status": status})
	if err != nil {
		return fmt.Errorf("patch NetworkPool %s: %w", name, err)
	}
	err = s.client.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath(poolPath(), name, "status").
		Param("fieldManager", FieldManager).SetHeader("Accept", "application/json").Body(patch).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch NetworkPool %s: %w", name, err)
	}
	return nil
}

// poolChanged returns true when a NetworkPool comes, goes, or has another generation than in known, and false
// when the watch ended before. A status has no generation.
func (s *server) poolChanged(ctx context.Context, version string, known map[string]int64) bool {
	stream, err := s.client.CoreV1().RESTClient().Get().AbsPath(poolPath()).SetHeader("Accept", "application/json").
		Param("watch", "true").Param("resourceVersion", version).Stream(ctx)
	if err != nil {
		return false // the next look lists
	}
	defer stream.Close()
	for d := json.NewDecoder(stream); ; {
		var event struct {
			Type   string
			Object struct{ Metadata metav1.ObjectMeta }
		}
		if err := d.Decode(&event); err != nil {
			return false
		}
		generation, there := known[event.Object.Metadata.Name]
		if event.Type == "DELETED" || event.Type == "ADDED" && !there || event.Type == "MODIFIED" && generation != event.Object.Metadata.Generation {
			return true
		}
	}
}

// allPools returns the pools that give blocks: those of the NetworkPools, by name, before those of the file.
func allPools(objects []NetworkPool, file []Pool) (out []Pool) {
	for _, o := range objects {
		p := Pool{Name: o.Name, Created: o.Created, Selector: o.Selector}
		for _, c := range o.PodCIDRs {
			p.CIDRs = append(p.CIDRs, c.CIDR)
			if c.CIDR.Addr().Is4() {
				p.Mask.IPv4 = c.NodeMaskSize
			} else {
				p.Mask.IPv6 = c.NodeMaskSize
			}
		}
		out = append(out, p)
	}
	return append(out, file...)
}

// statusOf returns the status of a pool after a look.
func statusOf(o NetworkPool, pools []Pool, nodes []Node, problems []Problem, now time.Time) poolStatus {
	s := poolStatus{ObservedGeneration: o.Generation, PodCIDRs: []rangeStatus{}}
	waiting := 0
	for _, n := range nodes {
		if memberOf(pools, n.Labels) == o.Name {
			s.Nodes++
			if !n.hasPodCIDRs() {
				waiting++
			}
		}
	}
	for _, c := range o.PodCIDRs {
		r := rangeStatus{CIDR: c.CIDR.String(), Blocks: mostBlocks}
		if bits := c.NodeMaskSize - c.CIDR.Bits(); bits < 31 {
			r.Blocks = 1 << bits
		}
		for _, n := range nodes {
			if slices.ContainsFunc(n.PodCIDRs, func(b netip.Prefix) bool { return contains(c.CIDR, b) }) {
				r.Used++
			}
		}
		s.PodCIDRs = append(s.PodCIDRs, r)
	}
	ready := metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, ObservedGeneration: o.Generation, Reason: allServed,
		Message: fmt.Sprintf("all %d nodes have pod CIDRs", s.Nodes), LastTransitionTime: metav1.NewTime(now.UTC().Truncate(time.Second))}
	if waiting > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, nodesWait, fmt.Sprintf("%d of %d nodes have no pod CIDRs yet", waiting, s.Nodes)
	}
	if i := slices.IndexFunc(problems, func(p Problem) bool { return p.pool == o.Name && o.Name != "" }); i >= 0 {
		reason := string(problems[i].Reason)
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, strings.ToUpper(reason[:1])+reason[1:], problems[i].String()
	}
	for _, was := range o.Status.Conditions {
		if was.Type == ready.Type && was.Status == ready.Status {
			ready.LastTransitionTime = was.LastTransitionTime
		}
	}
	s.Conditions = []metav1.Condition{ready}
	return s
}

// equal reports whether both say the same.
func (s poolStatus) equal(o poolStatus) bool {
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && string(a) == string(b)
}

// report writes the status of each pool whose status changed.
func (w *worker) report(ctx context.Context, objects []NetworkPool, nodes []Node, problems []Problem) (denied []Problem) {
	for _, o := range objects {
		status := statusOf(o, w.pools, nodes, problems, time.Now())
		if status.equal(o.Status) {
			continue
		}
		if err := w.objects.report(ctx, o.Name, status); err != nil && ctx.Err() == nil {
			denied = append(denied, Problem{Problem: cluster.Problem{Object: o.Ref(), Reason: statusDenied, Want: "to write its status", Got: err.Error(),
				Next: "let ClusterRole edgeway-controller patch networkpools/status; pod CIDRs are given all the same"}})
		}
	}
	return denied
}
