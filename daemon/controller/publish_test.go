package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// wire carries connections to an API server and counts the bytes that come back.
type wire struct {
	net.Listener
	back atomic.Int64
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l}
	ctx, cancel := context.WithCancel(t.Context())
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			carrying.Go(func() { _, _ = io.Copy(far, near); far.Close() })
			carrying.Go(func() { _, _ = io.Copy(near, io.TeeReader(far, counting{&w.back})); near.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); carrying.Wait() })
	return w
}

type counting struct{ n *atomic.Int64 }

func (c counting) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// source starts a reader of the cluster state that sees the API server through a wire.
func (l *lab) source(t *testing.T, account string) (func() string, *wire) {
	t.Helper()
	kubeconfig, err := l.ServiceAccount("kube-system", account)
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(l.URL(), "https://")
	w := newWire(t, address)
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kubeconfig, []byte(strings.ReplaceAll(string(text), address, w.Addr().String())), 0o600); err != nil {
		t.Fatal(err)
	}
	s := cluster.Kubernetes(cluster.KubernetesOptions{Kubeconfig: kubeconfig, Node: "node-00001", UserAgent: "edgewayd/test"})
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	var mu sync.Mutex // guards last
	var last cluster.World
	look := func() string {
		mu.Lock()
		defer mu.Unlock()
		now, err := s.World(ctx, last)
		if err != nil {
			return err.Error()
		}
		last = now
		now.ReadAt, now.Source = time.Time{}, ""
		text, err := json.Marshal(now)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + fmt.Sprint(now.Problems)
	}
	watching.Go(func() { _ = s.Watch(ctx, func() { look() }) })
	t.Cleanup(func() { cancel(); watching.Wait() })
	return look, w
}

