package paths

import (
	"cmp"
	"hash/fnv"
	"slices"
)

const (
	// ringNeighbours is how many nodes of its own group a node asks in each round. So each node of a group is asked by
	// that many others.
	ringNeighbours = 3
	// windowMost bounds the nodes of other groups that a node asks in one round. Where it has more, the rounds take
	// turns.
	windowMost = 8
	// suspectsMost bounds the nodes that are asked again in the next round because they did not answer.
	suspectsMost = 8
)

// groups are the nodes by group.
type groups struct {
	all   []Node
	of    map[string][]int // indexes into all
	names []string         // sorted
}

func groupsOf(all []Node) *groups {
	g := &groups{all: all, of: map[string][]int{}}
	for i, n := range all {
		g.of[n.Group] = append(g.of[n.Group], i)
	}
	for name := range g.of {
		g.names = append(g.names, name)
	}
	slices.Sort(g.names)
	return g
}

// Choice are the nodes that one node asks: indexes into the nodes of the cluster.
type Choice struct {
	self  string
	Own   []int // in each round
	Share []int // in turns
}

// Choose returns the nodes that self asks, of all nodes sorted by name. It is a function of the cluster state alone, so
// that nodes need not agree with each other.
//
// In a cluster of a dozen nodes every node asks all others. In a larger cluster a node asks the next nodes of its own
// group in the order of names, as in a ring. Of the other groups it has a share: of the next group in the ring of
// groups, the nodes whose rank equals its own modulo the size of its group, so that every node is asked from outside
// of its group; of each further group one node, if the rank of that group falls to it, so that some node of each
// group asks some node of each other group.
func Choose(all []Node, self string) Choice { return groupsOf(all).choose(self) }

func (g *groups) choose(self string) Choice {
	c := Choice{self: self}
	me, found := slices.BinarySearchFunc(g.all, self, func(n Node, name string) int { return cmp.Compare(n.Name, name) })
	if !found {
		return c
	}
	if len(g.all) <= 1+ringNeighbours+windowMost {
		for i := range g.all {
			if i != me {
				c.Own = append(c.Own, i)
			}
		}
		return c
	}
	mine := g.of[g.all[me].Group]
	rank, _ := slices.BinarySearch(mine, me)
	for k := 1; k <= min(ringNeighbours, len(mine)-1); k++ {
		c.Own = append(c.Own, mine[(rank+k)%len(mine)])
	}
	here, _ := slices.BinarySearch(g.names, g.all[me].Group)
	for d := 1; d < len(g.names); d++ {
		theirs := g.of[g.names[(here+d)%len(g.names)]]
		switch {
		case d == 1:
			for j := rank; j < len(theirs); j += len(mine) {
				c.Share = append(c.Share, theirs[j])
			}
		case d%len(mine) == rank:
			c.Share = append(c.Share, theirs[d%len(theirs)])
		}
	}
	return c
}

// Round returns the nodes of one round: all of Own, and the next of Share. Nodes begin at different places.
func (c Choice) Round(round int) []int {
	out := slices.Clone(c.Own)
	if len(c.Share) <= windowMost {
		return append(out, c.Share...)
	}
	h := fnv.New32a()
	h.Write([]byte(c.self)) // never fails
	start := int(h.Sum32()%uint32(len(c.Share))) + round*windowMost
	for i := range windowMost {
		out = append(out, c.Share[(start+i)%len(c.Share)])
	}
	return out
}

// Cycle is the number of rounds in which every node of Share is asked.
func (c Choice) Cycle() int { return max(1, (len(c.Share)+windowMost-1)/windowMost) }
