package routes

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Senders are the only machines whose packets of one VXLAN reach this node. VXLAN does not authenticate
// (RFC 7348 section 7): without Senders, any machine that reaches the port can send into the pods' network
// with a pod's source address.
type Senders struct {
	VNI  uint32
	Port uint16 // UDP
	From []netip.Addr
	// Damaged: the table differs from the table that Sync makes. Observed only.
	Damaged bool
}

// The table of the Senders, as nft prints it, for one of the two families:
//
//	table inet edgeway-vxlan {
//		set nodes4 { type ipv4_addr; }
//		chain input {
//			type filter hook input priority filter; policy accept;
//			meta nfproto ipv4 udp dport 8472 @th,96,24 1 ip saddr != @nodes4 drop
//		}
//	}
//
// The table ignores a VXLAN with another VNI on the same port. The hook comes after the
// reassembly of fragments (net/ipv4/ip_input.c: ip_local_deliver).
const (
	sendersTable   = "edgeway-vxlan"
	sendersChain   = "input"
	sendersVersion = "edgeway 1"
)

func sendersSets() []*nftables.Set {
	t := inetTable(sendersTable)
	return []*nftables.Set{{Table: t, ID: 1, Name: "nodes4", KeyType: nftables.TypeIPAddr}, {Table: t, ID: 2, Name: "nodes6", KeyType: nftables.TypeIP6Addr}}
}

func sendersHook() *nftables.Chain {
	return &nftables.Chain{
		Name: sendersChain, Table: inetTable(sendersTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	}
}

func (k *Kernel) observeSenders(scope Scope, desired *Senders) *Senders {
	if !scope.Senders && desired == nil {
		return nil
	}
	t := k.readTable(sendersHook(), sendersSets())
	if t == nil {
		return nil
	}
	s := &Senders{}
	for _, e := range slices.Concat(t.elements...) {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			s.From = append(s.From, a)
		}
	}
	if len(t.rules) > 0 { // a comment without the numbers differs from ours
		comment := commentOf(t.rules[0].UserData)
		_, _ = fmt.Sscanf(comment, sendersVersion+"/1 vni %d port %d", &s.VNI, &s.Port)
	}
	s.Damaged = !sameRules(t.rules, s.rules())
	return s
}

// rules drop packets from other machines. The VNI follows 8 bytes of UDP and 4 of VXLAN
// (RFC 7348 section 5).
func (s Senders) rules() (rules []*nftables.Rule) {
	vni := binary.BigEndian.AppendUint32(nil, s.VNI)
	for f, set := range sendersSets() {
		saddr, _ := ipField(f == 1)
		rules = append(rules, newRule(sendersHook(), f == 1, fmt.Sprintf("%s/%d vni %d port %d", sendersVersion, f+1, s.VNI, s.Port),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(unix.IPPROTO_UDP),
			load(expr.PayloadBaseTransportHeader, 2, 2), equal(binary.BigEndian.AppendUint16(nil, s.Port)...),
			load(expr.PayloadBaseTransportHeader, 12, 3), equal(vni[1:]...),
			saddr, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
			&expr.Verdict{Kind: expr.VerdictDrop}))
	}
	return rules
}

// table returns the whole table of s.
func (s Senders) table() table {
	elements := make([][]nftables.SetElement, 2)
	for _, a := range sortedAddrs(s.From) {
		f := 0
		if a.Is6() {
			f = 1
		}
		elements[f] = append(elements[f], nftables.SetElement{Key: a.AsSlice()})
	}
	return table{sendersHook(), s.rules(), sendersSets(), elements}
}

// sortedAddrs returns the addresses sorted, each once.
func sortedAddrs(in []netip.Addr) []netip.Addr {
	out := slices.Clone(in)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func diffSenders(observed, desired *Senders) []Change {
	return diffOne(observed, desired, func(got, want Senders) bool {
		return !got.Damaged && got.VNI == want.VNI && got.Port == want.Port && slices.Equal(sortedAddrs(got.From), sortedAddrs(want.From))
	})
}
