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

// cause is why specs are not run, or why they fail although nothing is broken.
type cause struct {
	pattern *regexp.Regexp // of the specs
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

// result is the outcome of one group in one mode.
type result struct {
	Mode, Group string
	Specs       []spec // by name
}

// spec is the outcome of a spec.
type spec struct {
	Name   string
	State  string // passed, failed, skipped or missed
	Reason string `json:",omitempty"` // why it did not pass
	Date   string // of the run: 2026-11-30
}

// States of a spec. A run replaces a state by any other, but none by missed.
const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped" // by itself, or because the machine lacks what it needs
	missed  = "missed"  // not run: not chosen, or too late
)

// of returns the specs in a state.
func (r result) of(state string) (all []spec) {
	for _, s := range r.Specs {
		if s.State == state {
			all = append(all, s)
		}
	}
	return all
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

// parseReport reads the specs of ginkgo's JSON report. The error says that the suite did not get as far as its specs.
func parseReport(text []byte) ([]specReport, error) {
	var suites []struct{ SpecReports []specReport }
	if err := json.Unmarshal(text, &suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	var specs []specReport
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType == "It" {
				specs = append(specs, r)
			} else if r.State == "failed" || r.State == "panicked" || r.State == "timedout" {
				return nil, fmt.Errorf("%s of the test suite %s: %s", r.LeafNodeType, r.State, firstLine(r.Failure.Message))
			}
		}
	}
	return specs, nil
}

// result returns the outcomes of the group's specs.
func (g group) result(specs []specReport) result {
	r := result{Group: g.name}
	for _, s := range specs {
		name := s.name()
		if !g.pattern.MatchString(name) {
			continue
		}
		one := spec{Name: strings.TrimPrefix(name, "[sig-network] "), State: failed, Reason: firstLine(s.Failure.Message)}
		i := slices.IndexFunc(excluded(), func(e cause) bool { return e.pattern.MatchString(name) })
		switch {
		case s.State == "passed":
			one.State, one.Reason = passed, ""
		case i >= 0:
			one.State, one.Reason = skipped, excluded()[i].reason
		case (s.State == "skipped" || s.State == "pending") && one.Reason != "":
			one.State = skipped
		case s.State == "skipped", s.State == "interrupted", s.State == "timedout" && strings.Contains(s.Failure.Message, "suite timeout"):
			one.State, one.Reason = missed, "not run yet"
		}
		r.Specs = append(r.Specs, one)
	}
	slices.SortFunc(r.Specs, func(a, b spec) int { return strings.Compare(a.Name, b.Name) })
	return r
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
