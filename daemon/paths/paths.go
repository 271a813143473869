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
//	p := paths.New(paths.Options{Canary: canary, Cluster: cluster, ...})
//	go p.Run(ctx)                // a round of questions each Options.Every
//	p.Report().Problems          // Node/node-3: podCIDRNotRouted
package paths

import (
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Node is what must be known of a node to ask it.
type Node struct {
	Name   string
	Group  string         // nodes of one group are reached in the same way: LANs, NetworkPool and mode
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
