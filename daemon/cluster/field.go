package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mergeBudget bounds the keys that "<<" merges bring into one document: aliases of aliases would grow them
// exponentially.
const mergeBudget = 10_000

// maxProblems bounds the problems of one object: nobody reads more before correcting some.
const maxProblems = 50

// document is one object of a manifest while it is read, with its problems.
type document struct {
	file     string
	edit     string // the command that corrects the object; "": the object is in a file
	object   string // "BGPPeer/peer-a"
	merged   int
	problems []Problem
	remarks  []Problem // the object counts in spite of them
}

// field is a place in a document. Its node is nil where the document has nothing.
type field struct {
	doc  *document
	path string // "spec.bgpSpeakers[0].name"
	line int    // of the value, or of the mapping that lacks it
	node *yaml.Node
}

// mapping is a field that is a YAML mapping.
type mapping struct {
	field
	keys   []*yaml.Node // as written
	values map[string]*yaml.Node
}

// at returns the field at path that holds n. It follows aliases, and null counts as absent.
func (d *document) at(path string, n *yaml.Node, line int) field {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return field{doc: d, path: path, line: line}
	}
	return field{doc: d, path: path, line: n.Line, node: n}
}

func (f field) absent() bool { return f.node == nil }

// bad records a problem of the field.
func (f field) bad(reason Reason, want, got string) {
	p := Problem{
		Object: f.doc.object, Reason: reason, Want: want, Got: got,
		Next: fmt.Sprintf("correct %s:%d", f.doc.file, f.line),
	}
	if f.doc.edit != "" {
		p.Next = "correct it: " + f.doc.edit
	}
	if len(f.doc.problems) < maxProblems && !slices.Contains(f.doc.problems, p) { // a mapping may be read twice
		f.doc.problems = append(f.doc.problems, p)
	}
}

// badText records that the field holds something other than want, and shows the text.
func (f field) badText(reason Reason, want string) {
	f.bad(reason, want+" in "+f.path, f.shown())
}

// shown is the field's value as messages show it.
func (f field) shown() string {
	switch {
	case f.absent():
		return "nothing"
	case f.node.Kind != yaml.ScalarNode:
		return f.form()
	}
	text := f.node.Value
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:60]) + "..."
	}
	switch f.node.Tag {
	case "!!int", "!!float", "!!bool":
		return text
	case "!!str":
		return strconv.Quote(text)
	}
	return strings.TrimSpace(fmt.Sprintf("the YAML tag %s %s", f.node.Tag, text))
}

// form is the field's YAML form, without its content.
func (f field) form() string {
	switch {
	case f.absent():
		return "nothing"
	case f.node.Kind == yaml.MappingNode:
		return "a mapping"
	case f.node.Kind == yaml.SequenceNode:
		return "a list"
	case f.node.Tag == "!!str":
		return "a text"
	}
	return "a scalar (" + f.node.Tag + ")"
}

// mapping reads the field as a mapping. If known is given, no other key is allowed.
func (f field) mapping(known ...string) mapping {
	m := mapping{field: f, values: map[string]*yaml.Node{}}
	if f.absent() {
		return m
	}
	if f.node.Kind != yaml.MappingNode {
		f.bad(badValue, "a mapping"+f.inPath(), f.form()) // not the content, which may be a password
		return m
	}
	m.add(f.node, 0)
	if len(known) == 0 {
		return m
	}
	for _, key := range m.keys {
		if slices.Contains(known, key.Value) {
			continue
		}
		want := "one of " + strings.Join(known, ", ")
		if near, ok := nearest(key.Value, known); ok {
			want = "the key " + near
		}
		field{doc: f.doc, line: key.Line}.bad(unknownKey, want+f.inPath(), strconv.Quote(key.Value))
	}
	return m
}

// require records each of the keys that is absent. It records nothing when the mapping itself is absent: that
// is one problem, recorded where the mapping is required.
func (m mapping) require(keys ...string) {
	if m.absent() || m.node.Kind != yaml.MappingNode {
		return
	}
	for _, key := range keys {
		if f := m.at(key); f.absent() {
			f.bad(missingField, f.path, "nothing")
		}
	}
}

// add takes the keys of n, and then the keys that n lacks and its merge keys ("<<") bring.
func (m *mapping) add(n *yaml.Node, depth int) {
	own := map[string]bool{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := field{doc: m.doc, path: m.path, line: key.Line, node: key}
		switch {
		case key.Kind != yaml.ScalarNode:
			at.bad(badManifest, "keys that are text"+m.inPath(), at.form())
		case key.Tag == "!!merge":
			merges = append(merges, value)
		case own[key.Value]:
			at.bad(duplicateKey, fmt.Sprintf("the key %q once%s", key.Value, m.inPath()), "it twice")
		default:
			own[key.Value] = true
			if _, there := m.values[key.Value]; !there {
				m.keys = append(m.keys, key)
				m.values[key.Value] = value
			}
		}
		if depth > 0 {
			m.doc.merged++
		}
	}
	for _, merge := range merges {
		m.merge(merge, depth+1)
	}
}

func (m *mapping) merge(n *yaml.Node, depth int) {
	at := m.doc.at(m.path+".<<", n, n.Line)
	switch {
	case depth > 8 || m.doc.merged > mergeBudget:
		at.bad(badManifest, "few and flat merges (<<)", "too many")
	case at.absent():
	case at.node.Kind == yaml.MappingNode:
		m.add(at.node, depth)
	case at.node.Kind == yaml.SequenceNode:
		for _, item := range at.node.Content {
			m.doc.merged++
			if m.doc.merged > mergeBudget {
				break
			}
			m.merge(item, depth+1)
		}
	default:
		at.bad(badManifest, "a mapping to merge (<<)"+m.inPath(), at.form())
	}
}

func (f field) inPath() string {
	if f.path == "" {
		return ""
	}
	return " in " + f.path
}

// at returns the field under key, which may be absent.
func (m mapping) at(key string) field {
	path := key
	if m.path != "" {
		path = m.path + "." + key
	}
	return m.doc.at(path, m.values[key], m.line)
}

// items reads the field as a list, which may be absent but not empty. noun names an item.
func (f field) items(noun string) []field {
	items := f.list()
	if !f.absent() && f.node.Kind == yaml.SequenceNode && len(items) == 0 {
		f.bad(missingField, "at least one "+noun+f.inPath(), "an empty list")
	}
	return items
}

func (f field) list() []field {
	if f.absent() {
		return nil
	}
	if f.node.Kind != yaml.SequenceNode {
		f.bad(badValue, "a list"+f.inPath(), f.form())
		return nil
	}
	items := make([]field, 0, len(f.node.Content))
	for i, n := range f.node.Content {
		items = append(items, f.doc.at(fmt.Sprintf("%s[%d]", f.path, i), n, n.Line))
	}
	return items
}

// nearest returns the known word that s probably stands for.
func nearest(s string, known []string) (string, bool) {
	best, least := "", 4
	for _, k := range known {
		// Two edits (swapped letters), or one edit in three letters; more edits make another word.
		if d := edits(strings.ToLower(s), strings.ToLower(k)); d < least && d <= max(2, len(k)/3) && d < len(k)-1 {
			best, least = k, d
		}
	}
	return best, best != ""
}

// edits is the Levenshtein distance of a and b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			corner, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, corner+cost)
		}
	}
	return row[len(b)]
}
