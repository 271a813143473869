package lab

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need skips a test that makes namespaces and cannot run here: without root, without one of the tools
// (commands, or paths of files), or in short mode. If CI is set, Need fails the test for a missing root or
// tool. The returned function does the same for other missing things.
func Need(t testing.TB, tools ...string) (fail func(format string, args ...any)) {
	t.Helper()
	if testing.Short() {
		t.Skip("kernel test")
	}
	fail = t.Skipf
	if os.Getenv("CI") != "" {
		fail = t.Fatalf
	}
	if os.Geteuid() != 0 {
		fail("needs root to make namespaces")
	}
	if missing := Missing(tools...); len(missing) > 0 {
		fail("not installed: %s; run scripts/install-test-tools.sh", strings.Join(missing, ", "))
	}
	return fail
}

// Missing returns the tools that are not on this machine.
func Missing(tools ...string) (missing []string) {
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	return missing
}
