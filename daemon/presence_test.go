package daemon

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

func TestPresence(t *testing.T) {
	node := func(i byte) routes.Neighbour {
		return routes.Neighbour{Link: "eth0", IP: netip.AddrFrom4([4]byte{192, 0, 2, i})}
	}
	a, b, sw := node(1), node(2), node(254)
	type heard = map[routes.Neighbour]routes.Heard
	all := func(of ...routes.Hearing) heard {
		return heard{a: {Hearing: of[0], MAC: "a"}, b: {Hearing: of[1], MAC: "b"}, sw: {Hearing: of[2]}}
	}
	const yes, no, unsure = routes.Answers, routes.Silent, routes.Unsure

	p := &presence{after: 3 * config.ProbeEvery}
	for i, step := range []struct {
		what   string
		heard  heard
		silent int
	}{
		{"all are there", all(yes, yes, yes), 0},
		{"a misses one", all(no, yes, yes), 0},
		{"a misses two", all(no, yes, yes), 0},
		{"the kernel is still asking: nothing new", heard{a: {Hearing: unsure}, b: {Hearing: yes, MAC: "b"}, sw: {Hearing: yes}}, 0},
		{"a misses three", all(no, yes, yes), 1},
		{"our own link is cut: nothing is concluded", all(no, no, no), 1},
		{"our own link is cut for long", all(no, no, no), 1},
		{"our own link is cut for very long", all(no, no, no), 1},
		{"only the switch answers", all(no, no, yes), 1},
		{"b misses two", all(no, no, yes), 1},
		{"b misses three", all(no, no, yes), 2},
		{"a is back at once", all(yes, no, yes), 1},
		{"b asks for somebody, and is back at once", all(yes, unsure, yes), 0},
		{"b answers nothing again", all(yes, no, yes), 0},
		{"b misses two again", all(yes, no, yes), 0},
		{"b misses three again", all(yes, no, yes), 1},
		{"b is no longer asked for: it left the cluster", heard{a: {Hearing: yes}, sw: {Hearing: yes}}, 0},
	} {
		if got := p.round(slices.Collect(maps.Keys(step.heard)), step.heard, nil); len(got.silent) != step.silent {
			t.Fatalf("round %d, %s: silent %v, want %d", i, step.what, got.silent, step.silent)
		}
	}
	if config.Defaults().BGP.WithdrawAfter < 3*config.ProbeEvery {
		t.Error("a node is withdrawn after fewer than three misses by default")
	}
}

// The speaker's cable to one switch is cut, and its other link still works: no node behind the cable is silent.
func TestOneOfTwoCablesIsCut(t *testing.T) {
	far, near := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.1")}, routes.Neighbour{Link: "eth1", IP: netip.MustParseAddr("198.51.100.1")}
	permanent := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.254")} // Listen returns Unsure for it
	all := []routes.Neighbour{permanent, far, near}
	p := &presence{after: config.ProbeEvery}
	p.round(all, map[routes.Neighbour]routes.Heard{far: {Hearing: routes.Answers, MAC: "far"}, near: {Hearing: routes.Answers, MAC: "near"}}, nil)
	for range 5 {
		got := p.round(all, map[routes.Neighbour]routes.Heard{far: {Hearing: routes.Silent}, near: {Hearing: routes.Answers, MAC: "near"}}, nil)
		if len(got.silent) > 0 {
			t.Fatalf("silent %v", got.silent)
		}
	}
	got := p.round(all, map[routes.Neighbour]routes.Heard{near: {Hearing: routes.Silent}}, nil)
	if len(got.silent) > 0 || len(got.macs) != 2 {
		t.Errorf("silent %v, MACs %v; where nobody answers nothing is forgotten", got.silent, got.macs)
	}
}

