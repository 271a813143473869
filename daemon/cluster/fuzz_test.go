package cluster

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// The parser never panics, and what it accepts survives a save and is stated again by itself.
func FuzzManifest(f *testing.F) {
	stories, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range stories {
		story, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range story.Files {
			if isManifest(filepath.Base(file.Name)) {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, file := range []string{"f.yaml", "f.json"} {
			readAndMerge(t, file, text)
		}
	})
}

func readAndMerge(t *testing.T, file string, text []byte) {
	t.Helper()
	w := merge([]manifest{readManifest(file, text)}, World{})
	encoded, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var decoded World
	if err := json.Unmarshal(encoded, &decoded); err != nil {
		t.Fatalf("%v in %s", err, encoded)
	}
	if !Equal(w, decoded) {
		t.Errorf("%s does not come back", encoded)
	}
	again := merge([]manifest{readManifest(file, text)}, w)
	if !Equal(w, again) {
		t.Errorf("the second reading differs")
	}
	kept := merge([]manifest{brokenManifest(file, Problem{})}, w)
	if !Equal(w, kept) {
		t.Errorf("a broken file does not keep all")
	}
	for _, p := range w.Problems {
		if p.Object == "" || p.Reason == "" || p.Next == "" {
			t.Errorf("incomplete problem %+v", p)
		}
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{"all()", "ASN=65010", "a in (b,c),!d", "x>1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		s.Selects(map[string]string{"a": "b"})
		again, err := ParseSelector(s.String())
		if err != nil || !again.Equal(s) {
			t.Errorf("%q came back as %q: %v", s, again, err)
		}
	})
}
