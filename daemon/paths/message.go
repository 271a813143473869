package paths

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// A datagram is
//
//	"EWP1", 2 bytes length of the JSON (big endian), JSON, zeros up to its size, 16 bytes for a tag
//
// The tag is zeros, or a Key's. Who has no key ignores the tag, as it ignores the zeros.
//
// The next version of the form gets another number. A receiver ignores numbers that it does not know, so that nodes
// of several versions live together.
const (
	magic       = "EWP1"
	headBytes   = len(magic) + 2
	smallBytes  = 700 // of a small question, with room for an answer of the same length
	mostAddrs   = 4   // in an answer
	mostText    = 253 // bytes of each text in an answer: the longest name of a Node (RFC 1123, DNS subdomain)
	questionOf  = "q"
	answerTo    = "a"
	otherKey    = "o"  // answers a question whose tag is of another key, or of none
	otherBytes  = 64   // of such an answer
	maxDatagram = 9216 // of a jumbo frame; a larger one is cut, and then ignored
)

// message is a question or an answer. Every field but Kind and ID belongs to an answer. A question of a node with uplinks
// also has Uplink, from the node itself, or Name and Pass, from its canary.
type message struct {
	Kind string `json:"k"`
	ID   uint64 `json:"id"` // chosen by the asker, at random
	Answer
}

// Answer is what a node says of itself.
type Answer struct {
	Name    string       `json:"name,omitempty"`
	Version string       `json:"version,omitempty"`
	Terms   Terms        `json:"terms,omitzero"`
	MTU     int          `json:"mtu,omitempty"`    // of its pods, in bytes
	Canary  []netip.Addr `json:"canary,omitempty"` // of its canary, in its pod CIDRs
	// Uplink are its canary's addresses outside its pod CIDRs. An earlier version does not read them, and so it neither
	// asks there nor judges. A question from the node itself has the address of the question's family.
	Uplink []netip.Addr `json:"uplink,omitempty"`
	// Pass lets the canary that the question named in Uplink ask this node's canary (see pass). 0: it is refused, or not asked for.
	Pass uint64     `json:"pass,omitempty"`
	Saw  netip.Addr `json:"saw,omitzero"` // the source address of the question
	// Heard is how many other nodes' canaries its own canary has heard lately.
	Heard int `json:"heard,omitempty"`
	// HeardYou: one of them is the asker's.
	HeardYou bool `json:"heardYou,omitempty"`
	// Cause is the reason of its own problem that cuts its pods off.
	Cause string `json:"cause,omitempty"`
}

// canaries are all addresses of the node's canary; none: it has no canary.
func (a Answer) canaries() []netip.Addr { return slices.Concat(a.Canary, a.Uplink) }

// HasCanary reports whether the node has a canary.
func (a Answer) HasCanary() bool { return len(a.Canary)+len(a.Uplink) > 0 }

// encode writes a message into a datagram of size bytes. ok is false if it does not fit.
func encode(m message, size int) (out []byte, ok bool) {
	text, err := json.Marshal(m)
	if err != nil || len(text) > size-headBytes-tagBytes {
		return nil, false
	}
	out = make([]byte, size)
	copy(out, magic)
	binary.BigEndian.PutUint16(out[len(magic):], uint16(len(text)))
	copy(out[headBytes:], text)
	return out, true
}

// decode reads a datagram. ok is false for everything that is not a message.
func decode(b []byte) (m message, ok bool) {
	if len(b) < headBytes || string(b[:len(magic)]) != magic {
		return m, false
	}
	n := int(binary.BigEndian.Uint16(b[len(magic):]))
	if n > len(b)-headBytes || json.Unmarshal(b[headBytes:headBytes+n], &m) != nil || len(m.Canary) > mostAddrs || len(m.Uplink) > mostAddrs {
		return m, false
	}
	for _, text := range []string{m.Name, m.Version, m.Terms.Mode, m.Cause} {
		if !isWord(text) {
			return m, false
		}
	}
	return m, true
}

// isWord reports that a text of another machine can be shown to an operator: it is short, and without spaces and
// control characters.
func isWord(text string) bool {
	return len(text) <= mostText && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}
