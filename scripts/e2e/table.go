package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// table is the table of Kubernetes' own tests in a page, and the file of the results that it shows. A run replaces the
// results of the specs that it ran.
type table struct {
	results string // path of a JSON file
	page    string // path
}

// record is the content of the results' file.
type record struct {
	Kubernetes string
	Results    []result // sorted by group and mode, in the order of the table
}

const (
	tableBegin = "<!-- make e2e-upstream writes from here to the end mark -->\n"
	tableEnd   = "<!-- end of what make e2e-upstream writes -->\n"
)

// load returns the results so far.
func (t table) load() (r record, err error) {
	text, err := os.ReadFile(t.results)
	if errors.Is(err, fs.ErrNotExist) {
		return record{Kubernetes: kube.Version}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", t.results, err)
	}
	return r, err
}

// store adds a result, and writes the results and the page. Results of another version of Kubernetes go.
func (t table) store(new result) error {
	r, err := t.load()
	if err != nil {
		return err
	}
	if r.Kubernetes != kube.Version {
		r = record{Kubernetes: kube.Version}
	}
	if old := r.find(new.Group, new.Mode); old == nil {
		r.Results = append(r.Results, new)
	} else {
		old.merge(new)
	}
	order := func(r result) int {
		return slices.IndexFunc(groups, func(g group) bool { return g.name == r.Group })*len(modes) + slices.Index(modes, r.Mode)
	}
	slices.SortFunc(r.Results, func(a, b result) int { return cmp.Compare(order(a), order(b)) })
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	page, err := os.ReadFile(t.page)
	if err != nil {
		return err
	}
	changed, err := r.into(string(page))
	if err != nil {
		return fmt.Errorf("%s: %w", t.page, err)
	}
	return errors.Join(os.WriteFile(t.results, append(text, '\n'), 0o644), os.WriteFile(t.page, []byte(changed), 0o644))
}

// merge takes the outcomes of a later run.
func (r *result) merge(new result) {
	for i, s := range new.Specs {
		k := slices.IndexFunc(r.Specs, func(old spec) bool { return old.Name == s.Name })
		if s.State == missed && k >= 0 {
			new.Specs[i] = r.Specs[k]
		}
	}
	r.Specs = new.Specs
}

// into returns the page with the results between its two marks.
func (r record) into(page string) (string, error) {
	before, rest, begin := strings.Cut(page, tableBegin)
	_, after, end := strings.Cut(rest, tableEnd)
	if !begin || !end {
		return "", fmt.Errorf("want the lines %q and %q", tableBegin, tableEnd)
	}
	return before + tableBegin + "\n" + r.markdown() + "\n" + tableEnd + after, nil
}

// find returns the result of a group in a mode, or nil if it was not run.
func (r record) find(group, mode string) *result {
	for i := range r.Results {
		if r.Results[i].Group == group && r.Results[i].Mode == mode {
			return &r.Results[i]
		}
	}
	return nil
}

// markdown returns the table: a row for each group, and the specs that failed or were skipped, each with its reason.
func (r record) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Kubernetes %s, kube-proxy in mode nftables, CoreDNS; NetworkPolicy with kube-network-policies %s. \"20 of 21\": one of the specs that ran failed; \"missed\": not run yet.\n\n",
		r.Kubernetes, policiesTag)
	fmt.Fprintf(&b, "| specs | %s |\n|---|%s\n", strings.Join(modes, " | "), strings.Repeat("---|", len(modes)))
	for _, g := range groups {
		fmt.Fprintf(&b, "| %s |", g.name)
		for _, mode := range modes {
			fmt.Fprintf(&b, " %s |", r.find(g.name, mode))
		}
		b.WriteString("\n")
	}
	r.list(&b, failed)
	r.list(&b, skipped)
	r.list(&b, missed)
	return b.String()
}

// list writes the specs in a state, with their reasons and modes.
func (r record) list(b *strings.Builder, state string) {
	type row struct{ name, reason string }
	in := map[row][]string{}
	for _, one := range r.Results {
		for _, s := range one.of(state) {
			in[row{s.Name, why(s)}] = append(in[row{s.Name, why(s)}], one.Mode)
		}
	}
	if len(in) == 0 {
		return
	}
	fmt.Fprintf(b, "\n| %s | in | why |\n|---|---|---|\n", state)
	for _, s := range slices.SortedFunc(maps.Keys(in), func(a, b row) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.reason, b.reason))
	}) {
		fmt.Fprintf(b, "| %s | %s | %s |\n", cell(s.name), strings.Join(in[s], ", "), cell(s.reason))
	}
}

// String is the cell of a result, with the dates of its oldest and its newest run.
func (r *result) String() string {
	if r == nil {
		return "not run"
	}
	text := fmt.Sprintf("%d of %d passed", len(r.of(passed)), len(r.of(passed))+len(r.of(failed)))
	for _, state := range []string{skipped, missed} {
		if n := len(r.of(state)); n > 0 {
			text += fmt.Sprintf(", %d %s", n, state)
		}
	}
	var dates []string
	for _, s := range r.Specs {
		if s.State != missed {
			dates = append(dates, s.Date)
		}
	}
	if len(dates) == 0 {
		return text
	}
	slices.Sort(dates)
	return text + " (" + strings.Join(slices.Compact([]string{dates[0], dates[len(dates)-1]}), " to ") + ")"
}

// known lists specs that fail because edgeway does something else on purpose. The patterns match "NAME: MESSAGE".
var known = []cause{ // read only
	{regexp.MustCompile(`^Services should implement NodePort and HealthCheckNodePort correctly .*: expected client IP to be preserved`),
		"by design: a program of a node that calls its own node's NodePort for a pod of another node enters the tunnel, where a strict rp_filter would drop " +
			"the node's address. The pod sees the tunnel's end ([network-pools.md](network-pools.md#pods-and-the-addresses-of-nodes)). " +
			"The step before, with the NodePort of the pod's own node, passes"},
}

// why returns why a spec did not pass: a known cause, or else what the spec says.
func why(s spec) string {
	for _, k := range known {
		if k.pattern.MatchString(s.Name + ": " + s.Reason) {
			return k.reason
		}
	}
	return s.Reason
}

// cell makes text fit into a cell of a table: no bar, no line break, no name of one run's namespace.
func cell(s string) string {
	return strings.ReplaceAll(runName.ReplaceAllString(strings.Join(strings.Fields(s), " "), "$1"), "|", "/")
}

// runName matches the suffix of a namespace that a spec made: "services-4711".
var runName = regexp.MustCompile(`\b([a-z]+(?:-[a-z]+)*)-[0-9]{2,5}\b`)
