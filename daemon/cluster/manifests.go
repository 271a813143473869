package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// manifests is a directory of Kubernetes manifests.
type manifests struct {
	dir   string
	pace  pace
	clock func() time.Time
}

// Manifests is the source that reads the directory's *.yaml, *.yml and *.json files. Hidden
// files, editors' backups and sub-directories are ignored; symbolic links are followed, so that
// the directory may be a mounted ConfigMap.
//
// A file that is empty, unreadable or no YAML keeps the objects that it gave before. Deleting
// a file, or a document of a file that is otherwise valid, removes its objects. An empty
// directory is taken for a file system that is not mounted, and keeps everything.
func Manifests(dir string) Source {
	return &manifests{dir: filepath.Clean(dir), pace: defaultPace, clock: time.Now}
}

// World reads the directory.
func (m *manifests) World(ctx context.Context, last World) (World, error) {
	paths, err := m.paths()
	if err != nil {
		return last, err
	}
	var files []manifest
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return last, fmt.Errorf("read manifests %s: %w", m.dir, err)
		}
		text, err := readRegular(path)
		if err != nil {
			files = append(files, unreadable(path, err))
			continue
		}
		files = append(files, readManifest(path, text))
	}
	if len(paths) == 0 && len(last.Nodes)+len(last.Peerings) > 0 {
		w := last
		w.Problems = []Problem{{
			Object: "directory " + m.dir, Reason: emptyDirectory,
			Want: "manifests, as there were before", Got: "none",
			Next: "mount or fill it; to remove everything leave one file with an empty List in it",
		}}
		return m.confirmed(w), nil
	}
	return m.confirmed(merge(files, last)), nil
}

// confirmed marks w as what the directory says now.
func (m *manifests) confirmed(w World) World {
	w.Source = "manifests " + m.dir
	w.ReadAt = m.clock()
	w.FromDisk = false
	return w
}

// paths returns the manifests of the directory, sorted by name.
func (m *manifests) paths() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w; create the directory, or correct cluster.manifests", err)
	}
	var paths []string
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		path := filepath.Join(m.dir, e.Name())
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			continue
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths, nil
}

// isManifest reports whether a file of that name is read.
func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false // also an editor's backup: x.yaml~, #x.yaml#, x.yaml.swp
}

// readRegular reads a regular file. Opening anything else could block for ever (fifo(7)).
func readRegular(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return os.ReadFile(path)
}

func unreadable(path string, err error) manifest {
	got := err.Error()
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		got = pathError.Err.Error()
	}
	return brokenManifest(path, Problem{
		Reason: unreadableFile, Want: "a readable file", Got: got,
		Next: "repair it, or delete it to remove its objects",
	})
}
