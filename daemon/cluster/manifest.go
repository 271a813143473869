package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is one accepted object: exactly one of its fields is set.
type object struct {
	node     *Node
	peering  *Peering
	pool     *NetworkPool
	edgeNode *EdgeNode
	secret   *Secret
}

// statement is what a source says about one object. A statement without an object is not valid: its problems
// say why.
type statement struct {
	ref      string // "BGPPeer/peer-a"
	file     string // file that it is in, or the command that edits it
	line     int
	object   object
	problems []Problem
	remarks  []Problem // on a statement that is valid: what of the object does not count
}

func (s statement) valid() bool { return s.object != object{} }

// manifest is what one file says, or what an API server says about one kind.
type manifest struct {
	file string
	// about is the kind, or the one object ("Secret/bgp"), that an API server speaks of here. It is empty for
	// a file, which speaks of the objects that came from it.
	about      string
	statements []statement
	// strays are Secrets outside the namespace kube-system.
	strays   []stray
	problems []Problem
	// broken: nothing in the file counts now; its earlier objects do.
	broken bool
	// unsure: a document of the file names no object, so an object that seems to be missing may be meant by
	// it.
	unsure bool
	items  int // of Lists, so far
}

type stray struct{ name, namespace, place string }

// kind is the type of an object as manifests name it.
type kind struct{ apiVersion, kind string }

// maxListDepth bounds Lists in Lists: an alias can make a List its own item.
const maxListDepth = 4

// maxItems bounds the items of all Lists of a file, for the same reason: four Lists of a
// thousand aliases are 10^12 items. The largest cluster has 5,000 nodes.
const maxItems = 100_000

// readManifest reads the documents of one file. It is pure.
func readManifest(file string, text []byte) manifest {
	m := manifest{file: file}
	next := yamlDocuments(text)
	if isJSON(file) {
		next = newJSONDocuments(text).next
	}
	for documents := 0; ; {
		n, err := next()
		if errors.Is(err, io.EOF) && documents == 0 {
			return brokenManifest(file, Problem{
				Reason: emptyFile, Want: "manifests", Got: "no document",
				Next: "save it again, or delete it to remove its objects",
			})
		}
		if errors.Is(err, io.EOF) {
			return m
		}
		if err != nil {
			return brokenManifest(file, syntaxProblem(file, err))
		}
		d := &document{file: file, object: "file " + file}
		if root := d.at("", n, n.Line); !root.absent() {
			documents++
			m.readDocument(root, kind{}, 0)
		}
	}
}

func isJSON(file string) bool { return filepath.Ext(file) == ".json" }

// yamlDocuments returns a function that gives the next document of text, or io.EOF at the end.
func yamlDocuments(text []byte) func() (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	return func() (*yaml.Node, error) {
		var doc yaml.Node
		if err := decoder.Decode(&doc); err != nil {
			return nil, err
		}
		if len(doc.Content) == 0 {
			return &doc, nil
		}
		return doc.Content[0], nil
	}
}

func brokenManifest(file string, p Problem) manifest {
	p.Object = "file " + file
	return manifest{file: file, broken: true, problems: []Problem{p}}
}

// syntaxProblem says where the parser stopped.
func syntaxProblem(file string, err error) Problem {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	place := file
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		number, what, _ := strings.Cut(rest, ": ")
		if _, err := strconv.Atoi(number); err == nil {
			place, message = file+":"+number, what
		}
	}
	if strings.HasPrefix(message, "unknown anchor") {
		message = "an alias (*) of no anchor" // its name may be the beginning of a password
	}
	want := "YAML"
	if isJSON(file) {
		want = "JSON"
	}
	return Problem{
		Reason: badManifest, Want: want, Got: message,
		Next: "repair " + place + ", or delete the file to remove its objects",
	}
}

// readDocument reads one document, or one item of a List, that starts at root.
func (m *manifest) readDocument(root field, inherited kind, depth int) {
	d := root.doc
	top := root.mapping()
	k := kind{top.at("apiVersion").scalar(), top.at("kind").scalar()}
	if k == (kind{}) {
		k = inherited
	}
	if len(d.problems) == 0 && (k.apiVersion == "" || k.kind == "") {
		root.bad(missingField, "apiVersion and kind", fmt.Sprintf("apiVersion %q, kind %q", k.apiVersion, k.kind))
	}
	if len(d.problems) > 0 {
		m.unsure = true
		m.problems = append(m.problems, d.problems...)
		return
	}
	if item, ok := k.listItem(); ok {
		m.readList(top, item, depth)
		return
	}
	if want, close := k.meant(); want != "" {
		if name := top.at("metadata").mapping().at("name").name(); name != "" {
			d.object = k.kind + "/" + name
		}
		d.problems = nil
		top.at("kind").bad(unknownKind, want, k.apiVersion+" "+k.kind)
		m.problems = append(m.problems, d.problems...)
		m.unsure = m.unsure || close
		return
	}
	if k.ours() {
		m.readObject(top, k)
	}
}

