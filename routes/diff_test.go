package routes

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// randomState has few names and numbers, so that two of them share places.
func randomState(r *rand.Rand) (s State) {
	links := []string{"eth0", "eth1", "edgeway.1", "ew0123456789a"}
	pick := func(n int) int { return r.IntN(n) }
	mac := func() string { return fmt.Sprintf("02:00:00:00:00:%02x", pick(4)) }
	ip := func(v6 bool) netip.Addr {
		if v6 {
			return addr(fmt.Sprintf("fd00::%x", 1+pick(4)))
		}
		return addr(fmt.Sprintf("10.0.0.%d", 1+pick(4)))
	}
	s.Links = unique(r, 4, func() (Link, string) {
		l := Link{Name: links[pick(4)], MAC: mac(), MTU: 1400 + pick(2), Up: pick(2) == 0}
		if l.Name == "edgeway.1" {
			l.Kind, l.VXLAN = "vxlan", &VXLAN{VNI: uint32(pick(2)), Port: 8472, Local: ip(false)}
		}
		return l, l.Name
	})
	if len(s.Links) == 0 {
		return s
	}
	link := func() string { return s.Links[pick(len(s.Links))].Name }
	s.Addrs = unique(r, 4, func() (Addr, string) {
		a := ip(pick(2) == 0)
		l := link()
		return Addr{Link: l, Prefix: netip.PrefixFrom(a, a.BitLen()-pick(3))}, l + a.String()
	})
	s.Neighs = unique(r, 4, func() (Neigh, string) {
		n := Neigh{Link: link(), IP: ip(pick(2) == 0), MAC: mac(), Learns: pick(2) == 0}
		return n, n.Link + n.IP.String()
	})
	s.FDB = unique(r, 4, func() (FDB, string) {
		f := FDB{Link: link(), MAC: mac(), Dst: ip(false), VNI: uint32(pick(2)), Port: uint16(pick(2) * 4789)}
		return f, fmt.Sprint(keyOfFDB(f))
	})
	s.Routes = unique(r, 8, func() (Route, string) {
		v6 := pick(2) == 0
		rt := Route{Dst: pfx(fmt.Sprintf("10.%d.0.0/16", pick(4))), Link: link(), Protocol: ProtoNode, Metric: pick(3) * 512, MTU: pick(2) * 1300}
		if v6 {
			rt.Dst = pfx(fmt.Sprintf("fd%02x::/16", pick(4)))
		}
		if pick(3) > 0 {
			rt.Via = ip(v6)
		}
		return rt, fmt.Sprint(keyOfRoute(rt))
	})
	s.Rules = unique(r, 4, func() (Rule, string) {
		rule := Rule{Priority: 2048, From: netip.PrefixFrom(ip(false), 32), Table: pick(3)}
		if pick(3) == 0 {
			rule = Rule{Priority: 512, Mark: uint32(pick(2)), Longer: 31 * pick(2)}
		}
		return rule, rule.String()
	})
	s.Proxies = unique(r, 4, func() (ProxyNeigh, string) {
		p := ProxyNeigh{link(), ip(false)}
		return p, p.String()
	})
	s.Sysctls = unique(r, 2, func() (Sysctl, string) {
		y := Sysctl{[]string{"net/ipv4/ip_forward", "net/ipv4/conf/" + link() + "/rp_filter"}[pick(2)], fmt.Sprint(pick(3))}
		return y, y.Key
	})
	if pick(2) == 0 {
		s.NAT = &NAT{Sources: prefixes(fmt.Sprintf("10.%d.0.0/16", pick(3)))}
	}
	return s
}

func unique[T any](r *rand.Rand, most int, draw func() (T, string)) (out []T) {
	seen := map[string]bool{}
	for range r.IntN(most + 1) {
		if t, key := draw(); !seen[key] {
			seen[key] = true
			out = append(out, t)
		}
	}
	return out
}

// model applies changes to a State as the kernel would, and refuses what the kernel refuses.
type model struct {
	t *testing.T
	s State
}

func (m *model) link(name string) bool {
	return slices.ContainsFunc(m.s.Links, func(l Link) bool { return l.Name == name })
}

