package routes

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// setChunk elements of an nftables set fit the 64 KiB that a netlink attribute can hold.
const setChunk = 500

// table is an nftables table that one object owns as a whole. Sync replaces it in one transaction.
type table struct {
	chain    *nftables.Chain
	rules    []*nftables.Rule
	sets     []*nftables.Set         // of IPv4, of IPv6
	elements [][]nftables.SetElement // of each set
}

// readTable reads the table that has the chain and the sets. It returns nil if there is no such table, and
// no rules if a set or the chain is missing. A kernel without nftables has no table: the error comes when
// the table is made.
func (k *Kernel) readTable(chain *nftables.Chain, sets []*nftables.Set) *table {
	c, err := k.natConn()
	if err != nil {
		return nil
	}
	if there, err := hasTable(c, chain.Table); err != nil || !there {
		return nil
	}
	t := &table{chain: chain, sets: sets}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return t
		}
		t.elements = append(t.elements, elements)
	}
	chains, err := c.ListChainsOfTableFamily(chain.Table.Family)
	if err == nil {
		t.rules, _, _ = rulesIn(c, chains, chain)
	}
	return t
}

// setTable replaces the table, or deletes it.
func (k *Kernel) setTable(op Op, t table) error {
	c, err := k.natConn()
	if err != nil {
		return err
	}
	c.AddTable(t.chain.Table) // so that there is a table to delete
	c.DelTable(t.chain.Table)
	if op == Delete {
		return c.Flush()
	}
	c.AddTable(t.chain.Table)
	for i, set := range t.sets {
		_ = c.AddSet(set, nil) // c keeps the error until Flush
		if err := addElements(c, set, t.elements[i]); err != nil {
			return err
		}
	}
	c.AddChain(t.chain)
	for _, r := range t.rules {
		c.AddRule(r)
	}
	return commit(c, t.chain.Table)
}

func addElements(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for chunk := range slices.Chunk(elements, setChunk) {
		if err := c.SetAddElements(set, chunk); err != nil {
			return err
		}
	}
	return nil
}

// commit sends the transaction that makes a table. ENOENT means that the kernel lacks an expression of a rule.
func commit(c *nftables.Conn, t *nftables.Table) error {
	err := c.Flush()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		family := "inet"
		if t.Family == nftables.TableFamilyARP {
			family = "arp"
		}
		return fmt.Errorf("%w; if another program made this table, run: nft delete table %s %s", err, family, t.Name)
	}
	return err
}

func inetTable(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

func hasTable(c *nftables.Conn, want *nftables.Table) (bool, error) {
	tables, err := c.ListTablesOfFamily(want.Family)
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == want.Name }), err
}

// rulesIn reads the rules of a chain; none if the chain has another hook than want.
func rulesIn(c *nftables.Conn, chains []*nftables.Chain, want *nftables.Chain) (rules []*nftables.Rule, exists bool, err error) {
	at := slices.IndexFunc(chains, func(have *nftables.Chain) bool {
		return have.Table.Name == want.Table.Name && have.Name == want.Name
	})
	if at < 0 {
		return nil, false, nil
	}
	have := chains[at]
	if have.Type == want.Type && have.Hooknum != nil && *have.Hooknum == *want.Hooknum && have.Priority != nil && *have.Priority == *want.Priority {
		rules, err = c.GetRules(want.Table, want)
	}
	return rules, true, err
}

// sameRules compares the rules' comments, which identify the rules, and their lengths.
func sameRules(have, want []*nftables.Rule) bool {
	return slices.EqualFunc(have, want, func(have, want *nftables.Rule) bool {
		return slices.Equal(have.UserData, want.UserData) && len(have.Exprs) == len(want.Exprs)
	})
}

// newRule returns a rule for the packets of one family. The comment identifies the rule.
func newRule(chain *nftables.Chain, v6 bool, comment string, exprs ...expr.Any) *nftables.Rule {
	proto := byte(unix.NFPROTO_IPV4)
	if v6 {
		proto = unix.NFPROTO_IPV6
	}
	family := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(proto)}
	return &nftables.Rule{
		Table: chain.Table, Chain: chain, Exprs: append(family, exprs...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	}
}

// equal compares the register that was loaded last.
func equal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// ipField loads the source or destination address: offsets 12 and 16 of the IPv4 header
// (RFC 791), 8 and 24 of the IPv6 header (RFC 8200).
func ipField(v6 bool) (saddr, daddr expr.Any) {
	if v6 {
		return load(expr.PayloadBaseNetworkHeader, 8, 16), load(expr.PayloadBaseNetworkHeader, 24, 16)
	}
	return load(expr.PayloadBaseNetworkHeader, 12, 4), load(expr.PayloadBaseNetworkHeader, 16, 4)
}

func load(base expr.PayloadBase, offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}
}

// second loads into the register after the first address (nf_tables.h: enum nft_registers; an IPv4
// address takes a register of 4 bytes, an IPv6 address or the name of a link a register of 16).
func second(field expr.Any, first uint32) expr.Any {
	p := *field.(*expr.Payload)
	p.DestRegister = unix.NFT_REG32_01
	if first == 16 {
		p.DestRegister = unix.NFT_REG_2
	}
	return &p
}

// ifThere ignores the errors that say that the object, or nftables itself, does not exist.
func ifThere(err error) error {
	if missing(err) || unsupported(err) {
		return nil
	}
	return err
}

// missing reports whether the kernel has no such object. The library keeps only the text of an error
// from a list.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || err != nil && strings.HasSuffix(err.Error(), unix.ENOENT.Error())
}
