package routes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// AddMasq makes packets from a that leave for anything but a NAT's prefixes and other such
// addresses take the node's address. It makes the table when there is none.
func (k *Kernel) AddMasq(ctx context.Context, a netip.Addr) error {
	return k.AddMasqOutside(ctx, a)
}

// AddMasqOutside is AddMasq, and packets to networks keep the pod's address too: the network that
// a pod is in reaches it under its own. Networks of the other family say nothing.
func (k *Kernel) AddMasqOutside(ctx context.Context, a netip.Addr, networks ...netip.Prefix) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := k.natConn()
	if err != nil {
		return fmt.Errorf("masquerade %v: %w", a, err)
	}
	err = errors.Join(addPod(c, a, networks), c.Flush())
	if errors.Is(err, unix.ENOENT) {
		// No table. Whoever comes first makes it, whole: the transaction of a second one fails as
		// one (NLM_F_EXCL), and only its elements are left to do.
		natFrame(c, c.CreateTable)
		for _, r := range natRules() {
			c.AddRule(r)
		}
		err = errors.Join(addPod(c, a, networks), c.Flush())
	}
	if errors.Is(err, unix.EEXIST) {
		err = errors.Join(addPod(c, a, networks), c.Flush())
	}
	if err != nil {
		return fmt.Errorf("masquerade %v: %w", a, err)
	}
	return nil
}

// addPod puts one pod's elements into the transaction.
func addPod(c *nftables.Conn, a netip.Addr, networks []netip.Prefix) error {
	var kept []nftables.SetElement
	for _, n := range networks {
		if n.Addr().Is6() == a.Is6() {
			n = n.Masked()
			kept = append(kept, nftables.SetElement{Key: pair(a, n.Addr()), KeyEnd: pair(a, lastOf(n))})
		}
	}
	err := c.SetAddElements(podSet(natPods, a), []nftables.SetElement{{Key: a.AsSlice()}})
	if len(kept) > 0 {
		err = errors.Join(err, c.SetAddElements(podSet(natKept, a), kept))
	}
	return err
}

func pair(a, b netip.Addr) []byte { return append(a.AsSlice(), b.AsSlice()...) }

// DelMasq ends what AddMasq began; an address that is not there is no error.
func (k *Kernel) DelMasq(ctx context.Context, a netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := k.natConn()
	if err != nil {
		return fmt.Errorf("end masquerade of %v: %w", a, err)
	}
	// ENOENT: no table, no set, or no such element. The other set is looked at all the same: a
	// DelMasq that was killed between the two left its elements there.
	_ = c.SetDeleteElements(podSet(natPods, a), []nftables.SetElement{{Key: a.AsSlice()}})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end masquerade of %v: %w", a, err)
	}
	for range natTries {
		if err = delKept(c, a); err == nil {
			return nil
		}
		// The daemon may have deleted the unused table between two questions: then there is
		// nothing left to end, and the next try finds that.
	}
	return fmt.Errorf("end masquerade of %v: %w", a, err)
}

// delKept deletes the elements that keep a's address inside its networks.
func delKept(c *nftables.Conn, a netip.Addr) error {
	set := podSet(natKept, a)
	if there, err := hasSet(c, set.Name); err != nil || !there {
		return err
	}
	kept, err := c.GetSetElements(set)
	if err != nil {
		return err
	}
	kept = slices.DeleteFunc(kept, func(e nftables.SetElement) bool { return !bytes.HasPrefix(e.Key, a.AsSlice()) })
	if len(kept) == 0 {
		return nil
	}
	_ = c.SetDeleteElements(set, kept)
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// hasSet reports whether our table has the set: to ask for the elements of one that is not there
// gives an error that does not tell so.
func hasSet(c *nftables.Conn, name string) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return false, nil
	}
	sets, err := c.GetSets(natTable())
	if err != nil {
		return false, fmt.Errorf("list sets of nftables table inet %s: %w", tableName, err)
	}
	return slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == name }), nil
}

// Masqueraded reports whether AddMasq holds for a: its element is there, and so are the rules that
// act upon it.
func (k *Kernel) Masqueraded(ctx context.Context, a netip.Addr) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	content, err := k.readNAT()
	if err != nil {
		return false, err
	}
	return content.exists && !content.Damaged && slices.Contains(content.podAddrs, a), nil
}

func podSet(kind int, a netip.Addr) *nftables.Set {
	if a.Is6() {
		kind += natKinds
	}
	return natSets()[kind].set(kind)
}
