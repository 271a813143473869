package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pairOf returns the host's and the pod's State of a pair, as the plugin desires them.
func pairOf(pod *space) (host, inside State) {
	const hostMAC, podMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	host = State{
		Links:   []Link{{Name: "ew1", Kind: "veth", MAC: hostMAC, MTU: 1400, Up: true, Alias: "pod one", Peer: &Peer{Name: "eth0", MAC: podMAC, MTU: 1400, Netns: pod.f}}},
		Sysctls: append([]Sysctl{{v4Forwarding, "1"}, {v6Forwarding, "1"}}, Refusals("ew1")...),
		Addrs:   []Addr{{Link: "ew1", Prefix: pfx("169.254.1.1/32"), HostScope: true}, {Link: "ew1", Prefix: pfx("fe80::1/128")}},
		Routes:  []Route{{Dst: pfx("10.9.0.1/32"), Link: "ew1", Protocol: ProtoPod}, {Dst: pfx("fd00:9::1/128"), Link: "ew1", Protocol: ProtoPod}},
		Neighs:  []Neigh{{Link: "ew1", IP: addr("10.9.0.1"), MAC: podMAC, Learns: true}, {Link: "ew1", IP: addr("fd00:9::1"), MAC: podMAC, Learns: true}},
	}
	inside = State{
		Links:   []Link{{Name: "eth0", MAC: podMAC, MTU: 1400, Up: true}},
		Sysctls: []Sysctl{{"net/ipv4/conf/eth0/arp_notify", "1"}, {"net/ipv6/conf/eth0/accept_dad", "0"}},
		Addrs:   []Addr{{Link: "eth0", Prefix: pfx("10.9.0.1/32")}, {Link: "eth0", Prefix: pfx("fd00:9::1/128")}},
		Neighs:  []Neigh{{Link: "eth0", IP: addr("169.254.1.1"), MAC: hostMAC}, {Link: "eth0", IP: addr("fe80::1"), MAC: hostMAC}},
		Routes: []Route{
			{Dst: pfx("169.254.1.1/32"), Link: "eth0", Protocol: ProtoPod}, {Dst: pfx("0.0.0.0/0"), Via: addr("169.254.1.1"), Link: "eth0", Protocol: ProtoPod},
			{Dst: pfx("::/0"), Via: addr("fe80::1"), Link: "eth0", Protocol: ProtoPod},
		},
	}
	return host, inside
}

func as(s State) func([]Route, bool) (State, error) {
	return func([]Route, bool) (State, error) { return s, nil }
}

// before reports whether the kernel is older than Linux major.minor.
func before(t *testing.T, k *Kernel, major, minor int) bool {
	h, err := k.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var have, less int
	if _, err := fmt.Sscanf(h.Kernel, "%d.%d", &have, &less); err != nil {
		t.Fatalf("kernel %q: %v", h.Kernel, err)
	}
	return have < major || have == major && less < minor
}

// MakePair and Fill make the same objects as Sync: a Sync afterwards changes nothing. On a busy machine the kernel
// may notice late that the new link had no carrier, and forget the neighbours (net/core/link_watch.c). It asks for
// them then.
func TestPairIsWhatSyncMakes(t *testing.T) {
	same := 0
	for range 10 {
		s, pod := newSpace(t), newSpace(t)
		host, inside := pairOf(pod)
		peer, err := s.k.MakePair(t.Context(), host.Links[0], nil, as(host))
		if err != nil || peer < 2 && !before(t, s.k, 6, 2) {
			t.Fatalf("peer %d, %v", peer, err)
		}
		if peer == 0 {
			t.Skip("the kernel does not report the index of the peer before Linux 6.2")
		}
		if err := pod.k.Fill(t.Context(), peer, inside); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(pod.k.Settle("eth0"), s.k.Settle("ew1")); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		pod.k.AwaitLocal(t.Context(), []netip.Addr{addr("10.9.0.1"), addr("fd00:9::1")})
		waited := time.Since(begin)
		if out := pod.run("ip -6 route show table local"); !strings.Contains(out, "local fd00:9::1") && waited < localTimeout {
			t.Errorf("no local route after a wait of %v: %s", waited, out)
		}
		for _, end := range []struct {
			k    *Kernel
			want State
		}{{s.k, host}, {pod.k, inside}} {
			changes, err := end.k.Sync(t.Context(), Scope{}, end.want)
			if len(changes) == 0 {
				same++
			}
			changes = slices.DeleteFunc(changes, func(c Change) bool {
				n, ok := c.Object.(Neigh)
				return ok && n.Learns && c.Op == Add
			})
			if err != nil || len(changes) > 0 {
				t.Errorf("Sync changes %v, %v; want no changes", changes, err)
			}
		}
		s.run("ip addr add 192.0.2.1/32 dev lo")
		s.run("ping -c1 -W5 10.9.0.1")
	}
	if same <= 10 { // one end of each pair has no neighbour that the kernel may forget
		t.Error("no Sync of a host's end changes nothing")
	}
}

func TestPairIsRefused(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	host, _ := pairOf(pod)
	pod.run("ip link add eth0 type veth peer name other")
	if _, err := s.k.MakePair(t.Context(), host.Links[0], nil, as(host)); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the pod already has a link eth0: got %v, want EEXIST", err)
	}
	pod.run("ip link del eth0")
	s.run("ip route add blackhole 10.9.0.1")
	if _, err := s.k.MakePair(t.Context(), host.Links[0], nil, as(host)); !errors.Is(err, ErrForeign) {
		t.Errorf("another owner has a route of the pod's address: got %v, want ErrForeign", err)
	}
}

// MakePair asks who has the addresses before it makes the link, and gets the same answer as Holders.
func TestPairAsksForHolders(t *testing.T) {
	for _, setup := range []string{"", "ip addr add 10.0.0.1/24 dev lo", "ip route add 10.9.0.1 dev lan0", "ip neigh add 10.9.0.1 dev lan0 lladdr 02:00:00:00:00:01 nud permanent"} {
		s, pod := newSpace(t), newSpace(t)
		for _, line := range []string{"ip link set lo up", "ip link add lan0 type veth peer name lan1", "ip link set lan0 up", "ip link set lan1 up", "ip addr add 10.9.0.200/24 dev lan0", setup} {
			if line != "" {
				s.run(line)
			}
		}
		host, _ := pairOf(pod)
		addrs := []netip.Addr{addr("10.9.0.1"), addr("fd00:9::1")}
		want, sourceless, err := s.k.Holders(t.Context(), addrs...)
		if err != nil {
			t.Fatal(err)
		}
		refuse := errors.New("refused")
		_, err = s.k.MakePair(t.Context(), host.Links[0], addrs, func(held []Route, none bool) (State, error) {
			if diff := cmp.Diff(routeTexts(want), routeTexts(held)); diff != "" || none != sourceless {
				t.Errorf("%s: sourceless %v, want %v (-want +got):\n%s", setup, none, sourceless, diff)
			}
			return State{}, refuse
		})
		if !errors.Is(err, refuse) {
			t.Errorf("%s: got %v", setup, err)
		}
		if out := s.run("ip addr show dev ew1"); strings.Contains(out, "inet") || strings.Contains(out, ",UP") {
			t.Errorf("%s: a refused link is furnished: %s", setup, out)
		}
	}
}

func routeTexts(routes []Route) (out []string) {
	for _, r := range routes {
		out = append(out, r.String())
	}
	return out
}
