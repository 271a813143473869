package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"
)

// The buckets of the file, schema 2. Every value starts with a checksum (table).
//
//	meta    "schema", "state", "journal", "pool", "unnamed", "boot/"+boot ID -> ordinal
//	areas   area number -> areaState
//	journal number -> changes of one commit in the tables below, which are trees
//	leases  attachment -> held              (chain)
//	addrs   address -> entry                (chain) every address that was ever leased
//	queue   area, release, address          free addresses, longest free first
//	dead    area, boot, allocation, address held by leases of earlier boots (txn.sweep)
//	pods    hash of memoryKey, free or held, lease, address: which addresses a pod had, the last first
//
// Schema 1 had no journal, and in pods only hash and address (migrate.go).
const (
	bucketMeta    = "meta"
	bucketAreas   = "areas"
	bucketJournal = "journal"
	bucketLeases  = "leases"
	bucketAddrs   = "addrs"
	bucketQueue   = "queue"
	bucketDead    = "dead"
	bucketPods    = "pods"
)

func bucketNames() []string {
	return []string{bucketMeta, bucketAreas, bucketJournal, bucketLeases, bucketAddrs, bucketQueue, bucketDead, bucketPods}
}

// schema is the version of this layout.
const schema = 2

// The records of meta. State keeps its form in every schema, so that an older program comes as far
// as the schema and says that it is too old.
const (
	keySchema  = "schema"
	keyState   = "state"
	keyJournal = "journal"
	keyPool    = "pool"
	keyBoot    = "boot/"
	keyUnnamed = "unnamed" // a new file, whose name may not be on disk yet
)

// txn is one bbolt transaction with the buckets open.
type txn struct {
	leases, addrs                           chain
	meta, areas, journal, queue, dead, pods table

	recent writer // what the journal says, and this transaction
	schema uint64

	now    time.Time
	bootID string
	boot   uint32 // ordinal of bootID; 0: not registered yet
	state  state
	dirty  bool // something was written

	registered []*areaState                // all areas, once loaded
	foundAs    func(Attachment) Attachment // Options.FoundAs, for correct
	lives      func(Lease) bool            // Options.Lives, for correct
}

// state counts what must never be counted by walking.
type state struct {
	seq    uint64 // last sequence number given out
	leases uint64 // records in leases
	held   uint64 // held addresses
	boots  uint32 // boot ordinals given out
	areas  uint32 // area numbers given out
	last   uint32 // ordinal of the boot that wrote last
	swept  uint32 // ordinal of the boot for which "dead" is complete, 0: none
	commit uint64 // number of the bbolt transaction that wrote this
}

func (s state) encode() []byte {
	b := binary.AppendUvarint(nil, s.seq)
	b = binary.AppendUvarint(b, s.leases)
	b = binary.AppendUvarint(b, s.held)
	b = binary.AppendUvarint(b, uint64(s.boots))
	b = binary.AppendUvarint(b, uint64(s.areas))
	b = binary.AppendUvarint(b, uint64(s.last))
	b = binary.AppendUvarint(b, uint64(s.swept))
	return binary.AppendUvarint(b, s.commit)
}

func decodeState(b []byte) (state, error) {
	r := reader{b: b}
	s := state{r.uint(), r.uint(), r.uint(), r.uint32(), r.uint32(), r.uint32(), r.uint32(), r.uint()}
	if r.bad || len(r.b) > 0 {
		return state{}, fmt.Errorf("malformed state %x", b)
	}
	return s, nil
}

// begin opens the buckets of tx and reads the state; known may be the journal's content. A state
// that another commit wrote than the last shows a root page that never reached the disk: what
// stands there is an older one, whole in itself.
func begin(tx *bbolt.Tx, bootID string, known *recent) (*txn, error) {
	last := uint64(tx.ID())
	if tx.Writable() {
		last--
	}
	if known != nil && known.commit != last {
		known = nil // the journal of another commit
	}
	t, err := beginCopy(tx, bootID, known)
	if err != nil {
		return nil, err
	}
	if t.state.commit != last {
		return nil, t.meta.damaged([]byte(keyState), fmt.Sprintf("written by commit %d, the last is %d", t.state.commit, last))
	}
	return t, nil
}

// beginCopy is begin in a file whose commits were counted elsewhere.
func beginCopy(tx *bbolt.Tx, bootID string, known *recent) (*txn, error) {
	t := &txn{bootID: bootID, now: time.Now()}
	t.meta = table{name: bucketMeta, b: tx.Bucket([]byte(bucketMeta)), t: t}
	if t.meta.b == nil {
		return nil, fmt.Errorf("bucket %s: %w: it is missing", bucketMeta, ErrDamaged)
	}
	if err := t.readSchema(); err != nil {
		return nil, err
	}
	t.areas = table{name: bucketAreas, b: tx.Bucket([]byte(bucketAreas)), t: t}
	t.journal = table{name: bucketJournal, b: tx.Bucket([]byte(bucketJournal)), t: t}
	if t.areas.b == nil || t.journal.b == nil && t.schema > 1 {
		return nil, fmt.Errorf("bucket %s or %s: %w: it is missing", bucketAreas, bucketJournal, ErrDamaged)
	}
	trees := t.trees()
	for i, name := range treeNames() {
		b := tx.Bucket([]byte(name))
		if b == nil {
			return nil, fmt.Errorf("bucket %s: %w: it is missing", name, ErrDamaged)
		}
		*trees[i] = table{name: name, b: b, t: t, number: i, journaled: true}
	}
	t.addrs.b.FillPercent = 0.9 // addresses are mostly first leased in ascending order
	if err := t.readState(); err != nil {
		return nil, err
	}
	if known == nil && t.schema > 1 {
		var err error
		if known, err = t.loadRecent(); err != nil {
			return nil, err
		}
	}
	if known != nil {
		t.recent.recent = *known
	}
	return t, nil
}

