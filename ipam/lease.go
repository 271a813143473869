package ipam

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxKey bounds the names of a request, in bytes. It is several times what the CNI specification,
// Kubernetes and path lengths need, and far below bbolt's limit for a key.
const maxKey = 4096

// check refuses what cannot be stored.
func (r Request) check() error {
	if r.Attachment.ContainerID == "" {
		return fmt.Errorf("allocate %s: %w: no container ID", r.Attachment, ErrInvalid)
	}
	for _, x := range [...]struct{ name, value string }{
		{"container ID", r.Attachment.ContainerID}, {"interface name", r.Attachment.IfName}, {"network", r.Network},
		{"pod namespace", r.Pod.Namespace}, {"pod name", r.Pod.Name}, {"pod UID", r.Pod.UID}, {"network namespace", r.Netns},
	} {
		if len(x.value) > maxKey || strings.ContainsRune(x.value, 0) {
			return fmt.Errorf("allocate %.80q: %w: %s is longer than %d bytes or contains a NUL", r.Attachment, ErrInvalid, x.name, maxKey)
		}
	}
	for _, a := range r.Addrs {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("allocate %s: %w: requested address %q is not a plain address; write it as 10.10.1.2", r.Attachment, ErrInvalid, a)
		}
	}
	return nil
}

// check refuses a lease from elsewhere that cannot be stored.
func (l Lease) check() error {
	return Request{Attachment: l.Attachment, Network: l.Network + l.RememberAs, Pod: l.Pod, Netns: l.Netns, Addrs: l.Addrs}.check()
}

// begin writes the lease and its addresses.
func (t *txn) begin(l Lease) error {
	h := held{Seq: t.nextSeq(), Lease: l}
	if err := t.putLease(h); err != nil {
		return err
	}
	key := l.Attachment.key()
	for _, a := range l.Addrs {
		last, _, err := t.entry(a)
		if err != nil {
			return err
		}
		if last.held {
			return t.addrs.damaged(addrKey(a), "held by two leases")
		}
		if err := t.store(a, last, entry{held: true, leased: h.Seq, holder: string(key), memory: h.memory()}); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) putLease(h held) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	t.state.leases++
	return t.leases.put(h.Lease.Attachment.key(), data)
}

// end removes a lease. Its addresses become free and remember its pod.
func (t *txn) end(h held) error {
	key := h.Lease.Attachment.key()
	for _, a := range h.Lease.Addrs {
		last, ok, err := t.entry(a)
		if err != nil {
			return err
		}
		if !ok || !last.held || last.holder != string(key) {
			return t.addrs.damaged(addrKey(a), "not held by the lease that names it")
		}
		next := last
		next.held, next.holder, next.freed = false, "", t.nextSeq()
		if err := t.store(a, last, next); err != nil {
			return err
		}
	}
	if t.state.leases == 0 {
		return t.meta.damaged([]byte(keyState), "counts fewer leases than there are")
	}
	t.state.leases--
	return t.leases.delete(key)
}

func (t *txn) release(a Attachment) (Lease, bool, error) {
	h, ok, err := t.leaseOf(a)
	if err != nil || !ok {
		return Lease{}, false, err
	}
	return h.Lease, true, t.end(h)
}

// all returns the leases, oldest first.
func (t *txn) all() ([]held, error) {
	out := make([]held, 0, min(t.state.leases, 1<<16))
	err := t.leases.each(nil, func(k, v []byte) (bool, error) {
		h, err := decodeHeld(v)
		if err != nil {
			return false, t.leases.damaged(k, err.Error())
		}
		out = append(out, h)
		return uint64(len(out)) <= t.state.leases, nil
	})
	if err == nil && uint64(len(out)) != t.state.leases {
		err = fmt.Errorf("leases: %w: the file has %d leases, and counts %d", ErrDamaged, len(out), t.state.leases)
	}
	slices.SortFunc(out, func(a, b held) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, err
}

func addrStrings(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, ",")
}
