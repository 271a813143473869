package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

var update = flag.Bool("update", false, "write the golden files")

// TestStatusScreen shows what an operator reads of a speaker with one healthy session, one that
// is down, a route that is missing and a problem.
func TestStatusScreen(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := api.Status{
		Node: "Node-1", Version: "v0.1.0", Started: now.Add(-26 * time.Hour), Now: now, Mode: "underlay",
		Addresses: []string{"10.0.10.11"}, PodCIDRs: []string{"10.10.1.0/24"},
		World: api.World{Source: "manifests /etc/edgeway/cluster.d", ReadAt: now.Add(-90 * time.Second), FromDisk: true, Nodes: 3, Peerings: 1},
		Tunnels: []api.Tunnel{{Device: "edgeway.1", VNI: 1, Port: 8472, Local: "10.0.10.11", MTU: 1450, Peers: 9, State: "installed", SoftChecksums: true, Unreachable: []api.Unreachable{
			{Node: "Node-4", Why: "10.0.20.14 does not answer on eth0"}, {Node: "Node-5", Why: "no route to 10.0.30.15"}, {Node: "Node-6", Why: "neither the node nor its canary answers"}, {Node: "Node-7"}, {Node: "Node-8"}}}},
		Leases: api.Leases{Total: 253, Used: 7, Free: 246, Outside: 1},
		Routes: []api.Route{
			{Dst: "10.10.2.0/24", Via: "10.0.10.12", Dev: "eth0", Node: "Node-2", State: "installed"},
			{Dst: "10.10.3.0/24", Via: "10.0.10.13", Dev: "eth0", Node: "Node-3", State: "foreign"},
		},
		Sessions: []api.Session{
			{Peer: "10.0.10.1", Resource: "BGPPeer/peer-a", PeerASN: 65002, LocalASN: 65010, State: "Established", Since: now.Add(-20 * time.Second),
				Flaps: 3, LastReset: &api.Reset{At: now.Add(-24 * time.Second), Reason: "holdTimer", Detail: "nothing heard from the switch for the hold time: check the link and the switch"},
				Advertised: []api.Path{{Prefix: "10.10.1.0/24", NextHop: "10.0.10.11"}, {Prefix: "10.10.2.0/24", NextHop: "10.0.10.12"}}, GracefulRestart: 600, LongLived: 3 * 86400},
			{Peer: "10.0.10.2", Resource: "BGPPeer/peer-b", PeerASN: 65002, LocalASN: 65010, State: "Active", Since: now.Add(-4 * time.Second), Reason: "refused"},
		},
		Learned: []api.Learned{
			{Dst: "0.0.0.0/0", Via: "10.0.10.1", Dev: "eth0", Switch: "10.0.10.1", State: "installed"},
			{Dst: "10.10.2.0/24", Via: "10.0.10.1", Switch: "10.0.10.1", State: "ignored", Why: "podCIDR"},
			{Dst: "192.168.5.0/24", Via: "10.0.10.2", Dev: "eth0", Switch: "10.0.10.2", Kept: true, State: "missing"},
			{Dst: "192.168.6.0/24", Via: "10.0.10.2", Dev: "eth0", Switch: "10.0.10.2", Kept: true, State: "installed"},
		},
		Problems: []api.Problem{{Object: "BGPPeer/peer-b", Reason: "refused", Want: "an established session with 10.0.10.2", Got: "Active", Next: "start BGP on the switch"}},
		Advice:   []api.Problem{{Object: "BGPPeer/peer-a", Reason: "singleSpeaker", Want: "two speakers", Got: "node-1 alone", Next: "name a second one"}},
	}
	for i := range 20 {
		s.Routes = append(s.Routes, api.Route{Dst: "10.10." + string(rune('a'+i)) + ".0/24", Via: "10.0.10.99", Dev: "eth0", Node: "Node-n", State: "installed"})
	}
	var out bytes.Buffer
	newPage(newScreen(&out, false), false).status(s)
	const golden = "testdata/status.txt"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(out.String(), string(want)); diff != "" {
		t.Errorf("-got +want\n%s", diff)
	}

	out.Reset()
	newPage(newScreen(&out, false), true).status(s)
	if n := strings.Count(out.String(), "Node-n"); n != 20 {
		t.Errorf("--all shows %d of 20 routes", n)
	}
}

// The line of the uplinks has the kubelet's maxPods where it is known, and what it should be where it is too much.
func TestStatusOfUplinks(t *testing.T) {
	for _, tt := range []struct {
		max, most int
		want      string
	}{
		{0, 58, "Uplinks: static, egress by the uplink: 14 addresses in use, 34 free\n"},
		{58, 58, "Uplinks: static, egress by the uplink: 14 addresses in use, 34 free; kubelet maxPods 58\n"},
		{110, 58, "Uplinks: static, egress by the uplink: 14 addresses in use, 34 free; kubelet maxPods 110: set 58 or fewer\n"},
		{110, 0, "Uplinks: static, egress by the uplink: 14 addresses in use, 34 free; kubelet maxPods 110\n"},
	} {
		var out bytes.Buffer
		s := newScreen(&out, false)
		newPage(s, false).uplinks(api.Uplinks{Provider: "static", Egress: "uplink", Used: 14, Free: 34, MaxPods: tt.max, MostPods: tt.most})
		if got, _, _ := strings.Cut(out.String(), "  LINK"); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}