func (m *model) apply(c Change) {
	if c.Err != nil {
		m.t.Fatalf("%v: %v", c, c.Err)
	}
	switch o := c.Object.(type) {
	case Link:
		m.s.Links = place(m.t, m.s.Links, c, o, func(l Link) string { return l.Name })
		if c.Op == Delete {
			on := func(name string) bool { return name == o.Name }
			m.s.Addrs = without(m.s.Addrs, func(a Addr) bool { return on(a.Link) })
			m.s.Neighs = without(m.s.Neighs, func(n Neigh) bool { return on(n.Link) })
			m.s.Proxies = without(m.s.Proxies, func(p ProxyNeigh) bool { return on(p.Link) })
			m.s.FDB = without(m.s.FDB, func(f FDB) bool { return on(f.Link) })
			m.s.Routes = without(m.s.Routes, func(r Route) bool { return on(r.Link) })
			m.s.Sysctls = without(m.s.Sysctls, func(y Sysctl) bool { return strings.Contains(y.Key, "/"+o.Name+"/") })
		}
	case Addr:
		m.on(c, o.Link)
		m.s.Addrs = place(m.t, m.s.Addrs, c, o, func(a Addr) string {
			if a.Prefix.Addr().Is6() {
				return a.Link + a.Prefix.Addr().String()
			}
			return a.String()
		})
	case Neigh:
		m.on(c, o.Link)
		m.s.Neighs = place(m.t, m.s.Neighs, c, o, func(n Neigh) string { return n.Link + n.IP.String() })
	case Rule:
		m.s.Rules = place(m.t, m.s.Rules, c, o, Rule.String)
	case ProxyNeigh:
		m.on(c, o.Link)
		m.s.Proxies = place(m.t, m.s.Proxies, c, o, ProxyNeigh.String)
	case FDB:
		m.on(c, o.Link)
		m.s.FDB = place(m.t, m.s.FDB, c, o, func(f FDB) string { return fmt.Sprint(keyOfFDB(f)) })
	case Route:
		m.on(c, o.Link)
		m.s.Routes = place(m.t, m.s.Routes, c, o, func(r Route) string { return fmt.Sprint(keyOfRoute(r)) })
	case Sysctl:
		m.s.Sysctls = place(m.t, m.s.Sysctls, Change{Op: c.Op, Object: o}, o, func(y Sysctl) string { return y.Key })
	case NAT:
		m.s.NAT = &o
		if c.Op == Delete {
			m.s.NAT = nil
		}
	}
}

func (m *model) on(c Change, link string) {
	if !m.link(link) {
		m.t.Fatalf("%v: the link does not exist at this point", c)
	}
}

// place adds, replaces or deletes an object. It is a bug in the order of the changes to add an object that
// exists, or to replace or delete an object that does not exist.
func place[T any](t *testing.T, in []T, c Change, o T, key func(T) string) []T {
	t.Helper()
	i := slices.IndexFunc(in, func(x T) bool { return key(x) == key(o) })
	if (c.Op == Add) != (i < 0) {
		t.Fatalf("%v: an Add needs an absent object, and a Replace or Delete needs an existing object", c)
	}
	out := slices.Clone(in)
	switch c.Op {
	case Add:
		return append(out, o)
	case Replace:
		out[i] = o
		return out
	}
	return slices.Delete(out, i, i+1)
}

// sorted makes States comparable: their lists are sets.
func sorted(s State) State {
	by := func(a, b any) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	s.Links = slices.SortedFunc(slices.Values(s.Links), func(a, b Link) int { return by(a, b) })
	s.Addrs = slices.SortedFunc(slices.Values(s.Addrs), func(a, b Addr) int { return by(a, b) })
	s.Neighs = slices.SortedFunc(slices.Values(s.Neighs), func(a, b Neigh) int { return by(a, b) })
	s.Rules = slices.SortedFunc(slices.Values(s.Rules), func(a, b Rule) int { return by(a, b) })
	for i := range s.Rules {
		s.Rules[i] = s.Rules[i].normal()
	}
	s.Proxies = slices.SortedFunc(slices.Values(s.Proxies), func(a, b ProxyNeigh) int { return by(a, b) })
	s.FDB = slices.SortedFunc(slices.Values(s.FDB), func(a, b FDB) int { return by(a, b) })
	s.Routes = slices.Clone(s.Routes)
	for i := range s.Routes {
		s.Routes[i] = normal(s.Routes[i])
	}
	s.Routes = slices.SortedFunc(slices.Values(s.Routes), func(a, b Route) int { return by(a, b) })
	s.Sysctls = slices.SortedFunc(slices.Values(s.Sysctls), func(a, b Sysctl) int { return by(a, b) })
	return s
}

