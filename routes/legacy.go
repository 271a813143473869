package routes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Rules of a Passage in legacy iptables. A program changes a table there in four steps, as edgeway does: take the lock,
// read the whole table, replace it by another one, and give the rules that stayed their counters back. Somebody who
// changes the table without the lock in between is seen by the kernel if the number of entries changed (EAGAIN).

const (
	// xtLockFile is the lock of iptables since 1.6 (iptables/xshared.h: XT_LOCK_NAME). iptables makes the file, so it is
	// there wherever iptables has run since the machine started.
	xtLockFile = "/run/xtables.lock"
	// xtLockSocket is the lock of iptables 1.4: an abstract socket of the network namespace.
	xtLockSocket = "@xtables"
	// xtLockWait bounds the wait for the lock. A program holds it for milliseconds; a large iptables-restore, for a second.
	xtLockWait = 2 * time.Second
	// xtLockAgain is the time between two tries. flock(2) cannot wait for a limited time.
	xtLockAgain = 5 * time.Millisecond

	xtReplace      = 64 // IPT_SO_SET_REPLACE, IP6T_SO_SET_REPLACE
	xtAddCounters  = 65 // IPT_SO_SET_ADD_COUNTERS, IP6T_SO_SET_ADD_COUNTERS
	xtReplaceBytes = 96 // struct ipt_replace without its entries, where a pointer has 64 bits
	xtCounter      = 16 // struct xt_counters
	xtVerdict      = 40 // struct xt_standard_target
	xtComment      = 256
)

// errUnknownTable is a table that is not as ip_tables.c of a 64-bit kernel makes it.
var errUnknownTable = errors.New("edgeway does not understand the entries of this table")