// Behind proxy ARP every address answers ARP. A node is silent when the switch says so in three rounds, and comes
// back with its own answer, or when the switch has said nothing for as many rounds.
func TestDeadNodeBehindProxyARP(t *testing.T) {
	sw, a, b := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.254")}, routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.1")},
		routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.2")}
	all := []routes.Neighbour{sw, a, b}
	heard := map[routes.Neighbour]routes.Heard{}
	for _, n := range all {
		heard[n] = routes.Heard{Hearing: routes.Answers, MAC: "sw"}
	}
	if got := sharing(heard); len(got) != 3 {
		t.Fatalf("share a MAC: %v", got)
	}
	heard[b] = routes.Heard{Hearing: routes.Answers, MAC: "b"}
	if got := sharing(heard); len(got) != 2 || slices.Contains(got, b) {
		t.Fatalf("share a MAC: %v", got)
	}
	six := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("fd00::2")} // of the machine b
	if heard[six] = heard[b]; len(sharing(heard)) != 2 {
		t.Fatalf("share a MAC: %v", sharing(heard))
	}
	delete(heard, six)
	heard[b] = heard[a]
	const yes, gone, nothing = routes.Answers, routes.Silent, routes.Unsure
	p := &presence{after: 3 * config.ProbeEvery}
	for i, step := range []struct {
		back   routes.Hearing // of a
		silent bool
	}{
		{nothing, false}, {yes, false}, {gone, false}, {gone, false}, {nothing, false}, {gone, false}, {gone, true}, {gone, true}, {gone, true},
		{nothing, true}, {gone, true}, // the switch does not report each packet
		{yes, false}, {gone, false}, {gone, false}, {gone, true}, {nothing, true}, {nothing, true}, {nothing, false},
	} {
		got := p.round(all, heard, map[routes.Neighbour]routes.Hearing{sw: yes, a: step.back, b: nothing})
		if got.silent[a.IP] != step.silent || len(got.silent) > 1 || len(got.macs) != 3 {
			t.Errorf("round %d: %+v, want silent %v", i, got, step.silent)
		}
	}
}

func TestPresenceTakesTurns(t *testing.T) {
	var all []routes.Neighbour
	for i := range 600 {
		all = append(all, routes.Neighbour{Link: "eth0", IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	p := &presence{after: config.ProbeEvery}
	asked := map[routes.Neighbour]int{}
	for range 3 {
		round := p.next(all)
		if len(round) != probeMost || round[0] != all[0] {
			t.Fatalf("a round asks %d, first %v", len(round), round[0])
		}
		for _, n := range round {
			asked[n]++
		}
	}
	if len(asked) != len(all) {
		t.Errorf("three rounds asked %d of %d", len(asked), len(all))
	}
}

// Packets for a dead node keep coming, so the kernel asks for it again as soon as it has given up, and no look finds that it
// has. The node was not withdrawn. A first question proves nothing, nor does an entry that nobody asks for.
func TestDeadNodeThatPacketsAreSentTo(t *testing.T) {
	n := routes.Neighbour{Link: "eth0", IP: netip.MustParseAddr("192.0.2.1")}
	answers, silent, asking, none := routes.Heard{Hearing: routes.Answers, MAC: "a"}, routes.Heard{Hearing: routes.Silent}, routes.Heard{Asking: true}, routes.Heard{}
	probing := routes.Heard{MAC: "a"}
	for _, tt := range []struct {
		was, is routes.Heard
		want    routes.Hearing
	}{
		{none, asking, routes.Unsure}, {asking, asking, routes.Silent}, {silent, asking, routes.Silent}, {answers, asking, routes.Silent}, {probing, asking, routes.Silent},
		{asking, probing, routes.Unsure}, {asking, answers, routes.Answers}, {asking, none, routes.Unsure}, {answers, probing, routes.Unsure},
	} {
		m, heard := memory{n: tt.was}, map[routes.Neighbour]routes.Heard{n: tt.is}
		if m.settle(heard); heard[n].Hearing != tt.want || m[n] != heard[n] {
			t.Errorf("%+v, then %+v: %v, want %v", tt.was, tt.is, heard[n].Hearing, tt.want)
		}
	}
}
