// Package routes makes a network namespace look like a [State]: links, addresses, routes,
// policy rules, neighbours, forwarding entries, sysctls, and the nftables tables edgeway, edgeway-vxlan,
// edgeway-source and edgeway-uplink, and the rules of each [Passage]. It owns rtnetlink, nftables and connection tracking: no other package of this module
// uses them.
//
// There is one verb, [Kernel.Sync]. It asks the kernel what exists, computes [Diff], and applies the
// difference. When everything is right it writes nothing. Sync remembers nothing: a route is ours by
// its protocol number, a link by its name (see [Scope]).
//
// The package never changes an object outside the scope, never deletes an object that the scope does not
// own, never runs another program, and knows nothing of Kubernetes, leases or BGP.
//
// [Kernel.FlushConntrack] stands beside Sync because nobody desires tracked connections: the kernel
// makes them, and there is nothing to compare. [Kernel.Listen] and [Kernel.Answering] make the kernel probe neighbours,
// and change no other state. [Kernel.Judge] reads the rules of all firewalls, and says what they do to a packet.
//
//	k, err := routes.Open()          // the calling thread's network namespace
//	changes, err := k.Sync(ctx, routes.Scope{Protocol: routes.ProtoNode}, routes.State{
//		Routes: []routes.Route{{Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: routes.ProtoNode}},
//	})
//	fmt.Println(changes) // [add route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119]
package routes

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// Protocol is a route's origin (rtm_protocol, linux/rtnetlink.h). It says who owns the route.
type Protocol uint8

const (
	// ProtoPod marks the host's routes to the pods of this node, and a pod's own routes.
	ProtoPod Protocol = 101
	// ProtoNode marks routes to the pod CIDRs of other nodes.
	ProtoNode Protocol = 119
	// ProtoLearned marks routes that the switches announce.
	ProtoLearned Protocol = 121
)

// ErrForeign is wrapped by the error of a Change that was not made because another owner's object holds
// its place.
var ErrForeign = errors.New("held by another owner")

// Link is a network device. Links are named, never numbered: an index is looked up at the last
// moment and never stored.
type Link struct {
	Name  string
	Kind  string // "veth", "vxlan", ...; "" if only the link's attributes matter
	MAC   string // lower case, colons; "" leaves it to the kernel
	MTU   int    // bytes; 0 leaves it to the kernel
	Up    bool
	Alias string // shown by ip link beside the name, at most 255 bytes; "" leaves it as it is
	Peer  *Peer  // the other end of a veth that Sync creates
	VXLAN *VXLAN // only for a vxlan
	VLAN  *VLAN  // only for a vlan
}

// Peer is the other end of a veth pair. The same RTM_NEWLINK creates it inside another network
// namespace (moving a device there afterwards takes tens of milliseconds).
type Peer struct {
	Name  string
	MAC   string
	MTU   int
	Netns *os.File // open /proc/.../ns/net; nil: the same namespace
}

// VXLAN is the part of a link that only a vxlan has (RFC 7348).
type VXLAN struct {
	VNI   uint32
	Port  uint16     // UDP
	Local netip.Addr // underlay source address
	// Learning: the link learns source addresses. Sync switches this off: the entries are ours.
	Learning bool
	// Other has the attributes that another maker of the link set, in the words of ip-link(8): "ttl 1 proxy". Sync sets
	// none of them, and makes such a link again. Observed only.
	Other string
}

// VLAN is the part of a link that only a vlan has (IEEE 802.1Q): its frames carry the tag ID on the link Parent.
type VLAN struct {
	Parent string // "": in another network namespace
	ID     uint16 // 1 to 4094
	// Foreign: Sync did not make the link. Sync puts its own into a group of links when it creates them. Observed only.
	Foreign bool
}

// Addr is an address on a link. IPv6 addresses are added without duplicate address detection.
type Addr struct {
	Link   string
	Prefix netip.Prefix
	// HostScope: the machine answers for the address, but does not choose it as a source: it has scope host, or, in
	// IPv6, it is deprecated (RFC 4862, section 5.5.4), and chosen only where there is no other.
	HostScope bool `json:",omitempty"`
}

