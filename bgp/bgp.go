// Package bgp makes LAN switches hear a [State]: the sessions of this node, and the paths that each
// session advertises. It owns GoBGP, which it embeds. It only dials: no switch can connect to it. It knows
// nothing of Kubernetes and changes no route: where a session asks for it, the package reports the
// switch's own paths, and leaves it to the caller to use them.
//
// There is one verb, [Speaker.Sync]. Each session has a process of its own, with its own GoBGP server,
// paths, autonomous system and graceful restart state. So no session can disturb another: a hostile
// message costs its own session at most.
//
// A switch keeps the paths while this process is away (RFC 4724): after a kill, a stop, a cut
// connection, or a change of the session's settings. New settings that fail are taken back: the session
// returns to the settings that worked, and Status.Refused says why. It drops them at once when a session is removed,
// because this package then sends a Cease. It also drops them when the hold time passes in silence,
// unless it supports RFC 8538, and when a session is lost twice within the second or so that it takes
// to send the paths again. The switch must help a restarting neighbour. BIRD and FRR do by default; FRR
// keeps the paths for its bgp graceful-restart stalepath-time, 360 s.
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

// Peer is one switch as one session sees it. Two sessions with the same Key are the same session.
type Peer struct {
	Name         string // of the resource that asks for the session, for people
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
	// MED is the multi-exit discriminator (RFC 4271, section 5.1.4): of two speakers' paths for
	// a prefix the switch takes the path with the lower MED. 0 sends none, which counts as lowest. See
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
	// Learn selects the switch's own paths for Speaker.Learned: each path whose prefix is equal to one
	// of these, or lies within it. 0.0.0.0/0 and ::/0 select only the default route itself.
	Learn []netip.Prefix
}

// State is what this speaker should do. The empty State is a node that is no speaker.
type State struct {
	Sessions []Session
	Held     []Held
}

// Held is a session that a resource asks for and that must stay down, because its password is missing.
// Sync only uses it for the text with which it ends such a session.
type Held struct {
	Key Key
	Why string // "the password of BGPPeer/peer-a is missing"
}

// Change is one thing that Sync did, in an operator's words.
type Change struct {
	Op     string // "add", "replace", "delete"; of a peer also "reset"
	Object string // "peer 10.0.10.1 as 65002", "path 10.10.2.0/24 via 10.0.10.12 to 10.0.10.1"
	Why    string
}

// Status of one session, as `edgewayd status` shows it.
type Status struct {
	Peer       Peer      `json:"-"` // its password is never shown
	State      string    // RFC 4271 section 8.2.2: Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since      time.Time // when it became Established, or ceased to be
	Reason     string    // why it is not Established: an identifier, "" when it is
	Detail     string    // one sentence with the next step
	Lacks      []Lack    // what an Established session lacks
	Advertised []Path    // in this session, sorted
	// Refused is why the settings of Peer failed while others worked: the session runs on the earlier
	// ones. Its Detail says what differs. At is zero if that did not happen.
	Refused     Reset
	Flaps       int           // times the session left Established since this Speaker began
	LastReset   Reset         // the most recent of those times
	Restart     bool          // graceful restart was negotiated
	RestartTime time.Duration // how long we asked the switch to keep our paths
	LongLived   time.Duration // how much longer as a last resort; 0: not negotiated
}

// Lack is something that an Established session lacks.
type Lack struct {
	Reason string // an identifier
	Detail string // one sentence with the next step
}

// Reset is why a session left Established. It is still known when the session is up again.
type Reset struct {
	At     time.Time // zero: it never left Established
	Reason string    // as Status.Reason, or "ended": the session was removed
	Detail string
}
