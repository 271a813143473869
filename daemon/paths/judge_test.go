package paths

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// lanNode is a node of LAN a (10.0.1.n) or b (10.0.2.n), whose host and canary answer.
func lanNode(lan string, n int, change ...func(*Finding)) Finding {
	third := map[string]int{"a": 1, "b": 2, "c": 3}[lan]
	host := netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", third, n))
	cidr := netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", third, n))
	canary := netip.MustParseAddr(fmt.Sprintf("10.%d.%d.254", third, n))
	terms := Terms{"underlay", 1, 8472}
	f := Finding{Node: Node{Name: fmt.Sprintf("%s%d", lan, n), Group: lan, Hosts: []netip.Addr{host}, CIDRs: []netip.Prefix{cidr}, Terms: terms}, Family: "IPv4", Addr: canary,
		Canary: Answers, Full: Answers, Host: Answers, Size: 1500, Said: Answer{Terms: terms, Canary: []netip.Addr{canary}, Heard: 2, HeardYou: true}}
	if lan == "a" {
		f.Way = Way{Via: host}
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

// uplinkNode is a node without a pod CIDR, whose canary is at an uplink.
func uplinkNode(n int, change ...func(*Finding)) Finding {
	f := lanNode("c", n)
	f.Node.Name, f.Node.Group, f.Node.CIDRs, f.To = fmt.Sprint("u", n), "u", nil, true
	f.Said.Canary, f.Said.Uplink = nil, f.Said.Canary
	for _, c := range change {
		c(&f)
	}
	return f
}

func fromUplink(f *Finding) { f.From = true }
func atUplink(s *Self)      { s.Group, s.CIDRs, s.Uplink = "u", nil, []string{"10.0.9.33 on eth1"} }

func unheard(f *Finding)    { f.Canary, f.Full, f.Said.HeardYou = Silent, Unsure, false }
func unanswered(f *Finding) { f.Canary, f.Full = Silent, Unsure }
func away(f *Finding)       { f.Canary, f.Full, f.Host = Silent, Unsure, Silent }
func narrow(f *Finding)     { f.Full = Silent }
func otherKeyed(f *Finding) { f.Canary, f.Full, f.Host = OtherKey, OtherKey, OtherKey }
func tunnelled(f *Finding) {
	f.Way, f.Node.Terms.Mode, f.Said.Terms.Mode = Way{Tunnel: true, Via: netip.MustParseAddr("10.9.9.0")}, "overlay", "overlay"
}
func overIPv6(f *Finding) { f.Family = "IPv6" }
func alone(f *Finding)    { f.Said.Heard = 0 }

func knows(r cluster.Reason) func(*Self) {
	return func(s *Self) { s.Known = map[cluster.Reason]bool{r: true} }
}

func TestJudge(t *testing.T) {
	self := Self{Name: "a1", Group: "a", Terms: Terms{"underlay", 1, 8472}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}}
	for _, c := range []struct {
		name  string
		self  func(*Self)
		found []Finding
		want  []string // object: reason
	}{
		{name: "nobody to ask"},
		{name: "peace", found: []Finding{lanNode("a", 2), lanNode("b", 1)}},
		{name: "a node is away", found: []Finding{lanNode("a", 2, away), lanNode("a", 3), lanNode("b", 1)}},
		{name: "a LAN is away, its router answers", found: []Finding{lanNode("a", 2), lanNode("b", 1, away), lanNode("b", 2, away)}},
		{name: "an earlier version, without a canary", found: []Finding{lanNode("a", 2, away, func(f *Finding) { f.Said = Answer{} }), lanNode("a", 3)}},
		{name: "a node whose canary is switched off", found: []Finding{lanNode("a", 2, unheard, func(f *Finding) { f.Said.Canary = nil }), lanNode("a", 3)}},
		{name: "not known yet", found: []Finding{lanNode("a", 2, func(f *Finding) { f.Canary, f.Full, f.Host = Unsure, Unsure, Unsure })}},

		{name: "B9, B21: the switch does not route one pod CIDR", found: []Finding{lanNode("a", 2), lanNode("b", 1, unheard), lanNode("b", 2)}, want: []string{"Node/b1: podCIDRNotRouted"}},
		{name: "two LANs that do not exchange pod CIDRs", found: []Finding{lanNode("a", 2), lanNode("b", 1, unheard), lanNode("b", 2, unheard), lanNode("c", 1)}, want: []string{"LAN of b1, b2: podCIDRNotRouted"}},
		{name: "a tunnel to another LAN", found: []Finding{lanNode("a", 2), lanNode("b", 1, unheard, tunnelled), lanNode("b", 2, unheard, tunnelled)}, want: []string{"LAN of b1, b2: tunnelFiltered"}},
		{name: "N20: another node has the address", found: []Finding{lanNode("a", 2, unheard, func(f *Finding) { f.Said.Name = "a3" }), lanNode("a", 3)}, want: []string{"Node/a2: sharedAddress"}},
		{name: "N24, which is known", self: knows(cluster.SharedAddress), found: []Finding{lanNode("a", 2, unheard, func(f *Finding) { f.Said.Name = "a3" }), lanNode("a", 3)}},
		{name: "the same, seen from the node that it is about", found: []Finding{lanNode("a", 2), lanNode("b", 1, unanswered), lanNode("b", 2, unanswered)}, want: []string{"Node/a1: podCIDRNotRouted"}},
		{name: "N27: spec.gateway with nobody there, which is known", self: knows(cluster.SilentGateway), found: []Finding{lanNode("a", 2), lanNode("b", 1, unheard), lanNode("b", 2, unheard)}},
		{name: "N28: a dead default gateway, which is known", self: knows(cluster.SilentGateway), found: []Finding{lanNode("a", 2), lanNode("b", 1, away), lanNode("b", 2, away)}},
		{name: "a neighbour's firewall, beside a dead gateway", self: knows(cluster.SilentGateway), found: []Finding{lanNode("a", 2, unheard, alone), lanNode("a", 3), lanNode("b", 1, away)}, want: []string{"Node/a2: pathBlocked"}},
		{name: "N1, which is known", self: knows(cluster.ForwardDropped), found: []Finding{lanNode("a", 2, unheard), lanNode("a", 3, unheard), lanNode("b", 1, unheard)}},
		{name: "O1, which is known", self: knows(cluster.HostDropped), found: []Finding{lanNode("b", 1, unheard, tunnelled), lanNode("b", 2, unheard, tunnelled)}},
		{name: "a neighbour that is off is no dead gateway", found: []Finding{lanNode("a", 2, away), lanNode("a", 3)}},
		{name: "N1, N2: this node's firewall drops what is forwarded", found: []Finding{lanNode("a", 2, unheard), lanNode("a", 3, unheard), lanNode("b", 1, unheard)}, want: []string{"Node/a1: forwardDropped"}},
		{name: "N3: this node's firewall drops IPv4 only", found: []Finding{lanNode("a", 2, unheard), lanNode("a", 2, overIPv6), lanNode("a", 3, unheard), lanNode("a", 3, overIPv6), lanNode("b", 1, unheard), lanNode("b", 1, overIPv6)},
			want: []string{"Node/a1: forwardDropped"}},
		{name: "N3, which is known", self: knows(cluster.ForwardDropped), found: []Finding{lanNode("a", 2, unheard), lanNode("a", 2, overIPv6), lanNode("b", 1, unheard), lanNode("b", 1, overIPv6)}},
		{name: "IPv4 to one node of several", found: []Finding{lanNode("a", 2, unheard), lanNode("a", 2, overIPv6), lanNode("a", 3), lanNode("a", 3, overIPv6)}, want: []string{"Node/a2: pathBlocked"}},
		{name: "N1 in a mixed cluster", found: []Finding{lanNode("a", 2, unheard), lanNode("b", 1, unheard), lanNode("c", 1, unheard, tunnelled)}, want: []string{"Node/a1: forwardDropped"}},
		{name: "N1 beside a node that has it too", found: []Finding{lanNode("a", 2, unheard), lanNode("a", 3, unheard), lanNode("b", 1, unheard, func(f *Finding) { f.Said.Cause = "forwardDropped" })},
			want: []string{"Node/a1: forwardDropped", "Node/b1: pathBlocked"}},
		{name: "a neighbour's firewall", found: []Finding{lanNode("a", 2, unheard, alone), lanNode("a", 3), lanNode("b", 1)}, want: []string{"Node/a2: pathBlocked"}},
		{name: "its answers do not arrive", found: []Finding{lanNode("a", 2, unanswered), lanNode("a", 3), lanNode("b", 1)}, want: []string{"Node/a2: pathBlocked"}},
		{name: "two nodes, one of them drops", found: []Finding{lanNode("a", 2, unheard, alone)}, want: []string{"Node/a2: pathBlocked"}},
		{name: "N5: a small MTU on this node's port", found: []Finding{lanNode("a", 2, narrow), lanNode("a", 3, narrow), lanNode("b", 1, narrow)}, want: []string{"Node/a1: mtuHole"}},
		{name: "N5 at another node", found: []Finding{lanNode("a", 2, narrow), lanNode("a", 3), lanNode("b", 1)}, want: []string{"Node/a2: mtuHole"}},
		{name: "N5 between the LANs", found: []Finding{lanNode("a", 2), lanNode("b", 1, narrow), lanNode("b", 2, narrow)}, want: []string{"LAN of b1, b2: mtuHole"}},
		{name: "N32: somebody translates pods' packets", found: []Finding{lanNode("a", 2, func(f *Finding) { f.Translated = netip.MustParseAddr("10.0.1.1") })}, want: []string{"Node/a1: foreignNAT"}},
		{name: "N32, which is known", self: knows(cluster.ForeignNAT), found: []Finding{lanNode("a", 2, func(f *Finding) { f.Translated = netip.MustParseAddr("10.0.1.1") })}},
		{name: "O1, O2: the tunnel's port is closed here", found: []Finding{lanNode("b", 1, unheard, tunnelled), lanNode("b", 2, unheard, tunnelled)}, want: []string{"Node/a1: tunnelFiltered"}},
		{name: "O1, inbound only", found: []Finding{lanNode("b", 1, unanswered, tunnelled), lanNode("b", 2, unanswered, tunnelled)}, want: []string{"Node/a1: tunnelFiltered"}},
		{name: "O1 at another node", found: []Finding{lanNode("b", 1, unheard, tunnelled), lanNode("b", 2, tunnelled)}, want: []string{"Node/b1: tunnelFiltered"}},
		{name: "O3: another mode there", found: []Finding{lanNode("a", 2), lanNode("b", 1, unheard, tunnelled, func(f *Finding) { f.Said.Terms.Mode = "underlay" })}, want: []string{"Node/b1: termsDiffer"}},
		{name: "O4: another VNI here", found: []Finding{lanNode("b", 1, unheard, tunnelled, func(f *Finding) { f.Said.Terms.VNI = 2 }), lanNode("b", 2, unheard, tunnelled, func(f *Finding) { f.Said.Terms.VNI = 2 })}, want: []string{"Node/a1: termsDiffer"}},
		{name: "another VNI that no tunnel uses", found: []Finding{lanNode("a", 2, func(f *Finding) { f.Said.Terms.VNI = 2 })}},
		{name: "one node has another key", found: []Finding{lanNode("a", 2, otherKeyed), lanNode("a", 2, otherKeyed, overIPv6), lanNode("a", 3), lanNode("b", 1)}, want: []string{"Node/a2: pathsKeyDiffers"}},
		{name: "this node has another key than all", found: []Finding{lanNode("a", 2, otherKeyed), lanNode("b", 1, otherKeyed), lanNode("b", 2, otherKeyed)}, want: []string{"Node/a1: pathsKeyDiffers"}},
		{name: "another key beside a path that is cut", found: []Finding{lanNode("a", 2, otherKeyed), lanNode("b", 1, unheard), lanNode("b", 2)}, want: []string{"Node/a2: pathsKeyDiffers", "Node/b1: podCIDRNotRouted"}},
		{name: "another key, and no pod is reached", found: []Finding{lanNode("a", 2, unheard, func(f *Finding) { f.Host = OtherKey }), lanNode("b", 2)}, want: []string{"Node/a2: pathsKeyDiffers"}},
		{name: "uplinks in peace, in another mode", self: atUplink, found: []Finding{uplinkNode(2), lanNode("a", 3, fromUplink, func(f *Finding) { f.Said.Terms.Mode = "overlay" })}},
		{name: "an uplink's switch port drops pods' sources", found: []Finding{uplinkNode(1, unanswered), uplinkNode(2), lanNode("b", 1)}, want: []string{"Node/u1: uplinkFiltered"}},
		{name: "an uplink's switch port drops pods' destinations", found: []Finding{uplinkNode(1, unheard), uplinkNode(2), lanNode("b", 1)}, want: []string{"Node/u1: uplinkFiltered"}},
		{name: "the same, as the node itself says it", found: []Finding{uplinkNode(1, unheard, func(f *Finding) { f.Said.Cause = "uplinkFiltered" }), uplinkNode(2)}, want: []string{"Node/u1: uplinkFiltered"}},
		{name: "an uplink's gateway is dead, as the node itself says", found: []Finding{uplinkNode(1, unheard, func(f *Finding) { f.Said.Cause = "silentGateway" }), uplinkNode(2)}, want: []string{"Node/u1: pathBlocked"}},
		{name: "the LAN of all uplinks is cut off", found: []Finding{uplinkNode(1, unheard), uplinkNode(2, unheard), lanNode("a", 3)}, want: []string{"LAN of u1, u2: uplinkFiltered"}},
		{name: "this node's uplink drops pods' sources", self: atUplink, found: []Finding{uplinkNode(2, unheard, fromUplink), lanNode("a", 3, unheard, fromUplink)}, want: []string{"Node/a1: uplinkFiltered"}},
		{name: "this node's uplink drops pods' destinations", self: atUplink, found: []Finding{uplinkNode(2, unanswered, fromUplink), lanNode("a", 3, unanswered, fromUplink)}, want: []string{"Node/a1: uplinkFiltered"}},
		{name: "this node's uplink, and one node with a pod CIDR", self: atUplink, found: []Finding{lanNode("a", 3, unheard, fromUplink)}, want: []string{"Node/a1: uplinkFiltered"}},
		{name: "two nodes with uplinks", self: atUplink, found: []Finding{uplinkNode(2, unheard, fromUplink)}, want: []string{"Node/u2: uplinkFiltered"}},
		{name: "this node's firewall on a node with uplinks, which is known", self: func(s *Self) { atUplink(s); knows(cluster.ForwardDropped)(s) }, found: []Finding{uplinkNode(2, unheard, fromUplink), lanNode("a", 3, unheard, fromUplink)}},
		{name: "the uplink's gateway is dead, which is known", self: func(s *Self) { atUplink(s); knows(cluster.SilentGateway)(s) }, found: []Finding{uplinkNode(2, unheard, fromUplink), lanNode("b", 3, unheard, fromUplink)}},
		{name: "a gateway does not know a pod CIDR", self: atUplink, found: []Finding{uplinkNode(2, fromUplink), lanNode("b", 1, unheard, fromUplink), lanNode("b", 2, fromUplink)}, want: []string{"Node/b1: podCIDRNotRouted"}},
		{name: "a node does not know the way back to the uplink", self: atUplink, found: []Finding{uplinkNode(2, fromUplink), lanNode("b", 1, unanswered, fromUplink)}, want: []string{"Node/b1: pathBlocked"}},
		{name: "uplink nodes are away", found: []Finding{uplinkNode(1, away), uplinkNode(2, away), lanNode("a", 3)}},
		{name: "a small MTU on a node's uplink", found: []Finding{uplinkNode(1, narrow), uplinkNode(2), lanNode("a", 3)}, want: []string{"Node/u1: mtuHole"}},
		{name: "a small MTU on this node's uplink", self: atUplink, found: []Finding{uplinkNode(2, narrow, fromUplink), lanNode("a", 3, narrow, fromUplink)}, want: []string{"Node/a1: mtuHole"}},
		{name: "a small MTU in the LAN of all uplinks", found: []Finding{uplinkNode(1, narrow), uplinkNode(2, narrow)}, want: []string{"LAN of u1, u2: mtuHole"}},
		{name: "terms that differ while they change", found: []Finding{lanNode("b", 1, func(f *Finding) { f.Said.Terms.Mode = "overlay" })}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := self
			if c.self != nil {
				c.self(&s)
			}
			var got []string
			for _, p := range Judge(s, c.found) {
				got = append(got, p.Object+": "+string(p.Reason))
				if p.Want == "" || p.Got == "" || p.Next == "" || strings.Contains(p.String(), "%!") {
					t.Errorf("%+v", p)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	var seen tally
	for _, c := range []struct {
		answered, otherKey bool
		want               Verdict
	}{{true, false, Answers}, {false, false, Unsure}, {false, true, Unsure}, {false, false, Silent}, {false, true, OtherKey}, {false, false, Silent}, {true, true, Answers}} {
		if seen.count(c.answered, c.otherKey); seen.verdict() != c.want {
			t.Errorf("%+v: %v, want %v", seen, seen.verdict(), c.want)
		}
	}
	if v := (tally{}).verdict(); v != Unsure {
		t.Errorf("before the first question: %v", v)
	}
}
