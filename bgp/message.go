package bgp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// message is one BGP message with its header (RFC 4271, section 4.1).
type message []byte

var marker = bytes.Repeat([]byte{0xff}, 16) // read only

func (m message) kind() uint8 { return m[18] }

// readMessage reads one message. If RFC 4271, section 6.1 does not allow the header, the error is a
// refusal.
func readMessage(r io.Reader) (message, error) {
	m := make(message, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(m[16:]))
	switch {
	case !bytes.Equal(m[:16], marker):
		return nil, refusal{1, 1, nil}
	case n < bgp.BGP_HEADER_LENGTH || n > bgp.BGP_MAX_MESSAGE_LENGTH:
		return nil, refusal{1, 2, m[16:18]}
	case m.kind() < bgp.BGP_MSG_OPEN || m.kind() > bgp.BGP_MSG_ROUTE_REFRESH:
		return nil, refusal{1, 3, m[18:19]}
	}
	m = append(m, make([]byte, n-len(m))...)
	_, err := io.ReadFull(r, m[bgp.BGP_HEADER_LENGTH:])
	return m, err
}

// endOfRIB reports whether an UPDATE is an End-of-RIB (RFC 4724, section 2), and for which family.
func (m message) endOfRIB() (ipv4, ipv6 bool) {
	body := m[bgp.BGP_HEADER_LENGTH:]
	switch {
	case bytes.Equal(body, []byte{0, 0, 0, 0}):
		return true, false
	case len(body) >= 10 && body[0] == 0 && body[1] == 0 && body[5] == byte(bgp.BGP_ATTR_TYPE_MP_UNREACH_NLRI):
		family := body[len(body)-3:]
		length := int(body[6])
		if body[4]&byte(bgp.BGP_ATTR_FLAG_EXTENDED_LENGTH) != 0 {
			length = int(binary.BigEndian.Uint16(body[6:]))
		}
		return false, length == 3 && bytes.Equal(family, []byte{0, bgp.AFI_IP6, bgp.SAFI_UNICAST})
	}
	return false, false
}

// endOfRIB returns the End-of-RIB of a family, bgp.AFI_IP or bgp.AFI_IP6.
func endOfRIB(family uint16) message {
	body := []byte{0, 0, 0, 0}
	if family == bgp.AFI_IP6 {
		body = []byte{0, 0, 0, 6, byte(bgp.BGP_ATTR_FLAG_OPTIONAL), byte(bgp.BGP_ATTR_TYPE_MP_UNREACH_NLRI), 3, 0, bgp.AFI_IP6, bgp.SAFI_UNICAST}
	}
	m := append(message{}, marker...)
	m = binary.BigEndian.AppendUint16(m, uint16(bgp.BGP_HEADER_LENGTH+len(body)))
	return append(append(m, bgp.BGP_MSG_UPDATE), body...)
}

// without returns an OPEN without the capability.
func (m message) without(capability bgp.BGPCapabilityCode) message {
	parsed, err := bgp.ParseBGPMessage(m)
	if err != nil {
		return m
	}
	for _, p := range parsed.Body.(*bgp.BGPOpen).OptParams {
		if p, ok := p.(*bgp.OptionParameterCapability); ok {
			p.Capability = slices.DeleteFunc(p.Capability, func(c bgp.ParameterCapabilityInterface) bool { return c.Code() == capability })
		}
	}
	parsed.Header.Len = 0 // to be computed
	out, err := parsed.Serialize()
	if err != nil {
		return m
	}
	return out
}

// notification is the message that ends a session (RFC 4271, section 4.5).
type notification struct {
	code, subcode uint8
	data          []byte
}

func notificationOf(m message) notification {
	body := append(m[bgp.BGP_HEADER_LENGTH:], 0, 0) // a message that is too short has the code 0
	return notification{body[0], body[1], m[min(len(m), bgp.BGP_HEADER_LENGTH+2):]}
}

func (n notification) message() message {
	m := append(message{}, marker...)
	m = binary.BigEndian.AppendUint16(m, uint16(bgp.BGP_HEADER_LENGTH+2+len(n.data)))
	return append(append(m, bgp.BGP_MSG_NOTIFICATION, n.code, n.subcode), n.data...)
}

// refusal is an error that is sent to the switch in a NOTIFICATION.
type refusal notification

func (r refusal) Error() string { return notification(r).String() }

