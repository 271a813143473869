package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// patient is the product's patience but for the longest wait, which a test would sit out.
func patient() patience {
	p := defaultPatience
	p.most, p.files = 3*time.Second, time.Second
	p.ping, p.dial = 2*time.Second, 2*time.Second
	return p
}

const rbac = "../../deploy/kubernetes/rbac/"

// mustApply applies manifests, or a file or directory of them.
func mustApply(t *testing.T, cp *kube.ControlPlane, what string) {
	t.Helper()
	apply := cp.ApplyText
	if _, err := os.Stat(what); err == nil {
		apply = cp.Apply
	}
	if err := apply(what); err != nil {
		t.Fatal(err)
	}
}

// A node's daemon comes up before its roles and its kinds are there, lives through a restart of the
// API server and a change of the password, and says what is wrong at each step.
func TestAPIServerSource(t *testing.T) {
	cp := kube.Start(t, kube.Options{})
	mustApply(t, cp, `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"edgeway","namespace":"kube-system"}}`)
	config, err := cp.ServiceAccount("kube-system", "edgeway")
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(cp.URL(), "https://")
	wan := newSwallower(t, address)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, config, strings.ReplaceAll(string(text), address, wan.Addr().String()))
	c := newClient(t, config, patient())
	c.until(t, "nothing: it is forbidden", func(_ World, err error) bool { return err != nil && strings.Contains(err.Error(), "is forbidden") })

	mustApply(t, cp, mustJSONText(apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24")))
	mustApply(t, cp, rbac+"node.yaml")
	w := c.untilIs(t, "n1") // without the kinds, which is not a problem
	if n := w.Nodes[0]; len(n.Addresses) != 1 || len(n.PodCIDRs) != 1 {
		t.Errorf("got node %+v", n)
	}
	mustApply(t, cp, crds)
	kubectl(t, cp, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
	peer := strings.ReplaceAll(mustJSONText(apiPeer(t, "lan", `"n1"`)), `"bgp"`, `"bgp-secret"`)
	eventually(t, "refusal of a BGPPeer", "", func() string {
		if err := cp.ApplyText(peer); err != nil {
			return err.Error()
		}
		return ""
	})
	p := c.untilProblem(t, "n1 BGPPeer/lan", forbidden)
	if !strings.Contains(p.Next, "resourceNames [bgp-secret]") || !strings.Contains(p.Got, "system:serviceaccount:kube-system:edgeway") {
		t.Errorf("got %s", p)
	}
	mustApply(t, cp, rbac+"secrets.yaml")
	c.untilIs(t, "n1 BGPPeer/lan")
	mustApply(t, cp, mustJSONText(apiSecret(t, "bgp-secret", "one")))
	c.untilIs(t, "n1 BGPPeer/lan Secret/bgp-secret=one")
	mustApply(t, cp, mustJSONText(apiSecret(t, "bgp-secret", "two")))
	c.untilIs(t, "n1 BGPPeer/lan Secret/bgp-secret=two")

	if err := cp.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	c.untilProblem(t, "n1 BGPPeer/lan Secret/bgp-secret=two", APIServerUnreachable)
	stopped := time.Now()
	if err := cp.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	c.untilIs(t, "n1 BGPPeer/lan Secret/bgp-secret=two")
	// A restarted server may not remember earlier versions: 410.
	if again := listed(t, cp, stopped); len(again) > 7 {
		t.Errorf("after the restart more was listed than each once: %v", again)
	}
	waitFor(t, "all watches", func() bool { return openWatches(c.source) == 7 })
	lost := time.Now()
	wan.lose(true)
	c.untilProblem(t, "n1 BGPPeer/lan Secret/bgp-secret=two", APIServerUnreachable)
	mustApply(t, cp, mustJSONText(apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24")))
	wan.lose(false)
	c.untilIs(t, "n1 n2 BGPPeer/lan Secret/bgp-secret=two")
	if again := listed(t, cp, lost); len(again) > 0 {
		t.Errorf("listed again after the WAN was back: %v", again)
	}
	kubectl(t, cp, "delete", "node", "n2")
	c.untilIs(t, "n1 BGPPeer/lan Secret/bgp-secret=two")
	kubectl(t, cp, "-n", "kube-system", "delete", "secret", "bgp-secret")
	c.untilIs(t, "n1 BGPPeer/lan")

	wan.lose(true)
	c.untilProblem(t, "n1 BGPPeer/lan", APIServerUnreachable)
	kubectl(t, cp, "delete", "crd", "bgppeers.network.openyurt.io")
	wan.lose(false)
	c.untilProblem(t, "n1 BGPPeer/lan", NotInstalled)
	mustApply(t, cp, crds)
	eventually(t, "refusal of a BGPPeer", "", func() string {
		if err := cp.ApplyText(peer); err != nil {
			return err.Error()
		}
		return ""
	})
	c.untilIs(t, "n1 BGPPeer/lan")
	kubectl(t, cp, "delete", "bgppeer", "lan")
	c.untilIs(t, "n1")
}

// listed are the lists that the client got since then, without those of one object or none, which say the version.
func listed(t *testing.T, cp *kube.ControlPlane, since time.Time) []kube.Request {
	t.Helper()
	all, err := cp.Requests(func(r kube.Request) bool {
		return strings.HasPrefix(r.Agent, "edgewayd/") && r.Verb == "list" && r.Code == http.StatusOK && r.At.After(since) &&
			(!strings.Contains(r.URI, "fieldSelector") || strings.Contains(r.URI, "resourceVersion"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// openWatches is the number of watches that are open.
func openWatches(k *kubernetes) (n int) {
	for _, f := range k.wanted() {
		k.mu.Lock()
		if f.open {
			n++
		}
		k.mu.Unlock()
	}
	return n
}

func mustJSONText(o map[string]any) string {
	for _, name := range []string{kindNode, kindSecret} {
		if o["kind"] == nil && (name == kindSecret) == (o["data"] != nil) {
			o["apiVersion"], o["kind"] = APIVersion(name), name
		}
	}
	return string(mustJSON(o))
}

// Both sources say the same of what a real API server accepts of our stories.
func TestAPIServerSameWorld(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	accepted := 0
	for path, objects := range stories(t) {
		t.Run(path, func(t *testing.T) {
			dir := t.TempDir()
			var there []string
			for ref, text := range objects {
				kind, name, _ := strings.Cut(ref, "/")
				if kind == kindSecret {
					name += " -n " + secretNamespace
				}
				object := jsonOf(t, string(text))
				if kind == kindSecret {
					object["metadata"].(map[string]any)["namespace"] = secretNamespace
				}
				if cp.ApplyText(string(mustJSON(object))) != nil {
					continue // it does not hold what is not valid; the daemon's rules are for what it does
				}
				mustWrite(t, filepath.Join(dir, strings.ReplaceAll(ref, "/", "-")+".json"), string(text))
				there = append(there, strings.ToLower(kind)+" "+name)
			}
			defer func() {
				for _, what := range there {
					kubectl(t, cp, append([]string{"delete", "--wait=false"}, strings.Fields(what)...)...)
				}
			}()
			accepted += len(there)
			want, err := Manifests(dir).World(t.Context(), World{})
			if err != nil {
				t.Fatal(err)
			}
			o := KubernetesOptions{Kubeconfig: cp.AdminKubeconfig(), Node: self}
			for _, p := range want.Peerings {
				for _, s := range p.Speakers {
					if len(want.passwords(s.Node)) > len(want.passwords(o.Node)) {
						o.Node = s.Node
					}
				}
			}
			c := newClientOf(t, o, patient())
			defer c.stop()
			compareSources(t, c, want)
		})
	}
	t.Logf("the API server accepted %d objects", accepted)
}

// 5,000 Nodes are read once, and cost the daemon what is used of them.
func TestAPIServer5000Nodes(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	started := time.Now()
	createNodes(t, cp, manyNodes)
	t.Logf("created in %v", time.Since(started))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse >> 10
	}
	runtime.GC()
	before, most := heap(), uint64(0)
	started = time.Now()
	c := newClientOf(t, KubernetesOptions{Kubeconfig: cp.AdminKubeconfig(), Node: "node-0001", UserAgent: "edgewayd/test"}, patient())
	done := make(chan struct{})
	go func() {
		defer close(done)
		eventually(t, "all Nodes", manyNodes, func() int {
			w, err := c.source.World(context.Background(), World{})
			if err != nil {
				return -1
			}
			return len(w.Nodes)
		})
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := false; !end; {
		select {
		case <-tick.C:
			most = max(most, heap())
		case <-done:
			end = true
		}
	}
	took := time.Since(started)
	runtime.GC()
	t.Logf("read in %v: heap %d KB before, %d KB at most, %d KB after", took, before, most, heap())
	requests, err := cp.Requests(func(r kube.Request) bool { return strings.HasPrefix(r.Agent, "edgewayd/test") })
	if err != nil || len(requests) > 3*(len(ownKinds())+1)+2 { // list, watch, and confirm where the list is empty, of NodeSlices too
		t.Errorf("%d requests: %v, %v", len(requests), requests, err)
	}
	if most-before > 80<<10 {
		t.Errorf("heap grew by %d KB, want at most 80 MB", most-before)
	}
}

// createNodes creates Nodes as kubelets do, with all of their status.
func createNodes(t *testing.T, cp *kube.ControlPlane, n int) {
	t.Helper()
	c, err := Connect(KubernetesOptions{Kubeconfig: cp.AdminKubeconfig(), UserAgent: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var wait sync.WaitGroup
	numbers := make(chan int)
	for range 8 {
		wait.Go(func() {
			for i := range numbers {
				var o map[string]any
				if err := json.Unmarshal(largeNode(i), &o); err != nil {
					t.Error(err)
				}
				meta := o["metadata"].(map[string]any)
				for _, key := range slices.Collect(maps.Keys(meta)) {
					if key != "name" && key != "labels" {
						delete(meta, key)
					}
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base.JoinPath("api/v1/nodes").String(), bytes.NewReader(mustJSON(o)))
				if err != nil {
					t.Error(err)
					continue
				}
				req.Header.Set("Content-Type", "application/json")
				resp, err := c.client.Do(req)
				if err != nil {
					t.Error(err)
					continue
				}
				if resp.StatusCode != http.StatusCreated {
					t.Error(refused(resp))
				}
				resp.Body.Close()
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	wait.Wait()
}

// The operator stops the cluster and puts back yesterday's data directory of etcd. What was created since is gone,
// what was deleted since is there again, and the versions of new objects are numbers that were used before. One node was
// offline meanwhile, and comes back when the versions have passed those that it knew.
func TestAPIServerEtcdIsRestored(t *testing.T) {
	cp, config := servedNode(t)
	mustApply(t, cp, mustJSONText(apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24")))
	address := strings.TrimPrefix(cp.URL(), "https://")
	wan := newSwallower(t, address)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	far := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, far, strings.ReplaceAll(string(text), address, wan.Addr().String()))
	p := patient()
	p.trust = time.Hour
	online := newClientOf(t, KubernetesOptions{Kubeconfig: config, Node: "n1", UserAgent: "edgewayd/test"}, p)
	p.trust = time.Second // the control plane is away for longer
	offline := newClientOf(t, KubernetesOptions{Kubeconfig: far, Node: "n1", UserAgent: "edgewayd/test"}, p)
	both := func(want string) {
		t.Helper()
		online.untilIs(t, want)
		offline.untilIs(t, want)
	}
	both("n1 n2")
	data, backup := filepath.Join(cp.Dir, "etcd"), filepath.Join(t.TempDir(), "etcd")
	restart := func(between func() error) {
		t.Helper()
		if err := errors.Join(cp.StopAPIServer(), cp.Stop("etcd"), between(), cp.Run("etcd"), cp.StartAPIServer()); err != nil {
			t.Fatal(err)
		}
	}
	beat := func(many int) (version string) { // each beat is a version
		t.Helper()
		admin, err := Connect(KubernetesOptions{Kubeconfig: cp.AdminKubeconfig()})
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		for i := range many {
			text := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","annotations":{"beat":"%d"}}}`, i)
			if text, err = admin.Apply(t.Context(), Path(kindNode)+"/n1", "beat", text); err != nil {
				t.Fatal(err)
			}
			var n usedNode
			if err := json.Unmarshal(text, &n); err != nil {
				t.Fatal(err)
			}
			version = n.Metadata.ResourceVersion
		}
		return version
	}
	restart(func() error { return os.CopyFS(backup, os.DirFS(data)) })
	beat(100)
	mustApply(t, cp, mustJSONText(apiNode(t, "n3", "192.0.2.13", "10.10.3.0/24")))
	mustApply(t, cp, `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"NetworkPool","metadata":{"name":"shop"},"spec":{"mode":"underlay","nodeSelector":"all()"}}`)
	kubectl(t, cp, "delete", "node", "n2")
	both("n1 n3 NetworkPool/shop")
	wan.lose(true)
	offline.untilProblem(t, "n1 n3 NetworkPool/shop", APIServerUnreachable)
	known := beat(1) // the offline node knows no later version
	restart(func() error { return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(backup))) })
	back := time.Now()
	online.untilIs(t, "n1 n2")
	t.Logf("right %v after the API server was ready", time.Since(back))
	for older(beat(20), known) {
	}
	back = time.Now()
	wan.lose(false)
	offline.untilIs(t, "n1 n2")
	t.Logf("right %v after the node was back", time.Since(back))
	mustApply(t, cp, mustJSONText(apiNode(t, "n4", "192.0.2.14", "10.10.4.0/24")))
	both("n1 n2 n4")
}
