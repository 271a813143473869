package controller

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestFree(t *testing.T) {
	tests := []struct {
		name        string
		taken       []netip.Prefix
		in          string
		bits        int
		start, want string
	}{
		{"nothing taken", nil, "10.10.0.0/16", 24, "10.10.0.0", "10.10.0.0/24"},
		{"from the start on", nil, "10.10.0.0/16", 24, "10.10.7.0", "10.10.7.0/24"},
		{"the start is within a block", nil, "10.10.0.0/16", 24, "10.10.7.1", "10.10.8.0/24"},
		{"wraps", prefixes("10.10.254.0/23"), "10.10.0.0/16", 24, "10.10.254.0", "10.10.0.0/24"},
		{"a start outside", nil, "10.10.0.0/16", 24, "10.11.0.0", "10.10.0.0/24"},
		{"over a large one", prefixes("10.10.0.0/17"), "10.10.0.0/16", 24, "10.10.0.0", "10.10.128.0/24"},
		{"over a single address", prefixes("10.10.0.77/32"), "10.10.0.0/16", 24, "10.10.0.0", "10.10.1.0/24"},
		{"the range is one block", nil, "10.10.0.0/24", 24, "10.10.0.0", "10.10.0.0/24"},
		{"full", prefixes("10.10.0.0/24"), "10.10.0.0/24", 24, "10.10.0.0", ""},
		{"the range lies in what is taken", prefixes("10.0.0.0/8"), "10.10.0.0/16", 24, "10.10.0.0", ""},
		{"the last addresses there are", prefixes("255.255.255.0/24"), "255.255.255.0/24", 26, "255.255.255.0", ""},
		{"IPv6", prefixes("fd00:10::/64"), "fd00:10::/48", 64, "fd00:10::", "fd00:10:0:1::/64"},
		{"more blocks than can be counted", prefixes("fd00::/9"), "fd00::/8", 64, "fd00::", "fd80::/64"},
		{"the other family does not matter", prefixes("0.0.0.0/0"), "fd00:10::/48", 64, "fd00:10::", "fd00:10::/64"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var s space
			for _, p := range test.taken {
				s.take(p)
			}
			var want netip.Prefix
			if test.want != "" {
				want = netip.MustParsePrefix(test.want)
			}
			if got := s.free(netip.MustParsePrefix(test.in), test.bits, netip.MustParseAddr(test.start)); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// A space says the same as looking at each taken prefix, whatever was taken in whatever order.
func TestSpaceIsItsPrefixes(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		random := func() netip.Prefix {
			bits := 8 + r.IntN(25)
			p, _ := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(8)), byte(r.IntN(256))}).Prefix(bits)
			return p
		}
		var s space
		var taken []netip.Prefix
		for range r.IntN(30) {
			p := random()
			if p.Bits() < 16 && r.IntN(20) > 0 { // else everything would be taken
				continue
			}
			s.take(p)
			taken = append(taken, p)
		}
		for range 100 {
			p := random()
			want := false
			for _, other := range taken {
				want = want || other.Overlaps(p)
			}
			if got := s.overlaps(p); got != want {
				t.Fatalf("seed %d: taken %v: overlaps(%v) is %v", seed, taken, p, got)
			}
		}
		in := netip.MustParsePrefix("10.0.0.0/14")
		got := s.free(in, 27, in.Addr())
		want := netip.Prefix{}
		for b := netip.MustParsePrefix("10.0.0.0/27"); in.Contains(b.Addr()); b = next(b) {
			if !s.overlaps(b) {
				want = b
				break
			}
		}
		if got != want {
			t.Fatalf("seed %d: taken %v: free is %v, want %v", seed, taken, got, want)
		}
	}
}
