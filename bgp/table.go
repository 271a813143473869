package bgp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// table holds the paths of one session, at most one for each prefix.
type table map[netip.Prefix]Path

// step is one difference between two tables.
type step struct {
	path Path
	was  Path // the previous path of the same prefix; zero if there was none
	gone bool // path is to be withdrawn
}

// steps returns the steps that turn the table into want. It adds a new path. A path with another next hop
// replaces the old path without a withdrawal (RFC 4271, section 3.1). Withdrawals come last.
func (t table) steps(want []Path) []step {
	var out []step
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, p := range slices.SortedFunc(slices.Values(want), Path.Compare) {
		wanted[p.Prefix] = true
		if was := t[p.Prefix]; was != p {
			out = append(out, step{path: p, was: was})
		}
	}
	for _, p := range t.paths() {
		if !wanted[p.Prefix] {
			out = append(out, step{path: p, was: p, gone: true})
		}
	}
	return out
}

func (t table) take(s step) {
	if s.gone {
		delete(t, s.path.Prefix)
	} else {
		t[s.path.Prefix] = s.path
	}
}

// paths returns the table's paths, sorted.
func (t table) paths() []Path { return slices.SortedFunc(maps.Values(t), Path.Compare) }

func (s step) change(to Peer) Change {
	c := Change{Op: "add", Object: fmt.Sprintf("path %s to %s", s.path, to.endpoint())}
	switch {
	case s.gone:
		c.Op = "delete"
	case s.was.Prefix.IsValid():
		c.Op, c.Why = "replace", "was "+strings.TrimPrefix(s.was.String(), s.path.Prefix.String()+" ")
	}
	return c
}
