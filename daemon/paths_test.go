package daemon

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// lookAt is what a look sees in LANs of size nodes each, on the first node.
func lookAt(t testing.TB, lans, size int) *view {
	t.Helper()
	w := policy.World{Self: "node-00000", Config: config.Defaults(),
		Host: routes.Host{Addrs: []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}}, Links: []routes.Link{{Name: "eth0", Up: true, MTU: 1500}},
			Routes: []routes.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.254"), Link: "eth0"}}}}
	for lan := range lans {
		selector, err := cluster.ParseSelector(fmt.Sprintf("lan=%d", lan))
		if err != nil {
			t.Fatal(err)
		}
		w.Cluster.Peerings = append(w.Cluster.Peerings, cluster.Peering{Kind: "BGPPeer", Name: fmt.Sprint("lan-", lan), LocalASN: uint32(65000 + lan), Selector: selector})
		for i := range size {
			n := lan*size + i
			w.Cluster.Nodes = append(w.Cluster.Nodes, cluster.Node{Name: fmt.Sprintf("node-%05d", n), Labels: map[string]string{"lan": fmt.Sprint(lan)},
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(lan), byte(i + 1)})},
				PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(n >> 8), byte(n), 0}), 24)}})
		}
	}
	survey := policy.NewSurvey(w.Cluster)
	return &view{World: w, Survey: survey, Plan: survey.Decide(w)}
}

func TestSurveyOfPaths(t *testing.T) {
	c := surveyOf(lookAt(t, 2, 2))
	terms := paths.Terms{Mode: "underlay", VNI: 1, Port: 8472}
	node := func(n int, host, canary string, via string) paths.Node {
		out := paths.Node{Name: fmt.Sprintf("node-%05d", n), Hosts: []netip.Addr{netip.MustParseAddr(host)}, CIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(n), 0}), 24)},
			Canary: []netip.Addr{netip.MustParseAddr(canary)}, Terms: terms, Ways: []paths.Way{{}}}
		if via != "" {
			out.Ways[0].Via = netip.MustParseAddr(via)
		}
		return out
	}
	want := []paths.Node{node(0, "10.0.0.1", "11.0.0.254", ""), node(1, "10.0.0.2", "11.0.1.254", "10.0.0.2"), node(2, "10.0.1.1", "11.0.2.254", ""), node(3, "10.0.1.2", "11.0.3.254", "")}
	if diff := cmp.Diff(want, c.Nodes, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(paths.Node{}, "Group")); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if n := c.Nodes; n[0].Group != n[1].Group || n[0].Group == n[2].Group || n[2].Group != n[3].Group || c.Self.Name != "node-00000" {
		t.Errorf("groups %q %q %q %q, self %s", n[0].Group, n[1].Group, n[2].Group, n[3].Group, c.Self.Name)
	}
}

