package uplink

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/edgeway-cni/edgeway/routes"
	"github.com/google/go-cmp/cmp"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func eth1() Interface {
	return Interface{
		MAC: "00:16:3e:08:60:0a", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Gateway: netip.MustParseAddr("10.0.0.253"), AnswerARP: true, OnLink: true, Addresses: addrs("10.0.0.31", "10.0.0.40", "10.0.0.41"),
	}
}

func eth1v6() Interface {
	return Interface{
		MAC: "00:16:3e:08:60:0a", Address: netip.MustParseAddr("fd00:10::21"), Subnet: netip.MustParsePrefix("fd00:10::/64"),
		Gateway: netip.MustParseAddr("fe80::fe"), AnswerARP: true, OnLink: true, Addresses: addrs("fd00:10::31"),
	}
}

func host() routes.Host {
	return routes.Host{
		Links: []routes.Link{{Name: "eth0", MAC: "00:16:3e:00:00:01", Up: true}, {Name: "eth1", MAC: "00:16:3e:08:60:0a"}},
		Addrs: []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("10.0.0.11/24")}},
	}
}

func TestState(t *testing.T) {
	// What stands wherever the interface has these addresses, and also while the interface is gone.
	const granted = `route unreachable 10.0.0.31 proto 119 metric 4278198272
route unreachable 10.0.0.40 proto 119 metric 4278198272
route unreachable 10.0.0.41 proto 119 metric 4278198272
rule 512: from all lookup main suppress_prefixlength 31 proto 119
rule 600: from all fwmark 0x20/0x20 lookup main proto 119
rule 2048: from 10.0.0.21 lookup 1695047690 proto 119
rule 2048: from 10.0.0.31 lookup 1695047690 proto 119
rule 2048: from 10.0.0.40/31 lookup 1695047690 proto 119
`
	inside := Uplinks{NodeEgress: true, Inside: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Interfaces: []Interface{eth1()}}
	inside.Interfaces[0].AnswerARP, inside.Interfaces[0].OnLink = false, false
	gone := host()
	gone.Links = gone.Links[:1]
	for _, tt := range []struct {
		name string
		u    Uplinks
		host routes.Host
		want string
	}{
		{"a plain LAN", Uplinks{Interfaces: []Interface{eth1()}}, host(), `link eth1 up
addr 10.0.0.21/32 dev eth1
route 10.0.0.253 dev eth1 table 1695047690 proto 119
route 10.0.0.0/24 dev eth1 table 1695047690 proto 119
route default via 10.0.0.253 dev eth1 table 1695047690 proto 119 onlink
route unreachable default table 1695047690 proto 119 metric 4278198272
` + granted + `neigh 10.0.0.31 dev eth1 proxy proto 119
neigh 10.0.0.40 dev eth1 proxy proto 119
neigh 10.0.0.41 dev eth1 proxy proto 119
sysctl net/ipv4/ip_forward = 1
sysctl net/ipv4/conf/all/src_valid_mark = 1
sysctl net/ipv6/conf/eth1/accept_ra = 0
sysctl net/ipv6/conf/eth1/accept_redirects = 0
sysctl net/ipv4/conf/eth1/accept_redirects = 0
sysctl net/ipv4/conf/eth1/forwarding = 1
sysctl net/ipv4/neigh/eth1/proxy_delay = 0
sysctl net/ipv4/conf/eth0/arp_ignore = 1
sysctl net/ipv4/conf/eth1/arp_ignore = 1
table inet edgeway-uplink mark 0x20 uplinks [eth1]
table arp edgeway-announced
`},
		{"a cloud, and egress by the node", inside, host(), `link eth1 up
addr 10.0.0.21/32 dev eth1
route 10.0.0.253 dev eth1 table 1695047690 proto 119
route default via 10.0.0.253 dev eth1 table 1695047690 proto 119 onlink
route unreachable default table 1695047690 proto 119 metric 4278198272
` + granted + `sysctl net/ipv4/ip_forward = 1
sysctl net/ipv4/conf/all/src_valid_mark = 1
sysctl net/ipv6/conf/eth1/accept_ra = 0
sysctl net/ipv6/conf/eth1/accept_redirects = 0
sysctl net/ipv4/conf/eth1/accept_redirects = 0
sysctl net/ipv4/conf/eth1/forwarding = 1
sysctl net/ipv4/conf/eth0/arp_ignore = 1
sysctl net/ipv4/conf/eth1/arp_ignore = 1
table inet edgeway-uplink mark 0x20 uplinks [eth1] inside [10.0.0.0/8]
`},
		{"the interface is gone", Uplinks{Interfaces: []Interface{eth1()}}, gone, `route unreachable default table 1695047690 proto 119 metric 4278198272
` + granted + `sysctl net/ipv4/ip_forward = 1
sysctl net/ipv4/conf/all/src_valid_mark = 1
table inet edgeway-uplink mark 0x20 uplinks []
`},
		{"IPv6 by a link-local router", Uplinks{NodeEgress: true, Interfaces: []Interface{eth1v6()}}, host(), `link eth1 up
addr fd00:10::21/128 deprecated dev eth1
route fd00:10::/64 dev eth1 table 1695047690 proto 119
route default via fe80::fe dev eth1 table 1695047690 proto 119
route unreachable default table 1695047690 proto 119 metric 4278198272
route unreachable fd00:10::31 proto 119 metric 4278198272
rule 512: from all lookup main suppress_prefixlength 127 proto 119 inet6
rule 600: from all fwmark 0x20/0x20 lookup main proto 119 inet6
rule 2048: from fd00:10::21 lookup 1695047690 proto 119
rule 2048: from fd00:10::31 lookup 1695047690 proto 119
neigh fd00:10::31 dev eth1 proxy proto 119
sysctl net/ipv6/conf/all/forwarding = 1
sysctl net/ipv6/conf/eth1/accept_ra = 0
sysctl net/ipv6/conf/eth1/accept_redirects = 0
sysctl net/ipv4/conf/eth1/accept_redirects = 0
sysctl net/ipv6/conf/eth1/forwarding = 1
sysctl net/ipv6/conf/eth1/use_oif_addrs_only = 1
sysctl net/ipv6/conf/eth1/proxy_ndp = 1
sysctl net/ipv6/neigh/eth1/proxy_delay = 0
table inet edgeway-uplink mark 0x20 uplinks [eth1] inside [fd00:10::/64]
`},
		{"no uplinks", Uplinks{}, host(), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.u.State(tt.host)
			if d := cmp.Diff(tt.want, got.String()); d != "" {
				t.Errorf("want (-) and got (+):\n%s", d)
			}
			if changes := routes.Diff(got, got); len(changes) > 0 {
				t.Errorf("against itself: %v", changes)
			}
		})
	}
	if got := (Uplinks{Interfaces: []Interface{eth1()}}).Missing(gone); len(got) != 3 {
		t.Errorf("missing: %v", got)
	}
}

