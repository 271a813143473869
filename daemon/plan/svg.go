package plan

import (
	"cmp"
	"fmt"
	"html"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// The measures of the picture, in pixels. A character of the font is charWidth wide at most.
const (
	charWidth  = 7.3
	lineHeight = 17.0
	margin     = 24.0
	gap        = 18.0
	wire       = 46.0 // between a switch and its nodes
	perRow     = 4    // nodes side by side
	mostNodes  = 24   // of a LAN; a picture of more is not legible
	wrapAt     = 110  // characters of a problem's line
)

const style = `text{font:12px monospace;fill:#1f2933}.h{font-weight:bold}.s{fill:#52606d}.p{fill:#b42318}
.lan{fill:#f5f7fa;stroke:#cbd2d9}.card{fill:#fff;stroke:#9aa5b1}.speaker{fill:#e6f6ff;stroke:#2680c2;stroke-width:2}.switch{fill:#fff8e1;stroke:#b7791f;stroke-width:2}
.wire{stroke:#9aa5b1;fill:none}.session{stroke:#2680c2;stroke-width:2;stroke-dasharray:5 4;fill:none}`

// SVG writes the plan as a picture: each LAN with its switches, its nodes, their pools and the sessions.
func (p Plan) SVG(out io.Writer) error {
	d := &drawing{}
	y, wide := margin, 60*charWidth
	for _, l := range p.lans() {
		w, h := d.lan(l, margin, y)
		y += h + gap
		wide = max(wide, w)
	}
	for _, line := range p.legend() {
		y += lineHeight
		d.text(margin, y, line.class, line.text)
		wide = max(wide, float64(utf8.RuneCountInString(line.text))*charWidth)
	}
	_, err := fmt.Fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\">\n<style>%s</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n%s</svg>\n",
		wide+2*margin, y+margin, style, d.String())
	return err
}

type line struct{ class, text string }

// legend explains the signs, and lists the problems.
func (p Plan) legend() []line {
	lines := []line{{"s", "blue: speaker; dashed line: BGP session; yellow: switch, which hears each pod CIDR with its node as next hop"}}
	for _, l := range p.lists() {
		lines = append(lines, line{"h", l.heading})
		for _, problem := range l.problems {
			text := problem.Problem.String()
			for len(text) > wrapAt {
				cut := strings.LastIndexByte(text[:wrapAt], ' ')
				if cut <= 0 {
					cut = wrapAt
				}
				lines = append(lines, line{"p", text[:cut]})
				text = "    " + strings.TrimSpace(text[cut:])
			}
			lines = append(lines, line{"p", text})
		}
	}
	return lines
}

// lan is a LAN of the picture. Nodes that no resource selects are in the LAN 0.
type lan struct {
	asn      uint32
	switches []Switch
	nodes    []Node
	more     int
}

// lans groups the nodes by LAN, the speakers first.
func (p Plan) lans() []lan {
	var out []lan
	at := func(asn uint32) *lan {
		i := slices.IndexFunc(out, func(l lan) bool { return l.asn == asn })
		if i < 0 {
			i = len(out)
			out = append(out, lan{asn: asn})
		}
		return &out[i]
	}
	for _, n := range p.Nodes {
		asns := n.LANs
		if len(asns) == 0 {
			asns = []uint32{0}
		}
		for _, asn := range asns {
			at(asn).nodes = append(at(asn).nodes, n)
		}
	}
	for i := range out {
		l := &out[i]
		for _, sw := range p.Switches {
			if slices.ContainsFunc(sw.Sessions, func(s Session) bool { return s.Peer.LocalASN == l.asn }) {
				l.switches = append(l.switches, sw)
			}
		}
		slices.SortStableFunc(l.nodes, func(a, b Node) int { return cmp.Compare(rank(a), rank(b)) })
		if l.more = len(l.nodes) - mostNodes; l.more > 0 {
			l.nodes = l.nodes[:mostNodes]
		}
	}
	slices.SortFunc(out, func(a, b lan) int { return cmp.Compare(a.asn-1, b.asn-1) }) // 0 last
	return out
}

func rank(n Node) int {
	if len(n.Plan.Sessions) > 0 {
		return 0
	}
	return 1
}

type drawing struct{ strings.Builder }

