package plan

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/routes"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing")

// stories are the golden LANs.
const stories = "../../testdata/desired/"

// story reads the manifests and the configuration of a golden LAN.
func story(t *testing.T, name string) (Input, *txtar.Archive) {
	t.Helper()
	a, err := txtar.ParseFile(stories + name + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir, in := t.TempDir(), Input{Config: config.Defaults()}
	for _, f := range a.Files {
		if f.Name == "config.yaml" {
			in.Config, err = config.Parse(f.Data)
		} else if strings.HasSuffix(f.Name, ".yaml") {
			err = os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if in.Cluster, err = cluster.ReadManifests(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return in, a
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// A node of a plan does what the node itself decides on such a machine, to the letter.
func TestPlanIsWhatEachNodeDecides(t *testing.T) {
	for _, name := range []string{"two-lans", "two-resources", "bgpclusterconfig", "no-secret", "long-lived", "source-nat"} {
		in, a := story(t, name)
		p := Of(in)
		for _, f := range a.Files {
			node, ok := strings.CutPrefix(f.Name, "want ")
			if !ok {
				continue
			}
			i := slices.IndexFunc(p.Nodes, func(n Node) bool { return n.Name == node })
			want := regexp.MustCompile(`(?m)^(problem|advice): .*\n`).ReplaceAllString(string(f.Data), "")
			if diff := cmp.Diff(want, p.Nodes[i].Plan.String()); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", name, node, diff)
			}
		}
	}
}

func TestText(t *testing.T) {
	for _, name := range []string{"two-lans", "bgpclusterconfig", "overlay", "mistakes"} {
		in, _ := story(t, name)
		p := Of(in)
		var text, picture bytes.Buffer
		p.Text(&text)
		golden(t, name+".txt", text.Bytes())
		if err := p.SVG(&picture); err != nil {
			t.Fatal(err)
		}
		if name == "two-lans" || name == "mistakes" { // looked at as pictures
			golden(t, name+".svg", picture.Bytes())
		}
	}
}

// A plan does not differ from itself, and a renumbered node shows up where it matters.
func TestDiff(t *testing.T) {
	in, _ := story(t, "two-lans")
	before := Of(in)
	if d := Diff(before, Of(in)); len(d) != 0 {
		t.Errorf("a plan differs from itself: %v", d)
	}
	in.Cluster.Nodes = slices.Clone(in.Cluster.Nodes)[:3] // Node-5, the only speaker of its LAN, is gone
	var out bytes.Buffer
	WriteChanges(&out, Diff(before, Of(in)))
	golden(t, "node-gone.diff", out.Bytes())
}

// A machine that is known counts, not the assumed one; and subnets wider than /24 are told.
func TestMachines(t *testing.T) {
	in, _ := story(t, "two-lans")
	in.Only = "Node-1"
	in.Machines = map[string]routes.Host{"Node-1": {}}
	if n := Of(in).Nodes; len(n) != 1 || n[0].Assumed || len(n[0].Problems) == 0 {
		t.Errorf("with a known machine without any link: %+v", n)
	}
	in.Machines = nil
	in.Config.CNI.MTU = 1400
	if n := Of(in).Nodes; !n[0].Assumed || n[0].MTU != 1400 {
		t.Errorf("assumed: %+v", n)
	}
	if got := Of(in).Nodes[0].LANs; !slices.Equal(got, []uint32{65010}) {
		t.Errorf("LANs: %v", got)
	}
}
