// Package cluster owns what the cluster says: the [World], and the sources that it is read from. It never
// decides what follows from a World.
//
// A source is a directory of Kubernetes manifests or an API server. Both give the same World. An object that
// is not valid never enters the World: its last valid version stays, and a [Problem] names the object, the
// cause and the next step.
//
//	src := cluster.Manifests("/etc/edgeway/cluster.d")
//	last, _ := cluster.Load("/var/lib/edgeway/world.json")
//	world, err := src.World(ctx, last) // err: nothing could be read, last still counts
//
// [Kubernetes] follows an API server. A kind counts once all of it has been read. While the server is away,
// the last known state counts. So the World loses an object only when the server, or the directory, said that
// the object is gone.
//
// # Objects
//
// The kinds read are Node and Secret (v1), BGPPeer (network.openyurt.io/v1alpha1), BGPClusterConfig
// (network.alibabacloud.com/v1beta1), NetworkPool and EdgeNode (network.edgeway.io/v1alpha1). In the last four
// every key must be known, because a key that nobody reads is a typing error. Node and Secret carry more than is
// read here. These optional keys are edgeway's own, in BGPPeer.spec and in
// BGPClusterConfig.spec.bgpSpeakers[].peers[]:
//
//	peerPort: 1179     # TCP port of the switch, 1 to 65535
//	ebgpMultihop: 3    # the switch is that many hops away at most, 2 to 255
//	ttlSecurity: true  # RFC 5082; excludes ebgpMultihop
//
// Both kinds accept spec.gateway. They and NetworkPool accept spec.nodeSelector as text or as matchLabels and
// matchExpressions. A selector for every node is all(); an empty selector is a mistake.
package cluster

import (
	"context"
	"net/netip"
	"time"
)

// World is everything that the cluster says. Lists are sorted by name, so that equal Worlds are saved as
// equal bytes.
type World struct {
	Nodes    []Node        `json:"nodes"`
	Peerings []Peering     `json:"peerings"`
	Pools    []NetworkPool `json:"pools,omitempty"`
	// EdgeNodes are those of all nodes in manifests, and this node's own at an API server.
	EdgeNodes []EdgeNode `json:"edgeNodes,omitempty"`
	Secrets   []Secret   `json:"secrets"`
	// Problems say which objects the source could not accept. They are not saved.
	Problems []Problem `json:"-"`
	// Source names the source for people: "manifests /etc/edgeway/cluster.d".
	Source string `json:"source"`
	// ReadAt is when the source was last read successfully.
	ReadAt time.Time `json:"readAt"`
	// Ahead is how far this machine's clock is ahead of the API server's, by the Date of its last answer. 0: equal,
	// or there is no API server.
	Ahead time.Duration `json:"-"`
	// Left is the resource that selected this node until it was deleted. It is not saved: a restart forgets it.
	Left string `json:"-"`
	// FromDisk says that this World was loaded from disk and that no source has confirmed it since.
	FromDisk bool `json:"-"`
}

// Node holds the fields of a Kubernetes Node that we use.
type Node struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses,omitempty"` // InternalIP, in the Node's order
	PodCIDRs  []netip.Prefix    `json:"podCIDRs,omitempty"`
	// Annotations are flannel's, as the Node has them: see Flannel.
	Annotations map[string]string `json:"annotations,omitempty"`
	Origin      string            `json:"origin,omitempty"` // file it was read from, or the command that edits it
	// Since is when this node's present addresses and pod CIDRs were first seen. It is saved, so that they do
	// not look new after a restart. A source leaves it zero.
	Since time.Time `json:"since,omitzero"`
}

// Peering is a BGPPeer (network.openyurt.io/v1alpha1) or a BGPClusterConfig
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

// Problem is a misconfiguration as a value. An operator reads it in `edgewayd status`. Where the place is
// known, Next names the file and the line. No field shows a value of a Secret.
type Problem struct {
	Object string `json:"object"` // "BGPPeer/peer-a", "Node/Node-5", "file /etc/.../x.yaml"
	Reason Reason `json:"reason"`
	Want   string `json:"want,omitempty"` // what was expected
	Got    string `json:"got,omitempty"`  // what is there
	Next   string `json:"next"`           // the operator's next step
}

// Source gives the World.
type Source interface {
	// World reads what the cluster says now. An object that cannot be read or is not valid keeps its version
	// in last. An error means that nothing at all could be read: last still counts, and the caller must
	// delete nothing.
	World(ctx context.Context, last World) (World, error)
	// Watch calls changed when World may say something new, until ctx ends.
	Watch(ctx context.Context, changed func()) error
}
