package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

const crds = "../../deploy/kubernetes/crds"

// servedKinds starts an API server that has our kinds.
func servedKinds(t *testing.T, o kube.Options) *kube.ControlPlane {
	t.Helper()
	cp := kube.Start(t, o)
	if err := cp.Apply(crds); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bgppeers", "bgpclusterconfigs", "networkpools", "edgenodes", "nodeslices"} {
		kubectl(t, cp, "wait", "--for=condition=Established", "--timeout=30s", "crd", "-l", "app.kubernetes.io/name=edgeway")
		eventually(t, name+" is served", true, func() bool { _, err := cp.Kubectl("get", name); return err == nil })
	}
	return cp
}

// servedNode starts an API server that has our kinds and the Node n1, and returns the kubeconfig of the account of nodes, with
// the rights that are shipped.
func servedNode(t *testing.T) (cp *kube.ControlPlane, kubeconfig string) {
	t.Helper()
	cp = servedKinds(t, kube.Options{})
	mustApply(t, cp, rbac+"node.yaml")
	kubeconfig, err := cp.ServiceAccount("kube-system", "edgeway")
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, cp, mustJSONText(apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24")))
	return cp, kubeconfig
}

func kubectl(t *testing.T, cp *kube.ControlPlane, args ...string) string {
	t.Helper()
	out, err := cp.Kubectl(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dynamicClient returns a client of the user that the kubeconfig names.
func dynamicClient(t *testing.T, kubeconfig string) dynamic.Interface {
	t.Helper()
	config, err := ClientConfig(kubeconfig, "edgewayd/test")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 1000, 1000
	c, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func gvr(kind string) schema.GroupVersionResource {
	group, version, _ := strings.Cut(APIVersion(kind), "/")
	return schema.GroupVersionResource{Group: group, Version: version, Resource: strings.ToLower(kind) + "s"}
}

// longest bounds a wait for something that happens: a machine with much other work takes long.
const longest = time.Minute

// eventually waits until got returns want.
func eventually[T any](t *testing.T, what string, want T, got func() T) {
	t.Helper()
	deadline := time.Now().Add(longest)
	for {
		d := cmp.Diff(want, got())
		if d == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: want (-) and got (+):\n%s", what, d)
		}
		<-time.After(time.Millisecond)
	}
}
