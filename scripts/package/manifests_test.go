package main

import (
	"bytes"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/scripts/kube"
)

const helm = "helm.sh/helm/v3/cmd/helm@v3.22.0"

// The chart has copies of the same manifests.
func TestChartHasTheManifests(t *testing.T) {
	const source, chart = "../../deploy/", "../../deploy/helm/edgeway/"
	copies := map[string]string{
		"kubernetes/daemonset/daemonset.yaml":        "files/daemonset.yaml",
		"kubernetes/controller/deployment.yaml":      "files/controller.yaml",
		"kubernetes/rbac/node.yaml":                  "files/rbac/node.yaml",
		"kubernetes/rbac/speaker.yaml":               "files/rbac/speaker.yaml",
		"kubernetes/rbac/secrets.yaml":               "files/rbac/secrets.yaml",
		"kubernetes/rbac/controller/controller.yaml": "files/rbac/controller.yaml",
		"overlays/speakers/speaker/account.yaml":     "files/rbac/speaker-account.yaml",
	}
	crds, err := filepath.Glob(source + "kubernetes/crds/*.yaml")
	if err != nil || len(crds) == 0 {
		t.Fatalf("no CRDs (%v)", err)
	}
	for _, crd := range crds {
		copies["kubernetes/crds/"+filepath.Base(crd)] = "crds/" + filepath.Base(crd)
	}
	for original, copied := range copies {
		if diff := cmp.Diff(read(t, source+original), read(t, chart+copied)); diff != "" {
			t.Errorf("cp deploy/%s deploy/helm/edgeway/%s\n%s", original, copied, diff)
		}
	}
}

// TestAPIServerManifests has a real API server check everything that an operator may apply.
func TestAPIServerManifests(t *testing.T) {
	server := withCRDs(t)
	for _, dir := range []string{"kubernetes", "kubernetes/controller", "kubernetes/rbac/kubelet", "overlays/speakers", "overlays/uninstall"} {
		t.Run(dir, func(t *testing.T) { dryRun(t, server, "-k", "../../deploy/"+dir) })
	}
}

// TestAPIServerChart does the same with helm's output for the chart.
func TestAPIServerChart(t *testing.T) {
	needAsked(t)
	server := withCRDs(t)
	for name, values := range chartValues() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "chart.yaml")
			if err := os.WriteFile(path, []byte(template(t, values...)), 0o644); err != nil {
				t.Fatal(err)
			}
			dryRun(t, server, "-f", path)
		})
	}
}

func withCRDs(t *testing.T) *kube.ControlPlane {
	t.Helper()
	server := kube.Start(t, kube.Options{})
	if err := server.Apply("../../deploy/kubernetes/crds"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"); err != nil {
		t.Fatal(err)
	}
	return server
}

// dryRun has the API server check everything and keep nothing. An unknown key is an error.
func dryRun(t *testing.T, server *kube.ControlPlane, what ...string) {
	t.Helper()
	out, err := server.Kubectl(append([]string{"apply", "--server-side", "--dry-run=server", "--validate=strict"}, what...)...)
	if err != nil {
		t.Error(err)
	}
	t.Log(out)
}

// chartValues are the values that an operator may set.
func chartValues() map[string][]string {
	return map[string][]string{
		"defaults": nil,
		"all": {"--set", "image.repository=registry.example/edgeway,image.tag=v1,controller.enabled=true,controller.podCIDRs={10.10.0.0/16},controller.nodeMask.ipv4=24,controller.nodes=pool=hybrid",
			"--set", "speakers.separate=true,passwordSecrets={bgp-secret},config.mode=auto,imagePullSecrets[0].name=pull"},
	}
}

// TestChart runs helm's own check, and compares the chart's defaults with the DaemonSet of the
// kustomization.
func TestChart(t *testing.T) {
	needAsked(t)
	if out, err := exec.Command("go", "run", helm, "lint", "--strict", "../../deploy/helm/edgeway").CombinedOutput(); err != nil {
		t.Errorf("helm lint: %v: %s", err, out)
	}
	got := daemonSet(t, template(t))
	want := readDaemonSet(t, "../../deploy/kubernetes/daemonset/daemonset.yaml")
	for _, ds := range []*appsv1.DaemonSet{&got, &want} {
		ds.Spec.Template.Annotations = nil // the sum of the configuration
		spec := ds.Spec.Template.Spec
		spec.InitContainers[0].Image, spec.Containers[0].Image = "", ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the DaemonSet (-deploy/kubernetes +chart):\n%s", diff)
	}
	watched := template(t, "--set", "podMonitor.enabled=true,podMonitor.labels.release=prometheus")
	if ports := daemonSet(t, watched).Spec.Template.Spec.Containers[0].Ports; len(ports) != 1 || ports[0].Name != "metrics" || ports[0].ContainerPort != 9475 {
		t.Errorf("ports: %v", ports)
	}
	for _, want := range []string{"\nkind: PodMonitor\n", "release: prometheus", "- port: metrics", "    metrics: 0.0.0.0:9475\n"} {
		if !strings.Contains(watched, want) {
			t.Errorf("with a PodMonitor there is no %q in\n%s", want, watched)
		}
	}
	for want, args := range map[string][]string{
		"controller.podCIDRs":     {"--namespace", "kube-system", "--set", "controller.enabled=true"},
		"--namespace kube-system": {"--namespace", "edgeway"},
	} {
		cmd := exec.Command("go", append([]string{"run", helm, "template", "edgeway", "../../deploy/helm/edgeway"}, args...)...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("helm template %v: %v, %s; want an error that says %s", args, err, out, want)
		}
	}
}

// template returns what helm would apply.
func template(t *testing.T, values ...string) string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"run", helm, "template", "edgeway", "../../deploy/helm/edgeway", "--namespace", "kube-system"}, values...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, stderr.String())
	}
	return string(out)
}

// overlay is the DaemonSet of deploy/overlays/NAME.
func overlay(t *testing.T, name string) appsv1.DaemonSet {
	t.Helper()
	out, err := exec.Command(kube.Program("kubectl"), "kustomize", "../../deploy/overlays/"+name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return daemonSet(t, string(out))
}

// daemonSet returns the first DaemonSet in a text of several objects.
func daemonSet(t *testing.T, text string) (ds appsv1.DaemonSet) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		if strings.Contains(doc, "\nkind: DaemonSet\n") {
			if err := yaml.UnmarshalStrict([]byte(doc), &ds); err != nil {
				t.Fatal(err)
			}
			return ds
		}
	}
	t.Fatalf("no DaemonSet in:\n%s", text)
	return ds
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func decode64(t *testing.T, text string) string {
	t.Helper()
	out, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
