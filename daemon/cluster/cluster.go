// Package cluster says what the cluster says: the [World], and the sources it comes from.
//
// A source is a directory of Kubernetes manifests or an API server. Both give the same World.
// An object that is not valid never enters the World: its last valid version stays, and a
// [Problem] names the object, the cause and the next step.
//
//	src := cluster.Manifests("/etc/edgeway/cluster.d")
//	last, _ := cluster.Load("/var/lib/edgeway/world.json")
//	world, err := src.World(ctx, last) // err: nothing could be read, last still counts
//
// An API server is followed by [Kubernetes]: a kind counts when all of it was read once, and while
// the server is away what was known counts. So the World only ever loses an object for which the
// server, or the directory, said that it is gone.
//
// # Objects
//
// Read are Node and Secret (v1), BGPPeer (network.openyurt.io/v1alpha1) and BGPClusterConfig
// (network.alibabacloud.com/v1beta1). Of the last two every key must be known, as a key that
// nobody reads is a typing error; Node and Secret carry more than is read here. Keys that are
// ours alone, all optional, stand in BGPPeer.spec and in BGPClusterConfig.spec.bgpSpeakers[].peers[]:
//
//	peerPort: 1179     # TCP port of the switch, 1 to 65535
//	ebgpMultihop: 3    # the switch is that many hops away at most, 2 to 255
//	ttlSecurity: true  # RFC 5082; excludes ebgpMultihop
//
// Both kinds take spec.gateway, and spec.nodeSelector as text or as matchLabels and
// matchExpressions. A selector that selects every node says all(); an empty one is a mistake.
package cluster

import (
	"context"
	"net/netip"
	"time"
)

// World is all that the cluster says. Lists are sorted by name, so that equal Worlds are equal
// byte for byte when saved.
type World struct {
	Nodes    []Node    `json:"nodes"`
	Peerings []Peering `json:"peerings"`
	Secrets  []Secret  `json:"secrets"`
	// Problems are what the source could not accept. They are not saved.
	Problems []Problem `json:"-"`
	// Source is where it came from, for people: "manifests /etc/edgeway/cluster.d".
	Source string `json:"source"`
	// ReadAt is when the source was last read with success.
	ReadAt time.Time `json:"readAt"`
	// FromDisk says that this World was loaded and no source has confirmed it since.
	FromDisk bool `json:"-"`
}

// Node is what we use of a Kubernetes Node.
type Node struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses,omitempty"` // InternalIP, in the Node's order
	PodCIDRs  []netip.Prefix    `json:"podCIDRs,omitempty"`
	Ready     bool              `json:"ready"`
	Origin    string            `json:"origin,omitempty"` // file it was read from, or the command that edits it
	// Since is when this node's addresses or pod CIDRs were first seen as they are. It is saved,
	// so that what is old news stays so over a restart. A source leaves it zero.
	Since time.Time `json:"since,omitzero"`
}

// Peering is a BGPPeer (network.openyurt.io/v1alpha1) or BGPClusterConfig
// (network.alibabacloud.com/v1beta1), in one form.
type Peering struct {
	Kind     string     `json:"kind"`
	Name     string     `json:"name"`
	LocalASN uint32     `json:"localASN"`
	Selector Selector   `json:"selector"` // the nodes whose pod CIDRs are advertised: the LAN
	Gateway  netip.Addr `json:"gateway,omitzero"`
	Speakers []Speaker  `json:"speakers"`
	Origin   string     `json:"origin,omitempty"`
}

// Ref names the resource as messages do: "BGPPeer/peer-a".
func (p Peering) Ref() string { return p.Kind + "/" + p.Name }

// Speaker is a node that speaks BGP, and the switches it speaks to.
type Speaker struct {
	Node  string `json:"node"`
	Peers []Peer `json:"peers"`
}

// Peer is one switch.
type Peer struct {
	Name        string     `json:"name,omitempty"`
	Address     netip.Addr `json:"address"`
	Port        uint16     `json:"port,omitempty"` // 0: the daemon's configured port
	ASN         uint32     `json:"asn"`
	MultihopTTL uint8      `json:"multihopTTL,omitempty"`
	TTLSecurity bool       `json:"ttlSecurity,omitempty"`
	Password    *SecretKey `json:"password,omitempty"`
}

// SecretKey refers to one key of a Secret in the namespace kube-system.
type SecretKey struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// Secret is a Secret of the namespace kube-system.
type Secret struct {
	Name   string            `json:"name"`
	Data   map[string][]byte `json:"data"`
	Origin string            `json:"origin,omitempty"`
}

// Problem is a misconfiguration as a value: an operator reads it in `edgewayd status`. Where the
// place is known, Next names file and line. No field shows a value of a Secret.
type Problem struct {
	Object string `json:"object"`         // "BGPPeer/peer-a", "Node/Node-5", "file /etc/.../x.yaml"
	Reason string `json:"reason"`         // an identifier: noPodCIDR, badManifest
	Want   string `json:"want,omitempty"` // what was expected
	Got    string `json:"got,omitempty"`  // what is there
	Next   string `json:"next"`           // the operator's next step
}

// Source gives the World.
type Source interface {
	// World reads what the cluster says now. What cannot be read or is not valid keeps its
	// version in last. An error means that nothing at all could be read: last still counts, and
	// nothing may be deleted for it.
	World(ctx context.Context, last World) (World, error)
	// Watch calls changed when World may say something new, until ctx ends.
	Watch(ctx context.Context, changed func()) error
}
