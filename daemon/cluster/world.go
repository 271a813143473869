package cluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// worldFormat is the version of the saved form. A World saved in another one is not read: a
// field that changed its meaning must never become a route.
const worldFormat = 1

type savedWorld struct {
	Format int    `json:"format"`
	World  *World `json:"world"`
}

// Node returns the node of that name.
func (w World) Node(name string) (Node, bool) {
	for _, n := range w.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Equal reports whether both say the same. When they were read, whether they came from disk, and
// their Problems do not matter.
func Equal(a, b World) bool {
	a, b = canonical(a), canonical(b)
	if !slices.EqualFunc(a.Nodes, b.Nodes, Node.equal) {
		return false
	}
	a.Nodes, b.Nodes = nil, nil // thousands, unlike the rest
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func (n Node) equal(o Node) bool {
	return n.Name == o.Name && n.Ready == o.Ready && n.Origin == o.Origin && n.Since.Equal(o.Since) &&
		slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs) && maps.Equal(n.Labels, o.Labels)
}

// canonical returns w sorted, with nil lists empty and without the time. Its lists are copies.
func canonical(w World) World {
	w.ReadAt = time.Time{}
	w.Nodes = append([]Node{}, w.Nodes...)
	w.Peerings = append([]Peering{}, w.Peerings...)
	w.Secrets = append([]Secret{}, w.Secrets...)
	w.sort()
	return w
}

func (w *World) sort() {
	slices.SortStableFunc(w.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.Secrets, func(a, b Secret) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.Peerings, func(a, b Peering) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	sortProblems(w.Problems)
}

// String leaves the values out, so that a printed World shows no password.
func (s Secret) String() string { return "Secret/" + s.Name }

// Save writes the World for Load, atomically and durably, mode 0600.
func Save(path string, w World) error {
	saved := canonical(w)
	saved.ReadAt = w.ReadAt
	text, err := json.MarshalIndent(savedWorld{Format: worldFormat, World: &saved}, "", "  ")
	if err != nil {
		return fmt.Errorf("save world %s: %w", path, err)
	}
	if err := writeDurably(path, append(text, '\n')); err != nil {
		return fmt.Errorf("save world %s: %w", path, err)
	}
	return nil
}

// writeDurably replaces the file at path: after a power cut it has its old or its new content.
// The temporary file lies in the same directory because rename(2) does not cross file systems.
func writeDurably(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	// One name, so that a crash leaves one file at most; a new file, so that its mode is ours.
	name := filepath.Join(dir, "."+filepath.Base(path)+".tmp")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close() // closed already when the rename is what did not work
			_ = os.Remove(name)
		}
	}()
	if _, err = tmp.Write(text); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(name, path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load reads a saved World; it has FromDisk set. An error wraps fs.ErrNotExist when there is
// none. Any other error means a file that holds no usable World.
func Load(path string) (World, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return World{}, fmt.Errorf("load world: %w; it is written when the cluster is first read", err)
	}
	if err != nil {
		return World{}, fmt.Errorf("load world: %w", err)
	}
	const next = "delete the file, it is written again when the cluster is next read"
	// The format is read alone first: another version may not fit our types.
	var head struct {
		Format int `json:"format"`
	}
	var saved savedWorld
	if err := json.Unmarshal(text, &head); err != nil {
		return World{}, fmt.Errorf("load world %s: not a saved world: %w; %s", path, err, next)
	}
	if head.Format != worldFormat {
		return World{}, fmt.Errorf("load world %s: format %d, want %d; %s", path, head.Format, worldFormat, next)
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		return World{}, fmt.Errorf("load world %s: %w; %s", path, err, next)
	}
	if saved.World == nil {
		return World{}, fmt.Errorf("load world %s: holds no world; %s", path, next)
	}
	w := *saved.World
	w.FromDisk = true
	w.sort()
	return w, nil
}
