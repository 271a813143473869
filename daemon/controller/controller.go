// Package controller gives Nodes their pod CIDRs: one block of each family, from configured pools.
//
// It is for clusters in which nobody else does it: kube-controller-manager runs without
// --allocate-node-cidrs, or the nodes at the edge have pools of their own. It runs beside the
// cluster's control plane, in as many replicas as wanted; a Lease says which of them works, so
// that the others do not do the same work. A Node that has pod CIDRs is never changed: the API
// server refuses it, and so does this package.
//
// # Why two blocks never overlap
//
// A Lease cannot promise that only one replica works: a replica that stood still for a minute
// (a paused virtual machine, a long write of a disk) sends its next request before it looks at
// its clock. So every decision goes through one object, the ledger (ConfigMap
// kube-system/edgeway-controller), and nothing depends on who leads:
//
//	read ledger ──> list all Nodes ──> allocate ──> write ledger ──────────> patch Nodes
//	 (version v)    (consistent read)   (pure)      (only if it is still v)  (only UID u, only if
//	                                                                         it has no pod CIDRs)
//
// The ledger holds promises: "the Node with UID u may get block X". A Node is patched only with
// what a ledger that was read or written before promises to its UID. A promise leaves the ledger
// only when a list of Nodes that was read after it shows that u is gone or has its pod CIDRs.
// Two Nodes u and w cannot end with blocks X and Z that overlap:
//
//   - The writes of the ledger are in one order. Say that X was promised before Z.
//   - If X was still promised when Z was, then whoever promised Z saw that.
//   - If not, a list showed u gone: then u is no Node any more, and a late patch for u finds no
//     Node with that UID, as none comes back. Or a list showed u with pod CIDRs: then these are X
//     for ever, a late patch is refused, and whoever promised Z listed u with X after that.
//
// The order of the two reads matters: a Node that a ledger names and a later list does not show
// is gone; read the other way round it may be new. TestTwoLeaders plays the orders in which the
// requests of several replicas can arrive.
//
// What this cannot see is another program that gives pod CIDRs at the same time. When one does,
// the controller says so and stands back; see [State] and the problem otherAllocator.
package controller

// Where the replicas meet: the Lease and the ledger have this name, in this namespace. It is no
// option: replicas that meet in two places would know nothing of each other.
const (
	Namespace = "kube-system"
	Name      = "edgeway-controller"
)