func (d *drawing) text(x, y float64, class, text string) {
	fmt.Fprintf(d, "<text x=\"%.0f\" y=\"%.0f\" class=\"%s\" xml:space=\"preserve\">%s</text>\n", x, y, class, html.EscapeString(text))
}

// card is a box with lines of text, of which the first is its name.
type card struct {
	class string
	lines []string
}

func (c card) width() (w float64) {
	for _, l := range c.lines {
		w = max(w, float64(utf8.RuneCountInString(l))*charWidth)
	}
	return w + 20
}

func (c card) height() float64 { return float64(len(c.lines))*lineHeight + 14 }

func (d *drawing) card(c card, x, y, w, h float64) {
	fmt.Fprintf(d, "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" rx=\"6\" class=\"%s\"/>\n", x, y, w, h, c.class)
	for i, l := range c.lines {
		class := "s"
		if i == 0 {
			class = "h"
		}
		d.text(x+10, y+lineHeight*float64(i+1), class, l)
	}
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(d, "<path d=\"M%.0f %.0f L%.0f %.0f\" class=\"%s\"/>\n", x1, y1, x2, y2, class)
}

// size returns the largest width and height of the cards.
func size(cards []card) (w, h float64) {
	for _, c := range cards {
		w, h = max(w, c.width()), max(h, c.height())
	}
	return w, h
}

func (l lan) title() string {
	title := "no LAN: no BGP resource selects these nodes"
	if l.asn != 0 {
		title = fmt.Sprintf("LAN AS %d", l.asn)
	}
	if l.more > 0 {
		title += fmt.Sprintf(" (and %d more nodes)", l.more)
	}
	return title
}

// lan draws one LAN with its left upper corner at x, y, and returns its size.
func (d *drawing) lan(l lan, x, y float64) (width, height float64) {
	var nodes, switches []card
	for _, n := range l.nodes {
		nodes = append(nodes, n.card())
	}
	for _, sw := range l.switches {
		switches = append(switches, sw.card())
	}
	nw, nh := size(nodes)
	sw, sh := size(switches)
	row := func(n int, w float64) float64 { return float64(n)*(w+gap) + gap }
	rows := (len(nodes) + perRow - 1) / perRow
	width = max(row(min(len(nodes), perRow), nw), row(len(switches), sw), float64(len(l.title()))*charWidth+2*gap)
	top := y + lineHeight + gap // of the switches
	first := top
	if len(switches) > 0 {
		first += sh + wire // of the nodes
	}
	height = first + float64(rows)*(nh+gap) - y
	fmt.Fprintf(d, "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" rx=\"10\" class=\"lan\"/>\n", x, y, width, height)
	d.text(x+gap, y+lineHeight+3, "h", l.title())
	place := func(i int, w float64) float64 { return x + gap + float64(i)*(w+gap) }
	for i, c := range switches {
		for j, n := range l.nodes[:min(len(l.nodes), perRow)] { // the first row has the speakers
			if slices.ContainsFunc(l.switches[i].Sessions, func(s Session) bool { return s.Node == n.Name }) {
				d.line("session", place(i, sw)+sw/2, top+sh, place(j, nw)+nw/2, first)
			}
		}
		d.card(c, place(i, sw), top, sw, sh)
	}
	for i, c := range nodes {
		d.card(c, place(i%perRow, nw), first+float64(i/perRow)*(nh+gap), nw, nh)
	}
	return width, height
}

func (sw Switch) card() card {
	return card{class: "switch", lines: []string{fmt.Sprintf("switch %s  AS %d", sw.endpoint(), sw.ASN),
		fmt.Sprintf("sessions %d, prefixes %d", len(sw.Sessions), len(sw.Table))}}
}

func (n Node) card() card {
	c := card{class: "card", lines: []string{n.Name}}
	if rank(n) == 0 {
		c.class = "speaker"
		c.lines[0] += "  (speaker)"
	}
	for _, a := range n.Addresses {
		c.lines = append(c.lines, a.String())
	}
	for _, p := range n.pool() {
		c.lines = append(c.lines, "pods "+p)
	}
	return card{class: c.class, lines: append(c.lines, fmt.Sprintf("mode %s, pods' MTU %d", n.Mode, n.MTU))}
}
