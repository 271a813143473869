package bgp

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	gobgp "github.com/osrg/gobgp/v3/pkg/server"

	api "github.com/osrg/gobgp/v3/api"
)

const (
	// connectRetry is how often a switch is dialled. GoBGP's default of 120 s is also its
	// dial timeout: one lost SYN would cost two minutes.
	connectRetry = 5 * time.Second
	// deferral is how long the first UPDATE after a restart waits for the switch's
	// End-of-RIB (RFC 4724, section 4.1). It is short because our paths do not depend on the
	// switch's. GoBGP takes 0 for 360 s.
	deferral = 5 * time.Second
)

// server is one GoBGP server: one session and one RIB. It never listens. Its calls obey no context, and
// only stop waits for the switch.
type server struct{ bgp *gobgp.BgpServer }

func newServer(j *journal) *server {
	s := &server{gobgp.NewBgpServer(gobgp.LoggerOption(&logger{j}))}
	go s.bgp.Serve()
	return s
}

// start makes the server speak as p's local side, with an empty RIB. An import policy rejects the
// switch's paths. It accepts our own, because GoBGP applies the policy to them too.
func (s *server) start(p Peer) error {
	ctx := context.Background()
	err := s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:        p.LocalASN,
		RouterId:   p.RouterID.String(),
		ListenPort: -1,
		Families:   []uint32{0, 1}, // indexes: IPv4 and IPv6 unicast
	}})
	if err != nil {
		return err
	}
	local := &api.Policy{Name: "local", Statements: []*api.Statement{{
		Name:       "local",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	}}}
	if err := s.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: local}); err != nil {
		return err
	}
	return s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name:          "global",
		Direction:     api.PolicyDirection_IMPORT,
		DefaultAction: api.RouteAction_REJECT,
		Policies:      []*api.Policy{local},
	}})
}

// stop ends the session, with a Cease if it is established.
func (s *server) stop() error {
	return s.bgp.StopBgp(context.Background(), &api.StopBgpRequest{})
}

// open dials the switch. Both restart bits of the graceful restart capability are set: our forwarding
// state has survived, because the routes are in other nodes' kernels.
func (s *server) open(p Peer) error {
	peer := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Address.String(),
			PeerAsn:         p.ASN,
			LocalAsn:        p.LocalASN,
			AuthPassword:    p.Password,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:      uint64(connectRetry / time.Second),
			HoldTime:          uint64(p.HoldTime / time.Second),
			KeepaliveInterval: max(1, uint64(p.HoldTime/time.Second/3)),
		}},
		Transport: &api.Transport{
			LocalAddress: p.LocalAddress.String(),
			RemotePort:   uint32(p.Port),
		},
		AfiSafis: []*api.AfiSafi{afiSafi(ipv4, p), afiSafi(ipv6, p)},
	}
	if p.RestartTime > 0 {
		peer.GracefulRestart = &api.GracefulRestart{
			Enabled:             true,
			RestartTime:         uint32(p.RestartTime / time.Second),
			DeferralTime:        uint32(deferral / time.Second),
			NotificationEnabled: true,
			LocalRestarting:     true,
			LonglivedEnabled:    p.LongLivedTime > 0,
		}
	}
	if p.MultihopTTL > 0 && !p.TTLSecurity {
		peer.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.MultihopTTL)}
	}
	if p.TTLSecurity {
		// The TTL of a packet from n hops away has gone down by n-1 (RFC 5082, section 3).
		peer.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(max(1, p.MultihopTTL))}
	}
	return s.bgp.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peer})
}

// close forgets the switch. It sends a Cease if the session is established, else nothing.
func (s *server) close(p Peer) error {
	return s.bgp.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: p.Address.String()})
}

// add puts the path into the RIB, where it replaces the path of the same prefix. GoBGP keeps the next hop
// of a path that is originated here.
func (s *server) add(path Path) error {
	p, err := apiPath(path)
	if err != nil {
		return err
	}
	_, err = s.bgp.AddPath(context.Background(), &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: p})
	return err
}

