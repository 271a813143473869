package bgp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// The reasons of Status.Reason. docs/operations.md has a line for each.
const (
	reasonConnecting        = "connecting"        // just started
	reasonRefused           = "refused"           // TCP reset: nothing listens
	reasonNoRoute           = "noRoute"           // this node has no route to the switch
	reasonNoNeighbour       = "noNeighbour"       // no answer to ARP or neighbour discovery
	reasonNoLocalAddress    = "noLocalAddress"    // this node does not have the source address
	reasonFiltered          = "filtered"          // ICMP answers our SYN
	reasonTimeout           = "timeout"           // no answer to our SYN: filter, or TCP MD5 mismatch
	reasonPasswordNotWanted = "passwordNotWanted" // no answer to our SYN only with our password
	reasonDial              = "dial"              // any other error of connect(2)
	reasonUnknownToSwitch   = "unknownToSwitch"   // the switch closed the connection before its OPEN
	reasonTTLSecurity       = "ttlSecurity"       // one side drops the other's packets for their TTL
	reasonASNMismatch       = "asnMismatch"       // either side expects another AS number
	reasonRouterID          = "routerID"          // either side objects to the other's router ID
	reasonHoldTime          = "holdTime"          // either side objects to the other's hold time
	reasonCapability        = "capability"        // the switch requires a capability that we do not offer
	reasonRole              = "roleMismatch"      // the switch requires a BGP role (RFC 9234)
	reasonOpenRefused       = "openRefused"       // either side objects to the other's OPEN for another cause
	reasonHoldTimer         = "holdTimer"         // one side heard nothing for the hold time
	reasonPrefixLimit       = "prefixLimit"       // the switch takes no more prefixes
	reasonCollision         = "collision"         // another BGP daemon on this node has a session with the switch
	reasonCeased            = "ceased"            // the switch sent another Cease
	reasonUpdateRefused     = "updateRefused"     // the switch objects to an UPDATE of ours
	reasonNotification      = "notification"      // the switch sent another NOTIFICATION
	reasonConnectionLost    = "connectionLost"    // the connection ended without a NOTIFICATION
	reasonMalformed         = "malformed"         // the switch sent a message that cannot be read
	reasonReset             = "reset"             // we restarted the session: its settings changed
	reasonEnded             = "ended"             // we ended the session: it was removed
	reasonCrashed           = "crashed"           // the process of this session ended by itself
)

// The reasons of Lack.Reason. docs/operations.md has a line for each.
const (
	lackFamily    = "familyNotActivated"
	lackRestart   = "noGracefulRestart"
	lackLongLived = "noLongLivedRestart"
	lackPaths     = "pathsNotKept"
)

// Reasons returns every Status.Reason and every Lack.Reason.
func Reasons() []string {
	return []string{
		reasonConnecting, reasonRefused, reasonNoRoute, reasonNoNeighbour, reasonNoLocalAddress, reasonFiltered,
		reasonTimeout, reasonPasswordNotWanted, reasonDial, reasonUnknownToSwitch, reasonTTLSecurity,
		reasonASNMismatch, reasonRouterID, reasonHoldTime, reasonCapability, reasonRole, reasonOpenRefused,
		reasonHoldTimer, reasonPrefixLimit, reasonCollision, reasonCeased, reasonUpdateRefused, reasonNotification,
		reasonConnectionLost, reasonMalformed, reasonReset, reasonEnded, reasonCrashed, lackFamily, lackRestart,
		lackLongLived, lackPaths,
	}
}

// cause is why a session is not Established: an identifier and a sentence with the next step.
type cause struct {
	reason string
	detail string
}

// evidence is our knowledge of a switch that we cannot connect to.
type evidence struct {
	err    error         // of the last dial; nil: no dial failed
	silent time.Duration // how long dials have had no answer
	reply  reply         // to the last probe
}

// surely is how long dials must stay without any answer until the kernel must have resolved the switch's
// address again. A neighbour counts as reachable for at most 45 s, then as stale. 8 s after its next use
// the kernel gives up on it (arp(7)), which is another error.
const surely = time.Minute

