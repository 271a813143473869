package policy

import (
	"testing"

	"golang.org/x/tools/txtar"
)

// A node writes nothing where its Node says what flannel must know, also in the shorter text that an administrator wrote.
func TestAnnotationsByHand(t *testing.T) {
	a, err := txtar.ParseFile("../../testdata/desired/flannel.txtar")
	if err != nil {
		t.Fatal(err)
	}
	w := worldOf(t, a, "edge-1")
	wanted := Decide(w).Annotations
	if len(wanted) != 6 {
		t.Fatalf("wanted: %v", wanted)
	}
	const prefix = "flannel.alpha.coreos.com/"
	byHand := map[string]string{prefix + "backend-data": `{"VNI":1,"VtepMAC":"9e:db:4d:38:4d:a7"}`, prefix + "backend-v6-data": `{"VNI":1,"VtepMAC":"9E:DB:4D:38:4D:A7"}`}
	for key, value := range wanted {
		if byHand[key] == "" {
			byHand[key] = value
		}
	}
	for i := range w.Cluster.Nodes {
		if w.Cluster.Nodes[i].Name == "edge-1" {
			w.Cluster.Nodes[i].Annotations = byHand
		}
	}
	if got := Decide(w).Annotations; got != nil {
		t.Errorf("written again: %v", got)
	}
	byHand[prefix+"public-ip"] = "192.0.2.99"
	if got, want := Decide(w).Annotations, wanted; len(got) != len(want) {
		t.Errorf("with another address: %v, want %v", got, want)
	}
}
