package routes

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Hook is a place on a packet's way through the kernel where firewalls have rules (linux/netfilter.h:
// enum nf_inet_hooks; nftables and iptables use the same numbers).
type Hook uint8

// The hooks in the order of a packet's way: a packet for another machine passes Prerouting, Forward and Postrouting;
// a packet for this machine passes Prerouting and Input; a packet of this machine passes Output and Postrouting.
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

func (h Hook) String() string {
	return [...]string{"prerouting", "input", "forward", "output", "postrouting"}[h]
}

// Links of a Packet. PodLink is the link of any pod of this node. ByRoute is the link of the kernel's route to the
// packet's address of that side.
const (
	PodLink = "ew0"
	ByRoute = "?"
)

// Protocols of a Packet.
const (
	TCP    = unix.IPPROTO_TCP
	UDP    = unix.IPPROTO_UDP
	ICMP   = unix.IPPROTO_ICMP
	ICMPv6 = unix.IPPROTO_ICMPV6
)

// Packet is the first packet of a connection that the firewall is asked about.
type Packet struct {
	Src, Dst netip.Addr
	// In and Out are the links, PodLink or ByRoute; "" for packets that begin or end on this machine.
	In, Out string
	// Protocol is TCP, UDP, ICMP or ICMPv6. An ICMP packet is an echo request.
	Protocol         uint8
	SrcPort, DstPort uint16
	// Reply says that the packet answers a connection which the firewall has let through.
	Reply bool
}

// Outcome is what a hook does to a packet.
type Outcome uint8

// Accepts: the packet passes. Drops: the packet does not pass. Translates: the packet passes with another source or
// destination address. Unclear: a rule decides by something that a packet alone does not say, such as a rate, an ipset
// or a program.
const (
	Accepts Outcome = iota
	Drops
	Translates
	Unclear
)

func (o Outcome) String() string {
	return [...]string{"accepts", "drops", "translates", "may drop or translate"}[o]
}

// Finding is what one hook does to a packet, and the rule that decides.
type Finding struct {
	Hook    Hook
	Outcome Outcome
	// Place is the chain that decides. It is zero if every chain accepts the packet.
	Place Place
	// Policy says that the policy of the base chain, or a last rule that takes every packet, decides.
	Policy bool
	// Handle is the number of the rule in nftables, or its position from 1 with legacy iptables; 0: the policy.
	Handle uint64
	// Does is what the rule does: "drop", "reject", "masquerade", ...
	Does string
	// Comment is the rule's comment, if it has one.
	Comment string
	// Packets is the rule's counter. Counted is false if the rule has none.
	Packets uint64
	Counted bool
	// Base is the base chain through which the packet reached the rule.
	Base Place
	// Doubt names what decides whether a packet gets to an Unclear rule.
	Doubt string
	// Passed: a rule of ours accepts the packet (see Passage). Without it the chain would do as the rest says.
	Passed bool
	// Owned: edgeway cannot change the chain's table. The kernel lets only one program change it, or it is a table of
	// legacy iptables whose lock cannot be opened or whose entries edgeway does not understand.
	Owned bool
	// Zone: the chain is firewalld's for a zone, and its last rule is the zone's default.
	Zone bool
	// Program is "Docker", "firewalld" or "ufw" if the chain is one of theirs, or a chain that they share with others.
	Program string
}

// Place is a chain of a firewall.
type Place struct {
	Family uint8 // unix.NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET
	Table  string
	Chain  string
	// Legacy: the chain belongs to legacy iptables, not to nftables.
	Legacy bool
}

// familyWord is the family as nft writes it.
func (p Place) familyWord() string {
	return map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}[p.Family]
}

// IPTables is the program that changes the chain, if a program of iptables made it.
func (p Place) IPTables() string {
	name := "iptables"
	if p.Family == unix.NFPROTO_IPV6 {
		name = "ip6tables"
	}
	if p.Legacy {
		name += "-legacy"
	}
	return name
}

func (p Place) String() string {
	if p.Legacy {
		return fmt.Sprintf("chain %s of %s -t %s", p.Chain, p.IPTables(), p.Table)
	}
	return fmt.Sprintf("chain %s %s %s of nftables", p.familyWord(), p.Table, p.Chain)
}

// NFT is the chain as nft's commands name it.
func (p Place) NFT() string { return p.familyWord() + " " + p.Table + " " + p.Chain }

