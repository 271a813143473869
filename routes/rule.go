package routes

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Way is the path that a policy rule (ip rule) gives to packets.
type Way struct {
	// Route takes the packets, and has its Table. A rule that drops packets is a Route of the rule's type
	// without a table.
	Route Route
	// Rule is the rule as ip rule prints it. Priority is the number to delete the rule by.
	Rule     string
	Priority int
}

// rule is one policy rule (linux/fib_rules.h).
type rule struct {
	from, to   netip.Prefix
	priority   int
	table      int
	action     uint8
	protocol   Protocol
	mark, mask uint32
	longer     int // suppress_prefixlength; 0: none
	v6         bool
	special    bool // it matches more than addresses: a mark, a link, a port, an exception
}

const (
	ruleHeader = 12 // sizeof(struct fib_rule_hdr)
	// waysAtOnce bounds the look-ups of one sendmsg.
	waysAtOnce = 64
)

func parseRule(b []byte) (r rule, ok bool) {
	if len(b) < ruleHeader {
		return r, false
	}
	r.table, r.action, r.v6 = int(b[4]), b[7], b[0] == unix.AF_INET6
	r.special = b[3] != 0 || binary.NativeEndian.Uint32(b[8:])&unix.FIB_RULE_INVERT != 0
	for typ, v := range attrs(b[ruleHeader:]) {
		switch typ {
		case unix.FRA_DST:
			r.to = netip.PrefixFrom(attrAddr(v), int(b[1]))
		case unix.FRA_SRC:
			r.from = netip.PrefixFrom(attrAddr(v), int(b[2]))
		case unix.FRA_PRIORITY:
			r.priority = int(attrUint32(v))
		case unix.FRA_TABLE:
			r.table = int(attrUint32(v))
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.special = r.special || attrUint32(v) != 0xffffffff
			r.longer = max(int(int32(attrUint32(v))), 0)
		case unix.FRA_FWMARK:
			r.special, r.mark = true, attrUint32(v)
		case unix.FRA_FWMASK:
			r.special, r.mask = true, attrUint32(v)
		case unix.FRA_SUPPRESS_IFGROUP:
			r.special = r.special || attrUint32(v) != 0xffffffff
		case unix.FRA_L3MDEV:
			r.special = r.special || len(v) > 0 && v[0] != 0
		case unix.FRA_PROTOCOL:
			if len(v) > 0 {
				r.protocol = Protocol(v[0])
			}
		case unix.FRA_PAD:
		default:
			r.special = true
		}
	}
	return r, true
}

// usual reports whether the kernel made the rule, or a rule like it, or we made it.
func (r rule) usual() bool {
	if r.ofNode() {
		return true
	}
	everything := !r.from.IsValid() && !r.to.IsValid() && !r.special && r.action == unix.FR_ACT_TO_TBL
	return everything && (r.table == unix.RT_TABLE_LOCAL || r.table == mainTable || r.table == unix.RT_TABLE_DEFAULT)
}

func (r rule) String() string {
	from, to := "all", ""
	if r.from.IsValid() {
		from = r.from.String()
	}
	if r.to.IsValid() {
		to = " to " + r.to.String()
	}
	does := fmt.Sprintf(" lookup %d", r.table)
	if kind := r.drops(); kind != "" {
		does = " " + kind
	}
	return fmt.Sprintf("%d: from %s%s%s", r.priority, from, to, does)
}

// drops returns the type of route that the rule stands for; "" if the rule looks into a table.
func (r rule) drops() string {
	switch r.action {
	case unix.FR_ACT_BLACKHOLE, unix.FR_ACT_UNREACHABLE, unix.FR_ACT_PROHIBIT: // the numbers of RTN_*
		return routeTypeText(r.action)
	}
	return ""
}

// covers reports whether the rule is for packets from src, if src is known, to dst.
func (r rule) covers(src, dst netip.Addr) bool {
	return !r.special && (!r.to.IsValid() || r.to.Contains(dst)) && (!r.from.IsValid() || r.from.Contains(src))
}

// Ruled asks the kernel for the ways of packets to addrs. It returns the ways that a policy rule of another
// owner decides: the kernel does not look into table main, or finds no route in table main. If the node has a
// pod, the ways are those of a pod's packets. Without such rules Ruled asks for no way.
func (k *Kernel) Ruled(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]Way, error) {
	v := newView(k.c)
	out := map[netip.Addr]Way{}
	for _, fam := range families {
		rules, err := v.c.rules(fam, 0)
		if err != nil {
			return nil, err
		}
		rules = slices.DeleteFunc(rules, rule.usual)
		slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(a.priority, b.priority) })
		if len(rules) == 0 {
			continue
		}
		src, link, err := v.somePod(fam)
		if err != nil {
			return nil, err
		}
		of := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return family(a) != fam })
		for some := range slices.Chunk(of, waysAtOnce) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := v.ruled(out, rules, src, link, some); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// ForeignRule is a policy rule of another owner that the kernel asks before it asks, or among, the rules of uplinks.
