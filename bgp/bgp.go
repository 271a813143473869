// Package bgp runs the BGP sessions of this node with LAN switches, as a [State] says: the sessions, and the
// paths that each session advertises. It owns GoBGP, which it embeds. It only dials: no switch can connect to
// it. It knows nothing of Kubernetes and changes no route: if a session asks for the switch's own paths, the
// package reports them, and the caller decides what to do with them.
//
// There is one verb, [Speaker.Sync]. Each session has its own process, with its own GoBGP server, paths,
// autonomous system and graceful restart state. So no session can disturb another: a hostile message costs
// at most its own session.
//
// A switch keeps the paths while this process is away (RFC 4724): after a kill, a stop, a cut connection, or
// a change of the session's settings. If new settings fail, the session returns to the settings that worked,
// and Status.Refused says why. The switch drops the paths at once when a session is removed, because this
// package then sends a Cease. It also drops them when the hold time passes in silence, unless it supports
// RFC 8538, and when a session is lost twice within the second or so that sending the paths again takes. The
// switch must help a restarting neighbour. BIRD and FRR do by default; FRR keeps the paths for its bgp
// graceful-restart stalepath-time, 360 s.
//
//	speaker := bgp.NewSpeaker(bgp.Options{Command: []string{"edgewayd", "bgp-session"}, Changed: trigger})
//	changes, err := speaker.Sync(ctx, bgp.State{Sessions: []bgp.Session{{
//		Peer:  bgp.Peer{Name: "BGPPeer/peer-a", Address: addr("10.0.10.1"), ASN: 65002, LocalASN: 65010, LocalAddress: addr("10.0.10.11"), RouterID: addr("10.0.10.11")},
//		Paths: []bgp.Path{{Prefix: pfx("10.10.2.0/24"), NextHop: addr("10.0.10.12")}},
//	}}})
package bgp

import (
	"net/netip"
	"time"
)

// DefaultPort is the port of BGP (RFC 4271, section 8.2.1).
const DefaultPort = 179

// MaxRestartTime is the largest restart time that fits the 12 bits of the graceful restart
// capability (RFC 4724, section 3).
const MaxRestartTime = 4095 * time.Second

// MaxLongLivedTime is the largest stale time that fits the 24 bits of the long-lived graceful
// restart capability (RFC 9494, section 3).
const MaxLongLivedTime = (1<<24 - 1) * time.Second

// Peer is one switch as one session sees it. Two Peers with the same Key are the same session.
type Peer struct {
	Name         string // the resource that asks for the session, for people
	Address      netip.Addr
	Port         uint16 // TCP; 0 means DefaultPort
	ASN          uint32
	LocalASN     uint32
	LocalAddress netip.Addr // source address; always set
	RouterID     netip.Addr // IPv4
	Password     string     // RFC 2385; "" means none
	HoldTime     time.Duration
	RestartTime  time.Duration // graceful restart; 0 switches it off; at most MaxRestartTime
	// LongLivedTime is how long after the restart time the switch keeps our paths as a last resort
	// (long-lived graceful restart, RFC 9494); 0 switches it off; at most MaxLongLivedTime.
	LongLivedTime time.Duration
	MultihopTTL   uint8 // 0: the switch is one hop away
	TTLSecurity   bool  // RFC 5082: send and expect TTL 255
}

// Key tells sessions apart: the address and port of the switch and our autonomous system.
type Key struct {
	Address  netip.Addr
	Port     uint16
	LocalASN uint32
}

// Path is one advertised prefix and its next hop. The next hop is the node that owns the prefix, not
// the speaker (a third-party next hop, RFC 4271, section 5.1.3).
type Path struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
	// MED is the multi-exit discriminator (RFC 4271, section 5.1.4): of two speakers' paths for a prefix,
	// the switch takes the path with the lower MED. With 0 no MED is sent, which counts as lowest. See
	// Freshness.
	MED uint32
	// NoLongLived asks the switch to drop the path when the restart time is over, instead of keeping
	// it as a last resort for Peer.LongLivedTime (community NO_LLGR, RFC 9494, section 4.1).
	NoLongLived bool
}

// Session is one peer and the paths to advertise to it.
type Session struct {
	Peer  Peer
	Paths []Path // unique by Prefix
	// Learn selects the switch's own paths for Speaker.Learned: each path whose prefix equals one of these
	// prefixes, or lies within it. 0.0.0.0/0 and ::/0 select only the default route itself.
	Learn []netip.Prefix
	// Sole: no other session of the cluster advertises paths of Peer.LocalASN. So each such path that the
	// switch sends is a path of this session that came back, and the Status can tell which paths did not.
	Sole bool
}

// State is the desired state of this speaker. The empty State means that the node is not a speaker.
type State struct {
	Sessions []Session
	Held     []Held
}

// Held is a session that a resource asks for but that must stay down, because its password is missing.
// Sync uses it only for the text of the Cease that ends such a session.
type Held struct {
	Key Key
	Why string // "the password of BGPPeer/peer-a is missing"
}

// Change is one action of Sync, in an operator's words.
type Change struct {
	Op     string // "add", "replace", "delete"; for a peer also "reset"
	Object string // "peer 10.0.10.1 as 65002", "path 10.10.2.0/24 via 10.0.10.12 to 10.0.10.1"
	Why    string
}

// Status is the status of one session, as `edgewayd status` shows it.
type Status struct {
	Peer       Peer      `json:"-"` // its password is never shown
	State      string    // RFC 4271 section 8.2.2: Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since      time.Time // when the session became Established, or left Established
	Reason     string    // why it is not Established: an identifier; "" if it is
	Detail     string    // one sentence with the next step
	Lacks      []Lack    // what an Established session lacks
	Advertised []Path    // in this session, sorted
	// Refused is why the settings of Peer failed after others worked: the session runs on the earlier
	// settings. Its Detail says what differs. Its At is zero if no settings failed.
	Refused     Reset
	Flaps       int           // times the session left Established since this Speaker started
	LastReset   Reset         // the most recent of these times
	Restart     bool          // graceful restart was negotiated
	RestartTime time.Duration // how long we asked the switch to keep our paths
	LongLived   time.Duration // how much longer it keeps them as a last resort; 0: not negotiated
}

// Lack is one shortcoming of an Established session.
type Lack struct {
	Reason string // an identifier
	Detail string // one sentence with the next step
}

// Reset is why a session left Established. The reason stays known when the session is up again.
type Reset struct {
	At     time.Time // zero: the session never left Established
	Reason string    // as Status.Reason, or "ended": the session was removed
	Detail string
}
