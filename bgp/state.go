package bgp

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DefaultHoldTime is used where Peer.HoldTime is zero (RFC 4271, section 10).
const DefaultHoldTime = 90 * time.Second

const (
	minHoldTime = 3 * time.Second     // RFC 4271, section 4.2
	maxHoldTime = 65535 * time.Second // two octets
	maxPassword = 80                  // TCP_MD5SIG_MAXKEYLEN, linux/tcp.h
	asTrans     = 23456               // RFC 6793, section 9
)

// ErrInvalid is wrapped by the error about a Session that cannot work. Sync does not act on such a Session.
var ErrInvalid = errors.New("invalid session")

// Key returns the identity of p's session.
func (p Peer) Key() Key {
	k := Key{Address: p.Address.Unmap(), Port: p.Port, LocalASN: p.LocalASN}
	if k.Port == 0 {
		k.Port = DefaultPort
	}
	return k
}

// Compare orders keys by address, port and autonomous system.
func (k Key) Compare(other Key) int {
	return cmp.Or(k.Address.Compare(other.Address), cmp.Compare(k.Port, other.Port), cmp.Compare(k.LocalASN, other.LocalASN))
}

func (k Key) String() string {
	if k.Port == DefaultPort {
		return fmt.Sprintf("%s local as %d", k.Address, k.LocalASN)
	}
	return fmt.Sprintf("%s local as %d", netip.AddrPortFrom(k.Address, k.Port), k.LocalASN)
}

// normal returns p with its defaults filled in and its addresses unmapped, so that peers with the same
// meaning are equal.
func (p Peer) normal() Peer {
	p.Address, p.LocalAddress, p.RouterID = p.Address.Unmap(), p.LocalAddress.Unmap(), p.RouterID.Unmap()
	if p.Port == 0 {
		p.Port = DefaultPort
	}
	if p.HoldTime == 0 {
		p.HoldTime = DefaultHoldTime
	}
	if p.ASN == p.LocalASN {
		p.MultihopTTL = 0 // an internal session has no hop limit (RFC 4271, section 5.1.3)
	}
	return p
}

// Same reports whether p and q are the same session on the same terms. Names do not matter.
func (p Peer) Same(q Peer) bool {
	p, q = p.normal(), q.normal()
	p.Name = q.Name
	return p == q
}

// endpoint returns the switch's address, and its port unless the port is DefaultPort.
func (p Peer) endpoint() string {
	if p.Port == 0 || p.Port == DefaultPort {
		return p.Address.String()
	}
	return netip.AddrPortFrom(p.Address, p.Port).String()
}

// String prints the peer as one line of a configuration. It never prints the password.
func (p Peer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "peer %s as %d local as %d source %s", p.endpoint(), p.ASN, p.LocalASN, p.LocalAddress)
	if p.RouterID.IsValid() {
		fmt.Fprintf(&b, " router-id %s", p.RouterID)
	}
	if p.HoldTime != 0 {
		fmt.Fprintf(&b, " hold %s", p.HoldTime)
	}
	if p.RestartTime != 0 {
		fmt.Fprintf(&b, " restart %s", p.RestartTime)
	}
	if p.LongLivedTime != 0 {
		fmt.Fprintf(&b, " long-lived %s", p.LongLivedTime)
	}
	if p.MultihopTTL != 0 {
		fmt.Fprintf(&b, " multihop %d", p.MultihopTTL)
	}
	if p.TTLSecurity {
		b.WriteString(" ttl-security")
	}
	if p.Password != "" {
		b.WriteString(" md5")
	}
	if p.Name != "" {
		fmt.Fprintf(&b, " # %s", p.Name)
	}
	return b.String()
}

// GoString keeps the password out of %#v.
func (p Peer) GoString() string { return "bgp.Peer{" + p.String() + "}" }

// Freshness is the MED of a path that has been true since that time: one less for each second. So the switch
// prefers the path of a speaker that has seen a change to the kept path of an absent speaker. Without it the
// absent speaker's path would stay the best path, because it is the oldest, and packets would go to a next
// hop that is gone until the restart time ends. Freshness is never 0 from 2020 to 2156.
func Freshness(since time.Time) uint32 {
	const begin = 1577836800 // 2020-01-01
	return math.MaxUint32 - uint32(min(max(since.Unix()-begin, 0), math.MaxUint32-1))
}

