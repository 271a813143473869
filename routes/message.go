package routes

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// message is one netlink request under construction: nlmsghdr, the family's header,
// attributes (rtnetlink(7)).
type message []byte

func newMessage(typ uint16, flags int, header []byte) message {
	m := make(message, unix.SizeofNlMsghdr, 128)
	binary.NativeEndian.PutUint16(m[4:], typ)
	binary.NativeEndian.PutUint16(m[6:], uint16(unix.NLM_F_REQUEST|flags))
	m = append(m, header...)
	return m.pad()
}

func (m message) pad() message {
	for len(m)%unix.NLMSG_ALIGNTO != 0 {
		m = append(m, 0)
	}
	return m
}

func (m message) attr(typ uint16, value []byte) message {
	m = binary.NativeEndian.AppendUint16(m, uint16(unix.SizeofRtAttr+len(value)))
	m = binary.NativeEndian.AppendUint16(m, typ)
	return append(m, value...).pad()
}

func (m message) attr8(typ uint16, v uint8) message { return m.attr(typ, []byte{v}) }

func (m message) attr32(typ uint16, v uint32) message {
	return m.attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func (m message) attrString(typ uint16, s string) message {
	return m.attr(typ, append([]byte(s), 0))
}

func (m message) attrAddr(typ uint16, a netip.Addr) message { return m.attr(typ, a.AsSlice()) }

// nest puts the attributes that fill appends into one attribute.
func (m message) nest(typ uint16, fill func(message) message) message {
	start := len(m)
	m = fill(m.attr(typ, nil))
	binary.NativeEndian.PutUint16(m[start:], uint16(len(m)-start))
	return m
}

// attrs walks the attributes in b. A malformed attribute ends the walk: the kernel wrote b.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

func attrUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func attrAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func attrName(b []byte) string { return unix.ByteSliceToString(b) }

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
