package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table, as nft prints it, for one of two families:
//
//	table inet edgeway {
//		set sources4 { type ipv4_addr; flags interval; }  # of the NAT: pod CIDRs
//		set exclude4 { type ipv4_addr; flags interval; }  # of the NAT
//		set pods4    { type ipv4_addr; }                  # of each Masq
//		set kept4    { type ipv4_addr . ipv4_addr; flags interval; }
//		set nodes4   { type ipv4_addr; flags interval; }  # of the NAT: nodes behind a tunnel
//		chain postrouting {                               # of the NAT
//			type nat hook postrouting priority srcnat; policy accept;
//			tcp flags & syn == 0 return
//			ip daddr 224.0.0.0/4 return
//			ip saddr @sources4 ip daddr @nodes4 masquerade fully-random
//			oifname "edgeway.*" ip saddr != @sources4 masquerade fully-random
//			ip daddr @exclude4 return
//			ip daddr @sources4 return
//			ip daddr @pods4 return
//			ip daddr 224.0.0.0/4 return
//			ip saddr . ip daddr @kept4 return
//			ip saddr @sources4 masquerade fully-random    # unless the NAT is Off
//		}
//		chain pods {                                      # of each Masq
//			the same rules from the one of exclude4 on, except the last:
//			ip saddr @pods4 masquerade
//		}
//	}
//
// Each chain and each set has one writer: the daemon's Sync or the plugin's verbs, perhaps in another
// process. A transaction that makes a chain or set makes everything that is missing, and writes its whole
// chain, so two transactions at the same time do no harm. Neither deletes what the other needs: see setNAT.
//
// Only the first packet of a connection passes here (nft(8), chain type nat). Where nothing else uses conntrack,
// connections that are older than the table are tracked from their next packet, which has no SYN. They keep their
// addresses: else the table would break each of them.
const (
	tableName = "edgeway"
	natChain  = "postrouting"
	masqChain = "pods"
	// The versions are in each rule's comment. A chain with other rules is rewritten. Version 1 had the
	// rules of both chains in postrouting.
	natVersion  = "edgeway 4"
	masqVersion = "edgeway 2"
)

const (
	natSources = iota
	natExclude
	natPods
	natKept
	natNodes
	natKinds
)

// natSets returns all sets; the set of kind k and family f is at k+natKinds*f. IDs are fixed: they count
// inside one transaction only.
func natSets() (sets []*nftables.Set) {
	for i := range 2 * natKinds {
		sets = append(sets, natSet(i))
	}
	return sets
}

// natSet is one of natSets.
func natSet(i int) *nftables.Set {
	key, suffix, kind := nftables.TypeIPAddr, "4", i%natKinds
	if i >= natKinds {
		key, suffix = nftables.TypeIP6Addr, "6"
	}
	s := &nftables.Set{
		Table: natTable(), ID: uint32(i + 1), Name: [natKinds]string{"sources", "exclude", "pods", "kept", "nodes"}[kind] + suffix,
		KeyType: key, Interval: kind != natPods,
	}
	if kind == natKept {
		s.KeyType, s.Concatenation = nftables.MustConcatSetType(key, key), true
	}
	return s
}

func natTable() *nftables.Table { return inetTable(tableName) }

// natConn opens a connection for each exchange: NAT changes are rare.
func (k *Kernel) natConn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(k.ns)))
}

type natContent struct {
	NAT
	exists bool
	sets   []int           // indexes in natSets
	chains map[string]bool // our chains that exist; true: the chain is whole
	pods   bool            // an address is masqueraded
}

// observeNAT ignores a table that exists only for the pods' masquerade.
func (k *Kernel) observeNAT(scope Scope, desired State) *NAT {
	if !scope.NAT && desired.NAT == nil {
		return nil
	}
	content, err := k.readNAT()
	if err != nil || !content.exists {
		return nil // a kernel without nftables has no table; the error comes when the table is made
	}
	n := content.NAT
	n.Whole = scope.everyMasq() && len(desired.Masq) == 0
	_, nat := content.chains[natChain]
	_, pods := content.chains[masqChain]
	if desired.NAT == nil && !n.Whole && pods && !nat && len(n.Sources)+len(n.Exclude)+len(n.Nodes) == 0 {
		return nil
	}
	return &n
}