// lockXT waits for the locks of iptables. unlock gives them back.
func (k *Kernel) lockXT(ctx context.Context) (unlock func(), err error) {
	file, err := unix.Open(k.xtLock, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil { // not wrapped: Sync takes ENOENT for a rule that is gone already
		return nil, fmt.Errorf("open %s, the lock of iptables: %v", k.xtLock, err)
	}
	var socket int
	if err := inside(k.ns, func() (err error) {
		socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		unix.Close(file)
		return nil, err
	}
	unlock = func() { unix.Close(socket); unix.Close(file) }
	ctx, cancel := context.WithTimeout(ctx, xtLockWait)
	defer cancel()
	again := time.NewTicker(xtLockAgain)
	defer again.Stop()
	for {
		if err = unix.Flock(file, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = unix.Bind(socket, &unix.SockaddrUnix{Name: xtLockSocket})
		}
		if err == nil {
			return unlock, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			unlock()
			return nil, fmt.Errorf("another program holds %s, the lock of iptables: %w", k.xtLock, err)
		}
	}
}

// setLegacy rewrites our rules in a chain, or deletes them. A table or a chain that does not exist is not made.
func (k *Kernel) setLegacy(ctx context.Context, op Op, p Passage) error {
	unlock, err := k.lockXT(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	this := func(f xtFamily, table string) bool { return f.family == p.Place.Family && table == p.Place.Table }
	for range dumpRetries {
		var refused error
		if err = k.eachTable(this, func(t xtTable) { refused = t.set(op, p) }); err == nil {
			err = refused
		}
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return err
}

// set does it for one table.
func (t xtTable) set(op Op, p Passage) error {
	r := newReader(&Kernel{})
	r.addLegacy(t)
	rules := r.legacy[p.Place]
	before, there := r.ends[p.Place]
	if !there {
		return nil
	}
	handles, last, _ := endOf(rules)
	if last != 0 {
		before = rules[last-1].at
	}
	var drop []int
	for _, h := range handles {
		drop = append(drop, rules[h-1].at)
	}
	var more [][]byte
	if op != Delete {
		for _, a := range p.accepts() {
			e, err := t.entry(a)
			if err != nil {
				return err
			}
			more = append(more, e)
		}
	}
	next, from, err := t.with(before, more, drop)
	if err != nil {
		return err
	}
	return t.replace(next, from)
}

// u32 is a field of struct ipt_getinfo: 32 is valid_hooks, 36 and 56 begin hook_entry and underflow, 76 is num_entries.
func (t xtTable) u32(at int) uint32 { return binary.NativeEndian.Uint32(t.info[at:]) }

// entries returns the offset of each entry. It returns errUnknownTable if with could not move the entries.
func (t xtTable) entries() (starts []int, err error) {
	if strconv.IntSize != 64 {
		return nil, errUnknownTable
	}
	known := map[int]bool{}
	end := 0
	t.each(t.blob, func(at, next int, e []byte) {
		starts, known[at], end = append(starts, at), true, next
		to := int(binary.NativeEndian.Uint16(e[t.sizes:]))
		if next%8 != 0 || to < t.size || to+xtHeader > len(e) || to+int(binary.NativeEndian.Uint16(e[to:])) > len(e) {
			err = errUnknownTable
		} else if name, data := t.target(e); name == "" && len(data) != xtVerdict-xtHeader {
			err = errUnknownTable
		}
	})
	if err != nil || end != len(t.blob) || len(starts) == 0 || len(starts) != int(t.u32(76)) {
		return nil, errUnknownTable
	}
	for _, at := range starts {
		if to, jumps := t.jump(t.blob[at:]); jumps && !known[to] {
			return nil, errUnknownTable
		}
	}
	for h := range 5 {
		if t.u32(32)&(1<<h) != 0 && !(known[int(t.u32(36+4*h))] && known[int(t.u32(56+4*h))]) {
			return nil, errUnknownTable
		}
	}
	return starts, nil
}

// verdict returns the verdict of an entry's standard target; nil if it has another target.
func (t xtTable) verdict(e []byte) []byte {
	e = e[:binary.NativeEndian.Uint16(e[t.sizes+2:])]
	if name, data := t.target(e); name == "" {
		return data[:4]
	}
	return nil
}

// jump returns the offset to which an entry leads: the chain of a jump, or the next entry if the rule has no target.
func (t xtTable) jump(e []byte) (to int, jumps bool) {
	v := t.verdict(e)
	if v == nil {
		return 0, false
	}
	to = int(int32(binary.NativeEndian.Uint32(v)))
	return to, to >= 0
}

// with returns the table without the entries at the offsets of drop, and with more entries before the one at that
// offset. from has the number that each entry has in t, -1 for a new one. What led to the offset of an entry leads to what
// stands there now: the entries that were put before it, or the entry that follows those which are gone. Only an underflow,
// where a chain's policy is, stays with its entry.
func (t xtTable) with(before int, more [][]byte, drop []int) (out xtTable, from []int, err error) {
	starts, err := t.entries()
	if err != nil {
		return t, nil, err
	}
	out = xtTable{t.xtFamily, t.name, slices.Clone(t.info), nil}
	leads, moved := map[int]int{}, map[int]int{}
	for i, at := range starts {
		leads[at] = len(out.blob)
		if at == before {
			for _, e := range more {
				out.blob, from = append(out.blob, e...), append(from, -1)
			}
		}
		if slices.Contains(drop, at) {
			continue
		}
		moved[at] = len(out.blob)
		next := at + int(binary.NativeEndian.Uint16(t.blob[at+t.sizes+2:]))
		out.blob, from = append(out.blob, t.blob[at:next]...), append(from, i)
	}
	for _, at := range moved {
		if to, jumps := t.jump(out.blob[at:]); jumps {
			binary.NativeEndian.PutUint32(t.verdict(out.blob[at:]), uint32(leads[to]))
		}
	}
	for h := range 5 {
		if t.u32(32)&(1<<h) != 0 {
			binary.NativeEndian.PutUint32(out.info[36+4*h:], uint32(leads[int(t.u32(36+4*h))]))
			binary.NativeEndian.PutUint32(out.info[56+4*h:], uint32(moved[int(t.u32(56+4*h))]))
		}
	}
	binary.NativeEndian.PutUint32(out.info[76:], uint32(len(from)))
	_, err = out.entries()
	return out, from, err
}

// replace puts next in the place of t (net/ipv4/netfilter/ip_tables.c: do_replace). The kernel refuses with EAGAIN if the
// table has another number of entries than t. It returns the counters at the moment of the change, so no packet is
// forgotten.
func (t xtTable) replace(next xtTable, from []int) error {
	old := make([]byte, xtCounter*max(int(t.u32(76)), 1))
	var pin runtime.Pinner
	pin.Pin(&old[0])
	defer pin.Unpin()
	request := make([]byte, xtReplaceBytes, xtReplaceBytes+len(next.blob))
	copy(request[:31], t.name)
	copy(request[32:], next.info[32:36])   // valid_hooks
	copy(request[36:], next.info[76:80])   // num_entries
	copy(request[44:84], next.info[36:76]) // hook_entry, underflow
	binary.NativeEndian.PutUint32(request[40:], uint32(len(next.blob)))
	binary.NativeEndian.PutUint32(request[84:], t.u32(76)) // num_counters
	binary.NativeEndian.PutUint64(request[88:], uint64(uintptr(unsafe.Pointer(&old[0]))))
	counters := make([]byte, xtEntriesAt, xtEntriesAt+xtCounter*len(from)) // struct xt_counters_info
	copy(counters[:31], t.name)
	binary.NativeEndian.PutUint32(counters[32:], uint32(len(from)))
	return t.onSocket(func(fd int) error {
		err := unix.SetsockoptString(fd, t.level, xtReplace, string(append(request, next.blob...)))
		if errors.Is(err, unix.ENOENT) { // not wrapped either
			return fmt.Errorf("the kernel lacks a match that a rule has (comment, tcp or udp of iptables): %v", err)
		}
		if err != nil {
			return err
		}
		for _, i := range from {
			if i < 0 {
				counters = append(counters, make([]byte, xtCounter)...)
			} else {
				counters = append(counters, old[xtCounter*i:xtCounter*(i+1)]...)
			}
		}
		if err := unix.SetsockoptString(fd, t.level, xtAddCounters, string(counters)); err != nil {
			return fmt.Errorf("the rules are right, but all counters of the table begin at 0 again: %w", err)
		}
		return nil
	})
}

// entry is the rule as iptables writes it: -s 10.10.1.0/24 -i ew+ -m comment --comment "edgeway accepts: ..." -j ACCEPT.
func (f xtFamily) entry(a Accept) ([]byte, error) {
	e := make([]byte, f.size)
	for i, p := range []netip.Prefix{a.Src, a.Dst} {
		if p.IsValid() {
			copy(e[i*f.addr:], p.Masked().Addr().AsSlice())
			copy(e[(2+i)*f.addr:], maskOf(p))
		}
	}
	for i, on := range []bool{a.In, a.Out} {
		if on { // without the 0 at the end, the mask takes every name that begins so
			copy(e[4*f.addr+16*i:], podLinks)
			copy(e[4*f.addr+32+16*i:], slices.Repeat([]byte{0xff}, len(podLinks)))
		}
	}
	if a.Protocol != 0 {
		binary.NativeEndian.PutUint16(e[f.proto:], uint16(a.Protocol))
		if f.family == unix.NFPROTO_IPV6 {
			e[f.flags] |= 1 // IP6T_F_PROTO
		}
		m := a.xtMatch()
		info, err := xt.Marshal(xt.TableFamily(f.family), 0, m.Info)
		if err != nil {
			return nil, err
		}
		e = append(e, xtPart(m.Name, info)...)
	}
	comment := make([]byte, xtComment)
	copy(comment[:xtComment-1], passageMark+a.String())
	e = append(e, xtPart("comment", comment)...)
	binary.NativeEndian.PutUint16(e[f.sizes:], uint16(len(e)))
	accept := int32(-nfAccept - 1)
	e = append(e, xtPart("", binary.NativeEndian.AppendUint32(nil, uint32(accept)))...)
	binary.NativeEndian.PutUint16(e[f.sizes+2:], uint16(len(e)))
	return e, nil
}

// xtPart is a match or a target of revision 0 (struct xt_entry_match, xt_entry_target), as long as XT_ALIGN makes it.
func xtPart(name string, info []byte) []byte {
	out := make([]byte, xtHeader+(len(info)+7)/8*8)
	binary.NativeEndian.PutUint16(out, uint16(len(out)))
	copy(out[2:31], name)
	copy(out[xtHeader:], info)
	return out
}

// legacyGeneration is a number that changes with each change of a table of legacy iptables, but nat; 0 if there are
// none. The kernel counts no changes of them and announces none.
func (k *Kernel) legacyGeneration() (sum uint32, err error) {
	err = k.eachTable(filters, func(t xtTable) {
		t.each(t.blob, func(_, _ int, e []byte) { clear(e[t.count:t.size]) })
		for _, b := range [][]byte{{t.family}, t.info, t.blob} {
			sum = crc32.Update(sum, crc32.IEEETable, b)
		}
	})
	return sum, err
}
