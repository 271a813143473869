package routes

import (
	"fmt"
	"net/netip"
	"testing"
)

// Another network plugin left its rules behind, and pods' packets took them.
func TestForeignRules(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.sync(Scope{Protocol: ProtoNode, Rules: true}, uplinkState())
	for _, rule := range []string{"pref 512 to 10.0.0.31 lookup main", "pref 100 from 10.0.0.0/24 lookup 77", "pref 90 fwmark 1 lookup 77", "pref 1000 iif eth0 lookup 77", "pref 100 lookup local", "pref 3000 from 10.0.0.31 lookup 77"} {
		s.run("ip rule add " + rule)
	}
	found, err := s.k.ForeignRules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found {
		got = append(got, fmt.Sprint(r.Text, " ", r.Catches(addr("10.0.0.31")), r.Catches(addr("10.9.0.1"))))
	}
	want := `["90: from all lookup 77 false false" "100: from 10.0.0.0/24 lookup 77 true false" "512: from all to 10.0.0.31/32 lookup 254 true true" "1000: from all lookup 77 true true"]`
	if fmt.Sprintf("%q", got) != want {
		t.Errorf("got  %q\nwant %s", got, want)
	}
}

// The daemon reported a default route in a separate table as missing. It did not see a policy rule that sent
// the packets of a pod CIDR elsewhere, or dropped the packets.
func TestPolicyRulesWereNotSeen(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	s.wire()
	asked := []netip.Addr{addr("10.10.2.0"), addr("10.10.3.0"), addr("fd00:10:2::")}
	ways := func() (out []string) {
		t.Helper()
		ruled, err := s.k.Ruled(t.Context(), asked)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range asked {
			if w, ok := ruled[a]; ok {
				out = append(out, fmt.Sprintf("%v: %v (%s)", a, w.Route, w.Rule))
			}
		}
		return out
	}
	if got := ways(); len(got) > 0 {
		t.Errorf("without rules: got %q, want no ways", got)
	}
	s.run("sysctl -qw net.ipv4.ip_forward=1")
	s.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
	onHost, inPod := podStates(pod)
	for _, with := range []string{"no pod", "a pod"} {
		for _, tt := range []struct {
			set, undo []string
			want      string
		}{
			{[]string{"ip route add default via 10.0.0.1 table 100", "ip rule add pref 50 lookup 100"}, []string{"ip rule del pref 50", "ip route flush table 100"},
				`["10.10.2.0: default via 10.0.0.1 dev eth0 table 100 proto boot (50: from all lookup 100)" "10.10.3.0: default via 10.0.0.1 dev eth0 table 100 proto boot (50: from all lookup 100)"]`},
			{[]string{"ip rule add pref 60 to 10.10.2.0/24 prohibit"}, []string{"ip rule del pref 60"},
				`["10.10.2.0: prohibit 10.10.2.0/24 proto unspec (60: from all to 10.10.2.0/24 prohibit)"]`},
			{[]string{"ip -6 route add unreachable fd00:10:2::/48 table 1000", "ip -6 rule add pref 70 to fd00:10::/32 lookup 1000"}, []string{"ip -6 rule del pref 70", "ip -6 route flush table 1000"},
				`["fd00:10:2::: unreachable fd00:10:2::/48 table 1000 proto boot metric 1024 (70: from all to fd00:10::/32 lookup 1000)"]`},
			{[]string{"ip rule add pref 80 fwmark 7 lookup 100", "ip rule add pref 81 to 198.51.100.0/24 prohibit"}, []string{"ip rule del pref 80", "ip rule del pref 81"}, "[]"},
		} {
			for _, c := range tt.set {
				s.run(c)
			}
			if got := fmt.Sprintf("%q", ways()); got != tt.want {
				t.Errorf("with %s, %s:\n got %s\nwant %s", with, tt.set, got, tt.want)
			}
			for _, c := range tt.undo {
				s.run(c)
			}
		}
		s.sync(Scope{}, onHost)
		pod.sync(Scope{}, inPod)
	}
	// This rule applies only to the packets of pods.
	s.run("ip route add 10.10.3.0/24 via 10.0.0.9 table 101")
	s.run("ip rule add pref 90 from 10.10.1.0/24 lookup 101")
	s.run("sysctl -qw net.ipv4.conf." + podLink + ".forwarding=1")
	if got, want := fmt.Sprintf("%q", ways()), `["10.10.3.0: 10.10.3.0/24 via 10.0.0.9 dev eth0 table 101 proto boot (90: from 10.10.1.0/24 lookup 101)"]`; got != want {
		t.Errorf("packets of pods:\n got %s\nwant %s", got, want)
	}
}