func (p Path) String() string {
	s := fmt.Sprintf("%s via %s", p.Prefix, p.NextHop)
	if p.MED != 0 {
		s += fmt.Sprintf(" med %d", p.MED)
	}
	if p.NoLongLived {
		s += " no-llgr"
	}
	return s
}

// Compare orders paths by family, prefix, next hop and MED.
func (p Path) Compare(other Path) int {
	return cmp.Or(p.Prefix.Compare(other.Prefix), p.NextHop.Compare(other.NextHop), cmp.Compare(p.MED, other.MED))
}

// String prints the session as a table: the peer, then a line for each path, sorted.
func (s Session) String() string {
	var b strings.Builder
	b.WriteString(s.Peer.String())
	for _, p := range slices.SortedFunc(slices.Values(s.Paths), Path.Compare) {
		b.WriteString("\n\t" + p.String())
	}
	for _, p := range s.Learn {
		b.WriteString("\n\tlearn " + p.String())
	}
	return b.String()
}

// String prints the sessions sorted by Key, each as a table.
func (s State) String() string {
	sorted := slices.SortedFunc(slices.Values(s.Sessions), func(a, b Session) int {
		return cmp.Or(a.Peer.Key().Compare(b.Peer.Key()), cmp.Compare(a.Peer.Name, b.Peer.Name))
	})
	var b strings.Builder
	for _, session := range sorted {
		b.WriteString(session.String() + "\n")
	}
	return b.String()
}

func (c Change) String() string {
	s := c.Op + " " + c.Object
	if c.Why != "" {
		s += " (" + c.Why + ")"
	}
	return s
}

// Validate reports every session that cannot work, each with the next step. The errors wrap
// ErrInvalid.
func (s State) Validate() error {
	var errs []error
	first := make(map[Key]Peer)
	for _, session := range s.Sessions {
		if err := session.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		key := session.Peer.Key()
		if other, ok := first[key]; ok {
			errs = append(errs, invalid(session.Peer, "%s and %s both ask for the session %s; remove one of them", name(other), name(session.Peer), key))
			continue
		}
		first[key] = session.Peer
	}
	return errors.Join(errs...)
}

// Validate reports why the session cannot work, with the next step. It returns nil if the session can work.
func (s Session) Validate() error {
	p := s.Peer
	if why := p.nonsense(); why != "" {
		return invalid(p, "%s", why)
	}
	seen := make(map[netip.Prefix]netip.Addr, len(s.Paths))
	for _, path := range s.Paths {
		if why := path.nonsense(); why != "" {
			return invalid(p, "path %s: %s", path, why)
		}
		if hop, ok := seen[path.Prefix]; ok {
			return invalid(p, "path %s: the prefix also has the next hop %s; keep one next hop for a prefix", path, hop)
		}
		seen[path.Prefix] = path.NextHop
	}
	return nil
}

