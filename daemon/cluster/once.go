package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// errNothingRead: a place in which nothing is most often a typing error.
var errNothingRead = errors.New("no Node, no BGP resource, no NetworkPool and no EdgeNode there; name a directory of manifests, or one manifest")

// ReadManifests reads a directory of manifests, or one manifest, once, for a command. The World has the
// problems of the objects that are not valid. A place without any object is an error.
func ReadManifests(ctx context.Context, path string) (World, error) {
	st, err := os.Stat(path)
	if err != nil {
		return World{}, fmt.Errorf("read manifests: %w", err)
	}
	if !st.IsDir() {
		text, err := readRegular(path)
		if err != nil {
			return World{}, fmt.Errorf("read manifest: %w", err)
		}
		return ParseManifest(path, text)
	}
	w, err := Manifests(path).World(ctx, World{})
	if err != nil {
		return World{}, err
	}
	return w, w.something(path)
}

// ParseManifest returns what the text of one manifest says. name is for messages, and a name that ends in
// .json makes the text JSON.
func ParseManifest(name string, text []byte) (World, error) {
	w := merge([]manifest{readManifest(name, text)}, World{})
	w.Source, w.ReadAt = "manifest "+name, time.Now()
	return w, w.something(name)
}

// something returns an error if the World has nothing in it, not even a problem.
func (w World) something(place string) error {
	if len(w.Nodes)+len(w.Peerings)+len(w.Pools)+len(w.EdgeNodes)+len(w.Problems) == 0 {
		return fmt.Errorf("read manifests %s: %w", place, errNothingRead)
	}
	return nil
}

// Masked returns the World with other values in its Secrets, for which the same decisions are taken: see
// package policy on passwords.
func (w World) Masked() World {
	secrets := make([]Secret, len(w.Secrets))
	for i, s := range w.Secrets {
		secrets[i] = Secret{Name: s.Name, Origin: s.Origin, Data: map[string][]byte{}}
		for key, v := range s.Data {
			masked := bytes.Repeat([]byte("x"), min(len(v), 1))
			if len(v) > 80 { // too long for TCP MD5
				masked = bytes.Repeat([]byte("x"), 81)
			}
			if bytes.HasSuffix(v, []byte("\n")) {
				masked = append(masked, '\n')
			}
			secrets[i].Data[key] = masked
		}
	}
	w.Secrets = secrets
	return w
}

// AssumeSecrets returns the World with a value for each password that a peering names and that is not there:
// a repository of manifests does not hold the Secrets.
func (w World) AssumeSecrets() World {
	w.Secrets = slices.Clone(w.Secrets)
	for _, r := range w.Peerings {
		for _, s := range r.Speakers {
			for _, p := range s.Peers {
				if k := p.Password; k != nil && !slices.ContainsFunc(w.Secrets, func(s Secret) bool { return s.Name == k.Name && s.Data[k.Key] != nil }) {
					w.Secrets = append([]Secret{{Name: k.Name, Data: map[string][]byte{k.Key: []byte("x")}}}, w.Secrets...)
				}
			}
		}
	}
	return w
}
