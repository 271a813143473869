package paths

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

const (
	// tagBytes is the length of a tag: HMAC-SHA-256 (RFC 2104), cut to its first 128 bits as its section 5 allows.
	tagBytes = 16
	// leastKey is the length of the shortest key, in bytes.
	leastKey = 16
	// The keys of the Secret's data.
	secretKey      = "key"
	secretPrevious = "previous"
)

// Key proves that a datagram comes from a node of the cluster. Without a key, the addresses of nodes and pods are the
// only proof, and every datagram is right.
type Key struct {
	own      []byte // makes the tags
	previous []byte // is accepted too; nil: there is none
}

// KeyOf returns the key that the data of a Secret has. got says what is there instead; then there is no key.
func KeyOf(data map[string][]byte) (k Key, got string) {
	own, ok := data[secretKey]
	previous := data[secretPrevious]
	if len(previous) == 0 {
		previous = nil // an empty key proves nothing
	}
	switch {
	case !ok:
		return Key{}, "a Secret without that key"
	case len(own) < leastKey:
		return Key{}, fmt.Sprintf("a value of %d bytes", len(own))
	case previous != nil && len(previous) < leastKey:
		return Key{}, fmt.Sprintf("a value of %d bytes in the key %s", len(previous), secretPrevious)
	}
	return Key{own: own, previous: previous}, ""
}

// sign writes the tag into the datagram's last bytes.
func (k Key) sign(b []byte) {
	if k.own != nil {
		copy(b[len(b)-tagBytes:], tag(k.own, b))
	}
}

// proves reports whether the datagram's tag is right.
func (k Key) proves(b []byte) bool {
	if k.own == nil {
		return true
	}
	if len(b) < headBytes+tagBytes {
		return false
	}
	at := b[len(b)-tagBytes:]
	return hmac.Equal(at, tag(k.own, b)) || k.previous != nil && hmac.Equal(at, tag(k.previous, b))
}

// tag is the tag of a datagram whose last bytes are the tag's. It covers all bytes before them. It does not cover
// addresses: where packets are translated, the two ends do not see the same.
func tag(key, b []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(b[:len(b)-tagBytes])
	return mac.Sum(nil)[:tagBytes]
}
