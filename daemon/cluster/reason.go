package cluster

// Reason says what kind of problem a [Problem] is. Log, status, metrics and events show it. docs/operations.md
// has a line for each reason; a test compares the two.
type Reason string

// IsAdvice reports whether a problem of this reason is advice: everything works, but one more fault would be
// worse than it must be, or a change that the operator may plan. Advice changes no exit status, and does not count
// as a problem.
func (r Reason) IsAdvice() bool { return r == SingleSpeaker || r == OtherMTU || r == StrictSource }

// The reasons that package policy finds.
const (
	NoSelf             Reason = "noSelf"             // the cluster has no Node of this name
	NoPodCIDR          Reason = "noPodCIDR"          // a Node without a pod CIDR
	NoAddress          Reason = "noAddress"          // a Node without an InternalIP of the family
	AddressNotHere     Reason = "addressNotHere"     // no link of this machine has the Node's InternalIP
	SharedAddress      Reason = "sharedAddress"      // two Nodes have one InternalIP
	Overlap            Reason = "overlap"            // two owners of one address range
	SeveralPools       Reason = "severalPools"       // two NetworkPools select one node
	FileDiffers        Reason = "fileDiffers"        // a node's file says something else than its NetworkPool
	OtherNetwork       Reason = "otherNetwork"       // another network plugin's bridge is in the pod CIDR
	VXLANTaken         Reason = "vxlanTaken"         // another owner's link has our VNI and port
	BadAnnotation      Reason = "badAnnotation"      // an annotation of flannel cannot be read
	FlannelDiffers     Reason = "flannelDiffers"     // a node of flannel tunnels otherwise than this node's pool
	FlannelLeft        Reason = "flannelLeft"        // a node of a pool has annotations of flannel
	NoRouteToLAN       Reason = "noRouteToLAN"       // packets for another LAN leave by no underlay link
	GatewayOffSubnet   Reason = "gatewayOffSubnet"   // spec.gateway is not one hop away
	PeerOffSubnet      Reason = "peerOffSubnet"      // the switch is not one hop away
	OffSubnet          Reason = "offSubnet"          // a node of this LAN is not one hop away
	SilentNode         Reason = "silentNode"         // a node does not answer while others do
	OneMAC             Reason = "oneMAC"             // one machine answers for several nodes
	LinkDown           Reason = "linkDown"           // the link of the node's own address is down
	ForwardingOff      Reason = "forwardingOff"      // IPv4 forwarding is off on a link to the LAN
	StrictSource       Reason = "strictSource"       // advice: rp_filter is 1 on a link to the LAN
	NotSelected        Reason = "notSelected"        // no BGP resource selects a neighbour
	PeeringGone        Reason = "peeringGone"        // the resource that selected this node was deleted
	SelectsNothing     Reason = "selectsNothing"     // a BGP resource selects no Node
	NoSuchSpeaker      Reason = "noSuchSpeaker"      // a speaker is not a Node
	SpeakerNotSelected Reason = "speakerNotSelected" // a resource does not select its own speaker
	SingleSpeaker      Reason = "singleSpeaker"      // advice: one speaker for a LAN of several nodes
	NoPassword         Reason = "noPassword"         // the Secret or its key is missing or empty
	Conflict           Reason = "conflict"           // two resources want different sessions with one switch
	TooManyLearned     Reason = "tooManyLearned"     // more learned prefixes than bgp.learnMost
	NothingLearned     Reason = "nothingLearned"     // the switches announce nothing within bgp.learn
	LearnedOffSubnet   Reason = "learnedOffSubnet"   // learned prefixes whose next hop is not one hop away
	LearnedHeld        Reason = "learnedHeld"        // learned prefixes to which the host has its own route
	WrongClock         Reason = "wrongClock"         // this machine's clock is implausible
	Shadowed           Reason = "shadowed"           // another owner's route wins over ours
	ForwardDropped     Reason = "forwardDropped"     // a firewall of this machine drops pods' packets
	HostDropped        Reason = "hostDropped"        // a firewall of this machine drops packets of the tunnel or of BGP
	ForeignNAT         Reason = "foreignNAT"         // another program's source NAT hides pods from pods
	SilentGateway      Reason = "silentGateway"      // the way to other LANs does not answer
	MTUTooLarge        Reason = "mtuTooLarge"        // pods have a larger MTU than the link that carries their packets
	BothModes          Reason = "bothModes"          // a Node has uplinks and pod CIDRs
	UplinkMissing      Reason = "uplinkMissing"      // the node has no such interface
	UplinkAddress      Reason = "uplinkAddress"      // an address for pods that somebody else has
	AddressRemoved     Reason = "addressRemoved"     // a pod's address is no longer granted
	ForeignRules       Reason = "foreignRules"       // policy rules of others before or among ours
	ForeignDHCP        Reason = "foreignDHCP"        // another program configures the interface of an uplink
)

