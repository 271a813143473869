package routes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// observeMasq reads the masquerade of our addresses and of the desired addresses. It asks for single
// addresses one by one: each DEL asks, and most pods have no masquerade.
func (k *Kernel) observeMasq(v *view, scope []netip.Prefix, desired []Masq) ([]Masq, error) {
	if len(scope)+len(desired) == 0 {
		return nil, nil
	}
	var found []Masq
	for _, m := range desired {
		there, err := k.hasElement(natPods, m.Addr, m.Addr.AsSlice())
		if err != nil {
			return nil, err
		}
		if there {
			found = append(found, Masq{Addr: m.Addr})
		}
	}
	if len(found) > 0 {
		c, err := k.natConn()
		if err != nil {
			return nil, err
		}
		chains, err := ourChains(c)
		if err != nil {
			return nil, err
		}
		if v.gapped = !chains[masqChain]; v.gapped {
			found = nil
		}
	}
	for _, p := range scope {
		addrs := []netip.Addr{p.Addr()}
		var err error
		if !p.IsSingleIP() {
			addrs, err = k.masqueraded(p)
		} else if there, herr := k.hasMasq(p.Addr()); !there {
			addrs, err = nil, herr
		}
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if !slices.ContainsFunc(found, func(m Masq) bool { return m.Addr == a }) {
				found = append(found, Masq{Addr: a})
			}
		}
	}
	return found, k.readNetworks(found)
}

// readNetworks fills in the networks of each Masq.
func (k *Kernel) readNetworks(found []Masq) error {
	sets := map[bool][]nftables.SetElement{} // by family
	for i, m := range found {
		v6 := m.Addr.Is6()
		if _, ok := sets[v6]; !ok {
			all, err := k.elements(podSet(natKept, m.Addr))
			if err != nil {
				return err
			}
			sets[v6] = all
		}
		for _, e := range keptOf(sets[v6], m.Addr) {
			half := m.Addr.BitLen() / 8
			first, _ := netip.AddrFromSlice(e.Key[half:])
			last, _ := netip.AddrFromSlice(e.KeyEnd[min(half, len(e.KeyEnd)):])
			found[i].Networks = append(found[i].Networks, cover(first, last)...)
		}
	}
	return nil
}

// networks returns the networks of the address's family.
func (m Masq) networks() (out []netip.Prefix) {
	for _, n := range m.Networks {
		if n.Addr().Is6() == m.Addr.Is6() {
			out = append(out, n.Masked())
		}
	}
	return out
}

// setMasq changes the masquerade of one address. It adds or deletes all elements of the address in one
// transaction. Another process may create or delete the table between two requests.
func (a *applier) setMasq(op Op, m Masq) error {
	if op != Add {
		if err := a.k.delMasq(m.Addr); err != nil || op == Delete {
			return err
		}
	}
	return a.k.addMasq(m, a.v.gapped)
}

// addMasq adds the elements of one address. If the table or the pods' chain is missing, or the chain is
// gapped, it writes all of them.
func (k *Kernel) addMasq(m Masq, gapped bool) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	if !gapped {
		err := errors.Join(addMasqElements(c, m), c.Flush())
		if err == nil {
			if there, cerr := k.hasChain(masqChain); there || cerr != nil {
				return cerr
			}
		} else if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	natFrame(c)
	natWrite(c, masqChain)
	return errors.Join(addMasqElements(c, m), c.Flush())
}

func addMasqElements(c *nftables.Conn, m Masq) error {
	var kept []nftables.SetElement
	for _, n := range m.networks() {
		kept = append(kept, nftables.SetElement{Key: pair(m.Addr, n.Addr()), KeyEnd: pair(m.Addr, lastOf(n))})
	}
	err := c.SetAddElements(podSet(natPods, m.Addr), []nftables.SetElement{{Key: m.Addr.AsSlice()}})
	if len(kept) > 0 {
		err = errors.Join(err, c.SetAddElements(podSet(natKept, m.Addr), kept))
	}
	return err
}

