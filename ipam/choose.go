package ipam

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ask is the answer of an Allocate that must first know whether these leases are dead. It has
// written nothing that needs undoing; the caller judges them on its own time and tries again.
type ask struct{ leases []held }

func (ask) Error() string { return "asks for verdicts" }

// verdicts are Request.Dead's answers, by the lease's sequence number.
type verdicts map[uint64]bool

// choice collects what an Allocate will do; nothing is written until all sets have an address.
type choice struct {
	req    Request
	layout layout
	dead   verdicts
	own    *held           // the dead lease of the same attachment
	ended  map[uint64]held // dead leases that give way
	unsure []held
}

// allocate is Allocate inside a transaction.
func (t *txn) allocate(req Request, pool layout, dead verdicts) (Lease, error) {
	c := &choice{req: req, layout: pool, dead: dead, ended: map[uint64]held{}}
	own, ok, err := t.leaseOf(req.Attachment)
	if err != nil {
		return Lease{}, err
	}
	if ok {
		gone, known := t.isDead(c, own)
		switch {
		case !known:
			return Lease{}, ask{[]held{own}}
		case !gone:
			return own.Lease, fmt.Errorf("allocate %s: %w: %s since %s; release it first", req.Attachment, ErrHeld,
				addrStrings(own.Lease.Addrs), own.Lease.Since.Format("2006-01-02T15:04:05Z07:00"))
		}
		c.own = &own
		c.ended[own.Seq] = own
	}
	asked, err := c.requested()
	if err != nil {
		return Lease{}, err
	}
	addrs := make([]netip.Addr, len(pool))
	homes := make([]uint32, len(pool))
	for set := range pool {
		addrs[set], homes[set], err = t.choose(c, set, asked[set])
		if err != nil {
			return Lease{}, err
		}
	}
	if len(c.unsure) > 0 {
		return Lease{}, ask{c.unsure}
	}
	ended := make([]held, 0, len(c.ended))
	for _, h := range c.ended {
		ended = append(ended, h)
	}
	slices.SortFunc(ended, func(a, b held) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, h := range ended {
		if err := t.end(h); err != nil {
			return Lease{}, err
		}
	}
	l := Lease{Attachment: req.Attachment, Network: req.Network, Pod: req.Pod, Addrs: addrs,
		Since: t.now.UTC(), BootID: t.bootID, Netns: req.Netns, NetnsCookie: req.NetnsCookie}
	return l, t.begin(l, homes)
}

// isDead judges a lease; known is false when the caller has to be asked.
func (t *txn) isDead(c *choice, h held) (dead, known bool) {
	if h.Lease.BootID != t.bootID {
		return true, true
	}
	if c.req.Dead == nil {
		return false, true
	}
	dead, known = c.dead[h.Seq]
	return dead, known
}

// requested sorts the addresses asked for by set.
func (c *choice) requested() (map[int]netip.Addr, error) {
	out := map[int]netip.Addr{}
	for _, a := range c.req.Addrs {
		a = a.Unmap()
		set, ok := c.layout.find(a)
		if !ok {
			return nil, fmt.Errorf("allocate %s: requested %s: %w: no range contains it, or it is reserved", c.req.Attachment, a, ErrNotInPool)
		}
		if b, dup := out[set]; dup && a != b {
			return nil, fmt.Errorf("allocate %s: %w: %s and %s are requested of the same set; one address is taken of each", c.req.Attachment, ErrInvalid, b, a)
		}
		out[set] = a
	}
	return out, nil
}

// choose picks an address of one set: the one asked for, the one of the attachment's own dead
// lease, the one the pod had last, never used, longest free, longest dead.
func (t *txn) choose(c *choice, set int, asked netip.Addr) (netip.Addr, uint32, error) {
	areas, err := t.enter(c.layout[set])
	if err != nil {
		return netip.Addr{}, 0, err
	}
	home := func(a netip.Addr) uint32 {
		for _, x := range areas {
			if x.contains(a) {
				return x.id
			}
		}
		panic("an address was chosen that no area of its set contains: allocate checked it")
	}
	if asked.IsValid() {
		return asked, home(asked), t.claim(c, asked)
	}
	if c.own != nil {
		for _, a := range c.own.Lease.Addrs {
			if c.layout.inSet(set, a) {
				return a, home(a), nil
			}
		}
	}
	if a, ok, err := t.lastOf(c, set); err != nil {
		return netip.Addr{}, 0, err
	} else if ok {
		return a, home(a), nil
	}
	for i := range areas {
		if a, ok, err := t.neverUsed(areas[i]); err != nil || ok {
			return a, areas[i].id, err
		}
	}
	if a, id, ok, err := t.longestFree(areas); err != nil || ok {
		return a, id, err
	}
	if a, id, ok, err := t.longestDead(c, areas); err != nil || ok {
		return a, id, err
	}
	if len(c.unsure) > 0 {
		return netip.Addr{}, 0, ask{c.unsure}
	}
	return netip.Addr{}, 0, t.exhausted(c, areas)
}

// claim checks that a requested address can be taken. A live holder keeps it, and so does one
// of this boot whose pod is another: only the same pod's ADD proves that it is not in the making.
func (t *txn) claim(c *choice, a netip.Addr) error {
	e, ok, err := t.entry(a)
	if err != nil || !ok || !e.held {
		return err
	}
	h, err := t.holder(a, e)
	if err != nil {
		return err
	}
	if _, ours := c.ended[h.Seq]; ours {
		return nil
	}
	dead := h.Lease.BootID != t.bootID
	if mine := memoryKey(c.req.Network, c.req.Pod, c.req.Attachment.IfName); !dead && mine != "" && mine == h.memory() {
		var known bool
		if dead, known = t.isDead(c, h); !known {
			return ask{[]held{h}}
		}
	}
	if !dead {
		who := h.Lease.Attachment.String()
		if p := h.Lease.Pod.String(); p != "" {
			who = p + " (" + who + ")"
		}
		return fmt.Errorf("allocate %s: requested %s: %w: held by %s; release that first or ask for another", c.req.Attachment, a, ErrInUse, who)
	}
	c.ended[h.Seq] = h
	return nil
}

// longestFree is the address of the areas that was released first.
func (t *txn) longestFree(areas []entered) (addr netip.Addr, id uint32, ok bool, err error) {
	var oldest uint64
	for _, x := range areas {
		k, v := t.queue.cursor().Seek(queueKey(x.id, 0, nil))
		if len(k) < 12 || binary.BigEndian.Uint32(k) != x.id {
			continue
		}
		if _, err := t.queue.open(k, v); err != nil {
			return addr, 0, false, err
		}
		freed := binary.BigEndian.Uint64(k[4:])
		if ok && freed >= oldest {
			continue
		}
		a, isAddr := parseAddrKey(k[12:])
		if !isAddr || !x.contains(a) {
			return addr, 0, false, t.queue.damaged(k, "not an address of its area")
		}
		e, found, err := t.entry(a)
		if err != nil {
			return addr, 0, false, err
		}
		if !found || e.held || e.freed != freed {
			return addr, 0, false, t.queue.damaged(k, "the address is not free")
		}
		addr, id, oldest, ok = a, x.id, freed, true
	}
	return addr, id, ok, nil
}

// longestDead is the address of the oldest lease of an earlier boot; its lease gives way.
func (t *txn) longestDead(c *choice, areas []entered) (addr netip.Addr, id uint32, ok bool, err error) {
	if err := t.sweep(); err != nil {
		return addr, 0, false, err
	}
	var found held
	for _, x := range areas {
		h, a, dead, err := t.oldestDead(x)
		if err != nil {
			return addr, 0, false, err
		}
		if dead && (!ok || h.Boot < found.Boot || h.Boot == found.Boot && h.Seq < found.Seq) {
			found, addr, id, ok = h, a, x.id, true
		}
	}
	if ok {
		c.ended[found.Seq] = found
	}
	return addr, id, ok, nil
}

func (t *txn) oldestDead(x entered) (held, netip.Addr, bool, error) {
	cur := t.dead.cursor()
	k, v := cur.Seek(deadKey(x.id, 0, 0, nil))
	if len(k) >= 16 && binary.BigEndian.Uint32(k) == x.id && binary.BigEndian.Uint32(k[4:]) == t.boot {
		k, v = cur.Seek(deadKey(x.id, t.boot+1, 0, nil))
	}
	if len(k) < 16 || binary.BigEndian.Uint32(k) != x.id {
		return held{}, netip.Addr{}, false, nil
	}
	if _, err := t.dead.open(k, v); err != nil {
		return held{}, netip.Addr{}, false, err
	}
	a, ok := parseAddrKey(k[16:])
	if !ok || !x.contains(a) {
		return held{}, netip.Addr{}, false, t.dead.damaged(k, "not an address of its area")
	}
	e, ok, err := t.entry(a)
	if err != nil {
		return held{}, netip.Addr{}, false, err
	}
	if !ok || !e.held || e.leased != binary.BigEndian.Uint64(k[8:]) {
		return held{}, netip.Addr{}, false, t.dead.damaged(k, "the address is not held")
	}
	h, err := t.holder(a, e)
	if err == nil && h.Lease.BootID == t.bootID {
		err = t.dead.damaged(k, "the lease is of this boot")
	}
	return h, a, err == nil, err
}

// sweep completes "dead" for this boot: once per boot, and only when a pool is exhausted, so
// that an ADD writes no record for it.
func (t *txn) sweep() error {
	boot, err := t.thisBoot()
	if err != nil || t.state.swept == boot {
		return err
	}
	var found [][]byte
	err = t.addrs.each(nil, func(k, v []byte) (bool, error) {
		e, err := decodeEntry(v)
		if err != nil {
			return false, t.addrs.damaged(k, err.Error())
		}
		if e.held && e.boot != boot {
			found = append(found, deadKey(e.home, e.boot, e.leased, k))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, k := range found {
		if err := t.dead.put(k, nil); err != nil {
			return err
		}
	}
	t.state.swept, t.dirty = boot, true
	return nil
}

// namesInError is how many holders an exhausted pool's error lists.
const namesInError = 3

func (t *txn) exhausted(c *choice, areas []entered) error {
	var total, used uint64
	var subnets, who []string
	for _, x := range areas {
		subnets = append(subnets, x.subnet)
		for _, s := range x.spans {
			total += s.size()
		}
		used += x.held
		if len(x.spans) == 0 {
			continue
		}
		err := t.eachEntry(x.spans[0], func(a netip.Addr, e entry) (bool, error) {
			if e.held {
				h, err := t.holder(a, e)
				if err != nil {
					return false, err
				}
				who = append(who, cmp.Or(h.Lease.Pod.String(), h.Lease.Attachment.String()))
			}
			return len(who) < namesInError, nil
		})
		if err != nil {
			return err
		}
	}
	holders := ""
	if len(who) > 0 {
		holders = " by " + strings.Join(who, ", ")
		if used > uint64(len(who)) {
			holders += fmt.Sprintf(" and %d more", used-uint64(len(who)))
		}
	}
	return fmt.Errorf("allocate %s: %w in %s: %d of %d addresses held%s; delete pods or widen the range",
		c.req.Attachment, ErrExhausted, strings.Join(subnets, ", "), used, total, holders)
}
