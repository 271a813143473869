package cluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/durable"
)

// worldFormat is the version of the saved form. A World saved in another version is not read: a field whose
// meaning changed must never become a route.
const worldFormat = 1

type savedWorld struct {
	Format int    `json:"format"`
	World  *World `json:"world"`
}

// Node returns the node with that name.
func (w World) Node(name string) (Node, bool) {
	for _, n := range w.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Equal reports whether both Worlds hold the same objects. The time of reading, FromDisk and the Problems do
// not matter.
func Equal(a, b World) bool {
	a, b = canonical(a), canonical(b)
	if !slices.EqualFunc(a.Nodes, b.Nodes, Node.equal) {
		return false
	}
	a.Nodes, b.Nodes = nil, nil // compared above: there are thousands
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Family returns the node's addresses of the same family as like, in the Node's order.
func (n Node) Family(like netip.Addr) (out []netip.Addr) {
	for _, a := range n.Addresses {
		if a.Is4() == like.Is4() {
			out = append(out, a)
		}
	}
	return out
}

func (n Node) equal(o Node) bool {
	return n.Name == o.Name && n.Origin == o.Origin && n.Since.Equal(o.Since) &&
		slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs) && maps.Equal(n.Labels, o.Labels) && maps.Equal(n.Annotations, o.Annotations)
}

// canonical returns w sorted, with nil lists empty and without the time. Its lists are copies.
func canonical(w World) World {
	w.ReadAt = time.Time{}
	w.Nodes = append([]Node{}, w.Nodes...)
	w.Peerings = append([]Peering{}, w.Peerings...)
	w.Pools = append([]NetworkPool{}, w.Pools...)
	w.EdgeNodes = append([]EdgeNode{}, w.EdgeNodes...)
	w.Secrets = append([]Secret{}, w.Secrets...)
	w.sort()
	return w
}

func (w *World) sort() {
	slices.SortStableFunc(w.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.Pools, func(a, b NetworkPool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.EdgeNodes, func(a, b EdgeNode) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.Secrets, func(a, b Secret) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(w.Peerings, func(a, b Peering) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	sortProblems(w.Problems)
}

// String leaves out the values, so that a printed World shows no password.
func (s Secret) String() string { return "Secret/" + s.Name }

// Save writes the World for Load, atomically and durably, mode 0600.
func Save(path string, w World) error {
	saved := canonical(w)
	saved.ReadAt = w.ReadAt
	text, err := json.MarshalIndent(savedWorld{Format: worldFormat, World: &saved}, "", "  ")
	if err != nil {
		return fmt.Errorf("save cluster state %s: %w", path, err)
	}
	if err := durable.Replace(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("save cluster state %s: %w", path, err)
	}
	return nil
}

// Load reads a saved World and sets FromDisk. The error of a missing file wraps fs.ErrNotExist. Any other
// error means a file that holds no usable World.
func Load(path string) (World, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return World{}, fmt.Errorf("load cluster state: %w; it is written when the cluster is first read", err)
	}
	if err != nil {
		return World{}, fmt.Errorf("load cluster state: %w", err)
	}
	const next = "delete the file, it is written again when the cluster is next read"
	// The format is read first, alone: another version may not fit our types.
	var head struct {
		Format int `json:"format"`
	}
	var saved savedWorld
	if err := json.Unmarshal(text, &head); err != nil {
		return World{}, fmt.Errorf("load cluster state %s: not a saved cluster state: %w; %s", path, err, next)
	}
	if head.Format != worldFormat {
		return World{}, fmt.Errorf("load cluster state %s: format %d, want %d; %s", path, head.Format, worldFormat, next)
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		return World{}, fmt.Errorf("load cluster state %s: %w; %s", path, err, next)
	}
	if saved.World == nil {
		return World{}, fmt.Errorf("load cluster state %s: holds no cluster state; %s", path, next)
	}
	w := *saved.World
	w.FromDisk = true
	w.sort()
	return w, nil
}