// readSchema refuses a file that this program does not understand.
func (t *txn) readSchema() error {
	raw, ok, err := t.meta.get([]byte(keySchema))
	if err != nil {
		return err
	}
	r := reader{b: raw}
	t.schema = r.uint()
	switch {
	case !ok || r.bad || t.schema == 0:
		return t.meta.damaged([]byte(keySchema), "not a version")
	case t.schema > schema:
		return fmt.Errorf("schema %d is newer than this program's %d; install the version that wrote it", t.schema, schema)
	}
	return nil
}

func (t *txn) readState() error {
	raw, ok, err := t.meta.get([]byte(keyState))
	if err == nil && !ok {
		err = t.meta.damaged([]byte(keyState), "the record is missing")
	}
	if err != nil {
		return err
	}
	if t.state, err = decodeState(raw); err != nil {
		return fmt.Errorf("state: %w: %w", ErrDamaged, err)
	}
	if _, ok, err := t.meta.get([]byte(keyBoot + t.bootID)); err != nil || !ok {
		return err
	}
	_, err = t.thisBoot()
	return err
}

// format makes the buckets of an empty file.
func format(tx *bbolt.Tx) error {
	for _, name := range bucketNames() {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	t := &txn{}
	meta := table{name: bucketMeta, b: tx.Bucket([]byte(bucketMeta)), t: t}
	for key, value := range map[string][]byte{
		keySchema:  binary.AppendUvarint(nil, schema),
		keyState:   state{commit: uint64(tx.ID())}.encode(),
		keyJournal: (&recent{first: 1, next: 1}).bounds(),
	} {
		if err := meta.put([]byte(key), value); err != nil {
			return err
		}
	}
	for _, name := range []string{bucketLeases, bucketAddrs} {
		if err := (chain{table{name: name, b: tx.Bucket([]byte(name)), t: t}}).init(); err != nil {
			return err
		}
	}
	return nil
}

// finish writes the state back; the transaction can be committed then.
func (t *txn) finish() error {
	if !t.dirty {
		return nil
	}
	for _, s := range t.registered {
		if s.changed {
			if err := t.areas.put(areaNumber(s.id), s.encode()); err != nil {
				return err
			}
		}
	}
	if err := t.keep(); err != nil {
		return err
	}
	t.state.commit = uint64(t.meta.b.Tx().ID())
	t.recent.commit = t.state.commit
	return t.meta.put([]byte(keyState), t.state.encode())
}

// thisBoot is the ordinal of the store's boot ID. From the first transaction on that knows it, what
// the last boot leased is dead.
func (t *txn) thisBoot() (ordinal uint32, err error) {
	if t.boot != 0 {
		return t.boot, nil
	}
	if t.boot, err = t.bootOrdinal(t.bootID); err != nil {
		return 0, err
	}
	if t.state.last != t.boot {
		t.state.last, t.state.swept = t.boot, 0
	}
	return t.boot, nil
}

// bootOrdinal returns the ordinal of a boot ID, which it gets at its first use.
func (t *txn) bootOrdinal(id string) (uint32, error) {
	key := []byte(keyBoot + id)
	raw, ok, err := t.meta.get(key)
	if err != nil {
		return 0, err
	}
	if ok {
		r := reader{b: raw}
		if n := r.uint32(); !r.bad && n != 0 {
			return n, nil
		}
		return 0, t.meta.damaged(key, "not a boot ordinal")
	}
	t.state.boots++
	return t.state.boots, t.meta.put(key, binary.AppendUvarint(nil, uint64(t.state.boots)))
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

// holder returns the lease that holds an address; it must be there.
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

// store writes next as what is known of a, in place of last (the zero entry: nothing was), and
// keeps queue, dead, pods and the counts in step. It is the only writer of the five.
func (t *txn) store(a netip.Addr, last, next entry) error {
	key := addrKey(a)
	if err := t.unlist(key, last); err != nil {
		return err
	}
	if err := t.list(key, next); err != nil {
		return err
	}
	if err := t.count(last, next); err != nil {
		return err
	}
	return t.addrs.set(key, next.encode())
}

func (e entry) known() bool { return e.held || e.leased != 0 || e.freed != 0 }

func (t *txn) unlist(key []byte, e entry) error {
	if !e.known() {
		return nil
	}
	if e.memory != "" {
		if err := t.pods.delete(t.podKey(e, key)); err != nil {
			return err
		}
	}
	if e.held {
		return t.dead.delete(deadKey(e.home, e.boot, e.leased, key))
	}
	return t.queue.delete(queueKey(e.home, e.freed, key))
}

func (t *txn) list(key []byte, e entry) error {
	if e.memory != "" {
		if err := t.pods.put(t.podKey(e, key), nil); err != nil {
			return err
		}
	}
	switch {
	case !e.held:
		return t.queue.put(queueKey(e.home, e.freed, key), nil)
	case e.boot != t.boot:
		return t.dead.put(deadKey(e.home, e.boot, e.leased, key), nil)
	}
	return nil
}
