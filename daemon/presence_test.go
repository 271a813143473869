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
	type heard = map[routes.Neighbour]routes.Hearing
	all := func(of ...routes.Hearing) heard { return heard{a: of[0], b: of[1], sw: of[2]} }
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
		{"the kernel is still asking: nothing new", all(unsure, yes, yes), 0},
		{"a misses three", all(no, yes, yes), 1},
		{"our own link is cut: nothing is concluded", all(no, no, no), 1},
		{"our own link is cut for long", all(no, no, no), 1},
		{"our own link is cut for very long", all(no, no, no), 1},
		{"only the switch answers", all(no, no, yes), 1},
		{"b misses two", all(no, no, yes), 1},
		{"b misses three", all(no, no, yes), 2},
		{"a is back at once", all(yes, no, yes), 1},
		{"b is no longer asked for: it left the cluster", heard{a: yes, sw: yes}, 0},
	} {
		if got := p.round(slices.Collect(maps.Keys(step.heard)), step.heard); len(got) != step.silent {
			t.Fatalf("round %d, %s: silent %v, want %d", i, step.what, got, step.silent)
		}
	}
	if config.Defaults().BGP.WithdrawAfter < 3*config.ProbeEvery {
		t.Error("a node is withdrawn after fewer than three misses by default")
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
