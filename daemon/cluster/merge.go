package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// merge decides the new World from the present files and the last World. It is pure, and the only place that
// keeps or forgets an object.
//
//	the object is ...                          then
//	stated by a valid document                 it is as stated
//	stated by a document that is not valid     its last version stays
//	stated twice                               the file it was read from before counts, else the first by name
//	not stated, its file is broken or empty    its last version stays
//	not stated, its file is unsure             its last version stays
//	not stated, its file is gone or valid      it is gone
func merge(files []manifest, last World, secrets ...string) World {
	// The last World is searched only when an object is not valid: that is rare, and the search is slow.
	count := 0
	for _, f := range files {
		count += len(f.statements)
	}
	m := merging{now: make(map[string]statement, count), was: sync.OnceValue(func() map[string]object { return objects(last) })}
	before := sync.OnceValue(func() map[subject][]statement { return bySubject(m.was()) })
	slices.SortStableFunc(files, func(a, b manifest) int { return strings.Compare(a.file, b.file) })
	for _, f := range files {
		for _, p := range f.problems {
			if f.broken || f.unsure {
				p.Next += "; until then the objects that it had before stay"
			}
			m.problems = append(m.problems, p)
		}
		if f.broken {
			m.keep(before()[f.subject()])
		}
		for _, s := range f.statements {
			m.add(s)
		}
	}
	for _, f := range files {
		if f.unsure {
			m.keep(before()[f.subject()])
		}
	}
	return m.world(files, secrets)
}

type merging struct {
	now      map[string]statement
	was      func() map[string]object
	problems []Problem
}

// keep takes the statements about objects that no other statement is about.
func (m *merging) keep(statements []statement) {
	for _, s := range statements {
		if _, ok := m.now[s.ref]; !ok {
			m.now[s.ref] = s
		}
	}
}

// add takes a statement unless another statement about the same object counts.
func (m *merging) add(s statement) {
	if first, ok := m.now[s.ref]; ok {
		counts, other := first, s
		// A copy of a manifest must not replace the object in force, whatever the name of the copy.
		if old, ok := m.was()[s.ref]; ok && old.origin() == s.file && first.file != s.file {
			counts, other = s, first
		}
		m.problems = append(m.problems, Problem{
			Object: s.ref, Reason: duplicateObject,
			Want: "one object of this name", Got: "another in " + counts.file,
			Next: fmt.Sprintf("remove one; %s:%d does not count", other.file, other.line),
		})
		if counts.file == first.file {
			return
		}
	}
	if !s.valid() {
		old, kept := m.was()[s.ref]
		after := "; until then it does not count"
		if kept {
			after = "; until then its last valid version stays"
			s.object = old.from(s.file)
		}
		for _, p := range s.problems {
			p.Next += after
			m.problems = append(m.problems, p)
		}
	}
	for _, p := range s.remarks {
		p.Next += "; until then this entry does not count"
		m.problems = append(m.problems, p)
	}
	m.now[s.ref] = s
}

