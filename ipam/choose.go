package ipam

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// ask is the answer of an Allocate that must first know whether these leases are dead. Nothing is written
// by then; the caller judges the leases outside the transaction and tries again.
type ask struct{ leases []held }

func (ask) Error() string { return "asks for verdicts" }

// verdicts are Request.Dead's answers, by the lease's sequence number.
type verdicts map[uint64]bool

// choice collects what an Allocate will do. Nothing is written until all sets have an address.
type choice struct {
	req    Request
	layout layout
	dead   verdicts
	own    *held           // the dead lease of the same attachment
	ended  map[uint64]held // dead leases that give way
	unsure []held
}

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
	for set := range pool {
		if addrs[set], err = t.choose(c, set, asked[set]); err != nil {
			return Lease{}, err
		}
	}
	if len(c.unsure) > 0 {
		return Lease{}, ask{c.unsure}
	}
	l := Lease{Attachment: req.Attachment, Network: req.Network, Pod: req.Pod, Addrs: addrs,
		Since: t.now.UTC(), BootID: t.bootID, Netns: req.Netns, NetnsCookie: req.NetnsCookie}
	return l, t.take(c, l)
}

func (t *txn) take(c *choice, l Lease) error {
	ended := make([]held, 0, len(c.ended))
	for _, h := range c.ended {
		ended = append(ended, h)
	}
	slices.SortFunc(ended, func(a, b held) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, h := range ended {
		if err := t.end(h); err != nil {
			return err
		}
	}
	return t.begin(l)
}

// isDead judges a lease; known is false when the caller must be asked.
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

// requested sorts the requested addresses by set.
func (c *choice) requested() (map[int]netip.Addr, error) {
	out := map[int]netip.Addr{}
	for _, a := range c.req.Addrs {
		a = a.Unmap()
		set, ok := c.layout.find(a)
		if !ok {
			return nil, fmt.Errorf("allocate %s: requested %s: %w: no range contains it, or it is reserved", c.req.Attachment, a, ErrNotInPool)
		}
		if b, dup := out[set]; dup && a != b {
			return nil, fmt.Errorf("allocate %s: %w: %s and %s are requested from the same range set; request one address of each set", c.req.Attachment, ErrInvalid, b, a)
		}
		out[set] = a
	}
	return out, nil
}

// choose picks an address of one set. In this order: the requested address, the address of the
// attachment's own dead lease, the pod's last address, never used, longest free, longest dead. While the
// store knows maxFree free addresses, longest free comes before never used.
func (t *txn) choose(c *choice, set int, asked netip.Addr) (netip.Addr, error) {
	if asked.IsValid() {
		return asked, t.claim(c, asked)
	}
	if c.own != nil {
		for _, a := range c.own.Lease.Addrs {
			if c.layout.inSet(set, a) {
				return a, nil
			}
		}
	}
	steps := []func(*choice, int) (netip.Addr, bool, error){t.lastOf, t.neverUsed, t.longestFree, t.longestDead}
	if t.state.free >= t.maxFree {
		steps[1], steps[2] = steps[2], steps[1]
	}
	for _, step := range steps {
		if a, ok, err := step(c, set); err != nil || ok {
			return a, err
		}
	}
	if len(c.unsure) > 0 {
		return netip.Addr{}, ask{c.unsure}
	}
	return netip.Addr{}, t.exhausted(c, set)
}

// claim checks that a requested address can be taken. A live holder keeps its address. So does a holder
// of this boot that serves another pod: only an ADD of the same pod proves that the holder is not being
// made right now.
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

// maxAsked bounds how many holders of a pod's addresses one Allocate asks about. maxSeen bounds how many
// free and how many held addresses of the pod it reads. Many leases under one name must not slow each
// other down.
const (
	maxAsked = 16
	maxSeen  = 64
)

// lastOf is the address of a set that the request's pod leased last and that is free or has a dead
// holder.
func (t *txn) lastOf(c *choice, set int) (addr netip.Addr, ok bool, err error) {
	memory := memoryKey(c.req.Network, c.req.Pod, c.req.Attachment.IfName)
	if memory == "" {
		return addr, false, nil
	}
	var leased uint64
	err = t.eachMemory(memory, podFree, func(a netip.Addr, e entry) (bool, error) {
		if ok = c.layout.inSet(set, a); ok {
			addr, leased = a, e.leased
		}
		return !ok, nil
	})
	if err != nil {
		return addr, false, err
	}
	asked := 0
	err = t.eachMemory(memory, podHeld, func(a netip.Addr, e entry) (bool, error) {
		switch {
		case e.leased < leased || asked == maxAsked:
			return false, nil
		case !c.layout.inSet(set, a):
			return true, nil
		}
		asked++
		gone, err := t.vacant(c, a, e)
		if gone {
			addr, ok = a, true
		}
		return !gone, err
	})
	return addr, ok, err
}

// eachMemory calls fn with at most maxSeen addresses that have this memory, the last lease first.
func (t *txn) eachMemory(memory string, state byte, fn func(netip.Addr, entry) (more bool, err error)) error {
	prefix := append(podPrefix(memory), state)
	seen := 0
	return t.pods.each(prefix, func(k, _ []byte) (bool, error) {
		if seen++; seen > maxSeen || len(k) < podKeyHead || !bytes.HasPrefix(k, prefix) {
			return false, nil
		}
		a, ok := parseAddrKey(k[podKeyHead:])
		if !ok {
			return false, t.pods.damaged(k, "not an address")
		}
		e, _, err := t.entry(a)
		if err != nil {
			return false, err
		}
		if e.memory == "" || !bytes.Equal(podKey(e, addrKey(a)), k) {
			return false, t.pods.damaged(k, "the record of its address says otherwise")
		}
		if e.memory != memory {
			return true, nil // another memory with the same hash
		}
		return fn(a, e)
	})
}

// vacant reports whether the holder of a remembered address is dead. A dead lease gives way.
func (t *txn) vacant(c *choice, a netip.Addr, e entry) (bool, error) {
	h, err := t.holder(a, e)
	if err != nil {
		return false, err
	}
	dead, known := t.isDead(c, h)
	switch {
	case !known:
		c.unsure = append(c.unsure, h)
		return false, nil
	case dead:
		c.ended[h.Seq] = h
	}
	return dead, nil
}

// hints say where in each range the search for an unknown address starts: all addresses before it are
// known. The store keeps the hints while it is open, so the known part is walked once. Nil:
// nothing is kept.
type hints map[string]hint

type hint struct {
	span
	from netip.Addr
}

// maxHints bounds the ranges that have a hint, since pools change.
const maxHints = 16

func (h hints) set(a area, from netip.Addr) {
	if len(h) >= maxHints {
		clear(h)
	}
	if h != nil {
		h[a.key()] = hint{a.span, from}
	}
}

// back notes that a is no longer known.
func (h hints) back(a netip.Addr) {
	maps.DeleteFunc(h, func(_ string, x hint) bool { return x.contains(a) && (a.Less(x.from) || !x.from.IsValid()) })
}

// neverUsed is the lowest address of a set that is not known to have been leased.
func (t *txn) neverUsed(c *choice, set int) (netip.Addr, bool, error) {
	for _, x := range c.layout[set] {
		from := x.first
		if h, ok := t.hints[x.key()]; ok {
			from = h.from
		}
		if !from.IsValid() {
			continue
		}
		at, ok := x.from(from)
		cur := t.addrs.b.Cursor()
		for k, _ := cur.Seek(addrKey(from)); ok && k != nil; k, _ = cur.Next() {
			order := bytes.Compare(k, addrKey(at))
			if order > 0 {
				break
			}
			if order == 0 {
				at, ok = x.from(at.Next())
			}
		}
		if !ok {
			at = netip.Addr{}
		}
		if t.hints.set(x, at); ok {
			_, _, err := t.entry(at) // proves that the address is not known
			return at, true, err
		}
	}
	return netip.Addr{}, false, nil
}

// longestFree is the free address of a set that was released first.
func (t *txn) longestFree(c *choice, set int) (netip.Addr, bool, error) {
	a, _, ok, err := t.firstFree(addrKey(c.layout[set][0].first)[0], func(a netip.Addr) bool { return c.layout.inSet(set, a) })
	return a, ok, err
}

// longestDead is the address of the oldest lease of an earlier boot, and that lease gives way. It walks
// the set, which has no free address by then.
func (t *txn) longestDead(c *choice, set int) (addr netip.Addr, ok bool, err error) {
	var oldest held
	err = t.eachHeld(c.layout[set], func(a netip.Addr, h held) bool {
		if h.Lease.BootID != t.bootID && (!ok || h.Seq < oldest.Seq) {
			oldest, addr, ok = h, a, true
		}
		return true
	})
	if ok {
		c.ended[oldest.Seq] = oldest
	}
	return addr, ok, err
}

// eachHeld calls fn with the leases that hold addresses of a set, in the order of the addresses.
func (t *txn) eachHeld(set []area, fn func(netip.Addr, held) (more bool)) error {
	for _, x := range set {
		err := t.eachOf(x, func(a netip.Addr, e entry) (bool, error) {
			if !e.held {
				return true, nil
			}
			h, err := t.holder(a, e)
			return err == nil && fn(a, h), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// namesInError is how many holders an exhausted pool's error lists.
const namesInError = 3

func (t *txn) exhausted(c *choice, set int) error {
	u, err := t.usage(layout{c.layout[set]})
	if err != nil {
		return err
	}
	var subnets, who []string
	for _, x := range c.layout[set] {
		subnets = append(subnets, x.subnet)
	}
	err = t.eachHeld(c.layout[set], func(_ netip.Addr, h held) bool {
		who = append(who, cmp.Or(h.Lease.Pod.String(), h.Lease.Attachment.String()))
		return len(who) < namesInError
	})
	if err != nil {
		return err
	}
	holders := ""
	if len(who) > 0 {
		holders = " by " + strings.Join(who, ", ")
		if u.Used > uint64(len(who)) {
			holders += fmt.Sprintf(" and %d more", u.Used-uint64(len(who)))
		}
	}
	return fmt.Errorf("allocate %s: %w in %s: %d of %d addresses held%s; delete pods or widen the range",
		c.req.Attachment, ErrExhausted, strings.Join(subnets, ", "), u.Used, u.Total, holders)
}

// usage walks the addresses of l and counts them.
func (t *txn) usage(l layout) (u Usage, err error) {
	for _, set := range l {
		for _, x := range set {
			for _, s := range x.spans {
				u.Total = min(u.Total+s.size(), sizeCap)
			}
			err := t.eachOf(x, func(_ netip.Addr, e entry) (bool, error) {
				switch {
				case e.held:
					u.Used++
				case e.memory != "":
					u.Remembered++
				}
				return true, nil
			})
			if err != nil {
				return Usage{}, err
			}
		}
	}
	if u.Used > u.Total || u.Used > t.state.held {
		return Usage{}, t.meta.damaged([]byte(keyState), "counts fewer addresses than are held")
	}
	u.Free = u.Total - u.Used
	u.Outside = t.state.held - u.Used
	return u, nil
}
