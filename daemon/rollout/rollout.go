// Package rollout lets a roll-out of the daemons go on where Kubernetes would stop.
//
// It owns one decision: which pod of a DaemonSet is replaced next, although nodes are offline. Package rollout never
// changes a DaemonSet, and never replaces a second pod while the first is not available again, so that two speakers of
// one LAN do not go together. Only the pod of a node that comes back may go at the same time: Kubernetes has deleted that
// outdated pod when the roll-out began, and the node's kubelet hears so when it is back.
//
// Kubernetes counts an offline node's pod as unavailable. With maxUnavailable 1 one such node stops a RollingUpdate for
// all others, for as long as the node is offline. A higher maxUnavailable, or a surge, only moves the limit, and lets
// speakers of one LAN go together while no node is offline. So Kubernetes rolls out by itself while it can, and package
// rollout deletes one outdated pod after another when only offline nodes are in the way:
//
//	n1 new, available │ n2 old, available │ n3 old, node offline      maxUnavailable 1
//	                    └ deleted: the DaemonSet creates a new pod     n3 gets its new pod when it is back
package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// settle is how long a node must stay in contact after its daemon was replaced. If the node is lost earlier, the new
// daemon is suspected, and no other is replaced. It is longer than the time after which Kubernetes notices the loss
// (node-monitor-grace-period, 50 s).
const settle = 5 * time.Minute

// State is a roll-out as the API server shows it.
type State struct {
	Current        string // the revision that all pods should have
	Nodes          int    // how many nodes should have a pod
	MaxUnavailable int
	Pods           []Pod
	Lost           map[string]time.Time // the nodes that are offline, and since when
}

// Pod is one pod of the DaemonSet.
type Pod struct {
	Name, UID, Version string // Version is the resourceVersion
	Node               string
	Revision           string
	Available          bool      // ready for the DaemonSet's minReadySeconds, and not about to be deleted
	Started            time.Time // zero: no kubelet has started it, or somebody has deleted it
}

// Next returns the pod that must be replaced now, or nil and why there is none. The reason is "" while Kubernetes goes
// on by itself.
func (s State) Next() (*Pod, string) {
	var old []Pod
	var suspect, waits string
	offline := 0
	for _, p := range s.Pods {
		since, lost := s.Lost[p.Node]
		if lost && p.Revision == s.Current && !p.Started.IsZero() && since.Before(p.Started.Add(settle)) {
			suspect = fmt.Sprintf("node %s was lost within %s after its daemon was replaced; look at the node, then roll back, or run: kubectl -n kube-system delete pod %s --wait=false", p.Node, settle, p.Name)
		}
		switch {
		case lost && !p.Available:
			offline++
		case !p.Available:
			waits = fmt.Sprintf("pod %s on node %s, which is online, is not available yet", p.Name, cmp.Or(p.Node, "(none yet)"))
		case !lost && p.Revision != s.Current:
			old = append(old, p)
		}
	}
	switch {
	case len(old) == 0, offline < max(s.MaxUnavailable, 1):
		return nil, ""
	case suspect != "" || waits != "":
		return nil, cmp.Or(suspect, waits)
	case len(s.Pods) != s.Nodes:
		return nil, fmt.Sprintf("%d nodes should have a pod each, and %d pods are there", s.Nodes, len(s.Pods))
	}
	next := slices.MinFunc(old, func(a, b Pod) int { return cmp.Compare(a.Node, b.Node) })
	return &next, ""
}
