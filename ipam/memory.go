package ipam

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Memory is a free address that remembers its last pod.
type Memory struct {
	Addr    netip.Addr `json:"addr"`
	Network string     `json:"network,omitempty"`
	Pod     Pod        `json:"pod"`
	IfName  string     `json:"ifName"`
}

// Remembered returns the free addresses that remember a pod, longest free first.
func (s *Store) Remembered() ([]Memory, error) {
	type aged struct {
		Memory
		freed uint64
	}
	var found []aged
	err := s.view(func(t *txn) error {
		return t.addrs.each(nil, func(k, v []byte) (bool, error) {
			a, ok := parseAddrKey(k)
			e, err := decodeEntry(v)
			if !ok || err != nil {
				return false, t.addrs.damaged(k, "not an address entry")
			}
			if f := strings.Split(e.memory, "\x00"); !e.held && len(f) == 4 {
				found = append(found, aged{Memory{a, f[0], Pod{Namespace: f[1], Name: f[2]}, f[3]}, e.freed})
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b aged) int {
		if a.freed < b.freed {
			return -1
		}
		return 1
	})
	out := make([]Memory, len(found))
	for i, f := range found {
		out[i] = f.Memory
	}
	return out, nil
}

// maxAsked bounds how many holders of a pod's addresses one Allocate asks whether they live, and
// maxSeen at how many of its addresses it looks, of those that are free and of those that are held:
// many leases under one name must not cost each other.
const (
	maxAsked = 16
	maxSeen  = 64
)

// lastOf is the address of a set that the request's pod had last, of those that are free or
// whose holder is dead.
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

// eachMemory calls fn with the addresses that have this memory, the last lease first; at most
// maxSeen.
func (t *txn) eachMemory(memory string, state byte, fn func(netip.Addr, entry) (bool, error)) error {
	prefix := append(podPrefix(nil, memory), state)
	cur := t.pods.cursor()
	seen := 0
	for k, v := cur.Seek(prefix); len(k) > 17 && bytes.HasPrefix(k, prefix) && seen < maxSeen; k, v = cur.Next() {
		seen++
		if _, err := t.pods.open(k, v); err != nil {
			return err
		}
		a, ok := parseAddrKey(k[17:])
		if !ok {
			return t.pods.damaged(k, "not an address")
		}
		e, ok, err := t.entry(a)
		if err != nil {
			return err
		}
		if !ok || e.memory == "" || e.podState() != state || e.leased != ^binary.BigEndian.Uint64(k[9:]) {
			return t.pods.damaged(k, "the address says otherwise")
		}
		if e.memory != memory {
			continue // of equal hash
		}
		if more, err := fn(a, e); err != nil || !more {
			return err
		}
	}
	return nil
}

// vacant reports whether the holder of a remembered address is dead: then its lease gives way.
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

// Forget drops what a free address remembers: the next pod that finds no never-used address
// gets it. A held address is ErrInUse; an address that was never leased is no error.
func (s *Store) Forget(ctx context.Context, a netip.Addr) error {
	a = a.Unmap()
	return s.do(ctx, func(t *txn) error {
		e, ok, err := t.entry(a)
		switch {
		case err != nil || !ok:
			return err
		case e.held:
			return fmt.Errorf("forget %s: %w; release its lease first", a, ErrInUse)
		case e.memory == "" && e.freed == 0:
			return nil
		}
		next := e
		next.memory, next.freed = "", 0
		return t.store(a, e, next)
	})
}

// Import takes over leases that were given elsewhere: all of them or, with an error, none. A
// lease that is held already with the same addresses is left as it is; an attachment with other
// addresses is ErrHeld, an address of another attachment ErrInUse. Addresses outside the pool
// are taken as they are (see Usage.Outside). Zero Since and BootID mean now and this boot.
func (s *Store) Import(ctx context.Context, leases []Lease) error {
	taken := map[netip.Addr]Attachment{}
	for _, l := range leases {
		req := Request{Attachment: l.Attachment, Network: l.Network + l.RememberAs, Pod: l.Pod, Netns: l.Netns, Addrs: l.Addrs}
		if err := req.check(); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		if len(l.Addrs) == 0 {
			return fmt.Errorf("import %s: %w: no address", l.Attachment, ErrInvalid)
		}
		for _, a := range l.Addrs {
			if by, dup := taken[a.Unmap()]; dup {
				return fmt.Errorf("import %s: %s: %w: %s has it in the same list", l.Attachment, a, ErrInUse, by)
			}
			taken[a.Unmap()] = l.Attachment
		}
	}
	return s.do(ctx, func(t *txn) error {
		var fresh []Lease
		for _, l := range leases {
			l.Addrs = slices.Clone(l.Addrs)
			for i := range l.Addrs {
				l.Addrs[i] = l.Addrs[i].Unmap()
			}
			old, ok, err := t.leaseOf(l.Attachment)
			if err != nil {
				return err
			}
			if ok {
				if !slices.Equal(old.Lease.Addrs, l.Addrs) {
					return fmt.Errorf("import %s: %w: %s; release it first", l.Attachment, ErrHeld, addrStrings(old.Lease.Addrs))
				}
				continue
			}
			for _, a := range l.Addrs {
				if e, _, err := t.entry(a); err != nil {
					return err
				} else if e.held {
					return fmt.Errorf("import %s: %s: %w; release its lease first", l.Attachment, a, ErrInUse)
				}
			}
			fresh = append(fresh, l)
		}
		for _, l := range fresh {
			if err := t.take(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// take begins a lease as it is, wherever its addresses lie.
func (t *txn) take(l Lease) error {
	if l.Since.IsZero() {
		l.Since = t.now.UTC()
	}
	if l.BootID == "" {
		l.BootID = t.bootID
	}
	boot, err := t.bootOrdinal(l.BootID)
	if err != nil {
		return err
	}
	if err := t.leave(); err != nil {
		return err
	}
	return t.beginIn(boot, l, make([]uint32, len(l.Addrs))) // in no area until one enters
}
