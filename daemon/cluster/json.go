package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDepth bounds the nesting of a JSON document; a Kubernetes object has about ten levels.
const maxDepth = 1000

// jsonDocuments reads the JSON values of text as YAML nodes, with their lines. YAML's own parser will not do:
// it refuses the escapes \/ and \ud83d\ude00.
type jsonDocuments struct {
	text    []byte
	decoder *json.Decoder
	counted int64 // offset up to which lines are counted
	line    int
}

func newJSONDocuments(text []byte) *jsonDocuments {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	d := &jsonDocuments{text: text, decoder: json.NewDecoder(bytes.NewReader(text)), line: 1}
	d.decoder.UseNumber()
	return d
}

// next returns the next value, or io.EOF at the end.
func (d *jsonDocuments) next() (*yaml.Node, error) {
	token, err := d.decoder.Token()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	var n *yaml.Node
	if err == nil {
		n, err = d.value(token, 0)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", d.here(), err)
	}
	return n, nil
}

// here is the line of the token that was read last.
func (d *jsonDocuments) here() int {
	offset := min(d.decoder.InputOffset(), int64(len(d.text)))
	d.line += bytes.Count(d.text[d.counted:offset], []byte("\n"))
	d.counted = offset
	return d.line
}

func (d *jsonDocuments) value(token json.Token, depth int) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: d.here()}
	switch v := token.(type) {
	case string:
		n.Tag, n.Value = "!!str", v
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(v)
	case json.Number:
		n.Tag, n.Value = "!!int", v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case json.Delim:
		if depth > maxDepth {
			return nil, fmt.Errorf("more than %d levels", maxDepth)
		}
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if v == '[' {
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		}
		// A mapping's keys and values come one after the other, as in a yaml.Node.
		for d.decoder.More() {
			token, err := d.decoder.Token()
			if err != nil {
				return nil, err
			}
			item, err := d.value(token, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		if _, err := d.decoder.Token(); err != nil {
			return nil, err
		}
	default:
		n.Tag = "!!null"
	}
	return n, nil
}
