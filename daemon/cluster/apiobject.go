package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// item is one object as an API server sent it.
type item struct {
	name    string
	version string // its resourceVersion
	sum     digest // of text: items with equal sums say the same
	text    []byte // the part of the object that we use, as JSON
	wrong   error  // a value has a type that Kubernetes does not allow there; nil: all types are right
}

// errNoObject says that the text is JSON but not a Kubernetes object.
var errNoObject = errors.New("something that is not a Kubernetes object")

// readItem keeps the part of an object that we use. A Node has 20 KB, most of it the status that its kubelet
// writes every five minutes; only the remaining 1 KB can change anything here. decode decodes straight into
// the used fields: a second scan of 20 KB costs as much as everything else.
func readItem(k kind, decode func(any) error) (item, error) {
	var it item
	var used any
	if k.kind == kindNode {
		n := usedNode{APIVersion: k.apiVersion, Kind: k.kind}
		if err := decode(&n); errors.As(err, new(*json.UnmarshalTypeError)) {
			it.wrong = err // the rest was decoded
		} else if err != nil {
			return item{}, err
		}
		it.name, it.version = n.Metadata.Name, n.Metadata.ResourceVersion
		n.Metadata.ResourceVersion = ""
		n.Status.strip()
		n.Metadata.Annotations = FlannelAnnotations(n.Metadata.Annotations)
		used = n
	} else {
		var all map[string]json.RawMessage
		if err := decode(&all); err != nil {
			return item{}, err
		}
		var meta struct {
			Name            string `json:"name"`
			ResourceVersion string `json:"resourceVersion"`
			Generation      int64  `json:"generation"`
		}
		_ = json.Unmarshal(all["metadata"], &meta) // an object without a name is refused below
		it.name, it.version = meta.Name, meta.ResourceVersion
		delete(all, "status") // ours, written by other nodes
		if all != nil {
			all["apiVersion"], all["kind"] = mustJSON(k.apiVersion), mustJSON(k.kind)
			kept := map[string]any{"name": it.name}
			if k.kind == kindEdgeNode {
				kept["generation"] = meta.Generation
			}
			all["metadata"] = mustJSON(kept)
		}
		used = all
	}
	if it.name == "" {
		return it, errNoObject // a bookmark has a version and no name
	}
	it.text = mustJSON(used)
	it.sum = it.digest()
	return it, nil
}

func (it item) digest() digest { return sha256.Sum256(fmt.Append(it.text, it.wrong)) }

type usedNode struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string            `json:"name"`
		ResourceVersion string            `json:"resourceVersion,omitempty"`
		Labels          json.RawMessage   `json:"labels,omitempty"`
		Annotations     map[string]string `json:"annotations,omitempty"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  json.RawMessage `json:"podCIDR,omitempty"`
		PodCIDRs json.RawMessage `json:"podCIDRs,omitempty"`
	} `json:"spec"`
	Status usedStatus `json:"status"`
}

type usedStatus struct {
	Addresses []typed `json:"addresses,omitempty"`
}

// typed is an entry of status.addresses.
type typed struct {
	Type    string `json:"type"`
	Address string `json:"address,omitempty"`
}

// strip drops the entries that nobody reads.
func (s *usedStatus) strip() {
	s.Addresses = only(s.Addresses, "InternalIP")
}

func only(entries []typed, name string) []typed {
	var kept []typed
	for _, e := range entries {
		if e.Type == name {
			kept = append(kept, e)
		}
	}
	return kept
}

// mustJSON returns v as JSON. v holds only text, or JSON that was read, which always marshals.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// statement reads the item by the same rules as a manifest.
func (it item) statement(k kind) statement {
	ref := k.kind + "/" + it.name
	edit := "kubectl edit " + strings.ToLower(k.kind) + " " + it.name
	if k.kind == kindSecret {
		edit = "kubectl -n " + secretNamespace + " edit secret " + it.name
	}
	d := &document{file: edit, edit: edit, object: ref}
	m := manifest{file: edit}
	n, err := newJSONDocuments(it.text).next()
	if err = cmp.Or(it.wrong, err); err != nil {
		return statement{ref: ref, file: edit, problems: []Problem{{
			Object: ref, Reason: badManifest, Want: "a " + k.kind + " as Kubernetes has it", Got: err.Error(), Next: "correct it: " + edit,
		}}}
	}
	m.readObject(d.at("", n, n.Line).mapping(), k)
	if len(m.statements) == 0 { // the name is not valid
		return statement{ref: ref, file: edit, problems: m.problems}
	}
	return m.statements[0]
}
