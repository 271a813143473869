package routes

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// nftMessageFor is a request about objects of one family.
func nftMessageFor(fam uint8, typ uint16, flags int) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, []byte{fam, unix.NFNETLINK_V0, 0, 0})
}

// Generation is a number that changes whenever anybody changes nftables, or a table of legacy iptables that filters; 0 if
// the kernel has neither.
func (k *Kernel) Generation(ctx context.Context) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	legacy, err := k.legacyGeneration()
	if err != nil {
		return 0, err
	}
	c, err := k.netfilter()
	if err != nil {
		return legacy, ifThere(err)
	}
	body, err := c.get(nftMessageFor(unix.AF_UNSPEC, unix.NFT_MSG_GETGEN, 0))
	if err != nil || len(body) < nfgenmsgBytes {
		return legacy, ifThere(err)
	}
	return legacy + be32(one(body[nfgenmsgBytes:], unix.NFTA_GEN_ID)), nil
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func be64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// one is the value of one attribute; nil if it is absent.
func one(b []byte, want uint16) (out []byte) {
	for typ, v := range attrs(b) {
		if typ == want {
			out = v
		}
	}
	return out
}

// loadNFT reads the chains of nftables, without those of tables that are switched off.
func (r *reader) loadNFT() error {
	c, err := r.k.netfilter()
	if err != nil {
		return ifThere(err)
	}
	type table struct {
		fam  uint8
		name string
	}
	flags := map[table]uint32{}
	_, err = dump(c, nftMessageFor(unix.AF_UNSPEC, unix.NFT_MSG_GETTABLE, 0), 8, func(b []byte) (table, bool) {
		if len(b) >= nfgenmsgBytes {
			a := b[nfgenmsgBytes:]
			flags[table{b[0], attrName(one(a, unix.NFTA_TABLE_NAME))}] = be32(one(a, unix.NFTA_TABLE_FLAGS))
		}
		return table{}, false
	})
	if err != nil {
		return ifThere(err)
	}
	all, err := dump(c, nftMessageFor(unix.AF_UNSPEC, unix.NFT_MSG_GETCHAIN, 0), 32, parseChain)
	if err != nil {
		return ifThere(err)
	}
	for _, c := range all {
		r.names[c.Place] = true
		of := flags[table{c.Family, c.Table}]
		if c.owned = of&tableOwner != 0; c.base && of&unix.NFT_TABLE_F_DORMANT == 0 {
			r.chains = append(r.chains, c)
		}
	}
	return nil
}

// tableOwner is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h), since Linux 5.12: only the process that made the table
// changes it.
const tableOwner = 2

// parseChain reads a chain, without its rules. Chains of frames (bridge, arp, netdev) see no routed packet.
func parseChain(b []byte) (c fwChain, ok bool) {
	if len(b) < nfgenmsgBytes {
		return c, false
	}
	a := b[nfgenmsgBytes:]
	c.Family, c.Table, c.Chain = b[0], attrName(one(a, unix.NFTA_CHAIN_TABLE)), attrName(one(a, unix.NFTA_CHAIN_NAME))
	switch c.Family {
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6, unix.NFPROTO_INET:
	default:
		return c, false
	}
	hook := one(a, unix.NFTA_CHAIN_HOOK)
	num := one(hook, unix.NFTA_HOOK_HOOKNUM)
	if num == nil || be32(num) > uint32(Postrouting) {
		return c, true
	}
	c.base, c.hook = true, Hook(be32(num))
	c.priority = int32(be32(one(hook, unix.NFTA_HOOK_PRIORITY)))
	c.nat = attrName(one(a, unix.NFTA_CHAIN_TYPE)) == "nat"
	c.policy = verdict{code: nfAccept, does: "accept"}
	if p := one(a, unix.NFTA_CHAIN_POLICY); p != nil && be32(p) == nfDrop {
		c.policy = verdict{code: nfDrop, does: "drop"}
	}
	return c, true
}

// readRules reads the rules of one chain, in order; without a chain, the rules of the whole table.
func (r *reader) readRules(p Place) ([]fwRule, error) {
	c, err := r.k.netfilter()
	if err != nil {
		return nil, err
	}
	m := nftMessageFor(p.Family, unix.NFT_MSG_GETRULE, 0).attrString(unix.NFTA_RULE_TABLE, p.Table)
	if p.Chain != "" {
		m = m.attrString(unix.NFTA_RULE_CHAIN, p.Chain)
	}
	return dump(c, m, 16, func(b []byte) (fwRule, bool) { return parseRuleOf(p, b) })
}

