package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func mustSelector(t *testing.T, s string) Selector {
	t.Helper()
	selector, err := ParseSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return selector
}

func fullWorld(t *testing.T) World {
	t.Helper()
	return World{
		Nodes: []Node{
			{Name: "n1", Labels: map[string]string{"ASN": "65010"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("fd00::11")},
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24")}, Origin: "/d/a.yaml"},
			{Name: "n2"},
		},
		Peerings: []Peering{{
			Kind: kindPeer, Name: "a", LocalASN: 65010, Selector: mustSelector(t, "ASN=65010"), Gateway: netip.MustParseAddr("10.0.0.254"),
			Speakers: []Speaker{{Node: "n1", Peers: []Peer{{
				Name: "s", Address: netip.MustParseAddr("10.0.0.1"), Port: 1179, ASN: 65001, MultihopTTL: 2,
				Password: &SecretKey{Name: "bgp", Key: "password"},
			}}}},
		}},
		Secrets: []Secret{{Name: "bgp", Data: map[string][]byte{"password": []byte("hunter2")}}},
		Source:  "manifests /d",
		ReadAt:  time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC),
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	want := fullWorld(t)
	want.Problems = []Problem{{Object: "x"}}
	for range 2 { // the second replaces the first
		if err := Save(path, want); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", st.Mode())
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !got.FromDisk {
		t.Error("not from disk")
	}
	if !Equal(want, got) {
		t.Error("not equal to what was saved")
	}
	want.Problems, want.FromDisk = nil, true
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Errorf("want (-) and got (+):\n%s", d)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v (%v), want the world only", left, err)
	}
}

// A reader sees the old or the new World, never a part of one.
// TestVersionsReadEachOthersState: a node that starts while the cluster cannot be read knows it from the file that another
// version saved, after an upgrade and after a downgrade. An earlier version wrote the file in testdata. It reads back what
// it wrote; it also wrote whether a node is ready, and used it for nothing.
func TestVersionsReadEachOthersState(t *testing.T) {
	const earlier = "testdata/world-of-an-earlier-version.json"
	text, err := os.ReadFile(earlier)
	if err != nil {
		t.Fatal(err)
	}
	w, err := Load(earlier)
	if err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "world.json")
	if err := Save(saved, w); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(regexp.MustCompile(`\n *"ready": .*`).ReplaceAllString(string(text), ""), string(now)); diff != "" {
		t.Errorf("another version does not read this as it was (-earlier +now):\n%s", diff)
	}
}

func TestSaveIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	small, large := World{}, fullWorld(t)
	for i := range 500 {
		large.Nodes = append(large.Nodes, Node{Name: fmt.Sprint("x", i)})
	}
	if err := Save(path, small); err != nil {
		t.Fatal(err)
	}
	saved := make(chan error, 1)
	go func() {
		for range 20 {
			if err := errors.Join(Save(path, large), Save(path, small)); err != nil {
				saved <- err
				return
			}
		}
		saved <- nil
	}()
	for {
		w, err := Load(path)
		if err != nil || !Equal(w, small) && !Equal(w, large) {
			t.Fatalf("got %d nodes, %v", len(w.Nodes), err)
		}
		select {
		case err := <-saved:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}

func TestSaveAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".world.json.new"), []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Save(path, fullWorld(t)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v; want mode 0600", st, err)
	}
}

func TestSaveNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent", "world.json")
	if err := Save(path, World{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":        "",
		"garbage":      "\x00\x01",
		"zeros":        strings.Repeat("\x00", 4096), // a file that lost its data in a power cut
		"no format":    `{"world":{}}`,
		"newer":        `{"format":2,"world":{"nodes":{}}}`,
		"no world":     `{"format":1}`,
		"two":          `{"format":1,"world":{}}{}`,
		"bad address":  `{"format":1,"world":{"nodes":[{"name":"a","addresses":["10.0.0.300"]}]}}`,
		"bad selector": `{"format":1,"world":{"peerings":[{"kind":"BGPPeer","name":"a","selector":"(","speakers":[]}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "world.json")
			mustWrite(t, path, text)
			w, err := Load(path)
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "delete the file") {
				t.Errorf("got %v, %v; want an error with the file and the next step", w, err)
			}
		})
	}
}

func TestLoadTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	if err := Save(path, fullWorld(t)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := strings.LastIndexByte(string(whole), '}')
	for n := range end {
		mustWrite(t, path, string(whole[:n]))
		if w, err := Load(path); err == nil {
			t.Fatalf("the first %d of %d bytes load as %v", n, len(whole), w)
		}
	}
}

func TestLoadAbsent(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "world.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestEqual(t *testing.T) {
	same := map[string]func(*World){
		"read later":   func(w *World) { w.ReadAt = w.ReadAt.Add(time.Hour) },
		"problems":     func(w *World) { w.Problems = []Problem{{Object: "x"}} },
		"from disk":    func(w *World) { w.FromDisk = true },
		"other order":  func(w *World) { w.Nodes[0], w.Nodes[1] = w.Nodes[1], w.Nodes[0] },
		"nothing else": func(w *World) {},
	}
	for name, change := range same {
		w := fullWorld(t)
		if change(&w); !Equal(fullWorld(t), w) {
			t.Errorf("%s: not equal", name)
		}
	}
	different := map[string]func(*World){
		"source":   func(w *World) { w.Source = "x" },
		"label":    func(w *World) { w.Nodes[0].Labels["ASN"] = "1" },
		"origin":   func(w *World) { w.Nodes[0].Origin = "x" },
		"selector": func(w *World) { w.Peerings[0].Selector = mustSelector(t, "all()") },
		"password": func(w *World) { w.Secrets[0].Data["password"] = []byte("x") },
		"peer":     func(w *World) { w.Peerings[0].Speakers[0].Peers[0].TTLSecurity = true },
		"no nodes": func(w *World) { w.Nodes = nil },
	}
	for name, change := range different {
		w := fullWorld(t)
		if change(&w); Equal(fullWorld(t), w) {
			t.Errorf("%s: equal", name)
		}
	}
	if !Equal(World{}, World{Nodes: []Node{}, Secrets: []Secret{}}) {
		t.Error("nil and empty lists are not equal")
	}
}

func TestWorldNode(t *testing.T) {
	w := fullWorld(t)
	if n, ok := w.Node("n1"); !ok || n.Name != "n1" {
		t.Errorf("got %v, %v", n, ok)
	}
	if _, ok := w.Node("absent"); ok {
		t.Error("found an absent node")
	}
}

func TestPrintedWorldShowsNoPassword(t *testing.T) {
	w := fullWorld(t)
	for _, format := range []string{"%v", "%+v", "%s"} {
		if text := fmt.Sprintf(format, w); strings.Contains(text, "hunter2") || strings.Contains(text, "104 117") {
			t.Errorf("%s shows the password: %s", format, text)
		}
	}
}

func TestProblemString(t *testing.T) {
	for want, p := range map[string]Problem{
		"BGPPeer/a: want x, got y; correct z": {Object: "BGPPeer/a", Reason: "r", Want: "x", Got: "y", Next: "correct z"},
		"BGPPeer/a: want x; correct z":        {Object: "BGPPeer/a", Reason: "r", Want: "x", Next: "correct z"},
		"BGPPeer/a: got y; correct z":         {Object: "BGPPeer/a", Reason: "r", Got: "y", Next: "correct z"},
		"BGPPeer/a: r":                        {Object: "BGPPeer/a", Reason: "r"},
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSelector(t *testing.T) {
	labels := map[string]string{"ASN": "65010", "pool": "a", "alibabacloud.com/nodepool-id": "npxxx"}
	for text, want := range map[string]bool{
		"all()":                              true,
		" all() ":                            true,
		"ASN=65010":                          true,
		"ASN==65010":                         true,
		"ASN=65020":                          false,
		"ASN":                                true,
		"!ASN":                               false,
		"pool in (a,b)":                      true,
		"pool notin (a,b)":                   false,
		"pool=a, ASN!=65020":                 true,
		"alibabacloud.com/nodepool-id=npxxx": true,
		"absent=x":                           false,
	} {
		s := mustSelector(t, text)
		if got := s.Selects(labels); got != want {
			t.Errorf("%q: selects %v, want %v", text, got, want)
		}
		encoded, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var again Selector
		if err := json.Unmarshal(encoded, &again); err != nil || !again.Equal(s) || again.Selects(labels) != want {
			t.Errorf("%q: %s came back as %q (%v)", text, encoded, again, err)
		}
	}
	for _, text := range []string{"", "  ", ",", "all(", "all(),a=b", "a=b=c", "(", "a in ()b", "a b"} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%q parses as %q", text, s)
		}
	}
	if (Selector{}).Selects(nil) || (Selector{}).Selects(labels) {
		t.Error("the zero Selector selects something")
	}
	var zero Selector
	if err := json.Unmarshal([]byte(`""`), &zero); err != nil || !zero.Equal(Selector{}) {
		t.Errorf("the zero Selector does not come back: %v", err)
	}
	if err := json.Unmarshal([]byte(`5`), &zero); err == nil {
		t.Error("a number is a selector")
	}
}

func TestMergeKeepsAndForgets(t *testing.T) {
	node := func(name, file string) object { return object{node: &Node{Name: name, Origin: file}} }
	stated := func(file string, names ...string) manifest {
		m := manifest{file: file}
		for _, n := range names {
			m.statements = append(m.statements, statement{ref: "Node/" + n, file: file, object: node(n, file)})
		}
		return m
	}
	invalid := func(file string, names ...string) manifest {
		m := manifest{file: file}
		for _, n := range names {
			m.statements = append(m.statements, statement{ref: "Node/" + n, file: file, problems: []Problem{{Object: "Node/" + n, Reason: badValue}}})
		}
		return m
	}
	broken := func(file string) manifest { return brokenManifest(file, Problem{Reason: badManifest}) }
	unsure := func(m manifest) manifest { m.unsure = true; return m }
	earlier := map[string]string{"version": "earlier"}
	for _, test := range []struct {
		name  string
		last  []Node
		files []manifest
		want  []Node
	}{
		{"nothing", nil, nil, nil},
		{"stated", nil, []manifest{stated("a", "x")}, []Node{{Name: "x", Origin: "a"}}},
		{"file gone", []Node{{Name: "x", Origin: "a"}}, []manifest{stated("b", "y")}, []Node{{Name: "y", Origin: "b"}}},
		{"document gone", []Node{{Name: "x", Origin: "a"}, {Name: "y", Origin: "a"}}, []manifest{stated("a", "y")}, []Node{{Name: "y", Origin: "a"}}},
		{"broken keeps its own", []Node{{Name: "x", Origin: "a"}, {Name: "y", Origin: "b"}}, []manifest{broken("a")}, []Node{{Name: "x", Origin: "a"}}},
		{"broken on the first reading", nil, []manifest{broken("a"), stated("b", "y")}, []Node{{Name: "y", Origin: "b"}}},
		{"invalid keeps", []Node{{Name: "x", Origin: "a"}}, []manifest{invalid("a", "x")}, []Node{{Name: "x", Origin: "a"}}},
		{"invalid in another file keeps", []Node{{Name: "x", Origin: "a"}}, []manifest{invalid("b", "x")}, []Node{{Name: "x", Origin: "b"}}},
		{"invalid from nowhere keeps", []Node{{Name: "x"}}, []manifest{invalid("b", "x")}, []Node{{Name: "x", Origin: "b"}}},
		{"invalid and new", nil, []manifest{invalid("a", "x")}, nil},
		{"invalid shadows a later valid one", []Node{{Name: "x", Origin: "a", Labels: earlier}}, []manifest{invalid("a", "x"), stated("b", "x")}, []Node{{Name: "x", Origin: "a", Labels: earlier}}},
		{"first file counts", nil, []manifest{stated("b", "x"), stated("a", "x")}, []Node{{Name: "x", Origin: "a"}}},
		{"broken first file still counts", []Node{{Name: "x", Origin: "a", Labels: earlier}}, []manifest{broken("a"), stated("b", "x")}, []Node{{Name: "x", Origin: "a", Labels: earlier}}},
		{"broken later file does not", []Node{{Name: "x", Origin: "b", Labels: earlier}}, []manifest{stated("a", "x"), broken("b")}, []Node{{Name: "x", Origin: "a"}}},
		{"unsure keeps what is not stated", []Node{{Name: "x", Origin: "a"}, {Name: "y", Origin: "a", Labels: earlier}, {Name: "z", Origin: "b"}}, []manifest{unsure(stated("a", "y"))}, []Node{{Name: "x", Origin: "a"}, {Name: "y", Origin: "a"}}},
		{"unsure yields to another file", []Node{{Name: "x", Origin: "a", Labels: earlier}}, []manifest{unsure(stated("a")), stated("b", "x")}, []Node{{Name: "x", Origin: "b"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := merge(test.files, World{Nodes: test.last})
			if d := cmp.Diff(test.want, got.Nodes, byValue, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("want (-) and got (+):\n%s", d)
			}
			again := merge(test.files, got)
			if d := cmp.Diff(got, again, byValue); d != "" {
				t.Errorf("the second merge differs:\n%s", d)
			}
		})
	}
}

// Each field of a Node counts in Equal.
func TestEqualSeesEachFieldOfANode(t *testing.T) {
	full := Node{
		Name: "n", Labels: map[string]string{"a": "b"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Origin: "o", Since: time.Unix(1, 0), Annotations: map[string]string{"c": "d"},
	}
	if !Equal(World{Nodes: []Node{full}}, World{Nodes: []Node{full}}) {
		t.Error("not equal to itself")
	}
	for i := range reflect.TypeFor[Node]().NumField() {
		other := full
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if Equal(World{Nodes: []Node{full}}, World{Nodes: []Node{other}}) {
			t.Errorf("equal without %s", reflect.TypeFor[Node]().Field(i).Name)
		}
	}
}

func BenchmarkEqualOf5000Nodes(b *testing.B) {
	var w World
	for i := range 5000 {
		w.Nodes = append(w.Nodes, Node{Name: fmt.Sprintf("n%04d", i), Labels: map[string]string{"pool": "a", "zone": "z", "kubernetes.io/arch": "amd64"},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	}
	for b.Loop() {
		if !Equal(w, w) {
			b.Fatal("not equal")
		}
	}
}
