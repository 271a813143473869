package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// A file that an editor is replacing is absent for a moment.
func TestFileBackBeforeItIsForgotten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	mustWrite(t, path, nodeNamed("a"))
	mustWrite(t, filepath.Join(dir, "b.yaml"), nodeNamed("b"))
	last := wantRead(t, dir, World{}, []string{"a", "b"}, nil)
	for name, meanwhile := range map[string]struct {
		do   func()
		want []string
	}{
		"back as it was":    {func() { mustRename(t, path+"~", path) }, []string{"a", "b"}},
		"back with another": {func() { mustWrite(t, path, nodeNamed("c")); _ = os.Remove(path + "~") }, []string{"b", "c"}},
		"gone for good":     {func() {}, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			mustWrite(t, path, nodeNamed("a"))
			synctest.Test(t, func(t *testing.T) {
				mustRename(t, path, path+"~")
				started := time.Now()
				got := make(chan World, 1)
				go func() {
					w, err := Manifests(dir).World(t.Context(), last)
					if err != nil {
						t.Error(err)
					}
					got <- w
				}()
				synctest.Wait() // between the readings
				meanwhile.do()
				w := <-got
				if n := names(w); len(n) != len(meanwhile.want) || n[0] != meanwhile.want[0] || n[len(n)-1] != meanwhile.want[len(n)-1] {
					t.Errorf("got nodes %v, want %v", n, meanwhile.want)
				}
				if took := time.Since(started); took < defaultPace.settle || took > time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// A directory that changes all the time does not hold the reading for ever.
func TestWorldOfARestlessDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	mustWrite(t, path, nodeNamed("a"))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				mustWrite(t, path+".tmp", nodeNamed("a")+"# "+time.Now().String()+"\n")
				mustRename(t, path+".tmp", path)
				select {
				case <-ctx.Done():
				case <-time.After(7 * time.Millisecond):
				}
			}
		}()
		started := time.Now()
		last := World{Nodes: []Node{{Name: "a", Origin: path}, {Name: "gone", Origin: path}}}
		w, err := Manifests(dir).World(ctx, last)
		if err != nil || len(w.Nodes) != 1 {
			t.Errorf("got %v, %v", names(w), err)
		}
		if took := time.Since(started); took > 2*maxReadings*defaultPace.settle {
			t.Errorf("took %v", took)
		}
	})
}

func TestWorldBetweenReadings(t *testing.T) {
	last := World{Nodes: []Node{{Name: "a"}, {Name: "gone"}}}
	for name, end := range map[string]func(dir string, cancel func()){
		"cancelled":         func(_ string, cancel func()) { cancel() },
		"directory removed": func(dir string, _ func()) { _ = os.RemoveAll(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			mustWrite(t, filepath.Join(dir, "a.yaml"), nodeNamed("a"))
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				failed := make(chan error, 1)
				go func() {
					w, err := Manifests(dir).World(ctx, last)
					if !Equal(w, last) {
						t.Errorf("got %v, want the last World", names(w))
					}
					failed <- err
				}()
				synctest.Wait()
				end(dir, cancel)
				if err := <-failed; err == nil || name == "cancelled" && !errors.Is(err, context.Canceled) {
					t.Errorf("got error %v", err)
				}
			})
		})
	}
}
