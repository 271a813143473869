package daemon

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

// The status of a resource names each switch that the resource gives this node, also a switch that it shares
// with another resource, and a switch with which no session is tried.
func TestReports(t *testing.T) {
	all, err := cluster.ParseSelector("all()")
	if err != nil {
		t.Fatal(err)
	}
	first, err := cluster.ParseSelector("ASN=65010")
	if err != nil {
		t.Fatal(err)
	}
	addr, since := netip.MustParseAddr, time.Unix(1e9, 0)
	peer := func(a string) cluster.Peer { return cluster.Peer{Address: addr(a), ASN: 65001} }
	locked := peer("10.0.0.2")
	locked.Name, locked.Password = "leaf-2", &cluster.SecretKey{Name: "bgp", Key: "password"}
	other := peer("10.0.0.1")
	other.ASN = 65002
	c := config.Defaults()
	w := policy.World{Self: "n1", Config: c, Cluster: cluster.World{
		Nodes: []cluster.Node{
			{Name: "n1", Labels: map[string]string{"ASN": "65010"}, Addresses: []netip.Addr{addr("10.0.0.11")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24")}},
			{Name: "n2", Addresses: []netip.Addr{addr("10.0.0.12")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.2.0/24")}},
		},
		Peerings: []cluster.Peering{
			{Kind: "BGPPeer", Name: "every", LocalASN: 65010, Selector: all, Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{peer("10.0.0.1")}}}},
			{Kind: "BGPPeer", Name: "one", LocalASN: 65010, Selector: first, Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{peer("10.0.0.1")}}}},
			{Kind: "BGPPeer", Name: "wrong", LocalASN: 65010, Selector: first, Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{other}}}},
			{Kind: "BGPPeer", Name: "foreign", LocalASN: 65010, Selector: all, Speakers: []cluster.Speaker{{Node: "n2", Peers: []cluster.Peer{peer("10.0.0.1")}}}},
			{Kind: "BGPClusterConfig", Name: "c", LocalASN: 65010, Selector: all, Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{locked}}}},
		},
	}}
	inside := peer("10.0.0.3")
	inside.ASN, inside.MultihopTTL = 65010, 3 // an internal session has no hop limit
	w.Cluster.Peerings = append(w.Cluster.Peerings, cluster.Peering{Kind: "BGPPeer", Name: "inside", LocalASN: 65010, Selector: all,
		Speakers: []cluster.Speaker{{Node: "n1", Peers: []cluster.Peer{inside}}}})
	nobody := cluster.Peering{Kind: "BGPPeer", Name: "nobody", LocalASN: 65010, Selector: all, Speakers: []cluster.Speaker{{Node: "N2", Peers: []cluster.Peer{peer("10.0.0.4")}}}}
	w.Cluster.Peerings = append(w.Cluster.Peerings, nobody)
	plan := policy.Decide(w)
	state := plan.BGP
	if len(state.Sessions) != 2 {
		t.Fatalf("%d sessions", len(state.Sessions))
	}
	sessions := []bgp.Status{{Peer: state.Sessions[0].Peer, State: "Established", Since: since, Advertised: state.Sessions[0].Paths,
		Restart: true, RestartTime: 10 * time.Minute}, {Peer: state.Sessions[1].Peer, State: "Established", Since: since}}
	sessions[1].Peer.MultihopTTL = 0 // as package bgp has it
	got := reports(plan, sessions)
	up := report.Session{Peer: addr("10.0.0.1"), Port: 179, PeerASN: 65001, State: "Established", Since: since, Advertised: 2, RestartTime: 10 * time.Minute}
	want := []report.Session{up, up,
		{Resource: "BGPPeer/wrong", Peer: addr("10.0.0.1"), Port: 179, PeerASN: 65002, State: "Idle", Reason: "conflict",
			Message: "want the same ASNs, password and options as BGPPeer/every has for 10.0.0.1, got other values; make the two resources agree; BGPPeer/every is used"},
		{Resource: "BGPClusterConfig/c", Peer: addr("10.0.0.2"), Port: 179, PeerName: "leaf-2", PeerASN: 65001, State: "Idle", Reason: "noPassword",
			Message: "want Secret kube-system/bgp with key password, got no such Secret; set it; the session with 10.0.0.2 is held down until then"},
		{Resource: "BGPPeer/inside", Peer: addr("10.0.0.3"), Port: 179, PeerASN: 65010, State: "Established", Since: since},
		// No speaker of the resource is a Node: the first node that it selects says so, and says what was meant.
		{Resource: "BGPPeer/nobody", Peer: addr("10.0.0.4"), Port: 179, PeerASN: 65001, State: "Idle", Reason: "noSuchSpeaker",
			Message: "want speakers that are Nodes, got N2, where Node/n2 differs in upper and lower case; name the speaker n2"},
	}
	want[0].Resource, want[1].Resource, want[1].Advertised = "BGPPeer/every", "BGPPeer/one", 1
	// A session is held since the first look that found it so.
	now := since.Add(time.Hour)
	held := sinceHeld(nil, got, now)
	got = reports(plan, sessions)
	sinceHeld(held, got, now.Add(time.Minute))
	want[2].Since, want[3].Since, want[5].Since = now, now, now
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("want (-) and got (+):\n%s", d)
	}
	w.Self = "n2"
	if got := policy.Decide(w).Unspoken; len(got) != 0 {
		t.Errorf("a second node speaks of the resource without a speaker: %v", got)
	}
}

// A part that a session lacks is a problem. A session that runs on earlier settings is a problem, too, and not
// what the resource asks for.
func TestRefusedSettings(t *testing.T) {
	at := time.Unix(1e9, 0)
	key := bgp.Key{Address: netip.MustParseAddr("10.0.0.1"), Port: 179, LocalASN: 65010}
	st := bgp.Status{Peer: bgp.Peer{Name: "BGPPeer/peer", Address: key.Address, ASN: 64999, LocalASN: 65010}, State: "Established", Since: at.Add(-time.Hour),
		Refused: bgp.Reset{At: at, Reason: "asnMismatch", Detail: "as 64999, was 65001: the switch has AS number 65001, not 64999"}}
	lame := bgp.Status{State: "Established", Lacks: []bgp.Lack{{Reason: "noGracefulRestart", Detail: "enable graceful restart there"}}}
	if got := lacks([]bgp.Status{lame}); len(got) != 1 || got[0].Reason != "noGracefulRestart" || got[0].Next != "enable graceful restart there" {
		t.Errorf("problems %+v", got)
	}
	problems := sessionProblems([]bgp.Status{st})
	if len(problems) != 1 || problems[0].Reason != "settingsRefused" || !strings.Contains(problems[0].Got, "the switch has AS number 65001") {
		t.Errorf("problems %+v", problems)
	}
	got := sessionReport(policy.Session{Resource: "BGPPeer/peer", Peer: cluster.Peer{Address: key.Address, ASN: 64999}, Key: key}, []bgp.Status{st})
	if got.Established() || got.Reason != "settingsRefused" || !got.Since.Equal(at) {
		t.Errorf("report %+v", got)
	}
	if s := sessionStatus([]bgp.Status{st}); s[0].Refused == nil || s[0].State != "Established" {
		t.Errorf("status %+v", s[0])
	}
}