// refusalOf returns the refusal for an error of GoBGP's parser.
func refusalOf(err error) error {
	var bad *bgp.MessageError
	if !errors.As(err, &bad) {
		return refusal{2, 0, nil} // an OPEN message error, unspecific (RFC 4271, section 6.2)
	}
	return refusal{bad.TypeCode, bad.SubTypeCode, bad.Data}
}

// inner returns the NOTIFICATION that a Hard Reset encloses (RFC 8538, section 3.1), or n itself.
func (n notification) inner() notification {
	if n.code == bgp.BGP_ERROR_CEASE && n.subcode == bgp.BGP_ERROR_SUB_HARD_RESET && len(n.data) >= 2 {
		return notification{n.data[0], n.data[1], n.data[2:]}
	}
	return n
}

// text returns the message of the switch's operator (RFC 9003).
func (n notification) text() string {
	if !n.is(6, 2) && !n.is(6, 4) || len(n.data) == 0 {
		return ""
	}
	return string(n.data[1:min(1+int(n.data[0]), len(n.data))])
}

func (n notification) is(code, subcode uint8) bool { return n.code == code && n.subcode == subcode }

// leaves reports whether the switch has removed or disabled this neighbour: administrative shutdown or
// peer de-configured (RFC 4486, section 3).
func (n notification) leaves() bool { return n.is(6, 2) || n.is(6, 3) }

// farewell returns the NOTIFICATION that ends a session for good, with a text (RFC 9003). A switch that
// keeps the paths at a NOTIFICATION must get a Hard Reset around it (RFC 8538, section 3.1).
func farewell(why string, hard bool) notification {
	const most = 255 // octets, RFC 9003, section 2
	text := strings.ToValidUTF8(why[:min(len(why), most)], "")
	n := notification{6, 2, append([]byte{byte(len(text))}, text...)}
	if hard {
		n = notification{6, 9, append([]byte{n.code, n.subcode}, n.data...)}
	}
	return n
}

// String returns the error's name, with its numbers in brackets: "Cease, administrative shutdown (6/2)".
func (n notification) String() string {
	name := codes[n.code].name
	if name == "" {
		return fmt.Sprintf("error %d/%d", n.code, n.subcode)
	}
	if sub := codes[n.code].subcodes[n.subcode]; sub != "" {
		name += ", " + sub
	}
	return fmt.Sprintf("%s (%d/%d)", name, n.code, n.subcode)
}

// codes has the names of NOTIFICATION errors from IANA's registry "BGP Error (Notification) Codes".
var codes = map[uint8]struct {
	name     string
	subcodes map[uint8]string
}{ // read only
	// RFC 4271, section 6.1
	1: {"message header error", map[uint8]string{1: "connection not synchronized", 2: "bad message length", 3: "bad message type"}},
	// RFC 4271, section 6.2; RFC 5492, section 5; RFC 9234, section 4.2
	2: {"OPEN message error", map[uint8]string{1: "unsupported version number", 2: "bad peer AS", 3: "bad BGP identifier",
		4: "unsupported optional parameter", 5: "authentication failure", 6: "unacceptable hold time", 7: "unsupported capability", 11: "role mismatch"}},
	// RFC 4271, section 6.3
	3: {"UPDATE message error", map[uint8]string{1: "malformed attribute list", 2: "unrecognized well-known attribute", 3: "missing well-known attribute",
		4: "attribute flags error", 5: "attribute length error", 6: "invalid ORIGIN attribute", 7: "AS routing loop", 8: "invalid NEXT_HOP attribute",
		9: "optional attribute error", 10: "invalid network field", 11: "malformed AS_PATH"}},
	// RFC 4271, section 6.5
	4: {"hold timer expired", nil},
	// RFC 6608
	5: {"finite state machine error", map[uint8]string{1: "unexpected message in OpenSent", 2: "unexpected message in OpenConfirm", 3: "unexpected message in Established"}},
	// RFC 4486, section 3; RFC 8538, section 3; RFC 9384
	6: {"Cease", map[uint8]string{1: "maximum number of prefixes reached", 2: "administrative shutdown", 3: "peer de-configured", 4: "administrative reset",
		5: "connection rejected", 6: "other configuration change", 7: "connection collision resolution", 8: "out of resources", 9: "hard reset", 10: "BFD down"}},
	// RFC 7313, section 5
	7: {"ROUTE-REFRESH message error", map[uint8]string{1: "invalid message length"}},
	// RFC 9687
	8: {"send hold timer expired", nil},
}
