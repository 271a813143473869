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
	m := newMetrics("", func(context.Context) api.Status {
		return api.Status{Node: "n", Version: "v", Now: now, World: api.World{ReadAt: now.Add(-time.Minute)},
			Sessions: []api.Session{{Peer: "10.0.0.1", Resource: "BGPPeer/p", PeerASN: 1, State: "Active", Reason: "refused"}},
			Problems: []api.Problem{{Object: "Node/n", Reason: "overlap"}}, Advice: []api.Problem{{Object: "BGPPeer/p", Reason: "singleSpeaker"}}}
	})
	m.observe("ADD", true, time.Millisecond)
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatal(answer.Body)
	}
	return answer.Body.String()
}

const monitoring = "../deploy/monitoring/"

// The dashboard and the rules ask for metrics that exist, and the dashboard is one that Grafana can show.
func TestMonitoringAsksForMetricsThatExist(t *testing.T) {
	have := regexp.MustCompile(`(?m)^(edgeway_\w+?)(_bucket|_sum)?[{ ]`).FindAllStringSubmatch(exported(t), -1)
	known := map[string]bool{"edgeway_cni_call_duration_seconds_bucket": true}
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
	var seen []int
	for _, p := range dashboard(t) {
		if p.Title == "" || p.Type == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 || slices.Contains(seen, p.ID) {
			t.Errorf("panel %+v", p)
		}
		seen = append(seen, p.ID)
	}
}

type panel struct {
	ID          int
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr string }
}

func dashboard(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(monitoring + "grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID, Title    string
		SchemaVersion int
		Panels        []panel
	}
	if err := json.Unmarshal(text, &d); err != nil || d.UID == "" || d.Title == "" || d.SchemaVersion < 36 || len(d.Panels) == 0 {
		t.Fatalf("dashboard: %v, %+v", err, d)
	}
	return d.Panels
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
	for i, p := range dashboard(t) {
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
