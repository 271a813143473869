package plugin

import (
	"context"
	"encoding/json"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// Canary is the attachment of the daemon's own pod. It gives way: an address that a pod needs is the pod's. It may
// outlive the daemon, so that a plugin without a daemon ends it, too.
func Canary() ipam.Attachment {
	return ipam.Attachment{ContainerID: "edgeway-canary", IfName: "eth0"}
}

// GiveWay ends the canary when a pod's ADD failed because an address was missing. It reports that another ADD may
// succeed.
func (n *Node) GiveWay(ctx context.Context, add api.Reply) bool {
	var failed struct{ Code uint }
	if json.Unmarshal(add.Output, &failed) != nil || failed.Code != codeTryAgain && failed.Code != codeInUse {
		return false
	}
	if n.ready(ctx) != nil {
		return false
	}
	if _, held, err := n.lookup(Canary()); err != nil || !held { // a canary that is being made has its lease already
		return false
	}
	if failed.Code == codeTryAgain {
		if full, err := n.Full(ctx); err != nil || full == "" {
			return false
		}
	}
	return n.Remove(ctx, Canary()) == nil
}
