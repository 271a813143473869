package bgp

import (
	"context"
	"fmt"
	"time"

	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	gobgp "github.com/osrg/gobgp/v3/pkg/server"

	api "github.com/osrg/gobgp/v3/api"
)

const (
	// connectRetry is how often a switch is dialled.
	connectRetry = 5 * time.Second
	// deferral is how long GoBGP's first UPDATE waits for an End-of-RIB (RFC 4724, section 4.1), which the relay gives it
	// at once. GoBGP reads 0 as 360 s.
	deferral = 5 * time.Second
)

// server is one GoBGP server: one session and one RIB. It never listens. Its calls obey no context and
// do not wait for the switch.
type server struct{ bgp *gobgp.BgpServer }

func newServer() *server {
	s := &server{gobgp.NewBgpServer(gobgp.LoggerOption(silence{}))}
	go s.bgp.Serve()
	return s
}

// silence is a logger that logs nothing: the relay sees everything that matters. Fatal and Panic end the
// process, as GoBGP expects: they report an impossible state.
type silence struct{}

func (silence) Debug(string, log.Fields)       {}
func (silence) Info(string, log.Fields)        {}
func (silence) Warn(string, log.Fields)        {}
func (silence) Error(string, log.Fields)       {}
func (silence) Fatal(msg string, f log.Fields) { panic(fmt.Sprintf("%s: %v", msg, f["Data"])) }
func (silence) Panic(msg string, f log.Fields) { panic(fmt.Sprintf("%s: %v", msg, f["Data"])) }
func (silence) SetLevel(log.LogLevel)          {}
func (silence) GetLevel() log.LogLevel         { return log.PanicLevel }

// start makes the server act as p's local side, with an empty RIB. An import policy rejects the switch's
// paths. It accepts our own paths, because GoBGP applies the policy to them too.
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

// open adds the switch as a peer: GoBGP connects to the relay's port. Both restart bits of the graceful
// restart capability are set: our forwarding state has survived, because the routes are in other nodes'
// kernels.
func (s *server) open(p Peer, port uint16) error {
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: loopback.String(), PeerAsn: p.ASN, LocalAsn: p.LocalASN},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:      uint64(connectRetry / time.Second),
			HoldTime:          uint64(p.HoldTime / time.Second),
			KeepaliveInterval: max(1, uint64(p.HoldTime/time.Second/3)),
		}},
		Transport: &api.Transport{LocalAddress: loopback.String(), RemotePort: uint32(port)},
		AfiSafis:  []*api.AfiSafi{afiSafi(ipv4, p), afiSafi(ipv6, p)},
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
	if err := s.bgp.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peer}); err != nil {
		return fmt.Errorf("add the peer to GoBGP: %w", err)
	}
	return nil
}

func (s *server) close() error {
	if err := s.bgp.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: loopback.String()}); err != nil {
		return fmt.Errorf("delete the peer from GoBGP: %w", err)
	}
	return nil
}

// add puts the path into the RIB, where it replaces the path of the same prefix. GoBGP keeps the next hop
// of a path that originates here.
func (s *server) add(path Path) error {
	p, err := apiPath(path)
	if err != nil {
		return err
	}
	_, err = s.bgp.AddPath(context.Background(), &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: p})
	return err
}

func (s *server) remove(path Path) error {
	p, err := apiPath(path)
	if err != nil {
		return err
	}
	return s.bgp.DeletePath(context.Background(), &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: p})
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