func parseNFTRule(a []byte) fwRule {
	r := fwRule{handle: be64(one(a, unix.NFTA_RULE_HANDLE))}
	r.comment = commentOf(one(a, unix.NFTA_RULE_USERDATA))
	for typ, e := range attrs(one(a, unix.NFTA_RULE_EXPRESSIONS)) {
		if typ != unix.NFTA_LIST_ELEM {
			continue
		}
		name, data := attrName(one(e, unix.NFTA_EXPR_NAME)), one(e, unix.NFTA_EXPR_DATA)
		if name == "counter" {
			r.packets, r.counted = be64(one(data, unix.NFTA_COUNTER_PACKETS)), true
			continue
		}
		if name == "match" && attrName(one(data, unix.NFTA_MATCH_NAME)) == "comment" { // of iptables
			r.comment = attrName(one(data, unix.NFTA_MATCH_INFO))
		}
		if s := expression(name, data); s != nil {
			r.steps = append(r.steps, s)
		}
	}
	return r
}

// commentOf returns the comment in a rule's user data; "" if there is none. nft writes type, length and value, each of
// the first two in one byte (libnftnl/udata.h). Another program may have written anything: the kernel does not read it.
func commentOf(b []byte) string {
	for len(b) >= 2 && len(b)-2 >= int(b[1]) {
		value := b[2 : 2+int(b[1])]
		if b[0] == byte(userdata.TypeComment) {
			return attrName(value)
		}
		b = b[2+len(value):]
	}
	return ""
}

// element asks the kernel for one element.
func (r *reader) element(p Place, set string, key []byte) (found, error) {
	id := p.familyWord() + " " + p.Table + " " + set + " " + string(key)
	if have, ok := r.found[id]; ok {
		return have, nil
	}
	c, err := r.k.netfilter()
	if err != nil {
		return found{}, err
	}
	m := nftMessageFor(p.Family, unix.NFT_MSG_GETSETELEM, 0).attrString(unix.NFTA_SET_ELEM_LIST_TABLE, p.Table).attrString(unix.NFTA_SET_ELEM_LIST_SET, set)
	nested := func(m message, typ uint16, fill func(message) message) message {
		return m.nest(typ|unix.NLA_F_NESTED, fill)
	}
	m = nested(m, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(m message) message {
		return nested(m, unix.NFTA_LIST_ELEM, func(m message) message {
			return nested(m, unix.NFTA_SET_ELEM_KEY, func(m message) message { return m.attr(unix.NFTA_DATA_VALUE, key) })
		})
	})
	body, err := c.get(m)
	var out found
	switch {
	case err == nil && len(body) > nfgenmsgBytes:
		data := one(one(one(body[nfgenmsgBytes:], unix.NFTA_SET_ELEM_LIST_ELEMENTS), unix.NFTA_LIST_ELEM), unix.NFTA_SET_ELEM_DATA)
		out = found{there: true, value: bytes.Clone(one(data, unix.NFTA_DATA_VALUE))}
		if v := one(data, unix.NFTA_DATA_VERDICT); v != nil {
			parsed := parseVerdict(v)
			out.verdict = &parsed
		}
	case !missing(err):
		return out, err
	}
	r.found[id] = out
	return out, nil
}

func parseVerdict(b []byte) verdict {
	v := verdict{code: int32(be32(one(b, unix.NFTA_VERDICT_CODE))), chain: attrName(one(b, unix.NFTA_VERDICT_CHAIN))}
	switch v.code {
	case nfAccept:
		v.does = "accept"
	case nfDrop:
		v.does = "drop"
	case verdictContinue, verdictJump, verdictGoto, verdictReturn:
	case -2: // NFT_BREAK
		v.code = verdictContinue
	default:
		return verdict{code: verdictUnclear, does: "queue to a program"}
	}
	return v
}

// at is where a register begins in walk.reg (nf_tables.h: enum nft_registers): four of 16 bytes, or sixteen of 4.
func at(reg uint32) int {
	switch {
	case reg >= unix.NFT_REG_1 && reg <= unix.NFT_REG_4:
		return int(reg-unix.NFT_REG_1) * 16
	case reg >= unix.NFT_REG32_00 && reg <= unix.NFT_REG32_15:
		return int(reg-unix.NFT_REG32_00) * 4
	}
	return -1
}

