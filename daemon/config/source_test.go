package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func TestChoiceOfSource(t *testing.T) {
	for _, c := range []struct {
		name, text, host string
		want             Source
	}{
		{"nothing said", "", "", Source{Manifests: DefaultManifests}},
		{"nothing said, in a pod", "", "10.96.0.1", Source{}},
		{"manifests in a pod", "cluster: {manifests: m}", "10.96.0.1", Source{Manifests: "DIR/m"}},
		{"kubeconfig", "cluster: {kubeconfig: kubelet.conf}", "", Source{Kubeconfig: "DIR/kubelet.conf"}},
		{"kubeconfig in a pod", "cluster: {kubeconfig: /k}", "10.96.0.1", Source{Kubeconfig: "/k"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
			file := filepath.Join(t.TempDir(), "edgewayd.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Read(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range []*string{&c.want.Manifests, &c.want.Kubeconfig} {
				*p = strings.Replace(*p, "DIR", filepath.Dir(file), 1)
			}
			if got.Cluster != c.want {
				t.Errorf("got %+v, want %+v", got.Cluster, c.want)
			}
			if _, server := got.APIServer(""); server != (c.want.Manifests == "") {
				t.Errorf("API server: %t", server)
			}
		})
	}
}

// The daemon starts before its kubeconfig exists, as on a node whose kubelet has not joined yet.
func TestCheckWithoutKubeconfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	c, err := Parse([]byte("cluster: {kubeconfig: " + filepath.Join(t.TempDir(), "none") + "}"))
	if err != nil {
		t.Fatal(err)
	}
	last := cluster.World{Nodes: []cluster.Node{{Name: "n1"}}, Source: "as saved"}
	w, err := c.ReadCluster(t.Context(), last)
	if err == nil || !strings.Contains(err.Error(), "cluster.kubeconfig") {
		t.Errorf("got %v", err)
	}
	if !cluster.Equal(w, last) {
		t.Errorf("what was known is lost: %+v", w)
	}
}

// Both sources read the Secret that the file names, unless nothing is asked.
func TestSecretOfTheFile(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"node.yaml":   "{apiVersion: v1, kind: Node, metadata: {name: n1}}",
		"secret.yaml": "{apiVersion: v1, kind: Secret, metadata: {name: paths-key, namespace: kube-system}, stringData: {key: sixteen bytes...}}",
		"other.yaml":  "{apiVersion: v1, kind: Secret, metadata: {name: other, namespace: kube-system}, stringData: {key: sixteen bytes...}}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{"{secret: paths-key}": "paths-key", "{secret: paths-key, canary: false}": "", "{}": "", "{secret: none}": "none"} {
		c, err := Parse([]byte("paths: " + text))
		if err != nil {
			t.Fatal(err)
		}
		c.Cluster.Manifests = dir
		w, err := c.ReadCluster(t.Context(), cluster.World{})
		if err != nil || len(w.Problems) > 0 {
			t.Fatal(err, w.Problems)
		}
		if got := fmt.Sprint(w.Secrets); got != "[]" && got != "[Secret/"+want+"]" || got == "[]" && want == "paths-key" {
			t.Errorf("%s: %s is read", text, got)
		}
		if o, _ := c.APIServer(""); strings.Join(o.Secrets, " ") != want {
			t.Errorf("%s: %q is asked for", text, o.Secrets)
		}
	}
}