func (k *Kernel) readNAT() (content natContent, err error) {
	defer func() {
		if missing(err) { // the table disappeared meanwhile
			content, err = natContent{}, nil
		}
		if err != nil {
			err = fmt.Errorf("read nftables table inet %s: %w", tableName, err)
		}
	}()
	c, err := k.natConn()
	if err != nil {
		return content, err
	}
	if content.exists, err = hasTable(c, natTable()); err != nil || !content.exists {
		return content, err
	}
	sets, err := c.GetSets(natTable())
	if err != nil {
		return content, err
	}
	for i, s := range natSets() {
		if !slices.ContainsFunc(sets, func(have *nftables.Set) bool { return have.Name == s.Name }) {
			content.Damaged = true
			continue
		}
		content.sets = append(content.sets, i)
		if i%natKinds == natKept {
			continue
		}
		elements, err := c.GetSetElements(s)
		if err != nil {
			return content, err
		}
		switch i % natKinds {
		case natSources:
			content.Sources = append(content.Sources, prefixesOf(elements)...)
		case natExclude:
			content.Exclude = append(content.Exclude, prefixesOf(elements)...)
		case natNodes:
			content.Nodes = append(content.Nodes, prefixesOf(elements)...)
		case natPods:
			content.pods = content.pods || len(elements) > 0
		}
	}
	content.chains, content.Off, err = ourChains(c)
	content.Damaged = content.Damaged || !content.chains[natChain]
	return content, err
}

// ourChains returns our chains that exist. A chain is whole if it has the right hook and exactly our
// rules. off: the NAT's chain is whole and Off.
func ourChains(c *nftables.Conn) (whole map[string]bool, off bool, err error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, false, err
	}
	whole = map[string]bool{}
	for _, name := range []string{natChain, masqChain} {
		rules, exists, err := rulesIn(c, chains, chainOf(name))
		if err != nil {
			return nil, false, err
		}
		if exists {
			off = off || name == natChain && sameRules(rules, rulesOf(name, true))
			whole[name] = off && name == natChain || sameRules(rules, rulesOf(name, false))
		}
	}
	return whole, off, nil
}

func chainOf(name string) *nftables.Chain {
	return &nftables.Chain{
		Name: name, Table: natTable(), Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

// rulesOf returns the rules of a chain in order. off is that of the NAT.
func rulesOf(chain string, off bool) (rules []*nftables.Rule) {
	sets := natSets()
	version, from, masquerade := natVersion, natSources, &expr.Masq{FullyRandom: true}
	if chain == masqChain {
		version, from, masquerade = masqVersion, natPods, &expr.Masq{}
	}
	for f := range 2 {
		in := func(kind int) *expr.Lookup {
			s := sets[kind+natKinds*f]
			return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}
		}
		notFrom := in(natSources)
		notFrom.Invert = true
		saddr, daddr := ipField(f == 1)
		leave := &expr.Verdict{Kind: expr.VerdictReturn}
		toMany := append(multicast(daddr, f == 1), leave)
		matches := [][]expr.Any{
			{daddr, in(natExclude), leave},
			{daddr, in(natSources), leave},
			{daddr, in(natPods), leave},
		}
		if chain == masqChain {
			matches = append(matches, toMany)
		} else {
			matches = append([][]expr.Any{
				append(midstream(), leave),
				toMany,
				{saddr, in(natSources), daddr, in(natNodes), masquerade},
				{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal([]byte(overlayPrefix)...), saddr, notFrom, masquerade},
			}, matches...)
		}
		matches = append(matches, []expr.Any{saddr, second(daddr, daddr.(*expr.Payload).Len), in(natKept), leave})
		if !off {
			matches = append(matches, []expr.Any{saddr, in(from), masquerade})
		}
		for _, match := range matches {
			rules = append(rules, newRule(chainOf(chain), f == 1, fmt.Sprintf("%s/%d", version, len(rules)+1), match...))
		}
	}
	return rules
}

// midstream matches a TCP packet that does not begin a connection: the flags are byte 13 of the header, and SYN is
// bit 1 (RFC 9293, section 3.1).
func midstream() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(unix.IPPROTO_TCP),
		load(expr.PayloadBaseTransportHeader, 13, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{2}, Xor: []byte{0}},
		equal(0),
	}
}

