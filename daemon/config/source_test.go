package config

import (
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
