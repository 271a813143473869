package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A line that ends in a mark is shown in a colour on a terminal. A mark is at the end, because a tabwriter
// counts it as a character.
const (
	markBad  = "\x01"
	markGood = "\x02"
	markHead = "\x03"
)

// leastWidth is the width, in characters, below which lines are not wrapped.
const leastWidth = 40

// screen fits lines to a terminal. Elsewhere it only takes the marks away.
type screen struct {
	out    io.Writer
	width  int // in characters; 0: any
	colour bool
	rest   []byte // of a line that has not ended
}

// newScreen returns the screen for out. NO_COLOR, if it is not empty, forbids colour (no-color.org).
func newScreen(out io.Writer, wide bool) *screen {
	s := &screen{out: out}
	if o, ok := out.(*output); ok {
		out = o.Writer
	}
	file, ok := out.(*os.File)
	if !ok {
		return s
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return s // not a terminal
	}
	s.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if !wide && size.Col >= leastWidth {
		s.width = int(size.Col)
	}
	return s
}

// terminal reports whether a person reads the screen.
func (s *screen) terminal() bool { return s.colour || s.width > 0 }

func (s *screen) Write(p []byte) (int, error) {
	s.rest = append(s.rest, p...)
	for {
		line, rest, ended := bytes.Cut(s.rest, []byte("\n"))
		if !ended {
			return len(p), nil
		}
		if _, err := io.WriteString(s.out, s.fit(string(line))); err != nil {
			return 0, err
		}
		s.rest = rest
	}
}

// fit returns the line, in its colour, as one or more lines that are not wider than the screen.
func (s *screen) fit(line string) string {
	colour := ""
	for _, m := range []struct{ mark, colour string }{{markBad, "\x1b[31m"}, {markGood, "\x1b[32m"}, {markHead, "\x1b[1m"}} {
		if text, ok := strings.CutSuffix(line, m.mark); ok {
			line, colour = strings.TrimRight(text, " "), m.colour
		}
	}
	indent := strings.Repeat(" ", len(line)-len(strings.TrimLeft(line, " "))+4)
	for wrapped := ""; ; {
		cut := len(line)
		if s.width > len(indent)+leastWidth/2 && utf8.RuneCountInString(line) > s.width {
			cut = strings.LastIndexByte(string([]rune(line)[:s.width+1]), ' ')
			if cut <= len(indent) {
				cut = len(string([]rune(line)[:s.width])) // a word that is wider than the screen
			}
		}
		part := line[:cut]
		if s.colour && colour != "" && part != "" {
			part = colour + part + "\x1b[0m"
		}
		wrapped += part + "\n"
		if cut == len(line) {
			return wrapped
		}
		line = indent + strings.TrimLeft(line[cut:], " ")
	}
}
