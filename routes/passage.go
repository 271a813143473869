package routes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Passage are rules of ours at the end of a chain that belongs to another program's firewall. They accept packets
// that the chain's policy, or its last rule, would drop.
//
// The rules must be in that chain: in nftables a packet passes only if every base chain of the hook accepts it, so a
// chain of our own cannot undo another chain's policy (nft(8), section "verdict statement"). The rules stand at the
// end, or before a last rule that drops everything. So each rule that the administrator wrote comes first and stays in
// force.
//
//	chain FORWARD {                                   # of Docker
//		type filter hook forward priority filter; policy drop;
//		counter jump DOCKER-USER
//		...
//		iifname "ew*" ip saddr 10.10.1.0/24 counter accept comment "edgeway accepts: in ew* saddr 10.10.1.0/24"
//		oifname "ew*" ip daddr 10.10.1.0/24 counter accept comment "edgeway accepts: out ew* daddr 10.10.1.0/24"
//	}
//
// The comment says that the rule is ours, and what it accepts. Tables of iptables get expressions that every
// iptables-nft since 1.8 can print: it refuses to list a table that has others.
type Passage struct {
	Place   Place
	Accepts []Accept // those of the chain's family count
	// Misplaced: the rules do not stand at the end of the chain, one after the other. Observed only.
	Misplaced bool
	comments  []string // observed only
}

// Accept says which packets one rule accepts. A zero field matches everything.
type Accept struct {
	In, Out          bool // the packet comes from, or goes to, the link of a pod
	Src, Dst         netip.Prefix
	Protocol         uint8 // TCP or UDP
	SrcPort, DstPort uint16
	// Answers: only TCP segments with ACK. No connection begins with one (RFC 9293 section 3.5).
	Answers bool
}

// passageMark begins the comment of each rule of a Passage.
const passageMark = "edgeway accepts: "

// podLinks is what the names of pods' links begin with.
const podLinks = "ew"

func (a Accept) String() string {
	var s []string
	add := func(there bool, format string, v any) {
		if there {
			s = append(s, fmt.Sprintf(format, v))
		}
	}
	add(a.In, "in %s*", podLinks)
	add(a.Out, "out %s*", podLinks)
	add(a.Src.IsValid(), "saddr %v", a.Src)
	add(a.Dst.IsValid(), "daddr %v", a.Dst)
	add(a.Protocol != 0, "%s", map[uint8]string{TCP: "tcp", UDP: "udp"}[a.Protocol])
	add(a.SrcPort != 0, "sport %d", a.SrcPort)
	add(a.DstPort != 0, "dport %d", a.DstPort)
	add(a.Answers, "%s", "ack")
	return strings.Join(s, " ")
}

// Words are the rules as their comments describe them.
func (p Passage) Words() []string {
	if p.comments != nil {
		return p.comments
	}
	var out []string
	for _, a := range p.accepts() {
		out = append(out, a.String())
	}
	return out
}

func (p Passage) String() string {
	text := p.Place.String() + ": accept " + strings.Join(p.Words(), ", ")
	if p.Misplaced {
		text += ", not at the end"
	}
	return text
}

