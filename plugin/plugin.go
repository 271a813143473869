// Package plugin is the CNI verbs as a library: one attachment on this node. The plugin's
// executable runs them itself when no daemon answers; the daemon runs the same ones for it.
//
//	node := plugin.Node{Store: store, BootID: boot}
//	out := node.Do(ctx, plugin.Call{CNI: req, Netns: fd})
//	os.Stdout.Write(out.Stdout)
package plugin

import (
	"context"
	"os"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// Node is where attachments are made: one store, one host network namespace (the process's).
type Node struct {
	Store *ipam.Store
}

// Call is one CNI invocation.
type Call struct {
	api.CNI
	NetnsFile *os.File // open network namespace; nil when the runtime gave none
}

// Do runs one verb and returns what belongs on standard output. It never writes anywhere itself.
func (n *Node) Do(ctx context.Context, call Call) api.Reply { panic("not yet") }

// Sweep removes what crashes left behind: leases without link and links without lease. It must
// not run beside other verbs.
func (n *Node) Sweep(ctx context.Context) ([]string, error) { panic("not yet") }

// HostLink is the name of the host's end of the attachment's veth pair: "ew" and 11 hex digits.
func HostLink(a ipam.Attachment) string { panic("not yet") }
