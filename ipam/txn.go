package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"
)

// The buckets of the file, schema 3. Every value starts with a checksum (table).
//
//	meta      "schema", "state", "pool", "unnamed"
//	lease     attachment -> held
//	address   address -> entry               held by a lease, or free: at most maxFree of these
//	free      family, release, address       free addresses, longest free first
//	pod       pod, free or held, ^lease, address   which addresses a pod had, the last first
//
// Schemas 1 and 2 are read by migrate.go.
const (
	bucketMeta   = "meta"
	bucketLeases = "lease"
	bucketAddrs  = "address"
	bucketFree   = "free"
	bucketPods   = "pod"
)

// schema is the version of this layout.
const schema = 3

// The records of meta. Every schema has schema and state, so that an older program says that it is too
// old.
const (
	keySchema  = "schema"
	keyState   = "state"
	keyPool    = "pool"
	keyUnnamed = "unnamed" // a new file, whose name may not be on disk yet
)

// maxFree is how many free addresses the store knows, of all pools and both families together. Above this
// number it forgets the longest free addresses. At this number a pod gets the longest free address and
// not one that was never used: an IPv6 /64 would give each pod a new address for ever.
//
// A free address takes some 200 bytes of the file. A node of 250 pods with two families can replace each
// pod eight times before the store forgets an address.
const maxFree = 4096

// txn is one bbolt transaction with the buckets open.
type txn struct {
	meta, leases, addrs, free, pods table

	now    time.Time
	bootID string
	state  state
	dirty  bool // something was written

	maxFree uint64
	hints   hints
}

// state holds the counts, which would cost a walk otherwise.
type state struct {
	seq    uint64 // last sequence number given out
	leases uint64 // records in leases
	held   uint64 // held addresses
	free   uint64 // free addresses that are known
	commit uint64 // number of the bbolt transaction that wrote this
	boot   string // ID of the boot that wrote this
}

func (s state) encode() []byte {
	var b []byte
	for _, n := range [...]uint64{s.seq, s.leases, s.held, s.free, s.commit} {
		b = binary.AppendUvarint(b, n)
	}
	return appendString(b, s.boot)
}

func decodeState(b []byte) (state, error) {
	r := reader{b: b}
	s := state{r.uint(), r.uint(), r.uint(), r.uint(), r.uint(), r.string()}
	if r.bad || len(r.b) > 0 {
		return state{}, fmt.Errorf("malformed state %x", b)
	}
	return s, nil
}

// begin opens the buckets of tx and reads the state. A state that the last commit did not write shows
// that its root page never reached the disk: an older, intact root page is there.
func begin(tx *bbolt.Tx, bootID string) (*txn, error) {
	t, err := beginCopy(tx, bootID)
	if err != nil {
		return nil, err
	}
	last := uint64(tx.ID())
	if tx.Writable() {
		last--
	}
	if t.state.commit != last {
		return nil, t.meta.damaged([]byte(keyState), fmt.Sprintf("written by commit %d, the last is %d", t.state.commit, last))
	}
	return t, nil
}

// beginCopy is begin for a file whose commits were counted elsewhere.
func beginCopy(tx *bbolt.Tx, bootID string) (*txn, error) {
	t := newTxn(tx, bootID)
	for _, tab := range t.tables() {
		if tab.b == nil {
			return nil, fmt.Errorf("%w: bucket %s is missing", ErrDamaged, tab.name)
		}
	}
	raw, ok, err := t.meta.get([]byte(keyState))
	if err == nil && !ok {
		err = t.meta.damaged([]byte(keyState), "the record is missing")
	}
	if err != nil {
		return nil, err
	}
	if t.state, err = decodeState(raw); err != nil {
		return nil, fmt.Errorf("state: %w: %w", ErrDamaged, err)
	}
	return t, nil
}

func newTxn(tx *bbolt.Tx, bootID string) *txn {
	t := &txn{bootID: bootID, now: time.Now(), maxFree: maxFree}
	for name, tab := range t.tables() {
		*tab = table{name: name, b: tx.Bucket([]byte(name)), t: t}
	}
	if t.addrs.b != nil {
		t.addrs.b.FillPercent = 0.9 // addresses are mostly first leased in ascending order
	}
	return t
}

func (t *txn) tables() map[string]*table {
	return map[string]*table{bucketMeta: &t.meta, bucketLeases: &t.leases, bucketAddrs: &t.addrs, bucketFree: &t.free, bucketPods: &t.pods}
}

// schemaOf refuses a file that this program does not understand.
func schemaOf(tx *bbolt.Tx) (uint64, error) {
	meta := newTxn(tx, "").meta
	if meta.b == nil {
		return 0, fmt.Errorf("%w: bucket %s is missing", ErrDamaged, bucketMeta)
	}
	raw, ok, err := meta.get([]byte(keySchema))
	if err != nil {
		return 0, err
	}
	r := reader{b: raw}
	found := r.uint()
	switch {
	case !ok || r.bad || found == 0:
		return 0, meta.damaged([]byte(keySchema), "not a version")
	case found > schema:
		return 0, fmt.Errorf("schema %d is newer than this program's %d; install the version that wrote it", found, schema)
	}
	return found, nil
}