func (p Peer) nonsense() string {
	local, remote := p.LocalAddress.Unmap(), p.Address.Unmap()
	switch {
	case !remote.IsValid() || remote.IsUnspecified() || remote.IsMulticast():
		return fmt.Sprintf("address %s is not a unicast address; set the switch's address", remote)
	case !local.IsValid() || local.IsUnspecified() || local.IsMulticast():
		return "no local address; set the node's own address on the switch's subnet"
	case local.Is4() != remote.Is4():
		return fmt.Sprintf("local address %s and peer address %s are of different families; give the node an address of the peer's family", local, remote)
	case remote.Is6() && remote.IsLinkLocalUnicast() || local.Is6() && local.IsLinkLocalUnicast():
		return fmt.Sprintf("the session from %s to %s has a link-local address; use global addresses on both sides", local, remote)
	case local == remote:
		return fmt.Sprintf("local and peer address are both %s; set the switch's address", local)
	case badASN(p.ASN):
		return fmt.Sprintf("peer AS %d is reserved (RFC 7607, RFC 6793, RFC 7300); set the switch's AS number", p.ASN)
	case badASN(p.LocalASN):
		return fmt.Sprintf("local AS %d is reserved (RFC 7607, RFC 6793, RFC 7300); set the AS number of this LAN's nodes", p.LocalASN)
	case !p.RouterID.Unmap().Is4() || p.RouterID.Unmap().IsUnspecified():
		return fmt.Sprintf("router ID %s is not an IPv4 address; set an IPv4 address that no other router uses", p.RouterID)
	case p.RestartTime < 0 || p.RestartTime > MaxRestartTime:
		return fmt.Sprintf("restart time %s is out of range; set 0 to %s (RFC 4724, section 3)", p.RestartTime, MaxRestartTime)
	case p.RestartTime%time.Second != 0:
		return fmt.Sprintf("restart time %s is not a whole number of seconds; round it", p.RestartTime)
	case p.LongLivedTime < 0 || p.LongLivedTime > MaxLongLivedTime || p.LongLivedTime%time.Second != 0:
		return fmt.Sprintf("long-lived time %s is out of range; set whole seconds, 0 to %s (RFC 9494, section 3)", p.LongLivedTime, MaxLongLivedTime)
	case p.LongLivedTime > 0 && p.RestartTime == 0:
		return "long-lived graceful restart needs graceful restart; set a restart time (RFC 9494, section 4.1)"
	case p.HoldTime != 0 && (p.HoldTime < minHoldTime || p.HoldTime > maxHoldTime || p.HoldTime%time.Second != 0):
		return fmt.Sprintf("hold time %s is out of range; set whole seconds, %s to %s (RFC 4271, section 4.2)", p.HoldTime, minHoldTime, maxHoldTime)
	case len(p.Password) > maxPassword:
		return fmt.Sprintf("password has %d octets; TCP MD5 takes at most %d; choose a shorter password", len(p.Password), maxPassword)
	}
	return ""
}

func (p Path) nonsense() string {
	switch {
	case !p.Prefix.IsValid():
		return "no prefix; set the pod CIDR"
	case p.Prefix.Masked() != p.Prefix || p.Prefix.Addr().Is4In6():
		return fmt.Sprintf("the prefix has host bits set; write %s", p.Prefix.Masked())
	case !p.NextHop.IsValid() || p.NextHop.IsUnspecified() || p.NextHop.IsMulticast() || p.NextHop.IsLoopback():
		return "the next hop is not a unicast address; set the owner node's address"
	case p.NextHop.Zone() != "" || p.NextHop.Is4() != p.Prefix.Addr().Is4():
		return "the next hop is not of the prefix's family; set the owner node's address of that family"
	}
	return ""
}

func badASN(asn uint32) bool {
	return asn == 0 || asn == asTrans || asn == 65535 || asn == 1<<32-1
}

func name(p Peer) string {
	if p.Name == "" {
		return "peer " + p.endpoint()
	}
	return p.Name
}

func invalid(p Peer, format string, args ...any) error {
	return fmt.Errorf("%s: peer %s: %w: %s", name(p), p.endpoint(), ErrInvalid, fmt.Sprintf(format, args...))
}

func (p Peer) object() string { return fmt.Sprintf("peer %s as %d", p.endpoint(), p.ASN) }

// differs says which settings of q need a new session; "" if none do.
func (p Peer) differs(q Peer) string {
	var out []string
	diff := func(what string, a, b any) {
		if a != b {
			out = append(out, fmt.Sprintf("%s %v, was %v", what, b, a))
		}
	}
	diff("as", p.ASN, q.ASN)
	diff("local as", p.LocalASN, q.LocalASN)
	diff("source address", p.LocalAddress, q.LocalAddress)
	diff("router ID", p.RouterID, q.RouterID)
	if p.Password != q.Password {
		out = append(out, "another password")
	}
	diff("hold time", p.HoldTime, q.HoldTime)
	diff("restart time", p.RestartTime, q.RestartTime)
	diff("long-lived time", p.LongLivedTime, q.LongLivedTime)
	diff("multihop TTL", p.MultihopTTL, q.MultihopTTL)
	diff("TTL security", p.TTLSecurity, q.TTLSecurity)
	return strings.Join(out, ", ")
}
