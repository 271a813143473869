// Package api owns the protocol on the daemon's unix socket: one request and one reply for each connection. A
// CNI request carries the pod's network namespace as a file descriptor (SCM_RIGHTS, unix(7)), so that the
// daemon needs no path into the runtime's mounts. The package never acts on a request: the [Handler] does.
//
// It imports only the standard library: the plugin pays for each import at every pod start.
//
// On the wire a message is a 4-byte big-endian length and that many bytes of JSON. The file descriptor
// travels with the first byte. The caller acknowledges the reply with one byte, so that the daemon knows
// whether its reply was read:
//
//	caller                          daemon
//	  length, JSON (+ netns) ------>
//	                         <------ length, JSON
//	  0x06 ------------------------>             end of file instead: Reply.Undelivered is called
//
// A call that the plugin forwards unread has another form, which plugin/forward draws.
package api

import (
	"context"
	"errors"
	"time"
)

// DefaultSocket is the daemon's socket unless the configuration names another socket.
const DefaultSocket = "/run/edgeway/edgewayd.sock"

// MaxMessage bounds a message, in bytes.
const MaxMessage = 8 << 20

var (
	// ErrNoDaemon: no daemon took the whole request, so nothing was done.
	ErrNoDaemon = errors.New("no daemon answers")
	// ErrBroken: the daemon took the request but the connection ended before the reply. What the daemon did
	// is not known.
	ErrBroken = errors.New("daemon went away before its reply")
)

// Request is one request. Op is "cni", "status" or another operator's command.
type Request struct {
	Op   string   `json:"op"`
	CNI  *CNI     `json:"cni,omitempty"`
	Args []string `json:"args,omitempty"`
}

// CNI is one call of the plugin, as the runtime made it: the environment (SPEC 1.1.0, section 2) and the
// configuration from standard input.
type CNI struct {
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	Netns       string `json:"netns,omitempty"` // path, for messages only; the daemon uses the descriptor
	IfName      string `json:"ifName,omitempty"`
	Args        string `json:"args,omitempty"`
	Path        string `json:"path,omitempty"`
	Stdin       []byte `json:"stdin"`
	// Socket is where a caller that has not read the configuration found the daemon. It is "" if the caller
	// has read it. The daemon refuses (Reply.Error) a call whose configuration names another socket.
	Socket string `json:"-"`
}

// Reply answers a Request.
type Reply struct {
	// Output goes to standard output: the result or the error of a CNI call as JSON.
	Output []byte `json:"output,omitempty"`
	// Failed: Output is an error, and the exit status is not zero.
	Failed bool `json:"failed,omitempty"`
	// Error says why the daemon could not serve the request at all.
	Error string `json:"error,omitempty"`
	// Undelivered, when set, undoes the request. Serve calls it when the caller hung up before it had the
	// reply. It does not travel over the socket.
	Undelivered func(ctx context.Context) `json:"-"`
}

// Status is the daemon's answer to Op "status". `edgewayd status -o json` prints it.
type Status struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	World   World     `json:"world"`
	Mode    string    `json:"mode"`
	// NetworkPool that the node belongs to: "NetworkPool/warehouse".
	NetworkPool string    `json:"networkPool,omitempty"`
	Addresses   []string  `json:"addresses"`
	PodCIDRs    []string  `json:"podCIDRs"`
	Routes      []Route   `json:"routes"`
	Tunnels     []Tunnel  `json:"tunnels"`  // the node's VXLAN links: a second one where it uses both IPv4 and IPv6
	Firewall    []Passage `json:"firewall"` // rules of edgeway in the chains of other programs
	Sessions    []Session `json:"sessions"`
	Learned     []Learned `json:"learned"`
	Leases      Leases    `json:"leases"`
	Paths       Paths     `json:"paths"`
	Uplinks     *Uplinks  `json:"uplinks,omitempty"` // absent: pods have addresses of pod CIDRs
	Problems    []Problem `json:"problems"`
	Advice      []Problem `json:"advice"` // everything works, but one more fault would be worse than it must be
	// Appeared is how often problems and advice of each reason have appeared since the daemon started. The failures
	// of the daemon's own parts are not counted.
	Appeared map[string]int `json:"appeared,omitempty"`
	Now      time.Time      `json:"now"`
}

