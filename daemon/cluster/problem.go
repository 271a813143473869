package cluster

import (
	"cmp"
	"fmt"
	"slices"
)

// String returns the problem in one line: object, what was expected, what is there, the next step.
func (p Problem) String() string {
	s := p.Object + ": "
	switch {
	case p.Want != "" && p.Got != "":
		s += fmt.Sprintf("want %s, got %s", p.Want, p.Got)
	case p.Want != "":
		s += "want " + p.Want
	case p.Got != "":
		s += "got " + p.Got
	default:
		s += string(p.Reason)
	}
	if p.Next != "" {
		s += "; " + p.Next
	}
	return s
}

// Divide returns the problems without the advice, and the advice.
func Divide(all []Problem) (problems, advice []Problem) {
	for _, p := range all {
		if p.Reason.IsAdvice() {
			advice = append(advice, p)
		} else {
			problems = append(problems, p)
		}
	}
	return problems, advice
}

func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Want, b.Want), cmp.Compare(a.Got, b.Got))
	})
}
