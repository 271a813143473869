package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/daemon/config"
)

const chartDir = "../../deploy/helm/edgeway"

// rendered is what Helm makes of the chart with some values: the text, or the error.
type rendered struct{ Text, Error string }

// renderer is the program of testdata/chart.txtar, built once. It has Helm's own engine.
var renderer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "edgeway-chart")
	if err != nil {
		return "", err
	}
	archive, err := txtar.ParseFile("testdata/chart.txtar")
	if err != nil {
		return "", err
	}
	for _, f := range archive.Files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "chart")
	if out, err := exec.Command("go", "build", "-C", dir, "-ldflags=-s -w", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build testdata/chart.txtar: %w: %s", err, out)
	}
	return path, nil
})

var rendering atomic.Bool // the renderer was asked for

// TestMain removes the renderer.
func TestMain(m *testing.M) {
	code := m.Run()
	if rendering.Load() {
		if path, err := renderer(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// helm renders the chart with each of the values. The last answer has the complaints of helm lint --strict.
func helm(t *testing.T, values ...map[string]any) []rendered {
	t.Helper()
	rendering.Store(true)
	program, err := renderer()
	if err != nil {
		t.Fatal(err)
	}
	in, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, chartDir)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var answers []rendered
	if err := json.Unmarshal(out, &answers); err != nil || len(answers) != len(values)+1 {
		t.Fatalf("%d answers for %d values (%v)", len(answers), len(values), err)
	}
	return answers
}

// template returns what Helm would apply.
func template(t *testing.T, values map[string]any) string {
	t.Helper()
	a := helm(t, values)[0]
	if a.Error != "" {
		t.Fatal(a.Error)
	}
	return a.Text
}

func parsed(t *testing.T, text string) (out map[string]any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// everyValue sets each value of the chart to another value than its default.
func everyValue() map[string]any {
	var out map[string]any
	if err := yaml.Unmarshal([]byte(`
image: {repository: registry.example/edgeway, tag: v1, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
config: {mode: auto}
networkPools: {shop: {nodeSelector: pool=shop, mode: overlay, podCIDRs: [{cidr: 10.20.0.0/16}]}}
passwordSecrets: [bgp-secret, bgp-secret-2]
flannel: {enabled: true}
speakers: {separate: true, maxUnavailable: 20%}
keepCanary: true
rollout: {enabled: false}
networkPolicy: {enabled: true, image: 'registry.example/policies:v1', failOpen: true}
nodeSelector: {a: b}
tolerations: [{key: edge, operator: Exists, effect: NoSchedule}]
priorityClassName: system-cluster-critical
resources: {requests: {cpu: 30m}}
podAnnotations: {a: b}
podMonitor: {enabled: true, port: 9999, labels: {release: prometheus}}
controller:
  enabled: true
  image: {repository: registry.example/other}
  replicas: 3
  podCIDRs: [10.10.0.0/16]
  nodeMask: {ipv4: 25}
  nodes: pool=hybrid
  exclude: [10.10.0.1]
  pools: [{nodeSelector: pool=shop, podCIDRs: [10.30.0.0/16]}]
  ens: {region: cn-hangzhou, fill: 5}
  ecs: {region: cn-hangzhou, interfaces: 3, vSwitches: [vsw-1], taintWhenFull: true}
  listen: 127.0.0.1:9476
  nodeSelector: {c: d}
`), &out); err != nil {
		panic(err)
	}
	delete(out["controller"].(map[string]any), "pools") // either pools or podCIDRs
	return out
}

// isFree reports whether the keys below path are the operator's to choose.
func isFree(path string) bool {
	return slices.Contains([]string{"nodeSelector", "controller.nodeSelector", "podAnnotations", "podMonitor.labels", "resources", "networkPools"}, path)
}

// paths returns the path of every value in values: "controller", "controller.nodeMask".
func paths(values map[string]any, prefix string) (out []string) {
	for key, value := range values {
		out = append(out, prefix+key)
		if m, ok := value.(map[string]any); ok && !isFree(prefix+key) {
			out = append(out, paths(m, prefix+key+".")...)
		}
	}
	slices.Sort(out)
	return out
}

// with returns a copy of values with another value at path.
func with(values map[string]any, path string, value any) map[string]any {
	out := maps.Clone(values)
	if out == nil {
		out = map[string]any{}
	}
	key, rest, deep := strings.Cut(path, ".")
	if deep {
		inner, _ := out[key].(map[string]any)
		value = with(inner, rest, value)
	}
	out[key] = value
	return out
}

func at(values map[string]any, path string) any {
	key, rest, deep := strings.Cut(path, ".")
	if inner, ok := values[key].(map[string]any); ok && deep {
		return at(inner, rest)
	}
	return values[key]
}

// TestChart compares the chart's defaults with the DaemonSet of the kustomization, and runs helm lint.
func TestChart(t *testing.T) {
	watch := map[string]any{"podMonitor": map[string]any{"enabled": true, "labels": map[string]any{"release": "prometheus"}}}
	answers := helm(t, nil, watch)
	for _, a := range answers {
		if a.Error != "" {
			t.Fatal(a.Error)
		}
	}
	got := daemonSet(t, answers[0].Text)
	want := readDaemonSet(t, "../../deploy/kubernetes/daemonset/daemonset.yaml")
	for _, ds := range []*appsv1.DaemonSet{&got, &want} {
		ds.Spec.Template.Annotations = nil // the sum of the configuration
		spec := ds.Spec.Template.Spec
		spec.InitContainers[0].Image, spec.Containers[0].Image = "", ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the DaemonSet (-deploy/kubernetes +chart):\n%s", diff)
	}
	watched := answers[1].Text
	if ports := daemonSet(t, watched).Spec.Template.Spec.Containers[0].Ports; len(ports) != 1 || ports[0].Name != "metrics" || ports[0].ContainerPort != 9475 {
		t.Errorf("ports: %v", ports)
	}
	for _, want := range []string{"\nkind: PodMonitor\n", "release: prometheus", "- port: metrics", "    metrics: 0.0.0.0:9475\n"} {
		if !strings.Contains(watched, want) {
			t.Errorf("with a PodMonitor there is no %q in\n%s", want, watched)
		}
	}
}

// Each value changes what Helm applies.
func TestChartUsesEveryValue(t *testing.T) {
	defaults, other := parsed(t, read(t, chartDir+"/values.yaml")), everyValue()
	separate := map[string]any{"speakers": map[string]any{"separate": true}}
	base := map[string]map[string]any{
		"networkPolicy.": {"networkPolicy": map[string]any{"enabled": true}},
		"podMonitor.":    {"podMonitor": map[string]any{"enabled": true}},
		"controller.":    {"controller": map[string]any{"enabled": true, "podCIDRs": []any{"10.9.0.0/16"}}},
		"controller.pools": {"controller": map[string]any{"enabled": true},
			"networkPools": other["networkPools"]},
		"speakers.maxUnavailable": separate,
	}
	values := []map[string]any{nil}
	all := paths(defaults, "")
	for _, path := range all {
		from := base[path]
		for prefix, b := range base {
			if from == nil && strings.HasSuffix(prefix, ".") && strings.HasPrefix(path, prefix) {
				from = b
			}
		}
		value := at(other, path)
		switch path {
		case "controller.pools":
			value = []any{map[string]any{"nodeSelector": "pool=shop", "podCIDRs": []any{"10.30.0.0/16"}}}
		case "controller.enabled":
			from = with(base["controller."], "controller.enabled", false)
		case "podMonitor.enabled", "networkPolicy.enabled":
			from = nil
		}
		if value == nil {
			t.Errorf("%s: everyValue has no other value", path)
		}
		values = append(values, from, with(from, path, value))
	}
	answers := helm(t, values...)
	for i, path := range all {
		before, after := answers[2*i+1], answers[2*i+2]
		if before.Error != "" || after.Error != "" || before.Text == after.Text {
			t.Errorf("%s: changes nothing, or is refused: %s%s", path, before.Error, after.Error)
		}
	}
}

// null means none, or is refused in words; a key that the chart does not have is refused, at each level.
func TestChartNullsAndUnknownKeys(t *testing.T) {
	defaults, every := parsed(t, read(t, chartDir+"/values.yaml")), everyValue()
	var values []map[string]any
	var what []string
	add := func(of string, v map[string]any) { what, values = append(what, of), append(values, v) }
	for _, path := range paths(defaults, "") {
		add("null "+path, with(nil, path, nil))
		add("null "+path, with(every, path, nil))
		if _, ok := at(defaults, path).(map[string]any); ok && !isFree(path) {
			add("unknown "+path, with(nil, path+".bogus", 1))
		}
	}
	add("unknown", map[string]any{"bogus": 1})
	for _, wrong := range []string{"image: {repository: 1}", "speakers: {separate: yes-please}", "speakers: {maxUnavailable: 0}", "config: {mode: tunnel}", "config: {vxlan: {vni: 0}}",
		"config: {bgp: {holdTime: 90}}", "podMonitor: {port: 0}", "controller: {replicas: 0}", "controller: {podCIDRs: 10.0.0.0/8}", "passwordSecrets: bgp-secret",
		"networkPools: {shop: {nodeSelector: a=b}}", "networkPools: {shop: {nodeSelector: a=b, mode: overlay, bogus: 1}}", "networkPools: {Shop: {nodeSelector: a=b, mode: overlay}}",
		"tolerations: [{operator: Maybe}]", "resources: {request: {}}"} {
		add("wrong "+wrong, parsed(t, wrong))
	}
	refused := map[string]int{}
	answers := helm(t, values...)
	for i, a := range answers[:len(values)] {
		kind, path, _ := strings.Cut(what[i], " ")
		words := strings.Contains(a.Error, "values don't meet the specifications of the schema") || strings.Contains(a.Error, "controller.enabled: ")
		switch {
		case a.Error != "" && !words:
			t.Errorf("%s: not refused in words: %s", what[i], a.Error)
		case kind != "null" && a.Error == "":
			t.Errorf("%s: not refused", what[i])
		case kind == "null" && a.Error != "":
			refused[path]++
		}
	}
	want := []string{"controller", "controller.enabled", "controller.replicas", "flannel", "flannel.enabled", "image", "image.repository", "networkPolicy", "networkPolicy.enabled", "networkPolicy.image", "podMonitor", "podMonitor.enabled", "podMonitor.port",
		"rollout", "rollout.enabled", "speakers", "speakers.maxUnavailable", "speakers.separate"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(refused))); diff != "" {
		t.Errorf("null is refused for (-want +got):\n%s", diff)
	}
}

// An API server before 1.30 has no policy that keeps a node from other nodes' EdgeNodes: there, no node creates one.
func TestChartBeforeThePolicies(t *testing.T) {
	answers := helm(t, map[string]any{"--kube-version": "v1.29.9"}, map[string]any{"--kube-version": "v1.30.1-gke.5"})
	for i, want := range []bool{false, true} {
		if a := answers[i]; a.Error != "" || strings.Contains(a.Text, "kind: ValidatingAdmissionPolicy\n") != want || strings.Contains(a.Text, "name: edgeway-edgenode\n") != want {
			t.Errorf("with Kubernetes %s the policy and the right to create are there: %t, want %t %s", []string{"1.29", "1.30"}[i], !want, want, a.Error)
		}
	}
}

// The mistakes that only the templates can see.
func TestChartRefusals(t *testing.T) {
	for want, values := range map[string]map[string]any{
		"controller.podCIDRs":     {"controller": map[string]any{"enabled": true}},
		"either pools":            {"controller": map[string]any{"enabled": true, "podCIDRs": []any{"10.9.0.0/16"}, "pools": []any{map[string]any{"nodeSelector": "a=b", "podCIDRs": []any{"10.8.0.0/16"}}}}},
		"--namespace kube-system": {"--namespace": "edgeway"},
	} {
		if a := helm(t, values)[0]; !strings.Contains(a.Error, want) {
			t.Errorf("%v: %s; want an error that says %s", values, a.Error, want)
		}
	}
}

// The chart's schema has the keys of the daemon's configuration, and no other. A key that only the source has, such
// as vxlan.acceptAll, is in the schema too.
func TestChartKnowsTheConfiguration(t *testing.T) {
	schema := parsed(t, read(t, chartDir+"/values.schema.json"))
	var keys func(schema map[string]any) map[string]any
	keys = func(schema map[string]any) map[string]any {
		out := map[string]any{}
		properties, _ := schema["properties"].(map[string]any)
		for key, of := range properties {
			out[key] = keys(of.(map[string]any))
		}
		return out
	}
	known := keys(at(schema, "properties.config").(map[string]any))
	for _, path := range paths(known, "") {
		text, err := yaml.Marshal(with(nil, path, map[string]any{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := config.Parse(text); err != nil && strings.Contains(err.Error(), "unknown key") {
			t.Errorf("config.%s is in values.schema.json, and edgewayd refuses it: %v", path, err)
		}
	}
	// The example shows each key: the keys that are not the default are comments.
	comment := regexp.MustCompile(`(?m)^(\s*)# ((\w+:|  - \{|  \w+:).*)$`)
	example := parsed(t, comment.ReplaceAllString(read(t, "../../deploy/example/edgewayd.yaml"), "$1$2"))
	for _, path := range paths(example, "") {
		if at(known, path) == nil {
			t.Errorf("%s is a key of edgewayd.yaml, and values.schema.json does not have it below config", path)
		}
	}
}

// Nodes may read the Secret that the configuration names, and no role is there without such a name.
func TestChartLetsNodesReadThePathsKey(t *testing.T) {
	if text := template(t, nil); strings.Contains(text, "edgeway-paths") {
		t.Error("a role for a Secret that nobody named")
	}
	text := template(t, with(nil, "config.paths.secret", "probe-key"))
	_, role, _ := strings.Cut(text, "name: edgeway-paths\n")
	if !strings.Contains(role, `resourceNames: ["probe-key"]`) || strings.Contains(text, "[edgeway-paths]") || !strings.Contains(text, "secret: probe-key") {
		t.Errorf("no role for the Secret:\n%s", text)
	}
}

// NetworkPools of the values are the objects that docs/network-pools.md describes, and their ranges are enough for the
// controller.
func TestChartNetworkPools(t *testing.T) {
	text := template(t, map[string]any{"controller": map[string]any{"enabled": true}, "networkPools": everyValue()["networkPools"]})
	_, pool, _ := strings.Cut(text, "kind: NetworkPool\n")
	for _, want := range []string{"name: shop", "nodeSelector: pool=shop", "mode: overlay", "cidr: 10.20.0.0/16"} {
		if !strings.Contains(pool, want) {
			t.Errorf("no %q in\n%s", want, pool)
		}
	}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var c corev1.ConfigMap
		if !strings.Contains(doc, "kind: ConfigMap\n") {
			continue
		}
		if err := yaml.Unmarshal([]byte(doc), &c); err != nil {
			t.Fatal(err)
		}
		if file := c.Data["edgeway-controller.yaml"]; c.Name == "edgeway-controller-config" && strings.TrimSpace(file) != "controller: {}" {
			t.Errorf("the controller's file: %q, want no pool of its own", file)
		}
	}
}
