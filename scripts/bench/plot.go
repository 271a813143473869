package main

import (
	"fmt"
	"html"
	"os"
	"slices"
	"strings"
)

// The dimensions of the plot, in pixels.
const (
	plotWidth  = 760
	barHeight  = 16
	barGap     = 4
	groupGap   = 18
	panelTop   = 34
	labelWidth = 170
	barWidth   = 440 // width of a bar of length most
	most       = 2.0 // multiple of ptp; longer bars are cut off
)

// colours are the contenders' colours, in the order of an arena.
var colours = []string{"#1b6e3c", "#7fbf94", "#8a8a8a", "#c4c4c4", "#d9a441", "#e8cf9a"}

// plot writes an SVG of the pods table: a runtime's waiting time as a multiple of ptp's.
func (r *report) plot(path string) error {
	at := slices.IndexFunc(r.Tables, func(t table) bool { return t.Name == "pods/v4" })
	if at < 0 {
		return nil // the table was not measured
	}
	var b strings.Builder
	y := panelTop
	for _, verb := range []struct {
		title     string
		p50, each int // columns: milliseconds, and ratio to ptp
	}{{"ADD: a pod starts", 2, 4}, {"DEL: a pod ends", 8, 10}} {
		fmt.Fprintf(&b, "<text x=\"8\" y=\"%d\" font-size=\"15\" font-weight=\"bold\">%s</text>\n", y-12, html.EscapeString(verb.title))
		y = r.Tables[at].bars(&b, y, verb.p50, verb.each) + panelTop
	}
	one := labelWidth + int(barWidth/most)
	head := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"+
		"<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"#b03030\" stroke-dasharray=\"3 3\"/>\n"+
		"<text x=\"%d\" y=\"%d\" fill=\"#b03030\">as long as ptp + host-local</text>\n", plotWidth, y, one, panelTop, one, y-panelTop, one+6, panelTop-12)
	return os.WriteFile(path, []byte(head+b.String()+"</svg>\n"), 0o644)
}

// bars draws the rows of one verb from y down, and returns the y of their end.
func (t *table) bars(b *strings.Builder, y, p50, ratio int) int {
	var group any
	for i, row := range t.Rows {
		if row[0] != group {
			if group = row[0]; i > 0 {
				y += groupGap
			}
			fmt.Fprintf(b, "<text x=\"8\" y=\"%d\">%v at once</text>\n", y+barHeight-4, group)
		}
		times := row[ratio].(float64)
		width := int(min(times, most) / most * barWidth)
		colour := colours[i%len(colours)]
		label := fmt.Sprintf("%s  %s ms, %s of ptp", row[1], short(row[p50]), short(times))
		fmt.Fprintf(b, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n", labelWidth, y, max(1, width), barHeight, colour)
		x, anchor := labelWidth+width+6, "start"
		if width > barWidth*2/3 { // inside the bar, whose colour is a peer's and light
			x, anchor = labelWidth+width-6, "end"
		}
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n", x, y+barHeight-4, anchor, html.EscapeString(label))
		y += barHeight + barGap
	}
	return y
}

// short formats a number with few digits.
func short(v any) string {
	if n := v.(float64); n >= 10 {
		return fmt.Sprintf("%.0f", n)
	} else if n >= 1 {
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.2f", v)
}