// Show is the command that prints the chain.
func (p Place) Show() string {
	if p.Legacy {
		return fmt.Sprintf("%s -t %s -nvL %s --line-numbers", p.IPTables(), p.Table, p.Chain)
	}
	return fmt.Sprintf("nft -a list chain %s %s %s", p.familyWord(), p.Table, p.Chain)
}

// String says what decides, as an operator finds it: "chain ip filter FORWARD of nftables, policy drop".
func (f Finding) String() string {
	if f.Place == (Place{}) {
		return f.Hook.String() + ": " + f.Outcome.String()
	}
	s := f.Place.String()
	switch {
	case f.Handle == 0:
		return s + ", policy " + f.Does + f.passed()
	case f.Place.Legacy:
		s += fmt.Sprintf(", rule %d", f.Handle)
	default:
		s += fmt.Sprintf(", rule with handle %d", f.Handle)
	}
	if f.Comment != "" {
		s += fmt.Sprintf(" (%q)", f.Comment)
	}
	s += ": " + f.Does
	if f.Doubt != "" {
		s += ", depending on " + f.Doubt
	}
	if f.Counted {
		s += fmt.Sprintf(" (%d packets so far)", f.Packets)
	}
	return s + f.passed()
}

func (f Finding) passed() string {
	if f.Passed {
		return "; a rule of edgeway's accepts the packet before"
	}
	return ""
}

// Undo is the command that deletes the rule; "" for a policy.
func (f Finding) Undo() string {
	switch p := f.Place; {
	case f.Handle == 0:
		return ""
	case p.Legacy:
		return fmt.Sprintf("%s -t %s -D %s %d", p.IPTables(), p.Table, p.Chain, f.Handle)
	default:
		return fmt.Sprintf("nft delete rule %s %s %s handle %d", p.familyWord(), p.Table, p.Chain, f.Handle)
	}
}

// fwChain is a chain of a firewall. A base chain has a hook.
type fwChain struct {
	Place
	base     bool
	hook     Hook
	nat      bool
	owned    bool // see Finding
	priority int32
	policy   verdict
}

// verdict is what a rule or a policy says (linux/netfilter/nf_tables.h: enum nft_verdicts).
type verdict struct {
	code  int32
	chain string // of a jump
	does  string
}

const (
	nfDrop          = 0 // linux/netfilter.h
	nfAccept        = 1
	verdictContinue = -1
	verdictJump     = -3
	verdictGoto     = -4
	verdictReturn   = -5
	// verdictTranslate and verdictUnclear are ours: the rule ends the chain of NAT, or nobody knows what it does.
	verdictTranslate = -100
	verdictUnclear   = -101
)

// fwRule is one rule.
type fwRule struct {
	chain   string // where the rules of several chains are read
	handle  uint64
	at      int // offset of the entry, in a table of legacy iptables
	comment string
	packets uint64
	counted bool
	steps   []fwStep
}

// fwStep is one expression of a rule. It works on the packet and says how the rule goes on.
type fwStep func(*walk) result

// result of a step: the packet still matches, does not match, or nobody knows (doubt says why). A step with a verdict
// ends the rule.
type result struct {
	no    bool
	doubt string
	verdict
	ends bool
}

var (
	matches = result{}
	differs = result{no: true}
)

func doubtful(what string) result { return result{doubt: what} }

func matchesIf(ok bool) result { return result{no: !ok} }

func ends(v verdict) result { return result{verdict: v, ends: true} }

// rules is where an evaluation reads a firewall. It reads only the chains and elements that the packet meets.
type rules interface {
	// bases are the base chains of a hook for the family, in the order in which packets pass them.
	bases(v6 bool, hook Hook) []fwChain
	rulesOf(p Place) ([]fwRule, error)
	// element looks a key up in a set or a map. found is false for an absent key.
	element(p Place, set string, key []byte) (e found, err error)
	// keyLen is the length of a set's keys, in bytes.
	keyLen(p Place, set string) (int, error)
	// program names whoever writes the chain.
	program(p Place) string
	// zone reports whether the chain is firewalld's for a zone.
	zone(p Place) bool
	// index is the number of a link; 0: "".
	index(link string) uint32
}

// found is an element of a set: the value of a map, or its verdict.
type found struct {
	there   bool
	value   []byte
	verdict *verdict
}

// walkMost bounds the rules that an evaluation reads. Chains that are jumped to from many places could take for ever.
const walkMost = 20000

