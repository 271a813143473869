package routes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The table, as nft prints it, for one of two families:
//
//	table inet edgeway {
//		set sources4 { type ipv4_addr; flags interval; }  # of the NAT: pod CIDRs
//		set exclude4 { type ipv4_addr; flags interval; }  # of the NAT
//		set pods4    { type ipv4_addr; }                  # of each Masq
//		set kept4    { type ipv4_addr . ipv4_addr; flags interval; }
//		chain postrouting {                               # of the NAT
//			type nat hook postrouting priority srcnat; policy accept;
//			ip daddr @exclude4 return
//			ip daddr @sources4 return
//			ip daddr @pods4 return
//			ip daddr 224.0.0.0/4 return
//			ip saddr . ip daddr @kept4 return
//			ip saddr @sources4 masquerade
//		}
//		chain pods {                                      # of each Masq
//			the same rules, except the last:
//			ip saddr @pods4 masquerade
//		}
//	}
//
// Each chain and each set has one writer: the daemon's Sync or the plugin's verbs, perhaps in another
// process. A transaction that makes a chain or set makes everything that is missing, and writes its whole
// chain, so two transactions at the same time do no harm. Neither deletes what the other needs: see setNAT.
//
// Only the first packet of a connection passes here (nft(8), chain type nat).
const (
	tableName = "edgeway"
	natChain  = "postrouting"
	masqChain = "pods"
	// rulesVersion is in each rule's comment. A chain with other rules is rewritten. Version 1 had the
	// rules of both chains in postrouting.
	rulesVersion = "edgeway 2"
	// setChunk elements fit the 64 KiB that a netlink attribute can hold.
	setChunk = 500
)

// natSet is one set of the table.
type natSet struct {
	name     string
	v6       bool
	interval bool
	pair     bool // source and destination
}

const (
	natSources = iota
	natExclude
	natPods
	natKept
	natKinds
)

// natSets returns all sets; the set of kind k and family f is at k+natKinds*f.
func natSets() []natSet {
	return []natSet{
		{"sources4", false, true, false}, {"exclude4", false, true, false}, {"pods4", false, false, false}, {"kept4", false, true, true},
		{"sources6", true, true, false}, {"exclude6", true, true, false}, {"pods6", true, false, false}, {"kept6", true, true, true},
	}
}

func natTable() *nftables.Table { return inetTable(tableName) }

// set returns s as a set of the library. IDs are fixed: they count inside one transaction only.
func (s natSet) set(id int) *nftables.Set {
	out := &nftables.Set{Table: natTable(), ID: uint32(id + 1), Name: s.name, KeyType: nftables.TypeIPAddr, Interval: s.interval}
	if s.v6 {
		out.KeyType = nftables.TypeIP6Addr
	}
	if s.pair {
		out.KeyType, out.Concatenation = nftables.MustConcatSetType(out.KeyType, out.KeyType), true
	}
	return out
}

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
	if desired.NAT == nil && !n.Whole && pods && !nat && len(n.Sources)+len(n.Exclude) == 0 {
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
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return content, err
	}
	content.exists = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if !content.exists {
		return content, nil
	}
	sets, err := c.GetSets(natTable())
	if err != nil {
		return content, err
	}
	for i, s := range natSets() {
		if !slices.ContainsFunc(sets, func(have *nftables.Set) bool { return have.Name == s.name }) {
			content.Damaged = true
			continue
		}
		content.sets = append(content.sets, i)
		if s.pair {
			continue
		}
		elements, err := c.GetSetElements(s.set(i))
		if err != nil {
			return content, err
		}
		switch i % natKinds {
		case natSources:
			content.Sources = append(content.Sources, prefixesOf(elements)...)
		case natExclude:
			content.Exclude = append(content.Exclude, prefixesOf(elements)...)
		case natPods:
			content.pods = content.pods || len(elements) > 0
		}
	}
	content.chains, err = ourChains(c)
	content.Damaged = content.Damaged || !content.chains[natChain]
	return content, err
}

// ourChains returns our chains that exist. A chain is whole if it has the right hook and exactly our
// rules.
func ourChains(c *nftables.Conn) (whole map[string]bool, err error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	whole = map[string]bool{}
	for _, have := range chains {
		if have.Table.Name != tableName || have.Name != natChain && have.Name != masqChain {
			continue
		}
		want := chainOf(have.Name)
		rules, err := c.GetRules(natTable(), want)
		if err != nil {
			return nil, err
		}
		whole[have.Name] = sameHook(have, want) && sameRules(rules, rulesOf(have.Name))
	}
	return whole, nil
}

func sameHook(have, want *nftables.Chain) bool {
	return have.Type == want.Type && have.Hooknum != nil && *have.Hooknum == *want.Hooknum &&
		have.Priority != nil && *have.Priority == *want.Priority
}

