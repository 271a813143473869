package policy

import "net/netip"

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
