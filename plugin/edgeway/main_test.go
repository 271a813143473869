package main

import (
	"os/exec"
	"strings"
	"testing"
)

// A person who asks the plugin for its version was told that CNI_COMMAND is not set.
func TestVersionForPeople(t *testing.T) {
	out, err := exec.Command("go", "run", "-ldflags", "-X main.version=v1.2.3 -X main.commit=abc", ".", "--version").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "edgeway version v1.2.3 (commit abc)" {
		t.Errorf("got %q, %v", out, err)
	}
}
