package plan

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Text writes the plan as an operator reads it: the words of ip route, and a table for each switch.
func (p Plan) Text(out io.Writer) {
	for _, n := range p.Nodes {
		fmt.Fprintf(out, "%s\n", n.heading())
		for _, line := range n.Lines() {
			fmt.Fprintf(out, "  %s\n", line)
		}
		fmt.Fprintln(out)
	}
	for _, sw := range p.Switches {
		fmt.Fprintf(out, "%s\n", sw.heading())
		for _, line := range sw.Lines() {
			fmt.Fprintf(out, "  %s\n", line)
		}
		fmt.Fprintln(out)
	}
	for _, l := range p.lists() {
		fmt.Fprintln(out, l.heading)
		for _, problem := range l.problems {
			fmt.Fprintf(out, "  %s (%s; %s)\n", problem.Problem, problem.Reason, problem.reporters(len(p.Nodes)))
		}
	}
}

// problemList is the problems, or the advice, below a heading.
type problemList struct {
	heading  string
	problems []Problem
}

// lists returns the problems, and the advice if there is any.
func (p Plan) lists() []problemList {
	out := []problemList{{"Problems: none", nil}}
	if n := len(p.Problems); n > 0 {
		out[0] = problemList{fmt.Sprintf("%s: %d", problemsName, n), p.Problems}
	}
	if n := len(p.Advice); n > 0 {
		out = append(out, problemList{fmt.Sprintf("%s: %d", adviceName, n), p.Advice})
	}
	return out
}

func (n Node) heading() string {
	text := fmt.Sprintf("Node %s   addresses %s   LAN %s   mode %s", n.Name, cmp.Or(list(n.Addresses), "none"), cmp.Or(list(n.LANs), "none"), n.Mode)
	if n.NetworkPool != "" {
		text += " by " + n.NetworkPool
	}
	if n.Assumed {
		var nets []string
		for _, a := range n.Machine.Addrs {
			nets = append(nets, a.Prefix.String())
		}
		text += "\n  (assumed: link " + linkName + " with " + list(nets) + " and the default route)"
	}
	return text
}

// Lines returns all that the node would do, a line for each fact.
func (n Node) Lines() []string {
	lines := []string{fmt.Sprintf("pool %s, pods' MTU %d", cmp.Or(list(n.pool()), "none"), n.MTU)}
	lines = append(lines, strings.Split(strings.TrimSuffix(n.Plan.String(), "\n"), "\n")...)
	// The paths are indented below their session. A line says all by itself when it also names the session.
	session := ""
	for i, l := range lines {
		if path, ok := strings.CutPrefix(l, "\t"); ok {
			lines[i] = session + ": " + path
		} else if f := strings.Fields(l); len(f) > 1 && f[0] == "peer" {
			session = "to " + f[1]
		}
	}
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" })
}

// pool returns the subnets of the pods' addresses.
func (n Node) pool() (out []string) {
	for _, set := range n.Pool.Sets {
		for _, r := range set {
			out = append(out, r.Subnet.String())
		}
	}
	return out
}

func (sw Switch) heading() string {
	return fmt.Sprintf("Switch %s   AS %d   sessions %d", sw.endpoint(), sw.ASN, len(sw.Sessions))
}

// Lines returns the sessions and the table of the switch, a line for each.
func (sw Switch) Lines() []string {
	var lines []string
	for _, s := range sw.Sessions {
		lines = append(lines, fmt.Sprintf("neighbour %s as %d (%s)", s.Peer.LocalAddress, s.Peer.LocalASN, s.Node))
	}
	for _, e := range sw.Table {
		lines = append(lines, fmt.Sprintf("%s from %s", e.Path, list(e.From)))
	}
	return lines
}

func list[T any](items []T) string {
	text := make([]string, len(items))
	for i, item := range items {
		text[i] = fmt.Sprint(item)
	}
	return strings.Join(text, ", ")
}

// Change is the difference of one object between two plans.
type Change struct {
	Object  string   `json:"object"` // "Node Node-1", "Switch 10.0.10.1"
	Removed []string `json:"removed"`
	Added   []string `json:"added"`
}

// Diff returns the difference from before to after, by object. Of(x).Diff(Of(x)) is empty.
func Diff(before, after Plan) []Change {
	was, is := before.objects(), after.objects()
	var out []Change
	seen := map[string]bool{}
	for _, o := range slices.Concat(after.names(), before.names()) {
		if seen[o] {
			continue
		}
		seen[o] = true
		c := Change{Object: o, Removed: without(was[o], is[o]), Added: without(is[o], was[o])}
		if len(c.Removed)+len(c.Added) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// without returns the lines of a that b does not have.
func without(a, b []string) []string {
	have := map[string]bool{}
	for _, l := range b {
		have[l] = true
	}
	out := []string{}
	for _, l := range a {
		if !have[l] {
			out = append(out, l)
		}
	}
	return out
}

func (p Plan) names() (out []string) {
	for _, n := range p.Nodes {
		out = append(out, "Node "+n.Name)
	}
	for _, sw := range p.Switches {
		out = append(out, "Switch "+sw.endpoint())
	}
	return append(out, problemsName, adviceName)
}

const (
	problemsName = "Problems"
	adviceName   = "Advice"
)

// objects returns the lines of each object that names lists.
func (p Plan) objects() map[string][]string {
	out := map[string][]string{}
	for _, n := range p.Nodes {
		out["Node "+n.Name] = n.Lines()
	}
	for _, sw := range p.Switches {
		out["Switch "+sw.endpoint()] = append(out["Switch "+sw.endpoint()], sw.Lines()...)
	}
	for _, problem := range p.Problems {
		out[problemsName] = append(out[problemsName], problem.String())
	}
	for _, advice := range p.Advice {
		out[adviceName] = append(out[adviceName], advice.String())
	}
	return out
}

// WriteChanges writes the changes as lines that begin with - and +.
func WriteChanges(out io.Writer, changes []Change) {
	for _, c := range changes {
		fmt.Fprintf(out, "%s\n", c.Object)
		for _, l := range c.Removed {
			fmt.Fprintf(out, "  - %s\n", l)
		}
		for _, l := range c.Added {
			fmt.Fprintf(out, "  + %s\n", l)
		}
	}
}
