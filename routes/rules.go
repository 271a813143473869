package routes

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The priorities of our policy rules, and the tables that they name: a table is ours by its first byte.
const (
	firstRule, lastRule = 512, 2048
	uplinkTables        = 0x65
)

// Rule is a policy rule that looks into a table (ip rule). Its protocol is ProtoNode.
type Rule struct {
	V6       bool         // the family of a rule without From
	Priority int          // 512 to 2048: Sync owns the rules of ProtoNode there
	From     netip.Prefix // zero: packets from everywhere
	Mark     uint32       // the bits of Mask in the packet's mark; 0: any packet
	Mask     uint32
	Table    int // 0: main
	// Longer: routes with at most this prefix length do not count (suppress_prefixlength); 0: all routes count.
	Longer int
}

// UplinkTable returns the number of the routing table of an interface: a function of its MAC, so that nothing
// has to be remembered.
func UplinkTable(mac [6]byte) int {
	return uplinkTables<<24 | int(mac[3])<<16 | int(mac[4])<<8 | int(mac[5])
}

// Table returns the number of the routing table of a VLAN link, which has the MAC of its parent.
func (v VLAN) Table() int {
	h := fnv.New32a()
	h.Write([]byte(v.Parent))
	return uplinkTables<<24 | int(h.Sum32()&0xfff)<<12 | int(v.ID)
}

func isUplinkTable(table int) bool { return table>>24 == uplinkTables }

// ofNode reports whether Sync with Scope.Rules owns the rule.
func (r rule) ofNode() bool {
	return r.protocol == ProtoNode && r.priority >= firstRule && r.priority <= lastRule
}

// normal replaces zero fields by the values that they stand for.
func (r Rule) normal() Rule {
	if r.Table == 0 {
		r.Table = mainTable
	}
	if r.From.IsValid() {
		r.V6 = r.From.Addr().Is6()
	}
	if r.From.Bits() == 0 {
		r.From = netip.Prefix{}
	}
	r.From = r.From.Masked()
	if r.Mask == 0 {
		r.Mask = r.Mark
	}
	return r
}

func (r Rule) family() uint8 {
	if r.V6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// message adds the rule (linux/fib_rules.h), or deletes exactly this one.
func (r Rule) message(op Op) message {
	r = r.normal()
	h := make([]byte, ruleHeader)
	h[0], h[7] = r.family(), unix.FR_ACT_TO_TBL
	typ, flags := uint16(unix.RTM_NEWRULE), unix.NLM_F_CREATE|unix.NLM_F_EXCL
	if op == Delete {
		typ, flags = unix.RTM_DELRULE, 0
	}
	if r.Table < 256 {
		h[4] = uint8(r.Table)
	}
	if r.From.IsValid() {
		h[2] = uint8(r.From.Bits())
	}
	m := newMessage(typ, flags, h)
	if r.From.IsValid() {
		m = m.attrAddr(unix.FRA_SRC, r.From.Addr())
	}
	m = m.attr32(unix.FRA_PRIORITY, uint32(r.Priority)).attr32(unix.FRA_TABLE, uint32(r.Table)).attr8(unix.FRA_PROTOCOL, uint8(ProtoNode))
	if r.Mark != 0 {
		m = m.attr32(unix.FRA_FWMARK, r.Mark).attr32(unix.FRA_FWMASK, r.Mask)
	}
	if r.Longer != 0 {
		m = m.attr32(unix.FRA_SUPPRESS_PREFIXLEN, uint32(r.Longer))
	}
	return m
}

// possible refuses a rule that Sync would not find again as its own.
func (r Rule) possible() error {
	if r.Priority < firstRule || r.Priority > lastRule {
		return fmt.Errorf("priority %d is not from %d to %d", r.Priority, firstRule, lastRule)
	}
	return nil
}

// observeRules reads our policy rules.
func (v *view) observeRules(scope Scope, desired []Rule) ([]Rule, error) {
	if !scope.Rules && len(desired) == 0 {
		return nil, nil
	}
	want := map[Rule]bool{}
	for _, r := range desired {
		want[r.normal()] = true
	}
	var out []Rule
	for _, family := range families {
		rules, err := v.c.rules(family, len(desired))
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if !r.ofNode() || r.action != unix.FR_ACT_TO_TBL {
				continue
			}
			o := Rule{V6: r.v6, Priority: r.priority, From: r.from, Mark: r.mark, Mask: r.mask, Table: r.table, Longer: r.longer}.normal()
			if scope.Rules || want[o] {
				out = append(out, o)
			}
		}
	}
	return out, nil
}

// families are those of policy rules and neighbours.
var families = [...]uint8{unix.AF_INET, unix.AF_INET6}

// rules reads the policy rules of one family. A kernel without the family has none.
func (c *conn) rules(family uint8, about int) ([]rule, error) {
	header := make([]byte, ruleHeader)
	header[0] = family
	rules, err := dump(c, newMessage(unix.RTM_GETRULE, 0, header), about, parseRule)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list policy rules: %w", err)
	}
	return rules, nil
}

