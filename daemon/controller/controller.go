// Package controller gives Nodes their pod CIDRs: one block of each family, from configured pools. It also publishes
// what nodes need of all Nodes.
//
// It is for clusters in which no other program gives pod CIDRs: kube-controller-manager runs without
// --allocate-node-cidrs, or the nodes at the edge have their own pools. It runs beside the cluster's control
// plane, in any number of replicas. A Lease says which replica works, so that the others do not do the same
// work. The package never changes a Node that has pod CIDRs, and the API server refuses such a change too.
//
// # Why two blocks never overlap
//
// A Lease cannot promise that only one replica works: a replica that stood still for a minute (a paused
// virtual machine, a long disk write) sends its next request before it looks at its clock. So every decision
// goes through one object, the ledger (ConfigMap kube-system/edgeway-controller), and nothing depends on
// which replica leads:
//
//	read ledger ──> list all Nodes ──> allocate ──> write ledger ──────────> patch Nodes
//	 (version v)    (consistent read)   (pure)      (only if it is still v)  (only UID u, only if
//	                                                                         it has no pod CIDRs)
//
// The ledger holds promises: "the Node with UID u may get block X". A Node is patched only with blocks that a
// ledger, read or written before the patch, promises to its UID. A promise leaves the ledger only when a list
// of Nodes that was read after the ledger shows that u is gone or has its pod CIDRs. Two Nodes u and w cannot
// end with blocks X and Z that overlap:
//
//   - The ledger's writes have one order. Say that X was promised before Z.
//   - If X was still promised when Z was, then the replica that promised Z saw the promise of X.
//   - If not, a list showed u gone or with pod CIDRs. If u was gone, a late patch for u finds no Node
//     with that UID, because no UID comes back. If u had pod CIDRs, these are X for ever: a late patch
//     is refused, and the replica that promised Z listed u with X after that.
//
// The order of the two reads matters: a Node that the ledger names and a later list does not show is gone. In
// the other order the Node may be new. TestTwoLeaders plays the orders in which the requests of several
// replicas can arrive.
//
// The ledger cannot see another program that gives pod CIDRs at the same time. When there is one, the
// controller reports it and stands back; see [State] and the problem otherAllocator.
//
// # NodeSlices
//
// The replica that leads also publishes the NodeSlices, which nodes read instead of Nodes; see publisher. Two replicas
// that publish at once do no harm: each write names the version that was read, and no write takes a node away from
// the slices of the index.
package controller

// Namespace and Name name the Lease and the ledger, where the replicas meet. They are not options:
// replicas that meet in two places would not know of each other.
const (
	Namespace = "kube-system"
	Name      = "edgeway-controller"
)