// fleet creates nodes as kubelets do: each with 8 KB, most of it the list of its images.
func (l *lab) fleet(t *testing.T, n int) {
	t.Helper()
	var images []corev1.ContainerImage
	for i := range 50 {
		images = append(images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/some/longer/path/image-%d@sha256:%064d", i, i)}, SizeBytes: 1e8})
	}
	var creating sync.WaitGroup
	for part := range 8 {
		creating.Go(func() {
			for i := part; i < n; i += 8 {
				node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%05d", i), Labels: map[string]string{"shop": fmt.Sprint("s", i/5), "pool": "a", "unused": "x"}},
					Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", 64+i/256, i%256)}, PodCIDR: fmt.Sprintf("10.%d.%d.0/24", 64+i/256, i%256)},
					Status: corev1.NodeStatus{Images: images, Addresses: []corev1.NodeAddress{
						{Type: corev1.NodeHostName, Address: "x"}, {Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.%d.%d.%d", 16+i/60000, i/250%250, 1+i%250)}}}}
				if _, err := l.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	creating.Wait()
}

// beat has kubelets write their status.
func (l *lab) beat(t *testing.T, n int) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
	for i := range n {
		if _, err := l.client.CoreV1().Nodes().Patch(t.Context(), fmt.Sprintf("node-%05d", i), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
}

// agree waits until the readers say the same and what is asked for.
func agree(t *testing.T, what string, a, b func() string, ok func(string) bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		x, y := a(), b()
		if x == y && ok(x) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: by Nodes\n%.1500s\nby slices\n%.1500s", what, x, y)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Speakers write a status into each BGPPeer: only another spec has the controller read all resources again.
func TestStatusOfAResourceIsNoChange(t *testing.T) {
	event := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("watch") {
			fmt.Fprint(w, event)
			return
		}
		fmt.Fprint(w, `{"kind": "BGPPeerList", "apiVersion": "network.openyurt.io/v1alpha1", "metadata": {"resourceVersion": "7"},
			"items": [{"metadata": {"name": "lan", "generation": 3}, "spec": {"localAsNumber": 65010}}]}`)
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(client, slog.New(slog.DiscardHandler))
	p.said = map[string]said{}
	version, err := p.read(t.Context(), "BGPPeer")
	if err != nil || version != "7" || len(p.said["BGPPeer"].all) != 1 {
		t.Fatalf("read version %q of %v, %v", version, p.said, err)
	}
	for _, tt := range []struct {
		what, event string
		changed     bool
	}{
		{"a status", `{"type": "MODIFIED", "object": {"metadata": {"name": "lan", "generation": 3}}}`, false},
		{"another spec", `{"type": "MODIFIED", "object": {"metadata": {"name": "lan", "generation": 4}}}`, true},
		{"a new resource", `{"type": "ADDED", "object": {"metadata": {"name": "other", "generation": 1}}}`, true},
		{"a resource gone", `{"type": "DELETED", "object": {"metadata": {"name": "lan", "generation": 3}}}`, true},
	} {
		if event = tt.event; p.changed(t.Context(), "BGPPeer", version) != tt.changed {
			t.Errorf("%s: want changed %v", tt.what, tt.changed)
		}
	}
}

// The operator restores etcd from a backup, a load balancer hides from the controller that the API server was away, and the
// versions pass the version that the controller knows. The slices have the Nodes that are there.
func TestSlicesAfterEtcdIsRestored(t *testing.T) {
	f := newFake(t)
	f.create("n1")
	f.create("n2")
	client, err := kubernetes.NewForConfig(f.config())
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(client, slog.New(slog.DiscardHandler))
	p.retry = time.Millisecond
	version, err := p.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.followNodes(ctx, version) }()
	until := func(want ...string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			p.mu.Lock()
			have := slices.Sorted(maps.Keys(p.nodes))
			p.mu.Unlock()
			if slices.Equal(have, want) {
				return
			}
			select {
			case <-p.wake:
			case err := <-ended:
				t.Fatal(err)
			case <-deadline:
				t.Fatalf("got %v, want %v", have, want)
			}
		}
	}
	f.create("n3")
	until("n1", "n2", "n3")
	f.mu.Lock()
	delete(f.objects, "/api/v1/nodes/n2")
	f.put("/api/v1/nodes/n4", object{})
	f.history[len(f.history)-1] = "of the lost history"
	f.mu.Unlock()
	f.http.CloseClientConnections()
	until("n1", "n3", "n4")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A node that reads slices knows what a node knows that reads Nodes and resources, to the byte, and has not even the
// right to read Nodes or BGPPeers. Heartbeats cost it nothing, and a restart of the API server next to nothing. EDGEWAY_FLEET is the number of
// nodes: 20000 measures what docs/kubernetes.md says.
func TestAPIServerNodeSlices(t *testing.T) {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("EDGEWAY_FLEET"), "120"))
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, kube.Options{}, "all()")
	if err := l.Apply("../../deploy/kubernetes/crds"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"); err != nil {
		t.Fatal(err)
	}
	role := func(name, core, bgp, own string) string {
		return fmt.Sprintf(`
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: %[1]s, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %[1]s}
rules:
- {apiGroups: [""], resources: [%[2]s], verbs: [list, watch]}
- {apiGroups: [network.openyurt.io, network.alibabacloud.com], resources: [%[3]s], verbs: [list, watch]}
- {apiGroups: [network.edgeway.io], resources: [%[4]s], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}
subjects: [{kind: ServiceAccount, name: %[1]s, namespace: kube-system}]`, name, core, bgp, own)
	}
	peer := func(name, selector string) string {
		return fmt.Sprintf(`
---
apiVersion: network.openyurt.io/v1alpha1
kind: BGPPeer
metadata: {name: %s}
spec: {localSpeakers: [node-00001], localAsNumber: 65010, peerIP: 192.0.2.1, peerAsNumber: 65001, nodeSelector: %q}`, name, selector)
	}
	pool := `
---
{apiVersion: network.edgeway.io/v1alpha1, kind: NetworkPool, metadata: {name: all}, spec: {nodeSelector: pool=a, mode: auto}}
---
{apiVersion: network.alibabacloud.com/v1beta1, kind: BGPClusterConfig, metadata: {name: c}, spec: {localASN: 65010, nodeSelector: shop=s1, bgpSpeakers: [{name: node-00005, peers: [{name: sw, peerAddress: 192.0.2.2, peerASN: 65001}]}]}}
---
{apiVersion: network.edgeway.io/v1alpha1, kind: EdgeNode, metadata: {name: node-00001}}`
	others := "" // so many that slices have them
	for i := range cluster.ResourceFew {
		others += peer(fmt.Sprint("other-", i), fmt.Sprintf("shop=s%d", 100+i))
	}
	if err := l.ApplyText(role("by-nodes", "nodes", "bgppeers, bgpclusterconfigs", "networkpools, edgenodes") + role("by-slices", "pods", "no-such", "edgenodes, nodeslices") + peer("lan", "shop in (s0,s1)") + pool + others); err != nil {
		t.Fatal(err)
	}
	l.fleet(t, n)
	account, err := l.Kubeconfig("system:serviceaccount:kube-system:edgeway-controller", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	config, err := cluster.ClientConfig(account, "edgewayd-controller/test")
	if err != nil {
		t.Fatal(err)
	}
	client, err := newClient(config)
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(client, slog.New(slog.NewTextHandler(t.Output(), nil)))
	var publishing sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	publishing.Go(func() { p.run(ctx) })
	t.Cleanup(func() { cancel(); publishing.Wait() })

	byNodes, nodesWire := l.source(t, "by-nodes")
	bySlices, slicesWire := l.source(t, "by-slices")
	last := fmt.Sprintf("node-%05d", n-1)
	agree(t, "at the start", byNodes, bySlices, func(s string) bool {
		return strings.Contains(s, last) && strings.Contains(s, `"shop":"s1"`) && !strings.Contains(s, "unused")
	})
	used := func(what string) (nodes, sliced int64) {
		nodes, sliced = nodesWire.back.Swap(0), slicesWire.back.Swap(0)
		t.Logf("%s: %d bytes by Nodes, %d bytes by slices", what, nodes, sliced)
		return nodes, sliced
	}
	used("start")
	beats := min(n, 200)
	l.beat(t, beats)
	changed := `{"status":{"addresses":[{"type":"InternalIP","address":"198.51.100.77"}]}}`
	if _, err := l.client.CoreV1().Nodes().Patch(t.Context(), "node-00007", types.MergePatchType, []byte(changed), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	agree(t, "another address", byNodes, bySlices, func(s string) bool { return strings.Contains(s, "198.51.100.77") })
	if _, sliced := used(fmt.Sprintf("%d heartbeats and a change", beats)); sliced > 60_000 {
		t.Errorf("%d heartbeats and one change cost %d bytes by slices", beats, sliced)
	}
	if err := l.ApplyText(peer("lan", "unused=x")); err != nil {
		t.Fatal(err)
	}
	agree(t, "another label", byNodes, bySlices, func(s string) bool { return strings.Contains(s, `"unused":"x"`) })
	annotation := `{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"4e:2d:f2:44:0a:01\"}","other":"unasked"}}}`
	if _, err := l.client.CoreV1().Nodes().Patch(t.Context(), "node-00009", types.MergePatchType, []byte(annotation), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Kubectl("patch", "networkpool", "all", "--type=merge", "-p", `{"spec": {"vxlan": {"flannel": true}}}`); err != nil {
		t.Fatal(err)
	}
	agree(t, "annotations of flannel, which a pool asks for", byNodes, bySlices, func(s string) bool {
		return strings.Contains(s, "4e:2d:f2:44:0a:01") && !strings.Contains(s, "unasked")
	})
	if err := l.client.CoreV1().Nodes().Delete(t.Context(), last, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	agree(t, "a Node gone", byNodes, bySlices, func(s string) bool { return !strings.Contains(s, last) })
	used("another label, and a Node gone")

	if err := l.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.client.CoreV1().Nodes().Patch(t.Context(), "node-00008", types.MergePatchType, []byte(strings.Replace(changed, "77", "78", 1)), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	agree(t, "after a restart of the API server", byNodes, bySlices, func(s string) bool { return strings.Contains(s, "198.51.100.78") && strings.HasSuffix(s, "[]") })
	if _, sliced := used("restart of the API server"); sliced > 100_000 {
		t.Errorf("a restart of the API server costs %d bytes by slices", sliced)
	}

	// Somebody empties a slice: the next beat repairs it.
	cancel()
	publishing.Wait()
	p.every = 100 * time.Millisecond
	again, stop := context.WithCancel(t.Context())
	defer stop()
	publishing.Go(func() { p.run(again) })
	whole := func() bool {
		have, err := p.slices(t.Context())
		return err == nil && len(slot(have, "nodes-1").Spec.Nodes) > 0
	}
	if !whole() {
		t.Fatal("no NodeSlice nodes-1")
	}
	if _, err := l.Kubectl("patch", "nodeslice", "nodes-1", "--type=merge", "-p", `{"spec": {"nodes": []}}`); err != nil {
		t.Fatal(err)
	}
	until(t, "nodes-1 has its nodes again", whole)
}
