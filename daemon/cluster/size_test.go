package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// manyNodes are the Nodes of the largest cluster that Kubernetes promises to carry.
const manyNodes = 5000

// largeNode is a Node as kubelets make them: some 20 KB, of which the images are most.
func largeNode(i int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"metadata":{"name":"node-%04d","uid":"5a9b6c1e-0000-4000-8000-%012d","resourceVersion":"%d","creationTimestamp":"2026-01-01T00:00:00Z",
		"labels":{"kubernetes.io/arch":"amd64","kubernetes.io/os":"linux","kubernetes.io/hostname":"node-%04d","beta.kubernetes.io/arch":"amd64",
		"beta.kubernetes.io/os":"linux","topology.kubernetes.io/region":"region-1","topology.kubernetes.io/zone":"zone-%d","node.kubernetes.io/instance-type":"edge.large",
		"apps.openyurt.io/nodepool":"pool-%d","openyurt.io/is-edge-worker":"true","pool":"p%d","ASN":"%d"},"annotations":{"node.alpha.kubernetes.io/ttl":"300"},"managedFields":[`,
		i, i, 1000+i, i, i%10, i%100, i%100, 65000+i%100)
	for j := range 4 {
		fmt.Fprintf(&b, `{"manager":"m%d","operation":"Update","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:x":{}},"f:labels":{".":{},"f:a":{},"f:b":{}}},"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{}}}}}},`, j)
	}
	fmt.Fprintf(&b, `{}]},"spec":{"podCIDR":"10.%d.%d.0/24","podCIDRs":["10.%d.%d.0/24"],"providerID":"x://%d"},"status":{
		"addresses":[{"type":"InternalIP","address":"172.16.%d.%d"},{"type":"Hostname","address":"node-%04d"}],
		"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"True","lastHeartbeatTime":"2026-11-22T03:00:00Z","reason":"KubeletReady"}],"images":[`,
		i/256, i%256, i/256, i%256, i, i/256, i%256, i)
	for j := range 50 {
		fmt.Fprintf(&b, `{"names":["registry.example.com/library/image-%03d@sha256:%064d","registry.example.com/library/image-%03d:v1.2.%d"],"sizeBytes":%d},`, j, j*7919, j, j, 100000+j)
	}
	fmt.Fprintf(&b, `{"names":[%q],"sizeBytes":1}]}}`, bytes.Repeat([]byte("x"), 6000))
	return b.Bytes()
}

// largeCluster serves manyNodes Nodes, one after the other, so that the server itself holds none.
func largeCluster(t testing.TB) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Audit-Id", "one")
		name := kindOf(r.URL.Path)
		switch {
		case r.URL.Query().Get("watch") != "":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case name != kindNode:
			status(w, http.StatusNotFound, "NotFound", "not installed")
		default:
			fmt.Fprint(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"100000"},"items":[`)
			for i := range manyNodes {
				_, _ = w.Write(largeNode(i))
				if i < manyNodes-1 {
					fmt.Fprint(w, ",")
				}
			}
			fmt.Fprint(w, `]}`)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// The memory that 5,000 Nodes take is that of what is used of them, also while they are read: the
// list alone is 100 MB.
func TestMemoryOf5000Nodes(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 100 MB")
	}
	s := largeCluster(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, path, kubeconfigOf(s.URL, ""))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse >> 10
	}
	runtime.GC()
	before, most := heap(), uint64(0)
	started := time.Now()
	c := &client{source: newKubernetes(KubernetesOptions{Kubeconfig: path, Node: "node-0001"}, defaultPatience), signal: make(chan struct{}, 1)}
	done := make(chan struct{})
	stop := startWatch(t, c.source, func() { c.signal <- struct{}{} })
	go func() {
		defer close(done)
		c.until(t, "all Nodes", func(w World, err error) bool { return err == nil && len(w.Nodes) == manyNodes })
	}()
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		most = max(most, heap())
		select {
		case <-tick.C:
			continue
		case <-done:
			tick.Stop()
		}
		break
	}
	took := time.Since(started)
	runtime.GC()
	after := heap()
	t.Logf("%d Nodes of %d KB in %v: heap %d KB before, %d KB at most, %d KB after", manyNodes, len(largeNode(1))>>10, took, before, most, after)
	if after-before > 20<<10 || most-before > 60<<10 {
		t.Errorf("heap grew by %d KB, and by %d KB on the way; want at most 20 and 60 MB", after-before, most-before)
	}
	stop()
	runtime.KeepAlive(c)
}

func BenchmarkReadNode(b *testing.B) {
	text := largeNode(7)
	node := kind{APIVersion(kindNode), kindNode}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		it, err := readItem(node, func(v any) error { return json.Unmarshal(text, v) })
		if err != nil {
			b.Fatal(err)
		}
		_ = it.statement(node)
	}
}

// BenchmarkWorld is a World of 20,000 nodes from NodeSlices, as after each change of a Node.
func BenchmarkWorld(b *testing.B) {
	const slices, each = 200, 100
	k := newKubernetes(KubernetesOptions{Node: self}, defaultPatience)
	for _, f := range k.feeds {
		f.synced, f.asked, f.items = true, true, map[string]told{}
	}
	put := func(name string, spec SliceSpec) {
		k.feeds[kindSlice.kind].items[name] = item{name: name, text: mustJSON(NewNodeSlice(name, spec))}.told(kindSlice, nil)
	}
	index := SliceSpec{}
	for s := range slices {
		var spec SliceSpec
		for i := s * each; i < (s+1)*each; i++ {
			spec.Nodes = append(spec.Nodes, SlicedNode{Name: fmt.Sprintf("node-%05d", i), Addresses: []string{fmt.Sprintf("172.16.%d.%d", i>>8, i&255)}, PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", 100+i>>8, i&255)}})
		}
		index.Slices = append(index.Slices, fmt.Sprint("nodes-", s+1))
		put(fmt.Sprint("nodes-", s+1), spec)
	}
	put(SliceIndex, index)
	put(SliceAlive, SliceSpec{PublishedAt: time.Now().UTC().Format(time.RFC3339)})
	var w World
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if w, err = k.World(b.Context(), w); err != nil || len(w.Nodes) != slices*each {
			b.Fatal(len(w.Nodes), err)
		}
	}
}