// walk is a packet on its way through the hooks.
type walk struct {
	Packet
	r     rules
	hook  Hook
	place Place  // of the rule at hand
	head  []byte // network header
	body  []byte // transport header
	mark  uint32
	marks bool // mark is not known
	steps int
	ours  bool // a rule of ours accepts the packet in the base chain at hand
	reg   [64]byte
	known [64]bool
	err   error
}

// hooks returns the hooks that the packet passes.
func (p Packet) hooks() []Hook {
	switch {
	case p.In == "":
		return []Hook{Output, Postrouting}
	case p.Out == "":
		return []Hook{Prerouting, Input}
	}
	return []Hook{Prerouting, Forward, Postrouting}
}

// judge returns the findings of each hook on the packet's way. It goes on after a hook that drops the packet: whoever
// removes that rule wants to know of the next one too.
func judge(r rules, p Packet) (out []Finding, err error) {
	w := &walk{Packet: p, r: r}
	w.head, w.body = p.headers()
	for _, h := range p.hooks() {
		f, err := w.passes(h)
		if err != nil {
			return nil, err
		}
		out = append(out, f...)
	}
	return out, nil
}

// passes returns the findings of one hook: those that are not plain acceptance, or one that accepts. A chain of NAT sees
// only the first packet of a connection.
func (w *walk) passes(h Hook) (out []Finding, err error) {
	w.hook = h
	for _, c := range w.r.bases(w.Dst.Is6(), h) {
		if c.nat && w.Reply || ownTable(c.Place) {
			continue // our own tables translate and drop as they should
		}
		f := w.base(c)
		if w.err != nil {
			return nil, w.err
		}
		if f.Outcome == Accepts && !f.Passed {
			continue
		}
		f.Hook, f.Program, f.Owned = h, w.r.program(f.Place), c.owned
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Hook: h})
	}
	return out, nil
}

// base walks one base chain. If a doubtful rule comes before the end and would end otherwise, the chain is Unclear.
func (w *walk) base(c fwChain) Finding {
	var ends []Finding
	w.ours = false
	if w.chain(c.Place, road{open: true}, &ends) {
		ends = append(ends, Finding{Place: c.Place, Does: c.policy.does, Policy: true, Outcome: c.policy.outcome()})
	}
	last := ends[len(ends)-1]
	for _, e := range ends {
		if e.Outcome != last.Outcome || e.Outcome == Unclear {
			f := e
			f.Outcome = Unclear
			f.Base = c.Place
			return f
		}
	}
	last.Base = c.Place
	if w.ours && last.Outcome == Drops {
		last.Outcome, last.Passed = Accepts, true
	}
	return last
}

func (v verdict) outcome() Outcome {
	switch {
	case v.code == nfAccept:
		return Accepts
	case v.code == nfDrop:
		return Drops
	case v.code == verdictTranslate:
		return Translates
	}
	return Unclear
}

// road is how a packet reached a chain.
type road struct {
	doubt string // what led here, if that is not certain
	open  bool   // every packet gets here
	depth int
}

// chain walks the rules of a chain and notes each ending. through: the packet may reach the chain's end.
func (w *walk) chain(p Place, by road, out *[]Finding) (through bool) {
	all, err := w.r.rulesOf(p)
	if err != nil || by.depth > 16 { // the kernel allows 16 (NFT_JUMP_STACK_SIZE)
		w.err = errors.Join(w.err, err)
		return true
	}
	left := false // a rule that need not match may have ended the chain
	for i, r := range all {
		if w.steps++; w.steps > walkMost {
			*out = append(*out, Finding{Place: p, Outcome: Unclear, Does: "go on", Doubt: "one of too many rules"})
			return false
		}
		w.place = p
		mark, marks := w.mark, w.marks
		v, why, hit := w.rule(r)
		certain := why == ""
		why = cmp.Or(why, by.doubt)
		if why != "" && (w.mark != mark || w.marks != marks) {
			w.marks = true
		}
		if !hit {
			continue
		}
		if r.ours() { // what comes after it says what the chain does without it
			w.ours = true
			continue
		}
		switch v.code {
		case verdictContinue:
		case verdictReturn:
			if certain {
				return true
			}
			by.doubt, left = why, true
		case verdictJump, verdictGoto:
			to := p
			to.Chain = v.chain
			goesOn := w.chain(to, road{why, by.open && r.takesAll(), by.depth + 1}, out)
			if w.err != nil {
				return true
			}
			switch {
			case certain && !goesOn:
				return left
			case certain && v.code == verdictGoto:
				return true
			case v.code == verdictGoto && goesOn:
				by.doubt, left = why, true
			}
		default:
			f := Finding{Place: p, Handle: r.handle, Comment: r.comment, Packets: r.packets, Counted: r.counted, Does: v.does, Doubt: why, Outcome: v.outcome(), Zone: w.r.zone(p)}
			f.Policy = f.Outcome == Drops && i == len(all)-1 && r.takesAll() && (by.open || f.Zone)
			*out = append(*out, f)
			if certain {
				return left
			}
		}
	}
	return true
}

