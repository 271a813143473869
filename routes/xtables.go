package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xtMatch returns the step of a match of iptables, in iptables-nft or in legacy iptables
// (include/uapi/linux/netfilter/xt_*.h).
func xtMatch(name string, info []byte) fwStep {
	unclear := func(*walk) result { return doubtful("-m " + name) }
	u16 := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
	sized := func(n int, s fwStep) fwStep {
		if len(info) < n {
			return unclear
		}
		return s
	}
	switch name {
	case "comment":
		return nil
	case "conntrack":
		return sized(154, func(w *walk) result { // struct xt_conntrack_mtinfo3
			const state, status = 1, 1 << 6
			inverted := u16(148) != 0
			switch u16(146) {
			case state:
				return matchesIf((uint32(u16(150))&w.state() != 0) != inverted)
			case status:
				if !w.Reply {
					return matchesIf(inverted)
				}
			}
			return unclear(w)
		})
	case "state":
		return sized(4, func(w *walk) result { return matchesIf(u32(0)&w.state() != 0) })
	case "mark":
		return sized(9, func(w *walk) result {
			if w.marks {
				return unclear(w)
			}
			return matchesIf((w.mark&u32(4) == u32(0)) != (info[8] != 0))
		})
	case "tcp":
		return sized(12, func(w *walk) result {
			if w.Protocol != TCP {
				return differs
			}
			if info[8] != 0 { // a TCP option
				return unclear(w)
			}
			flags := (w.body[13]&info[9] == info[10]) != (info[11]&4 != 0)
			return matchesIf(flags && w.ports(u16, info[11]))
		})
	case "udp":
		return sized(9, func(w *walk) result {
			return matchesIf(w.Protocol == UDP && w.ports(u16, info[8]))
		})
	case "multiport":
		return sized(48, func(w *walk) result { return matchesIf(w.multiport(info)) })
	case "icmp", "icmp6":
		return sized(4, func(w *walk) result {
			if w.Protocol != ICMP && w.Protocol != ICMPv6 {
				return differs
			}
			hit := info[0] == 0xff && name == "icmp" || info[0] == w.body[0] && info[1] == 0
			return matchesIf(hit != (info[3] != 0))
		})
	case "addrtype":
		return sized(8, func(w *walk) result {
			src, dst := uint16(1<<unix.RTN_UNICAST), uint16(1<<unix.RTN_UNICAST)
			if w.In == "" {
				src = 1 << unix.RTN_LOCAL
			}
			if w.Out == "" {
				dst = 1 << unix.RTN_LOCAL
			}
			hit := u16(0) == 0 || (u16(0)&src != 0) != (u32(4)&1 != 0)
			return matchesIf(hit && (u16(2) == 0 || (u16(2)&dst != 0) != (u32(4)&2 != 0)))
		})
	case "physdev": // routed packets have no port of a bridge
		return sized(66, func(w *walk) result {
			if info[64] != 0 {
				return unclear(w)
			}
			return differs
		})
	case "pkttype":
		return sized(8, func(w *walk) result { return matchesIf((u32(0) == unix.PACKET_HOST) != (u32(4) != 0)) })
	}
	return unclear
}

// ports compares ports with struct xt_tcp or xt_udp: two ranges, with bits that invert them.
func (w *walk) ports(u16 func(int) uint16, inverted uint8) bool {
	src := w.SrcPort >= u16(0) && w.SrcPort <= u16(2)
	dst := w.DstPort >= u16(4) && w.DstPort <= u16(6)
	return src != (inverted&1 != 0) && dst != (inverted&2 != 0)
}

// multiport reads struct xt_multiport_v1.
func (w *walk) multiport(info []byte) bool {
	if w.Protocol != TCP && w.Protocol != UDP {
		return false
	}
	port := func(i int) uint16 { return binary.NativeEndian.Uint16(info[2+2*i:]) }
	hit := false
	for i := 0; i < int(min(info[1], 15)); i++ {
		low, high := port(i), port(i)
		if info[32+i] != 0 && i < 14 {
			i++
			high = port(i)
		}
		in := func(p uint16) bool { return p >= low && p <= high }
		hit = hit || info[0] != 1 && in(w.SrcPort) || info[0] != 0 && in(w.DstPort)
	}
	return hit != (info[47] != 0)
}

