package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// buildPrograms builds edgeway and edgewayd as make does, and returns their directory.
func buildPrograms(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for name, pkg := range map[string]string{"edgeway": "../../plugin/edgeway", "edgewayd": "../../daemon/edgewayd"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return dir
}
