package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// exported returns what Prometheus would read from a node that has one of everything.
func exported(t *testing.T) string {
	t.Helper()
	now := time.Now()
	m := newMetrics(func(context.Context) api.Status {
		return api.Status{Node: "n", Version: "v", Now: now, World: api.World{ReadAt: now.Add(-time.Minute)},
			Sessions: []api.Session{{Peer: "10.0.0.1", Resource: "BGPPeer/p", PeerASN: 1, State: "Active", Reason: "refused"}},
			Problems: []api.Problem{{Object: "Node/n", Reason: "overlap"}, {Object: "Node/m", Reason: "overlap"}}, Advice: []api.Problem{{Object: "BGPPeer/p", Reason: "singleSpeaker"}}}
	})
	m.observe("ADD", true, time.Millisecond)
	m.looked(true, time.Millisecond)
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatal(answer.Body)
	}
	return answer.Body.String()
}

// A rule sees a problem begin: before there is one, the series is there with 0.
func TestProblemsThatAreAbsentAreZero(t *testing.T) {
	text := exported(t)
	for _, want := range []string{`edgeway_problems{reason="overlap"} 2`, `edgeway_problems{reason="poolFull"} 0`, `edgeway_problems{reason="noGracefulRestart"} 0`, `edgeway_problems{reason="refused"} 0`, `edgeway_reconcile_duration_seconds_count{result="error"} 0`, `edgeway_advice{reason="singleSpeaker"} 1`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	problems, _ := everyReason()
	if n := strings.Count(text, "\nedgeway_problems{"); n != len(problems) {
		t.Errorf("%d series of edgeway_problems; want one for each of %d reasons", n, len(problems))
	}
}

const monitoring = "../deploy/monitoring/"

// The dashboard and the rules ask for metrics that exist.
func TestMonitoringAsksForMetricsThatExist(t *testing.T) {
	have := regexp.MustCompile(`(?m)^(edgeway_\w+?)(_bucket|_sum)?[{ ]`).FindAllStringSubmatch(exported(t), -1)
	known := map[string]bool{"edgeway_cni_call_duration_seconds_bucket": true, "edgeway_reconcile_duration_seconds_bucket": true}
	for _, m := range have {
		known[m[1]] = true
	}
	docs, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range known {
		name = regexp.MustCompile("_(bucket|count)$").ReplaceAllString(name, "")
		if !strings.Contains(string(docs), "`"+name+"`") {
			t.Errorf("docs/operations.md does not say what %s is", name)
		}
	}
	for _, file := range []string{"edgeway.rules.yaml", "edgeway.tests.yaml", "grafana-dashboard.json"} {
		text, err := os.ReadFile(monitoring + file)
		if err != nil {
			t.Fatal(err)
		}
		asked := regexp.MustCompile(`edgeway_\w+`).FindAllString(string(text), -1)
		if len(asked) == 0 {
			t.Errorf("%s asks for nothing", file)
		}
		for _, name := range asked {
			if !known[name] {
				t.Errorf("%s asks for %s, which no daemon has", file, name)
			}
		}
	}
}

// dashboard is the part of Grafana's dashboard model that the dashboard uses. No other key may be in the file: a
// typing error would be a key that Grafana ignores.
type dashboard struct {
	UID, Title, Timezone, Refresh string
	Tags                          []string
	SchemaVersion, Version        int
	Editable                      bool
	Time                          struct{ From, To string }
	Templating                    struct{ List []variable }
	Annotations                   struct{ List []struct{} }
	Panels                        []panel
}

type variable struct {
	Name, Type, Query, Label, AllValue string
	Datasource                         source
	Refresh                            int
	Multi, IncludeAll                  bool
}

type source struct{ Type, UID string }

type panel struct {
	ID          int
	Type, Title string
	Datasource  source
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit       string
			Max, Min   *float64
			Thresholds struct {
				Mode  string
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
		Overrides []struct{}
	}
	Targets []struct{ RefID, Expr, LegendFormat string }
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	f, err := os.Open(monitoring + "grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

// The dashboard has the structure that Grafana 10 and later import: nothing is laid over anything else, every query
// asks the data source that the reader chooses, and every variable of a query is one of the dashboard's.
func TestDashboardIsOneThatGrafanaShows(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 36 || len(d.Panels) == 0 || d.Time.From == "" || d.Time.To == "" {
		t.Errorf("head of the dashboard: %+v", d)
	}
	chosen := source{"prometheus", "${datasource}"}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if (v.Type == "datasource") != (v.Query == chosen.Type) || v.Type == "query" && (v.Datasource != chosen || v.Refresh == 0) {
			t.Errorf("variable %+v", v)
		}
	}
	if !slices.Contains(variables, "datasource") {
		t.Errorf("no variable chooses the data source: %v", variables)
	}
	taken := map[[2]int]string{}
	var seen []int
	for _, p := range d.Panels {
		g := p.GridPos
		if p.ID < 1 || slices.Contains(seen, p.ID) || p.Title == "" || p.Datasource != chosen || len(p.Targets) == 0 ||
			p.Type != "stat" && p.Type != "timeseries" || g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("panel %+v", p)
		}
		seen = append(seen, p.ID)
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q lies over panel %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		var refs []string
		for _, target := range p.Targets {
			if target.RefID == "" || target.Expr == "" || slices.Contains(refs, target.RefID) {
				t.Errorf("panel %q: target %+v", p.Title, target)
			}
			refs = append(refs, target.RefID)
			for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, m[1]) {
					t.Errorf("panel %q: %s is not a variable of the dashboard", p.Title, m[0])
				}
			}
		}
	}
}

// Prometheus accepts the metrics, the rules and every expression of the dashboard, and each alert fires for its
// fault, and not on a healthy node.
func TestPromtool(t *testing.T) {
	lab.Need(t, "promtool")
	promtool := func(stdin string, args ...string) {
		t.Helper()
		cmd := exec.Command("promtool", args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	promtool(exported(t), "check", "metrics")
	promtool("", "check", "rules", monitoring+"edgeway.rules.yaml")
	promtool("", "test", "rules", monitoring+"edgeway.tests.yaml")
	scrape, err := os.ReadFile(monitoring + "prometheus.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Debian's Prometheus is built without the discovery of Kubernetes.
	scrape = bytes.Replace(scrape, []byte("kubernetes_sd_configs: [{role: node}]"), []byte("static_configs: [{targets: []}]"), 1)
	config := filepath.Join(t.TempDir(), "prometheus.yaml")
	if err := os.WriteFile(config, scrape, 0o644); err != nil {
		t.Fatal(err)
	}
	promtool("", "check", "config", "--syntax-only", config)
	var rules strings.Builder
	rules.WriteString("groups: [{name: dashboard, rules: [")
	for i, p := range readDashboard(t).Panels {
		for j, target := range p.Targets {
			fmt.Fprintf(&rules, "{record: 'p%d_%d', expr: %q},", i, j, strings.ReplaceAll(target.Expr, "$instance", ".*"))
		}
	}
	rules.WriteString("]}]\n")
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool("", "check", "rules", file)
}
