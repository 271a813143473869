package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Files that grow when they are read end with a problem, and soon.
func TestBombs(t *testing.T) {
	aliases := func(n int) string { return strings.Repeat("*a, ", n) }
	merges := "x0: &x0 {k: v}\n"
	for i := range 20 {
		merges += fmt.Sprintf("x%d: &x%d {<<: [%s]}\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*x%d, ", i), 20))
	}
	bombs := map[string]string{
		"list of itself":   "apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: List, items: [" + aliases(1000) + "]}\n",
		"merge of itself":  "&a\napiVersion: v1\nkind: Node\nmetadata: {name: a}\n<<: [" + aliases(20000) + "]\n",
		"merges of merges": merges + "apiVersion: v1\nkind: Node\nmetadata: {name: a, <<: *x20}\n",
		"deep":             strings.Repeat("[", 200_000),
		"deep blocks":      strings.Repeat("- ", 200_000),
		"many problems":    "apiVersion: network.openyurt.io/v1alpha1\nkind: BGPPeer\nmetadata: {name: a}\nspec:\n  localSpeakers: [" + strings.Repeat("a b, ", 20000) + "]\n",
	}
	for name, text := range bombs {
		for _, file := range []string{"bomb.yaml", "bomb.json"} {
			started := time.Now()
			w := merge([]manifest{readManifest(file, []byte(text))}, World{})
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("%s as %s took %v", name, file, took)
			}
			if len(w.Nodes)+len(w.Peerings) != 0 || len(w.Problems) == 0 || len(w.Problems) > maxProblems {
				t.Errorf("%s: got %d nodes, %d peerings, %d problems", name, len(w.Nodes), len(w.Peerings), len(w.Problems))
			}
		}
	}
}
