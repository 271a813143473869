package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// report holds the outcomes of a run.
type report struct {
	Plugins  []string              `json:"plugins"` // types, in order; the IPAM plugin last
	Versions []string              `json:"versions"`
	Checks   []outcome             `json:"checks"`
	Totals   map[level]levelTotals `json:"totals"`
}

type levelTotals struct {
	Pass int `json:"pass"`
	Fail int `json:"fail"`
	Skip int `json:"skip"`
}

func (r *report) add(o outcome) {
	r.Checks = append(r.Checks, o)
	n := r.Totals[o.Level]
	switch o.Status {
	case "pass":
		n.Pass++
	case "fail":
		n.Fail++
	default:
		n.Skip++
	}
	r.Totals[o.Level] = n
}

// maxSeen keeps a line of the text report readable. The JSON report is not cut.
const maxSeen = 600

func printOutcome(w io.Writer, o outcome) {
	seen := o.Asks
	if o.Seen != "" {
		seen += ": " + o.Seen
	}
	seen = strings.Join(strings.Fields(seen), " ")
	if len(seen) > maxSeen {
		cut := maxSeen
		for !utf8.RuneStart(seen[cut]) {
			cut--
		}
		seen = seen[:cut] + "..."
	}
	fmt.Fprintf(w, "%-4s  %-6s  %-33s %-8s  %s\n", strings.ToUpper(o.Status), o.Level, o.ID, o.Section, seen)
}

// print prints the totals, or the whole report as JSON. The lines of the text report were printed earlier.
// It returns the exit status.
func (r *report) print(w io.Writer, o options) int {
	status := statusPass
	if r.Totals[must].Fail > 0 || o.strict && r.Totals[should].Fail > 0 {
		status = statusFail
	}
	if o.json {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(r); err != nil {
			return statusUsage
		}
		return status
	}
	fmt.Fprintf(w, "\n%s, versions %s\n", strings.Join(r.Plugins, " + "), strings.Join(r.Versions, " "))
	fmt.Fprintf(w, "%-8s %5s %5s %5s\n", "", "pass", "fail", "skip")
	for _, l := range []level{must, should, robust} {
		n := r.Totals[l]
		fmt.Fprintf(w, "%-8s %5d %5d %5d\n", l, n.Pass, n.Fail, n.Skip)
	}
	return status
}

func printList(w io.Writer, checks []check) {
	count := map[level]int{}
	for _, c := range checks {
		printOutcome(w, outcome{ID: c.id, Level: c.level, Section: c.section, Asks: c.asks})
		count[c.level]++
	}
	fmt.Fprintf(w, "\n%d checks: %d MUST, %d SHOULD, %d ROBUST\n", len(checks), count[must], count[should], count[robust])
}
