package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxReadings bounds how often a directory that keeps changing is read again.
const maxReadings = 10

// manifests is a directory of Kubernetes manifests.
type manifests struct {
	dir     string
	secrets []string // the names of those that count beside those of the resources
	pace    pace
	clock   func() time.Time

	mu     sync.Mutex
	parsed map[string]parsed // by path, as of the last reading; guarded by mu
}

// parsed is what a file said, and the digest of its text: parsing YAML costs ten times as much as reading it.
// The time and the size of a file tell less than its text.
type parsed struct {
	sum      digest
	manifest manifest
}

// Manifests is the source that reads the directory's *.yaml, *.yml and *.json files. It ignores hidden files,
// editors' backups and sub-directories. It follows symbolic links, so that the directory may be a mounted
// ConfigMap.
//
// A file that is empty, unreadable or not YAML keeps the objects that it gave before. Deleting a file, or a
// document of a file that is otherwise valid, removes its objects. An empty directory is taken for a file
// system that is not mounted, and keeps everything.
//
// secrets are the names of Secrets that count beside those that the resources name.
func Manifests(dir string, secrets ...string) Source {
	return &manifests{dir: filepath.Clean(dir), secrets: secrets, pace: defaultPace, clock: time.Now}
}

// World reads the directory. Before it forgets an object, it waits and reads again until two readings agree:
// an editor may be in the middle of replacing a file.
func (m *manifests) World(ctx context.Context, last World) (World, error) {
	content, files, err := m.read(ctx)
	if err != nil {
		return last, err
	}
	w := merge(files, last, m.secrets...)
	for range maxReadings {
		if len(files) == 0 || !forgets(last, w) {
			break
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("read manifests %s: %w", m.dir, ctx.Err())
		case <-time.After(m.pace.settle):
		}
		before := content
		if content, files, err = m.read(ctx); err != nil {
			return last, err
		}
		w = merge(files, last, m.secrets...)
		if content == before {
			break
		}
	}
	if len(files) == 0 && len(last.Nodes)+len(last.Peerings) > 0 {
		w = last
		w.Problems = []Problem{{
			Object: "directory " + m.dir, Reason: emptyDirectory,
			Want: "manifests, as there were before", Got: "none",
			Next: "mount or fill it; to remove everything leave one file with an empty List in it",
		}}
	}
	w.Source = "manifests " + m.dir
	w.ReadAt = m.clock()
	w.FromDisk = false
	return w, nil
}

// read reads and parses all manifests.
func (m *manifests) read(ctx context.Context) (digest, []manifest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var files []manifest
	now := map[string]parsed{}
	content, err := m.each(func(path string, text []byte, err error) error {
		if err != nil {
			files = append(files, unreadable(path, err))
			return ctx.Err()
		}
		p := parsed{sum: sha256.Sum256(text)}
		if old, ok := m.parsed[path]; ok && old.sum == p.sum {
			p = old // merge does not change it
		} else {
			p.manifest = readManifest(path, text)
		}
		now[path] = p
		files = append(files, p.manifest)
		return ctx.Err()
	})
	if err != nil {
		return content, nil, fmt.Errorf("read manifests %s: %w", m.dir, err)
	}
	m.parsed = now
	return content, files, nil
}

// digest stands for the directory's whole content: equal digests mean equal Worlds.
type digest [sha256.Size]byte

// each reads the manifests, sorted by name, and returns their digest.
func (m *manifests) each(do func(path string, text []byte, err error) error) (sum digest, err error) {
	hash := sha256.New()
	paths, err := m.paths()
	if err != nil {
		return digest{}, err
	}
	for _, path := range paths {
		text, err := readRegular(path)
		fmt.Fprintf(hash, "%q %d %v\n", path, len(text), err)
		hash.Write(text)
		if err := do(path, text, err); err != nil {
			return digest{}, err
		}
	}
	hash.Sum(sum[:0])
	return sum, nil
}

// forgets reports whether last holds a node or peering that w does not.
func forgets(last, w World) bool {
	now := objects(w)
	for ref, o := range objects(last) {
		if _, there := now[ref]; !there && o.secret == nil {
			return true
		}
	}
	return false
}

// paths returns the manifests of the directory, sorted by name.
func (m *manifests) paths() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("%w; create the directory, or correct cluster.manifests", err)
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

func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false // also an editor's backup: x.yaml~, #x.yaml#, x.yaml.swp
}

// readRegular reads a regular file. Opening another kind of file could block for ever (fifo(7)).
func readRegular(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
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