// xtTarget returns the step of a target of iptables; nil for a target that has no effect on where the packet goes.
func xtTarget(name string, info []byte) fwStep {
	end := func(code int32, does string) fwStep {
		return func(*walk) result { return ends(verdict{code: code, does: does}) }
	}
	switch name {
	case "REJECT":
		return end(nfDrop, "reject")
	case "DROP":
		return end(nfDrop, "drop")
	case "ACCEPT":
		return end(nfAccept, "accept")
	case "MASQUERADE", "SNAT", "DNAT", "NETMAP", "REDIRECT", "TPROXY":
		return end(verdictTranslate, strings.ToLower(name))
	case "MARK":
		if len(info) < 8 {
			return func(w *walk) result { w.marks = true; return matches }
		}
		set, mask := binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:])
		return func(w *walk) result { w.mark = w.mark&^mask ^ set; return matches }
	case "CONNMARK": // may restore a mark
		return func(w *walk) result { w.marks = true; return matches }
	case "LOG", "NFLOG", "TCPMSS", "CHECKSUM", "CT", "NOTRACK", "TRACE", "TTL", "HL", "TOS", "DSCP", "CLASSIFY", "SET", "ULOG", "AUDIT", "IDLETIMER", "TEE", "SECMARK", "CONNSECMARK":
		return nil
	}
	return end(verdictUnclear, "-j "+name)
}

// Legacy iptables: a table is one blob of entries (include/uapi/linux/netfilter_ipv4/ip_tables.h).
const (
	xtGetInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	xtGetEntries = 65
	xtInfoBytes  = 84 // struct ipt_getinfo
	xtEntriesAt  = 40 // offset of entrytable in struct ipt_get_entries
	xtHeader     = 32 // struct xt_entry_match and xt_entry_target: size, name, revision
)

// xtFamily describes the entries of one family.
type xtFamily struct {
	family uint8
	names  string // the file below /proc/net that lists the tables which exist
	level  int
	addr   int   // bytes of an address
	proto  int   // offset of the protocol
	flags  int   // offset of the flags; the inversion flags follow
	jumps  uint8 // the flag of a goto (IPT_F_GOTO, IP6T_F_GOTO)
	sizes  int   // offset of target_offset; next_offset follows
	count  int   // offset of the counters
	size   int   // sizeof(struct ipt_entry)
}

func xtFamilies() []xtFamily {
	return []xtFamily{
		{unix.NFPROTO_IPV4, "ip_tables_names", unix.SOL_IP, 4, 80, 82, 2, 88, 96, 112},
		{unix.NFPROTO_IPV6, "ip6_tables_names", unix.SOL_IPV6, 16, 128, 131, 4, 140, 152, 168},
	}
}

// filters reports whether the chains of a table decide which packets pass.
func filters(_ xtFamily, table string) bool { return table != "nat" }

// xtTable is a table of legacy iptables as the kernel gives it out.
type xtTable struct {
	xtFamily
	name string
	info []byte // struct ipt_getinfo
	blob []byte // the entries
}

// eachTable reads the tables of legacy iptables that exist and are wanted. To ask for another table would make it.
func (k *Kernel) eachTable(wanted func(f xtFamily, table string) bool, do func(t xtTable)) error {
	return inside(k.ns, func() error {
		for _, f := range xtFamilies() {
			names, err := f.tables()
			if err != nil {
				return fmt.Errorf("legacy iptables: %w", err)
			}
			for _, name := range names {
				if !wanted(f, name) {
					continue
				}
				t, err := f.read(name)
				if err != nil {
					return fmt.Errorf("legacy iptables, table %s: %w", name, err)
				}
				do(t)
			}
		}
		return nil
	})
}

// tables are the names of the tables that exist.
func (f xtFamily) tables() ([]string, error) {
	names, err := os.ReadFile("/proc/thread-self/net/" + f.names)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return strings.Fields(string(names)), err
}

