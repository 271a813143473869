package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// documentVersion is the apiVersion of every document that a command prints for programs. A field that has
// another meaning, or is gone, makes it v2.
const documentVersion = "cli.edgeway.io/v1"

// writeDocument writes v, an object, as JSON or YAML. It begins with apiVersion and kind.
func writeDocument(out io.Writer, format, kind string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	text := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,`, documentVersion, kind)
	text = append(text, body[1:]...)
	if format == "yaml" {
		return writeYAML(out, text)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "  "); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	_, err = fmt.Fprintln(out, indented.String())
	return err
}

// writeYAML writes JSON, which is YAML in flow style, in block style.
func writeYAML(out io.Writer, text []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	var block func(n *yaml.Node)
	block = func(n *yaml.Node) {
		if n.Style &^= yaml.FlowStyle; n.Kind == yaml.ScalarNode {
			n.Style = 0 // the encoder quotes a text that would be read as something else
		}
		for _, c := range n.Content {
			block(c)
		}
	}
	block(&doc)
	enc := yaml.NewEncoder(out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// oneOf returns an error unless the format is "" or one of those.
func oneOf(format string, formats ...string) error {
	want := ""
	for i, f := range formats {
		if format == f {
			return nil
		}
		if i > 0 {
			want += " or "
		}
		want += f
	}
	if format == "" {
		return nil
	}
	return fmt.Errorf("-o %q: want %s", format, want)
}
