package routes

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// SourceCheck drops each packet that a pod sends with a source address that is not the pod's: the kernel
// must route the address to the link on which the packet arrived (RFC 3704 section 2.2, strict reverse path
// forwarding). Pods share one table, which uses the kernel's routes: a new pod costs nothing. A pod with
// several links of ours may send each of its addresses on any of them: an answer leaves by the pod's
// default route, whichever link the question came by.
//
// net.ipv4.conf.*.rp_filter has no IPv6 counterpart, and conf.all.rp_filter=2 makes it loose on all links.
type SourceCheck struct {
	// others are the addresses that pods with several links may send on another link. Sync finds them.
	others []linkAddr
	// Damaged: the table differs from the table that Sync makes. Observed only.
	Damaged bool
}

type linkAddr struct {
	link string
	addr netip.Addr
}

func (a linkAddr) compare(b linkAddr) int {
	return cmp.Or(cmp.Compare(a.link, b.link), a.addr.Compare(b.addr))
}

// The table of the SourceCheck, as nft prints it:
//
//	table inet edgeway-source {
//		set others4 { type ifname . ipv4_addr; }  # of pods with several links
//		set others6 { type ifname . ipv6_addr; }
//		chain prerouting {
//			type filter hook prerouting priority raw; policy accept;
//			meta nfproto ipv4 iifname "ew*" meta iifkind "veth" fib saddr . iif oif 0 iifname . ip saddr != @others4 drop
//			meta nfproto ipv6 iifname "ew*" meta iifkind "veth" fib saddr . iif oif 0 ip6 saddr & ffc0:: != fe80:: \
//				iifname . ip6 saddr != @others6 drop
//		}
//	}
//
// An address of this machine has no such route, so a pod cannot send from it either. IPv6 link-local
// addresses belong to the link and are not forwarded (RFC 4291 section 2.5.6): neighbour discovery uses
// them. IPv4 packets from 0.0.0.0 to 255.255.255.255 or 224.0.0.0/24 pass
// (net/ipv4/netfilter/nft_fib_ipv4.c). The hook comes before connection tracking.
const (
	sourceTable   = "edgeway-source"
	sourceChain   = "prerouting"
	sourceVersion = "edgeway 1"
)

// metaIIFKind is NFT_META_IIFKIND (linux/netfilter/nf_tables.h), since Linux 4.20.
const metaIIFKind expr.MetaKey = 26

func (k *Kernel) observeSourceCheck(scope Scope, desired *SourceCheck) *SourceCheck {
	if !scope.SourceCheck && desired == nil {
		return nil
	}
	s, err := k.readSourceCheck()
	if err != nil {
		return nil // a kernel without nftables has no table; the error comes when the table is made
	}
	return s
}

// readSourceCheck returns nil if the table does not exist.
func (k *Kernel) readSourceCheck() (*SourceCheck, error) {
	c, err := k.natConn()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == sourceTable }) {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	want := sourceHook()
	if !slices.ContainsFunc(chains, func(have *nftables.Chain) bool {
		return have.Table.Name == sourceTable && have.Name == want.Name && sameHook(have, want)
	}) {
		return &SourceCheck{Damaged: true}, nil
	}
	rules, err := c.GetRules(want.Table, want)
	if err != nil {
		return nil, ifThere(err)
	}
	out := &SourceCheck{Damaged: !sameRules(rules, sourceRules())}
	for _, v6 := range []bool{false, true} {
		elements, err := c.GetSetElements(othersSet(v6))
		if err != nil {
			return &SourceCheck{Damaged: true}, nil // the set is missing
		}
		for _, e := range elements {
			if len(e.Key) > unix.IFNAMSIZ {
				a, _ := netip.AddrFromSlice(e.Key[unix.IFNAMSIZ:])
				out.others = append(out.others, linkAddr{attrName(e.Key[:unix.IFNAMSIZ]), a})
			}
		}
	}
	slices.SortFunc(out.others, linkAddr.compare)
	return out, nil
}

