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

// The reasons of Status.Reason.
const (
	reasonConnecting        = "connecting"        // just begun
	reasonRefused           = "refused"           // TCP reset: nobody listens
	reasonNoRoute           = "noRoute"           // this node has no route there
	reasonNoNeighbour       = "noNeighbour"       // nobody answers ARP or neighbour discovery
	reasonNoLocalAddress    = "noLocalAddress"    // this node does not have the source address
	reasonFiltered          = "filtered"          // somebody answers our SYN with ICMP
	reasonTimeout           = "timeout"           // SYNs vanish: filter, or TCP MD5 mismatch
	reasonPasswordNotWanted = "passwordNotWanted" // SYNs vanish only with our password
	reasonDial              = "dial"              // any other error of connect(2)
	reasonUnknownToSwitch   = "unknownToSwitch"   // closed after our OPEN
	reasonASNMismatch       = "asnMismatch"       // OPEN refused, by either side
	reasonOpenRefused       = "openRefused"       // we refuse the switch's OPEN for another cause
	reasonHoldTimer         = "holdTimer"         // one side heard nothing for the hold time
	reasonCeased            = "ceased"            // the switch sent a Cease
	reasonNotification      = "notification"      // the switch sent another NOTIFICATION
	reasonConnectionLost    = "connectionLost"    // TCP ended without a NOTIFICATION
	reasonMalformed         = "malformed"         // the switch sent what cannot be parsed
	reasonReset             = "reset"             // we reset it: its settings changed
	reasonEnded             = "ended"             // we ended it: it was not wanted any more
	reasonCrashed           = "crashed"           // the process of this session ended by itself
)

// cause is why a session is not Established: an identifier and a sentence with the next step.
type cause struct {
	reason string
	detail string
}

// evidence is what is known of a switch that no connection comes about with.
type evidence struct {
	err    error         // of the last dial; nil: none failed
	silent time.Duration // for how long nothing has come back for dials
	reply  reply         // to the last probe
}

// surely is after how long without any answer to dials the address of the switch must have been
// resolved anew: a neighbour counts as reachable for at most 45 s, then as stale, and 8 s after its
// next use the kernel gives up on it (arp(7)), which is another error.
const surely = time.Minute

