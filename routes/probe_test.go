package routes

import (
	"net/netip"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// A machine that disappears without notice is Silent within two rounds of probes. A machine that stays keeps
// answering. A machine that never existed is Silent too.
func TestListen(t *testing.T) {
	here, there := newSpace(t), newSpace(t)
	link(t, here, there)
	gone := []Neighbour{{"eth0", addr("192.0.2.2")}, {"eth0", addr("fd00::2")}}
	never := Neighbour{"eth0", addr("192.0.2.77")}
	stays := Neighbour{"eth0", addr("192.0.2.3")}
	all := append([]Neighbour{never, stays}, gone...)

	until := func(what string, want map[Neighbour]Hearing) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			heard, err := here.k.Listen(t.Context(), all)
			if err != nil {
				t.Fatal(err)
			}
			wrong := 0
			for n, h := range want {
				if heard[n].Hearing != h {
					wrong++
				}
			}
			if wrong == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: heard %v, want %v", what, heard, want)
			}
			<-time.After(3500 * time.Millisecond) // the kernel's three probes are a second apart
		}
	}
	until("all addresses that exist answer", map[Neighbour]Hearing{gone[0]: Answers, gone[1]: Answers, stays: Answers, never: Silent})
	there.run("ip addr del 192.0.2.2/32 dev eth0")
	there.run("ip addr del fd00::2/64 dev eth0")
	until("two addresses are gone", map[Neighbour]Hearing{gone[0]: Silent, gone[1]: Silent, stays: Answers})
	there.run("ip addr add 192.0.2.2/32 dev eth0")
	until("one address is back", map[Neighbour]Hearing{gone[0]: Answers, gone[1]: Silent, stays: Answers})
	heard, err := here.k.Listen(t.Context(), all)
	if err != nil || heard[stays].MAC == "" || heard[gone[0]].MAC != heard[stays].MAC {
		t.Errorf("heard %v, %v; want one MAC for both addresses of a machine", heard, err)
	}
	// A permanent entry of an operator is neither an answer nor silence.
	here.run("ip neigh replace 192.0.2.3 lladdr 02:00:00:00:00:03 dev eth0 nud permanent")
	until("a permanent entry", map[Neighbour]Hearing{gone[0]: Answers, stays: Unsure})
}

// link joins two namespaces with eth0 on both sides: 192.0.2.1, fd00::1 here, .2, .3 and ::2 there.
func link(t *testing.T, here, there *space) {
	t.Helper()
	state := State{Links: []Link{{Name: "eth0", Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: there.f}}},
		Addrs: []Addr{{Link: "eth0", Prefix: pfx("192.0.2.1/24")}, {Link: "eth0", Prefix: pfx("fd00::1/64")}}}
	if _, err := here.k.Sync(t.Context(), Scope{}, state); err != nil {
		t.Fatal(err)
	}
	there.run("ip link set eth0 up")
	for _, a := range []string{"192.0.2.3/24", "192.0.2.2/32"} {
		there.run("ip addr add " + a + " dev eth0")
	}
	there.run("ip addr add fd00::2/64 dev eth0 nodad")
}

// TestUnanswered: the kernel knows of next hops that do not answer, once it has something to send, and of addresses
// without a route.
func TestUnanswered(t *testing.T) {
	here, there := newSpace(t), newSpace(t)
	link(t, here, there)
	here.run("ip route add 198.51.100.0/24 via 192.0.2.77")
	here.run("ip route add 203.0.113.0/24 via 192.0.2.2")
	here.run("ip route add unreachable 10.9.0.0/16")
	all := []netip.Addr{addr("192.0.2.2"), addr("203.0.113.5"), addr("192.0.2.78"), addr("198.51.100.5"), addr("10.9.0.1"), addr("172.16.0.1"), addr("fd00::2"), addr("fd00::78")}
	want := map[netip.Addr]Neighbour{
		addr("192.0.2.78"): {"eth0", addr("192.0.2.78")}, addr("198.51.100.5"): {"eth0", addr("192.0.2.77")}, addr("fd00::78"): {"eth0", addr("fd00::78")},
		addr("10.9.0.1"): {}, addr("172.16.0.1"): {},
	}
	quiet, err := here.k.Unanswered(t.Context(), all)
	if err != nil || len(quiet) != 2 {
		t.Errorf("before anything was sent: %v, %v; want the addresses without a route", quiet, err)
	}
	var got map[netip.Addr]Neighbour
	for _, a := range all {
		out := here.listen(netip.AddrPort{})
		defer out.Close()
		_, _ = out.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(a, 9))
	}
	eventually(t, "the kernel has given up", func() bool {
		got, err = here.k.Unanswered(t.Context(), all)
		return err != nil || len(got) == len(want)
	})
	if d := gocmp.Diff(got, want, netipComparer()); d != "" || err != nil {
		t.Errorf("%v (-got +want)\n%s", err, d)
	}
}
