package routes

import (
	"bytes"
	"cmp"
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
		chains, _, err := ourChains(c)
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
	sets := map[bool][]element{} // by family
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
			first, _ := netip.AddrFromSlice(e.key[half:])
			last, _ := netip.AddrFromSlice(e.end[min(half, len(e.end)):])
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
	if !gapped {
		err := k.addMasqElements(m)
		if err == nil {
			if there, cerr := k.hasChain(masqChain); there || cerr != nil {
				return cerr
			}
		} else if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	c, err := k.natConn()
	if err != nil {
		return err
	}
	natFrame(c)
	natWrite(c, masqChain, false)
	if err := c.Flush(); err != nil {
		return err
	}
	return k.addMasqElements(m) // with the chain, nobody deletes the sets
}

func (k *Kernel) addMasqElements(m Masq) error {
	var kept []element
	for _, n := range m.networks() {
		kept = append(kept, element{pair(m.Addr, n.Addr()), pair(m.Addr, lastOf(n))})
	}
	return k.changeElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, m.Addr, []element{{key: m.Addr.AsSlice()}}, kept)
}

// changeElements adds or deletes elements of an address's two sets in one transaction.
//
// Elements of single addresses are read and written here, and not by google/nftables, which makes the tables, chains
// and rules: it moves a thread into the namespace and opens a socket for each exchange. An ADD and its DEL with source
// NAT made 206 system calls with it, and make 122 over the socket that stays open.
func (k *Kernel) changeElements(typ uint16, flags int, of netip.Addr, pods, kept []element) error {
	c, err := k.netfilter()
	if err != nil {
		return err
	}
	var msgs []message
	if len(pods) > 0 {
		msgs = append(msgs, elementMessage(typ, flags, podSet(natPods, of).Name, pods...))
	}
	if len(kept) > 0 {
		msgs = append(msgs, elementMessage(typ, flags, podSet(natKept, of).Name, kept...))
	}
	return c.transact(msgs...)
}

func pair(a, b netip.Addr) []byte { return append(a.AsSlice(), b.AsSlice()...) }

func (k *Kernel) delMasq(a netip.Addr) error {
	all, err := k.elements(podSet(natKept, a))
	if err != nil {
		return err
	}
	there, err := k.hasElement(natPods, a, a.AsSlice())
	if err != nil {
		return err
	}
	var pods []element
	if there {
		pods = []element{{key: a.AsSlice()}}
	}
	return k.changeElements(unix.NFT_MSG_DELSETELEM, 0, a, pods, keptOf(all, a))
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
			a, ok := netip.AddrFromSlice(e.key[:min(p.Addr().BitLen()/8, len(e.key))])
			if ok && p.Contains(a) && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// keptOf returns the elements that say in which networks a keeps its address.
func keptOf(elements []element, a netip.Addr) (out []element) {
	for _, e := range elements {
		if bytes.HasPrefix(e.key, a.AsSlice()) {
			out = append(out, e)
		}
	}
	return out
}

// element is an element of a set: a key, or all keys from key to end.
type element struct{ key, end []byte }

// elements lists a set; a missing set has no elements.
func (k *Kernel) elements(set *nftables.Set) ([]element, error) {
	c, err := k.netfilter()
	if err != nil {
		return nil, ifThere(err)
	}
	lists, err := dump(c, elementMessage(unix.NFT_MSG_GETSETELEM, 0, set.Name), 1, parseElements)
	return slices.Concat(lists...), ifThere(err)
}

// nftaSetElemKeyEnd is NFTA_SET_ELEM_KEY_END (linux/netfilter/nf_tables.h).
const nftaSetElemKeyEnd = 10

// elementMessage is a request about elements of a set of the table.
func elementMessage(typ uint16, flags int, set string, elements ...element) message {
	m := nftMessage(typ, flags).attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName).attrString(unix.NFTA_SET_ELEM_LIST_SET, set)
	if len(elements) == 0 {
		return m
	}
	nest := func(m message, typ uint16, fill func(message) message) message {
		return m.nest(typ|unix.NLA_F_NESTED, fill)
	}
	return nest(m, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(m message) message {
		for _, e := range elements {
			m = nest(m, unix.NFTA_LIST_ELEM, func(m message) message {
				m = nest(m, unix.NFTA_SET_ELEM_KEY, func(m message) message { return m.attr(unix.NFTA_DATA_VALUE, e.key) })
				if e.end == nil {
					return m
				}
				return nest(m, nftaSetElemKeyEnd, func(m message) message { return m.attr(unix.NFTA_DATA_VALUE, e.end) })
			})
		}
		return m
	})
}

// parseElements reads one answer about a set's elements.
func parseElements(body []byte) (out []element, ok bool) {
	if len(body) < nfgenmsgBytes {
		return nil, false
	}
	inside := func(b []byte, want uint16) (all [][]byte) {
		for typ, v := range attrs(b) {
			if typ == want {
				all = append(all, bytes.Clone(v))
			}
		}
		return all
	}
	for _, list := range inside(body[nfgenmsgBytes:], unix.NFTA_SET_ELEM_LIST_ELEMENTS) {
		for _, one := range inside(list, unix.NFTA_LIST_ELEM) {
			var e element
			for _, key := range inside(one, unix.NFTA_SET_ELEM_KEY) {
				e.key = slices.Concat(inside(key, unix.NFTA_DATA_VALUE)...)
			}
			for _, end := range inside(one, nftaSetElemKeyEnd) {
				e.end = slices.Concat(inside(end, unix.NFTA_DATA_VALUE)...)
			}
			out = append(out, e)
		}
	}
	return out, true
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
	return k.hasNFT(elementMessage(unix.NFT_MSG_GETSETELEM, 0, podSet(kind, of).Name, element{key: key}))
}

func (k *Kernel) hasChain(name string) (bool, error) {
	return k.hasNFT(nftMessage(unix.NFT_MSG_GETCHAIN, 0).attrString(unix.NFTA_CHAIN_TABLE, tableName).attrString(unix.NFTA_CHAIN_NAME, name))
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

// nfgenmsgBytes is the size of struct nfgenmsg (linux/netfilter/nfnetlink.h).
const nfgenmsgBytes = 4

func nftMessage(typ uint16, flags int) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0})
}

// transact sends requests of nftables as one transaction: all of them succeed, or none. The kernel answers the
// requests that fail, the last request in any case, and the beginning of the transaction if the transaction itself
// fails (net/netfilter/nfnetlink.c: nfnetlink_rcv_batch).
func (c *conn) transact(requests ...message) error {
	if len(requests) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mark := func(typ uint16) message {
		return newMessage(typ, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES})
	}
	last := requests[len(requests)-1]
	binary.NativeEndian.PutUint16(last[6:], binary.NativeEndian.Uint16(last[6:])|unix.NLM_F_ACK)
	begin := c.seq + 1
	out := c.stamp(mark(unix.NFNL_MSG_BATCH_BEGIN))
	for _, m := range requests {
		out = append(out, c.stamp(m)...)
	}
	end := c.seq
	c.writes.Add(int64(len(requests)))
	if err := c.send(append(out, c.stamp(mark(unix.NFNL_MSG_BATCH_END))...)); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := c.receive(func(h unix.NlMsghdr, body []byte) {
			if h.Type != unix.NLMSG_ERROR || h.Seq-begin > end-begin {
				return
			}
			err := ackError(h, body)
			failed = cmp.Or(failed, err)
			done = done || h.Seq == end || h.Seq == begin && err != nil
		})
		if err != nil {
			return err
		}
	}
	return failed
}
