package main

import (
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

// The chart has copies of the same manifests.
func TestChartHasTheManifests(t *testing.T) {
	const source, chart = "../../deploy/", "../../deploy/helm/edgeway/"
	copies := map[string]string{
		"kubernetes/daemonset/daemonset.yaml":        "files/daemonset.yaml",
		"kubernetes/controller/deployment.yaml":      "files/controller.yaml",
		"kubernetes/rollout/deployment.yaml":         "files/rollout.yaml",
		"kubernetes/rollout/rbac.yaml":               "files/rbac/rollout.yaml",
		"kubernetes/rbac/node.yaml":                  "files/rbac/node.yaml",
		"kubernetes/rbac/edgenode.yaml":              "files/rbac/edgenode.yaml",
		"kubernetes/rbac/speaker.yaml":               "files/rbac/speaker.yaml",
		"kubernetes/rbac/secrets.yaml":               "files/rbac/secrets.yaml",
		"kubernetes/rbac/paths/paths.yaml":           "files/rbac/paths.yaml",
		"kubernetes/rbac/controller/controller.yaml": "files/rbac/controller.yaml",
		"kubernetes/rbac/flannel/flannel.yaml":       "files/rbac/flannel.yaml",
		"overlays/speakers/speaker/account.yaml":     "files/rbac/speaker-account.yaml",

		"overlays/networkpolicy/kube-network-policies.yaml": "files/networkpolicy.yaml",
		"overlays/canary/keep-canary.yaml":                  "files/keep-canary.yaml",
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
	for _, dir := range []string{"kubernetes", "kubernetes/controller", "kubernetes/rbac/kubelet", "kubernetes/rbac/flannel", "kubernetes/rbac/paths", "overlays/canary", "overlays/networkpolicy", "overlays/speakers", "overlays/uninstall"} {
		t.Run(dir, func(t *testing.T) { dryRun(t, server, "-k", "../../deploy/"+dir) })
	}
}

// TestAPIServerChart does the same with Helm's output for the chart. The API server has no PodMonitor: its kind is the
// Prometheus operator's.
func TestAPIServerChart(t *testing.T) {
	server := withCRDs(t)
	every := everyValue()
	delete(every, "podMonitor")
	for name, values := range map[string]map[string]any{"defaults": nil, "all": every} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "chart.yaml")
			if err := os.WriteFile(path, []byte(template(t, values)), 0o644); err != nil {
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
