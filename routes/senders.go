package routes

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
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

func sendersSet(v6 bool) *nftables.Set {
	if v6 {
		return &nftables.Set{Table: inetTable(sendersTable), ID: 2, Name: "nodes6", KeyType: nftables.TypeIP6Addr}
	}
	return &nftables.Set{Table: inetTable(sendersTable), ID: 1, Name: "nodes4", KeyType: nftables.TypeIPAddr}
}

func inetTable(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

func (k *Kernel) observeSenders(scope Scope, desired *Senders) *Senders {
	if !scope.Senders && desired == nil {
		return nil
	}
	s, err := k.readSenders()
	if err != nil {
		return nil // a kernel without nftables has no table; the error comes when the table is made
	}
	return s
}

// readSenders returns nil if the table does not exist.
func (k *Kernel) readSenders() (*Senders, error) {
	c, err := k.natConn()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == sendersTable }) {
		return nil, err
	}
	out := &Senders{Damaged: true}
	for _, v6 := range []bool{false, true} {
		elements, err := c.GetSetElements(sendersSet(v6))
		if err != nil {
			return out, nil // the set is missing
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				out.From = append(out.From, a)
			}
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return out, err
	}
	want := inputChain()
	if !slices.ContainsFunc(chains, func(have *nftables.Chain) bool {
		return have.Table.Name == sendersTable && have.Name == want.Name && sameHook(have, want)
	}) {
		return out, nil
	}
	rules, err := c.GetRules(inetTable(sendersTable), want)
	if err != nil || len(rules) == 0 {
		return out, ifThere(err)
	}
	comment, _ := userdata.GetString(rules[0].UserData, userdata.TypeComment)
	if _, err := fmt.Sscanf(comment, sendersVersion+"/1 vni %d port %d", &out.VNI, &out.Port); err != nil {
		return out, nil
	}
	out.Damaged = !sameRules(rules, out.rules())
	return out, nil
}

func inputChain() *nftables.Chain {
	return &nftables.Chain{
		Name: sendersChain, Table: inetTable(sendersTable), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	}
}

// rules drop packets from other machines. The VNI follows 8 bytes of UDP and 4 of VXLAN
// (RFC 7348 section 5).
func (s Senders) rules() (rules []*nftables.Rule) {
	load := func(base expr.PayloadBase, offset, size uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}
	}
	is := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	vni := binary.BigEndian.AppendUint32(nil, s.VNI)
	for f, proto := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		set := sendersSet(f == 1)
		saddr, _ := ipField(f == 1)
		rules = append(rules, &nftables.Rule{
			Table: inetTable(sendersTable), Chain: inputChain(),
			Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is([]byte{proto}),
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is([]byte{unix.IPPROTO_UDP}),
				load(expr.PayloadBaseTransportHeader, 2, 2), is(binary.BigEndian.AppendUint16(nil, s.Port)),
				load(expr.PayloadBaseTransportHeader, 12, 3), is(vni[1:]),
				saddr, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			},
			UserData: userdata.AppendString(nil, userdata.TypeComment,
				fmt.Sprintf("%s/%d vni %d port %d", sendersVersion, f+1, s.VNI, s.Port)),
		})
	}
	return rules
}

// setSenders replaces the table in one transaction.
func (k *Kernel) setSenders(op Op, s Senders) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	table := inetTable(sendersTable)
	c.AddTable(table) // so that there is a table to delete
	c.DelTable(table)
	if op == Delete {
		return c.Flush()
	}
	c.AddTable(table)
	for _, v6 := range []bool{false, true} {
		set := sendersSet(v6)
		_ = c.AddSet(set, nil) // c keeps the error until Flush
		var elements []nftables.SetElement
		for _, a := range sortedAddrs(s.From) {
			if a.Is6() == v6 {
				elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		for chunk := range slices.Chunk(elements, setChunk) {
			if err := c.SetAddElements(set, chunk); err != nil {
				return err
			}
		}
	}
	c.AddChain(inputChain())
	for _, r := range s.rules() {
		c.AddRule(r)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%w; if another program made this table, run: nft delete table inet %s", err, sendersTable)
	}
	return nil
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
