package ipam

import (
	"cmp"
	"context"
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
		return t.eachEntry(nil, func(a netip.Addr, e entry) (bool, error) {
			if f := strings.Split(e.memory, "\x00"); !e.held && len(f) == 4 {
				found = append(found, aged{Memory{a, f[0], Pod{Namespace: f[1], Name: f[2]}, f[3]}, e.freed})
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b aged) int { return cmp.Compare(a.freed, b.freed) })
	out := make([]Memory, len(found))
	for i, f := range found {
		out[i] = f.Memory
	}
	return out, nil
}

// Forget drops the memory of a free address. The next pod that finds no never used address gets it. A
// held address is ErrInUse; an unknown address is not an error.
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

// Import takes over leases that were given elsewhere: all of them or, with an error, none. A lease that
// is already held with the same addresses is left as it is. An attachment that holds other addresses is
// ErrHeld; an address of another attachment is ErrInUse. Addresses outside the pool are taken as they are
// (see Usage.Outside). A zero Since means now, a zero BootID this boot.
func (s *Store) Import(ctx context.Context, leases []Lease) error {
	taken := map[netip.Addr]Attachment{}
	for _, l := range leases {
		if err := l.check(); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		if len(l.Addrs) == 0 {
			return fmt.Errorf("import %s: %w: no address", l.Attachment, ErrInvalid)
		}
		for _, a := range l.Addrs {
			if by, dup := taken[a.Unmap()]; dup {
				return fmt.Errorf("import %s: %s: %w: %s has the address in the same list", l.Attachment, a, ErrInUse, by)
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
			if err := t.give(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// give begins a lease as it is, even with addresses outside the pool.
func (t *txn) give(l Lease) error {
	if l.Since.IsZero() {
		l.Since = t.now.UTC()
	}
	l.BootID = cmp.Or(l.BootID, t.bootID)
	return t.begin(l)
}