// takesAll reports whether the rule has nothing but its counter and verdict.
func (r fwRule) takesAll() bool { return len(r.steps) == 1 }

// rule works through one rule. hit: it may match. doubt: it need not match.
func (w *walk) rule(r fwRule) (v verdict, doubt string, hit bool) {
	for _, s := range r.steps {
		res := s(w)
		doubt = cmp.Or(doubt, res.doubt)
		switch {
		case res.no:
			return v, doubt, false
		case res.ends:
			return res.verdict, doubt, true
		}
	}
	return verdict{code: verdictContinue}, doubt, true
}

// headers builds the packet's headers as far as rules read them.
func (p Packet) headers() (head, body []byte) {
	body = make([]byte, 20)
	switch p.Protocol {
	case TCP:
		binary.BigEndian.PutUint16(body, p.SrcPort)
		binary.BigEndian.PutUint16(body[2:], p.DstPort)
		body[12], body[13] = 5<<4, 2 // SYN
		if p.Reply {
			body[13] = 0x12
		}
	case UDP:
		body = body[:16]
		binary.BigEndian.PutUint16(body, p.SrcPort)
		binary.BigEndian.PutUint16(body[2:], p.DstPort)
	default:
		body = body[:8]
		body[0] = 8 // echo request (RFC 792)
		if p.Dst.Is6() {
			body[0] = 128 // RFC 4443
		}
		if p.Reply {
			body[0] = map[byte]byte{8: 0, 128: 129}[body[0]]
		}
	}
	if p.Dst.Is6() {
		head = make([]byte, 40)
		head[0], head[6], head[7] = 6<<4, p.Protocol, 63
		copy(head[8:], p.Src.AsSlice())
		copy(head[24:], p.Dst.AsSlice())
		return head, body
	}
	head = make([]byte, 20)
	head[0], head[8], head[9] = 4<<4|5, 63, p.Protocol
	binary.BigEndian.PutUint16(head[2:], uint16(len(head)+len(body)))
	copy(head[12:], p.Src.AsSlice())
	copy(head[16:], p.Dst.AsSlice())
	return head, body
}

// state is the packet's state in connection tracking (linux/netfilter/nf_conntrack_common.h): 8 is new, 2 is established.
func (w *walk) state() uint32 {
	if w.Reply {
		return 2
	}
	return 8
}

// reader reads the firewalls of a namespace.
type reader struct {
	k      *Kernel
	chains []fwChain
	read   map[Place][]fwRule
	legacy map[Place][]fwRule
	ends   map[Place]int // of the chains of legacy iptables: the offset of the entry after the last rule
	links  map[string]uint32
	found  map[string]found
	keys   map[Place]int  // the length of a set's keys; Chain has the set's name
	names  map[Place]bool // all chains
	locks  bool           // the lock of legacy iptables can be opened
}

// programs have chains of these names beside the chains that they share with others.
func programs() [][2]string {
	return [][2]string{{"DOCKER-USER", "Docker"}, {"ufw-before-forward", "ufw"}, {"ufw6-before-forward", "ufw"}, {"FORWARD_direct", "firewalld"}}
}

func (r *reader) program(p Place) string {
	if p.Table == "firewalld" {
		return "firewalld"
	}
	for _, known := range programs() {
		at := p
		if at.Chain = known[0]; r.names[at] {
			return known[1]
		}
	}
	return ""
}

