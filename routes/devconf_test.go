package routes

import "testing"

// What rtnetlink says of a setting is what its file says.
func TestSettingsAreToldAsTheirFilesSay(t *testing.T) {
	s := newSpace(t)
	s.wire()
	for _, key := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		"net/ipv4/conf/eth0/arp_notify", "net/ipv4/conf/eth0/accept_redirects", "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/accept_redirects",
		"net/ipv6/conf/eth0/accept_dad", "net/ipv6/conf/eth0/ndisc_notify", "net/ipv6/conf/eth0/disable_ipv6",
	} {
		for _, value := range []string{"0", "1", "0"} {
			for _, err := range s.k.setSysctls([]Sysctl{{key, value}}) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if got, ok := newView(s.k.c).told(key); !ok || got != value {
				t.Errorf("%s is %s, told %q, %v", key, value, got, ok)
			}
		}
	}
	if got, known := newView(s.k.c).told("net/ipv6/conf/gone/accept_dad"); got != "" || !known {
		t.Errorf("of a link that does not exist: told %q, %v", got, known)
	}
	for _, key := range []string{"net/ipv4/conf/eth0/rp_filter", "net/ipv4/tcp_syncookies"} {
		if got, ok := newView(s.k.c).told(key); ok {
			t.Errorf("%s: told %q", key, got)
		}
	}
}
