// Package keys reads a YAML configuration file key by key.
//
// It owns the sentences about mistakes: each names the line and the expected value. It knows no key: the
// packages that own a configuration name them.
//
//	err := keys.Parse(text, "the example configuration", func(s keys.Section) {
//		s.Text("socket", &c.Socket)
//	})
//	// line 3: unknown key sokcet; see the example configuration for the known ones
package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Parse lets read ask for the keys of the file's one document. An empty file has no keys. The error joins all
// mistakes. known says where an operator finds the known keys.
func Parse(text []byte, known string, read func(Section)) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("a second document; keep one")
	}
	doc := document{known: known}
	if len(root.Content) > 0 && root.Content[0].ShortTag() != "!!null" {
		doc.read(root.Content[0], read)
	}
	return errors.Join(doc.mistakes...)
}

// document is the file while it is read, with its mistakes.
type document struct {
	known    string
	mistakes []error // Each with its line
}

// Section is a mapping of the file.
type Section struct {
	doc     *document
	unread  map[string]*yaml.Node // the values of the keys that have not been read yet
	written []*yaml.Node          // the keys, in the order of the file
}

// wrong notes a mistake at n.
func (d *document) wrong(n *yaml.Node, format string, args ...any) {
	d.mistakes = append(d.mistakes, fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...))
}

// wanted notes that n is not the expected value.
func (d *document) wanted(n *yaml.Node, want string) {
	got := fmt.Sprintf("%q", n.Value)
	switch n.Kind {
	case yaml.MappingNode:
		got = "a mapping"
	case yaml.SequenceNode:
		got = "a list"
	}
	d.wrong(n, "want %s, got %s", want, got)
}

// read lets f read the mapping n. A key that f does not ask for is a mistake.
func (d *document) read(n *yaml.Node, f func(Section)) {
	if n.Kind != yaml.MappingNode {
		d.wanted(n, "a mapping")
		return
	}
	s := Section{doc: d, unread: map[string]*yaml.Node{}}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if _, twice := s.unread[key.Value]; twice {
			d.wrong(key, "the key %s is there twice; keep one", key.Value)
		}
		s.unread[key.Value] = n.Content[i+1]
		s.written = append(s.written, key)
	}
	f(s)
	for _, key := range s.written {
		if _, unknown := s.unread[key.Value]; unknown {
			d.wrong(key, "unknown key %s; see %s for the known ones", key.Value, d.known)
			delete(s.unread, key.Value)
		}
	}
}

// Has reports whether key is there and has not been read yet.
func (s Section) Has(key string) bool {
	n := target(s.unread[key])
	return n != nil && n.ShortTag() != "!!null"
}

// Take returns the value of key, or nil for a key that is absent or null, which keeps the default.
func (s Section) Take(key string) *yaml.Node {
	n := target(s.unread[key])
	delete(s.unread, key)
	if n == nil || n.ShortTag() == "!!null" {
		return nil
	}
	return n
}

// target follows aliases.
func target(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// Rest accepts the keys that have not been read: they belong to another program.
func (s Section) Rest() { clear(s.unread) }

// Inside lets f read the mapping under key.
func (s Section) Inside(key string, f func(Section)) {
	if n := s.Take(key); n != nil {
		s.doc.read(n, f)
	}
}

// Sections lets f read each mapping of the list under key.
func (s Section) Sections(key, want string, f func(Section)) {
	s.each(key, want, func(n *yaml.Node) { s.doc.read(n, f) })
}

// each calls f with each entry of the list under key, and reports whether the list exists.
func (s Section) each(key, want string, f func(*yaml.Node)) bool {
	n := s.Take(key)
	if n == nil {
		return false
	}
	if n.Kind != yaml.SequenceNode {
		s.doc.wanted(n, want)
		return false
	}
	for _, entry := range n.Content {
		f(target(entry))
	}
	return true
}

// Scalar reads the scalar under key with parse, which reports whether the scalar has an expected value.
func (s Section) Scalar(key, want string, parse func(n *yaml.Node) bool) {
	if n := s.Take(key); n != nil && (n.Kind != yaml.ScalarNode || !parse(n)) {
		s.doc.wanted(n, want)
	}
}

// Text reads a text.
func (s Section) Text(key string, to *string) {
	s.Scalar(key, "a text", func(n *yaml.Node) bool { *to = n.Value; return true })
}

// Flag reads true or false.
func (s Section) Flag(key string, to *bool) {
	s.Scalar(key, "true or false", func(n *yaml.Node) bool { return n.Decode(to) == nil })
}

// Number reads a number from least to most. The text want names both bounds.
func Number[T int | uint16 | uint32](s Section, key string, to *T, least, most int, want string) {
	s.Scalar(key, want, func(n *yaml.Node) bool {
		var v int
		if n.Decode(&v) != nil || v < least || v > most {
			return false
		}
		*to = T(v)
		return true
	})
}

// Seconds reads a duration of whole seconds.
func (s Section) Seconds(key string, to *time.Duration, want string, allowed func(time.Duration) bool) {
	s.Scalar(key, want, func(n *yaml.Node) bool {
		v, err := time.ParseDuration(n.Value)
		if err != nil || v%time.Second != 0 || !allowed(v) {
			return false
		}
		*to = v
		return true
	})
}

// Selector reads a node selector.
func (s Section) Selector(key string, to *cluster.Selector) {
	n := s.Take(key)
	if n == nil {
		return
	}
	v, err := cluster.ParseSelector(n.Value)
	if err != nil {
		s.doc.wrong(n, "%w", err)
	}
	*to = v
}

// Texts reads a list of texts. An empty list is not nil: it differs from an absent one.
func (s Section) Texts(key string, to *[]string) {
	list := []string{}
	if s.each(key, "a list of texts", func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode {
			s.doc.wanted(n, "a text")
		}
		list = append(list, n.Value)
	}) {
		*to = list
	}
}

// Prefixes reads a list of CIDRs, each by its first address.
func (s Section) Prefixes(key string, to *[]netip.Prefix) {
	s.each(key, "a list of CIDRs", func(n *yaml.Node) {
		v, err := netip.ParsePrefix(n.Value)
		if err != nil || v != v.Masked() {
			s.doc.wanted(n, "a CIDR such as 10.0.0.0/8")
			return
		}
		*to = append(*to, v)
	})
}
