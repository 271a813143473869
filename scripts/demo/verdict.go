package main

import (
	"errors"
	"fmt"
	"time"
)

type verdict struct {
	lines []line
}

// line is one kind of check of one act.
type line struct {
	act, what     string
	tried, failed int
	errs          []error
}

// maxErrors is how many errors of one kind of check are printed.
const maxErrors = 3

// check counts one check; err says why it failed.
func (v *verdict) check(act, what string, err error) {
	failed := 0
	if err != nil {
		failed = 1
	}
	v.count(act, what, 1, failed, err)
}

// count counts several checks and how many of them failed.
func (v *verdict) count(act, what string, tried, failed int, err error) {
	var l *line
	for i := range v.lines {
		if v.lines[i].act == act && v.lines[i].what == what {
			l = &v.lines[i]
		}
	}
	if l == nil {
		v.lines = append(v.lines, line{act: act, what: what})
		l = &v.lines[len(v.lines)-1]
	}
	l.tried += tried
	l.failed += failed
	if err != nil {
		l.errs = append(l.errs, err)
	}
}

// print prints the table. It returns an error if any check failed.
func (v *verdict) print(out *page, took time.Duration) error {
	out.title("Verdict")
	rows := [][]string{{"ACT", "WHAT", "CHECKED", "FAILED", ""}}
	failed := 0
	for _, l := range v.lines {
		rows = append(rows, []string{l.act, l.what, fmt.Sprint(l.tried), fmt.Sprint(l.failed), out.ok(l.failed == 0)})
		failed += l.failed
	}
	out.table(rows)
	for _, l := range v.lines {
		for _, err := range l.errs[:min(maxErrors, len(l.errs))] {
			out.printf("    %s  %s: %s: %s\n", out.ok(false), l.act, l.what, err)
		}
	}
	if failed > 0 {
		return errors.New(fmt.Sprint(failed, " checks failed"))
	}
	out.printf("\n%s in %.0f s: every pair reached, no address translated, no packet lost, no route of a switch changed.\n",
		out.paint(green, "PASS"), took.Seconds())
	return nil
}
