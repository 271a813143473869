package report

import (
	"encoding/json"
	"fmt"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const edgeNode = "EdgeNode"

// Uplinks writes status.uplinks of this node's EdgeNode. A controller that gives addresses back to a cloud reads there
// that no pod has them.
type Uplinks struct{ own }

// NewUplinks returns the writer for the node o.Node. It sends nothing before Run.
func NewUplinks(o cluster.KubernetesOptions) *Uplinks {
	u := &Uplinks{newOwn(o, edgeNode, "edgewayd-uplinks")}
	u.refused = func(err error) cluster.Problem {
		return cluster.Problem{Object: "EdgeNode/" + u.node, Reason: cluster.StatusRefused, Want: "its status.uplinks written by this node", Got: err.Error(),
			Next: "apply the roles and the CustomResourceDefinition again; pods are not affected, but no address goes back to a cloud"}
	}
	return u
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
	u.want(text)
	return nil
}