// Uplinks are the secondary interfaces that serve pods.
type Uplinks struct {
	Provider   string   `json:"provider,omitempty"` // "": the resource is gone, and pods still have addresses
	Egress     string   `json:"egress"`
	Interfaces []Uplink `json:"interfaces"`
	Used       int      `json:"used"` // addresses that pods have
	Free       int      `json:"free"` // addresses for more pods
	// MaxPods is the kubelet's, and MostPods the largest that the addresses are enough for; 0: not known.
	MaxPods  int `json:"maxPods,omitempty"`
	MostPods int `json:"mostPods,omitempty"`
	// Confirmed are the withdrawals that are done.
	Confirmed []Withdrawal `json:"confirmed,omitempty"`
}

// The states of an Uplink.
const (
	UplinkUp      = "Up"
	UplinkDown    = "Down"
	UplinkMissing = "Missing"
)

// Uplink is one secondary interface.
type Uplink struct {
	MAC       string `json:"mac,omitempty"`  // as the resource has it
	Name      string `json:"name,omitempty"` // as the resource has it
	ID        string `json:"id,omitempty"`
	Link      string `json:"link,omitempty"` // its present name; "": the node has no such interface
	Address   string `json:"address"`
	Gateway   string `json:"gateway"`
	Addresses int    `json:"addresses"` // granted to pods
	Used      int    `json:"used"`
	State     string `json:"state"`
}

// Withdrawal is an address that no pod gets any more.
type Withdrawal struct {
	Address string `json:"address"`
	Token   string `json:"token"`
}

// World says where the cluster state comes from.
type World struct {
	Source   string    `json:"source"`
	ReadAt   time.Time `json:"readAt"`
	FromDisk bool      `json:"fromDisk"`
	Nodes    int       `json:"nodes"`
	Peerings int       `json:"peerings"`
}

// The states of a Route, of a Learned, of a Tunnel and of a Passage.
const (
	Installed = "installed"
	Missing   = "missing"
	Differs   = "differs" // of a Tunnel only: its link, an address, an entry or a setting is not as it should be
	Foreign   = "foreign" // another owner's route is in its place
	Ignored   = "ignored" // of a Learned only: Why says why it has no route
)

// Route is one route to another node's pod CIDR.
type Route struct {
	Dst   string `json:"dst"`
	Via   string `json:"via,omitempty"`
	Dev   string `json:"dev,omitempty"`
	Node  string `json:"node,omitempty"`
	State string `json:"state"`
}

// Established is the State of a Session that is up (RFC 4271, section 8.2.2).
const Established = "Established"

// Session is one BGP session.
type Session struct {
	Peer     string    `json:"peer"` // address
	Resource string    `json:"resource"`
	PeerASN  uint32    `json:"peerASN"`
	LocalASN uint32    `json:"localASN"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Reason   string    `json:"reason,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Lacks    []Lack    `json:"lacks,omitempty"`
	Flaps    int       `json:"flaps"`
	// LastReset is when and why the session last left Established; nil: it has not left it since the daemon
	// started.
	LastReset *Reset `json:"lastReset,omitempty"`
	// Refused is when and why the settings of the resource failed, while the session runs on the earlier
	// settings; nil: it runs on the settings of the resource.
	Refused    *Reset `json:"refused,omitempty"`
	Advertised []Path `json:"advertised"`
	// GracefulRestart is the negotiated restart time in seconds; 0: not negotiated.
	GracefulRestart int `json:"gracefulRestart"`
	// LongLived is for how many seconds after the restart time the switch keeps the paths as a last resort
	// (RFC 9494); 0: not negotiated.
	LongLived int `json:"longLived"`
}

// Lack is something that an Established session lacks, with the next step.
type Lack struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// Reset is the end of a session that was Established.
type Reset struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Detail string    `json:"detail"`
}

// Path is one advertised prefix.
type Path struct {
	Prefix  string `json:"prefix"`
	NextHop string `json:"nextHop"`
}

// Learned is a prefix that a switch announces and the configuration wants to learn.
type Learned struct {
	Dst    string `json:"dst"`
	Via    string `json:"via"`
	Dev    string `json:"dev,omitempty"`
	Switch string `json:"switch"`
	// Kept: the session is down, and the path counts until the restart time is over.
	Kept  bool   `json:"kept,omitempty"`
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
}