// remove takes the path out of the RIB.
func (s *server) remove(path Path) error {
	p, err := apiPath(path)
	if err != nil {
		return err
	}
	return s.bgp.DeletePath(context.Background(), &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: p})
}

// offer is what the switch offers in its OPEN.
type offer struct {
	known      bool // the OPEN has been read
	restart    bool // graceful restart: the switch keeps our paths (RFC 4724)
	restarting bool // the switch has itself just restarted
	longLived  bool // long-lived graceful restart (RFC 9494)
	// notification: the switch also keeps our paths at a NOTIFICATION, except a Hard Reset (RFC 8538)
	notification bool
	ipv4         bool
	ipv6         bool
}

func (o offer) takes(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return o.ipv4
	}
	return o.ipv6
}

// offer reads the capabilities of the established session with p, and counts what it has received.
func (s *server) offer(p Peer) (offer, received, error) {
	var o offer
	var r received
	var inner error
	err := s.bgp.ListPeer(context.Background(), &api.ListPeerRequest{Address: p.Address.String()}, func(peer *api.Peer) {
		caps, err := apiutil.UnmarshalCapabilities(peer.GetState().GetRemoteCap())
		if err != nil {
			inner = err
			return
		}
		o.known = true
		for _, c := range caps {
			switch c := c.(type) {
			case *bgp.CapGracefulRestart:
				o.restart = true
				o.restarting = o.restarting || c.Flags&0x08 != 0     // RFC 4724, section 3
				o.notification = o.notification || c.Flags&0x04 != 0 // RFC 8538, section 2
			case *bgp.CapLongLivedGracefulRestart:
				// Without a tuple the switch helps others (BIRD). With a time of 0 it keeps nothing (FRR
				// without its stale-time, which is the longest that FRR keeps paths).
				o.longLived = len(c.Tuples) == 0 || slices.ContainsFunc(c.Tuples, func(t *bgp.CapLongLivedGracefulRestartTuple) bool { return t.RestartTime > 0 })
			case *bgp.CapMultiProtocol:
				o.ipv4 = o.ipv4 || c.CapValue == bgp.RF_IPv4_UC
				o.ipv6 = o.ipv6 || c.CapValue == bgp.RF_IPv6_UC
			}
		}
		r.updates = peer.GetState().GetMessages().GetReceived().GetUpdate()
		for _, a := range peer.GetAfiSafis() {
			eor := a.GetMpGracefulRestart().GetState().GetEndOfRibReceived()
			if a.GetConfig().GetFamily().GetAfi() == api.Family_AFI_IP {
				r.eor4 = eor
			} else {
				r.eor6 = eor
			}
		}
	})
	return o, r, errors.Join(err, inner)
}

var ( // read only
	ipv4 = &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	ipv6 = &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
)

func afiSafi(f *api.Family, p Peer) *api.AfiSafi {
	return &api.AfiSafi{
		Config:            &api.AfiSafiConfig{Family: f, Enabled: true},
		MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.RestartTime > 0}},
		LongLivedGracefulRestart: &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
			Enabled: p.LongLivedTime > 0, RestartTime: uint32(p.LongLivedTime / time.Second),
		}},
	}
}

func apiPath(p Path) (*api.Path, error) {
	addr, bits, hop := p.Prefix.Addr().String(), uint8(p.Prefix.Bits()), p.NextHop.String()
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if p.MED != 0 {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(p.MED))
	}
	if p.NoLongLived {
		attrs = append(attrs, bgp.NewPathAttributeCommunities([]uint32{uint32(bgp.COMMUNITY_NO_LLGR)}))
	}
	if p.Prefix.Addr().Is4() {
		return apiutil.NewPath(bgp.NewIPAddrPrefix(bits, addr), false, append(attrs, bgp.NewPathAttributeNextHop(hop)), time.Time{})
	}
	nlri := bgp.NewIPv6AddrPrefix(bits, addr)
	reach := bgp.NewPathAttributeMpReachNLRI(hop, []bgp.AddrPrefixInterface{nlri})
	return apiutil.NewPath(nlri, false, append(attrs, reach), time.Time{})
}
