package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ginkgoReport has a spec of each outcome. Nodes that are no specs count only when they fail.
const ginkgoReport = `[{"SpecReports": [
	{"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
	{"ContainerHierarchyTexts": ["[sig-network] HostPort"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
	{"ContainerHierarchyTexts": ["[sig-network] HostPort"], "LeafNodeType": "It", "LeafNodeText": "breaks", "State": "failed",
	 "Failure": {"Message": "no answer | in hostport-4711\nmore"}},
	{"ContainerHierarchyTexts": ["[sig-network] HostPort"], "LeafNodeType": "It", "LeafNodeText": "asks a cloud", "State": "skipped",
	 "Failure": {"Message": "Only supported for providers [gce]"}},
	{"ContainerHierarchyTexts": ["[sig-network] HostPort"], "LeafNodeType": "It", "LeafNodeText": "is late", "State": "skipped"},
	{"ContainerHierarchyTexts": ["[sig-network] HostPort"], "LeafNodeType": "It", "LeafNodeText": "is cut off", "State": "timedout",
	 "Failure": {"Message": "A suite timeout occurred"}},
	{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "concern others", "State": "skipped"}
]}]`

func hostPort(t *testing.T) result {
	t.Helper()
	specs, err := parseReport([]byte(ginkgoReport))
	if err != nil {
		t.Fatal(err)
	}
	return groups[1].result(specs)
}

func TestResult(t *testing.T) {
	want := result{Group: "HostPort", Specs: []spec{
		{Name: "HostPort asks a cloud", State: skipped, Reason: "Only supported for providers [gce]"}, {Name: "HostPort breaks", State: failed, Reason: "no answer | in hostport-4711"},
		{Name: "HostPort is cut off", State: missed, Reason: "not run yet"}, {Name: "HostPort is late", State: missed, Reason: "not run yet"}, {Name: "HostPort works", State: passed}}}
	if diff := cmp.Diff(want, hostPort(t)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A suite that failed before its specs is an error, and not a column of skipped specs.
func TestSuiteFails(t *testing.T) {
	report := strings.Replace(ginkgoReport, `"SynchronizedBeforeSuite", "State": "passed"`,
		`"SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no nodes"}`, 1)
	if _, err := parseReport([]byte(report)); err == nil || !strings.Contains(err.Error(), "no nodes") {
		t.Errorf("got %v, want an error with the suite's message", err)
	}
}

// A run replaces the results of the specs that it ran. It keeps the others, and all that stands around the table.
func TestTableKeepsOtherResults(t *testing.T) {
	dir := t.TempDir()
	table := table{results: filepath.Join(dir, "results.json"), page: filepath.Join(dir, "page.md")}
	if err := os.WriteFile(table.page, []byte("above\n"+tableBegin+"old\n"+tableEnd+"below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	store := func(mode, date string, change func(*spec)) {
		t.Helper()
		r := hostPort(t)
		r.Mode = mode
		for i := range r.Specs {
			r.Specs[i].Date = date
			change(&r.Specs[i])
		}
		if err := table.store(r); err != nil {
			t.Fatal(err)
		}
	}
	store("overlay", "2026-11-30", func(*spec) {})
	store("underlay", "2026-11-30", func(*spec) {})
	store("overlay", "2026-12-01", func(s *spec) { // the late spec, and no other
		s.State = missed
		if s.Name == "HostPort is late" {
			s.State = passed
		}
	})
	page, err := os.ReadFile(table.page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"above\n" + tableBegin, tableEnd + "below\n", "| Services | not run | not run | not run |",
		"| HostPort | 1 of 2 passed, 1 skipped, 2 missed (2026-11-30) | 2 of 3 passed, 1 skipped, 1 missed (2026-11-30 to 2026-12-01) | not run |",
		"| HostPort breaks | underlay, overlay | no answer / in hostport |", "| HostPort is late | underlay | not run yet |"} {
		if strings.Count(string(page), want) != 1 {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(string(page), "old") {
		t.Errorf("the page still has the old table:\n%s", page)
	}
}

var update = flag.Bool("update", false, "write the table of the committed results into docs/conformance.md")

// The committed page shows the committed results: nobody writes the table by hand.
func TestPageShowsResults(t *testing.T) {
	r, err := table{results: "testdata/upstream.json"}.load()
	if err != nil {
		t.Fatal(err)
	}
	const path = "../../docs/conformance.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.into(string(page))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, string(page)); diff != "" {
		t.Errorf("docs/conformance.md is not the table of the results; run this test with -update (-want +got):\n%s", diff)
	}
}

// The agent's image is the one that the overlay deploys, and build.sh builds that version.
func TestPoliciesVersion(t *testing.T) {
	for path, want := range map[string]string{
		"../../deploy/overlays/networkpolicy/kube-network-policies.yaml": "image: " + policiesImage + ":" + policiesTag + "\n",
		"../kube/build.sh": "policies=" + policiesTag + " ",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q", path, want)
		}
	}
}