// Tunnel is the node's end of the overlay (VXLAN, RFC 7348).
type Tunnel struct {
	Device string `json:"device"`
	VNI    uint32 `json:"vni"`
	Port   uint16 `json:"port"` // UDP
	Local  string `json:"local"`
	MTU    int    `json:"mtu"` // bytes
	// Peers is how many nodes this node sends to through the tunnel. It receives from all nodes.
	Peers int `json:"peers"`
	// Unreachable has the peers that do not answer, as far as this node knows. It asks some of them only: see Paths.
	Unreachable []Unreachable `json:"unreachable,omitempty"`
	State       string        `json:"state"` // Installed, Differs or Missing
	// SoftChecksums: the kernel has a fault, so checksums are computed before the packets enter the tunnel.
	SoftChecksums bool `json:"softChecksums,omitempty"`
	// Differs has the changes that would make the tunnel right. edgewayd makes them on its own.
	Differs []string `json:"differs,omitempty"`
}

// Passage has the rules of edgeway at the end of a chain of another program's firewall.
type Passage struct {
	Chain   string   `json:"chain"`
	Accepts []string `json:"accepts"` // what each rule accepts
	State   string   `json:"state"`   // Installed or Missing
}

// Unreachable is a node that does not answer at the other end of a tunnel.
type Unreachable struct {
	Node    string `json:"node"`
	Address string `json:"address"` // to which the tunnel sends
	Why     string `json:"why"`
}

// Paths says which other nodes' canaries this node's canary reaches.
type Paths struct {
	Canary     []string `json:"canary"`     // this node's canary's addresses; none: it has no canary
	CanaryKept bool     `json:"canaryKept"` // the canary lives on when the daemon ends
	// Probed is the number of paths that were asked lately, one for each node and family; Reached is how many of them
	// answered the last question.
	Probed  int `json:"probed"`
	Reached int `json:"reached"`
	// Sent is the number of questions to canaries since the daemon started, and Lost of those that were not answered.
	Sent  uint64  `json:"sent"`
	Lost  uint64  `json:"lost"`
	Asked []Asked `json:"asked"`
}

// The states of the questions of an Asked.
const (
	Answers  = "answers"   // the last question was answered
	Silent   = "silent"    // several questions in a row were not
	OtherKey = "other key" // several were not, and the other end says that its key is another
	Unsure   = "unsure"    // none of these
)

// Asked is what the questions to one node in one family say.
type Asked struct {
	Node     string `json:"node"`
	Address  string `json:"address"`  // of its canary
	Canary   string `json:"canary"`   // small questions to the canary: Answers, Silent or Unsure
	FullSize string `json:"fullSize"` // questions of FullBytes with DF, to the canary
	Host     string `json:"host"`     // small questions to the node's own address
	// FullBytes is the size of a full-size packet with its headers.
	FullBytes int     `json:"fullBytes"`
	Seconds   float64 `json:"seconds"` // round trip of the last answer of the canary
	// Sent is the number of questions to the canary since it is asked, and Lost of those that were not answered.
	Sent int `json:"sent"`
	Lost int `json:"lost"`
	// What the node said of itself last.
	Version string `json:"version,omitempty"`
	Mode    string `json:"mode,omitempty"`
}

// Leases counts pods: a pod holds one address of each family, and Free says how many more fit.
type Leases struct {
	Total   uint64 `json:"total"`
	Used    uint64 `json:"used"`
	Free    uint64 `json:"free"`
	Outside uint64 `json:"outside"`
	// Families counts the addresses of each family, in the pool's order.
	Families []Family `json:"families,omitempty"`
	// OtherMTU are the pods that started when the node's MTU was another one. A pod keeps its MTU.
	OtherMTU []PodMTU `json:"otherMTU,omitempty"`
}

// Family counts the pods' addresses of one family.
type Family struct {
	Family string `json:"family"` // IPv4, IPv6
	Used   uint64 `json:"used"`   // the pods have
	Free   uint64 `json:"free"`   // for more pods
}

// PodMTU is the MTU of a pod's link.
type PodMTU struct {
	Pod string `json:"pod"` // namespace/name
	MTU int    `json:"mtu"` // bytes
}

// Problem is a misconfiguration with its next step.
type Problem struct {
	Object string `json:"object"`
	Reason string `json:"reason"`
	Want   string `json:"want,omitempty"`
	Got    string `json:"got,omitempty"`
	Next   string `json:"next"`
}
