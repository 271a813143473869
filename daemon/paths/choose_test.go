package paths

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// nodesIn returns nodes in groups of these sizes, sorted by name.
func nodesIn(sizes ...int) (all []Node) {
	for g, size := range sizes {
		for range size {
			n := len(all)
			all = append(all, Node{Name: fmt.Sprintf("node-%05d", n), Group: fmt.Sprintf("lan-%04d", g),
				CIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)}})
		}
	}
	return all
}

// many are n groups of a size.
func many(n, size int) []int { return slices.Repeat([]int{size}, n) }

// Every node is asked from its own group and from another, some node of each group asks some node of each other group
// or is asked by one, and no node asks or is asked much. The log has the packets for docs/paths.md.
func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int
	}{
		{"one node", []int{1}},
		{"two nodes", []int{2}},
		{"10 nodes, two LANs", many(2, 5)},
		{"13 nodes, one LAN", []int{13}},
		{"13 LANs of one node", many(13, 1)},
		{"a large LAN and a small one", []int{60, 2}},
		{"a large LAN and a node", []int{500, 1}},
		{"500 nodes, 25 LANs", many(25, 20)},
		{"500 LANs of one node", many(500, 1)},
		{"5,000 nodes, 100 LANs", many(100, 50)},
		{"5,000 nodes, one LAN", []int{5000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := nodesIn(c.sizes...)
			asked := make([]map[string]bool, len(all)) // by which groups
			pairs := map[[2]string]bool{}
			mostAsks, mostAsked, cycles := 0, 0, 1
			inRound := make([]int, len(all)) // how often a node is asked in the first round
			for i := range asked {
				asked[i] = map[string]bool{}
			}
			surveyed := groupsOf(all)
			for i, n := range all {
				choice := surveyed.choose(n.Name)
				cycles = max(cycles, choice.Cycle())
				for round := range choice.Cycle() {
					chosen := choice.Round(round)
					mostAsks = max(mostAsks, len(chosen))
					if sorted := slices.Sorted(slices.Values(chosen)); len(slices.Compact(sorted)) != len(chosen) || slices.Contains(chosen, i) {
						t.Fatalf("%s asks %v", n.Name, chosen)
					}
					for _, j := range chosen {
						asked[j][n.Group] = true
						pairs[[2]string{n.Group, all[j].Group}] = true
						if round == 0 {
							inRound[j]++
						}
					}
				}
			}
			for _, n := range inRound {
				mostAsked = max(mostAsked, n)
			}
			groups := len(c.sizes)
			for i, by := range asked {
				inside, outside := by[all[i].Group], len(by) > 1 || len(by) == 1 && !by[all[i].Group]
				if c.sizes[group(c.sizes, i)] > 1 && !inside || groups > 1 && !outside {
					t.Fatalf("%s is asked by %v", all[i].Name, by)
				}
			}
			for a := range groups {
				for b := range groups {
					x, y := fmt.Sprintf("lan-%04d", a), fmt.Sprintf("lan-%04d", b)
					if a != b && !pairs[[2]string{x, y}] && !pairs[[2]string{y, x}] {
						t.Fatalf("no node asks between %s and %s", x, y)
					}
				}
			}
			if mostAsks > max(ringNeighbours+windowMost, len(all)-1) || len(all) > 1+ringNeighbours+windowMost && mostAsks > ringNeighbours+windowMost {
				t.Errorf("a node asks %d in a round", mostAsks)
			}
			total := 0
			for _, n := range inRound {
				total += n
			}
			t.Logf("asks in a round: at most %d, on average %.1f; is asked by at most %d; a cycle takes %d rounds", mostAsks, float64(total)/float64(len(all)), mostAsked, cycles)
			if mostAsked > 3*(ringNeighbours+windowMost) {
				t.Errorf("a node is asked by %d others in a round", mostAsked)
			}
		})
	}
}

func group(sizes []int, i int) int {
	for g, size := range sizes {
		if i < size {
			return g
		}
		i -= size
	}
	panic("no such node")
}

// A node without pod CIDRs may have uplinks, which it alone knows.
func TestNodesWithoutPodCIDRsAreAsked(t *testing.T) {
	all := nodesIn(3)
	all[1].CIDRs = nil
	for self, want := range map[string][]int{all[0].Name: {1, 2}, all[1].Name: {0, 2}, "nobody": nil} {
		if chosen := Choose(all, self).Round(0); !slices.Equal(chosen, want) {
			t.Errorf("%s asks %v, want %v", self, chosen, want)
		}
	}
}
