package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

// A firewall of the machine drops the node's own BGP or VXLAN. The next step is a command of the program whose firewall
// it is, for the port and the direction of the packet.
func TestHostDropped(t *testing.T) {
	addr := netip.MustParseAddr
	out := routes.Packet{Src: addr("192.0.2.1"), Dst: addr("192.0.2.254"), Out: routes.ByRoute, Protocol: routes.TCP, SrcPort: SomePort, DstPort: 179}
	answer := routes.Packet{Src: addr("192.0.2.254"), In: routes.ByRoute, Dst: addr("192.0.2.1"), Protocol: routes.TCP, SrcPort: 179, DstPort: SomePort, Reply: true}
	out6 := routes.Packet{Src: addr("fd00::1"), Dst: addr("fd00::254"), Out: routes.ByRoute, Protocol: routes.TCP, SrcPort: SomePort, DstPort: 179}
	tunnel := routes.Packet{Src: addr("192.0.2.2"), In: routes.ByRoute, Dst: addr("192.0.2.1"), Protocol: routes.UDP, SrcPort: SomePort, DstPort: 8472}
	drops := func(h routes.Hook, family uint8, table, chain, program string) routes.Finding {
		f := routes.Finding{Hook: h, Outcome: routes.Drops, Place: routes.Place{Family: family, Table: table, Chain: chain}, Policy: true, Does: "drop", Program: program}
		f.Base = f.Place
		return f
	}
	rule := drops(routes.Output, unix.NFPROTO_INET, "guard", "out", "")
	rule.Policy, rule.Handle = false, 7
	legacy := drops(routes.Output, unix.NFPROTO_IPV6, "filter", "OUTPUT", "")
	legacy.Place.Legacy, legacy.Base.Legacy = true, true
	for _, tt := range []struct {
		name    string
		packet  routes.Packet
		finding routes.Finding
		want    string
	}{
		{"BGP, iptables", out, drops(routes.Output, unix.NFPROTO_IPV4, "filter", "OUTPUT", ""),
			"firewall: want packets from 192.0.2.1 to 192.0.2.254 (BGP, TCP port 179) to pass, got output: chain ip filter OUTPUT of nftables, policy drop; iptables -I OUTPUT -p tcp --dport 179 -j ACCEPT; in a file that runs at each start"},
		{"BGP's answer, iptables", answer, drops(routes.Input, unix.NFPROTO_IPV4, "filter", "INPUT", ""),
			"firewall: want packets from 192.0.2.254 to 192.0.2.1 (BGP, TCP port 179) to pass, got input: chain ip filter INPUT of nftables, policy drop; iptables -I INPUT -p tcp --sport 179 -j ACCEPT; in a file that runs at each start"},
		{"BGP over IPv6, legacy iptables", out6, legacy,
			"firewall: want packets from fd00::1 to fd00::254 (BGP, TCP port 179) to pass, got output: chain OUTPUT of ip6tables-legacy -t filter, policy drop; ip6tables-legacy -I OUTPUT -p tcp --dport 179 -j ACCEPT; in a file that runs at each start"},
		{"BGP's answer, nftables", answer, drops(routes.Input, unix.NFPROTO_INET, "filter", "input", ""),
			"firewall: want packets from 192.0.2.254 to 192.0.2.1 (BGP, TCP port 179) to pass, got input: chain inet filter input of nftables, policy drop; nft insert rule inet filter input tcp sport 179 accept; and in the file that makes the chain"},
		{"BGP, a rule", out, rule,
			"firewall: want packets from 192.0.2.1 to 192.0.2.254 (BGP, TCP port 179) to pass, got output: chain inet guard out of nftables, rule with handle 7: drop; remove the rule, or limit it: nft delete rule inet guard out handle 7"},
		{"BGP, ufw", out, drops(routes.Output, unix.NFPROTO_IPV4, "filter", "OUTPUT", "ufw"),
			"firewall: want packets from 192.0.2.1 to 192.0.2.254 (BGP, TCP port 179) to pass, got output: chain ip filter OUTPUT of nftables, policy drop; ufw allow out 179/tcp"},
		{"VXLAN, ufw", tunnel, drops(routes.Input, unix.NFPROTO_IPV4, "filter", "INPUT", "ufw"),
			"firewall: want packets from 192.0.2.2 to 192.0.2.1 (VXLAN, UDP port 8472) to pass, got input: chain ip filter INPUT of nftables, policy drop; ufw allow 8472/udp"},
		{"VXLAN, firewalld", tunnel, drops(routes.Input, unix.NFPROTO_INET, "firewalld", "filter_IN_public", "firewalld"),
			"firewall: want packets from 192.0.2.2 to 192.0.2.1 (VXLAN, UDP port 8472) to pass, got input: chain inet firewalld filter_IN_public of nftables, policy drop; firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --reload"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := World{Self: "n1", Config: config.Defaults(), Barriers: Barriers([]routes.Packet{tt.packet}, [][]routes.Finding{{tt.finding}})}
			w.Config.Firewall = config.FirewallOff
			w.Cluster.Nodes = []cluster.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24")}, Addresses: []netip.Addr{addr("192.0.2.1")}}}
			var got []string
			for _, p := range Decide(w).Problems {
				if p.Reason == cluster.HostDropped {
					got = append(got, p.String())
				}
			}
			if len(got) != 1 || got[0] != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// Where the end of a chain drops, a rule of ours is wanted in that chain, for as long as it would drop without the rule. A
// rule that the administrator wrote is left alone, and so is a chain that cannot be written.
func TestPassages(t *testing.T) {
	addr := netip.MustParseAddr
	forward := routes.Packet{Src: addr("10.10.1.128"), In: routes.PodLink, Dst: addr("10.10.2.128"), Out: routes.ByRoute, Protocol: routes.TCP, SrcPort: SomePort, DstPort: SomePort}
	tunnel := routes.Packet{Src: addr("192.0.2.2"), In: routes.ByRoute, Dst: addr("192.0.2.1"), Protocol: routes.UDP, SrcPort: SomePort, DstPort: 8472}
	probe := routes.Packet{Src: addr("192.0.2.2"), In: routes.ByRoute, Dst: addr("192.0.2.1"), Protocol: routes.UDP, SrcPort: 9476, DstPort: 9476}
	const pods = "chain ip filter FORWARD of nftables: accept in ew* saddr 10.10.1.0/24, out ew* daddr 10.10.1.0/24"
	policy := func(h routes.Hook, chain string) routes.Finding {
		p := routes.Place{Family: unix.NFPROTO_IPV4, Table: "filter", Chain: chain}
		return routes.Finding{Hook: h, Outcome: routes.Drops, Place: p, Base: p, Policy: true, Does: "drop"}
	}
	with := func(f routes.Finding, change func(*routes.Finding)) routes.Finding { change(&f); return f }
	off := func(c *config.Config) { c.Firewall = config.FirewallOff }
	on := func(*config.Config) {}
	for _, tt := range []struct {
		name     string
		set      func(*config.Config)
		packets  []routes.Packet
		findings []routes.Finding
		want     string
		problems int
	}{
		{"a policy", on, []routes.Packet{forward}, []routes.Finding{policy(routes.Forward, "FORWARD")}, pods, 1},
		{"our rule is there", on, []routes.Packet{forward}, []routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Outcome, f.Passed = routes.Accepts, true })}, pods, 0},
		{"off", off, []routes.Packet{forward}, []routes.Finding{policy(routes.Forward, "FORWARD")}, "", 1},
		{"a rule", on, []routes.Packet{forward}, []routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Policy, f.Handle = false, 7 })}, "", 1},
		{"an owner", on, []routes.Packet{forward}, []routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Owned = true })}, "", 1},
		{"legacy iptables", on, []routes.Packet{forward}, []routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Place.Legacy, f.Base.Legacy = true, true })},
			"chain FORWARD of iptables-legacy -t filter: accept in ew* saddr 10.10.1.0/24, out ew* daddr 10.10.1.0/24", 1},
		{"our rule is there, and the lock of iptables no longer", on, []routes.Packet{forward},
			[]routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Outcome, f.Passed, f.Owned = routes.Accepts, true, true })}, pods, 0},
		{"a chain of many", on, []routes.Packet{forward}, []routes.Finding{with(policy(routes.Forward, "FORWARD"), func(f *routes.Finding) { f.Place.Chain = "LOGDROP" })}, "", 1},
		{"the tunnel and the questions", on, []routes.Packet{tunnel, probe}, []routes.Finding{policy(routes.Input, "INPUT"), policy(routes.Input, "INPUT")},
			"chain ip filter INPUT of nftables: accept udp dport 8472, udp dport 9476", 1},
		{"the questions, off", off, []routes.Packet{probe}, []routes.Finding{policy(routes.Input, "INPUT")}, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := World{Self: "n1", Config: config.Defaults()}
			tt.set(&w.Config)
			var all [][]routes.Finding
			for _, f := range tt.findings {
				all = append(all, []routes.Finding{f})
			}
			w.Barriers = Barriers(tt.packets, all)
			w.Cluster.Nodes = []cluster.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24"), netip.MustParsePrefix("fd00:10:1::/64")}, Addresses: []netip.Addr{addr("192.0.2.1")}}}
			plan := Decide(w)
			var got []string
			for _, p := range plan.Routes.Passages {
				got = append(got, p.String())
			}
			problems := 0
			for _, p := range plan.Problems {
				if p.Reason == cluster.HostDropped || p.Reason == cluster.ForwardDropped {
					problems++
				}
			}
			if text := strings.Join(got, "; "); text != tt.want || problems != tt.problems {
				t.Errorf("got  %q, %d problems\nwant %q, %d", text, problems, tt.want, tt.problems)
			}
		})
	}
}

