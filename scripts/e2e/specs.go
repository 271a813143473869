package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// group is a part of Kubernetes' network tests and a row of the table.
type group struct {
	name     string
	pattern  *regexp.Regexp // of the full names of the specs; for ginkgo the name of the suite stands before them
	policies bool           // whether an agent must enforce NetworkPolicies
}

// groups are the parts that concern a CNI plugin.
var groups = []group{ // read only
	{name: "Granular Checks", pattern: regexp.MustCompile(`\[sig-network\] Networking Granular Checks`)},
	{name: "HostPort", pattern: regexp.MustCompile(`\[sig-network\] HostPort`)},
	{name: "Connectivity", pattern: regexp.MustCompile(`\[sig-network\] Connectivity`)},
	{name: "Conntrack", pattern: regexp.MustCompile(`\[sig-network\] Conntrack`)},
	{name: "Services", pattern: regexp.MustCompile(`\[sig-network\] Services`)},
	{name: "NetworkPolicy", pattern: regexp.MustCompile(`\[sig-network\] Netpol`), policies: true},
}

// cause is why specs are not run, or why they fail although nothing of ours is wrong.
type cause struct {
	pattern *regexp.Regexp // of the full names of the specs
	reason  string
}

// excluded lists the specs that cannot run on this machine.
func excluded() (all []cause) {
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP); err != nil {
		all = append(all, cause{regexp.MustCompile(`\[Feature:SCTPConnectivity\]`), "the machine's kernel has no SCTP"})
	} else {
		_ = unix.Close(fd) // it was only a question
	}
	return all
}

// spec is a spec that failed or was skipped.
type spec struct {
	Name   string
	Reason string
}

// result is the outcome of one group in one mode.
type result struct {
	Mode, Group string
	Date        string // of the run: 2026-11-30
	Passed      int
	Failed      []spec `json:",omitempty"`
	Skipped     []spec `json:",omitempty"` // also those that the time limit left out
}

// specReport holds the fields that are read from a spec in ginkgo's report (types.SpecReport of ginkgo v2).
type specReport struct {
	ContainerHierarchyTexts    []string
	LeafNodeType, LeafNodeText string
	State                      string
	Failure                    struct{ Message string }
}

func (r specReport) name() string {
	return strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " ")
}

// parseReport reads the specs of ginkgo's JSON report. A skipped spec without a message was not chosen, unless the
// suite ended early (SpecialSuiteFailureReasons of ginkgo's types.Report): then the time was over. The error says that
// the suite did not get as far as its specs.
func parseReport(text []byte) ([]specReport, error) {
	var suites []struct {
		SpecialSuiteFailureReasons []string
		SpecReports                []specReport
	}
	if err := json.Unmarshal(text, &suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	var specs []specReport
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType == "It" {
				if r.State == "skipped" && r.Failure.Message == "" && len(s.SpecialSuiteFailureReasons) > 0 {
					r.Failure.Message = outOfTime
				}
				specs = append(specs, r)
			} else if r.State == "failed" || r.State == "panicked" || r.State == "timedout" {
				return nil, fmt.Errorf("%s of the test suite %s: %s", r.LeafNodeType, r.State, firstLine(r.Failure.Message))
			}
		}
	}
	return specs, nil
}

// result sorts the group's specs by their outcome. A skipped spec without a reason was not chosen.
func (g group) result(specs []specReport) result {
	r := result{Group: g.name}
	for _, s := range specs {
		name := s.name()
		if !g.pattern.MatchString(name) {
			continue
		}
		short := spec{Name: strings.TrimPrefix(name, "[sig-network] "), Reason: firstLine(s.Failure.Message)}
		switch {
		case s.State == "passed":
			r.Passed++
		case s.State == "interrupted", s.State == "timedout" && strings.Contains(s.Failure.Message, "suite timeout"):
			short.Reason = outOfTime
			r.Skipped = append(r.Skipped, short)
		case s.State == "skipped" || s.State == "pending":
			if i := slices.IndexFunc(excluded(), func(e cause) bool { return e.pattern.MatchString(name) }); i >= 0 {
				short.Reason = excluded()[i].reason
			}
			r.Skipped = append(r.Skipped, short)
		default:
			r.Failed = append(r.Failed, short)
		}
	}
	byName := func(a, b spec) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(r.Failed, byName)
	slices.SortFunc(r.Skipped, byName)
	return r
}

const outOfTime = "not run: the time of the run was over"

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