// puzzles reports whether a probe can tell more of p than the error of the dial does. A dial without a
// password that nothing came back for was as good as a probe.
func (e evidence) puzzles(p Peer) bool {
	return isTimeout(e.err) && p.Password != "" || errors.Is(e.err, syscall.EHOSTUNREACH) || errors.Is(e.err, syscall.ENETUNREACH)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// dialCause explains why a TCP connection did not come about.
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

// timeoutCause explains that the switch does not answer. A switch drops without a word what is
// signed with another password than it has for us, what lacks a signature that it wants, and what
// has one that it does not want (RFC 2385, section 2.0); a filter drops all the same.
func timeoutCause(p Peer, e evidence) cause {
	to := fmt.Sprintf("%s port %d", p.Address, p.Port)
	var heard string // of the switch, in spite of all
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

// openRefusedHere explains a NOTIFICATION with which we answered the switch's OPEN.
func openRefusedHere(p Peer, e *bgp.MessageError) cause {
	if e.TypeCode == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && e.SubTypeCode == bgp.BGP_ERROR_SUB_BAD_PEER_AS {
		return cause{reasonASNMismatch, fmt.Sprintf("the switch has another AS number than %d: %s; correct the peer's AS number here", p.ASN, e.Message)}
	}
	if e.TypeCode == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && e.SubTypeCode == bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER {
		return cause{reasonOpenRefused, fmt.Sprintf("the switch has the router ID %s too: give it, or this node, another one", p.RouterID)}
	}
	if e.TypeCode == bgp.BGP_ERROR_HOLD_TIMER_EXPIRED {
		return cause{reasonHoldTimer, "the switch sent no OPEN: check that BGP runs there and knows this node"}
	}
	return cause{reasonOpenRefused, fmt.Sprintf("we refuse the switch's OPEN: %s; correct the switch's BGP settings for this neighbour", e.Message)}
}

// openRefusedThere explains that the switch sent its OPEN and ended the session on ours. GoBGP
// keeps the NOTIFICATION's code to itself at this point; Bad Peer AS is what it is in practice.
func openRefusedThere(p Peer) cause {
	return cause{reasonASNMismatch, fmt.Sprintf("the switch refuses our OPEN: it expects another AS number than %d from %s, or another node has the router ID %s; compare its neighbour configuration", p.LocalASN, p.LocalAddress, p.RouterID)}
}

// notification is what the switch ended a session with.
type notification struct {
	code, subcode uint8
	said          string // its operator's own words (RFC 9003)
}

// opened is the NOTIFICATION that a Hard Reset stands for (RFC 8538, section 3.1); any other is itself.
func (n notification) opened(data []byte) notification {
	if n.code != bgp.BGP_ERROR_CEASE || n.subcode != bgp.BGP_ERROR_SUB_HARD_RESET || len(data) < 2 {
		return n
	}
	inner := notification{code: data[0], subcode: data[1]}
	if rest := data[2:]; inner.speaks() && len(rest) > 0 {
		inner.said = string(rest[1:min(1+int(rest[0]), len(rest))])
	}
	return inner
}

// speaks reports whether a text can go with it.
func (n notification) speaks() bool {
	return n.code == bgp.BGP_ERROR_CEASE && (n.subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || n.subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET)
}

// leaves reports whether it says that the switch does not want this neighbour any more:
// administrative shutdown or peer de-configured (RFC 4486, section 3).
func (n notification) leaves() bool {
	return n.code == bgp.BGP_ERROR_CEASE && (n.subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || n.subcode == bgp.BGP_ERROR_SUB_PEER_DECONFIGURED)
}

// notified explains a NOTIFICATION that the switch sent in an established session.
func notified(p Peer, n notification) cause {
	switch n.code {
	case bgp.BGP_ERROR_CEASE:
		text, next := cease(n.subcode)
		if n.said != "" {
			text += fmt.Sprintf(", saying %q", n.said)
		}
		return cause{reasonCeased, fmt.Sprintf("the switch sent Cease, %s: %s", text, next)}
	case bgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		return cause{reasonHoldTimer, fmt.Sprintf("the switch heard nothing from %s for its hold time: check the link, and the load of this node", p.LocalAddress)}
	}
	return cause{reasonNotification, fmt.Sprintf("the switch ended the session with NOTIFICATION %d/%d: look at the switch's log", n.code, n.subcode)}
}

// shutdownMessage is a NOTIFICATION that the session ends for good, with why in plain words (RFC
// 9003). A switch that keeps paths through a NOTIFICATION has to get it within a Hard Reset (RFC
// 8538, section 3.1), which GoBGP cannot send with a text.
func shutdownMessage(why string, hard bool) ([]byte, error) {
	const most = 255 // octets, RFC 9003, section 2
	text := strings.ToValidUTF8(why[:min(len(why), most)], "")
	code, subcode, data := uint8(bgp.BGP_ERROR_CEASE), uint8(bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN), append([]byte{byte(len(text))}, text...)
	if hard {
		subcode, data = bgp.BGP_ERROR_SUB_HARD_RESET, append([]byte{code, subcode}, data...)
	}
	return bgp.NewBGPNotificationMessage(code, subcode, data).Serialize()
}

// cease gives a Cease's subcode its name (RFC 4486, section 3; RFC 8538, section 3; RFC 9384)
// and the operator's next step.
func cease(subcode uint8) (text, next string) {
	const look = "look at the switch's log"
	switch subcode {
	case 1:
		return "maximum number of prefixes reached", "raise the switch's prefix limit for this neighbour, or advertise less"
	case 2:
		return "administrative shutdown", "enable the neighbour on the switch"
	case 3:
		return "peer de-configured", "configure the neighbour on the switch"
	case 4:
		return "administrative reset", "nothing to do, the session comes back"
	case 5:
		return "connection rejected", "configure this node as neighbour on the switch"
	case 6:
		return "other configuration change", "nothing to do, the session comes back"
	case 7:
		return "connection collision resolution", "nothing to do, the session comes back"
	case 8:
		return "out of resources", look
	case 9:
		return "hard reset", "nothing to do, the session comes back"
	case 10:
		return "BFD down", "check the link, or switch BFD off for this neighbour"
	}
	return fmt.Sprintf("subcode %d", subcode), look
}
