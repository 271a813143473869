package routes

import (
	"net/netip"
	"runtime"
	"testing"
)

// manyRoutes are n host-gateway routes, each with a gateway of its own.
func manyRoutes(n int) State {
	var s State
	for i := range n {
		dst := netip.AddrFrom4([4]byte{100, 64 + byte(i>>8)>>0, byte(i), 0})
		via := netip.AddrFrom4([4]byte{10, 0, byte(1 + i>>8), byte(i)})
		s.Routes = append(s.Routes, Route{Dst: netip.PrefixFrom(dst, 24), Via: via, Link: "eth0", Protocol: ProtoNode})
	}
	return s
}

func largeSpace(b testing.TB) *space {
	s := newSpace(b)
	lan := newSpace(b)
	_, err := s.k.Sync(b.Context(), Scope{}, State{
		Links: []Link{{Name: "eth0", Kind: "veth", Up: true, Peer: &Peer{Name: "lan0", Netns: lan.f}}},
		Addrs: []Addr{{Link: "eth0", Prefix: pfx("10.0.0.11/16")}},
	})
	if err != nil {
		b.Fatal(err)
	}
	lan.run("ip link set lan0 up")
	return s
}

// Each look at 5,000 routes that were right allocated 4.8 MB.
func TestLookAtManyRoutesAllocatesLittle(t *testing.T) {
	s, want := largeSpace(t), manyRoutes(5000)
	s.sync(nodeScope, want)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const looks = 5
	for range looks {
		s.quiet(nodeScope, want)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / looks; each > 1<<20 {
		t.Errorf("a look allocates %d bytes, want at most 1 MiB", each)
	}
}

func BenchmarkSyncUnchanged5000(b *testing.B) {
	s, want := largeSpace(b), manyRoutes(5000)
	if _, err := s.k.Sync(b.Context(), nodeScope, want); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		changes, err := s.k.Sync(b.Context(), nodeScope, want)
		if err != nil || len(changes) != 0 {
			b.Fatal(len(changes), err)
		}
	}
}

func BenchmarkSyncAdd5000(b *testing.B) {
	want := manyRoutes(5000)
	for range b.N {
		b.StopTimer()
		s := largeSpace(b) // a removal would be in a profile
		b.StartTimer()
		if _, err := s.k.Sync(b.Context(), nodeScope, want); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPod wires and removes one pod, as the plugin does.
func BenchmarkPod(b *testing.B) {
	for _, nodes := range []int{0, 5000} {
		b.Run(map[int]string{0: "alone", 5000: "beside-5000-routes"}[nodes], func(b *testing.B) {
			host := largeSpace(b)
			if _, err := host.k.Sync(b.Context(), nodeScope, manyRoutes(nodes)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.StopTimer()
				pod := newSpace(b)
				pod.k.Close()
				b.StartTimer()
				onHost, inPod := podStates(pod)
				onHost.Sysctls = Refusals(podLink)
				if _, err := host.k.Sync(b.Context(), Scope{}, onHost); err != nil {
					b.Fatal(err)
				}
				k, err := OpenNetns(pod.f)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := k.Sync(b.Context(), Scope{}, inPod); err != nil {
					b.Fatal(err)
				}
				k.Close()
				b.StopTimer()
				if _, err := host.k.Sync(b.Context(), Scope{Links: []string{"ew0123456789a"}}, State{}); err != nil {
					b.Fatal(err)
				}
				pod.k, _ = OpenNetns(pod.f)
				b.StartTimer()
			}
		})
	}
}
