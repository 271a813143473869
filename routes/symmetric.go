package routes

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Symmetric marks the packets of connections that did not come by an uplink, so that a policy rule sends them by table
// main: a NodePort's answer from a pod would leave by the pod's uplink, and the network there drops it. Where Inside
// says so, it also marks what pods themselves send elsewhere, and the answers to that.
type Symmetric struct {
	Mark    uint32   // one bit of the packet's and of the connection's mark
	Uplinks []string // links
	// Inside are the destinations that pods reach by their uplink. Connections of pods to other destinations get the
	// mark. Empty: all destinations.
	Inside []netip.Prefix
	// Damaged: the table differs from the table that Sync makes. Observed only.
	Damaged bool
}

// The table of a Symmetric, as nft prints it, for one of two families; the last two rules only with Inside:
//
//	table inet edgeway-uplink {
//		set uplinks { type ifname; }
//		set inside4 { type ipv4_addr; flags interval; }
//		chain prerouting {
//			type filter hook prerouting priority dstnat + 10; policy accept;
//			iifname "ew*" ct mark & 0x20 == 0x20 meta mark set meta mark | 0x20
//			iifname != "ew*" iifname != @uplinks iifname != "lo" ct state new ct mark set ct mark | 0x20
//			iifname != "ew*" iifname != @uplinks iifname != "lo" ct mark & 0x20 == 0x20 meta mark set meta mark | 0x20
//			iifname "ew*" ct direction original ip daddr != @inside4 meta mark set meta mark | 0x20
//			iifname != "ew*" iifname != @uplinks iifname != "lo" ct direction reply meta mark set meta mark | 0x20
//		}
//	}
//
// The second packet of such a connection needs the mark too: with strict reverse path filtering the kernel asks
// for the route back to its source (net/ipv4/fib_frontend.c: __fib_validate_source), with the packet's mark if
// net.ipv4.conf.all.src_valid_mark is 1. The hook comes before that, after connection tracking, and after the
// translation of a Service's address into a pod's, which may be inside.
//
// The fourth rule leaves the connection's mark alone: in the moment after the transaction the kernel shows the
// rules to packets and not yet what is in a new interval set (see setNAT), and a mark would stay.
const (
	symmetricTable   = "edgeway-uplink"
	symmetricChain   = "prerouting"
	symmetricVersion = "edgeway 2"
)

// symmetricSets are the uplinks, and what is inside of IPv4 and of IPv6.
func symmetricSets() []*nftables.Set {
	return []*nftables.Set{
		{Table: inetTable(symmetricTable), ID: 1, Name: "uplinks", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Table: inetTable(symmetricTable), ID: 2, Name: "inside4", KeyType: nftables.TypeIPAddr, Interval: true},
		{Table: inetTable(symmetricTable), ID: 3, Name: "inside6", KeyType: nftables.TypeIP6Addr, Interval: true},
	}
}

func symmetricHook() *nftables.Chain {
	return &nftables.Chain{
		Name: symmetricChain, Table: inetTable(symmetricTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 10),
	}
}

func (k *Kernel) observeSymmetric(scope Scope, desired *Symmetric) *Symmetric {
	if !scope.Rules && desired == nil {
		return nil
	}
	t := k.readTable(symmetricHook(), symmetricSets())
	if t == nil {
		return nil
	}
	s := &Symmetric{}
	for i, elements := range t.elements {
		if i > 0 {
			s.Inside = append(s.Inside, prefixesOf(elements)...)
			continue
		}
		for _, e := range elements {
			s.Uplinks = append(s.Uplinks, attrName(e.Key))
		}
	}
	slices.Sort(s.Uplinks)
	if len(t.rules) > 0 {
		comment := commentOf(t.rules[0].UserData)
		_, _ = fmt.Sscanf(comment, symmetricVersion+"/1 mark %d", &s.Mark)
	}
	s.Damaged = !sameRules(t.rules, s.rules())
	return s
}

func (s Symmetric) rules() (rules []*nftables.Rule) {
	bit := binary.NativeEndian.AppendUint32(nil, s.Mark)
	none, rest := make([]byte, 4), binary.NativeEndian.AppendUint32(nil, ^s.Mark)
	iif := &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}
	ofPod := []expr.Any{iif, equal('e', 'w')} // a prefix of the name
	sets := symmetricSets()
	elsewhere := []expr.Any{
		iif, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("ew")},
		iif, &expr.Lookup{SourceRegister: 1, SetName: sets[0].Name, SetID: sets[0].ID, Invert: true},
		iif, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: linkName("lo")},
	}
	fresh := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW), Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
	}
	marked := []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bit, Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
	}
	// The direction is a byte: IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY.
	original := []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(0)}
	reply := []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(1)}
	setBit := &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: rest, Xor: bit}
	markConnection := []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, setBit, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}
	markPacket := []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, setBit, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
	for f := range 2 {
		all := [][]expr.Any{
			slices.Concat(ofPod, marked, markPacket),
			slices.Concat(elsewhere, fresh, markConnection),
			slices.Concat(elsewhere, marked, markPacket),
		}
		if len(s.Inside) > 0 {
			_, daddr := ipField(f == 1)
			outside := []expr.Any{daddr, &expr.Lookup{SourceRegister: 1, SetName: sets[1+f].Name, SetID: sets[1+f].ID, Invert: true}}
			all = append(all, slices.Concat(ofPod, original, outside, markPacket), slices.Concat(elsewhere, reply, markPacket))
		}
		for _, exprs := range all {
			rules = append(rules, newRule(symmetricHook(), f == 1, fmt.Sprintf("%s/%d mark %d", symmetricVersion, len(rules)+1, s.Mark), exprs...))
		}
	}
	return rules
}

// table returns the whole table of s.
func (s Symmetric) table() table {
	var links []nftables.SetElement
	for _, link := range s.links() {
		links = append(links, nftables.SetElement{Key: linkName(link)})
	}
	elements := [][]nftables.SetElement{links, intervals(s.Inside, false), intervals(s.Inside, true)}
	return table{symmetricHook(), s.rules(), symmetricSets(), elements}
}

// links returns the uplinks sorted, each once.
func (s Symmetric) links() []string {
	links := slices.Clone(s.Uplinks)
	slices.Sort(links)
	return slices.Compact(links)
}

func diffSymmetric(observed, desired *Symmetric) []Change {
	return diffOne(observed, desired, func(got, want Symmetric) bool {
		return !got.Damaged && got.Mark == want.Mark && slices.Equal(got.links(), want.links()) && samePrefixes(got.Inside, want.Inside)
	})
}

func (s Symmetric) String() string {
	text := fmt.Sprintf("table inet %s mark %#x uplinks %v", symmetricTable, s.Mark, s.links())
	if len(s.Inside) > 0 {
		text += fmt.Sprintf(" inside %v", canonical(s.Inside))
	}
	if s.Damaged {
		text += " damaged"
	}
	return text
}
