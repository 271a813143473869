package cluster

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// item is one object as an API server told it.
type item struct {
	name    string
	version string // its resourceVersion
	sum     digest // of what we use of it: equal sums, equal statements
	text    []byte // what we use of it, as JSON
}

// errNoObject: the text is JSON but no object of Kubernetes.
var errNoObject = errors.New("something that is no Kubernetes object")

// readItem takes from an object what we use of it. A Node has 20 KB, most of it the status that
// its kubelet writes every five minutes; the 1 KB that is left is what can change anything here.
func readItem(k kind, text []byte) (item, error) {
	var head struct {
		Metadata struct{ Name, ResourceVersion string }
	}
	var used any
	var err error
	switch k.kind {
	case kindNode:
		n := usedNode{APIVersion: k.apiVersion, Kind: k.kind}
		err = json.Unmarshal(text, &n)
		head.Metadata.Name, head.Metadata.ResourceVersion = n.Metadata.Name, n.Metadata.ResourceVersion
		n.Metadata.ResourceVersion = ""
		n.Status.strip()
		used = n
	default:
		all := map[string]json.RawMessage{}
		err = errors.Join(json.Unmarshal(text, &all), json.Unmarshal(text, &head))
		if all == nil { // the text is null
			return item{}, errNoObject
		}
		delete(all, "status") // ours, written by other nodes
		all["apiVersion"], all["kind"] = mustJSON(k.apiVersion), mustJSON(k.kind)
		all["metadata"] = mustJSON(map[string]string{"name": head.Metadata.Name})
		used = all
	}
	it := item{name: head.Metadata.Name, version: head.Metadata.ResourceVersion}
	if it.name == "" {
		return it, errNoObject // a bookmark has a version and no name
	}
	if err != nil {
		// Of a type that Kubernetes does not have there: the reader says what, and where.
		it.text = text
	} else if it.text, err = json.Marshal(used); err != nil {
		return item{}, fmt.Errorf("%s/%s: %w", k.kind, it.name, err)
	}
	it.sum = sha256.Sum256(it.text)
	return it, nil
}

// usedNode is what we use of a Node.
type usedNode struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string          `json:"name"`
		ResourceVersion string          `json:"resourceVersion,omitempty"`
		Labels          json.RawMessage `json:"labels,omitempty"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  json.RawMessage `json:"podCIDR,omitempty"`
		PodCIDRs json.RawMessage `json:"podCIDRs,omitempty"`
	} `json:"spec"`
	Status usedStatus `json:"status"`
}

type usedStatus struct {
	Addresses  []typed `json:"addresses,omitempty"`
	Conditions []typed `json:"conditions,omitempty"`
}

// typed is an entry of status.addresses or status.conditions, without its times.
type typed struct {
	Type    string `json:"type"`
	Address string `json:"address,omitempty"`
	Status  string `json:"status,omitempty"`
}

// strip drops the entries that nobody reads.
func (s *usedStatus) strip() {
	s.Addresses = only(s.Addresses, "InternalIP")
	s.Conditions = only(s.Conditions, "Ready")
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

// mustJSON is the JSON of a text or of a map of texts, which cannot fail.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// statement reads the item by the rules that manifests are read by.
func (it item) statement(k kind) statement {
	ref := k.kind + "/" + it.name
	edit := "kubectl edit " + strings.ToLower(k.kind) + " " + it.name
	if k.kind == kindSecret {
		edit = "kubectl -n " + secretNamespace + " edit secret " + it.name
	}
	d := &document{file: edit, edit: edit, object: ref}
	m := manifest{file: edit}
	n, err := newJSONDocuments(it.text).next()
	if err != nil {
		return statement{ref: ref, file: edit, problems: []Problem{{
			Object: ref, Reason: badManifest, Want: "JSON", Got: err.Error(), Next: "correct it: " + edit,
		}}}
	}
	m.readObject(d.at("", n, n.Line).mapping(), k)
	if len(m.statements) == 0 { // a name that no object of ours has
		return statement{ref: ref, file: edit, problems: m.problems}
	}
	return m.statements[0]
}
