package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// needRoot skips a test that cannot run here. What else is missing goes to the function it
// returns, which fails the test where it must run.
func needRoot(t *testing.T) (fail func(format string, args ...any)) {
	t.Helper()
	if testing.Short() {
		t.Skip("kernel test")
	}
	fail = t.Skipf
	if os.Getenv("CI") == "true" {
		fail = t.Fatalf
	}
	if os.Geteuid() != 0 {
		fail("needs root to make namespaces")
	}
	return fail
}

func needTools(fail func(format string, args ...any), names ...string) {
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		fail("not installed: %s; scripts/install-test-tools.sh installs most, systemd-container and rpm are Debian's packages for the others", strings.Join(missing, ", "))
	}
}

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
