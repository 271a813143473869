// Package uplinks gives the nodes that are ENS or ECS instances the addresses of their secondary network interfaces. It
// copies what the cloud's list shows into the EdgeNode of each node, and has the cloud assign addresses, and take back
// those that a node has confirmed not to use. An instance of ECS also gets interfaces, while it runs. The package never
// speaks to a node, and no node speaks to the cloud.
//
// # Why no address is taken from a pod
//
// The calls of ENS are not idempotent, their answers get lost, and its lists are up to a minute old. So no answer of
// a call that changes something is believed. After each call the controller lists, and the spec of the EdgeNode
// follows the list:
//
//	list ──> adopt what is new ──> withdraw (token) ─ ─ ─> the node confirms (token) ──> unassign ──> list ...
//	         in the spec           in the spec             in the status                 the cloud    until two
//	                                                                                                  lists lack it
//
// An address is unassigned only if the spec withdraws it, and the status of a node that has the interface confirms it with
// the same token: the node has then written to its disk that it will not lease the address. The token says whether the
// address is spare or lost, so a restarted controller knows it too. It must be a token of this process: others are replaced,
// and the node confirms again. A controller that was restarted, or whose API server got an old etcd back, cannot tell an old confirmation from
// a new one. A list that lacks an address proves nothing; lists that lack it for
// a minute prove that it is gone. All this is decided by decide, which is pure; TestHistories plays random histories.
package uplinks
