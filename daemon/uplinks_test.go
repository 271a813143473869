package daemon

import (
	"net/netip"
	"testing"

	"github.com/edgeway-cni/edgeway/routes"
)

// edgewayd status of a node with an uplink ended the daemon: it took the uplink for a tunnel.
func TestUplinkIsNoTunnel(t *testing.T) {
	want := routes.State{
		Links: []routes.Link{{Name: "eth1", Up: true}, {Name: routes.VXLANLink, Kind: "vxlan", VXLAN: &routes.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("10.0.0.11")}}},
		Routes: []routes.Route{{Dst: netip.MustParsePrefix("10.10.2.0/24"), Via: netip.MustParseAddr("10.0.0.12"), Link: "eth0", Protocol: routes.ProtoNode},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.254"), Link: "eth1", Protocol: routes.ProtoNode, Table: routes.UplinkTable([6]byte{5: 1})}},
	}
	if got := tunnelStatus(want, want, nil); len(got) != 1 || got[0].Device != routes.VXLANLink {
		t.Errorf("tunnels %v, want the one", got)
	}
	if got := routeStatus(nil, want.Routes, want); len(got) != 1 || got[0].Dst != "10.10.2.0/24" {
		t.Errorf("routes to other nodes %v, want the one", got)
	}
}
