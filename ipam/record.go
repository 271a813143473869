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

// key of an attachment in leases: a hash, since container IDs are long and each page of the
// tree above the records holds such keys. The record names the attachment (txn.lease compares).
// The first byte keeps every key behind chainHead.
func (a Attachment) key() []byte {
	h := fnv.New128a()
	h.Write([]byte(a.ContainerID))
	h.Write([]byte{0})
	h.Write([]byte(a.IfName))
	return h.Sum([]byte{1})
}

// memoryKey is under which an address remembers its last pod: the same pod on another network
// or interface is another key. Empty: remembered by nobody.
func memoryKey(network string, p Pod, ifName string) string {
	if p.Name == "" {
		return ""
	}
	return strings.Join([]string{network, p.Namespace, p.Name, ifName}, "\x00")
}

// queueKey orders the free addresses of an area by release.
func queueKey(home uint32, freed uint64, addr []byte) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 12+len(addr)), home)
	return append(binary.BigEndian.AppendUint64(k, freed), addr...)
}

// deadKey orders the addresses of an area that dead leases hold by boot, then by allocation.
func deadKey(home, boot uint32, leased uint64, addr []byte) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 16+len(addr)), home)
	k = binary.BigEndian.AppendUint32(k, boot)
	return append(binary.BigEndian.AppendUint64(k, leased), addr...)
}

// podKey lists an address under its memory: those that are free before those that are held, and
// the last lease first. The memory is hashed: names are long, and what is found is compared with
// the entry anyway.
func (t *txn) podKey(e entry, addr []byte) []byte {
	k := podPrefix(make([]byte, 0, 17+len(addr)), e.memory)
	if t.schema > 1 {
		k = append(k, e.podState())
		k = binary.BigEndian.AppendUint64(k, ^e.leased)
	}
	return append(k, addr...)
}

func podPrefix(k []byte, memory string) []byte {
	h := fnv.New64a()
	h.Write([]byte(memory))
	return h.Sum(k)
}

// podFree and podHeld stand in podKey.
const podFree, podHeld = 0, 1

func (e entry) podState() byte {
	if e.held {
		return podHeld
	}
	return podFree
}

// held is a lease as it is stored.
type held struct {
	Seq   uint64 `json:"seq"`  // order of allocation
	Boot  uint32 `json:"boot"` // ordinal of Lease.BootID
	Lease Lease  `json:"lease"`
}

func (h held) memory() string {
	return memoryKey(cmp.Or(h.Lease.RememberAs, h.Lease.Network), h.Lease.Pod, h.Lease.Attachment.IfName)
}

func (h held) encode() ([]byte, error) { return json.Marshal(h) }

func decodeHeld(data []byte) (held, error) {
	var h held
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return held{}, err
	}
	if d.More() {
		return held{}, errors.New("trailing data")
	}
	return h, nil
}

// entry is what is known of one address that was ever leased.
type entry struct {
	held   bool
	home   uint32 // the area whose queues list it
	boot   uint32 // held: ordinal of the lease's boot
	leased uint64 // sequence number of its last lease
	freed  uint64 // free: sequence number of its release, 0 when its memory was dropped
	holder string // held: key of the attachment
	memory string // memoryKey of its last pod
}

const entryHeld = 1

func (e entry) encode() []byte {
	var flags byte
	if e.held {
		flags |= entryHeld
	}
	b := []byte{flags}
	b = binary.AppendUvarint(b, uint64(e.home))
	b = binary.AppendUvarint(b, uint64(e.boot))
	b = binary.AppendUvarint(b, e.leased)
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
	e := entry{held: flags&entryHeld != 0, home: r.uint32(), boot: r.uint32(), leased: r.uint(), freed: r.uint(), holder: r.string(), memory: r.string()}
	switch {
	case r.bad || len(r.b) > 0 || flags&^entryHeld != 0:
		return entry{}, fmt.Errorf("malformed entry %x", b)
	case e.held != (e.holder != "") || e.held && e.freed != 0:
		return entry{}, fmt.Errorf("entry %x is held by nobody or free with a holder", b)
	}
	return e, nil
}

// reader takes values off a record; bad is set when one was not there.
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

func (r *reader) uint32() uint32 {
	x := r.uint()
	if x > 1<<32-1 {
		r.bad = true
	}
	return uint32(x)
}

func (r *reader) string() string { return string(r.bytes()) }

// bytes shares the memory of the record, and has no room to grow into it.
func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	s := r.b[:n:n]
	r.b = r.b[n:]
	return s
}
