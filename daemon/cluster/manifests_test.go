package cluster

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what is seen into the golden files")

// Each story in testdata is a directory of manifests over time: the files below "1/" are there
// first, those below "2/" replace them, and so on. After each step "N/world" is the World, a line for each object,
// and "N/problems" are its problems, a line each.
func TestStories(t *testing.T) {
	stories, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(stories) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, path := range stories {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			seen := tell(t, archive)
			if *update {
				if err := os.WriteFile(path, txtar.Format(seen), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(txtar.Format(archive)), string(txtar.Format(seen))); d != "" {
				t.Errorf("want (-) and got (+):\n%s", d)
			}
		})
	}
}

// tell plays the story and returns it with the Worlds and problems that it gave.
func tell(t *testing.T, story *txtar.Archive) *txtar.Archive {
	t.Helper()
	steps := map[string][]txtar.File{}
	var order []string
	for _, f := range story.Files {
		step, name, _ := strings.Cut(f.Name, "/")
		if !slices.Contains(order, step) {
			order = append(order, step)
		}
		if name != "world" && name != "problems" {
			steps[step] = append(steps[step], f)
		}
	}
	seen := &txtar.Archive{Comment: story.Comment}
	dir := filepath.Join(t.TempDir(), "cluster.d")
	var last World
	for _, step := range order {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		mustMkdir(t, dir)
		for _, f := range steps[step] {
			mustWrite(t, filepath.Join(dir, strings.TrimPrefix(f.Name, step+"/")), string(f.Data))
			seen.Files = append(seen.Files, f)
		}
		w, err := Manifests(dir).World(t.Context(), last)
		if err != nil {
			t.Fatalf("step %s: %v", step, err)
		}
		again, err := Manifests(dir).World(t.Context(), w)
		if err != nil || !Equal(w, again) || cmp.Diff(w.Problems, again.Problems) != "" {
			t.Errorf("step %s: the second reading differs (%v):\n%s", step, err, cmp.Diff(w, again, byValue))
		}
		last = w
		seen.Files = append(seen.Files,
			txtar.File{Name: step + "/world", Data: []byte(shown(t, w, dir))},
			txtar.File{Name: step + "/problems", Data: []byte(problemLines(t, w, dir))})
	}
	return seen
}

// shown is a World with a line for each object.
func shown(t *testing.T, w World, dir string) string {
	t.Helper()
	var lines strings.Builder
	line := func(noun string, object any) {
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		lines.WriteString(noun + " " + strings.ReplaceAll(string(text), dir, "/d") + "\n")
	}
	for _, n := range w.Nodes {
		line("node", n)
	}
	for _, p := range w.Peerings {
		line("peering", p)
	}
	for _, e := range w.EdgeNodes {
		line("edge node", e)
	}
	for _, s := range w.Secrets {
		line("secret", s)
	}
	return lines.String()
}

// password is in every story's manifests that have one, and must not be in any message.
const password = "hunter2"

func problemLines(t *testing.T, w World, dir string) string {
	t.Helper()
	var lines strings.Builder
	for _, p := range w.Problems {
		lines.WriteString(string(p.Reason) + ": " + p.String() + "\n")
	}
	if strings.Contains(lines.String(), password) {
		t.Errorf("problems show a password:\n%s", &lines)
	}
	return strings.ReplaceAll(lines.String(), dir, "/d")
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustMkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func mustRename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mustSymlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

const nodeManifest = `apiVersion: v1
kind: Node
metadata: {name: NAME}
spec: {podCIDR: 10.10.1.0/24}
`

func nodeNamed(name string) string { return strings.ReplaceAll(nodeManifest, "NAME", name) }

func names(w World) []string {
	var all []string
	for _, n := range w.Nodes {
		all = append(all, n.Name)
	}
	return all
}

// readNames reads the directory and wants exactly these nodes and problem reasons.
func wantRead(t *testing.T, dir string, last World, nodes []string, reasons []Reason) World {
	t.Helper()
	w, err := Manifests(dir).World(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	var got []Reason
	for _, p := range w.Problems {
		got = append(got, p.Reason)
	}
	if d := cmp.Diff(nodes, names(w)); d != "" {
		t.Errorf("nodes, want (-) and got (+):\n%s", d)
	}
	if d := cmp.Diff(reasons, got); d != "" {
		t.Errorf("problems, want (-) and got (+):\n%s\n%v", d, w.Problems)
	}
	return w
}

func TestMissingDirectoryKeepsLast(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	last := World{Nodes: []Node{{Name: "a"}}}
	w, err := Manifests(dir).World(t.Context(), last)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v does not name %s", err, dir)
	}
	if !Equal(w, last) {
		t.Errorf("got %v, want the last World", w)
	}
}

// One file of a thousand is edited, again and again.
func BenchmarkEditOf1000Files(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		name := fmt.Sprintf("n%d", i)
		text := fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata:\n  name: %s\n  labels: {pool: a, zone: z%d}\nspec:\n  podCIDRs: [10.%d.%d.0/24]\nstatus:\n  addresses:\n  - {type: InternalIP, address: 172.16.%d.%d}\n  conditions:\n  - {type: Ready, status: \"True\"}\n",
			name, i%10, i/256, i%256, i/256, i%256)
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	source := Manifests(dir)
	w, err := source.World(b.Context(), World{})
	if err != nil || len(w.Nodes) != 1000 {
		b.Fatal(len(w.Nodes), err)
	}
	edits := 0
	for b.Loop() {
		edits++
		text := fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: n7, labels: {edit: e%d}}\n", edits)
		if err := os.WriteFile(filepath.Join(dir, "n7.yaml"), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		if w, err = source.World(b.Context(), w); err != nil {
			b.Fatal(err)
		}
		if n, _ := w.Node("n7"); n.Labels["edit"] != fmt.Sprintf("e%d", edits) {
			b.Fatalf("got %v", n)
		}
	}
}

func TestEmptyDirectoryKeepsLast(t *testing.T) {
	dir := t.TempDir()
	wantRead(t, dir, World{}, nil, nil)
	mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("a"))
	w := wantRead(t, dir, World{}, []string{"a"}, nil)
	mustRename(t, filepath.Join(dir, "a.yaml"), filepath.Join(dir, "a.yaml~"))
	w = wantRead(t, dir, w, []string{"a"}, []Reason{emptyDirectory})
	mustWrite(t, filepath.Join(dir, "none.yaml"), "apiVersion: v1\nkind: List\nitems: []\n")
	wantRead(t, dir, w, nil, nil)
}