// accepts returns those of the chain's family, each once.
func (p Passage) accepts() (out []Accept) {
	for _, a := range p.Accepts {
		fits := true
		for _, addr := range []netip.Prefix{a.Src, a.Dst} {
			is6 := addr.IsValid() && addr.Addr().Is6()
			fits = fits && !(addr.IsValid() && is6 && p.Place.Family == unix.NFPROTO_IPV4) && !(addr.IsValid() && !is6 && p.Place.Family == unix.NFPROTO_IPV6)
		}
		if fits && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func passagesByPlace() identity[Passage, Place] {
	return identity[Passage, Place]{
		key:   func(p Passage) Place { return p.Place },
		right: func(got, want Passage) bool { return !got.Misplaced && slices.Equal(got.Words(), want.Words()) },
	}
}

// Passable reports whether a Passage can let the packet through: the end of a chain drops it, and the kernel lets us
// write into the chain. It is false for chains that several rules may lead to, where a rule of ours would also accept
// what the administrator sent there to be dropped: of those, only the chains of firewalld's zones and of ufw's default
// are known to be reached by their default alone.
func (f Finding) Passable() bool {
	ended := f.Passed || f.Outcome == Drops
	byDefault := f.Place == f.Base || f.Zone || strings.HasPrefix(f.Place.Chain, "ufw-reject-") || strings.HasPrefix(f.Place.Chain, "ufw6-reject-")
	return ended && f.Policy && byDefault && (!f.Owned || f.Passed) && (f.Hook == Input || f.Hook == Forward || f.Hook == Output)
}

// passages is what Netfilter found last. It counts as long as nobody changes a firewall: the tables of kube-proxy
// have thousands of rules, and each Sync of the node asks.
type passages struct {
	mu         sync.Mutex // guards the rest
	generation uint32     // 0: nothing was read yet
	found      []Passage
}

// Firewalls are other programs' firewalls, as Sync reads and writes them. It is Netfilter in the daemon. A program that
// leaves it out of its Scope does not link the reader of firewalls, which is 128 KiB of the plugin.
type Firewalls interface {
	// observe finds the chains that have rules of ours.
	observe(ctx context.Context, k *Kernel) ([]Passage, error)
	// existing leaves out the passages of chains that do not exist: nothing is dropped there.
	existing(k *Kernel, all []Passage) ([]Passage, error)
	// set rewrites our rules in a chain, or deletes them, in one transaction.
	set(ctx context.Context, k *Kernel, op Op, p Passage) error
}

// Netfilter are the firewalls of nftables and of legacy iptables: it knows rules of ours by their comments. A kernel that
// has neither has none.
type Netfilter struct{}

func (Netfilter) observe(ctx context.Context, k *Kernel) ([]Passage, error) {
	now, err := k.Generation(ctx) // before the rules are read: who changes them meanwhile is seen the next time
	if err != nil {
		return nil, fmt.Errorf("read the firewall: %w", err)
	}
	p := &k.passages
	p.mu.Lock()
	defer p.mu.Unlock()
	if now == 0 || now != p.generation {
		if p.found, err = k.readPassages(); err != nil {
			p.generation = 0
			return nil, err
		}
		p.generation = now
	}
	return slices.Clone(p.found), nil
}

func (k *Kernel) readPassages() (out []Passage, err error) {
	r := newReader(k)
	if err := r.loadNFT(); err != nil {
		return nil, fmt.Errorf("read the firewall: %w", err)
	}
	tables := map[Place]bool{}
	for _, c := range r.chains {
		t := Place{Family: c.Family, Table: c.Table}
		if filtered := c.hook == Input || c.hook == Forward || c.hook == Output; !filtered || c.nat || ownTable(c.Place) || tables[t] {
			continue
		}
		tables[t] = true
		rules, err := r.readRules(t)
		if err := ifThere(err); err != nil {
			return nil, fmt.Errorf("read the firewall: %w", err)
		}
		of := map[string][]fwRule{}
		var order []string
		for _, rule := range rules {
			if of[rule.chain] == nil {
				order = append(order, rule.chain)
			}
			of[rule.chain] = append(of[rule.chain], rule)
		}
		for _, chain := range order {
			out = append(out, passagesIn(Place{Family: c.Family, Table: c.Table, Chain: chain}, of[chain])...)
		}
	}
	if err := k.eachTable(filters, r.addLegacy); err != nil {
		return nil, fmt.Errorf("read the firewall: %w", err)
	}
	for _, p := range slices.SortedFunc(maps.Keys(r.legacy), func(a, b Place) int { return strings.Compare(a.String(), b.String()) }) {
		out = append(out, passagesIn(p, r.legacy[p])...)
	}
	return out, nil
}

// passagesIn returns the Passage of a chain, if the chain has rules of ours.
func passagesIn(at Place, rules []fwRule) []Passage {
	p := Passage{Place: at}
	handles, _, placed := endOf(rules)
	for _, rule := range rules {
		if slices.Contains(handles, rule.handle) {
			p.comments = append(p.comments, strings.TrimPrefix(rule.comment, passageMark))
		}
	}
	if p.Misplaced = !placed; len(handles) == 0 {
		return nil
	}
	return []Passage{p}
}

// endOf returns the handles of our rules, and the handle of the last rule if that rule drops everything. placed: our
// rules stand before that rule, or at the end, one after the other.
func endOf(rules []fwRule) (ours []uint64, last uint64, placed bool) {
	foreign := -1 // the last rule that is not ours
	for i, r := range rules {
		if r.ours() {
			ours = append(ours, r.handle)
		} else {
			foreign = i
		}
	}
	end := len(rules)
	if foreign >= 0 && rules[foreign].dropsAll() {
		end, last = foreign, rules[foreign].handle
	}
	placed = true
	for i, r := range rules {
		placed = placed && (!r.ours() || end-len(ours) <= i && i < end)
	}
	return ours, last, placed
}

// ours reports whether the rule is one of a Passage.
func (r fwRule) ours() bool { return strings.HasPrefix(r.comment, passageMark) }

// dropsAll reports whether the rule drops every packet.
func (r fwRule) dropsAll() bool {
	if !r.takesAll() {
		return false
	}
	res := r.steps[0](&walk{})
	return res.ends && res.outcome() == Drops
}

func (Netfilter) existing(k *Kernel, all []Passage) ([]Passage, error) {
	if len(all) == 0 {
		return nil, nil
	}
	r := newReader(k)
	err := r.loadNFT()
	if slices.ContainsFunc(all, func(p Passage) bool { return p.Place.Legacy }) {
		err = errors.Join(err, k.eachTable(filters, r.addLegacy))
	}
	if err != nil {
		return nil, fmt.Errorf("read the firewall: %w", err)
	}
	return without(all, func(p Passage) bool { return !r.names[p.Place] }), nil
}

func (Netfilter) set(ctx context.Context, k *Kernel, op Op, p Passage) error {
	if p.Place.Legacy {
		return k.setLegacy(ctx, op, p)
	}
	rules, err := newReader(k).readRules(p.Place)
	if err != nil && !missing(err) {
		return err
	}
	c, err := k.natConn()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: p.Place.Table, Family: nftables.TableFamily(p.Place.Family)}
	chain := &nftables.Chain{Name: p.Place.Chain, Table: table}
	handles, before, _ := endOf(rules)
	for _, h := range handles {
		if err := c.DelRule(&nftables.Rule{Table: table, Chain: chain, Handle: h}); err != nil {
			return err
		}
	}
	if op != Delete {
		for _, a := range p.accepts() {
			rule := &nftables.Rule{Table: table, Chain: chain, Exprs: a.exprs(p.Place), Position: before,
				UserData: userdata.AppendString(nil, userdata.TypeComment, passageMark+a.String())}
			if before != 0 {
				c.InsertRule(rule)
			} else {
				c.AddRule(rule)
			}
		}
	}
	err = c.Flush()
	switch {
	case op == Delete && missing(err):
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w; the program that made the table keeps it for itself", err)
	}
	return err
}

// exprs are the rule's expressions. iptables prints no match of nftables for ports, and no meta nfproto.
func (a Accept) exprs(p Place) (out []expr.Any) {
	v6 := a.Src.IsValid() && a.Src.Addr().Is6() || a.Dst.IsValid() && a.Dst.Addr().Is6()
	if p.Family == unix.NFPROTO_INET && (a.Src.IsValid() || a.Dst.IsValid()) {
		proto := byte(unix.NFPROTO_IPV4)
		if v6 {
			proto = unix.NFPROTO_IPV6
		}
		out = append(out, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(proto))
	}
	if a.In {
		out = append(out, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal([]byte(podLinks)...))
	}
	if a.Out {
		out = append(out, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal([]byte(podLinks)...))
	}
	saddr, daddr := ipField(v6)
	out = append(append(out, inPrefix(saddr, a.Src)...), inPrefix(daddr, a.Dst)...)
	if a.Protocol != 0 {
		out = append(out, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(a.Protocol))
		if p.byIPTables() {
			out = append(out, a.xtMatch())
		} else {
			out = append(out, a.ports()...)
		}
	}
	return append(out, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// inPrefix compares an address with a prefix.
func inPrefix(field expr.Any, p netip.Prefix) []expr.Any {
	switch {
	case !p.IsValid():
		return nil
	case p.IsSingleIP():
		return []expr.Any{field, equal(p.Addr().AsSlice()...)}
	}
	mask := maskOf(p)
	return []expr.Any{field, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		equal(p.Masked().Addr().AsSlice()...)}
}

// maskOf has a 1 for each bit of the prefix.
func maskOf(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return mask
}

// ports compares the ports and the flag ACK: the flags are byte 13 of the header, and ACK is bit 4 (RFC 9293 section 3.1).
func (a Accept) ports() (out []expr.Any) {
	for at, port := range []uint16{a.SrcPort, a.DstPort} {
		if port != 0 {
			out = append(out, load(expr.PayloadBaseTransportHeader, uint32(2*at), 2), equal(binary.BigEndian.AppendUint16(nil, port)...))
		}
	}
	if a.Answers {
		out = append(out, load(expr.PayloadBaseTransportHeader, 13, 1),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpACK}, Xor: []byte{0}}, equal(tcpACK))
	}
	return out
}

const tcpACK = 0x10

// xtMatch is the same in iptables' words: -m tcp --sport 179 --tcp-flags ACK ACK.
func (a Accept) xtMatch() *expr.Match {
	ports := func(port uint16) [2]uint16 {
		if port == 0 {
			return [2]uint16{0, 65535}
		}
		return [2]uint16{port, port}
	}
	if a.Protocol == UDP {
		return &expr.Match{Name: "udp", Info: &xt.Udp{SrcPorts: ports(a.SrcPort), DstPorts: ports(a.DstPort)}}
	}
	tcp := &xt.Tcp{SrcPorts: ports(a.SrcPort), DstPorts: ports(a.DstPort)}
	if a.Answers {
		tcp.FlagsMask, tcp.FlagsCmp = tcpACK, tcpACK
	}
	return &expr.Match{Name: "tcp", Info: tcp}
}

// byIPTables reports whether a program of iptables may have made the table: it makes tables of these names, for one
// family. People who write nftables by hand use the same name for the table, and lower case for its chains.
func (p Place) byIPTables() bool {
	tables, byHand := []string{"filter", "mangle", "raw", "security"}, []string{"input", "forward", "output"}
	return p.Family != unix.NFPROTO_INET && slices.Contains(tables, p.Table) && !slices.Contains(byHand, p.Chain)
}

// ownTable reports whether the chain is in a table of edgeway.
func ownTable(p Place) bool {
	return strings.HasPrefix(p.Table, tableName) && !p.Legacy && p.Family == unix.NFPROTO_INET
}

// parseRuleOf reads a rule with the name of its chain.
func parseRuleOf(p Place, b []byte) (fwRule, bool) {
	if len(b) < nfgenmsgBytes {
		return fwRule{}, false
	}
	a := b[nfgenmsgBytes:]
	chain := attrName(one(a, unix.NFTA_RULE_CHAIN))
	if attrName(one(a, unix.NFTA_RULE_TABLE)) != p.Table || p.Chain != "" && chain != p.Chain {
		return fwRule{}, false
	}
	r := parseNFTRule(bytes.Clone(a))
	r.chain = chain
	return r, true
}
