package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// allNodes is the selector text that selects every node. An empty selector does not: an empty selector is
// what a forgotten value looks like.
const allNodes = "all()"

// Selector selects nodes by their labels: a Kubernetes label selector, or all(). The zero
// Selector selects nothing. Selectors with the same text are the same.
type Selector struct {
	_    [0]func() // no ==; use Equal
	text string
	set  labels.Selector // nil selects nothing
}

// ParseSelector parses a selector string: "all()", "ASN=65010", "pool in (a,b)".
func ParseSelector(s string) (Selector, error) {
	s = strings.TrimSpace(s)
	if s == allNodes {
		return Selector{text: s, set: labels.Everything()}, nil
	}
	if s == "" {
		return Selector{}, errors.New("selector: empty; write all() to select every node")
	}
	set, err := labels.Parse(s)
	if err != nil {
		return Selector{}, fmt.Errorf("selector %q: %w", s, err)
	}
	if set.Empty() {
		return Selector{}, fmt.Errorf("selector %q: has no requirement; write all() to select every node", s)
	}
	return Selector{text: s, set: set}, nil
}

// Selects reports whether the node's labels match.
func (s Selector) Selects(nodeLabels map[string]string) bool {
	return s.set != nil && s.set.Matches(labels.Set(nodeLabels))
}

// Members returns the indices of the nodes that each of the selectors selects, in order. A node is asked only where it
// has one of the values that the selector wants of a label: 4,000 shops of five nodes each are not 80 million questions.
func Members(nodes []Node, selectors []Selector) [][]int {
	having := map[string]map[string][]int{} // nodes by key and value of a label
	all := make([]int, len(nodes))
	for i := range nodes {
		all[i] = i
	}
	out := make([][]int, len(selectors))
	for i, s := range selectors {
		asked := all
		if key, values := s.wants(); key != "" {
			if having[key] == nil {
				having[key] = map[string][]int{}
				for j, n := range nodes {
					if value, ok := n.Labels[key]; ok {
						having[key][value] = append(having[key][value], j)
					}
				}
			}
			asked = nil
			for _, value := range values {
				asked = append(asked, having[key][value]...)
			}
			slices.Sort(asked)
		}
		for _, j := range asked {
			if s.Selects(nodes[j].Labels) {
				out[i] = append(out[i], j)
			}
		}
	}
	return out
}

// wants returns a label of which each selected node has one of the values; key is "" if there is no such label.
func (s Selector) wants() (key string, values []string) {
	if s.set == nil {
		return "", nil
	}
	requirements, _ := s.set.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			return r.Key(), r.Values().UnsortedList()
		}
	}
	return "", nil
}

func (s Selector) String() string { return s.text }

// Equal reports whether both have the same text.
func (s Selector) Equal(other Selector) bool { return s.text == other.text }

// MarshalJSON writes the text.
func (s Selector) MarshalJSON() ([]byte, error) { return json.Marshal(s.text) }

// UnmarshalJSON parses the text; the empty text is the zero Selector.
func (s *Selector) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("selector: %w", err)
	}
	if text == "" {
		*s = Selector{}
		return nil
	}
	parsed, err := ParseSelector(text)
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}
