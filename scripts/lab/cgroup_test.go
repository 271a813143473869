package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestSweepRemovesPodsWithoutOwner checks that Sweep removes the pods of an ended owner only.
func TestSweepRemovesPodsWithoutOwner(t *testing.T) {
	Need(t)
	l, err := New(Options{Bin: t.TempDir()}) // nobody else has its prefix
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

	gone, err := Sweep()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(gone, string(left)) || len(left.dirs()) > 0 {
		t.Errorf("%s: swept %v; it has %v", left, gone, left.dirs())
	}
	select {
	case <-leftPod.done:
	case <-time.After(endTimeout):
		t.Errorf("%s: its process still runs", left)
	}
	for g, p := range map[Cgroup]*Process{owned: ownedPod, unknown: unknownPod} {
		if err := p.Err(); err != nil || len(g.PIDs()) != 1 || slices.Contains(gone, string(g)) {
			t.Errorf("%s: swept %v; has processes %v, %v; want it as it was", g, gone, g.PIDs(), err)
		}
	}
}

// startPod starts a process in a group below g.
func startPod(t *testing.T, g Cgroup) *Process {
	t.Helper()
	hierarchy := Cgroups
	if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil { // version 1: a hierarchy for each controller
		hierarchy += "/pids"
	}
	dir := filepath.Join(hierarchy, string(g), "pod")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Program{Argv: []string{"sleep", "infinity"}, Log: filepath.Join(t.TempDir(), "log")}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if err := g.Remove(context.Background()); err != nil { // the test's context has ended
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}