// A card is an uplink by its MAC, and so is a VLAN on it: the link of the VLAN has the MAC of the card, and is not taken
// for it. Neither is a link of the VLAN's name that somebody else made.
func TestCardWithAVLAN(t *testing.T) {
	h := host()
	vlan := Interface{Name: "eth1.100", Parent: "eth1", ID: 100}
	if parent, ok := vlan.Makes(h); !ok || parent.Name != "eth1" {
		t.Errorf("without a link: made on %q, %v", parent.Name, ok)
	}
	h.Links = append(h.Links, routes.Link{Name: "eth1.100", MAC: eth1().MAC, VLAN: &routes.VLAN{Parent: "eth1", ID: 100}})
	if l, ok := eth1().Link(h); !ok || l.Name != "eth1" {
		t.Errorf("by the MAC: %q, %v", l.Name, ok)
	}
	if l, ok := vlan.Link(h); !ok || l.Name != "eth1.100" {
		t.Errorf("the VLAN: %q, %v", l.Name, ok)
	}
	card, _ := eth1().Table(h)
	if table, ok := vlan.Table(h); !ok || table == card {
		t.Errorf("tables %d and %d, %v", card, table, ok)
	}
	for _, l := range []routes.Link{{Name: "eth1.100"}, {Name: "eth1.100", VLAN: &routes.VLAN{Parent: "eth1", ID: 100, Foreign: true}}, {Name: "lan", VLAN: &routes.VLAN{Parent: "eth1", ID: 100, Foreign: true}}} {
		h := host()
		h.Links = append(h.Links, l)
		if got, ok := vlan.Link(h); ok {
			t.Errorf("%+v of somebody else: taken for %q", l, got.Name)
		}
		if _, ok := vlan.Makes(h); ok {
			t.Errorf("%+v of somebody else: made beside it", l)
		}
	}
	if a, b := (Uplinks{Interfaces: []Interface{vlan}}), (Uplinks{Interfaces: []Interface{{Name: "eth1.100"}}}); a.Equal(b) {
		t.Error("the same with and without a VLAN")
	}
}

func TestPool(t *testing.T) {
	i := eth1()
	i.Addresses = addrs("10.0.0.0", "10.0.0.31", "10.0.0.40", "10.0.0.41", "10.0.0.42", "10.0.0.255", "10.0.1.9")
	p := Uplinks{Interfaces: []Interface{i}}.Pool(func(a netip.Addr) bool { return a != addrs("10.0.0.41")[0] })
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.Sets, p.Reserved), "[10.0.0.0/24 (10.0.0.31-10.0.0.31), 10.0.0.0/24 (10.0.0.40-10.0.0.42)] [10.0.0.41/32]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	v6 := eth1v6()
	v6.Addresses = addrs("fd00:10::", "fd00:10::31", "fd00:10::32", "fd00:10::ffff:ffff:ffff:ffff")
	p = Uplinks{Interfaces: []Interface{v6, eth1()}}.Pool(func(a netip.Addr) bool { return a != v6.Addresses[2] })
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.Sets[1], p.Reserved, len(p.Sets)), "fd00:10::/64 (fd00:10::31-fd00:10::32), fd00:10::/64 (fd00:10::ffff:ffff:ffff:ffff-fd00:10::ffff:ffff:ffff:ffff) [fd00:10::32/128] 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if p := (Uplinks{}).Pool(nil); len(p.Sets) > 0 {
		t.Errorf("without uplinks: %v", p)
	}
}

func TestAggregate(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		want := map[netip.Addr]bool{}
		var in []netip.Addr
		for range r.IntN(40) {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(32))})
			in, want[a] = append(in, a), true
		}
		n, out := 0, Aggregate(in)
		for k, p := range out {
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				if n++; !want[a] {
					t.Fatalf("%v of %v has %v", out, in, a)
				}
			}
			if k > 0 && out[k-1].Bits() == p.Bits() && netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked().Contains(out[k-1].Addr()) {
				t.Fatalf("%v: two halves of one prefix", out)
			}
		}
		if n != len(want) {
			t.Fatalf("%v of %v has %d addresses", out, in, n)
		}
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), File)
	if u, err := Read(path); err != nil || len(u.Interfaces) > 0 {
		t.Errorf("a missing file: %v, %v", u, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("a torn file was read")
	}
}
