package routes

import (
	"path/filepath"
	"strings"
	"testing"
)

// tcp is the first packet of a connection from a pod to a pod of another node, or back if out is empty.
func tcp(src, in, dst, out string) Packet {
	return Packet{Src: addr(src), In: in, Dst: addr(dst), Out: out, Protocol: TCP, SrcPort: 40000, DstPort: 8080}
}

// web is a pod's connection to a service.
func web(service string) Packet {
	p := tcp("10.10.1.5", "ew0", service, "eth0")
	p.DstPort = 80
	return p
}

func udp(p Packet, port uint16) Packet {
	p.Protocol, p.DstPort = UDP, port
	return p
}

func ping(p Packet) Packet {
	p.Protocol = ICMP
	if p.Dst.Is6() {
		p.Protocol = ICMPv6
	}
	return p
}

// fromPod goes out to another node's pod, toPod comes in from there, and tunnel ends on this machine.
var (
	fromPod = tcp("10.10.1.5", "ew0", "10.10.2.5", "eth0")
	toPod   = tcp("10.10.2.5", "eth0", "10.10.1.5", "ew0")
	tunnel  = udp(tcp("10.0.0.12", "eth0", "10.0.0.11", ""), 8472)
)

func TestJudge(t *testing.T) {
	reply := fromPod
	reply.Reply = true
	for _, tt := range []struct {
		name, load string
		packet     Packet
		want       string // all findings, without the numbers of rules
		policy     bool
	}{
		{"no firewall", "", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"Docker", "iptables-restore docker.iptables", fromPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"Docker, from outside", "iptables-restore docker.iptables", toPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"Docker's container", "iptables-restore docker.iptables", tcp("172.17.0.2", "docker0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; chain ip nat POSTROUTING of nftables, rule with handle N: masquerade (0 packets so far)", false},
		{"Docker's tunnel", "iptables-restore docker.iptables", tunnel, "prerouting: accepts; input: accepts", false},
		{"Docker with legacy iptables", "iptables-legacy-restore docker.iptables", fromPod, "prerouting: accepts; chain FORWARD of iptables-legacy -t filter, policy drop; postrouting: accepts", true},
		{"Docker's container with legacy iptables", "iptables-legacy-restore docker.iptables", tcp("172.17.0.2", "docker0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; chain POSTROUTING of iptables-legacy -t nat, rule N: masquerade (0 packets so far)", false},
		{"ufw", "iptables-restore ufw.iptables", fromPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"ufw lets echo requests pass", "iptables-restore ufw.iptables", ping(fromPod), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"ufw and the tunnel", "iptables-restore ufw.iptables", tunnel, "prerouting: accepts; chain ip filter INPUT of nftables, policy drop", true},
		{"ufw with legacy iptables", "iptables-legacy-restore ufw.iptables", tunnel, "prerouting: accepts; chain INPUT of iptables-legacy -t filter, policy drop", true},
		{"ufw with legacy iptables lets echo requests pass", "iptables-legacy-restore ufw.iptables", ping(fromPod), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld", "nft -f firewalld.nft", fromPod, "prerouting: accepts; chain inet firewalld filter_FWD_public of nftables, rule with handle N: reject; postrouting: accepts", true},
		{"firewalld's trusted zone", "nft -f firewalld.nft", tcp("10.10.1.5", "trust0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld and an answer", "nft -f firewalld.nft", reply, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld and the tunnel", "nft -f firewalld.nft", tunnel, "prerouting: accepts; chain inet firewalld filter_IN_public of nftables, rule with handle N: reject", true},
		{"firewalld's iptables", "iptables-restore firewalld.iptables", toPod, "prerouting: accepts; chain ip filter FWD_public of nftables, rule with handle N: reject (0 packets so far); postrouting: accepts", true},
		{"firewalld's legacy iptables", "iptables-legacy-restore firewalld.iptables", toPod, "prerouting: accepts; chain FWD_public of iptables-legacy -t filter, rule N: reject (0 packets so far); postrouting: accepts", true},
		{"a set", "nft -f plain.nft", tcp("10.10.1.5", "ew0", "10.10.3.7", "eth0"), `prerouting: accepts; chain inet guard forward of nftables, rule with handle N ("block list"): drop (0 packets so far); chain inet guard post of nftables, rule with handle N: masquerade`, false},
		{"a masquerade", "nft -f plain.nft", tcp("10.10.1.5", "ew0", "10.10.4.7", "eth0"), "prerouting: accepts; forward: accepts; chain inet guard post of nftables, rule with handle N: masquerade", false},
		{"a masquerade with an exception", "nft -f plain.nft", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"a service", "nft -f plain.nft", Packet{Src: addr("10.10.1.5"), In: "ew0", Dst: addr("10.96.0.1"), Out: "eth0", Protocol: TCP, DstPort: 443}, "prerouting: accepts; chain ip kube forward of nftables, rule with handle N: drop; chain inet guard post of nftables, rule with handle N: masquerade", false},
		{"a rate", "nft -f plain.nft", tcp("10.10.1.66", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a named rate", "nft -f plain.nft", tcp("10.10.1.67", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop, depending on a named limit or quota; postrouting: accepts", false},
		{"a rate that a chain returns at", "nft -f plain.nft", tcp("10.10.1.70", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard flood of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a rate that a chain goes on at", "nft -f plain.nft", tcp("10.10.1.71", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard calm of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a mark by a rate", "nft -f plain.nft", tcp("10.10.1.72", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop, depending on a mark, or something else that is not in the packet; postrouting: accepts", false},
		{"a mark", "nft -f plain.nft", tcp("10.10.1.68", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"an IPv6 set", "nft -f plain.nft", tcp("fd00:10:1::5", "ew0", "fd00:10:3::7", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"an IPv6 set of pairs", "nft -f plain.nft", tcp("fd00:10:1::5", "ew0", "fd00:10:4::5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"an IPv6 set without this pair", "nft -f plain.nft", tcp("fd00:10:1::5", "ew0", "fd00:10:4::6", "eth0"), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"an IPv6 echo request", "nft -f plain.nft", ping(tcp("fd00:10:1::66", "ew0", "fd00:10:2::5", "eth0")), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"an IPv6 masquerade", "nft -f plain.nft", tcp("fd00:10:1::5", "ew0", "fd00:10:5::5", "eth0"), "prerouting: accepts; forward: accepts; chain inet guard post of nftables, rule with handle N: masquerade", false},
		{"a packet of this machine has no link before", "nft -f plain.nft", tcp("10.0.0.11", "", "10.0.0.99", "eth0"), "chain inet guard out of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"a packet of this machine has link 0 before", "nft -f plain.nft", tcp("10.0.0.11", "", "10.0.0.98", "eth0"), "chain inet guard out of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"kube-proxy", "iptables-restore kube-proxy.iptables", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"kube-proxy, from outside", "iptables-restore kube-proxy.iptables", toPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"kube-proxy and the tunnel", "iptables-restore kube-proxy.iptables", tunnel, "prerouting: accepts; input: accepts", false},
		{"kube-proxy's legacy iptables", "iptables-legacy-restore kube-proxy.iptables", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"kube-proxy's legacy iptables, from outside", "iptables-legacy-restore kube-proxy.iptables", toPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"kube-proxy's legacy iptables and the tunnel", "iptables-legacy-restore kube-proxy.iptables", tunnel, "prerouting: accepts; input: accepts", false},
		{"kube-proxy's service without pods", "iptables-restore kube-proxy.iptables", web("10.96.0.99"), `prerouting: accepts; chain ip filter KUBE-SERVICES of nftables, rule with handle N ("shop/empty has no endpoints"): reject (0 packets so far); postrouting: accepts`, false},
		{"kube-proxy's service", "iptables-legacy-restore kube-proxy.iptables", web("10.96.0.10"), "chain KUBE-SEP-TWO of iptables-legacy -t nat, rule N: dnat (0 packets so far); forward: accepts; postrouting: accepts", false},
		{"a port", "nft -f plain.nft", Packet{Src: addr("10.10.1.5"), In: "ew0", Dst: addr("10.10.2.5"), Out: "eth0", Protocol: TCP, DstPort: 6005}, "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: reject; postrouting: accepts", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			if tt.load != "" {
				f := strings.Fields(tt.load)
				f[len(f)-1] = filepath.Join("testdata", "firewall", f[len(f)-1])
				s.run(strings.Join(f, " "))
			}
			g, policy, program := judged(s, tt.packet)
			if tt.policy != (program != "") || !strings.HasPrefix(tt.name, program) {
				t.Errorf("the program is %q", program)
			}
			if g != tt.want || policy != tt.policy {
				t.Errorf("got  %s, policy %v\nwant %s, policy %v", g, policy, tt.want, tt.policy)
			}
		})
	}
}

// judged returns the findings without the numbers of rules, whether one is a policy that drops, and whose program's
// firewall drops.
func judged(s *space, p Packet) (text string, policy bool, program string) {
	s.t.Helper()
	all, err := s.k.Judge(s.t.Context(), p)
	if err != nil {
		s.t.Fatal(err)
	}
	var got []string
	for _, f := range all[0] {
		policy = policy || f.Policy && f.Outcome == Drops
		if f.Outcome == Drops {
			program = f.Program
		}
		if f.Handle != 0 {
			f.Handle = 7
		}
		got = append(got, strings.NewReplacer("handle 7", "handle N", "rule 7", "rule N").Replace(f.String()))
	}
	return strings.Join(got, "; "), policy, program
}

// IPv6 has tables of its own, in nftables and in legacy iptables, with longer addresses and other offsets.
func TestJudgeIPv6(t *testing.T) {
	to := func(p Packet, port uint16) Packet { p.DstPort = port; return p }
	pod := tcp("fd00:10:1::5", "ew0", "fd00:10:2::5", "eth0")
	foreign := tcp("fd00:10:9::5", "ew0", "fd00:10:2::5", "eth0")
	answer := foreign
	answer.Reply = true
	outside := udp(tcp("fd00:99::12", "eth0", "fd00:10::11", ""), 8472)
	const passes, dropped = "prerouting: accepts; forward: accepts; postrouting: accepts", "prerouting: accepts; %s; postrouting: accepts"
	for _, tt := range []struct {
		name            string
		packet          Packet
		want            string
		nftables, table string // how nftables and legacy iptables name what drops
	}{
		{"a port", pod, passes, "", ""},
		{"a port of a range", to(pod, 8000), passes, "", ""},
		{"another port", to(pod, 8081), dropped, "chain ip6 filter FORWARD of nftables, policy drop", "chain FORWARD of ip6tables-legacy -t filter, policy drop"},
		{"another link", tcp("fd00:10:1::5", "eth1", "fd00:10:2::5", "eth0"), dropped, "chain ip6 filter FORWARD of nftables, policy drop", "chain FORWARD of ip6tables-legacy -t filter, policy drop"},
		{"an excepted link", tcp("fd00:10:1::5", "ew0", "fd00:10:2::5", "eth9"), dropped, "chain ip6 filter FORWARD of nftables, policy drop", "chain FORWARD of ip6tables-legacy -t filter, policy drop"},
		{"another source", foreign, dropped, "chain ip6 filter FORWARD of nftables, policy drop", "chain FORWARD of ip6tables-legacy -t filter, policy drop"},
		{"an answer", answer, passes, "", ""},
		{"an echo request", ping(foreign), passes, "", ""},
		{"a destination", tcp("fd00:10:1::5", "ew0", "fd00:10:3::5", "eth0"), dropped,
			"chain ip6 mangle FORWARD of nftables, rule with handle N: drop (0 packets so far)", "chain FORWARD of ip6tables-legacy -t mangle, rule N: drop (0 packets so far)"},
		{"a tunnel", udp(tcp("fd00:10::12", "eth0", "fd00:10::11", ""), 8472), "prerouting: accepts; input: accepts", "", ""},
		{"a tunnel from outside", outside, "prerouting: accepts; %s",
			"chain ip6 mangle INPUT of nftables, rule with handle N: drop (0 packets so far)", "chain INPUT of ip6tables-legacy -t mangle, rule N: drop (0 packets so far)"},
		{"another port than the tunnel's", to(outside, 8473), "prerouting: accepts; input: accepts", "", ""},
		{"IPv4", fromPod, passes, "", ""},
	} {
		for load, drops := range map[string]string{"ip6tables-restore": tt.nftables, "ip6tables-legacy-restore": tt.table} {
			t.Run(tt.name+" "+load, func(t *testing.T) {
				t.Parallel()
				s := newSpace(t)
				s.run(load + " " + filepath.Join("testdata", "firewall", "docker.ip6tables"))
				got, policy, program := judged(s, tt.packet)
				if want := strings.Replace(tt.want, "%s", drops, 1); got != want || policy != strings.Contains(drops, "policy") || policy != (program == "Docker") {
					t.Errorf("got  %s, policy %v, %q\nwant %s", got, policy, program, want)
				}
			})
		}
	}
}

// A firewall's generation changes with each rule, and a look changes nothing: neither nftables nor the tables of
// legacy iptables, which exist from the first question about them.
func TestJudgeChangesNothing(t *testing.T) {
	s := newSpace(t)
	before, err := s.k.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.k.Judge(t.Context(), fromPod, tunnel); err != nil {
		t.Fatal(err)
	}
	if after, err := s.k.Generation(t.Context()); err != nil || after != before {
		t.Errorf("generation %d, then %d, %v", before, after, err)
	}
	s.lacks("cat /proc/thread-self/net/ip_tables_names", "filter")
	s.nft("add table inet other")
	if after, err := s.k.Generation(t.Context()); err != nil || after == before {
		t.Errorf("generation %d, then %d, %v", before, after, err)
	}
}

// someSet answers for each set of a rule.
type someSet struct{ rules }

func (someSet) keyLen(Place, string) (int, error)                  { return 8, nil }
func (someSet) element(_ Place, _ string, b []byte) (found, error) { return found{true, b, nil}, nil }
func (someSet) index(string) uint32                                { return 1 }

// FuzzRules: a rule of nftables that the kernel would never write must not crash the reader.
func FuzzRules(f *testing.F) {
	f.Add([]byte(message{}.attr(7, []byte("0 from somebody who numbers rules")))) // NFTA_RULE_USERDATA of another program
	for name, data := range map[string][]byte{
		"payload": {8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 12, 8, 0, 4, 0, 0, 0, 0, 8},
		"cmp":     {8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 3, 12, 0, 3, 0, 8, 0, 1, 0, 10, 10, 1, 5},
		"bitwise": {8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 4, 12, 0, 4, 0, 8, 0, 1, 0, 255, 255, 255, 0},
		"lookup":  {6, 0, 1, 0, 's', 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 1},
		"meta":    {8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 6},
		"match":   {8, 0, 1, 0, 't', 'c', 'p', 0, 16, 0, 3, 0, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 0, 0},
	} {
		m := message{}.nest(4, func(m message) message { // NFTA_RULE_EXPRESSIONS
			return m.nest(1, func(m message) message { // NFTA_LIST_ELEM
				return m.attrString(1, name).nest(2, func(m message) message { return append(m, data...) })
			})
		})
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseChain(b)
		r := parseNFTRule(b)
		for _, p := range []Packet{fromPod, ping(tcp("fd00:10:1::5", "ew0", "fd00:10:2::5", "eth0"))} {
			w := &walk{Packet: p, r: someSet{}}
			w.head, w.body = p.headers()
			w.rule(r)
		}
	})
}

// FuzzLegacy: a blob of legacy iptables that the kernel would never write must not crash the reader.
func FuzzLegacy(f *testing.F) {
	f.Add(make([]byte, 400), uint32(4))
	logs := make([]byte, 152) // a policy that only logs: no verdict
	logs[88], logs[90] = 112, 152
	copy(logs[114:], "LOG")
	f.Add(logs, uint32(4))
	f.Fuzz(func(t *testing.T, blob []byte, hooks uint32) {
		for _, fam := range xtFamilies() {
			info := make([]byte, xtInfoBytes)
			info[32] = byte(hooks)
			r := newReader(&Kernel{})
			r.addLegacy(xtTable{fam, "filter", info, blob})
			_, _ = judge(r, fromPod)
		}
	})
}