// format makes the buckets of an empty file.
func format(tx *bbolt.Tx, bootID string) error {
	for name := range (&txn{}).tables() {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	t := newTxn(tx, bootID)
	if err := t.meta.put([]byte(keySchema), binary.AppendUvarint(nil, schema)); err != nil {
		return err
	}
	return t.finish()
}

// finish writes the state back. The transaction can then be committed.
func (t *txn) finish() error {
	if !t.dirty {
		return nil
	}
	if err := t.forgetOldest(); err != nil {
		return err
	}
	t.state.commit, t.state.boot = uint64(t.meta.b.Tx().ID()), t.bootID
	return t.meta.put([]byte(keyState), t.state.encode())
}

func (t *txn) nextSeq() uint64 {
	t.state.seq++
	return t.state.seq
}

// leaseOf returns the lease of an attachment.
func (t *txn) leaseOf(a Attachment) (held, bool, error) {
	h, ok, err := t.lease(a.key())
	if ok && h.Lease.Attachment != a {
		return held{}, false, t.leases.damaged(a.key(), "the record is of "+h.Lease.Attachment.String())
	}
	return h, ok, err
}

func (t *txn) lease(key []byte) (held, bool, error) {
	raw, ok, err := t.leases.get(key)
	if err != nil || !ok {
		return held{}, false, err
	}
	h, err := decodeHeld(raw)
	if err != nil {
		return held{}, false, t.leases.damaged(key, err.Error())
	}
	return h, true, nil
}

// holder returns the lease that holds an address; the lease must exist.
func (t *txn) holder(a netip.Addr, e entry) (held, error) {
	h, ok, err := t.lease([]byte(e.holder))
	if err == nil && !ok {
		err = t.addrs.damaged(addrKey(a), "its lease is missing")
	}
	return h, err
}

func (t *txn) entry(a netip.Addr) (entry, bool, error) {
	raw, ok, err := t.addrs.get(addrKey(a))
	if err != nil || !ok {
		return entry{}, false, err
	}
	e, err := decodeEntry(raw)
	if err != nil {
		return entry{}, false, t.addrs.damaged(addrKey(a), err.Error())
	}
	return e, true, nil
}

// eachEntry calls fn with the known addresses from the key on, in order; nil: with all.
func (t *txn) eachEntry(from []byte, fn func(netip.Addr, entry) (more bool, err error)) error {
	return t.addrs.each(from, func(k, v []byte) (bool, error) {
		a, ok := parseAddrKey(k)
		if !ok {
			return false, t.addrs.damaged(k, "not an address")
		}
		e, err := decodeEntry(v)
		if err != nil {
			return false, t.addrs.damaged(k, err.Error())
		}
		return fn(a, e)
	})
}

// eachOf calls fn with the known addresses of x, in order.
func (t *txn) eachOf(x area, fn func(netip.Addr, entry) (more bool, err error)) error {
	return t.eachEntry(addrKey(x.first), func(a netip.Addr, e entry) (bool, error) {
		if !x.contains(a) {
			return x.span.contains(a), nil
		}
		return fn(a, e)
	})
}

// store replaces what is known of a, last, with next, and updates free, pods and the counts: only store
// writes these four. The zero entry means that nothing is known.
func (t *txn) store(a netip.Addr, last, next entry) error {
	key := addrKey(a)
	if err := t.index(key, last, table.delete); err != nil {
		return err
	}
	put := func(tab table, k []byte) error { return tab.put(k, nil) }
	if err := t.index(key, next, put); err != nil {
		return err
	}
	for _, x := range [...]struct {
		entry
		n uint64
	}{{last, ^uint64(0)}, {next, 1}} {
		switch {
		case x.held:
			t.state.held += x.n
		case x.known():
			t.state.free += x.n
		}
	}
	if !next.known() {
		return t.addrs.delete(key)
	}
	return t.addrs.put(key, next.encode())
}

// index calls do with the index records of an address.
func (t *txn) index(key []byte, e entry, do func(table, []byte) error) error {
	if e.memory != "" {
		if err := do(t.pods, podKey(e, key)); err != nil {
			return err
		}
	}
	if e.known() && !e.held {
		return do(t.free, freeKey(e.freed, key))
	}
	return nil
}

// forgetOldest forgets the longest free addresses when there are more than maxFree.
func (t *txn) forgetOldest() error {
	for t.state.free > t.maxFree {
		var oldest netip.Addr
		var known entry
		for _, family := range []byte{4, 6} {
			a, e, ok, err := t.firstFree(family, func(netip.Addr) bool { return true })
			if err != nil {
				return err
			}
			if ok && (!oldest.IsValid() || e.freed < known.freed) {
				oldest, known = a, e
			}
		}
		if !oldest.IsValid() {
			return t.meta.damaged([]byte(keyState), "counts more free addresses than there are")
		}
		if err := t.store(oldest, known, entry{}); err != nil {
			return err
		}
		t.hints.back(oldest)
	}
	return nil
}

// firstFree is the address of a family that was released first, among those that in accepts.
func (t *txn) firstFree(family byte, in func(netip.Addr) bool) (addr netip.Addr, e entry, ok bool, err error) {
	err = t.free.each([]byte{family}, func(k, _ []byte) (bool, error) {
		if k[0] != family {
			return false, nil
		}
		if len(k) < freeKeyHead {
			return false, t.free.damaged(k, "not a free address")
		}
		a, isAddr := parseAddrKey(k[freeKeyHead:])
		if !isAddr {
			return false, t.free.damaged(k, "not an address")
		}
		if !in(a) {
			return true, nil
		}
		e, ok, err = t.entry(a)
		if err == nil && (!ok || e.held || e.freed != binary.BigEndian.Uint64(k[1:])) {
			err = t.free.damaged(k, "the address is not free")
		}
		addr = a
		return false, err
	})
	return addr, e, ok && err == nil, err
}
