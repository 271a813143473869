package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// asCommand makes the test's program edgewayd itself, for the shell blocks of the pages.
const asCommand = "EDGEWAYD_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Args[0] = "edgewayd"
		main()
		return
	}
	os.Exit(m.Run())
}

// TestPagesRun runs every shell block of the pages, beside the example manifests. A text block that follows one
// is what it prints.
func TestPagesRun(t *testing.T) {
	blocks := regexp.MustCompile("(?s)\n```sh\n(.*?)```\n(?:(It prints:\n```text\n)(.*?)```\n)?")
	for _, name := range []string{"getting-started.md", "network-engineers.md", "plan.md"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, into := range []string{"", "cluster.d"} { // the reader wrote peer.yaml where they are
				if err := os.CopyFS(filepath.Join(dir, into), os.DirFS("../../deploy/example/cluster.d")); err != nil {
					t.Fatal(err)
				}
			}
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			tools := map[string]string{
				"edgewayd": fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\"\n", asCommand, program),
				"kubectl":  "#!/bin/sh\ncat cluster.d/nodes.yaml\n",
				"git":      "#!/bin/sh\nmkdir -p before && cp -r cluster.d before\n", // git worktree add
			}
			for tool, script := range tools {
				if err := os.WriteFile(filepath.Join(dir, tool), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			path := "../../docs/" + name
			page, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := blocks.ReplaceAllStringFunc(string(page), func(block string) string {
				m := blocks.FindStringSubmatch(block)
				cmd := exec.Command("sh", "-ec", m[1])
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%s%v\n%s", m[1], err, out)
				}
				if m[2] == "" {
					return block
				}
				if !*update && string(out) != m[3] {
					t.Errorf("%s prints, run it with -update:\n%s", m[1], out)
				}
				return "\n```sh\n" + m[1] + "```\n" + m[2] + string(out) + "```\n"
			})
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if picture, err := os.ReadFile(filepath.Join(dir, "plan.svg")); err == nil {
				const golden = "../../docs/plan.svg"
				if *update {
					err = os.WriteFile(golden, picture, 0o644)
				}
				want, err2 := os.ReadFile(golden)
				if err != nil || err2 != nil || string(want) != string(picture) {
					t.Errorf("%s is not the picture of the example: %v", golden, errors.Join(err, err2))
				}
			}
			if !strings.Contains(got, "```sh\n") {
				t.Error("no shell block")
			}
		})
	}
}
