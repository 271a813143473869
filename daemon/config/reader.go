package config

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// document is the file while it is read, with its mistakes.
type document struct{ mistakes []error } // each with its line

// section is a mapping of the file.
type section struct {
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
func (d *document) read(n *yaml.Node, f func(section)) {
	if n.Kind != yaml.MappingNode {
		d.wanted(n, "a mapping")
		return
	}
	s := section{doc: d, unread: map[string]*yaml.Node{}}
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
			d.wrong(key, "unknown key %s; see the example configuration for the known ones", key.Value)
			delete(s.unread, key.Value)
		}
	}
}

// take returns the value of key, or nil for a key that is absent or null, which keeps the default.
func (s section) take(key string) *yaml.Node {
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

// inside lets f read the mapping under key.
func (s section) inside(key string, f func(section)) {
	if n := s.take(key); n != nil {
		s.doc.read(n, f)
	}
}

// each calls f with each entry of the list under key, and reports whether the list exists.
func (s section) each(key, want string, f func(*yaml.Node)) bool {
	n := s.take(key)
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

// scalar reads the scalar under key with parse, which reports whether the scalar has an expected value.
func (s section) scalar(key, want string, parse func(n *yaml.Node) bool) {
	if n := s.take(key); n != nil && (n.Kind != yaml.ScalarNode || !parse(n)) {
		s.doc.wanted(n, want)
	}
}

func (s section) text(key string, to *string) {
	s.scalar(key, "a text", func(n *yaml.Node) bool { *to = n.Value; return true })
}

func (s section) flag(key string, to *bool) {
	s.scalar(key, "true or false", func(n *yaml.Node) bool { return n.Decode(to) == nil })
}

// number reads a number from least to most. The text want names both bounds.
func number[T int | uint16 | uint32](s section, key string, to *T, least, most int, want string) {
	s.scalar(key, want, func(n *yaml.Node) bool {
		var v int
		if n.Decode(&v) != nil || v < least || v > most {
			return false
		}
		*to = T(v)
		return true
	})
}

// seconds reads a duration of whole seconds.
func (s section) seconds(key string, to *time.Duration, want string, allowed func(time.Duration) bool) {
	s.scalar(key, want, func(n *yaml.Node) bool {
		v, err := time.ParseDuration(n.Value)
		if err != nil || v%time.Second != 0 || !allowed(v) {
			return false
		}
		*to = v
		return true
	})
}

func (s section) mode(key string, to *Mode) {
	s.scalar(key, "underlay, overlay or auto", func(n *yaml.Node) bool {
		*to = Mode(n.Value)
		return slices.Contains([]Mode{Underlay, Overlay, Auto}, *to)
	})
}

func (s section) selector(key string, to *cluster.Selector) {
	n := s.take(key)
	if n == nil {
		return
	}
	v, err := cluster.ParseSelector(n.Value)
	if err != nil {
		s.doc.wrong(n, "%w", err)
	}
	*to = v
}

// texts reads a list of texts. An empty list is not nil: it differs from an absent one.
func (s section) texts(key string, to *[]string) {
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

func (s section) prefixes(key string, to *[]netip.Prefix) {
	s.each(key, "a list of CIDRs", func(n *yaml.Node) {
		v, err := netip.ParsePrefix(n.Value)
		if err != nil || v != v.Masked() {
			s.doc.wanted(n, "a CIDR such as 10.0.0.0/8")
			return
		}
		*to = append(*to, v)
	})
}
