package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// schema is the part of a CRD's schema that says something about a field.
type schema struct {
	Type, Description, Format string
	Minimum, Maximum          *int64
	MinItems                  *int64 `yaml:"minItems"`
	Default                   any
	Required                  []string
	Properties                map[string]schema
	Items                     *schema
	AnyOf                     []schema `yaml:"anyOf"`
	Validations               []struct {
		Message string
	} `yaml:"x-kubernetes-validations"`
}

type crd struct {
	Spec struct {
		Group, Scope string
		Names        struct {
			Kind, Plural string
			ShortNames   []string `yaml:"shortNames"`
		}
		Versions []struct {
			Name   string
			Schema struct {
				Schema schema `yaml:"openAPIV3Schema"`
			}
		}
	}
}

// docs/resources.md is what the CRDs say: go test ./daemon/edgewayd -run TestResources -update.
func TestResources(t *testing.T) {
	files, err := filepath.Glob("../../deploy/kubernetes/crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var page strings.Builder
	page.WriteString("# The resources, field by field\n\nGenerated from the [CRDs](../deploy/kubernetes/crds). `kubectl explain bgppeer.spec` says the same. An API server refuses what is not allowed here;\n" +
		"a directory of manifests is checked by the same rules, and `edgewayd plan -f DIR` says what is wrong. A directory also holds\n[Nodes](../README.md#on-a-node), and the Secrets with the passwords, in the namespace kube-system.\n")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c crd
		if err := yaml.Unmarshal(text, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		v := c.Spec.Versions[0]
		fmt.Fprintf(&page, "\n## %s\n%s\n\n`apiVersion: %s/%s`, scope %s, `kubectl get %s`.\n", c.Spec.Names.Kind, sentence(v.Schema.Schema.Description),
			c.Spec.Group, v.Name, strings.ToLower(c.Spec.Scope), c.Spec.Names.Plural)
		for _, part := range []string{"spec", "status"} {
			s, there := v.Schema.Schema.Properties[part]
			if !there {
				continue
			}
			fmt.Fprintf(&page, "\n### %s of %s\n%s\n\n| field | type | |\n|---|---|---|\n", part, c.Spec.Names.Kind, sentence(s.Description))
			s.rows(&page, part)
			for _, v := range s.Validations {
				fmt.Fprintf(&page, "\nRule: %s.\n", v.Message)
			}
		}
	}
	const golden = "../../docs/resources.md"
	if *update {
		if err := os.WriteFile(golden, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), page.String()); diff != "" {
		t.Errorf("run it with -update (-want +got):\n%s", diff)
	}
}

// sentence returns the text in one line of a table.
func sentence(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// rows writes a row for each field below path: the required ones first, then by name.
func (s schema) rows(page *strings.Builder, path string) {
	names := slices.SortedFunc(maps.Keys(s.Properties), func(a, b string) int {
		required := func(name string) int {
			if slices.Contains(s.Required, name) {
				return slices.Index(s.Required, name)
			}
			return len(s.Required)
		}
		if d := required(a) - required(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		f, at := s.Properties[name], path+"."+name
		if f.Description == "" {
			continue // a restriction of a field that has its own row
		}
		kind := f.kind()
		if slices.Contains(s.Required, name) {
			kind += ", required"
		}
		fmt.Fprintf(page, "| `%s` | %s | %s |\n", at, kind, strings.Join(append([]string{sentence(f.Description)}, f.limits()...), " "))
		f.rows(page, at)
		if f.Items != nil {
			f.Items.rows(page, at+"[]")
		}
	}
}

func (s schema) kind() string {
	switch {
	case s.Type == "array" && s.Items != nil && s.Items.Type != "object": // a list of numbers is not used
		return "list of texts"
	case s.Type == "array":
		return "list"
	case s.Format == "date-time":
		return "time"
	case slices.ContainsFunc(s.AnyOf, func(o schema) bool { return o.Format == "ipv4" }):
		return "address"
	case s.Type == "":
		return "text or object"
	case s.Type == "string":
		return "text"
	}
	return s.Type
}

// limits returns a sentence for each restriction that the type does not say.
func (s schema) limits() (out []string) {
	if s.Type == "integer" && s.Minimum != nil && s.Maximum != nil {
		limit := fmt.Sprintf("%d to %d", *s.Minimum, *s.Maximum)
		for _, v := range s.Validations {
			limit += "; " + v.Message
		}
		out = append(out, limit+".")
	}
	if s.Type == "array" && s.MinItems != nil {
		out = append(out, fmt.Sprintf("At least %d entry.", *s.MinItems))
	}
	if s.Default != nil {
		out = append(out, fmt.Sprintf("Default %v.", s.Default))
	}
	return out
}
