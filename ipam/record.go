package ipam

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
)

// addrKey sorts addresses by family, then by value.
func addrKey(a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append([]byte{4}, b[:]...)
	}
	b := a.As16()
	return append([]byte{6}, b[:]...)
}

func parseAddrKey(k []byte) (netip.Addr, bool) {
	switch {
	case len(k) == 5 && k[0] == 4:
		return netip.AddrFrom4([4]byte(k[1:])), true
	case len(k) == 17 && k[0] == 6:
		return netip.AddrFrom16([16]byte(k[1:])), true
	}
	return netip.Addr{}, false
}

// key is the attachment's key in leases. It is a hash, since container IDs are long and each page of the
// tree above the records holds such keys. The record names the attachment (txn.leaseOf compares).
func (a Attachment) key() []byte {
	h := fnv.New128a()
	h.Write([]byte(a.ContainerID))
	h.Write([]byte{0})
	h.Write([]byte(a.IfName))
	return h.Sum(nil)
}

// memoryKey is the key under which an address remembers its last pod. The same pod on another network or
// interface has another key. Empty: nobody is remembered.
func memoryKey(network string, p Pod, ifName string) string {
	if p.Name == "" {
		return ""
	}
	return strings.Join([]string{network, p.Namespace, p.Name, ifName}, "\x00")
}

// freeKey orders the free addresses of a family by their release.
func freeKey(freed uint64, addr []byte) []byte {
	k := append(make([]byte, 0, freeKeyHead+len(addr)), addr[0])
	return append(binary.BigEndian.AppendUint64(k, freed), addr...)
}

// freeKeyHead and podKeyHead count the bytes before the address.
const (
	freeKeyHead = 1 + 8
	podKeyHead  = 8 + 1 + 8
)

// podKey lists an address under its memory: free addresses before held ones, and the last lease first.
// The memory is hashed, since names are long and each hit is compared with the entry anyway.
func podKey(e entry, addr []byte) []byte {
	k := append(podPrefix(e.memory), e.podState())
	k = binary.BigEndian.AppendUint64(k, ^e.leased)
	return append(k, addr...)
}

func podPrefix(memory string) []byte {
	h := fnv.New64a()
	h.Write([]byte(memory))
	return h.Sum(make([]byte, 0, podKeyHead+17))
}

// podFree and podHeld are the states in podKey.
const podFree, podHeld = 0, 1

func (e entry) podState() byte {
	if e.held {
		return podHeld
	}
	return podFree
}

// held is a lease as stored.
type held struct {
	Seq   uint64 `json:"seq"` // order of allocation
	Lease Lease  `json:"lease"`
}

func (h held) memory() string {
	return memoryKey(cmp.Or(h.Lease.RememberAs, h.Lease.Network), h.Lease.Pod, h.Lease.Attachment.IfName)
}

func decodeHeld(data []byte) (held, error) {
	var h held
	return h, decodeStrict(data, &h)
}

func decodeStrict(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if d.More() {
		return errors.New("trailing data")
	}
	return nil
}

// entry describes one known address: it is held, or it was held and is free.
type entry struct {
	held   bool
	leased uint64 // sequence number of the last lease
	freed  uint64 // if free: sequence number of the release, 0 when the memory was dropped
	holder string // if held: key of the attachment
	memory string // memoryKey of the last pod
}

// known tells an entry from the zero entry.
func (e entry) known() bool { return e.leased != 0 }

const entryHeld = 1

func (e entry) encode() []byte {
	var flags byte
	if e.held {
		flags |= entryHeld
	}
	b := binary.AppendUvarint([]byte{flags}, e.leased)
	b = binary.AppendUvarint(b, e.freed)
	b = appendString(b, e.holder)
	return appendString(b, e.memory)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func decodeEntry(b []byte) (entry, error) {
	r := reader{b: b}
	flags := r.byte()
	e := entry{held: flags&entryHeld != 0, leased: r.uint(), freed: r.uint(), holder: r.string(), memory: r.string()}
	if r.bad || len(r.b) > 0 || flags&^entryHeld != 0 || !e.known() || e.held != (e.holder != "") || e.held && e.freed != 0 {
		return entry{}, fmt.Errorf("malformed entry %x", b)
	}
	return e, nil
}

// reader takes values off a record; bad is set when a value is missing.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	x := r.b[0]
	r.b = r.b[1:]
	return x
}

func (r *reader) uint() uint64 {
	x, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return x
}

func (r *reader) string() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
