package policy

import "github.com/edgeway-cni/edgeway/daemon/cluster"

// LANs returns the LANs of n, each named by its local ASN.
func (w World) LANs(n cluster.Node) []uint32 { return w.lans(n) }