// The reasons that the daemon finds while it makes a plan true.
const (
	ClusterUnreadable Reason = "clusterUnreadable" // the source cannot be read
	HostUnreadable    Reason = "hostUnreadable"    // the kernel's state cannot be read
	WorldNotSaved     Reason = "worldNotSaved"     // the cluster state cannot be saved
	SwitchNotTold     Reason = "switchNotTold"     // a session cannot be started
	PodsNotServed     Reason = "podsNotServed"     // the store or the network configuration cannot be written
	KernelRefused     Reason = "kernelRefused"     // the kernel refuses a change
	ForeignRoute      Reason = "foreignRoute"      // another owner's route is in the place of ours
	RulesRemoved      Reason = "rulesRemoved"      // another program deletes the policy rules of uplinks
	SettingsRefused   Reason = "settingsRefused"   // a session runs on earlier settings
	PodBroken         Reason = "podBroken"         // a pod's link is not as ADD made it
	StoreRebuilt      Reason = "storeRebuilt"      // the file of leases was damaged
	StoreUnreadable   Reason = "storeUnreadable"   // the file of leases cannot be read
	PoolFull          Reason = "poolFull"          // no address for another pod
	AddressTaken      Reason = "addressTaken"      // a free address is in use elsewhere
	NoPathsKey        Reason = "noPathsKey"        // the Secret with the key for questions between nodes is missing, or has no key
	NoCanary          Reason = "noCanary"          // the node's canary pod cannot be made
	NoPlugin          Reason = "noPlugin"          // the CNI plugin is missing, or not executable
	DiskFull          Reason = "diskFull"          // no room for the leases of more pods
	CompetingNetwork  Reason = "competingNetwork"  // the runtime takes another file than ours
	OtherMTU          Reason = "otherMTU"          // advice: running pods keep an earlier MTU
	StatusRefused     Reason = "statusRefused"     // the API server refuses this node's status
	EventsRefused     Reason = "eventsRefused"     // the API server refuses this node's events
	AnnotationRefused Reason = "annotationRefused" // the API server refuses this node's annotations for flannel
	NotInstalled      Reason = "notInstalled"      // a kind at the API server, or a plugin of cni.chain, is missing
)

// The reasons that the questions to other nodes' canaries prove.
const (
	PathsKeyDiffers  Reason = "pathsKeyDiffers"  // another node has another key for the questions, or none
	TermsDiffer      Reason = "termsDiffer"      // another node says another mode, VNI or port
	TunnelFiltered   Reason = "tunnelFiltered"   // the packets of the overlay do not arrive
	PodCIDRNotRouted Reason = "podCIDRNotRouted" // the switch has no route, or another route, to a pod CIDR
	UplinkFiltered   Reason = "uplinkFiltered"   // packets of pods do not pass a node's uplink
	PathBlocked      Reason = "pathBlocked"      // packets reach a node, and not its pods
	MTUHole          Reason = "mtuHole"          // small packets arrive, and full-size packets do not
)

// The reasons that a source finds at an API server.
const (
	APIServerUnreachable Reason = "apiServerUnreachable" // no answer, or an answer that cannot be read
	unauthorized         Reason = "unauthorized"         // 401: the server does not know us
	forbidden            Reason = "forbidden"            // 403: the server does not allow it
	emptyCluster         Reason = "emptyCluster"         // no Node, where there were Nodes before
	badKubeconfig        Reason = "badKubeconfig"        // the present files give no connection
)

// The reasons that a source finds in manifests and objects.
const (
	badManifest     Reason = "badManifest"     // the file does not parse
	emptyFile       Reason = "emptyFile"       // an empty file, or comments only
	emptyDirectory  Reason = "emptyDirectory"  // no manifest, where there were some before
	unreadableFile  Reason = "unreadableFile"  // permissions, or a dangling link
	unknownKind     Reason = "unknownKind"     // our group, but not our kind or version
	unknownKey      Reason = "unknownKey"      // a key that the kind does not have
	duplicateKey    Reason = "duplicateKey"    // a key twice in one mapping
	duplicateEntry  Reason = "duplicateEntry"  // an entry twice in one list
	duplicateObject Reason = "duplicateObject" // kind and name twice in one directory
	missingField    Reason = "missingField"
	badValue        Reason = "badValue"
	badASN          Reason = "badASN"
	badAddress      Reason = "badAddress"
	badCIDR         Reason = "badCIDR"
	badSelector     Reason = "badSelector"
	badSecret       Reason = "badSecret"
	wrongNamespace  Reason = "wrongNamespace"
)

// Reasons returns every reason of this table. Package bgp has the reasons of sessions.
func Reasons() []Reason {
	return []Reason{
		NoSelf, NoPodCIDR, NoAddress, AddressNotHere, SharedAddress, Overlap, SeveralPools, FileDiffers, OtherNetwork, VXLANTaken, BadAnnotation, FlannelDiffers, FlannelLeft, NoRouteToLAN,
		GatewayOffSubnet, PeerOffSubnet, OffSubnet, SilentNode, OneMAC, LinkDown, ForwardingOff, StrictSource, NotSelected,
		PeeringGone, SelectsNothing, NoSuchSpeaker, SpeakerNotSelected, SingleSpeaker, NoPassword, Conflict, TooManyLearned,
		NothingLearned, LearnedOffSubnet, LearnedHeld, WrongClock, Shadowed, BothModes, UplinkMissing, UplinkAddress, AddressRemoved, ForeignRules, ForeignDHCP, ForwardDropped, HostDropped, ForeignNAT, SilentGateway, MTUTooLarge, NoPlugin, DiskFull, ClusterUnreadable, HostUnreadable,
		WorldNotSaved, SwitchNotTold, PodsNotServed, KernelRefused, ForeignRoute, RulesRemoved, SettingsRefused, PodBroken,
		StoreRebuilt, StoreUnreadable, PoolFull, AddressTaken, NoPathsKey, NoCanary, CompetingNetwork, OtherMTU, StatusRefused, EventsRefused, AnnotationRefused,
		NotInstalled, PathsKeyDiffers, TermsDiffer, TunnelFiltered, PodCIDRNotRouted, UplinkFiltered, PathBlocked, MTUHole, APIServerUnreachable, unauthorized, forbidden, emptyCluster, badKubeconfig, badManifest,
		emptyFile, emptyDirectory, unreadableFile, unknownKind, unknownKey, duplicateKey, duplicateEntry,
		duplicateObject, missingField, badValue, badASN, badAddress, badCIDR, badSelector, badSecret, wrongNamespace,
	}
}
