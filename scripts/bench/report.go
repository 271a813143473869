package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"
)

// report holds the results of a run.
type report struct {
	Machine []fact  `json:"machine"`
	Quick   bool    `json:"quick"`
	Tables  []table `json:"tables"`
	Goals   []goal  `json:"goals"`
	// Values are numbers by name, for the goals and the gate.
	Values map[string]float64 `json:"values"`
	format string
}

type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// table is one comparison. A value of a row is a string, a number in the column's unit, or nil if it was
// not measured.
type table struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Columns []column `json:"columns"`
	Rows    [][]any  `json:"rows"`
	Notes   []string `json:"notes,omitempty"`
}

type column struct {
	Name string `json:"name"`
	Unit string `json:"unit,omitempty"`
}

// goal is one of edgeway's goals and its result in this run.
type goal struct {
	What     string  `json:"what"`
	Most     float64 `json:"most"`
	Measured float64 `json:"measured"`
	Reached  bool    `json:"reached"`
}

// columns splits "ADD p50 (ms)" into a name and a unit.
func columns(names ...string) []column {
	var out []column
	for _, n := range names {
		name, unit, _ := strings.Cut(n, " (")
		out = append(out, column{name, strings.TrimSuffix(unit, ")")})
	}
	return out
}

func (t *table) row(values ...any) { t.Rows = append(t.Rows, values) }

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

func (r *report) keep(name string, v float64) {
	if r.Values == nil {
		r.Values = map[string]float64{}
	}
	r.Values[name] = v
}

func (r *report) begin() {
	switch r.format {
	case "json":
		return
	case "markdown":
		fmt.Print("| | |\n|---|---|\n")
		for _, f := range r.Machine {
			fmt.Printf("| %s | %s |\n", f.Name, f.Value)
		}
	default:
		for _, f := range r.Machine {
			fmt.Printf("%-12s %s\n", f.Name, f.Value)
		}
	}
	if r.Quick {
		fmt.Println("\nA quick run: few samples. Only its counts are worth quoting.")
	}
}

// add prints a table as soon as it is complete.
func (r *report) add(t table) {
	r.Tables = append(r.Tables, t)
	switch r.format {
	case "markdown":
		t.markdown()
	case "text":
		t.text()
	}
}

// end prints the JSON form. The other forms were printed table by table.
func (r *report) end() error {
	if r.format == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return nil
}

func (t *table) cells() (head []string, rows [][]string) {
	for _, c := range t.Columns {
		if c.Unit != "" {
			head = append(head, c.Name+" "+c.Unit)
		} else {
			head = append(head, c.Name)
		}
	}
	for _, r := range t.Rows {
		var row []string
		for _, v := range r {
			row = append(row, format(v))
		}
		rows = append(rows, row)
	}
	return head, rows
}

func (t *table) text() {
	head, rows := t.cells()
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	fmt.Printf("\n%s (%s)\n\n", t.Title, t.Name)
	for _, row := range append([][]string{head}, rows...) {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if t.isText(i) {
				b.WriteString("  " + c + pad)
			} else {
				b.WriteString("  " + pad + c)
			}
		}
		fmt.Println(strings.TrimRight(b.String(), " "))
	}
	for _, n := range t.Notes {
		fmt.Println("\n  " + n)
	}
}

func (t *table) markdown() {
	head, rows := t.cells()
	fmt.Printf("\n### %s\n\n| %s |\n|", t.Title, strings.Join(head, " | "))
	for i := range head {
		if t.isText(i) {
			fmt.Print("---|")
		} else {
			fmt.Print("--:|")
		}
	}
	fmt.Println()
	for _, row := range rows {
		fmt.Printf("| %s |\n", strings.Join(row, " | "))
	}
	for _, n := range t.Notes {
		fmt.Println("\n" + n)
	}
}

// isText reports whether the column's values are words.
func (t *table) isText(column int) bool {
	for _, r := range t.Rows {
		if _, ok := r[column].(string); !ok && r[column] != nil {
			return false
		}
	}
	return true
}

// format writes a number with three significant digits.
func format(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		return v
	case int:
		return grouped(fmt.Sprint(v))
	case float64:
		switch {
		case v >= 100:
			return grouped(fmt.Sprintf("%.0f", v))
		case v >= 10:
			return fmt.Sprintf("%.1f", v)
		case v >= 0.1 || v == 0:
			return fmt.Sprintf("%.2f", v)
		}
		return fmt.Sprintf("%.2g", v)
	}
	return fmt.Sprint(v)
}

func grouped(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
