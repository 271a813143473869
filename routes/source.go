package routes

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
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

func othersSets() (sets []*nftables.Set) {
	for f, key := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		sets = append(sets, &nftables.Set{
			Table: inetTable(sourceTable), ID: uint32(f + 1), Name: []string{"others4", "others6"}[f], Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, key),
		})
	}
	return sets
}

func sourceHook() *nftables.Chain {
	return &nftables.Chain{
		Name: sourceChain, Table: inetTable(sourceTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	}
}

func (k *Kernel) observeSourceCheck(scope Scope, desired *SourceCheck) *SourceCheck {
	if !scope.SourceCheck && desired == nil {
		return nil
	}
	t := k.readTable(sourceHook(), othersSets())
	if t == nil {
		return nil
	}
	s := &SourceCheck{Damaged: !sameRules(t.rules, sourceRules())}
	for _, e := range slices.Concat(t.elements...) {
		if len(e.Key) > unix.IFNAMSIZ {
			s.others = append(s.others, linkAddr{attrName(e.Key[:unix.IFNAMSIZ]), attrAddr(e.Key[unix.IFNAMSIZ:])})
		}
	}
	slices.SortFunc(s.others, linkAddr.compare)
	return s
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

func sourceRules() (rules []*nftables.Rule) {
	for f, set := range othersSets() {
		exprs := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal('e', 'w'), // a prefix of the name
			&expr.Meta{Key: metaIIFKind, Register: 1}, equal(linkName("veth")...),
			&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, equal(0, 0, 0, 0),
		}
		saddr, _ := ipField(f == 1)
		if f == 1 {
			exprs = append(exprs, saddr,
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: append([]byte{0xff, 0xc0}, make([]byte, 14)...), Xor: make([]byte, 16)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: append([]byte{0xfe, 0x80}, make([]byte, 14)...)})
		}
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, second(saddr, unix.IFNAMSIZ),
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true}, &expr.Verdict{Kind: expr.VerdictDrop})
		rules = append(rules, newRule(sourceHook(), f == 1, fmt.Sprintf("%s/%d", sourceVersion, f+1), exprs...))
	}
	return rules
}

// linkName is a name as the kernel compares it.
func linkName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// table returns the whole table of s.
func (s SourceCheck) table() table {
	elements := make([][]nftables.SetElement, 2)
	for _, o := range s.others {
		f := 0
		if o.addr.Is6() {
			f = 1
		}
		elements[f] = append(elements[f], nftables.SetElement{Key: append(linkName(o.link), o.addr.AsSlice()...)})
	}
	return table{sourceHook(), sourceRules(), othersSets(), elements}
}

func diffSourceCheck(observed, desired *SourceCheck) []Change {
	return diffOne(observed, desired, func(got, want SourceCheck) bool {
		return !got.Damaged && slices.Equal(got.others, want.others)
	})
}