// otherAddrs finds the pods with several links, and the other links on which they may send each address.
// The peers of a pod's links are in one network namespace.
func (v *view) otherAddrs() (out []linkAddr, err error) {
	devices, err := v.all()
	if err != nil {
		return nil, err
	}
	pods := map[int][]device{} // by namespace
	several := false
	for _, d := range devices {
		if ours(d.Name) && d.Kind == "veth" && d.peerNS != 0 {
			pods[d.peerNS] = append(pods[d.peerNS], d)
			several = several || len(pods[d.peerNS]) > 1
		}
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if !several {
			break
		}
		entries, err := v.fib(fam, mainTable, ProtoPod, 0)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.Dst.IsSingleIP() {
				continue
			}
			for _, d := range pods[v.byIndex[e.index].peerNS] {
				if d.index != e.index {
					out = append(out, linkAddr{d.Name, e.Dst.Addr()})
				}
			}
		}
	}
	slices.SortFunc(out, linkAddr.compare)
	return out, nil
}

func othersSet(v6 bool) *nftables.Set {
	name, id, key := "others4", uint32(1), nftables.TypeIPAddr
	if v6 {
		name, id, key = "others6", 2, nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: inetTable(sourceTable), ID: id, Name: name, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, key),
	}
}

func sourceHook() *nftables.Chain {
	return &nftables.Chain{
		Name: sourceChain, Table: inetTable(sourceTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	}
}

func sourceRules() (rules []*nftables.Rule) {
	is := func(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	for f, proto := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		exprs := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is(proto),
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, is('e', 'w'), // a prefix of the name
			&expr.Meta{Key: metaIIFKind, Register: 1}, is(append([]byte("veth"), make([]byte, unix.IFNAMSIZ-len("veth"))...)...),
			&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, is(0, 0, 0, 0),
		}
		saddr, _ := ipField(f == 1)
		if f == 1 {
			exprs = append(exprs, saddr,
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: append([]byte{0xff, 0xc0}, make([]byte, 14)...), Xor: make([]byte, 16)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: append([]byte{0xfe, 0x80}, make([]byte, 14)...)})
		}
		behind, set := *saddr.(*expr.Payload), othersSet(f == 1)
		behind.DestRegister = unix.NFT_REG_2 // an interface's name takes one register of 16 bytes
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &behind,
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true})
		rules = append(rules, &nftables.Rule{
			Table: inetTable(sourceTable), Chain: sourceHook(), Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop}),
			UserData: userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s/%d", sourceVersion, f+1)),
		})
	}
	return rules
}

// setSourceCheck replaces the table in one transaction.
func (k *Kernel) setSourceCheck(op Op, s SourceCheck) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	table := inetTable(sourceTable)
	c.AddTable(table) // so that there is a table to delete
	c.DelTable(table)
	if op == Delete {
		return c.Flush()
	}
	c.AddTable(table)
	for _, v6 := range []bool{false, true} {
		set := othersSet(v6)
		_ = c.AddSet(set, nil) // c keeps the error until Flush
		var elements []nftables.SetElement
		for _, o := range s.others {
			if o.addr.Is6() == v6 {
				name := append([]byte(o.link), make([]byte, unix.IFNAMSIZ-len(o.link))...)
				elements = append(elements, nftables.SetElement{Key: append(name, o.addr.AsSlice()...)})
			}
		}
		for chunk := range slices.Chunk(elements, setChunk) {
			if err := c.SetAddElements(set, chunk); err != nil {
				return err
			}
		}
	}
	c.AddChain(sourceHook())
	for _, r := range sourceRules() {
		c.AddRule(r)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%w; if another program made this table, run: nft delete table inet %s", err, sourceTable)
	}
	return nil
}

func diffSourceCheck(observed, desired *SourceCheck) []Change {
	return diffOne(observed, desired, func(got, want SourceCheck) bool {
		return !got.Damaged && slices.Equal(got.others, want.others)
	})
}
