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

// DelMasq ends what AddMasq began; an address that is not there is no error, and costs two questions.
func (k *Kernel) DelMasq(ctx context.Context, a netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var last error
	for range natTries {
		sets, err := k.setsOf(a)
		if err == nil && len(sets) > 0 {
			err = k.delPod(a, sets)
		}
		if err == nil {
			return nil
		}
		// The daemon may have deleted the unused table between two questions: then there is
		// nothing left to end, and the next try finds that.
		last = err
	}
	return fmt.Errorf("end masquerade of %v: %w", a, last)
}

// Attributes of set elements (linux/netfilter/nf_tables.h: NFTA_SET_ELEM_LIST_, NFTA_LIST_ELEM,
// NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE).
const (
	nftaElemsTable = 1
	nftaElemsSet   = 2
	nftaElems      = 3
	nftaElem       = 1
	nftaElemKey    = 1
	nftaDataValue  = 1
)

// setsOf are the sets that may have the pod; none where it is in none.
func (k *Kernel) setsOf(a netip.Addr) ([]*nftables.Set, error) {
	pods, kept := podSet(natPods, a), podSet(natKept, a)
	if there, err := k.hasElement(pods, a.AsSlice()); there || err != nil {
		return []*nftables.Set{kept, pods}, err
	}
	// Half of it, by somebody's hand: a pod's own address is in the network that it is in.
	if there, err := k.hasElement(kept, pair(a, a)); there || err != nil {
		return []*nftables.Set{kept}, err
	}
	return nil, nil
}

// hasElement asks for one element. No table, no set and no element are one answer.
func (k *Kernel) hasElement(set *nftables.Set, key []byte) (bool, error) {
	c, err := k.netfilter()
	if err != nil {
		return false, ifThere(err)
	}
	nest := func(m message, typ uint16, fill func(message) message) message {
		return m.nest(typ|unix.NLA_F_NESTED, fill)
	}
	m := nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NFPROTO_INET, 0).
		attrString(nftaElemsTable, tableName).attrString(nftaElemsSet, set.Name)
	m = nest(m, nftaElems, func(m message) message {
		return nest(m, nftaElem, func(m message) message {
			return nest(m, nftaElemKey, func(m message) message { return m.attr(nftaDataValue, key) })
		})
	})
	_, err = c.get(m)
	return err == nil, ifThere(err)
}

// ifThere: what a kernel without nftables answers is that it has none.
func ifThere(err error) error {
	if errors.Is(err, unix.ENOENT) || unsupported(err) {
		return nil
	}
	return err
}

// delPod deletes one pod's elements in one transaction, so that there is never half of them.
func (k *Kernel) delPod(a netip.Addr, sets []*nftables.Set) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	for _, set := range sets {
		doomed := []nftables.SetElement{{Key: a.AsSlice()}}
		if set.Concatenation {
			if doomed, err = c.GetSetElements(set); err != nil {
				return err
			}
			doomed = slices.DeleteFunc(doomed, func(e nftables.SetElement) bool { return !bytes.HasPrefix(e.Key, a.AsSlice()) })
		}
		if len(doomed) == 0 {
			continue
		}
		if err := c.SetDeleteElements(set, doomed); err != nil {
			return err
		}
	}
	return c.Flush()
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