func netipComparer() gocmp.Option {
	return gocmp.Options{
		gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmpopts.EquateEmpty(),
	}
}

func TestDiffOfEqualStatesIsEmpty(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		s := randomState(r)
		if d := Diff(s, s); len(d) != 0 {
			t.Fatalf("Diff(x, x) = %v, want no changes", texts(d))
		}
		shuffled := s
		shuffled.Routes = slices.Clone(s.Routes)
		r.Shuffle(len(shuffled.Routes), func(i, j int) {
			shuffled.Routes[i], shuffled.Routes[j] = shuffled.Routes[j], shuffled.Routes[i]
		})
		if d := Diff(shuffled, s); len(d) != 0 {
			t.Fatalf("Diff(x, x in another order) = %v, want no changes", texts(d))
		}
	}
}

func TestApplyingDiffGivesDesired(t *testing.T) {
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 3))
		a, b := randomState(r), randomState(r)
		m := &model{t, a}
		changes := Diff(a, b)
		for _, c := range changes {
			m.apply(c)
		}
		m.s.Sysctls = without(m.s.Sysctls, func(y Sysctl) bool { // a setting cannot be deleted
			return !slices.ContainsFunc(b.Sysctls, func(w Sysctl) bool { return w.Key == y.Key })
		})
		if d := gocmp.Diff(sorted(m.s), sorted(b), netipComparer()); d != "" {
			t.Fatalf("seed %d: applying\n%s\ngives (-got +want)\n%s", seed, strings.Join(texts(changes), "\n"), d)
		}
	}
}

func TestDiffIsPure(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		a, b := randomState(r), randomState(r)
		before := fmt.Sprint(a, b)
		first := texts(Diff(a, b))
		if again := texts(Diff(a, b)); !slices.Equal(first, again) || fmt.Sprint(a, b) != before {
			t.Fatalf("two calls differ, or an argument changed:\n%v\n%v", first, again)
		}
	}
}

