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
const ginkgoReport = `[{"SpecialSuiteFailureReasons": ["Suite Timeout Elapsed"], "SpecReports": [
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
	want := result{Group: "HostPort", Passed: 1, Failed: []spec{{"HostPort breaks", "no answer | in hostport-4711"}}, Skipped: []spec{
		{"HostPort asks a cloud", "Only supported for providers [gce]"}, {"HostPort is cut off", outOfTime}, {"HostPort is late", outOfTime}}}
	if diff := cmp.Diff(want, hostPort(t)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A spec that ginkgo left out although there was time has no reason, so nobody takes it for one that was too late.
func TestNotChosenIsNotLate(t *testing.T) {
	specs, err := parseReport([]byte(strings.Replace(ginkgoReport, `"Suite Timeout Elapsed"`, "", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec{Name: "HostPort is late"}, groups[1].result(specs).Skipped[2]); diff != "" {
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

// A run replaces its own cells and keeps the others, and all that stands around the table.
func TestTableKeepsOtherModes(t *testing.T) {
	dir := t.TempDir()
	table := table{results: filepath.Join(dir, "results.json"), page: filepath.Join(dir, "page.md")}
	if err := os.WriteFile(table.page, []byte("above\n"+tableBegin+"old\n"+tableEnd+"below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"overlay", "underlay", "overlay"} {
		r := hostPort(t)
		r.Mode, r.Date = mode, "2026-11-30"
		if err := table.store(r); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(table.page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"above\n" + tableBegin, tableEnd + "below\n", "| Services | not run | not run | not run |",
		"| HostPort | 1 of 2 passed, 3 skipped (2026-11-30) | 1 of 2 passed, 3 skipped (2026-11-30) | not run |",
		"| HostPort breaks | underlay, overlay | no answer / in hostport |"} {
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
