package cluster

import (
	"fmt"
	"slices"
	"testing"
)

// Members says of all nodes and selectors what Selects says of each pair.
func TestMembers(t *testing.T) {
	var nodes []Node
	for i := range 60 {
		n := Node{Name: fmt.Sprint("n", i), Labels: map[string]string{"shop": fmt.Sprint("s", i/5)}}
		if i%3 == 0 {
			n.Labels["pool"] = fmt.Sprint("p", i%2)
		}
		if i%7 == 0 {
			n.Labels = nil
		}
		nodes = append(nodes, n)
	}
	selectors := []Selector{{}}
	for _, text := range []string{"all()", "shop=s1", "shop==s2", "shop in (s3,s1,none)", "shop=none", "none=x", "shop!=s1", "pool", "!pool", "shop notin (s1),pool=p0",
		"pool in (p1,p0),shop=s3", "shop=s1,shop=s2", "pool=p0,pool!=p0"} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		selectors = append(selectors, s)
	}
	for i, got := range Members(nodes, selectors) {
		var want []int
		for j, n := range nodes {
			if selectors[i].Selects(n.Labels) {
				want = append(want, j)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q selects %v, want %v", selectors[i], got, want)
		}
	}
}
