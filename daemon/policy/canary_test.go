package policy

import (
	"net/netip"
	"testing"
)

// The canary of a node with the pod CIDR 10.0.0.5/32 was asked for at 10.0.0.4, which is another machine.
func TestCanaryAddr(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.10.1.0/24": "10.10.1.254", "10.10.0.0/16": "10.10.255.254", "10.10.1.7/24": "10.10.1.254", "10.0.0.4/30": "10.0.0.6", "10.0.0.4/31": "10.0.0.5", "10.0.0.5/32": "10.0.0.5",
		"fd00:1::/64": "fd00:1::ffff:ffff:ffff:ff7f", "fd00:1::/112": "fd00:1::ff7f", "fd00:1::/124": "fd00:1::f", "fd00:1::7/128": "fd00:1::7",
	} {
		p := netip.MustParsePrefix(cidr)
		if got := CanaryAddr(p); got.String() != want || !p.Contains(got) {
			t.Errorf("%s: %s, want %s", cidr, got, want)
		}
	}
}