func TestDiff(t *testing.T) {
	via := func(gw string) Route {
		return Route{Dst: pfx("10.10.2.0/24"), Via: addr(gw), Link: "eth0", Protocol: ProtoNode}
	}
	bird := via("10.0.0.1")
	bird.Protocol = 12
	six := Route{Dst: pfx("fd00:2::/64"), Via: addr("fd00::2"), Link: "eth0", Protocol: ProtoNode}
	six1024 := six
	six1024.Metric = 1024
	sixOther := six
	sixOther.Metric = 512
	vx := func(vni uint32) Link {
		return Link{Name: "edgeway.1", Kind: "vxlan", MTU: 1450, Up: true, VXLAN: &VXLAN{VNI: vni, Port: 8472, Local: addr("10.0.0.11")}}
	}
	bridge := Link{Name: "edgeway.1", Kind: "bridge", MTU: 1450, Up: true}
	rs := func(r ...Route) State { return State{Routes: r} }
	for name, c := range map[string]struct {
		observed, desired State
		want              []string
	}{
		"nothing": {},
		"IPv6 metric 0 is 1024": {
			observed: rs(six1024), desired: rs(six),
		},
		"another metric is another route, which is added before the old route is deleted": {
			observed: rs(six1024), desired: rs(sixOther),
			want: []string{
				"add route fd00:2::/64 via fd00::2 dev eth0 proto 119 metric 512",
				"delete route fd00:2::/64 via fd00::2 dev eth0 proto 119 metric 1024",
			},
		},
		"the next hop changes": {
			observed: rs(via("10.0.0.12")), desired: rs(via("10.0.0.13")),
			want: []string{"replace route 10.10.2.0/24 via 10.0.0.13 dev eth0 proto 119 (was 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119)"},
		},
		"held by another protocol": {
			observed: rs(bird), desired: rs(via("10.0.0.12")),
			want: []string{"replace route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119 (was 10.10.2.0/24 via 10.0.0.1 dev eth0 proto bird)" +
				" ERR route 10.10.2.0/24 via 10.0.0.12: held by proto bird via 10.0.0.1; stop the other agent or change the CIDR"},
		},
		"beside another protocol's": {
			observed: rs(bird, via("10.0.0.12")), desired: rs(via("10.0.0.12")),
		},
		"appended routes are deleted": {
			observed: rs(via("10.0.0.12"), via("10.0.0.13"), via("10.0.0.14")), desired: rs(via("10.0.0.13")),
			want: []string{
				"delete route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119",
				"delete route 10.10.2.0/24 via 10.0.0.14 dev eth0 proto 119",
			},
		},
		"desired twice": {
			desired: rs(via("10.0.0.12"), via("10.0.0.12"), via("10.0.0.13")),
			want: []string{
				"add route 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119",
				"add route 10.10.2.0/24 via 10.0.0.13 dev eth0 proto 119 ERR route 10.10.2.0/24 via 10.0.0.13 dev eth0 proto 119: desired twice; the first desired object is 10.10.2.0/24 via 10.0.0.12 dev eth0 proto 119",
			},
		},
		"a vxlan that must be recreated loses the objects on it": {
			observed: State{Links: []Link{vx(1)}, FDB: []FDB{{Link: "edgeway.1", MAC: "02:00:00:00:00:01", Dst: addr("10.0.0.12")}}},
			desired:  State{Links: []Link{vx(2)}, FDB: []FDB{{Link: "edgeway.1", MAC: "02:00:00:00:00:01", Dst: addr("10.0.0.12")}}},
			want: []string{
				"delete link edgeway.1 mtu 1450 up type vxlan id 1 local 10.0.0.11 dstport 8472 nolearning",
				"add link edgeway.1 mtu 1450 up type vxlan id 2 local 10.0.0.11 dstport 8472 nolearning",
				"add fdb 02:00:00:00:00:01 dev edgeway.1 dst 10.0.0.12",
			},
		},
		"a link of another kind": {
			observed: State{Links: []Link{bridge}}, desired: State{Links: []Link{vx(1)}},
			want: []string{"replace link edgeway.1 mtu 1450 up type vxlan id 1 local 10.0.0.11 dstport 8472 nolearning (was edgeway.1 mtu 1450 up type bridge)" +
				" ERR link edgeway.1: want type vxlan, but the existing link has type bridge: held by another owner; delete or rename the existing link"},
		},
		"a field that is left to the kernel is right with any value": {
			observed: State{Links: []Link{{Name: "eth0", Kind: "veth", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}},
			desired:  State{Links: []Link{{Name: "eth0", Up: true}}},
		},
		"an IPv6 address with another length": {
			observed: State{Addrs: []Addr{{Link: "eth0", Prefix: pfx("fd00::1/64")}, {Link: "eth0", Prefix: pfx("10.0.0.1/24")}}},
			desired:  State{Addrs: []Addr{{Link: "eth0", Prefix: pfx("fd00::1/128")}, {Link: "eth0", Prefix: pfx("10.0.0.1/32")}}},
			want: []string{
				"delete address fd00::1/64 dev eth0", "add address fd00::1/128 dev eth0",
				"add address 10.0.0.1/32 dev eth0", "delete address 10.0.0.1/24 dev eth0",
			},
		},
		"sysctl values with other blanks": {
			observed: State{Sysctls: []Sysctl{{"net/ipv4/ip_local_port_range", "32768\t60999"}}},
			desired:  State{Sysctls: []Sysctl{{"net/ipv4/ip_local_port_range", "32768 60999"}}},
		},
		"the same NAT written otherwise": {
			observed: State{NAT: &NAT{Sources: prefixes("10.10.0.0/23")}},
			desired:  State{NAT: &NAT{Sources: prefixes("10.10.1.0/24", "10.10.0.0/24", "10.10.1.128/25")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d := gocmp.Diff(texts(Diff(c.observed, c.desired)), c.want); d != "" {
				t.Errorf("(-got +want)\n%s", d)
			}
		})
	}
}

// TestTranslatedConnectionsOutliveAnUpgrade: an earlier version gave the table of an uplink no default route where pods leave by
// the node. The default route came before the mark that keeps such packets off the uplink, and a packet in between ended
// its connection.
func TestTranslatedConnectionsOutliveAnUpgrade(t *testing.T) {
	inside := prefixes("10.0.0.0/8")
	route := func(dst string) Route {
		return Route{Dst: pfx(dst), Via: addr("10.0.0.254"), Link: "up", Table: 1701106409, Onlink: true, Protocol: ProtoNode}
	}
	earlier := State{Routes: []Route{route("10.0.0.0/8")}, Symmetric: &Symmetric{Mark: 0x20, Uplinks: []string{"up"}}}
	now := State{Routes: []Route{route("0.0.0.0/0")}, Symmetric: &Symmetric{Mark: 0x20, Uplinks: []string{"up"}, Inside: inside}}
	want := []string{
		"replace table inet edgeway-uplink mark 0x20 uplinks [up] inside [10.0.0.0/8] (was table inet edgeway-uplink mark 0x20 uplinks [up])",
		"add route default via 10.0.0.254 dev up table 1701106409 proto 119 onlink",
		"delete route 10.0.0.0/8 via 10.0.0.254 dev up table 1701106409 proto 119 onlink",
	}
	if d := gocmp.Diff(texts(Diff(earlier, now)), want); d != "" {
		t.Errorf("(-got +want)\n%s", d)
	}
}

func TestForeignErrorIsErrForeign(t *testing.T) {
	err := error(&foreignError{Route{Dst: pfx("10.0.0.0/8")}, Route{Type: "blackhole", Protocol: 4}})
	if want := "route 10.0.0.0/8: held by proto static as blackhole; stop the other agent or change the CIDR"; !errors.Is(err, ErrForeign) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestRouteText(t *testing.T) {
	for want, r := range map[string]Route{
		"default via 10.0.0.1 dev eth0 proto dhcp src 10.0.0.11 metric 100":     {Dst: pfx("0.0.0.0/0"), Via: addr("10.0.0.1"), Link: "eth0", Protocol: 16, Src: addr("10.0.0.11"), Metric: 100},
		"10.10.1.5 dev ew0123456789a proto 101":                                 {Dst: pfx("10.10.1.5/32"), Link: "ew0123456789a", Protocol: ProtoPod},
		"fd00::/64 via fe80::1 dev eth0 table 7 proto bgp mtu 1400 advmss 1360": {Dst: pfx("fd00::/64"), Via: addr("fe80::1"), Link: "eth0", Table: 7, Protocol: 186, MTU: 1400, AdvMSS: 1360},
		"10.10.2.0/24 via 10.10.2.0 dev edgeway.1 proto 119 onlink":             {Dst: pfx("10.10.2.0/24"), Via: addr("10.10.2.0"), Link: "edgeway.1", Protocol: ProtoNode, Onlink: true},
		"blackhole 10.10.0.0/16 proto 119":                                      {Dst: pfx("10.10.0.0/16"), Type: "blackhole", Protocol: ProtoNode},
		"10.10.2.0/24 via 10.0.0.12 dev eth0 proto static multipath":            {Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: 4, Multipath: true},
	} {
		if got := r.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestCanonicalPrefixes(t *testing.T) {
	for _, c := range []struct{ in, want []netip.Prefix }{
		{prefixes("10.0.1.0/24", "10.0.0.0/24"), prefixes("10.0.0.0/23")},
		{prefixes("10.0.1.0/24", "10.0.2.0/24"), prefixes("10.0.1.0/24", "10.0.2.0/24")},
		{prefixes("10.0.0.7/8", "10.1.0.0/16"), prefixes("10.0.0.0/8")},
		{prefixes("0.0.0.0/1", "128.0.0.0/1"), prefixes("0.0.0.0/0")},
		{prefixes("fd00::/64", "10.0.0.0/8"), prefixes("10.0.0.0/8", "fd00::/64")},
		{prefixes("10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/25"), prefixes("10.0.0.0/24")},
	} {
		if d := gocmp.Diff(canonical(c.in), c.want, netipComparer()); d != "" {
			t.Errorf("canonical(%v) (-got +want)\n%s", c.in, d)
		}
	}
}

// TestIntervalsComeBack: the prefixes that are written to an interval set are read back unchanged.
func TestIntervalsComeBack(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		var in []netip.Prefix
		for range r.IntN(6) {
			a := netip.AddrFrom4([4]byte{byte(r.IntN(4) * 85), byte(r.IntN(2) * 255), byte(r.IntN(256)), byte(r.IntN(256))})
			in = append(in, netip.PrefixFrom(a, r.IntN(33)))
		}
		elements := intervals(in, false)
		r.Shuffle(len(elements), func(i, j int) { elements[i], elements[j] = elements[j], elements[i] })
		if d := gocmp.Diff(prefixesOf(elements), canonical(in), netipComparer()); d != "" {
			t.Fatalf("%v (-got +want)\n%s", in, d)
		}
	}
}