func TestOnlyManifestsAreRead(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yml", "c.json"} {
		mustWrite(t, filepath.Join(dir, name), `{"apiVersion":"v1","kind":"Node","metadata":{"name":"`+name[:1]+`"}}`)
	}
	for _, name := range []string{".h.yaml", "i.yaml~", "#j.yaml#", ".k.yaml.swp", "l.txt", "m"} {
		mustWrite(t, filepath.Join(dir, name), "{")
	}
	mustMkdir(t, filepath.Join(dir, "sub.yaml"))
	mustWrite(t, filepath.Join(dir, "sub.yaml", "n.yaml"), "{")
	wantRead(t, dir, World{}, []string{"a", "b", "c"}, nil)
}

func TestUnreadableFileKeepsItsObjects(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	mustWrite(t, path, nodeNamed("a"))
	mustWrite(t, filepath.Join(dir, "b.yaml"), nodeNamed("b"))
	w := wantRead(t, dir, World{}, []string{"a", "b"}, nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	mustSymlink(t, "nowhere", path)
	w = wantRead(t, dir, w, []string{"a", "b"}, []Reason{unreadableFile})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wantRead(t, dir, w, []string{"b"}, nil)
}

// Opening a FIFO without a writer would block for ever.
func TestFIFOIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "a.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantRead(t, dir, World{}, nil, []Reason{unreadableFile})
}

func TestConfigMapMount(t *testing.T) {
	dir := t.TempDir()
	configMap(t, dir, "..2026_1", map[string]string{"a.yaml": nodeNamed("a"), "b.yaml": nodeNamed("b")})
	w := wantRead(t, dir, World{}, []string{"a", "b"}, nil)
	configMap(t, dir, "..2026_2", map[string]string{"a.yaml": nodeNamed("c"), "b.yaml": nodeNamed("b")})
	wantRead(t, dir, w, []string{"b", "c"}, nil)
}

// configMap writes the files as kubelet's atomic writer does (pkg/volume/util/atomic_writer.go):
// a new directory, then the link ..data renamed to it.
func configMap(t *testing.T, dir, version string, files map[string]string) {
	t.Helper()
	mustMkdir(t, filepath.Join(dir, version))
	for name, text := range files {
		mustWrite(t, filepath.Join(dir, version, name), text)
	}
	mustSymlink(t, version, filepath.Join(dir, "..data_tmp"))
	mustRename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	for name := range files {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			mustSymlink(t, filepath.Join("..data", name), filepath.Join(dir, name))
		}
	}
}

func TestWorldSaysWhereAndWhen(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	source := &manifests{dir: dir, clock: func() time.Time { return now }}
	w, err := source.World(t.Context(), World{FromDisk: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.Source != "manifests "+dir || !w.ReadAt.Equal(now) || w.FromDisk {
		t.Errorf("got source %q, read at %v, from disk %v", w.Source, w.ReadAt, w.FromDisk)
	}
}

func TestWorldObeysContext(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	last := World{Nodes: []Node{{Name: "z"}}}
	w, err := Manifests(dir).World(ctx, last)
	if err == nil || !Equal(w, last) {
		t.Errorf("got %v, %v; want the last World and an error", names(w), err)
	}
}
