package routes

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The table, as nft prints it, for one family of two:
//
//	table inet edgeway {
//		set sources4 { type ipv4_addr; flags interval; }  # of the NAT: pod CIDRs
//		set exclude4 { type ipv4_addr; flags interval; }  # of the NAT
//		set pods4    { type ipv4_addr; }                  # of AddMasq; Sync keeps both
//		set kept4    { type ipv4_addr . ipv4_addr; flags interval; }
//		chain postrouting {
//			type nat hook postrouting priority srcnat; policy accept;
//			ip daddr @exclude4 return
//			ip daddr @sources4 return
//			ip daddr @pods4 return
//			ip daddr 224.0.0.0/4 return
//			ip saddr . ip daddr @kept4 return
//			ip saddr @sources4 masquerade
//			ip saddr @pods4 masquerade
//		}
//	}
//
// Only the first packet of a connection passes here (nft(8), chain type nat).
const (
	tableName = "edgeway"
	chainName = "postrouting"
	// rulesVersion is written into each rule's comment; a table with other rules is made anew.
	rulesVersion = "edgeway 1"
	// setChunk keeps a list of elements below the 64 KiB that a netlink attribute can hold.
	setChunk = 500
)

// natSet is one set of the table.
type natSet struct {
	name     string
	v6       bool
	interval bool
	pair     bool // of source and destination
}

const (
	natSources = iota
	natExclude
	natPods
	natKept
	natKinds
)

// natSets are all sets; the set of kind k and family f is at k+natKinds*f.
func natSets() []natSet {
	return []natSet{
		{"sources4", false, true, false}, {"exclude4", false, true, false}, {"pods4", false, false, false}, {"kept4", false, true, true},
		{"sources6", true, true, false}, {"exclude6", true, true, false}, {"pods6", true, false, false}, {"kept6", true, true, true},
	}
}

func natTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// set is s in the library's words. IDs are fixed: they count inside one transaction only.
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

// natConn opens a connection for each exchange and closes it after: NAT changes are rare.
func (k *Kernel) natConn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(k.ns)))
}

// natContent is what the table has.
type natContent struct {
	NAT
	exists   bool
	podAddrs []netip.Addr // of AddMasq
}

// observeNAT: a table that exists only for AddMasq is none of a NAT's business.
func (k *Kernel) observeNAT(scope Scope, desired *NAT) *NAT {
	if !scope.NAT && desired == nil {
		return nil
	}
	content, err := k.readNAT()
	if err != nil || !content.exists {
		return nil // a kernel without nftables has no table; making one tells what is wrong
	}
	n := content.NAT
	if desired == nil && len(content.podAddrs) > 0 && len(n.Sources) == 0 && len(n.Exclude) == 0 && !n.Damaged {
		return nil
	}
	return &n
}

func (k *Kernel) readNAT() (content natContent, err error) {
	defer func() {
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
			for _, e := range elements {
				if a, ok := netip.AddrFromSlice(e.Key); ok {
					content.podAddrs = append(content.podAddrs, a)
				}
			}
		}
	}
	whole, err := natChainIsWhole(c)
	content.Damaged = content.Damaged || !whole
	return content, err
}

// natChainIsWhole reports whether the chain hangs where it should and has our rules and no other.
func natChainIsWhole(c *nftables.Conn) (bool, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	want := natChain()
	i := slices.IndexFunc(chains, func(have *nftables.Chain) bool {
		return have.Table.Name == tableName && have.Name == chainName && have.Type == want.Type &&
			have.Hooknum != nil && *have.Hooknum == *want.Hooknum && have.Priority != nil && *have.Priority == *want.Priority
	})
	if i < 0 {
		return false, nil
	}
	rules, err := c.GetRules(natTable(), want)
	if err != nil {
		return false, err
	}
	return slices.EqualFunc(rules, natRules(), func(have, want *nftables.Rule) bool {
		return slices.Equal(have.UserData, want.UserData) && len(have.Exprs) == len(want.Exprs)
	}), nil
}

func natChain() *nftables.Chain {
	return &nftables.Chain{
		Name: chainName, Table: natTable(), Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

// natRules are the chain's rules in order.
func natRules() (rules []*nftables.Rule) {
	sets := natSets()
	for f, proto := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		set := func(kind int) expr.Any {
			at := kind + natKinds*f
			return &expr.Lookup{SourceRegister: 1, SetName: sets[at].name, SetID: uint32(at + 1)}
		}
		saddr, daddr := ipField(f == 1)
		leave, masq := &expr.Verdict{Kind: expr.VerdictReturn}, &expr.Masq{}
		for _, match := range [][]expr.Any{
			{daddr, set(natExclude), leave},
			{daddr, set(natSources), leave},
			{daddr, set(natPods), leave},
			append(multicast(daddr, f == 1), leave),
			{saddr, second(daddr), set(natKept), leave},
			{saddr, set(natSources), masq},
			{saddr, set(natPods), masq},
		} {
			family := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			}
			rules = append(rules, &nftables.Rule{
				Table: natTable(), Chain: natChain(), Exprs: append(family, match...),
				UserData: userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s/%d", rulesVersion, len(rules)+1)),
			})
		}
	}
	return rules
}

// ipField loads the source and destination address: offsets 12 and 16 of the IPv4 header
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

// second loads into the register behind the first address's (nf_tables.h: enum nft_registers; an
// IPv4 address takes one of 4 bytes, an IPv6 address one of 16).
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

// setNAT replaces the content of the table in one transaction. The pods' own sets are not
// touched, so that an AddMasq at the same time is not lost.
func (k *Kernel) setNAT(op Op, n NAT) error {
	if op == Delete {
		if gone, err := k.deleteUnusedTable(); gone || err != nil {
			return err
		}
		n = NAT{}
	}
	c, err := k.natConn()
	if err != nil {
		return err
	}
	sets := natFrame(c, c.AddTable)
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
	c.FlushChain(natChain())
	for _, r := range natRules() {
		c.AddRule(r)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%w; when something else made this table: nft delete table inet %s", err, tableName)
	}
	return nil
}

// natFrame adds table, sets and chain where they are missing.
func natFrame(c *nftables.Conn, addTable func(*nftables.Table) *nftables.Table) (sets []*nftables.Set) {
	addTable(natTable())
	for i, s := range natSets() {
		set := s.set(i)
		_ = c.AddSet(set, nil) // an error is kept by c until Flush
		sets = append(sets, set)
	}
	c.AddChain(natChain())
	return sets
}