// Route is a route, of the main table where Table does not say otherwise.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // zero: on the link itself
	Link     string
	Src      netip.Addr // preferred source; zero: the kernel chooses
	Protocol Protocol
	Metric   int  // 0: the kernel's default (0 for IPv4, 1024 for IPv6)
	Onlink   bool // Via is reachable on Link although no address says so
	Table    int  // 0: main
	MTU      int
	AdvMSS   int
	// Type is "" for unicast; else blackhole, unreachable or prohibit.
	Type string
	// Multipath: the route has more next hops than Via. Observed only.
	Multipath bool
	// NextHopID is the number of the next hop object that the route names (ip nexthop), if any.
	// Observed only; Diff ignores it.
	NextHopID uint32
	// Leaf: the destination is not the next hop of other routes, so that an IPv4 route has scope global. In scope
	// link the kernel would choose an address of HostScope of the same link as the source of packets, where
	// net.ipv4.conf.*.route_localnet is 1 (net/ipv4/devinet.c: inet_select_addr). Diff ignores it.
	Leaf bool
}

// Neigh is an ARP or neighbour-discovery entry.
type Neigh struct {
	Link string
	IP   netip.Addr
	MAC  string
	// Learns: ARP and neighbour discovery may correct the entry; otherwise it is permanent. The kernel uses
	// the entry at once and keeps it even if unused. While the entry is in use, the kernel checks it, and
	// keeps using it until an answer comes.
	Learns bool
}

// FDB is a permanent forwarding entry of a VXLAN link: frames to MAC go to the VTEP at Dst.
type FDB struct {
	Link string
	MAC  string
	Dst  netip.Addr
	// VNI and Port are those with which the VTEP receives; 0: those of the link.
	VNI  uint32
	Port uint16
	// Temporary: the entry is not permanent, and may age out. Sync makes no such entries. Observed only.
	Temporary bool
}

// Sysctl is one kernel setting of the namespace. Its key is a path below /proc/sys: net/ipv4/ip_forward. Only
// SoftChecksum has a key that is not there.
type Sysctl struct {
	Key   string
	Value string
}

// The names of the overlay's links. A node with both families receives IPv4 on the first and IPv6 on the second;
// a node with one family has the first only.
const (
	VXLANLink  = "edgeway.1"
	VXLANLink6 = "edgeway.6"
)

// NAT is the content of the node's nftables table "edgeway": packets from Sources to addresses outside
// Exclude take the node's address. So do packets from Sources to Nodes, also where Exclude has them, and packets
// from other addresses that leave by a link of the overlay.
type NAT struct {
	Sources []netip.Prefix
	Exclude []netip.Prefix
	Nodes   []netip.Prefix
	// Off: packets from Sources take the node's address towards Nodes alone. The connections that were translated
	// before stay so, which they would not without the table. The pods' masquerade (Masq) is not affected, as it
	// would be by an Exclude of everything.
	Off bool
	// Damaged: the NAT's chain or sets differ from those that Sync makes. Observed only.
	Damaged bool
	// Whole: nobody else has anything in the table. Observed only.
	Whole bool
}

// Masq is the masquerade of one address, in the same nftables table. Packets from Addr take the node's
// address, except to Networks, to other masqueraded addresses, and to a NAT's prefixes.
type Masq struct {
	Addr netip.Addr
	// Networks of the address's family keep Addr: they reach the pod under the pod's address. If a
	// desired Masq has nil, any Networks are right.
	Networks []netip.Prefix
}