// set puts a value into a register; nil: a value that is not known. The kernel fills the last 4 bytes with zeros.
func (w *walk) set(reg uint32, value []byte, length int) result {
	i := at(reg)
	if i < 0 {
		return doubtful("a register")
	}
	for n := range min((max(length, len(value))+3)&^3, len(w.reg)-i) {
		w.known[i+n] = value != nil
		w.reg[i+n] = 0
		if n < len(value) {
			w.reg[i+n] = value[n]
		}
	}
	return matches
}

// get reads a register; ok is false if a byte is not known.
func (w *walk) get(reg uint32, length int) (value []byte, ok bool) {
	i := at(reg)
	if i < 0 || i+length > len(w.reg) {
		return nil, false
	}
	return w.reg[i : i+length], !slices.Contains(w.known[i:i+length], false)
}

// expression returns the step of one expression; nil for an expression that has no effect on where the packet goes.
func expression(name string, d []byte) fwStep {
	u := func(typ uint16) uint32 { return be32(one(d, typ)) }
	switch name {
	case "payload":
		return payloadStep(u(unix.NFTA_PAYLOAD_BASE), int(u(unix.NFTA_PAYLOAD_OFFSET)), int(u(unix.NFTA_PAYLOAD_LEN)), one(d, unix.NFTA_PAYLOAD_DREG))
	case "meta":
		return metaStep(u(unix.NFTA_META_KEY), one(d, unix.NFTA_META_DREG), one(d, unix.NFTA_META_SREG))
	case "ct":
		return ctStep(u(unix.NFTA_CT_KEY), one(d, unix.NFTA_CT_DREG))
	case "cmp":
		want := one(one(d, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
		reg, op := u(unix.NFTA_CMP_SREG), u(unix.NFTA_CMP_OP)
		return func(w *walk) result {
			have, ok := w.get(reg, len(want))
			if !ok {
				return doubtful(unknown)
			}
			c := bytes.Compare(have, want)
			return matchesIf([]bool{c == 0, c != 0, c < 0, c <= 0, c > 0, c >= 0}[min(op, 5)])
		}
	case "range":
		from := one(one(d, unix.NFTA_RANGE_FROM_DATA), unix.NFTA_DATA_VALUE)
		to := one(one(d, unix.NFTA_RANGE_TO_DATA), unix.NFTA_DATA_VALUE)
		reg, inverted := u(unix.NFTA_RANGE_SREG), u(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ
		return func(w *walk) result {
			have, ok := w.get(reg, len(from))
			if !ok {
				return doubtful(unknown)
			}
			in := bytes.Compare(have, from) >= 0 && bytes.Compare(have, to) <= 0
			return matchesIf(in != inverted)
		}
	case "bitwise":
		return bitwiseStep(d)
	case "byteorder":
		from, to, length, size := u(unix.NFTA_BYTEORDER_SREG), u(unix.NFTA_BYTEORDER_DREG), int(u(unix.NFTA_BYTEORDER_LEN)), int(u(unix.NFTA_BYTEORDER_SIZE))
		return func(w *walk) result {
			v, ok := w.get(from, length)
			if !ok || size == 0 {
				return w.set(to, nil, length)
			}
			v = bytes.Clone(v)
			for part := range slices.Chunk(v, size) {
				slices.Reverse(part) // all machines that edgeway knows are little endian
			}
			return w.set(to, v, length)
		}
	case "lookup":
		return lookupStep(d)
	case "immediate":
		data := one(d, unix.NFTA_IMMEDIATE_DATA)
		if v := one(data, unix.NFTA_DATA_VERDICT); v != nil {
			end := ends(parseVerdict(v))
			return func(*walk) result { return end }
		}
		value, reg := one(data, unix.NFTA_DATA_VALUE), u(unix.NFTA_IMMEDIATE_DREG)
		return func(w *walk) result { return w.set(reg, value, len(value)) }
	case "fib":
		return fibStep(u(unix.NFTA_FIB_RESULT), u(unix.NFTA_FIB_FLAGS), u(unix.NFTA_FIB_DREG))
	case "match":
		return xtMatch(attrName(one(d, unix.NFTA_MATCH_NAME)), one(d, unix.NFTA_MATCH_INFO))
	case "target":
		return xtTarget(attrName(one(d, unix.NFTA_TARGET_NAME)), one(d, unix.NFTA_TARGET_INFO))
	case "reject":
		return func(*walk) result { return ends(verdict{code: nfDrop, does: "reject"}) }
	case "masq":
		return func(*walk) result { return ends(verdict{code: verdictTranslate, does: "masquerade"}) }
	case "nat":
		does := "snat"
		if u(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT {
			does = "dnat"
		}
		return func(*walk) result { return ends(verdict{code: verdictTranslate, does: does}) }
	case "redir", "tproxy":
		return func(*walk) result { return ends(verdict{code: verdictTranslate, does: name}) }
	case "queue":
		return func(*walk) result { return ends(verdict{code: verdictUnclear, does: "queue to a program"}) }
	case "objref":
		if kind := u(nftaObjrefType); kind == unix.NFT_OBJECT_COUNTER || kind == unix.NFT_OBJECT_CT_HELPER {
			return nil
		}
		return func(*walk) result { return doubtful("a named limit or quota") }
	case "log", "notrack", "last", "flow_offload", "secmark":
		return nil
	case "rt", "socket", "osf", "numgen", "hash", "xfrm", "tunnel", "exthdr", "inner":
		reg := be32(one(d, 1)) // their first attribute is the register
		return func(w *walk) result { w.set(reg, nil, 16); return doubtful(name) }
	}
	return func(*walk) result { return doubtful(name) } // limit, quota, connlimit, dynset, ...
}

// nftaObjrefType is NFTA_OBJREF_IMM_TYPE (linux/netfilter/nf_tables.h).
const nftaObjrefType = 1

// unknown names what a comparison could not read.
const unknown = "a mark, or something else that is not in the packet"

func payloadStep(base uint32, offset, length int, to []byte) fwStep {
	if to == nil {
		return nil // the rule writes a field, such as the TTL
	}
	reg := be32(to)
	return func(w *walk) result {
		var from []byte
		switch base {
		case unix.NFT_PAYLOAD_NETWORK_HEADER:
			from = w.head
		case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
			from = w.body
		default:
			return w.set(reg, nil, length)
		}
		if offset+length > len(from) {
			return differs // the kernel breaks off (net/netfilter/nft_payload.c: nft_payload_eval)
		}
		return w.set(reg, from[offset:offset+length], length)
	}
}

func metaStep(key uint32, to, from []byte) fwStep {
	if to == nil {
		if key != unix.NFT_META_MARK {
			return nil
		}
		return func(w *walk) result {
			v, ok := w.get(be32(from), 4)
			w.marks = !ok
			w.mark = attrUint32(v)
			return matches
		}
	}
	reg := be32(to)
	return func(w *walk) result {
		word := func(v uint32) result { return w.set(reg, binary.NativeEndian.AppendUint32(nil, v), 4) }
		// Where a hook has no such link, the kernel compares with no name and with index 0
		// (net/netfilter/nft_meta.c: nft_meta_store_ifname).
		name := func(link string) result { return w.set(reg, []byte(link), 16) }
		out := w.Out
		if w.hook == Prerouting {
			out = "" // the packet has no route yet
		}
		switch key {
		case unix.NFT_META_L4PROTO:
			return w.set(reg, []byte{w.Protocol}, 1)
		case unix.NFT_META_NFPROTO:
			return w.set(reg, []byte{w.nfproto()}, 1)
		case unix.NFT_META_PROTOCOL:
			return w.set(reg, binary.BigEndian.AppendUint16(nil, w.ethertype()), 2)
		case unix.NFT_META_IIFNAME:
			return name(w.In)
		case unix.NFT_META_OIFNAME:
			return name(out)
		case unix.NFT_META_IIF:
			return word(w.r.index(w.In))
		case unix.NFT_META_OIF:
			return word(w.r.index(out))
		case unix.NFT_META_MARK:
			if w.marks {
				return w.set(reg, nil, 4)
			}
			return word(w.mark)
		case unix.NFT_META_PKTTYPE:
			return w.set(reg, []byte{unix.PACKET_HOST}, 1)
		}
		return w.set(reg, nil, 16)
	}
}

func (w *walk) nfproto() uint8 {
	if w.Dst.Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func (w *walk) ethertype() uint16 {
	if w.Dst.Is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

func ctStep(key uint32, to []byte) fwStep {
	if to == nil {
		return nil // ct mark set, and the like
	}
	reg := be32(to)
	return func(w *walk) result {
		word := func(v uint32) result { return w.set(reg, binary.NativeEndian.AppendUint32(nil, v), 4) }
		switch key {
		case unix.NFT_CT_STATE:
			return word(w.state())
		case unix.NFT_CT_STATUS:
			if !w.Reply {
				return word(0)
			}
		case unix.NFT_CT_DIRECTION:
			if w.Reply {
				return w.set(reg, []byte{1}, 1)
			}
			return w.set(reg, []byte{0}, 1)
		}
		return w.set(reg, nil, 16)
	}
}

func bitwiseStep(d []byte) fwStep {
	from, to, length := be32(one(d, unix.NFTA_BITWISE_SREG)), be32(one(d, unix.NFTA_BITWISE_DREG)), int(be32(one(d, unix.NFTA_BITWISE_LEN)))
	mask := one(one(d, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE)
	xor := one(one(d, unix.NFTA_BITWISE_XOR), unix.NFTA_DATA_VALUE)
	const op = 6 // NFTA_BITWISE_OP: a shift, or an operation with another register
	plain := be32(one(d, op)) == 0 && len(mask) == length && len(xor) == length
	return func(w *walk) result {
		v, ok := w.get(from, length)
		if !ok || !plain {
			return w.set(to, nil, length)
		}
		out := make([]byte, length)
		for i := range out {
			out[i] = v[i]&mask[i] ^ xor[i]
		}
		return w.set(to, out, length)
	}
}

// lookupStep looks into a set or a map. The key's length is not in the expression, so it is read from the set.
func lookupStep(d []byte) fwStep {
	set := attrName(one(d, unix.NFTA_LOOKUP_SET))
	from, to := be32(one(d, unix.NFTA_LOOKUP_SREG)), one(d, unix.NFTA_LOOKUP_DREG)
	inverted := be32(one(d, unix.NFTA_LOOKUP_FLAGS))&unix.NFT_LOOKUP_F_INV != 0
	return func(w *walk) result {
		length, err := w.r.keyLen(w.place, set)
		if err != nil {
			w.err = err
			return differs
		}
		key, ok := w.get(from, length)
		if !ok {
			return doubtful("set " + set)
		}
		e, err := w.r.element(w.place, set, bytes.Clone(key))
		switch {
		case err != nil:
			w.err = err
			return differs
		case to == nil:
			return matchesIf(e.there != inverted)
		case !e.there:
			return differs
		case e.verdict != nil:
			return ends(*e.verdict)
		}
		return w.set(be32(to), e.value, len(e.value))
	}
}

// keyLen asks for the length of a set's keys, in bytes.
func (r *reader) keyLen(p Place, set string) (int, error) {
	at := p
	at.Chain = set
	if have, ok := r.keys[at]; ok {
		return have, nil
	}
	c, err := r.k.netfilter()
	if err != nil {
		return 0, err
	}
	body, err := c.get(nftMessageFor(p.Family, unix.NFT_MSG_GETSET, 0).attrString(unix.NFTA_SET_TABLE, p.Table).attrString(unix.NFTA_SET_NAME, set))
	if err != nil || len(body) < nfgenmsgBytes {
		return 0, err
	}
	r.keys[at] = int(be32(one(body[nfgenmsgBytes:], unix.NFTA_SET_KEY_LEN)))
	return r.keys[at], nil
}

// fibStep knows the types of a packet's addresses: a packet that is forwarded has none of this machine.
func fibStep(what, flags, reg uint32) fwStep {
	return func(w *walk) result {
		if what != unix.NFT_FIB_RESULT_ADDRTYPE {
			return w.set(reg, nil, 16)
		}
		kind := uint32(unix.RTN_UNICAST)
		if flags&unix.NFTA_FIB_F_DADDR != 0 && w.Out == "" || flags&unix.NFTA_FIB_F_SADDR != 0 && w.In == "" {
			kind = unix.RTN_LOCAL
		}
		return w.set(reg, binary.NativeEndian.AppendUint32(nil, kind), 4)
	}
}
