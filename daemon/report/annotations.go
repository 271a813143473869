package report

import (
	"encoding/json"
	"fmt"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const node = "Node"

// Annotations writes annotations of this node's Node, by which other programs know where the node receives packets. It
// asks the API server for nothing while the Node has them: so they may also be written by hand.
//
// It writes them as part of the Node's status (PATCH nodes/status), as flannel does: the right to do that allows less
// than the right to patch Nodes, which includes taints and pod CIDRs.
//
// It takes no annotation away: flannel goes on sending to a node that has no annotations any more (pkg/subnet/kube:
// handleUpdateLeaseEvent).
type Annotations struct{ own }

// NewAnnotations returns the writer for the node o.Node. It sends nothing before Run.
func NewAnnotations(o cluster.KubernetesOptions) *Annotations {
	a := &Annotations{newOwn(o, node, "edgewayd-annotations")}
	a.refused = func(err error) cluster.Problem {
		return cluster.Problem{Object: "Node/" + a.node, Reason: cluster.AnnotationRefused, Want: "flannel's annotations written by this node", Got: err.Error(),
			Next: "kubectl apply -k deploy/kubernetes/rbac/flannel (Helm: flannel.enabled=true), or write them: docs/network-pools.md; nodes of flannel send nothing to this node's pods until then"}
	}
	return a
}

// Sync sets the annotations, of which the Node may have some already. It does not block, and only the latest call counts.
func (a *Annotations) Sync(want, have map[string]string) error {
	missing := false
	for key, value := range want {
		missing = missing || have[key] != value
	}
	if !missing {
		a.want(nil)
		return nil
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": cluster.APIVersion(node), "kind": node, "metadata": map[string]any{"name": a.node, "annotations": want},
	})
	if err != nil {
		return fmt.Errorf("annotations of Node/%s: %w", a.node, err)
	}
	a.want(text)
	return nil
}
