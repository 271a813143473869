package routes

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Symmetric marks the connections to pods that did not come by an uplink, and the packets of such connections,
// so that a policy rule sends the answers back the way that the questions came: a NodePort's answer from a pod
// would leave by the pod's uplink, and the network there drops it.
type Symmetric struct {
	Mark    uint32   // one bit of the packet's and of the connection's mark
	Uplinks []string // links
	// Damaged: the table differs from the table that Sync makes. Observed only.
	Damaged bool
}

// The table of a Symmetric, as nft prints it:
//
//	table inet edgeway-uplink {
//		set uplinks { type ifname; }
//		chain prerouting {
//			type filter hook prerouting priority mangle; policy accept;
//			iifname "ew*" ct mark & 0x20 == 0x20 meta mark set meta mark | 0x20
//			iifname != "ew*" iifname != @uplinks iifname != "lo" ct state new ct mark set ct mark | 0x20
//			iifname != "ew*" iifname != @uplinks iifname != "lo" ct mark & 0x20 == 0x20 meta mark set meta mark | 0x20
//		}
//	}
//
// The second packet of such a connection needs the mark too: with strict reverse path filtering the kernel asks
// for the route back to its source (net/ipv4/fib_frontend.c: __fib_validate_source), with the packet's mark if
// net.ipv4.conf.all.src_valid_mark is 1. The hook comes before that, and after connection tracking.
const (
	symmetricTable   = "edgeway-uplink"
	symmetricChain   = "prerouting"
	symmetricVersion = "edgeway 1"
)

func symmetricSet() *nftables.Set {
	return &nftables.Set{Table: inetTable(symmetricTable), ID: 1, Name: "uplinks", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

func symmetricHook() *nftables.Chain {
	return &nftables.Chain{
		Name: symmetricChain, Table: inetTable(symmetricTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	}
}

func (k *Kernel) observeSymmetric(scope Scope, desired *Symmetric) *Symmetric {
	if !scope.Rules && desired == nil {
		return nil
	}
	t := k.readTable(symmetricHook(), []*nftables.Set{symmetricSet()})
	if t == nil {
		return nil
	}
	s := &Symmetric{}
	for _, e := range slices.Concat(t.elements...) {
		s.Uplinks = append(s.Uplinks, attrName(e.Key))
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
	elsewhere := []expr.Any{
		iif, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("ew")},
		iif, &expr.Lookup{SourceRegister: 1, SetName: symmetricSet().Name, SetID: symmetricSet().ID, Invert: true},
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
	setBit := &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: rest, Xor: bit}
	markConnection := []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, setBit, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}
	markPacket := []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, setBit, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
	for i, exprs := range [][]expr.Any{
		slices.Concat(ofPod, marked, markPacket),
		slices.Concat(elsewhere, fresh, markConnection),
		slices.Concat(elsewhere, marked, markPacket),
	} {
		rules = append(rules, newRule(symmetricHook(), false, fmt.Sprintf("%s/%d mark %d", symmetricVersion, i+1, s.Mark), exprs...))
	}
	return rules
}

// table returns the whole table of s.
func (s Symmetric) table() table {
	var elements []nftables.SetElement
	for _, link := range s.links() {
		elements = append(elements, nftables.SetElement{Key: linkName(link)})
	}
	return table{symmetricHook(), s.rules(), []*nftables.Set{symmetricSet()}, [][]nftables.SetElement{elements}}
}

// links returns the uplinks sorted, each once.
func (s Symmetric) links() []string {
	links := slices.Clone(s.Uplinks)
	slices.Sort(links)
	return slices.Compact(links)
}

func diffSymmetric(observed, desired *Symmetric) []Change {
	return diffOne(observed, desired, func(got, want Symmetric) bool {
		return !got.Damaged && got.Mark == want.Mark && slices.Equal(got.links(), want.links())
	})
}

func (s Symmetric) String() string {
	text := fmt.Sprintf("table inet %s mark %#x uplinks %v", symmetricTable, s.Mark, s.links())
	if s.Damaged {
		text += " damaged"
	}
	return text
}
