package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manDir makes TestPages write the man pages; scripts/package/packages.sh sets it.
var manDir = flag.String("man", "", "write the man pages into this directory")

// pages returns every command that an operator can call, the root first.
func pages(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			all = append(all, pages(c)...)
		}
	}
	return all
}

// docs/cli.md is what the commands say of themselves: go test ./daemon/edgewayd -run TestPages -update.
func TestPages(t *testing.T) {
	cmd := root()
	cmd.DisableAutoGenTag = true
	var page bytes.Buffer
	page.WriteString("# The command line\n\nGenerated from the commands; `edgewayd help COMMAND` and `man edgewayd` say the same. The packages install the\nman pages, and the completion of bash, zsh and fish (`edgewayd completion` prints it).\n\nExit status of every command: 0 success, 1 an error. `plan`, `switch-config`, `doctor`, `why` and the views with `--exit-code` exit 3\nwhen there are problems, and `plan --against` exits 2 for a difference.\n\n")
	for _, c := range pages(cmd) {
		var one bytes.Buffer
		if err := doc.GenMarkdownCustom(c, &one, func(file string) string {
			return "#" + strings.ReplaceAll(strings.TrimSuffix(file, ".md"), "_", "-")
		}); err != nil {
			t.Fatal(err)
		}
		page.Write(one.Bytes())
	}
	text := inherited(page.String())
	const golden = "../../docs/cli.md"
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("run it with -update (-want +got):\n%s", diff)
	}
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	}
	epoch := time.Unix(0, 0) // the same commands give the same pages
	if err := doc.GenManTree(cmd, &doc.GenManHeader{Title: "EDGEWAYD", Section: "8", Source: "edgeway", Manual: "edgeway", Date: &epoch}, dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range pages(cmd) {
		file := filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".8")
		if st, err := os.Stat(file); err != nil || st.Size() == 0 {
			t.Errorf("man page: %v", err)
		}
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
	}
}

// inherited leaves the flags of every command to the first section.
func inherited(page string) string {
	const head = "### Options inherited from parent commands\n"
	for {
		i := strings.Index(page, head)
		if i < 0 {
			return page
		}
		j := strings.Index(page[i:], "### SEE ALSO")
		if j < 0 {
			panic(fmt.Sprintf("no end of the inherited options after %q", page[i:min(len(page), i+200)]))
		}
		page = page[:i] + page[i+j:]
	}
}