// world collects the statements that count. It keeps only the Secrets that a peering or the node's own file names: the
// World is saved, and no other password belongs there.
func (m *merging) world(files []manifest, secrets []string) World {
	w := World{Problems: m.problems, Nodes: make([]Node, 0, len(m.now))} // nearly all objects are Nodes
	named := map[string]string{}                                         // Secret: the first that names it
	for _, name := range secrets {
		named[name] = "the node's edgewayd.yaml"
	}
	// In the order of their names, which is nearly the order that World has: 20,000 Nodes are slow to sort.
	for _, ref := range slices.Sorted(maps.Keys(m.now)) {
		switch o := m.now[ref].object; {
		case o.node != nil:
			w.Nodes = append(w.Nodes, *o.node)
		case o.peering != nil:
			w.Peerings = append(w.Peerings, *o.peering)
		case o.pool != nil:
			w.Pools = append(w.Pools, *o.pool)
		case o.edgeNode != nil:
			w.EdgeNodes = append(w.EdgeNodes, *o.edgeNode)
		case o.secret != nil:
			w.Secrets = append(w.Secrets, *o.secret)
		}
	}
	w.sort()
	for _, p := range w.Peerings {
		for _, name := range p.secretNames() {
			if named[name] == "" {
				named[name] = p.Ref()
			}
		}
	}
	w.Secrets = slices.DeleteFunc(w.Secrets, func(s Secret) bool { return named[s.Name] == "" })
	for _, f := range files {
		for _, s := range f.strays {
			if _, there := m.now[kindSecret+"/"+s.name]; there || named[s.name] == "" {
				continue
			}
			w.Problems = append(w.Problems, Problem{
				Object: kindSecret + "/" + s.name, Reason: wrongNamespace,
				Want: fmt.Sprintf("the namespace %s, as %s names it", secretNamespace, named[s.name]),
				Got:  "the namespace " + s.namespace,
				Next: fmt.Sprintf("correct %s; until then it does not count", s.place),
			})
		}
	}
	sortProblems(w.Problems)
	w.Problems = slices.Compact(w.Problems) // an alias can show one place twice
	return w
}

// secretNames returns the names of the Secrets that hold the peering's passwords.
func (p Peering) secretNames() []string {
	var names []string
	for _, s := range p.Speakers {
		for _, peer := range s.Peers {
			if peer.Password != nil {
				names = append(names, peer.Password.Name)
			}
		}
	}
	return names
}

func objects(w World) map[string]object {
	all := make(map[string]object, len(w.Nodes)+len(w.Peerings)+len(w.Pools)+len(w.EdgeNodes)+len(w.Secrets))
	for _, n := range w.Nodes {
		all[kindNode+"/"+n.Name] = object{node: &n}
	}
	for _, p := range w.Peerings {
		all[p.Ref()] = object{peering: &p}
	}
	for _, p := range w.Pools {
		all[p.Ref()] = object{pool: &p}
	}
	for _, e := range w.EdgeNodes {
		all[e.Ref()] = object{edgeNode: &e}
	}
	for _, s := range w.Secrets {
		all[kindSecret+"/"+s.Name] = object{secret: &s}
	}
	return all
}

// subject is the part of the World that a manifest speaks of. A broken manifest keeps those objects.
type subject struct{ file, about string }

func (m manifest) subject() subject {
	if m.about != "" {
		return subject{about: m.about}
	}
	return subject{file: m.file}
}

// bySubject returns each object under everything that speaks of it: the file that it was read from, its kind,
// and its own reference.
func bySubject(was map[string]object) map[subject][]statement {
	all := map[subject][]statement{}
	for ref, o := range was {
		s := statement{ref: ref, file: o.origin(), object: o}
		kind, _, _ := strings.Cut(ref, "/")
		for _, of := range []subject{{file: s.file}, {about: kind}, {about: ref}} {
			all[of] = append(all[of], s)
		}
	}
	return all
}

func (o object) origin() string {
	switch {
	case o.node != nil:
		return o.node.Origin
	case o.peering != nil:
		return o.peering.Origin
	case o.pool != nil:
		return o.pool.Origin
	case o.edgeNode != nil:
		return o.edgeNode.Origin
	case o.secret != nil:
		return o.secret.Origin
	}
	return ""
}

// from returns a copy of the object with the given origin: the file that now speaks of the object, so that
// the object stays when that file is broken later.
func (o object) from(file string) object {
	switch {
	case o.node != nil:
		n := *o.node
		n.Origin = file
		return object{node: &n}
	case o.peering != nil:
		p := *o.peering
		p.Origin = file
		return object{peering: &p}
	case o.pool != nil:
		p := *o.pool
		p.Origin = file
		return object{pool: &p}
	case o.edgeNode != nil:
		e := *o.edgeNode
		e.Origin = file
		return object{edgeNode: &e}
	case o.secret != nil:
		s := *o.secret
		s.Origin = file
		return object{secret: &s}
	}
	return o
}
