package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// threeSpeakers is BIRD 2.0.12's output for prefixes that three speakers advertise.
const threeSpeakers = `BIRD 2.0.12 ready.
Table master6:
fd00:10:10:1::/64    unicast [Node-2 03:50:57.764] * (100) [AS65010i]
	via fd00:10::11 on lan
Table master4:
10.10.1.0/24         unicast [Node-2 03:50:57.764] * (100) [AS65010i]
	via 10.0.0.11 on lan
                     unicast [Node-3 03:50:57.800] (100) [AS65010i]
	via 10.0.0.11 on lan
10.10.0.0/24         unicast [Node-1 03:50:57.764] * (100) [AS65010i]
	via 10.0.0.10 on lan
                     unicast [Node-2 03:50:57.800] (100) [AS65010i]
	via 10.0.0.12 on lan
`

func TestHeard(t *testing.T) {
	var got []string
	for _, h := range heard(threeSpeakers) {
		got = append(got, fmt.Sprint(h.prefix, " via ", h.via, " from ", h.from))
	}
	want := []string{
		"10.10.0.0/24 via 10.0.0.10 from [Node-1 Node-2]",
		"10.10.1.0/24 via 10.0.0.11 from [Node-2 Node-3]",
		"fd00:10:10:1::/64 via fd00:10::11 from [Node-2]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestPageKeepsToItsWidth(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var b bytes.Buffer
		p := &page{w: &b, colour: colour}
		p.block(strings.Repeat("word ", 50) + "\n\tindented")
		p.table([][]string{{"A", "B"}, {p.ok(true), "x"}, {p.ok(false), "y"}})
		for line := range strings.Lines(b.String()) {
			if n := visible(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns: %q", n, line)
			}
		}
		if got := strings.Contains(b.String(), "\x1b["); got != colour {
			t.Errorf("colour %v: escape sequences: %v", colour, got)
		}
		if !strings.Contains(b.String(), "word\n            word") {
			t.Errorf("the continuation of a long line is not indented:\n%s", b.String())
		}
	}
}

// Each scenario names only machines that its topology has.
func TestActsFitTheirTopologies(t *testing.T) {
	for _, a := range acts {
		topology, err := a.topology()
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]bool{}
		for _, h := range topology.Hosts {
			have[h.Name] = true
		}
		for _, n := range topology.Nodes {
			have[n.Name] = true
		}
		for _, s := range topology.Switches {
			have[s.Name] = true
		}
		want := []string{a.node}
		for name := range a.expect {
			want = append(want, name)
		}
		for _, g := range a.guests {
			want = append(want, g.machine)
		}
		for _, p := range a.pods {
			want = append(want, p.node)
			have[p.name] = true
		}
		if a.router != "" {
			want = append(want, a.router)
		}
		for _, r := range slices.Concat(a.restart, a.change) {
			want = append(want, r[0], r[1])
		}
		for _, name := range want {
			if !have[name] {
				t.Errorf("%s: no machine %s", a.name, name)
			}
		}
	}
}
