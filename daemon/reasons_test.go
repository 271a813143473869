package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An operator finds each reason of a problem in the table of docs/operations.md. The table has no other reasons.
func TestReasonsAreDocumented(t *testing.T) {
	find := func(text, pattern string) (out []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		return out
	}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// A part that an Established session lacks is a problem too.
	inCode := append(find(read("cluster/reason.go"), ` Reason = "(\w+)"`), find(read("../bgp/reason.go"), `\n\tlack\w+ += "(\w+)"`)...)
	_, table, _ := strings.Cut(read("../docs/operations.md"), "\n## Problems\n")
	_, table, _ = strings.Cut(table, "|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var inDocs []string
	for row := range strings.Lines(table) {
		inDocs = append(inDocs, find(strings.Split(row, "|")[1], "`(\\w+)`")...)
	}
	slices.Sort(inCode)
	slices.Sort(inDocs)
	if diff := cmp.Diff(inCode, inDocs); diff != "" {
		t.Errorf("the code and the table (-code +docs):\n%s", diff)
	}
	// The metric has a series for each, so it must know them all.
	sessions := slices.DeleteFunc(find(read("../bgp/reason.go"), `\n\treason\w+ += "(\w+)"`), func(r string) bool { return r == "connecting" })
	want := slices.Sorted(slices.Values(slices.Concat(inCode, sessions)))
	problems, advice := everyReason()
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(slices.Concat(problems, advice)))); diff != "" {
		t.Errorf("the constants and the functions Reasons (-constants +functions):\n%s", diff)
	}
	files, err := filepath.Glob("*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if literal := find(read(file), `Reason: "(\w+)"`); len(literal) > 0 && !strings.HasSuffix(file, "_test.go") {
			t.Errorf("%s writes the reasons %q as text; package cluster has the table of reasons", file, literal)
		}
	}
}
