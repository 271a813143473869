package cluster

import (
	"bytes"
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

// No answer of an API server makes us panic, and each object that we take from it can be read.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"kind":"NodeList","metadata":{"resourceVersion":"7","continue":""},"items":[{"metadata":{"name":"n"},"spec":{"podCIDR":"10.0.0.0/24"}}]}`))
	f.Add([]byte(`{"type":"MODIFIED","object":{"metadata":{"name":"n","resourceVersion":"8"}}}{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}`))
	f.Add([]byte(`{"kind":"BGPPeerList","metadata":{"resourceVersion":"7"},"items":[null]}`))
	f.Add([]byte(`{"type":"ADDED","object":null}`))
	f.Add([]byte(`{"type":"ERROR","object":{"kind":"Status","code":410,"details":{"retryAfterSeconds":1}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range append(ownKinds(), kindNode, kindSecret) {
			of := kind{APIVersion(name), name}
			take := func(it item) {
				if s := it.statement(of); !s.valid() && len(s.problems) == 0 {
					t.Errorf("%s is not valid and has no problem", it.text)
				}
			}
			_, _ = readList(bytes.NewReader(text), of, take)
			_ = readEvents(bytes.NewReader(text), func(_ string, object func(any) error) error {
				it, err := readItem(of, object)
				if err == nil {
					take(it)
				}
				return err
			})
			_ = refusal(text, 0, 0)
		}
	})
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