type ForeignRule struct {
	V6       bool         `json:"v6,omitempty"`
	Priority int          `json:"priority"`
	From     netip.Prefix `json:"from,omitzero"` // zero: packets from everywhere
	To       netip.Prefix `json:"to,omitzero"`   // zero: packets to everywhere
	// Special: the rule matches more than addresses, such as a mark or a link.
	Special bool   `json:"special,omitempty"`
	Text    string `json:"text"` // as ip rule prints it
}

// ForeignRules returns the policy rules of other owners up to the last priority of ours. Rules that the kernel
// makes itself, and rules that look into its tables for everything, are left out.
func (k *Kernel) ForeignRules(ctx context.Context) (out []ForeignRule, err error) {
	for _, family := range families {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rules, err := k.c.rules(family, 0)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.priority <= lastRule && !r.usual() && r.protocol != unix.RTPROT_KERNEL {
				out = append(out, ForeignRule{r.v6, r.priority, r.from, r.to, r.special, r.String()})
			}
		}
	}
	return out, nil
}

// Catches reports whether the rule can decide about packets from the address before a rule of ours does, or stands among
// our rules.
func (r ForeignRule) Catches(a netip.Addr) bool {
	return r.V6 == a.Is6() && (r.Priority >= firstRule || !r.Special && (!r.From.IsValid() || r.From.Contains(a)))
}

// somePod returns the address of a pod and the index of its link; zero if there is no pod.
func (v *view) somePod(fam uint8) (src netip.Addr, link int, err error) {
	entries, err := v.fib(fam, mainTable, ProtoPod, 0)
	if err != nil || len(entries) == 0 {
		return src, 0, err
	}
	return entries[0].Dst.Addr(), entries[0].index, nil
}

// ruled looks up addresses of one family. src and link belong to a pod.
func (v *view) ruled(out map[netip.Addr]Way, rules []rule, src netip.Addr, link int, addrs []netip.Addr) error {
	var msgs []message
	for _, a := range addrs {
		m := lookup(a, unix.RTM_F_FIB_MATCH|unix.RTM_F_LOOKUP_TABLE)
		if link != 0 {
			m[unix.SizeofNlMsghdr+2] = uint8(src.BitLen()) // rtm_src_len
			m = m.attrAddr(unix.RTA_SRC, src).attr32(unix.RTA_IIF, uint32(link))
		}
		msgs = append(msgs, m)
	}
	answers, errs := v.c.gets(msgs...)
	for i, a := range addrs {
		if errs[i] == nil {
			e, err := chosen(answers[i])
			if err != nil || e.Table == mainTable || e.Table == unix.RT_TABLE_LOCAL {
				continue
			}
			at := slices.IndexFunc(rules, func(r rule) bool {
				return r.table == e.Table && r.action == unix.FR_ACT_TO_TBL && (r.special || r.covers(src, a))
			})
			if at >= 0 {
				out[a] = Way{v.route(e), rules[at].String(), rules[at].priority}
			}
			continue
		}
		way, ok, err := v.dropped(rules, src, a)
		if err != nil {
			return err
		}
		if ok {
			out[a] = way
		}
	}
	return nil
}

// dropped finds the rule that makes the kernel drop packets to dst: the kernel answers with an error,
// which does not name the rule.
func (v *view) dropped(rules []rule, src, dst netip.Addr) (Way, bool, error) {
	for _, r := range rules {
		if !r.covers(src, dst) {
			continue
		}
		if kind := r.drops(); kind != "" {
			to := r.to
			if !to.IsValid() {
				to = netip.PrefixFrom(dst, 0).Masked()
			}
			return Way{Route{Dst: to, Type: kind}, r.String(), r.priority}, true, nil
		}
		entries, err := v.fib(family(dst), r.table, 0, 0)
		if err != nil {
			return Way{}, false, err
		}
		best := -1
		for i, e := range entries {
			if e.Dst.Contains(dst) && (best < 0 || e.Dst.Bits() > entries[best].Dst.Bits()) {
				best = i
			}
		}
		if best >= 0 {
			return Way{v.route(entries[best]), r.String(), r.priority}, drops(entries[best].Type), nil
		}
	}
	return Way{}, false, nil
}