func pair(a, b netip.Addr) []byte { return append(a.AsSlice(), b.AsSlice()...) }

func (k *Kernel) delMasq(a netip.Addr) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	all, err := k.elements(podSet(natKept, a))
	if kept := keptOf(all, a); err == nil && len(kept) > 0 {
		err = c.SetDeleteElements(podSet(natKept, a), kept)
	}
	if err != nil {
		return err
	}
	there, err := k.hasElement(natPods, a, a.AsSlice())
	if err == nil && there {
		err = c.SetDeleteElements(podSet(natPods, a), []nftables.SetElement{{Key: a.AsSlice()}})
	}
	if err != nil {
		return err
	}
	return c.Flush()
}

// hasMasq reports whether any element of the address's masquerade exists, even if somebody deleted the
// others. A pod's address is always in the pod's network, so one request finds an element of kept.
func (k *Kernel) hasMasq(a netip.Addr) (bool, error) {
	there, err := k.hasElement(natPods, a, a.AsSlice())
	if there || err != nil {
		return there, err
	}
	return k.hasElement(natKept, a, pair(a, a))
}

// masqueraded returns the addresses in p that have a masquerade.
func (k *Kernel) masqueraded(p netip.Prefix) (out []netip.Addr, err error) {
	for _, kind := range []int{natPods, natKept} {
		elements, err := k.elements(podSet(kind, p.Addr()))
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			a, ok := netip.AddrFromSlice(e.Key[:min(p.Addr().BitLen()/8, len(e.Key))])
			if ok && p.Contains(a) && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// keptOf returns the elements that say in which networks a keeps its address.
func keptOf(elements []nftables.SetElement, a netip.Addr) (out []nftables.SetElement) {
	for _, e := range elements {
		if bytes.HasPrefix(e.Key, a.AsSlice()) {
			out = append(out, e)
		}
	}
	return out
}

// elements lists a set; a missing set has no elements.
func (k *Kernel) elements(set *nftables.Set) ([]nftables.SetElement, error) {
	c, err := k.natConn()
	if err != nil {
		return nil, ifThere(err)
	}
	out, err := c.GetSetElements(set)
	return out, ifThere(err)
}

func podSet(kind int, a netip.Addr) *nftables.Set {
	if a.Is6() {
		kind += natKinds
	}
	return natSet(kind)
}

// hasElement looks up one element of an address's set. It is one request over the socket that stays
// open; the library lists the whole set.
func (k *Kernel) hasElement(kind int, of netip.Addr, key []byte) (bool, error) {
	nest := func(m message, typ uint16, fill func(message) message) message {
		return m.nest(typ|unix.NLA_F_NESTED, fill)
	}
	m := nftMessage(unix.NFT_MSG_GETSETELEM).
		attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName).attrString(unix.NFTA_SET_ELEM_LIST_SET, podSet(kind, of).Name)
	m = nest(m, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(m message) message {
		return nest(m, unix.NFTA_LIST_ELEM, func(m message) message {
			return nest(m, unix.NFTA_SET_ELEM_KEY, func(m message) message { return m.attr(unix.NFTA_DATA_VALUE, key) })
		})
	})
	return k.hasNFT(m)
}

func (k *Kernel) hasChain(name string) (bool, error) {
	return k.hasNFT(nftMessage(unix.NFT_MSG_GETCHAIN).attrString(unix.NFTA_CHAIN_TABLE, tableName).attrString(unix.NFTA_CHAIN_NAME, name))
}

// hasNFT looks up one object. It returns false for a missing table, set or element alike.
func (k *Kernel) hasNFT(m message) (bool, error) {
	c, err := k.netfilter()
	if err != nil {
		return false, ifThere(err)
	}
	_, err = c.get(m)
	return err == nil, ifThere(err)
}

func nftMessage(typ uint16) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, 0, binary.BigEndian.AppendUint16([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0}, 0))
}
