// Package bgp makes LAN switches hear a [State]: which sessions there are, and which paths each
// switch is told. It embeds GoBGP, dials only, never listens, and learns nothing, unless a session
// names what; then it says what the switch announces and does nothing with it.
//
// There is one verb, [Speaker.Sync]. Each session has a process of its own, with its own GoBGP server,
// paths, autonomous system and graceful restart state, so that no session can disturb another: what a
// switch sends costs its own session at most.
//
// A switch keeps the paths while this process is away (RFC 4724): when it is killed, when it
// stops, when the connection is cut and when the settings of a session change. It drops them at
// once when a session is not wanted any more, for then it hears a Cease. It drops them too when
// the hold time passes in silence, unless it knows RFC 8538, and when a session is lost twice
// within the second or so that it takes to send the paths again. The switch has to help a
// restarting neighbour, which BIRD and FRR do by default, FRR for bgp graceful-restart
// stalepath-time, 360 s.
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

// Peer is one switch as one session sees it. Two sessions are the same when Key is.
type Peer struct {
	Name         string // of the resource that asks for it, for people
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

// Path is one prefix that the switch is told, and where it shall send its packets: the next hop
// is the node that owns the prefix, not the speaker (a third-party next hop, RFC 4271
// section 5.1.3).
type Path struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
	// MED is the multi-exit discriminator (RFC 4271, section 5.1.4): of two speakers' paths for
	// a prefix the switch takes the lower one. 0 sends none, which counts as lowest. See Freshness.
	MED uint32
	// NoLongLived asks the switch to drop the path when the restart time is over, and not to keep it
	// as a last resort for Peer.LongLivedTime (community NO_LLGR, RFC 9494, section 4.1).
	NoLongLived bool
}

// Session is one peer and all that it is told.
type Session struct {
	Peer  Peer
	Paths []Path // unique by Prefix
	// Learn says what of the switch's own paths shall be in Speaker.Learned: what is equal to one
	// of the prefixes or lies in it; of 0.0.0.0/0 and ::/0 only the default route itself.
	Learn []netip.Prefix
}

// State is what this speaker should do. The empty State is a node that is no speaker.
type State struct {
	Sessions []Session
	Held     []Held
}

// Held is a session that is asked for and must stay down, as its password is missing. It makes no
// difference to Sync but for what a switch is told when such a session ends.
type Held struct {
	Key Key
	Why string // "the password of BGPPeer/peer-a is missing"
}

// Change is one thing that Sync did, printed as an operator knows it.
type Change struct {
	Op     string // "add", "replace", "delete"; of a peer also "reset"
	Object string // "peer 10.0.10.1 as 65002", "path 10.10.2.0/24 via 10.0.10.12 to 10.0.10.1"
	Why    string
}

// Status of one session, as `edgewayd status` shows it.
type Status struct {
	Peer        Peer          `json:"-"` // its password is never shown
	State       string        // RFC 4271 section 8.2.2: Idle, Connect, Active, OpenSent, OpenConfirm, Established
	Since       time.Time     // since when it is Established, or is not
	Reason      string        // why it is not Established: an identifier, "" when it is
	Detail      string        // one sentence with the next step
	Advertised  []Path        // what the switch was told in this session, sorted
	Flaps       int           // times the session left Established since this Speaker began
	LastReset   Reset         // the last of those times
	Restart     bool          // graceful restart was negotiated
	RestartTime time.Duration // what the switch was asked to keep our paths for
	LongLived   time.Duration // and after that as a last resort; 0: not negotiated
}

// Reset is why a session left Established. It stays known when the session is up again.
type Reset struct {
	At     time.Time // zero: it never did
	Reason string    // as Status.Reason, or "ended": it was not wanted any more
	Detail string
}
