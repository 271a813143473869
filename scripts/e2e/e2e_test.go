package main

import (
	"net/netip"
	"strings"
	"testing"
)

// An answer from the wrong pod, an answer to a translated address and a missing answer are errors.
func TestSaw(t *testing.T) {
	p := pod{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	for _, c := range []struct{ name, line, err string }{
		{"IPv4", "b 10.0.1.1 b ::ffff:10.0.0.1\n", ""},
		{"IPv6", "b fd00:1::1 b [fd00::1]\n", ""},
		{"itself", "a 10.0.0.1 a 10.0.0.1\n", ""},
		{"another pod", "b 10.0.1.1 c 10.0.0.1\n", `answer "c 10.0.0.1`},
		{"translated", "b 10.0.1.1 b 172.16.0.11\n", `answer "b 172.16.0.11`},
		{"other family", "b 10.0.1.1 b fd00::1\n", `answer "b fd00::1`},
		{"no answer", "b 10.0.1.1 \n", `answer ""`},
		{"no line", "sh: not found\n", "printed"},
	} {
		err := p.saw(c.line)
		if c.err == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.err != "" && (err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), `\n`, ""), c.err)) {
			t.Errorf("%s: %v; want %s", c.name, err, c.err)
		}
	}
}

func TestSameAddrs(t *testing.T) {
	one, two := []netip.Addr{netip.MustParseAddr("10.0.0.1")}, []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	before := []pod{{Name: "a", Node: "n1", Addrs: one}}
	for _, c := range []struct {
		name  string
		after []pod
		same  bool
	}{
		{"same", []pod{{Name: "b", Node: "n1", Addrs: two}, {Name: "a", Node: "n1", Addrs: one, Ready: true}}, true},
		{"other address", []pod{{Name: "a", Node: "n1", Addrs: two}}, false},
		{"other node", []pod{{Name: "a", Node: "n2", Addrs: one}}, false},
		{"gone", []pod{{Name: "b", Node: "n1", Addrs: one}}, false},
	} {
		if err := sameAddrs(before, c.after); (err == nil) != c.same {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