func rulesByValue() identity[Rule, Rule] {
	return identity[Rule, Rule]{key: Rule.normal, right: func(got, want Rule) bool { return true }}
}

// String returns the rule as ip rule prints it, with the family where nothing else says it.
func (r Rule) String() string {
	r = r.normal()
	var b strings.Builder
	fmt.Fprintf(&b, "%d: from ", r.Priority)
	if r.From.IsValid() {
		b.WriteString(prefixText(r.From))
	} else {
		b.WriteString("all")
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	table := strconv.Itoa(r.Table)
	if r.Table == mainTable {
		table = "main"
	}
	b.WriteString(" lookup " + table)
	if r.Longer != 0 {
		fmt.Fprintf(&b, " suppress_prefixlength %d", r.Longer)
	}
	b.WriteString(" proto " + ProtoNode.String())
	if r.V6 && !r.From.IsValid() {
		b.WriteString(" inet6")
	}
	return b.String()
}

// ProxyNeigh makes the node answer ARP requests, or neighbour solicitations, for an address on the link, as long as the
// node has a route to the address over another link. Its protocol is ProtoNode.
//
// For IPv4 the kernel looks for the route at each request (net/ipv4/arp.c: arp_process). For IPv6 it answers wherever there
// is an entry (net/ipv6/ndisc.c: ndisc_recv_ns). So Sync makes an IPv6 entry only while the address has a route of
// ProtoPod, and deletes it when that route is gone; Watch reports both.
type ProxyNeigh struct {
	Link string
	IP   netip.Addr
}

const ndaProtocol = 12 // NDA_PROTOCOL, linux/neighbour.h

func (p ProxyNeigh) message(op Op, index int) message {
	typ, flags := uint16(unix.RTM_NEWNEIGH), unix.NLM_F_CREATE
	if op == Delete {
		typ, flags = unix.RTM_DELNEIGH, 0
	}
	m := neighMessage(typ, flags, family(p.IP), index, unix.NUD_PERMANENT, unix.NTF_PROXY).attrAddr(unix.NDA_DST, p.IP)
	if op == Delete {
		return m
	}
	return m.attr8(ndaProtocol, uint8(ProtoNode))
}

// answerable returns the entries without those of IPv6 addresses that no pod has.
func (v *view) answerable(proxies []ProxyNeigh) ([]ProxyNeigh, error) {
	if !slices.ContainsFunc(proxies, ProxyNeigh.v6) {
		return proxies, nil
	}
	if v.pods6 == nil {
		entries, err := v.fib(unix.AF_INET6, mainTable, ProtoPod, 0)
		if err != nil {
			return nil, err
		}
		v.pods6 = map[netip.Addr]bool{}
		for _, e := range entries {
			if e.Dst.IsSingleIP() {
				v.pods6[e.Dst.Addr()] = true
			}
		}
	}
	return without(proxies, func(p ProxyNeigh) bool { return p.v6() && !v.pods6[p.IP] }), nil
}

func (p ProxyNeigh) v6() bool { return p.IP.Is6() }

// observeProxies reads our proxy entries, and the desired ones of other owners, which are as good.
func (v *view) observeProxies(scope Scope, desired []ProxyNeigh) ([]ProxyNeigh, error) {
	if !scope.Rules && len(desired) == 0 {
		return nil, nil
	}
	for _, p := range desired {
		_, _, _ = v.named(p.Link) // while the kernel lists entries, nothing else can be asked
	}
	type proxy struct {
		index int
		ip    netip.Addr
		ours  bool
	}
	var found []proxy
	for _, family := range families {
		if family == unix.AF_INET6 && !scope.Rules && !slices.ContainsFunc(desired, ProxyNeigh.v6) {
			continue
		}
		some, err := dump(v.c, neighMessage(unix.RTM_GETNEIGH, 0, family, 0, 0, unix.NTF_PROXY), len(desired), func(b []byte) (proxy, bool) {
			e, ok := parseNeigh(b)
			return proxy{e.index, e.ip, e.protocol == ProtoNode}, ok && e.flags&unix.NTF_PROXY != 0
		})
		if err != nil {
			return nil, fmt.Errorf("list proxy neighbours: %w", err)
		}
		found = append(found, some...)
	}
	// The routes are read after the entries: another process that starts a pod makes the route first, and its entry must
	// not be taken for an entry without a pod.
	answered, err := v.answerable(desired)
	if err != nil {
		return nil, err
	}
	var out []ProxyNeigh
	for _, e := range found {
		p := ProxyNeigh{v.name(e.index), e.ip}
		if e.ours && (scope.Rules || slices.Contains(desired, p)) || slices.Contains(answered, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func proxiesByValue() identity[ProxyNeigh, ProxyNeigh] {
	return identity[ProxyNeigh, ProxyNeigh]{key: func(p ProxyNeigh) ProxyNeigh { return p }, right: func(got, want ProxyNeigh) bool { return true }}
}

// String returns the entry as ip neigh prints it.
func (p ProxyNeigh) String() string {
	return p.IP.String() + " dev " + p.Link + " proxy proto " + ProtoNode.String()
}
