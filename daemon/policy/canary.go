package policy

import (
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/ipam"
)

// CanaryAddrs are the addresses that this node's canary asks for, one of each family. Of uplinks it is the last address
// of the pool, which no other node can compute.
func (p Plan) CanaryAddrs() (out []netip.Addr) {
	for _, set := range p.Pool.Sets {
		if len(p.Uplinks.Interfaces) == 0 {
			for _, r := range set {
				out = append(out, CanaryAddr(r.Subnet))
			}
		} else if a := last(ipam.Pool{Sets: []ipam.RangeSet{set}, Reserved: p.Pool.Reserved}, set); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// last is the last address of the set that the pool leases; invalid: there is none.
func last(pool ipam.Pool, set ipam.RangeSet) netip.Addr {
	for _, r := range slices.Backward(set) {
		for a := r.Last; a.IsValid() && a.Compare(r.First) >= 0; a = a.Prev() {
			if Leases(pool, a) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// CanaryAddr is the address that a node's canary asks for in one of the node's pod CIDRs, so that other nodes know
// it without being told: the last address that a pod can have. Pods take the first addresses first. In a large
// IPv6 subnet the last 128 interface identifiers are reserved for anycast (RFC 2526, section 2). A pod may have the
// address; then the canary has another address.
func CanaryAddr(c netip.Prefix) netip.Addr {
	host := c.Addr().BitLen() - c.Bits()
	b := c.Masked().Addr().AsSlice()
	for i := range host {
		b[len(b)-1-i/8] |= 1 << (i % 8)
	}
	switch {
	case c.Addr().Is4() && host > 1: // RFC 3021: two addresses, or one, have no broadcast address
		b[len(b)-1] &^= 1
	case c.Addr().Is6() && host > 8:
		b[len(b)-1] = 0x7f
	}
	a, _ := netip.AddrFromSlice(b) // the length is that of an address
	return a
}
