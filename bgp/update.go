package bgp

import (
	"encoding/binary"
	"net/netip"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// update is the content of an UPDATE about unicast paths (RFC 4271, section 4.3; RFC 4760).
type update struct {
	gone, reach []netip.Prefix
	hop4, hop6  netip.Addr // next hops of the IPv4 and the IPv6 prefixes in reach
	asPath      []uint32
	leaving     bool // community GRACEFUL_SHUTDOWN (RFC 8326, section 3)
	withdraw    bool // an attribute is malformed: reach counts as gone (RFC 7606, section 2)
}

const gracefulShutdown = 0xffff0000

// octets is the unread part of a message.
type octets []byte

// take returns the next n octets.
func (b *octets) take(n int) (octets, bool) {
	if n > len(*b) {
		return nil, false
	}
	out := (*b)[:n]
	*b = (*b)[n:]
	return out, true
}

// counted returns octets that follow their count, which has that size.
func (b *octets) counted(size int) (octets, bool) {
	count, ok := b.take(size)
	if !ok {
		return nil, false
	}
	n := 0
	for _, octet := range count {
		n = n<<8 | int(octet)
	}
	return b.take(n)
}

func (b octets) prefixes(ipv6 bool) (out []netip.Prefix, ok bool) {
	for len(b) > 0 {
		bits := int(b[0])
		b = b[1:]
		var full [16]byte
		octets, ok := b.take((bits + 7) / 8)
		if !ok || bits > 128 || !ipv6 && bits > 32 {
			return nil, false
		}
		copy(full[:], octets)
		a := netip.AddrFrom16(full)
		if !ipv6 {
			a = netip.AddrFrom4([4]byte(full[:4]))
		}
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out, true
}

// readUpdate reads the body of an UPDATE. Its error is a refusal.
func readUpdate(body []byte, as4 bool) (u update, err error) {
	rest := octets(body)
	withdrawn, ok1 := rest.counted(2)
	attributes, ok2 := rest.counted(2)
	if !ok1 || !ok2 {
		return u, refusal{3, 1, nil}
	}
	u.gone, ok1 = withdrawn.prefixes(false)
	u.reach, ok2 = rest.prefixes(false)
	if !ok1 || !ok2 {
		return u, refusal{3, 10, nil}
	}
	for len(attributes) > 0 {
		head, ok1 := attributes.take(2)
		size := 1
		if ok1 && head[0]&byte(bgp.BGP_ATTR_FLAG_EXTENDED_LENGTH) != 0 {
			size = 2
		}
		value, ok2 := attributes.counted(size)
		if !ok1 || !ok2 {
			u.withdraw = true // RFC 7606, section 4
			break
		}
		if err := u.attribute(head, value, as4); err != nil {
			return u, err
		}
	}
	return u, nil
}

func (u *update) attribute(head, value octets, as4 bool) error {
	ok := true
	switch bgp.BGPAttrType(head[1]) {
	case bgp.BGP_ATTR_TYPE_ORIGIN:
		ok = len(value) == 1 && value[0] <= bgp.BGP_ORIGIN_ATTR_TYPE_INCOMPLETE
	case bgp.BGP_ATTR_TYPE_AS_PATH:
		ok = u.path(value, as4)
	case bgp.BGP_ATTR_TYPE_NEXT_HOP:
		if ok = len(value) == 4; ok {
			u.hop4 = netip.AddrFrom4([4]byte(value))
		}
	case bgp.BGP_ATTR_TYPE_COMMUNITIES:
		ok = len(value)%4 == 0
		for ; len(value) >= 4; value = value[4:] {
			u.leaving = u.leaving || binary.BigEndian.Uint32(value) == gracefulShutdown
		}
	case bgp.BGP_ATTR_TYPE_LOCAL_PREF, bgp.BGP_ATTR_TYPE_ATOMIC_AGGREGATE:
	case bgp.BGP_ATTR_TYPE_MP_REACH_NLRI:
		return u.reachable(value)
	case bgp.BGP_ATTR_TYPE_MP_UNREACH_NLRI:
		family, ok := value.take(3)
		if !ok {
			return refusal{3, 9, nil}
		}
		if ipv6Unicast(family) {
			gone, ok := value.prefixes(true)
			if !ok {
				return refusal{3, 9, nil}
			}
			u.gone = append(u.gone, gone...)
		}
	default:
		if bgp.BGPAttrFlag(head[0])&bgp.BGP_ATTR_FLAG_OPTIONAL == 0 {
			return refusal{3, 2, head}
		}
	}
	u.withdraw = u.withdraw || !ok
	return nil
}

func ipv6Unicast(family octets) bool {
	return family[0] == 0 && family[1] == bgp.AFI_IP6 && family[2] == bgp.SAFI_UNICAST
}

// path reads the segments of an AS_PATH.
func (u *update) path(value octets, as4 bool) bool {
	size := 2
	if as4 {
		size = 4
	}
	for len(value) > 0 {
		head, ok := value.take(2)
		if !ok {
			return false
		}
		numbers, ok := value.take(int(head[1]) * size)
		if !ok {
			return false
		}
		for ; len(numbers) > 0; numbers = numbers[size:] {
			if as4 {
				u.asPath = append(u.asPath, binary.BigEndian.Uint32(numbers))
			} else {
				u.asPath = append(u.asPath, uint32(binary.BigEndian.Uint16(numbers)))
			}
		}
	}
	return true
}

// reachable reads an MP_REACH_NLRI (RFC 4760, section 3). A second next hop is link-local.
func (u *update) reachable(value octets) error {
	family, ok1 := value.take(3)
	hop, ok2 := value.counted(1)
	_, ok3 := value.take(1)
	if !ok1 || !ok2 || !ok3 {
		return refusal{3, 9, nil}
	}
	if !ipv6Unicast(family) {
		return nil
	}
	reach, ok := value.prefixes(true)
	if !ok || len(hop) != 16 && len(hop) != 32 {
		return refusal{3, 9, nil}
	}
	u.hop6, u.reach = netip.AddrFrom16([16]byte(hop[:16])), append(u.reach, reach...)
	return nil
}
