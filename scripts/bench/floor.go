package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/edgeway-cni/edgeway/routes"
)

// floor does only the kernel's part of a verb: the netlink requests of edgeway's ADD and DEL, from a process that
// runs already. It has no plugin, daemon or store.
type floor struct {
	host      *routes.Kernel
	deletions *routes.Deletions
}

func newFloor(c *contender) (*floor, error) {
	host, err := routes.OpenNetns(c.host.File)
	if err != nil {
		return nil, err
	}
	deletions, err := routes.OpenDeletions(c.host.File)
	if err != nil {
		host.Close()
		return nil, err
	}
	return &floor{host, deletions}, nil
}

func (f *floor) close() {
	f.deletions.Close()
	f.host.Close()
}

func (f *floor) call(ctx context.Context, in invocation) (took time.Duration, err error) {
	var n int
	if _, err := fmt.Sscanf(in.id[len(in.id)-8:], "%x", &n); err != nil {
		return 0, err
	}
	link := fmt.Sprintf("ew%d", n)
	start := time.Now()
	if in.verb == "DEL" {
		_, err = f.deletions.Delete(ctx, link)
	} else {
		err = f.wire(ctx, in, link, netip.AddrFrom4([4]byte{10, 99, byte(n >> 8), byte(n)}))
	}
	return time.Since(start), err
}

// wire makes the pair, addresses, routes and neighbours of an IPv4 pod, as package plugin does.
func (f *floor) wire(ctx context.Context, in invocation, link string, addr netip.Addr) error {
	const hostMAC, podMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	gateway, self := netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 1, 1}), 32), netip.PrefixFrom(addr, 32)
	pair := routes.Link{Name: link, Kind: "veth", MAC: hostMAC, MTU: 1500, Up: true, Alias: in.id,
		Peer: &routes.Peer{Name: "eth0", MAC: podMAC, MTU: 1500, Netns: in.pod.File}}
	peer, err := f.host.MakePair(ctx, pair, nil, func([]routes.Route, bool) (routes.State, error) {
		return routes.State{
			Links:  []routes.Link{pair},
			Addrs:  []routes.Addr{{Link: link, Prefix: gateway, HostScope: true}},
			Routes: []routes.Route{{Dst: self, Link: link, Protocol: routes.ProtoPod}},
			Neighs: []routes.Neigh{{Link: link, IP: addr, MAC: podMAC, Learns: true}},
		}, nil
	})
	if err != nil {
		return err
	}
	pod, err := routes.OpenNetns(in.pod.File)
	if err != nil {
		return err
	}
	defer pod.Close()
	return pod.Fill(ctx, peer, routes.State{
		Links:  []routes.Link{{Name: "eth0", MAC: podMAC, MTU: 1500, Up: true}},
		Addrs:  []routes.Addr{{Link: "eth0", Prefix: self}},
		Neighs: []routes.Neigh{{Link: "eth0", IP: gateway.Addr(), MAC: hostMAC}},
		Routes: []routes.Route{{Dst: gateway, Link: "eth0", Protocol: routes.ProtoPod},
			{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gateway.Addr(), Link: "eth0", Protocol: routes.ProtoPod}},
	})
}