// sameRules compares the rules' comments, which identify the rules, and their lengths.
func sameRules(have, want []*nftables.Rule) bool {
	return slices.EqualFunc(have, want, func(have, want *nftables.Rule) bool {
		return slices.Equal(have.UserData, want.UserData) && len(have.Exprs) == len(want.Exprs)
	})
}

func chainOf(name string) *nftables.Chain {
	return &nftables.Chain{
		Name: name, Table: natTable(), Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

// rulesOf returns the rules of a chain in order.
func rulesOf(chain string) (rules []*nftables.Rule) {
	sets := natSets()
	from := natSources
	if chain == masqChain {
		from = natPods
	}
	for f, proto := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		set := func(kind int) expr.Any {
			at := kind + natKinds*f
			return &expr.Lookup{SourceRegister: 1, SetName: sets[at].name, SetID: uint32(at + 1)}
		}
		saddr, daddr := ipField(f == 1)
		leave := &expr.Verdict{Kind: expr.VerdictReturn}
		for _, match := range [][]expr.Any{
			{daddr, set(natExclude), leave},
			{daddr, set(natSources), leave},
			{daddr, set(natPods), leave},
			append(multicast(daddr, f == 1), leave),
			{saddr, second(daddr), set(natKept), leave},
			{saddr, set(from), &expr.Masq{}},
		} {
			family := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			}
			rules = append(rules, &nftables.Rule{
				Table: natTable(), Chain: chainOf(chain), Exprs: append(family, match...),
				UserData: userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s/%d", rulesVersion, len(rules)+1)),
			})
		}
	}
	return rules
}

// ipField loads the source or destination address: offsets 12 and 16 of the IPv4 header
// (RFC 791), 8 and 24 of the IPv6 header (RFC 8200).
func ipField(v6 bool) (saddr, daddr expr.Any) {
	at := func(offset, size uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	}
	if v6 {
		return at(8, 16), at(24, 16)
	}
	return at(12, 4), at(16, 4)
}

// second loads into the register after the first address (nf_tables.h: enum nft_registers; an IPv4
// address takes a register of 4 bytes, an IPv6 address a register of 16).
func second(field expr.Any) expr.Any {
	p := *field.(*expr.Payload)
	p.DestRegister = unix.NFT_REG32_01
	if p.Len == 16 {
		p.DestRegister = unix.NFT_REG_2
	}
	return &p
}

// multicast compares the destination with 224.0.0.0/4 or ff00::/8.
func multicast(daddr expr.Any, v6 bool) []expr.Any {
	if v6 {
		first := *daddr.(*expr.Payload)
		first.Len = 1
		return []expr.Any{&first, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0xff}}}
	}
	return []expr.Any{
		daddr,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0xf0, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{224, 0, 0, 0}},
	}
}

// setNAT writes the NAT's sets and chain in one transaction.
//
// A Delete deletes the table if nothing else is in it. The kernel decides: it refuses to delete a set that a
// rule of the pods' chain names (EBUSY), and then deletes nothing. An element in pods4 without that chain is
// from version 1, or from a Masq in the making: setNAT makes the chain for it.
func (k *Kernel) setNAT(op Op, n NAT) error {
	content, err := k.readNAT()
	if err != nil {
		return err
	}
	c, err := k.natConn()
	if err != nil {
		return err
	}
	has := func(chain string) bool { _, ok := content.chains[chain]; return ok }
	pods := content.pods && !has(masqChain)
	if op == Delete {
		if !content.exists {
			return nil
		}
		if !pods {
			if has(natChain) {
				c.DelChain(chainOf(natChain))
			}
			for _, i := range content.sets {
				if !n.Whole {
					c.DelSet(natSets()[i].set(i))
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
	if pods {
		natWrite(c, masqChain)
	}
	if op == Delete {
		if has(natChain) {
			c.DelChain(chainOf(natChain))
		}
	} else {
		natWrite(c, natChain)
	}
	for i, s := range sets {
		from := n.Sources
		switch i % natKinds {
		case natPods, natKept:
			continue
		case natExclude:
			from = n.Exclude
		}
		c.FlushSet(s)
		elements := intervals(from, natSets()[i].v6)
		for chunk := range slices.Chunk(elements, setChunk) {
			if err := c.SetAddElements(s, chunk); err != nil {
				return err
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%w; if another program made this table, run: nft delete table inet %s", err, tableName)
	}
	return nil
}

// natFrame adds the table and the missing sets.
func natFrame(c *nftables.Conn) (sets []*nftables.Set) {
	c.AddTable(natTable())
	for i, s := range natSets() {
		set := s.set(i)
		_ = c.AddSet(set, nil) // c keeps the error until Flush
		sets = append(sets, set)
	}
	return sets
}

// natWrite rewrites a whole chain.
func natWrite(c *nftables.Conn, name string) {
	c.AddChain(chainOf(name))
	c.FlushChain(chainOf(name))
	for _, r := range rulesOf(name) {
		c.AddRule(r)
	}
}
