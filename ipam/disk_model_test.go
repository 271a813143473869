package ipam

import (
	"bytes"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// disk is what a file system must have kept after a power cut, and what it may have kept. It
// promises what POSIX does and no more: the content of a file is there after a sync of the file,
// its name after a sync of the directory. All else may be there or not, in any combination.
type disk struct {
	durable image
	pending []recorded // in order
}

// image is the content of a disk.
type image struct {
	names map[string]*inode
	dirs  map[string]bool
	data  map[*inode][]byte
}

// newDisk has files whose content is durable; so are their names, unless unsynced.
func newDisk(root string, before map[string]*inode, unsynced bool) *disk {
	d := &disk{durable: image{map[string]*inode{}, map[string]bool{root: true}, map[*inode][]byte{}}}
	for path, file := range before {
		d.durable.data[file] = file.before
		for dir := filepath.Dir(path); dir != root; dir = filepath.Dir(dir) {
			d.pending = append(d.pending, recorded{kind: "mkdir", path: dir})
		}
		d.pending = append(d.pending, recorded{kind: "create", file: file, path: path})
	}
	if !unsynced {
		d.durable, d.pending = d.all(), nil
	}
	return d
}

// do follows one recorded call.
func (d *disk) do(op recorded) {
	switch op.kind {
	case "say":
	case "sync":
		d.pending = slices.DeleteFunc(d.pending, func(p recorded) bool {
			if !op.covers(p) {
				return false
			}
			d.durable.apply(p, nil)
			return true
		})
	default:
		d.pending = append(d.pending, op)
	}
}

// covers reports whether a sync makes p durable.
func (sync recorded) covers(p recorded) bool {
	if p.kind == "write" || p.kind == "truncate" {
		return sync.file == p.file
	}
	return sync.file == nil && filepath.Dir(p.path) == sync.dir
}

// apply does op. torn says which part of a write arrived, nil: all.
func (m *image) apply(op recorded, torn *tear) {
	switch op.kind {
	case "create", "link":
		m.names[op.path] = op.file
	case "rename":
		delete(m.names, op.old)
		m.names[op.path] = op.file
	case "unlink":
		delete(m.names, op.path)
	case "mkdir":
		m.dirs[op.path] = true
	case "truncate":
		old := m.data[op.file]
		data := make([]byte, op.size)
		copy(data, old)
		m.data[op.file] = data
	case "write":
		old := m.data[op.file]
		data := make([]byte, max(len(old), int(op.offset)+len(op.data)))
		copy(data, old)
		if torn == nil {
			copy(data[op.offset:], op.data)
		} else {
			torn.write(data, op)
		}
		m.data[op.file] = data
	}
}

// tear keeps some blocks of a write, of the size in which a disk or a page cache writes.
type tear struct {
	r     *rand.Rand
	block int
}

func (t *tear) write(data []byte, op recorded) {
	for at := 0; at < len(op.data); at += t.block {
		if t.r.IntN(2) == 0 {
			copy(data[int(op.offset)+at:], op.data[at:min(at+t.block, len(op.data))])
		}
	}
}

func (m image) clone() image {
	return image{maps.Clone(m.names), maps.Clone(m.dirs), maps.Clone(m.data)}
}

// after is the disk with those pending calls that keep says.
func (d *disk) after(keep func(i int) (bool, *tear)) image {
	m := d.durable.clone()
	for i, op := range d.pending {
		if kept, torn := keep(i); kept {
			m.apply(op, torn)
		}
	}
	return m
}

func (d *disk) all() image { return d.after(func(int) (bool, *tear) { return true, nil }) }

// some are up to n different sets of the pending calls: none, each set when there are few, else
// random ones; half of the random ones with torn writes.
func (d *disk) some(r *rand.Rand, n int) []image {
	out := []image{d.durable.clone()}
	if len(d.pending) == 0 {
		return out
	}
	if sets := 1 << min(len(d.pending), 16); sets <= n/2 {
		for set := 1; set < sets; set++ {
			out = append(out, d.after(func(i int) (bool, *tear) { return set>>i&1 == 1, nil }))
		}
	}
	for len(out) < n {
		var torn *tear
		if r.IntN(2) == 0 {
			torn = &tear{r, []int{512, 4096}[r.IntN(2)]}
		}
		out = append(out, d.after(func(int) (bool, *tear) { return r.IntN(3) > 0, torn }))
	}
	return out
}

// write puts the image below root, in place of the directory from which it was recorded.
func (m image) write(root, recordedRoot string) error {
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	there := func(path string) string { return root + strings.TrimPrefix(path, recordedRoot) }
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	for _, dir := range slices.Sorted(maps.Keys(m.dirs)) {
		if m.reachable(dir, recordedRoot) && dir != recordedRoot {
			if err := os.Mkdir(there(dir), 0o700); err != nil {
				return err
			}
		}
	}
	for path, file := range m.names {
		if m.reachable(filepath.Dir(path), recordedRoot) {
			data := m.data[file]
			if err := os.WriteFile(there(path), bytes.TrimRight(data, "\x00"), 0o600); err != nil {
				return err
			}
			if err := os.Truncate(there(path), int64(len(data))); err != nil {
				return err
			}
		}
	}
	return nil
}

// sum tells images apart; lost ones are looked at in another way.
func (m image) sum(lost bool) uint64 {
	h := fnv.New64a()
	for _, dir := range slices.Sorted(maps.Keys(m.dirs)) {
		fmt.Fprintln(h, dir)
	}
	for _, path := range slices.Sorted(maps.Keys(m.names)) {
		data := m.data[m.names[path]]
		fmt.Fprintln(h, path, len(data), lost, crc32.Checksum(data, castagnoli()), adler32.Checksum(data))
	}
	return h.Sum64()
}

// reachable reports whether dir and all directories above it are there.
func (m image) reachable(dir, root string) bool {
	for ; dir != root; dir = filepath.Dir(dir) {
		if !m.dirs[dir] {
			return false
		}
	}
	return true
}