// read asks for a table's size, and then for the table. A program that replaces the table between the two questions
// changes its size (EAGAIN).
func (f xtFamily) read(name string) (t xtTable, err error) {
	err = f.onSocket(func(fd int) error {
		for range dumpRetries {
			info := make([]byte, xtInfoBytes)
			copy(info[:31], name)
			if err = getsockopt(fd, f.level, xtGetInfo, info); err != nil {
				return err
			}
			size := binary.NativeEndian.Uint32(info[80:])
			blob := make([]byte, xtEntriesAt+int(size))
			copy(blob[:31], name)
			binary.NativeEndian.PutUint32(blob[32:], size)
			if err = getsockopt(fd, f.level, xtGetEntries, blob); err == nil {
				t = xtTable{f, name, info, blob[xtEntriesAt:]}
				return nil
			}
			if !errors.Is(err, unix.EAGAIN) {
				return err
			}
		}
		return err
	})
	return t, err
}

func (f xtFamily) onSocket(do func(fd int) error) error {
	domain := unix.AF_INET
	if f.family == unix.NFPROTO_IPV6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

func getsockopt(fd, level, name int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// addLegacy divides a table's blob into chains. A built-in chain goes from hook_entry to underflow, where its policy
// is. A chain of a user begins with an ERROR target that has its name.
func (r *reader) addLegacy(t xtTable) {
	f, blob := t.xtFamily, t.blob
	place := func(chain string) Place { return Place{f.family, t.name, chain, true} }
	_, unknown := t.entries()
	builtin := [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	starts, policies := map[int]string{}, map[int]Hook{}
	for h := range builtin {
		if t.u32(32)&(1<<h) == 0 {
			continue
		}
		starts[int(t.u32(36+4*h))], policies[int(t.u32(56+4*h))] = builtin[h], Hook(h)
		r.names[place(builtin[h])] = true
	}
	names := map[int]string{} // of the user's chains, by the offset of their first rule
	f.each(blob, func(at, next int, e []byte) {
		if name, ok := f.errorName(e); ok {
			names[next], r.names[place(name)] = name, true
		}
	})
	chain := ""
	f.each(blob, func(at, next int, e []byte) {
		if _, ok := f.errorName(e); ok {
			chain = names[next]
			return
		}
		if name, ok := starts[at]; ok {
			chain = name
		}
		rule := f.rule(e, names)
		rule.handle, rule.at = uint64(len(r.legacy[place(chain)])+1), at
		if h, ok := policies[at]; ok {
			r.ends[place(chain)] = at
			c := fwChain{Place: place(chain), base: true, hook: h, nat: t.name == "nat", owned: unknown != nil || !r.locks, priority: xtPriority(t.name, h)}
			c.policy, _, _ = (&walk{}).rule(fwRule{steps: rule.steps[max(len(rule.steps)-1, 0):]})
			r.chains = append(r.chains, c)
			return
		}
		if f.endsAt(blob, next) {
			r.ends[place(chain)] = at
			return // the kernel's own RETURN at the end of a user's chain
		}
		r.legacy[place(chain)] = append(r.legacy[place(chain)], rule)
	})
}

// xtPriority is the priority of a table's hook (linux/netfilter_ipv4.h: enum nf_ip_hook_priorities).
func xtPriority(table string, h Hook) int32 {
	switch table {
	case "raw":
		return -300
	case "mangle":
		return -150
	case "nat":
		if h == Prerouting || h == Output {
			return -100
		}
		return 100
	case "security":
		return 50
	}
	return 0
}

// each calls do for each entry of a blob.
func (f xtFamily) each(blob []byte, do func(at, next int, entry []byte)) {
	for at := 0; at+f.size <= len(blob); {
		next := at + int(binary.NativeEndian.Uint16(blob[at+f.sizes+2:]))
		if next < at+f.size || next > len(blob) {
			return
		}
		do(at, next, blob[at:next])
		at = next
	}
}

// target returns the name and the data of an entry's target. A standard target has no name.
func (f xtFamily) target(e []byte) (name string, data []byte) {
	at := int(binary.NativeEndian.Uint16(e[f.sizes:]))
	if at < f.size || at+xtHeader > len(e) {
		return "ERROR", nil
	}
	return unix.ByteSliceToString(e[at+2 : at+31]), e[at+xtHeader:]
}

// endsAt reports whether the entry at that offset begins another chain of a user, or ends the table.
func (f xtFamily) endsAt(blob []byte, at int) bool {
	if at+f.size > len(blob) {
		return true
	}
	next := at + int(binary.NativeEndian.Uint16(blob[at+f.sizes+2:]))
	if next < at+f.size || next > len(blob) {
		return true
	}
	_, ends := f.errorName(blob[at:next])
	return ends
}

func (f xtFamily) errorName(e []byte) (string, bool) {
	name, data := f.target(e)
	return unix.ByteSliceToString(data), name == "ERROR"
}

// rule reads an entry: addresses, links, protocol, matches, target. names has the chains that it may jump to.
func (f xtFamily) rule(e []byte, names map[int]string) fwRule {
	r := fwRule{packets: binary.NativeEndian.Uint64(e[f.count:]), counted: true}
	head := append([]byte(nil), e[:f.size]...)
	if !f.any(head) {
		r.steps = append(r.steps, func(w *walk) result { return matchesIf(f.heads(head, w)) })
	}
	to := int(binary.NativeEndian.Uint16(e[f.sizes:]))
	for at := f.size; at+xtHeader <= min(to, len(e)); {
		size := int(binary.NativeEndian.Uint16(e[at:]))
		if size < xtHeader || at+size > len(e) {
			break
		}
		name, info := unix.ByteSliceToString(e[at+2:at+31]), append([]byte(nil), e[at+xtHeader:at+size]...)
		if name == "comment" {
			r.comment = unix.ByteSliceToString(info)
		}
		if s := xtMatch(name, info); s != nil {
			r.steps = append(r.steps, s)
		}
		at += size
	}
	name, data := f.target(e)
	if name != "" {
		if s := xtTarget(name, append([]byte(nil), data...)); s != nil {
			r.steps = append(r.steps, s)
		}
		return r
	}
	v := verdict{code: verdictContinue}
	if len(data) >= 4 {
		switch code := int32(binary.NativeEndian.Uint32(data)); {
		case code >= 0:
			v = verdict{code: verdictJump, chain: names[int(code)]}
			if next, ok := names[int(code)]; !ok || next == "" {
				v = verdict{code: verdictContinue} // a rule without a target goes on with the next entry
			} else if e[f.flags]&f.jumps != 0 {
				v.code = verdictGoto
			}
		case code == -1-nfDrop:
			v = verdict{code: nfDrop, does: "drop"}
		case code == -1-nfAccept:
			v = verdict{code: nfAccept, does: "accept"}
		case code == -5: // XT_RETURN
			v = verdict{code: verdictReturn}
		default:
			v = verdict{code: verdictUnclear, does: "queue to a program"}
		}
	}
	r.steps = append(r.steps, func(*walk) result { return ends(v) })
	return r
}

// any reports whether the entry's header matches every packet.
func (f xtFamily) any(e []byte) bool {
	for _, b := range e[2*f.addr : 4*f.addr] { // the masks of the addresses
		if b != 0 {
			return false
		}
	}
	for _, b := range e[4*f.addr+32 : f.flags] { // the masks of the links, and the protocol
		if b != 0 {
			return false
		}
	}
	return e[f.flags+1] == 0
}

// heads compares an entry's header with the packet (struct ipt_ip, ip6t_ip6). The inversion flags: 1 and 2 the
// links, 8 and 16 the addresses, 32 a fragment, 64 the protocol.
func (f xtFamily) heads(e []byte, w *walk) bool {
	n, inverted := f.addr, e[f.flags+1]
	masked := func(have, want, mask []byte, bit byte) bool {
		same := true
		for i := range mask {
			var b byte
			if i < len(have) {
				b = have[i]
			}
			same = same && b&mask[i] == want[i]&mask[i]
		}
		return same != (inverted&bit != 0)
	}
	links := e[4*n:]
	link := func(name string, i int, bit byte) bool {
		return masked([]byte(name), links[16*i:16*i+16], links[32+16*i:48+16*i], bit)
	}
	proto := binary.NativeEndian.Uint16(e[f.proto:])
	return masked(w.Src.AsSlice(), e[:n], e[2*n:3*n], 8) && masked(w.Dst.AsSlice(), e[n:2*n], e[3*n:4*n], 16) &&
		link(w.In, 0, 1) && link(w.Out, 1, 2) &&
		(proto == 0 || (uint8(proto) == w.Protocol) != (inverted&64 != 0)) &&
		(f.family != unix.NFPROTO_IPV4 || (e[f.flags]&1 != 0) == (inverted&32 != 0)) // IPT_F_FRAG: later fragments only
}
