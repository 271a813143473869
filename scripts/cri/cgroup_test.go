package cri

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestSweep: of two nodes' pods those go whose owner has ended.
func TestSweep(t *testing.T) {
	needRoot(t)
	l, err := lab.New(lab.Options{Bin: t.TempDir()}) // nobody else has its prefix
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	owner := exec.Command("true")
	if err := owner.Run(); err != nil {
		t.Fatal(err)
	}
	left, owned := NewCgroup(l.Prefix, "n1", owner.Process.Pid), NewCgroup(l.Prefix, "n2", os.Getpid())
	unknown := Cgroup("/" + l.Prefix + "-n3")
	leftPod, ownedPod, unknownPod := startPod(t, left), startPod(t, owned), startPod(t, unknown)

	gone, err := Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(gone, string(left)) || len(left.dirs()) > 0 {
		t.Errorf("%s: swept %v; it has %v", left, gone, left.dirs())
	}
	select {
	case <-leftPod.done:
	case <-time.After(stopTimeout):
		t.Errorf("%s: its process still runs", left)
	}
	for g, p := range map[Cgroup]*process{owned: ownedPod, unknown: unknownPod} {
		if err := p.running(); err != nil || len(g.PIDs()) != 1 || slices.Contains(gone, string(g)) {
			t.Errorf("%s: swept %v; has processes %v, %v; want it as it was", g, gone, g.PIDs(), err)
		}
	}
}

// startPod starts a process in a group below g.
func startPod(t *testing.T, g Cgroup) *process {
	t.Helper()
	hierarchy := Cgroups
	if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil { // version 1: a hierarchy for each controller
		hierarchy += "/pids"
	}
	dir := filepath.Join(hierarchy, string(g), "pod")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if err := p.end(os.Kill); err != nil {
			t.Error(err)
		}
		if err := g.Remove(context.Background()); err != nil { // the test's context has ended
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.pid())), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}