// Pods with addresses of uplinks were cut off by a policy of DROP, and no problem said so. The firewall is asked about
// each uplink and about the node's own link; a few rules let all granted addresses pass, however scattered they are.
func TestUplinksPassTheFirewall(t *testing.T) {
	addr := netip.MustParseAddr
	w := World{Self: "n1", Config: config.Defaults()}
	w.Config.Paths.Canary = false
	w.Cluster.Nodes = []cluster.Node{
		{Name: "n1", Addresses: []netip.Addr{addr("192.0.2.1")}},
		{Name: "n2", Addresses: []netip.Addr{addr("192.0.2.2")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.2.0/24")}},
	}
	w.Host.Links = []routes.Link{{Name: "eth0", Up: true, MTU: 1500}}
	w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}}
	u := &cluster.Uplinks{Egress: cluster.EgressUplink}
	for n := range 9 { // the last one is not on this node
		one := cluster.Uplink{Name: fmt.Sprintf("eth%d", n+1), Subnet: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", n/5)), Gateway: addr(fmt.Sprintf("10.0.%d.254", n/5)), Address: addr(fmt.Sprintf("10.0.%d.%d", n/5, 1+n))}
		for i := range 25 {
			a := addr(fmt.Sprintf("10.0.%d.%d", n/5, 100+(n%5)*25+i))
			if i%2 == 0 {
				one.Addresses = append(one.Addresses, cluster.AddressRange{First: a, Last: a})
			}
		}
		u.Interfaces = append(u.Interfaces, one)
		if n < 8 {
			w.Host.Links = append(w.Host.Links, routes.Link{Name: one.Name, MAC: fmt.Sprintf("02:00:00:00:00:%02x", n), Up: true, MTU: 1500})
		}
	}
	w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: u}}
	for _, egress := range []cluster.Egress{cluster.EgressUplink, cluster.EgressNode} {
		u.Egress = egress
		w.Barriers = nil
		asked := map[string]int{}
		plan := Decide(w)
		for _, p := range plan.Guarded {
			switch {
			case p.Src == addr("10.10.2.128") || p.Dst == addr("10.10.2.128"):
				asked["n2"]++
			case p.In == routes.PodLink:
				asked["to "+strings.TrimRight(p.Out, "12345678")]++
			case p.Out == routes.PodLink:
				asked["from "+strings.TrimRight(p.In, "12345678")]++
			default:
				t.Errorf("%s: asked about %+v", egress, p)
			}
		}
		want := map[string]int{"to ew0": 8, "to eth": 8, "from eth": 8, "from eth0": 8, "n2": 16}
		if egress == cluster.EgressNode {
			delete(want, "n2") // with the address of the node
		}
		if !maps.Equal(asked, want) {
			t.Errorf("%s: asked %v, want %v", egress, asked, want)
		}
		drops := routes.Finding{Hook: routes.Forward, Outcome: routes.Drops, Place: routes.Place{Family: unix.NFPROTO_IPV4, Table: "filter", Chain: "FORWARD"}, Policy: true, Does: "drop"}
		drops.Base = drops.Place
		w.Barriers = Barriers(plan.Guarded[:1], [][]routes.Finding{{drops}})
		const rules = "[chain ip filter FORWARD of nftables: accept in ew* saddr 10.0.0.0/24, out ew* daddr 10.0.0.0/24, in ew* saddr 10.0.1.0/24, out ew* daddr 10.0.1.0/24]"
		if got := fmt.Sprint(Decide(w).Routes.Passages); got != rules {
			t.Errorf("%s: rules %s, want %s", egress, got, rules)
		}
	}
}
