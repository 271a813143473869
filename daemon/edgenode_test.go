package daemon

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/report"
)

// What the EdgeNode says of the node is what edgewayd status says there: without advice, and without what the daemon
// could not know yet.
func TestSelf(t *testing.T) {
	m := newMachine(t)
	m.world.EdgeNodes = []cluster.EdgeNode{{Name: "a", Generation: 3}}
	m.loop.version = "1.4.0"
	v := lookAt(t, 1, 2)
	v.World.Self, v.World.Cluster.EdgeNodes = "a", m.world.EdgeNodes
	canary := []netip.Addr{netip.MustParseAddr("10.10.2.254")}
	finding := func(canaryIs, full, host paths.Verdict) paths.Finding {
		return paths.Finding{Canary: canaryIs, Full: full, Host: host, RTT: 3 * time.Millisecond, Sent: 8, Lost: 2, Said: paths.Answer{Canary: canary}}
	}
	older := finding(paths.Silent, paths.Unsure, paths.Answers)
	older.Said.Canary = nil // an earlier version has no canary
	cut := cluster.Problem{Object: "Node/c", Reason: cluster.PathBlocked}
	o := outcome{
		problems: []cluster.Problem{{Object: "Node/a", Reason: cluster.SingleSpeaker}, cut}, ofPods: []cluster.Problem{{Object: "store", Reason: cluster.PoolFull}},
		sessions: []report.Session{{Resource: "BGPPeer/p"}}, leases: api.Leases{Families: []api.Family{{Family: "IPv6", Used: 1, Free: 2}}},
		paths: paths.Report{Problems: []cluster.Problem{cut}, Findings: []paths.Finding{finding(paths.Answers, paths.Answers, paths.Answers), finding(paths.Answers, paths.Silent, paths.Answers),
			finding(paths.Silent, paths.Silent, paths.Answers), finding(paths.Silent, paths.Unsure, paths.Silent), finding(paths.Unsure, paths.Unsure, paths.Unsure), older}},
	}
	want := report.Node{Generation: 3, Mode: "underlay", Version: "1.4.0", MTU: v.Plan.MTU, Addresses: []report.Addresses{{Family: "IPv6", Used: 1, Free: 2}}, Sessions: o.sessions,
		Paths:    report.Paths{Probed: 6, Reached: 2, Cut: 2, Away: 1, Loss: 0.25, RoundTrip: 3 * time.Millisecond, Problems: []cluster.Problem{cut}},
		Problems: []cluster.Problem{cut, {Object: "store", Reason: cluster.PoolFull}}}
	if diff := cmp.Diff(want, m.loop.self(v, o), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("want (-) and got (+):\n%s", diff)
	}
}
