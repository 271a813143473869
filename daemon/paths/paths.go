// Package paths proves who reaches whom: it asks the canaries of other nodes from this node's canary, over the way that
// pods' packets take, and judges the answers.
//
// It owns the questions and answers (UDP), the choice of the nodes to ask, and the judgement. [Choose] and [Judge] are
// pure. It never changes a route, an advertisement or a pod, and it never decides how packets should travel: package
// policy does.
//
//	node-1                                              node-3
//	canary 10.10.1.254 ──veth── node ── LAN, switch, tunnel ── node ──veth── canary 10.10.3.254
//	        │  small, and full-size with DF (RFC 791)   ──────>  answers as long as the question
//	host 10.0.10.11 ────────────────── LAN, switch ──────────> host 10.0.10.13: "I am node-3, in mode underlay;
//	        small                                                my canary heard yours"
//
// # Uplinks
//
// The canary of a node with uplinks has an address that follows from no pod CIDR, and no other node knows which. Each
// node says it, and that counts for as little as it can:
//
//   - An address that a node says in the answer to a question is asked, and not trusted for more: it must be in no pod
//     CIDR and no address of any node, it gets small questions only until one is answered, and none while neither the node
//     nor the address answers. So a node that lies leads one packet a round to a stranger, for each that it gets itself.
//   - Such a canary's questions are answered when they have the pass that the answer to its node's own address had. Who
//     writes another's address into its packets never sees a pass. An answer is as long as its question, as all are.
//   - An earlier version gives no pass and is not asked, and it does not read Answer.Uplink: it judges nothing.
//
// A path through a router whose routes are not edgeway's, or through the tunnel's node, may never have been meant to
// work. It counts from its first answer (see hope).
//
//	p := paths.New(paths.Options{Canary: canary, Cluster: cluster, ...})
//	go p.Run(ctx)                // a round of questions each Options.Every
//	p.Report().Problems          // Node/node-3: podCIDRNotRouted
package paths

import (
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Node is what must be known of a node to ask it. One without pod CIDRs has a canary if it has uplinks, which it alone
// knows.
type Node struct {
	Name   string
	Group  string         // nodes of one group are reached in the same way: LANs, NetworkPool, mode, and whether by pod CIDRs
	Hosts  []netip.Addr   // the node's own addresses
	CIDRs  []netip.Prefix // its pod CIDRs
	Canary []netip.Addr   // the addresses that its canary asks for
	Terms  Terms          // what this node takes its terms to be
	Ways   []Way          // how this node reaches each of CIDRs; unknown for this node itself
}

// Terms are what two nodes must agree on.
type Terms struct {
	Mode string `json:"mode"`
	VNI  uint32 `json:"vni"`
	Port uint16 `json:"port"` // UDP, of VXLAN
}

// Way is how packets of this node's pods leave for a pod CIDR.
type Way struct {
	Tunnel bool
	Via    netip.Addr // invalid: the host's own routes decide
}

// Cluster is everything that a Prober must know.
type Cluster struct {
	Self   Node
	Nodes  []Node                  // with Self, sorted by name
	Choice Choice                  // of Nodes, for Self
	Known  map[cluster.Reason]bool // the reasons of this node's problems that its own tables and links show
	Key    Key
	// NoKey is the problem of a key that is missing where there must be one; zero: none. With it, nobody is asked and
	// nobody is answered.
	NoKey cluster.Problem
	// LAN are the subnets of this node's own addresses.
	LAN []netip.Prefix
	// Near are the subnets in which this node's pods reach uplinks of nodes in LAN without a router.
	Near []netip.Prefix
	// Hides reports whether this node gives pods' packets to an address its own address; nil: to none.
	Hides func(netip.Addr) bool
	// Link names the uplink that an address of this node's canary belongs to.
	Link func(netip.Addr) string
}

// family is IPv4 or IPv6.
type family int

const (
	ipv4 family = iota
	ipv6
	families
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// headers are the bytes of the IP and UDP headers.
func (f family) headers() int { return [...]int{20 + 8, 40 + 8}[f] }

func (f family) of(addrs []netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return familyOf(a) == f })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}