func (m *manifest) readList(top mapping, item kind, depth int) {
	list := top.at("items")
	if !list.absent() {
		m.items += len(list.node.Content)
	}
	var items []field
	switch {
	case depth >= maxListDepth:
		top.bad(badManifest, "a List without Lists in it", "a deep one")
	case m.items > maxItems:
		top.bad(badManifest, fmt.Sprintf("at most %d items in Lists", maxItems), "more")
	default:
		items = list.list()
	}
	if len(top.doc.problems) > 0 {
		m.unsure = true
		m.problems = append(m.problems, top.doc.problems...)
		return
	}
	for _, f := range items {
		if m.items > maxItems { // an item was a List that exceeded the bound
			return
		}
		f.path, f.doc = "", &document{file: m.file, object: "file " + m.file}
		m.readDocument(f, item, depth+1)
	}
}

// readObject reads an object of one of our kinds.
func (m *manifest) readObject(top mapping, k kind) {
	d := top.doc
	meta := top.at("metadata").mapping()
	nameField := meta.at("name")
	name := nameField.name()
	if nameField.absent() {
		nameField.bad(missingField, "metadata.name of the "+k.kind, "nothing")
	}
	if name == "" {
		m.unsure = true
		m.problems = append(m.problems, d.problems...)
		return
	}
	d.problems = nil // they are found again below, under the object's name
	d.object = k.kind + "/" + name
	s := statement{ref: d.object, file: m.file, line: top.line}
	switch k.kind {
	case kindNode:
		node := readNode(top, name)
		node.Origin = m.file
		s.object.node = &node
	case kindSecret:
		namespace := meta.at("namespace").scalar()
		if namespace != "" && namespace != secretNamespace {
			m.strays = append(m.strays, stray{name, namespace, fmt.Sprintf("%s:%d", m.file, meta.at("namespace").line)})
			return
		}
		secret := readSecret(top, name)
		secret.Origin = m.file
		s.object.secret = &secret
	case kindPool:
		pool := readPool(top, name)
		pool.Origin = m.file
		s.object.pool = &pool
	case kindEdgeNode:
		edgeNode := readEdgeNode(top, name)
		edgeNode.Origin = m.file
		s.object.edgeNode = &edgeNode
	default:
		read := readPeer
		if k.kind == kindCluster {
			read = readCluster
		}
		peering := read(top, name)
		peering.Origin = m.file
		s.object.peering = &peering
	}
	if s.problems, s.remarks = d.problems, d.remarks; len(d.problems) > 0 {
		s.object, s.remarks = object{}, nil
	}
	m.statements = append(m.statements, s)
}

// APIVersion returns the apiVersion under which a kind is read, or "" for a kind that is not read.
func APIVersion(name string) string {
	switch name {
	case kindNode, kindSecret:
		return "v1"
	case kindPeer:
		return groupOpenYurt + "/v1alpha1"
	case kindCluster:
		return groupAlibaba + "/v1beta1"
	case kindPool, kindEdgeNode:
		return groupEdgeway + "/v1alpha1"
	}
	return ""
}

// ours reports whether objects of the kind are read.
func (k kind) ours() bool { return k.apiVersion != "" && APIVersion(k.kind) == k.apiVersion }

// listItem reports whether k is a list, and the kind of its items where the list fixes it.
func (k kind) listItem() (kind, bool) {
	if k == (kind{"v1", "List"}) {
		return kind{}, true
	}
	name, ok := strings.CutSuffix(k.kind, "List")
	item := kind{k.apiVersion, name}
	return item, ok && item.ours()
}

// meant guesses the intended kind of an object whose kind is not read: the group is ours, or the kind is ours
// and the group nearly is. close reports whether the kind is near one of ours. "" means that the object is
// something else, which a directory may hold too.
func (k kind) meant() (want string, close bool) {
	if k.ours() {
		return "", false
	}
	group, _, grouped := strings.Cut(k.apiVersion, "/")
	if !grouped {
		for _, name := range []string{kindNode, kindSecret} {
			if strings.EqualFold(k.kind, name) {
				return "v1 " + name, true
			}
		}
		group = ""
	}
	var inGroup string
	for _, name := range ownKinds() {
		our := APIVersion(name) + " " + name
		ourGroup, _, _ := strings.Cut(APIVersion(name), "/")
		_, nearKind := nearest(k.kind, []string{name})
		_, nearGroup := nearest(group, []string{ourGroup})
		if nearKind && (nearGroup || group == "") || k.kind == name && slices.Contains([]string{groupOpenYurt, groupAlibaba, groupEdgeway}, group) {
			return our, true // MetalLB's and Calico's BGPPeer have other groups
		}
		if group == ourGroup {
			inGroup = our
		}
	}
	return inGroup, false
}
