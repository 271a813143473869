package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"
)

// stories are all objects of ours in the files of each story, valid and not: as JSON, by name.
func stories(t *testing.T) map[string]map[string]json.RawMessage {
	t.Helper()
	all := map[string]map[string]json.RawMessage{}
	for _, pattern := range []string{"testdata/*.txtar", "../../testdata/desired/*.txtar"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatal(pattern, err)
		}
		for _, path := range paths {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			objects := map[string]json.RawMessage{}
			for _, f := range archive.Files {
				for _, doc := range strings.Split("\n"+string(f.Data), "\n---\n") {
					collect(objects, []byte(doc))
				}
			}
			if len(objects) > 0 {
				all[path] = objects
			}
		}
	}
	return all
}

// collect adds the objects of a document that an API server could hold.
func collect(objects map[string]json.RawMessage, doc []byte) {
	text, err := yaml.YAMLToJSON(doc)
	var o struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Items      []json.RawMessage `json:"items"`
		Metadata   struct {
			Name, Namespace string
			Labels          map[string]string
		} `json:"metadata"`
	}
	if err != nil || json.Unmarshal(text, &o) != nil {
		return
	}
	for _, item := range o.Items {
		collect(objects, item)
	}
	ref := o.Kind + "/" + o.Metadata.Name
	if !(kind{o.APIVersion, o.Kind}).ours() || o.Metadata.Name == "" || strings.Contains(o.Metadata.Name, " ") ||
		o.Kind == kindSecret && o.Metadata.Namespace != "" && o.Metadata.Namespace != secretNamespace {
		return
	}
	if _, there := objects[ref]; there {
		return
	}
	// A key of metadata that Kubernetes does not know cannot come out of an API server.
	var object map[string]any
	if json.Unmarshal(text, &object) == nil {
		maps.DeleteFunc(object["metadata"].(map[string]any), func(key string, _ any) bool { return !slices.Contains(metadataKeys, key) })
		objects[ref] = mustJSON(object)
	}
}

// Both sources say the same of the same objects, with the same problems where they are not valid.
func TestBothSourcesSayTheSame(t *testing.T) {
	for path, objects := range stories(t) {
		t.Run(path, func(t *testing.T) {
			s, dir := newAPIServer(t), t.TempDir()
			for ref, text := range objects {
				mustWrite(t, filepath.Join(dir, strings.ReplaceAll(ref, "/", "-")+".json"), string(text))
				kind, _, _ := strings.Cut(ref, "/")
				s.put(kind, jsonOf(t, string(text)))
			}
			want, err := Manifests(dir).World(t.Context(), World{})
			if err != nil {
				t.Fatal(err)
			}
			o := KubernetesOptions{Kubeconfig: s.kubeconfig(t), Node: self}
			for _, p := range want.Peerings {
				for _, s := range p.Speakers {
					if len(want.passwords(s.Node)) > len(want.passwords(o.Node)) {
						o.Node = s.Node // the one that reads most
					}
				}
			}
			compareSources(t, newClientOf(t, o, hasty), want)
		})
	}
}

func compareSources(t *testing.T, c *client, want World) {
	t.Helper()
	needed := want.passwords(c.source.options.Node)
	want.EdgeNodes = slices.DeleteFunc(want.EdgeNodes, func(e EdgeNode) bool { return e.Name != c.source.options.Node })
	want.Secrets = slices.DeleteFunc(want.Secrets, func(s Secret) bool { return !slices.Contains(needed, s.Name) })
	want = want.onlyKeys(want.NodeKeys())
	var diff string
	defer func() {
		if t.Failed() {
			t.Log(diff)
		}
	}()
	c.until(t, "the same objects", func(got World, err error) bool {
		diff = cmp.Diff(comparable(want), comparable(got), byValue)
		return err == nil && diff == ""
	})
}

// comparable leaves out what differs between the sources: where an object stands.
func comparable(w World) World {
	w = canonical(w)
	w.Source, w.Ahead = "", 0
	w.Problems = slices.Clone(w.Problems)
	for i := range w.Nodes {
		w.Nodes[i].Origin = ""
	}
	for i := range w.Peerings {
		w.Peerings[i].Origin = ""
	}
	for i := range w.Pools {
		w.Pools[i].Origin = ""
	}
	for i := range w.EdgeNodes {
		w.EdgeNodes[i].Origin, w.EdgeNodes[i].Generation = "", 0
	}
	for i := range w.Secrets {
		w.Secrets[i].Origin = ""
	}
	for i := range w.Problems {
		_, then, _ := strings.Cut(w.Problems[i].Next, ";")
		w.Problems[i].Next = then
		// An API server copies the one into the other.
		w.Problems[i].Want = strings.ReplaceAll(w.Problems[i].Want, "spec.podCIDRs[0]", "spec.podCIDR")
	}
	return w
}

// The next step of an operator is a command, not a line of a file.
func TestProblemOfAnAPIObject(t *testing.T) {
	s := newAPIServer(t)
	s.put(kindNode, jsonOf(t, `{"metadata":{"name":"n1"},"spec":{"podCIDR":"10.0.0.1/24"},"status":{}}`))
	s.put(kindPeer, jsonOf(t, `{"metadata":{"name":"p"},"spec":{"localSpeakers":["n1"],"localAsNumber":65010,"peerIP":"192.0.2.1","peerAsNumber":65001,
		"nodeSelector":"all()","authPassword":{"secretKeyRef":{"name":"bgp","key":"password"}},"peerPort":0}}`))
	c := newClient(t, s.kubeconfig(t), hasty)
	w := c.until(t, "problems", func(w World, err error) bool { return err == nil && len(w.Problems) == 2 })
	got := fmt.Sprintln(w.Problems[0]) + fmt.Sprintln(w.Problems[1])
	want := `BGPPeer/p: want a number from 1 to 65535 in spec.peerPort, got 0; correct it: kubectl edit bgppeer p; until then it does not count
Node/n1: want 10.0.0.0/24 (no host bits) in spec.podCIDR, got "10.0.0.1/24"; correct it: kubectl edit node n1; until then it does not count
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// An object that was valid keeps its last valid version when it is edited into nonsense.
func TestKubernetesKeepsTheLastValidVersion(t *testing.T) {
	s, c := known(t)
	p := apiPeer(t, "lan", `"n1"`)
	p["spec"].(map[string]any)["peerIP"] = "192.0.2.300"
	s.put(kindPeer, p)
	problem := c.untilProblem(t, all, badAddress)
	if problem.Object != "BGPPeer/lan" || !strings.Contains(problem.Next, "its last valid version stays") {
		t.Errorf("got %s", problem)
	}
	secret := apiSecret(t, "bgp", "")
	secret["data"].(map[string]any)["password"] = "*"
	s.put(kindPeer, apiPeer(t, "lan", `"n1"`))
	s.put(kindSecret, secret)
	c.untilProblem(t, all, badSecret)
}
