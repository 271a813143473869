package main

import (
	"cmp"
	"fmt"
	"html"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// The dimensions of the flame graph, in pixels.
const (
	flameWidth = 1180
	flameLeft  = 10
	flameTop   = 92
	rowHeight  = 17
	maxRows    = 26
	leastWidth = 2.0 // narrower boxes are left out
	charWidth  = 6.3 // of the font
)

// frame is a function in all stacks with the same callers.
type frame struct {
	name    string // with its package's path
	samples int
	callees map[string]*frame
}

func (f *frame) callee(name string) *frame {
	if f.callees == nil {
		f.callees = map[string]*frame{}
	}
	if f.callees[name] == nil {
		f.callees[name] = &frame{name: name}
	}
	return f.callees[name]
}

var (
	// plumbing are functions that say nothing: the ways into the kernel, into a goroutine and out of a library's wrapper.
	plumbing = regexp.MustCompile(`^(entry_SYSCALL_64.*|do_syscall_64|x64_sys_call|asm_exc_page_fault|__.*|_raw_spin.*|.*_noprof|runtime\.goexit\.abi0|runtime\.rt0_go\.abi0|` +
		`_rt0_.*|runtime\.systemstack.*|sync\..*|(internal/runtime/)?syscall.*|golang\.org/x/sys/unix\..*|.*\.func\d+(\.\d+)*|.*-fm|\[unknown\])$`)
	suffix  = regexp.MustCompile(`\.(isra|constprop|part)\.\d+$|\.abi0$`)
	shorter = strings.NewReplacer(module, "", "go.etcd.io/", "", "github.com/", "", "exc_page_fault", "page fault", "runtime.", "")
)

// draw writes an SVG of the stacks of plugin and daemon. The width of a box is its time, and each function is below
// its caller. If values has them, what no plugin can save is above, in the same scale.
func (p *profile) draw(path string, values map[string]float64) error {
	root, plugin, daemon := &frame{}, &frame{}, &frame{}
	for _, s := range p.stacks {
		at, ok := map[string]*frame{"edgeway": plugin, "edgewayd": daemon}[s.program]
		if !ok {
			continue
		}
		root.samples++
		at.samples++
		for _, f := range s.frames {
			if plumbing.MatchString(f) {
				continue
			}
			if f = suffix.ReplaceAllString(f, ""); f != at.name {
				at = at.callee(f)
				at.samples++
			}
		}
	}
	root.name = fmt.Sprintf("%s: %.2f ms of processor time", p.title, p.micros(root.samples)/1000)
	plugin.name = fmt.Sprintf("plugin: %.2f ms", p.micros(plugin.samples)/1000)
	daemon.name = fmt.Sprintf("daemon: %.2f ms", p.micros(daemon.samples)/1000)
	root.callees = map[string]*frame{"plugin": plugin, "daemon": daemon}
	scale := flameWidth / float64(max(1, root.samples))
	var b strings.Builder
	rows := p.boxes(&b, root, flameLeft, 0, scale)
	y := 44
	for _, least := range []struct{ key, what string }{{"pods/v4/1/start-ms", "a Go program that does nothing"}, {"pods/v4/1/kernel-ms", "the kernel's part alone"}} {
		if ms, ok := values[least.key]; ok {
			width := ms * 1e3 / p.micros(1) * scale
			fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#d9a441\"/><text x=\"%.1f\" y=\"%d\">%s: %.2f ms</text>\n",
				flameLeft, y, width, rowHeight-1, flameLeft+width+6, y+rowHeight-5, least.what, ms)
			y += rowHeight
		}
	}
	head := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"+
		"<text x=\"%d\" y=\"20\" font-size=\"15\" font-weight=\"bold\">Where the processor time of an ADD goes</text>\n"+
		"<text x=\"%d\" y=\"36\">%d calls, sampled by perf. Green: edgeway. Blue: libraries. Grey: the Go runtime. Orange: the kernel. A function is below its caller; point at a box for its time.</text>\n",
		flameWidth+2*flameLeft, flameTop+rows*rowHeight+10, flameLeft, flameLeft, p.calls)
	return os.WriteFile(path, []byte(head+b.String()+"</svg>\n"), 0o644)
}

// boxes draws f and its callees from row down, and returns the number of rows.
func (p *profile) boxes(b *strings.Builder, f *frame, x float64, row int, scale float64) (rows int) {
	width := float64(f.samples) * scale
	if width < leastWidth || row >= maxRows {
		return row
	}
	y := flameTop + row*rowHeight
	name := shorter.Replace(f.name)
	fmt.Fprintf(b, "<g><title>%s: %.0f µs</title><rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"1\" fill=\"%s\"/>",
		html.EscapeString(name), p.micros(f.samples), x, y, width-0.5, rowHeight-1, colourOf(f.name))
	if room := int((width - 6) / charWidth); room >= 4 {
		if len(name) > room {
			name = name[:room-1] + "…"
		}
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>", x+3, y+rowHeight-5, html.EscapeString(name))
	}
	b.WriteString("</g>\n")
	rows = row + 1
	callees := slices.SortedFunc(maps.Values(f.callees), func(a, b *frame) int {
		return cmp.Or(b.samples-a.samples, strings.Compare(a.name, b.name))
	})
	for _, c := range callees {
		rows = max(rows, p.boxes(b, c, x, row+1, scale))
		x += float64(c.samples) * scale
	}
	return rows
}

// colourOf is the colour of the owner of a function, by the function's full name.
func colourOf(name string) string {
	switch {
	case strings.HasPrefix(name, module), strings.HasPrefix(name, "main."), strings.Contains(name, ": "):
		return "#7fbf94"
	case strings.HasPrefix(name, "runtime."), strings.HasPrefix(name, "internal/"):
		return "#cfcfcf"
	case strings.Contains(name, "."):
		return "#a9c7e8"
	}
	return "#f2b47c"
}