// zone knows a zone's chain by its name: filter_FWD_public, or FWD_public of iptables. The chain of a policy that the
// administrator made is filter_FWD_policy_NAME, or FWD_NAME without an IN_NAME. The rules that the administrator gave the
// zone are in chains of more words, such as FWD_public_deny (firewalld's fw_policy.py: policy_base_chain_name, and
// build_policy_chain_rules of nftables.py and ipXtables.py).
func (r *reader) zone(p Place) bool {
	there := func(chain string) bool { at := p; at.Chain = chain; return r.names[at] }
	name, nft := strings.CutPrefix(p.Chain, "filter_")
	hook, name, _ := strings.Cut(name, "_")
	part := name[strings.LastIndex(name, "_")+1:]
	switch {
	case hook != "IN" && hook != "FWD" && hook != "FWDI" || slices.Contains([]string{"pre", "log", "deny", "allow", "post"}, part):
		return false
	case p.Table == "firewalld":
		return nft && !strings.HasPrefix(name, "policy_")
	}
	return there("FORWARD_direct") && there("IN_"+name) && (there("FWD_"+name) || there("FWDI_"+name))
}

// Judge returns what the firewalls of this machine do to each packet, hook by hook: nftables (iptables-nft writes there
// too) and legacy iptables. It reads only the chains that the packets meet. Our own tables are left out. A firewall that
// changes meanwhile is read again. A packet to which the kernel has no route has no findings. A kernel without nftables or legacy iptables has no rules there.
func (k *Kernel) Judge(ctx context.Context, packets ...Packet) ([][]Finding, error) {
	for range dumpRetries {
		before, err := k.Generation(ctx)
		if err != nil {
			return nil, err
		}
		out, err := k.judgeOnce(packets)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("read the firewall: %w", err)
		}
		after, gerr := k.Generation(ctx)
		if gerr != nil {
			return nil, gerr
		}
		if before == after {
			if err != nil {
				return nil, fmt.Errorf("read the firewall: %w", err)
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("read the firewall: %w", errInterrupted)
}

func newReader(k *Kernel) *reader {
	return &reader{k: k, read: map[Place][]fwRule{}, legacy: map[Place][]fwRule{}, ends: map[Place]int{}, links: map[string]uint32{}, found: map[string]found{}, keys: map[Place]int{}, names: map[Place]bool{},
		locks: unix.Access(k.xtLock, unix.R_OK) == nil}
}

func (k *Kernel) judgeOnce(packets []Packet) (out [][]Finding, err error) {
	r := newReader(k)
	if err := r.load(); err != nil {
		return nil, err
	}
	v := newView(k.c)
	for _, p := range packets {
		var f []Finding
		if p, ok := v.onLinks(p); ok {
			if f, err = judge(r, p); err != nil {
				return nil, err
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// onLinks replaces ByRoute; ok is false if there is no route.
func (v *view) onLinks(p Packet) (_ Packet, ok bool) {
	for _, side := range []struct {
		link *string
		to   netip.Addr
	}{{&p.In, p.Src}, {&p.Out, p.Dst}} {
		if *side.link != ByRoute {
			continue
		}
		e, err := v.match(side.to, 0)
		if err != nil || e.Type != "" {
			return p, false
		}
		*side.link = v.route(e).Link
	}
	return p, true
}

// load reads the chains, not their rules.
func (r *reader) load() error {
	if err := r.loadNFT(); err != nil {
		return err
	}
	if err := r.k.eachTable(func(xtFamily, string) bool { return true }, r.addLegacy); err != nil {
		return err
	}
	devices, err := newView(r.k.c).all()
	if err != nil {
		return err
	}
	for _, d := range devices {
		r.links[d.Name] = uint32(d.index)
	}
	slices.SortStableFunc(r.chains, func(a, b fwChain) int { return int(a.priority) - int(b.priority) })
	return nil
}

func (r *reader) bases(v6 bool, hook Hook) (out []fwChain) {
	other := uint8(unix.NFPROTO_IPV6)
	if v6 {
		other = unix.NFPROTO_IPV4
	}
	for _, c := range r.chains {
		if c.base && c.hook == hook && c.Family != other {
			out = append(out, c)
		}
	}
	return out
}

func (r *reader) rulesOf(p Place) ([]fwRule, error) {
	if p.Legacy {
		return r.legacy[p], nil
	}
	if have, ok := r.read[p]; ok {
		return have, nil
	}
	all, err := r.readRules(p)
	r.read[p] = all
	return all, err
}

func (r *reader) index(link string) uint32 {
	if i, ok := r.links[link]; ok || link == "" {
		return i
	}
	return 1 << 30 // a link to come
}