// puzzles reports whether a probe can tell more about p than the dial's error. An unanswered dial without a
// password was as good as a probe.
func (e evidence) puzzles(p Peer) bool {
	return isTimeout(e.err) && p.Password != "" || errors.Is(e.err, syscall.EHOSTUNREACH) || errors.Is(e.err, syscall.ENETUNREACH)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// dialCause explains why a dial failed.
func dialCause(p Peer, e evidence) cause {
	to := fmt.Sprintf("%s port %d", p.Address, p.Port)
	switch {
	case e.reply.kind == rejected && e.puzzles(p):
		return cause{reasonFiltered, fmt.Sprintf("%s rejects the connection to %s with ICMP: open the filter there for %s, or give that machine a route", e.reply.by, to, p.LocalAddress)}
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return nobodyListens(to)
	case errors.Is(e.err, syscall.ENETUNREACH):
		return cause{reasonNoRoute, fmt.Sprintf("this node has no route to %s: add one, or correct the address of the switch", p.Address)}
	case errors.Is(e.err, syscall.EHOSTUNREACH):
		return cause{reasonNoNeighbour, fmt.Sprintf("%s answers no %s: check cable, VLAN and the address of the switch", p.Address, resolution(p.Address))}
	case errors.Is(e.err, syscall.EADDRNOTAVAIL):
		return cause{reasonNoLocalAddress, fmt.Sprintf("this node does not have the source address %s: correct the node's InternalIP, or add the address", p.LocalAddress)}
	case isTimeout(e.err):
		return timeoutCause(p, e)
	case errors.Is(e.err, syscall.ECONNRESET):
		return cause{reasonUnknownToSwitch, unknown(p)}
	}
	return cause{reasonDial, fmt.Sprintf("connect to %s: %v; check the addresses of both sides", to, e.err)}
}

// timeoutCause explains why the switch does not answer. A switch silently drops packets that are signed with
// another password than its password for us, that lack a required signature, or that have an unwanted one
// (RFC 2385, section 2.0). A filter drops packets silently, too.
func timeoutCause(p Peer, e evidence) cause {
	to := fmt.Sprintf("%s port %d", p.Address, p.Port)
	var heard string // an answer of the switch in spite of the timeout
	wrong := "the address is wrong"
	switch {
	case p.MultihopTTL > 1:
		wrong = "a route is missing on the way there or back"
	case e.silent >= surely:
		heard = fmt.Sprintf("%s answers %s, but ", p.Address, resolution(p.Address))
	}
	or := ", a filter drops TCP, or " + wrong
	if heard != "" {
		or = ", or a filter drops TCP"
	}
	switch {
	case p.Password == "":
		return cause{reasonTimeout, heard + to + " does not answer: the switch expects a password from " + p.LocalAddress.String() + or + "; set the switch's password here, or open the filter"}
	case e.reply.kind == accepted:
		return cause{reasonPasswordNotWanted, fmt.Sprintf("%s answers without a password, but not with ours: the switch has no password for neighbour %s as %d, or no such neighbour; configure both there, or take the password away here",
			to, p.LocalAddress, p.LocalASN)}
	case e.reply.kind == refused:
		return nobodyListens(to)
	case e.reply.kind == unanswered:
		return cause{reasonTimeout, heard + to + " answers neither with our password nor without one: the password differs from the switch's" + or + "; compare the passwords first"}
	}
	return cause{reasonTimeout, heard + to + " does not answer: the password differs from the switch's" + or + "; compare the passwords first"}
}

func nobodyListens(to string) cause {
	return cause{reasonRefused, to + " refuses the connection: start BGP on the switch, or correct the address or port"}
}

func resolution(a netip.Addr) string {
	if a.Is4() {
		return "ARP"
	}
	return "neighbour discovery"
}

func unknown(p Peer) string {
	return fmt.Sprintf("the switch closed the connection before its OPEN: configure neighbour %s as %d there, or wait if it holds off after an error", p.LocalAddress, p.LocalASN)
}

// lostCause explains why the connection ended without a NOTIFICATION.
func lostCause(p Peer, state string, byThem bool) cause {
	switch {
	case !byThem:
		return cause{reasonConnectionLost, "this node closed the connection to the switch without a NOTIFICATION: if this happens again, report it"}
	case state == stateOpenSent:
		return cause{reasonUnknownToSwitch, unknown(p)}
	case state == stateOpenConfirm:
		return cause{reasonConnectionLost, "the switch closed the connection after both OPENs, without a NOTIFICATION: check the switch's log"}
	}
	return cause{reasonConnectionLost, "the connection to the switch ended without a NOTIFICATION: check whether the switch restarted or a filter cut the connection"}
}

// deafCause explains that one side drops the other's packets because of TTL security (RFC 5082).
func deafCause(p Peer) cause {
	if p.TTLSecurity {
		return cause{reasonTTLSecurity, fmt.Sprintf("packets of the switch arrive with a TTL that is too low: enable TTL security for neighbour %s on the switch, or remove ttlSecurity here", p.LocalAddress)}
	}
	return cause{reasonTTLSecurity, fmt.Sprintf("the switch connects, but drops our packets: it expects TTL security from %s; set ttlSecurity here, or remove TTL security for this neighbour on the switch", p.LocalAddress)}
}

// sentCause explains a NOTIFICATION that we sent to the switch.
func sentCause(p Peer, n notification, o offer) cause {
	switch {
	case n.is(2, 2):
		return cause{reasonASNMismatch, fmt.Sprintf("the switch has AS number %d, not %d: correct the peer's AS number here", o.asn, p.ASN)}
	case n.is(2, 3):
		return cause{reasonRouterID, fmt.Sprintf("the switch has the router ID %s too: give the switch, or this node, another one", p.RouterID)}
	case n.is(2, 6):
		return cause{reasonHoldTime, fmt.Sprintf("the switch offers a hold time of %s, and this node accepts %s or more: set a longer hold time for this neighbour on the switch, such as 90 s", o.hold, minHoldTime)}
	case n.code == 2:
		return cause{reasonOpenRefused, fmt.Sprintf("this node refuses the switch's OPEN: %s; correct the switch's BGP settings for this neighbour", n)}
	case n.code == 4 && !o.known:
		return cause{reasonHoldTimer, "the switch sent no OPEN: check that BGP runs there and knows this node"}
	case n.code == 4:
		return cause{reasonHoldTimer, "nothing heard from the switch for the hold time: check the link and the switch"}
	case n.code == 6:
		return cause{reasonEnded, "ended here: " + n.String()}
	}
	return cause{reasonMalformed, fmt.Sprintf("the switch sent a message that cannot be read: %s; update the switch's software", n)}
}

// receivedCause explains a NOTIFICATION that the switch sent.
func receivedCause(p Peer, n notification) cause {
	switch {
	case n.is(2, 2):
		return cause{reasonASNMismatch, fmt.Sprintf("the switch refuses our OPEN: it expects another AS number than %d from %s; compare its neighbour configuration", p.LocalASN, p.LocalAddress)}
	case n.is(2, 3):
		return cause{reasonRouterID, fmt.Sprintf("the switch refuses our router ID %s: the switch, or another neighbour of it, has the same one; give one of them another router ID", p.RouterID)}
	case n.is(2, 6):
		return cause{reasonHoldTime, fmt.Sprintf("the switch does not accept our hold time of %s: set bgp.holdTime to what the switch allows, or allow %s there", p.HoldTime, p.HoldTime)}
	case n.is(2, 7):
		return cause{reasonCapability, fmt.Sprintf("the switch requires a capability that this node does not offer%s: remove that requirement for this neighbour on the switch", capabilities(n.data))}
	case n.is(2, 11):
		return cause{reasonRole, "the switch requires a BGP role (RFC 9234), and this node has none: remove the strict role of this neighbour on the switch"}
	case n.code == 2:
		return cause{reasonOpenRefused, fmt.Sprintf("the switch refuses our OPEN: %s; compare its neighbour configuration", n)}
	case n.code == 3:
		return cause{reasonUpdateRefused, fmt.Sprintf("the switch refuses an UPDATE of ours: %s; check the switch's log, and report this", n)}
	case n.code == 4:
		return cause{reasonHoldTimer, fmt.Sprintf("the switch heard nothing from %s for its hold time: check the link, and the load of this node", p.LocalAddress)}
	case n.code == 8:
		return cause{reasonHoldTimer, "the switch could send nothing to this node for its send hold time: check the load of this node"}
	case n.code == 6:
		return ceasedCause(n)
	}
	return cause{reasonNotification, fmt.Sprintf("the switch ended the session with NOTIFICATION %s: check the switch's log", n)}
}

// ceasedCause explains a Cease (RFC 4486, section 4; RFC 8538; RFC 9384) with its text.
func ceasedCause(n notification) cause {
	const log, back = "check the switch's log", "nothing to do, the session comes back"
	reason, next := reasonCeased, log
	switch n.subcode {
	case 1:
		reason, next = reasonPrefixLimit, "raise the switch's prefix limit for this neighbour, or advertise fewer prefixes"
	case 2:
		next = "enable the neighbour on the switch"
	case 3:
		next = "configure the neighbour on the switch"
	case 5:
		next = "configure this node as neighbour on the switch"
	case 4, 6, 9:
		next = back
	case 7:
		reason, next = reasonCollision, "another BGP daemon on this node has a session with the switch; stop it"
	case 10:
		next = "check the link, or switch BFD off for this neighbour"
	}
	text := codes[6].subcodes[n.subcode]
	if text == "" {
		text = fmt.Sprintf("subcode %d", n.subcode)
	}
	if said := n.text(); said != "" {
		text += fmt.Sprintf(", saying %q", said)
	}
	return cause{reason, fmt.Sprintf("the switch sent Cease, %s: %s", text, next)}
}

// capabilities names the capabilities in the data of a NOTIFICATION (RFC 5492, section 5).
func capabilities(data []byte) string {
	var names []string
	for len(data) >= 2 {
		code := bgp.BGPCapabilityCode(data[0])
		names = append(names, fmt.Sprintf("%s (%d)", code, code))
		data = data[min(len(data), 2+int(data[1])):]
	}
	if len(names) == 0 {
		return ""
	}
	return ", " + strings.Join(names, ", ")
}