// What a node with an uplink in the LAN knows of the others, and they of it.
func TestSurveyOfUplinks(t *testing.T) {
	v := lookAt(t, 2, 3)
	lan, gateway := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.254")
	c := &v.World.Cluster
	c.Nodes[0].PodCIDRs, c.Nodes[1].PodCIDRs = nil, nil
	seen := func(self string, links ...routes.Link) *paths.Cluster {
		t.Helper()
		v.World.Self = self
		v.World.Host.Links = append(v.World.Host.Links[:1], links...)
		v.Survey = policy.NewSurvey(v.World.Cluster)
		v.Plan = v.Survey.Decide(v.World)
		s := surveyOf(v)
		if s == nil {
			t.Fatal("nobody is asked")
		}
		return s
	}
	c.EdgeNodes = []cluster.EdgeNode{{Name: "node-00000", Uplinks: &cluster.Uplinks{Provider: cluster.ProviderStatic, Egress: cluster.EgressUplink, Interfaces: []cluster.Uplink{
		{Name: "eth1", Address: netip.MustParseAddr("10.0.0.21"), Subnet: lan, Gateway: gateway, AnswerARP: true, OnLink: true,
			Addresses: []cluster.AddressRange{{First: netip.MustParseAddr("10.0.0.31"), Last: netip.MustParseAddr("10.0.0.33")}}}}}}}
	eth1 := routes.Link{Name: "eth1", MAC: "02:00:00:00:00:01", Up: true, MTU: 1500}
	far := netip.MustParseAddr("10.9.9.9")

	s := seen("node-00000", eth1)
	if at := s.Nodes[2].Ways; len(at) != 1 || at[0].Via != netip.MustParseAddr("10.0.0.3") { // by the uplink, to the node beside it
		t.Errorf("way to the pod CIDR beside it: %+v", at)
	}
	if at := s.Nodes[3].Ways; len(at) != 1 || at[0] != (paths.Way{}) { // by the uplink's gateway
		t.Errorf("way to the pod CIDR of the other LAN: %+v", at)
	}
	if !slices.Equal(s.Near, []netip.Prefix{lan}) || !slices.Equal(s.LAN, []netip.Prefix{lan}) || s.Link(netip.MustParseAddr("10.0.0.33")) != "eth1" || s.Hides != nil && s.Hides(far) {
		t.Errorf("near %v, link %s", s.Near, s.Link(netip.MustParseAddr("10.0.0.33")))
	}
	if n := s.Nodes; n[0].Group != n[1].Group || n[0].Group == n[2].Group || len(s.Choice.Round(0)) != 5 {
		t.Errorf("groups %q %q %q; asks %v", n[0].Group, n[1].Group, n[2].Group, s.Choice.Round(0))
	}
	c.EdgeNodes[0].Uplinks.Egress, c.EdgeNodes[0].Uplinks.Inside = cluster.EgressNode, []netip.Prefix{netip.MustParsePrefix("10.8.0.0/16")}
	if s = seen("node-00000", eth1); !s.Hides(far) || s.Hides(netip.MustParseAddr("10.8.0.1")) || s.Hides(netip.MustParseAddr("10.0.0.43")) {
		t.Error("egress by the node hides a pod from other destinations, or does not hide it")
	}
	c.EdgeNodes = nil
	v.World.Host.Addrs[0].Prefix = netip.MustParsePrefix("10.0.0.3/24")
	if s = seen("node-00002"); !slices.Equal(s.Near, []netip.Prefix{lan}) || s.Hides != nil {
		t.Errorf("near %v of a node with a pod CIDR", s.Near)
	}
	v.World.Config.SourceNAT.Enabled = true
	if s = seen("node-00002"); !s.Hides(netip.MustParseAddr("10.0.0.33")) || s.Hides(netip.MustParseAddr("11.0.4.254")) {
		t.Error("source NAT hides a pod from the pods of others, or does not hide it from uplinks")
	}
}

// A node of flannel has no canary: nobody asks it. edgewayd itself may run on a Node that flannel's annotations still
// claim, before a pool selects the Node.
func TestNobodyAsksNodesOfFlannel(t *testing.T) {
	v := lookAt(t, 1, 4)
	c := v.World.Cluster
	for i, name := range []string{"4e:2d:f2:44:0a:01", "", "4e:2d:f2:44:0a:03", ""} {
		if name != "" {
			c.Nodes[i].Annotations = cluster.Flannel{Backend: "vxlan", V4: &cluster.FlannelEnd{VNI: 1, MAC: name, Addr: c.Nodes[i].Addresses[0]}}.Annotations()
		}
	}
	none, err := cluster.ParseSelector("pool=edge")
	if err != nil {
		t.Fatal(err)
	}
	c.Pools = []cluster.NetworkPool{{Name: "edge", Selector: none, Mode: cluster.Overlay, VXLAN: cluster.DefaultVXLAN(), Flannel: true}}
	v.World.Cluster = c
	v.Survey = policy.NewSurvey(c)
	v.Plan = v.Survey.Decide(v.World)
	s := surveyOf(v)
	var names []string
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	if diff := cmp.Diff([]string{"node-00000", "node-00001", "node-00003"}, names); diff != "" || s.Self.Name != "node-00000" {
		t.Errorf("self %q; nodes (-want +got):\n%s", s.Self.Name, diff)
	}
}