// State says how our part of a namespace should look.
type State struct {
	Links       []Link
	Addrs       []Addr
	Routes      []Route
	Rules       []Rule
	Neighs      []Neigh
	Proxies     []ProxyNeigh
	FDB         []FDB
	Sysctls     []Sysctl
	NAT         *NAT // nil: no node-level source NAT
	Masq        []Masq
	Senders     *Senders     // nil: any machine may send to the VXLAN port
	SourceCheck *SourceCheck // nil: a pod may send from any address
	Symmetric   *Symmetric   // nil: packets are not marked
	Announced   *Announced   // nil: no address of a pod is announced
	Passages    []Passage    // one for each chain
}

// Scope says which objects are ours, and so what Sync may delete if the State does not name it.
// A zero Scope deletes nothing.
type Scope struct {
	// Protocol: every route of the main table with this protocol is ours.
	Protocol Protocol
	// Links of these names are ours, with all forwarding entries and global addresses on them, and all
	// neighbours that the kernel did not find by itself.
	Links []string
	// NAT: the source NAT in the nftables table "edgeway" is ours.
	NAT bool
	// Senders: the nftables table "edgeway-vxlan" is ours.
	Senders bool
	// SourceCheck: the nftables table "edgeway-source" is ours.
	SourceCheck bool
	// Rules: our policy rules, proxy neighbours, VLAN links and the nftables table "edgeway-uplink" are ours, and the routes
	// of Protocol in the tables that UplinkTable and VLAN.Table can return.
	Rules bool
	// Passages: the rules in other programs' chains whose comment is ours are ours. nil: Sync adds no Passage.
	Passages Firewalls
	// Masq: the masquerade of addresses in these prefixes is ours.
	Masq []netip.Prefix
}

// everyMasq reports whether the masquerade of every address of both families is ours.
func (s Scope) everyMasq() bool {
	return slices.Contains(s.Masq, Everywhere()[0]) && slices.Contains(s.Masq, Everywhere()[1])
}

// Everywhere returns the prefixes of all addresses: 0.0.0.0/0 and ::/0.
func Everywhere() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// Op is the operation of a Change.
type Op string

// The operations of a Change.
const (
	Add     Op = "add"
	Replace Op = "replace"
	Delete  Op = "delete"
)

// Change is one difference between the observed and the desired state, and the result of applying it.
type Change struct {
	Op     Op
	Object any // Link, Addr, Route, Rule, Neigh, ProxyNeigh, FDB, Sysctl, NAT, Masq, Senders, SourceCheck, Symmetric, Announced or Passage
	Was    any // only for a Replace: the observed object
	Err    error
	Took   time.Duration
	shared bool // other objects stand in the place of a Replace
}

// Host is the part of the machine that a policy needs and does not own.
type Host struct {
	Addrs  []Addr  `json:"addrs"`  // global addresses with their on-link prefix, also of links that are down
	Routes []Route `json:"routes"` // the main table without our own routes
	Links  []Link  `json:"links"`
	// Ruled has the results of Kernel.Ruled for the addresses that the policy asks about.
	Ruled map[netip.Addr]Way `json:"ruled,omitempty"`
	// Foreign has the result of Kernel.ForeignRules, where the node has uplinks.
	Foreign []ForeignRule `json:"foreign,omitempty"`
	// Unforwarded has the links on which IPv4 forwarding is off although net/ipv4/ip_forward is 1: the
	// kernel drops what arrives there for others (net/ipv4/route.c: ip_route_input_slow). IPv6 has no such
	// links: the kernel looks at net/ipv6/conf/all/forwarding only (net/ipv6/ip6_output.c: ip6_forward), and
	// the link's setting decides whether the host acts as a router towards its neighbours.
	Unforwarded []string `json:"unforwarded,omitempty"`
	// Kernel is the release of the kernel, as uname -r prints it.
	Kernel string `json:"kernel,omitempty"`
	// Strict has the links with a strict rp_filter: the kernel drops an IPv4 packet that did not arrive by the link
	// of the route to its source. IPv6 has no such setting.
	Strict []string `json:"strict,omitempty"`
}

// LinkAddr formats a hardware address as Link.MAC wants it.
func LinkAddr(a net.HardwareAddr) string { return a.String() }
