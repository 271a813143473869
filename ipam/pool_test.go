package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPoolLayout(t *testing.T) {
	for _, test := range []struct {
		name, in string // in: Pool.Sets
		want     string // what the sets lease, or the error
	}{
		{"ranges", `[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64","gateway":"fd00::1"}]]`,
			"[10.1.0.1-10.1.0.254] [fd00::2-fd00::ffff:ffff:ffff:ffff]"},
		{"gateway last", `[[{"subnet":"10.1.0.0/29","gateway":"10.1.0.6"}]]`, "[10.1.0.1-10.1.0.5]"},
		{"part of a subnet", `[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.20"}]]`, "[10.1.0.10-10.1.0.20]"},
		{"two of a set", `[[{"subnet":"10.1.0.0/29"},{"subnet":"10.2.0.0/30"}]]`, "[10.1.0.1-10.1.0.6 10.2.0.1-10.2.0.2]"},
		{"gateway inside", `[[{"subnet":"10.1.0.0/29","gateway":"10.1.0.3"}]]`, "[10.1.0.1-10.1.0.2,10.1.0.4-10.1.0.6]"},
		{"end is broadcast", `[[{"subnet":"10.1.0.0/29","rangeStart":"10.1.0.0","rangeEnd":"10.1.0.7"}]]`, "[10.1.0.1-10.1.0.6]"},
		{"one address", `[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.9"}]]`, "[10.1.0.9-10.1.0.9]"},
		{"whole family", `[[{"subnet":"::/0"}]]`, "[::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"},
		{"v6 last four", `[[{"subnet":"fd00::/126"}]]`, "[fd00::1-fd00::3]"},

		{"host bits", `[[{"subnet":"10.1.0.5/24"}]]`, "pool: set 0: subnet 10.1.0.5/24: invalid: host bits are set; the subnet is 10.1.0.0/24"},
		{"/31", `[[{"subnet":"10.1.0.0/31"}]]`, "pool: set 0: subnet 10.1.0.0/31: invalid: too small to lease from; use at most /30"},
		{"/32", `[[{"subnet":"10.1.0.0/32"}]]`, "pool: set 0: subnet 10.1.0.0/32: invalid: too small to lease from; use at most /30"},
		{"/127", `[[{"subnet":"fd00::/127"}]]`, "pool: set 0: subnet fd00::/127: invalid: too small to lease from; use at most /126"},
		{"/128", `[[{"subnet":"fd00::/128"}]]`, "pool: set 0: subnet fd00::/128: invalid: too small to lease from; use at most /126"},
		{"start outside", `[[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: rangeStart 10.2.0.1 is not in the subnet"},
		{"end outside", `[[{"subnet":"10.1.0.0/24","rangeEnd":"10.2.0.1"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: rangeEnd 10.2.0.1 is not in the subnet"},
		{"end of another family", `[[{"subnet":"10.1.0.0/24","rangeEnd":"fd00::1"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: rangeEnd fd00::1 is not in the subnet"},
		{"gateway outside", `[[{"subnet":"10.1.0.0/24","gateway":"10.2.0.1"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: gateway 10.2.0.1 is not in the subnet"},
		{"start behind end", `[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: rangeStart 10.1.0.9 to rangeEnd 10.1.0.8 has no address that can be leased"},
		{"only the broadcast", `[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.255"}]]`, "pool: set 0: subnet 10.1.0.0/24: invalid: rangeStart 10.1.0.255 to rangeEnd 10.1.0.254 has no address that can be leased"},
		{"two families", `[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]`, "pool: set 0: invalid: 10.1.0.0/24 and fd00::/64 are of different families; give each family a set of its own"},
		{"overlap in a set", `[[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.0/16"}]]`, "pool: set 0: invalid: range 10.1.0.1-10.1.255.254 overlaps 10.1.0.1-10.1.0.254 of subnet 10.1.0.0/24"},
		{"overlapping sets", `[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/25"}]]`, "pool: set 1: invalid: range 10.1.0.1-10.1.0.126 overlaps 10.1.0.1-10.1.0.254 of subnet 10.1.0.0/24"},
		{"mapped", `[[{"subnet":"::ffff:10.1.0.0/120"}]]`, "pool: set 0: subnet ::ffff:10.1.0.0/120: invalid: IPv4-mapped; write the IPv4 subnet"},
		{"no subnet", `[[{"rangeStart":"10.1.0.1"}]]`, "pool: set 0: subnet invalid Prefix: invalid: no subnet; write it as 10.1.0.0/24"},
		{"empty set", `[[]]`, "pool: set 0: invalid: no range; name at least one"},
		{"nothing", `[]`, "pool: invalid: no range set; name at least one range"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var p Pool
			if err := json.Unmarshal([]byte(test.in), &p.Sets); err != nil {
				t.Fatal(err)
			}
			l, err := p.layout()
			if err != nil {
				if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), test.want) {
					t.Fatalf("got  %v\nwant %s", err, test.want)
				}
				return
			}
			if got := layoutString(l); got != test.want {
				t.Fatalf("got  %s\nwant %s", got, test.want)
			}
			// A pool survives being stored.
			data, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var back Pool
			if err := json.Unmarshal(data, &back); err != nil {
				t.Fatal(err)
			}
			again, err := back.layout()
			if err != nil || layoutString(again) != test.want {
				t.Fatal(layoutString(again), err)
			}
		})
	}
}

func layoutString(l layout) string {
	var sets []string
	for _, set := range l {
		var areas []string
		for _, a := range set {
			var spans []string
			for _, s := range a.spans {
				spans = append(spans, s.String())
			}
			areas = append(areas, strings.Join(spans, ","))
		}
		sets = append(sets, "["+strings.Join(areas, " ")+"]")
	}
	return strings.Join(sets, " ")
}

func TestReserved(t *testing.T) {
	p := testPool(t, "10.1.0.0/24")
	p.Reserved = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/26"), netip.MustParsePrefix("10.1.0.32/27"), netip.MustParsePrefix("10.1.0.255/32"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("10.1.0.100/32")}
	l, err := p.layout()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := layoutString(l), "[10.1.0.64-10.1.0.99,10.1.0.101-10.1.0.254]"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	p.Reserved = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s := newStore(t)
	if err := s.SetPool(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Allocate(t.Context(), request("a", "")); !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v, want ErrExhausted", err)
	}
}

func TestSizes(t *testing.T) {
	for _, test := range []struct {
		subnet string
		want   uint64
	}{{"10.1.0.0/24", 254}, {"10.1.0.0/30", 2}, {"0.0.0.0/0", 1<<32 - 2}, {"fd00::/126", 3}, {"fd00::/64", 1 << 62}, {"fd00::/67", 1<<61 - 1}, {"fd00::/66", 1<<62 - 1}, {"::/0", 1 << 62}} {
		s := newStore(t)
		u, err := s.Usage(testPool(t, test.subnet))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Usage{Total: test.want, Free: test.want}, u); d != "" {
			t.Errorf("%s: %s", test.subnet, d)
		}
	}
}

// A pool that changes while leases exist: they stay, and are given to nobody else.
func TestPoolChanges(t *testing.T) {
	s := newStore(t, "10.1.0.0/28")
	want(t, add(t, s, request("a", "a")), "10.1.0.1")
	want(t, add(t, s, request("b", "b")), "10.1.0.2")
	next := testPool(t, "10.2.0.0/28")
	if err := s.SetPool(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	want(t, add(t, s, request("c", "c")), "10.2.0.1")
	u, err := s.Usage(next)
	if d := cmp.Diff(Usage{Total: 14, Used: 1, Free: 13, Outside: 2}, u); err != nil || d != "" {
		t.Fatal(d, err)
	}
	del(t, s, "a")
	want(t, add(t, s, request("a2", "a")), "10.2.0.2") // what it had is outside
	// Back to a wider pool around the first: what is held stays held, what is free remembers.
	wide := testPool(t, "10.1.0.0/24")
	if err := s.SetPool(t.Context(), wide); err != nil {
		t.Fatal(err)
	}
	want(t, add(t, s, request("d", "d")), "10.1.0.3")
	del(t, s, "a2")
	want(t, add(t, s, request("a3", "a")), "10.1.0.1")
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func FuzzPoolLayout(f *testing.F) {
	f.Add([]byte(`[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.5"}],[{"subnet":"fd00::/64"}]]`))
	f.Add([]byte(`[[{"subnet":"0.0.0.0/0","gateway":"1.1.1.1"}]]`))
	f.Add([]byte(`[[{"subnet":"::/0","rangeEnd":"ffff::"}]]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Pool
		if json.Unmarshal(data, &p.Sets) != nil {
			return
		}
		l, err := p.layout()
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, set := range l {
			for _, a := range set {
				for _, s := range a.spans {
					if s.size() == 0 || s.last.Less(s.first) || !a.span.contains(s.first) || !a.span.contains(s.last) {
						t.Fatal(a)
					}
					if got, ok := a.from(s.first); !ok || got != s.first {
						t.Fatal(got, ok)
					}
				}
			}
		}
	})
}

// The log printed the fields of a pool's ranges: "[{Subnet:10.10.0.0/24 First:invalid IP ...}]".
func TestLogNamesThePoolAsSubnets(t *testing.T) {
	sets := []RangeSet{
		{{Subnet: netip.MustParsePrefix("10.10.0.0/24")}, {Subnet: netip.MustParsePrefix("10.11.0.0/24"), First: netip.MustParseAddr("10.11.0.9")}},
		{{Subnet: netip.MustParsePrefix("fd00:10:10::/64")}},
	}
	if got, want := fmt.Sprint(sets), "[10.10.0.0/24, 10.11.0.0/24 (10.11.0.9-10.11.0.254) fd00:10:10::/64]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
