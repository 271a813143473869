package routes

import "testing"

// A setting has the same value in the answer of rtnetlink and in its file.
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
				t.Errorf("%s is %s, but rtnetlink answers %q, %v", key, value, got, ok)
			}
		}
	}
	if got, known := newView(s.k.c).told("net/ipv6/conf/gone/accept_dad"); got != "" || !known {
		t.Errorf("setting of a link that does not exist: got %q, %v; want an empty value that is known", got, known)
	}
	for _, key := range []string{"net/ipv4/conf/eth0/rp_filter", "net/ipv4/tcp_syncookies"} {
		if got, ok := newView(s.k.c).told(key); ok {
			t.Errorf("%s: got %q from rtnetlink, which does not have this setting", key, got)
		}
	}
}
