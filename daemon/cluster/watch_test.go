package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// quick is a pace at which only inotify and the look for the directory report anything.
var quick = pace{quiet: 10 * time.Millisecond, limit: 100 * time.Millisecond, poll: 20 * time.Millisecond, safety: time.Hour, settle: time.Millisecond}

// watched is a directory under Watch.
type watched struct {
	source *manifests
	signal chan struct{} // one slot
	last   World
}

func watch(t *testing.T, dir string, p pace) *watched {
	t.Helper()
	w := &watched{
		source: &manifests{dir: dir, pace: p, clock: time.Now},
		signal: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.source.Watch(ctx, func() {
			select {
			case w.signal <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch ended with %v", err)
		}
	})
	return w
}

// until waits for signals until the World has exactly these nodes. A World that has them
// without a signal does not count.
func (w *watched) until(t *testing.T, nodes ...string) {
	t.Helper()
	deadline := time.After(longest)
	for {
		select {
		case <-w.signal:
			world, err := w.source.World(t.Context(), w.last)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			w.last = world
			if slices.Equal(names(world), nodes) {
				return
			}
		case <-deadline:
			t.Fatalf("got nodes %v, want %v", names(w.last), nodes)
		}
	}
}

func TestWatchSeesEdits(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	w := watch(t, dir, quick)
	w.until(t) // once at the start

	mustWrite(t, path, nodeNamed("created"))
	w.until(t, "created")

	mustWrite(t, path, nodeNamed("truncated-and-written"))
	w.until(t, "truncated-and-written")

	mustWrite(t, path+".tmp", nodeNamed("renamed"))
	mustRename(t, path+".tmp", path)
	w.until(t, "renamed")

	// vim with backupcopy=no.
	mustRename(t, path, path+"~")
	mustWrite(t, path, nodeNamed("vim"))
	if err := os.Remove(path + "~"); err != nil {
		t.Fatal(err)
	}
	w.until(t, "vim")

	mustWrite(t, filepath.Join(dir, "b.yml"), nodeNamed("b"))
	w.until(t, "b", "vim")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.until(t, "b")
}

func TestWatchSeesConfigMapSwap(t *testing.T) {
	dir := t.TempDir()
	configMap(t, dir, "..2026_1", map[string]string{"a.yaml": nodeNamed("one")})
	w := watch(t, dir, quick)
	w.until(t, "one")
	configMap(t, dir, "..2026_2", map[string]string{"a.yaml": nodeNamed("two")})
	w.until(t, "two")
}

func TestWatchSurvivesRemovedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster.d")
	path := filepath.Join(dir, "a.yaml")
	w := watch(t, dir, quick)
	w.until(t) // it does not exist yet

	for i := range 5 {
		name := fmt.Sprintf("n%d", i)
		mustMkdir(t, dir)
		mustWrite(t, path, nodeNamed(name))
		w.until(t, name)
		mustWrite(t, path, nodeNamed(name+"-edited"))
		w.until(t, name+"-edited")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			w.until(t, name+"-edited") // the directory is gone, its objects are not
		}
	}
}

func TestWatchSeesRenamedDirectory(t *testing.T) {
	parent := t.TempDir()
	dir, next := filepath.Join(parent, "cluster.d"), filepath.Join(parent, "next")
	for _, d := range []string{dir, next} {
		mustMkdir(t, d)
		mustWrite(t, filepath.Join(d, "a.yaml"), nodeNamed(filepath.Base(d)))
	}
	w := watch(t, dir, quick)
	w.until(t, "cluster.d")
	mustRename(t, dir, filepath.Join(parent, "old"))
	mustRename(t, next, dir)
	w.until(t, "next")
	mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("edited"))
	w.until(t, "edited")
}

func TestWatchSeesSwappedLink(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "cluster.d")
	for _, name := range []string{"v1", "v2"} {
		mustMkdir(t, filepath.Join(parent, name))
		mustWrite(t, filepath.Join(parent, name, "a.yaml"), nodeNamed(name))
	}
	mustSymlink(t, "v1", dir)
	w := watch(t, dir, quick)
	w.until(t, "v1")
	mustWrite(t, filepath.Join(parent, "v1", "a.yaml"), nodeNamed("edited"))
	w.until(t, "edited")
	mustSymlink(t, "v2", dir+".tmp")
	mustRename(t, dir+".tmp", dir)
	w.until(t, "v2")
	mustWrite(t, filepath.Join(parent, "v2", "a.yaml"), nodeNamed("again"))
	w.until(t, "again")
}

// A file outside the directory gives no event in it.
func TestWatchReadsAgainForSafety(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "cluster.d")
	mustMkdir(t, dir)
	outside := filepath.Join(parent, "outside.yaml")
	mustWrite(t, outside, nodeNamed("one"))
	mustSymlink(t, outside, filepath.Join(dir, "a.yaml"))
	slow := quick
	slow.safety = 20 * time.Millisecond
	w := watch(t, dir, slow)
	w.until(t, "one")
	mustWrite(t, outside, nodeNamed("two"))
	w.until(t, "two")
}

// A file that is written without end does not put the reading off without end.
func TestWatchIsNotStarved(t *testing.T) {
	dir := t.TempDir()
	p := quick
	p.quiet, p.limit = time.Hour, 50*time.Millisecond
	w := watch(t, dir, p)
	w.until(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(longest)
	for {
		select {
		case <-tick.C:
			mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("a"))
		case <-w.signal:
			return
		case <-deadline:
			t.Fatal("no signal while the file is written")
		}
	}
}

func TestWatchGathersEvents(t *testing.T) {
	dir := t.TempDir()
	calls := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	p := quick
	p.quiet, p.limit = 200*time.Millisecond, time.Hour
	source := &manifests{dir: dir, pace: p, clock: time.Now}
	go func() { done <- source.Watch(ctx, func() { calls <- struct{}{} }) }()
	<-calls
	started := time.Now()
	for i := range 100 {
		mustWrite(t, filepath.Join(dir, fmt.Sprintf("n%d.yaml", i)), nodeNamed("n"))
	}
	elapsed := time.Since(started)
	<-calls
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if most := int(elapsed / p.quiet); len(calls) > most {
		t.Errorf("%d calls more than one for 100 files in %v", len(calls), elapsed)
	}
}

// Without inotify the content is compared at every poll.
func TestWatchWithoutInotify(t *testing.T) {
	dir := t.TempDir()
	source := &manifests{dir: dir, pace: quick, clock: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	signal := make(chan struct{}, 1)
	w := watching{dir: dir, content: source.content()}
	done := make(chan error, 1)
	go func() { done <- w.run(ctx, source, func() { signal <- struct{}{} }) }()
	mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("a"))
	select {
	case <-signal:
	case <-time.After(longest):
		t.Error("no signal")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