// multicast compares the destination with 224.0.0.0/4 or ff00::/8.
func multicast(daddr expr.Any, v6 bool) []expr.Any {
	if v6 {
		first := *daddr.(*expr.Payload)
		first.Len = 1
		return []expr.Any{&first, equal(0xff)}
	}
	return []expr.Any{
		daddr,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0xf0, 0, 0, 0}, Xor: make([]byte, 4)},
		equal(224, 0, 0, 0),
	}
}

// setNAT writes the NAT's sets, and in a second transaction the chain. A Delete deletes the chain first. Inside one
// transaction the kernel shows the rules to packets, and some time later what is in new interval sets
// (net/netfilter/nf_tables_api.c: nf_tables_commit calls nft_set_commit_update last). A connection that began
// between the two was translated as if the sets were empty, for as long as it lived.
//
// A Delete deletes the table if nothing else is in it. The kernel decides: it refuses to delete a set that a
// rule of the pods' chain names (EBUSY), and then deletes nothing. An element in pods4 without that chain is
// from version 1, or from a Masq in the making: setNAT makes the chain for it.
func (k *Kernel) setNAT(op Op, n NAT) error {
	content, err := k.readNAT()
	if err != nil || op == Delete && !content.exists {
		return err
	}
	c, err := k.natConn()
	if err != nil {
		return err
	}
	has := func(chain string) bool { _, ok := content.chains[chain]; return ok }
	pods := content.pods && !has(masqChain)
	if pods {
		natFrame(c)
		natWrite(c, masqChain, false)
	}
	if op == Delete {
		if has(natChain) {
			c.DelChain(chainOf(natChain))
		}
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if !pods {
			for _, i := range content.sets {
				if !n.Whole {
					c.DelSet(natSets()[i])
				}
			}
			c.DelTable(natTable())
			if err := c.Flush(); err == nil || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		n = NAT{}
	}
	sets := natFrame(c)
	for f := range 2 {
		for kind, prefixes := range [][]netip.Prefix{natSources: n.Sources, natExclude: n.Exclude, natNodes: n.Nodes} {
			if kind == natPods || kind == natKept {
				continue // the plugin's
			}
			set := sets[kind+natKinds*f]
			c.FlushSet(set)
			if err := addElements(c, set, intervals(prefixes, f == 1)); err != nil {
				return err
			}
		}
	}
	if op == Delete {
		return commit(c, natTable())
	}
	if n.Off && has(natChain) {
		natWrite(c, natChain, true) // the rules that translate must not outlive the exclusions
	}
	if err := commit(c, natTable()); err != nil || n.Off && has(natChain) {
		return err
	}
	natFrame(c)
	natWrite(c, natChain, n.Off)
	return commit(c, natTable())
}

// natFrame adds the table and the missing sets.
func natFrame(c *nftables.Conn) []*nftables.Set {
	c.AddTable(natTable())
	sets := natSets()
	for _, set := range sets {
		_ = c.AddSet(set, nil) // c keeps the error until Flush
	}
	return sets
}

// natWrite rewrites a whole chain.
func natWrite(c *nftables.Conn, name string, off bool) {
	c.AddChain(chainOf(name))
	c.FlushChain(chainOf(name))
	for _, r := range rulesOf(name, off) {
		c.AddRule(r)
	}
}
