package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstallFile(t *testing.T) {
	tests := []struct {
		name string
		have func(t *testing.T, target string)
		did  string
	}{
		{"nothing there", func(*testing.T, string) {}, "installed"},
		{"the same", func(t *testing.T, target string) { write(t, target, "new", 0o755) }, "kept"},
		{"another version", func(t *testing.T, target string) { write(t, target, "old", 0o755) }, "replaced"},
		{"truncated by a power cut", func(t *testing.T, target string) { write(t, target, "", 0o755) }, "replaced"},
		{"not executable", func(t *testing.T, target string) { write(t, target, "new", 0o644) }, "replaced"},
		{"a symbolic link to another program", func(t *testing.T, target string) {
			other := filepath.Join(filepath.Dir(target), "other")
			write(t, other, "new", 0o755)
			if err := os.Symlink(other, target); err != nil {
				t.Fatal(err)
			}
		}, "replaced"},
		{"an install that was killed", func(t *testing.T, target string) {
			write(t, filepath.Join(filepath.Dir(target), ".edgeway.new"), "half", 0o755)
		}, "installed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source, target := filepath.Join(t.TempDir(), "edgeway"), filepath.Join(t.TempDir(), "edgeway")
			write(t, source, "new", 0o644)
			tt.have(t, target)
			did, err := installFile(source, target)
			if err != nil || did != tt.did {
				t.Errorf("did %q, %v; want %q", did, err, tt.did)
			}
			stat, err := os.Lstat(target)
			if err != nil || stat.Mode() != 0o755 {
				t.Fatalf("mode %v, %v; want -rwxr-xr-x", stat.Mode(), err)
			}
			if text, err := os.ReadFile(target); err != nil || string(text) != "new" {
				t.Errorf("content %q, %v; want the new one", text, err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(target), ".edgeway*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if did, err := installFile(source, target); err != nil || did != "kept" {
				t.Errorf("once more: did %q, %v; want kept", did, err)
			}
		})
	}
}

// A program that runs cannot be opened for writing (ETXTBSY): it is replaced all the same, and
// what runs goes on.
func TestInstallFileThatRuns(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep here")
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	source, target := filepath.Join(t.TempDir(), "edgeway"), filepath.Join(t.TempDir(), "edgeway")
	write(t, source, "new", 0o755)
	write(t, target, string(program), 0o755)
	running := exec.Command(target, "60")
	if err := running.Start(); err != nil {
		t.Skipf("%s does not run from another place: %v", sleep, err)
	}
	defer func() {
		_ = running.Process.Kill()
		_ = running.Wait()
	}()
	if did, err := installFile(source, target); err != nil || did != "replaced" {
		t.Errorf("did %q, %v; want replaced", did, err)
	}
}

// A runtime that starts the plugin at any moment of an install gets a whole program.
func TestInstallFileWhilePodsStart(t *testing.T) {
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no true here")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target := filepath.Join(dir, "edgeway")
	versions := []string{filepath.Join(dir, "v1"), filepath.Join(dir, "v2")}
	for _, v := range versions {
		write(t, v, string(program)+filepath.Base(v), 0o755) // what follows an ELF file is not looked at
	}
	if _, err := installFile(versions[0], target); err != nil {
		t.Fatal(err)
	}
	// Another process starts them, as in life: a fork of this one would hold the file open for writing.
	goOn := filepath.Join(dir, "go-on")
	write(t, goOn, "", 0o644)
	pods := exec.Command("sh", "-c", `while [ -e "$2" ]; do "$1" || exit 1; done`, "sh", target, goOn)
	var said strings.Builder
	pods.Stderr = &said
	if err := pods.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if did, err := installFile(versions[(i+1)%2], target); err != nil || did != "replaced" {
			t.Errorf("did %q, %v; want replaced", did, err)
		}
	}
	if err := os.Remove(goOn); err != nil {
		t.Fatal(err)
	}
	if err := pods.Wait(); err != nil {
		t.Errorf("a start during the replacements: %v: %s", err, said.String())
	}
}

func TestInstallFileErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "edgeway"), "new", 0o755)
	for _, tt := range []struct{ name, source, target, want string }{
		{"no plugin beside the program", filepath.Join(dir, "missing"), filepath.Join(dir, "target"), "belong in one directory"},
		{"no such directory", filepath.Join(dir, "edgeway"), filepath.Join(dir, "none", "edgeway"), "--plugin-dir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := installFile(tt.source, tt.target); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want one that says %q", err, tt.want)
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
