package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// width is the maximum number of columns of a line.
const width = 100

// page prints the demonstration as plain text, with colours only on a terminal.
type page struct {
	w      io.Writer
	colour bool
}

func newPage(f *os.File) *page {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &page{w: f, colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (p *page) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

// The colours of ECMA-48, section 8.3.117.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (p *page) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// title starts an act.
func (p *page) title(s string) {
	p.printf("\n%s\n%s\n", p.paint(bold, s), strings.Repeat("=", min(width, len(s))))
}

// heading starts a scene of an act.
func (p *page) heading(s string) { p.printf("\n%s\n", p.paint(cyan, "-- "+s)) }

// command shows a command line of an operator; its output follows.
func (p *page) command(s string) { p.printf("  %s\n", p.paint(bold, "$ "+s)) }

// block prints indented text and wraps lines that are longer than width.
func (p *page) block(text string) {
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		line = strings.TrimRight(strings.ReplaceAll(line, "\t", "    "), " \n")
		for len(line) > width-4 {
			cut := strings.LastIndex(line[:width-4], " ")
			if strings.TrimSpace(line[:max(0, cut)]) == "" {
				break
			}
			p.printf("    %s\n", strings.TrimRight(line[:cut], " "))
			line = "        " + strings.TrimLeft(line[cut:], " ")
		}
		p.printf("    %s\n", line)
	}
}

// ok returns the result of a check as a word.
func (p *page) ok(good bool) string {
	if good {
		return p.paint(green, "pass")
	}
	return p.paint(red, "FAIL")
}

// table prints rows in columns. The first row is the header.
func (p *page) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], visible(cell))
		}
	}
	for n, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-visible(cell)+2))
			}
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 {
			text = p.paint(dim, text)
		}
		p.printf("    %s\n", text)
	}
}

// visible returns the number of columns of s, without colour codes.
func visible(s string) int {
	n := utf8.RuneCountInString(s)
	for i := strings.Index(s, "\x1b["); i >= 0; i = strings.Index(s, "\x1b[") {
		end := strings.IndexByte(s[i:], 'm')
		n -= end + 1
		s = s[i+end+1:]
	}
	return n
}