// BenchmarkSurveyOfPaths is what a look costs. held-B is what the survey holds while the daemon lives.
func BenchmarkSurveyOfPaths(b *testing.B) {
	for _, c := range []struct{ lans, size int }{{2, 5}, {25, 20}, {100, 50}} {
		b.Run(fmt.Sprint(c.lans*c.size), func(b *testing.B) {
			v := lookAt(b, c.lans, c.size)
			before := heap()
			held := surveyOf(v)
			holds := max(0, heap()-before)
			runtime.KeepAlive(held)
			b.ReportAllocs()
			for b.Loop() {
				surveyOf(v)
			}
			b.ReportMetric(float64(holds), "held-B")
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The status names the peers of a tunnel that do not answer, and why. An answer through the tunnel counts more than
// what the kernel found earlier.
func TestUnreachablePeers(t *testing.T) {
	var nodes []cluster.Node
	var found []paths.Finding
	add := func(name, addr string, way paths.Way, canary, host paths.Verdict) {
		nodes = append(nodes, cluster.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(addr)}})
		found = append(found, paths.Finding{Node: paths.Node{Name: name}, Way: way, Canary: canary, Host: host})
	}
	tunnel := paths.Way{Tunnel: true}
	add("well", "10.0.0.2", tunnel, paths.Answers, paths.Answers)
	add("filtered", "10.0.0.3", tunnel, paths.Silent, paths.Answers)
	add("away", "10.0.0.4", tunnel, paths.Silent, paths.Silent)
	add("unsure", "10.0.0.5", tunnel, paths.Unsure, paths.Silent)
	add("native", "10.0.0.6", paths.Way{}, paths.Silent, paths.Silent)
	add("far", "10.0.9.7", tunnel, paths.Unsure, paths.Unsure)
	add("lost", "172.16.0.8", tunnel, paths.Unsure, paths.Unsure)
	router := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("10.0.0.1")}
	hops := map[netip.Addr]routes.Neighbour{}
	for a, hop := range map[string]routes.Neighbour{"10.0.0.2": {Link: "eth0", IP: netip.MustParseAddr("10.0.0.2")}, "10.0.0.4": {Link: "eth0", IP: netip.MustParseAddr("10.0.0.4")}, "10.0.9.7": router, "172.16.0.8": {}} {
		hops[netip.MustParseAddr(a)] = hop
	}
	got := map[string]string{}
	for a, u := range unreachable(nodes, hops, found) {
		if u.Address != a.String() {
			t.Errorf("%v has the address %s", a, u.Address)
		}
		got[u.Node] = u.Why
	}
	want := map[string]string{
		"filtered": "its canary does not answer through the tunnel, while the node answers", "away": "10.0.0.4 does not answer on eth0",
		"far": "the next hop 10.0.0.1 does not answer on eth0", "lost": "no route to 172.16.0.8",
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("(-got +want)\n%s", d)
	}
}

// A key that must be there and is not stops questions and answers, and nothing else.
func TestKeyOfPaths(t *testing.T) {
	for _, c := range []struct {
		name, configured string
		data             map[string][]byte
		got              string // of the problem; "": there is none
	}{
		{name: "none is asked for", data: map[string][]byte{"key": []byte("sixteen bytes...")}},
		{name: "a key", configured: "paths-key", data: map[string][]byte{"key": []byte("sixteen bytes...")}},
		{name: "no Secret", configured: "another", data: map[string][]byte{"key": []byte("sixteen bytes...")}, got: "no such Secret"},
		{name: "a short key", configured: "paths-key", data: map[string][]byte{"key": []byte("secret")}, got: "a value of 6 bytes"},
		{name: "another Secret", configured: "paths-key", data: map[string][]byte{"password": []byte("sixteen bytes...")}, got: "a Secret without that key"},
	} {
		v := lookAt(t, 1, 2)
		v.World.Config.Paths.Secret = c.configured
		v.World.Cluster.Secrets = []cluster.Secret{{Name: "paths-key", Data: c.data}}
		s := surveyOf(v)
		if s.NoKey.Got != c.got || (s.NoKey.Reason == cluster.NoPathsKey) != (c.got != "") {
			t.Errorf("%s: %s", c.name, s.NoKey)
		}
		if c.got != "" && (s.NoKey.Object != "Secret/"+c.configured || s.NoKey.Want == "" || s.NoKey.Next == "") {
			t.Errorf("%s: %s", c.name, s.NoKey)
		}
		if !reflect.ValueOf(s.Key).IsZero() != (c.name == "a key") {
			t.Errorf("%s: it has a key, or has none", c.name)
		}
	}
}
