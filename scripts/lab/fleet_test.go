package lab_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// fleetLab has a machine for each program whose line is measured: its network card counts all that the program receives.
// The switch is the way to the other shops, and hears from node-00001 of the shop's own nodes.
const fleetLab = `
switches:
- {name: switch, asn: 65001, links: [{lan: a, addrs: [10.98.0.1/16]}], neighbors: [{name: node, address: 10.98.1.2, asn: 65010}]}
hosts:
- {name: cloud, links: [{lan: a, addrs: [10.98.0.2/16]}]}
- {name: control, links: [{lan: a, addrs: [10.98.0.3/16]}]}
nodes:
- {name: node-00001, links: [{lan: a, addrs: [10.98.1.2/16]}], routes: [{to: 0.0.0.0/0, via: 10.98.0.1}]}
- {name: node-00002, links: [{lan: a, addrs: [10.98.1.3/16]}], routes: [{to: 0.0.0.0/0, via: 10.98.0.1}]}
`

// fleetPeer is the BGPPeer of a shop of five nodes.
const fleetPeer = `{"apiVersion": "network.openyurt.io/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "shop-%05d"},
  "spec": {"localSpeakers": [%q], "localAsNumber": %d, "peerIP": "10.98.0.1", "peerAsNumber": 65001, "nodeSelector": "shop=s%[1]d"}}`

// fleetObjects are the first shop, node-00000 to node-00004. The account by-nodes may not read NodeSlices.
const fleetObjects = `
{apiVersion: network.openyurt.io/v1alpha1, kind: BGPPeer, metadata: {name: shop},
  spec: {localSpeakers: [node-00000], localAsNumber: 65010, peerIP: 10.98.0.1, peerAsNumber: 65001, nodeSelector: shop=s0}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: by-nodes, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: by-nodes}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [list, watch]}
- {apiGroups: [network.openyurt.io, network.alibabacloud.com], resources: [bgppeers, bgpclusterconfigs], verbs: [list, watch]}
- {apiGroups: [network.edgeway.io], resources: [networkpools, edgenodes], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: by-nodes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: by-nodes}
subjects: [{kind: ServiceAccount, name: by-nodes, namespace: kube-system}]`

// TestFleet measures what a cluster of many nodes costs a node of a shop, and the controller, at a real API server:
// docs/kubernetes.md has the table. EDGEWAY_FLEET are the numbers of nodes, "10,500". EDGEWAY_FLEET_PEACE is how long
// heartbeats are counted, and an hour is computed from that. make fleet runs it.
func TestFleet(t *testing.T) {
	sizes := os.Getenv("EDGEWAY_FLEET")
	if sizes == "" {
		t.Skip("EDGEWAY_FLEET is not set; run make fleet")
	}
	peace, err := time.ParseDuration(cmp.Or(os.Getenv("EDGEWAY_FLEET_PEACE"), "5m"))
	if err != nil {
		t.Fatal(err)
	}
	lab.Need(t, lab.Tools()...)
	needPrograms(t)
	kube.Need(t, "etcd", "kube-apiserver", "kubectl")
	for _, size := range strings.Split(sizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 5 {
			t.Fatalf("EDGEWAY_FLEET %q: want numbers of nodes, 5 or more", sizes)
		}
		t.Run(size, func(t *testing.T) { newFleet(t, n).measure(t, peace) })
	}
}

// fleet is a cluster of n Nodes, of which two are machines that run edgewayd.
type fleet struct {
	n       int
	lab     *lab.Lab
	control *kube.ControlPlane
	client  *kubernetes.Clientset
	beating atomic.Int64 // heartbeats so far
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	l, err := lab.New(lab.Options{Bin: bin()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	topology, err := lab.ParseTopology([]byte(fleetLab))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(t.Context(), topology); err != nil {
		t.Fatal(err)
	}
	cloud := l.Machine("cloud")
	f := &fleet{n: n, lab: l, control: kube.Start(t, kube.Options{Space: cloud.Space, Addr: cloud.Addrs[0],
		Args: map[string][]string{"etcd": {"--quota-backend-bytes=8589934592"}}})}
	config, err := clientcmd.BuildConfigFromFlags("", f.control.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.ContentType = -1, "application/vnd.kubernetes.protobuf"
	config.Dial = func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = cloud.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
	if f.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(deployed, "crds")}, {"wait", "--for=condition=established", "crd", "--all"},
		{"apply", "-k", filepath.Join(deployed, "rbac")}, {"apply", "-k", filepath.Join(deployed, "rbac/controller")},
	} {
		if _, err := f.control.Kubectl(args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.control.ApplyText(fleetObjects); err != nil {
		t.Fatal(err)
	}
	return f
}

// measure prints one column of the table.
func (f *fleet) measure(t *testing.T, peace time.Duration) {
	column := &figures{t: t}
	started := time.Now()
	f.create(t)
	t.Logf("%d Nodes created in %v", f.n, time.Since(started).Round(time.Second))

	controller, took := f.publish(t)
	column.add("controller: all slices are written", took.Round(10*time.Millisecond))
	column.use("controller, until then", controller.since(usage{}), 0)
	nodes := map[string]*program{}
	for name, account := range map[string]string{"node-00001": "edgeway", "node-00002": "by-nodes"} {
		nodes[name] = f.start(t, name, account)
	}
	bySlice, whole := nodes["node-00001"], nodes["node-00002"]
	column.use("node by slices, first start", bySlice.since(usage{}), 0)
	column.use("node by Nodes, first start", whole.since(usage{}), 0)

	// First renewals of the watches, four to eight minutes after the start, are within an hour's share.
	<-time.After(min(peace, 3*time.Minute))
	watcher := f.watchSlices(t)
	stop := f.beat(t)
	before := []usage{controller.now(), bySlice.now(), whole.now()}
	began := time.Now()
	<-time.After(peace)
	window := time.Since(began)
	column.add("heartbeats in the window", f.beating.Load())
	column.use("controller, peace", controller.since(before[0]), window)
	column.use("node by slices, peace", bySlice.since(before[1]), window)
	column.use("node by Nodes, peace", whole.since(before[2]), window)

	stop()
	f.speak(t)
	before = []usage{controller.now(), bySlice.now(), whole.now()}
	var toSlice []time.Duration
	seers := []string{"node-00001", "node-00002", "switch"}
	seen := make([][]time.Duration, len(seers))
	for i := range 20 {
		address := fmt.Sprintf("10.98.2.%d", i+1)
		at := time.Now()
		var seeing sync.WaitGroup
		for k, name := range seers {
			seeing.Go(func() { seen[k] = append(seen[k], f.via(t, name, address, at)) })
		}
		f.move(t, address)
		toSlice = append(toSlice, watcher.saw(t, address).Sub(at))
		seeing.Wait()
		<-time.After(time.Second) // the looks after the change
	}
	column.add("a change: slice is written", spread(toSlice))
	column.add("a change: route of a node by slices", spread(seen[0]))
	column.add("a change: route of the switch, whose speaker is that node", spread(seen[2]))
	column.add("a change: route of a node by Nodes", spread(seen[1]))
	column.add("node by slices: bytes of a change", bySlice.since(before[1]).bytes/int64(len(toSlice)))
	column.use("controller, 20 changes", controller.since(before[0]), 0)
	column.use("node by slices, 20 changes", bySlice.since(before[1]), 0)

	before = []usage{controller.now(), bySlice.now(), whole.now()}
	if err := f.control.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * time.Second)
	if err := f.control.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	f.move(t, "10.98.3.1")
	column.add("after a restart of the API server: a change is a route, by slices", f.via(t, "node-00001", "10.98.3.1", at).Round(100*time.Millisecond))
	column.add("after a restart of the API server: a change is a route, by Nodes", f.via(t, "node-00002", "10.98.3.1", at).Round(100*time.Millisecond))
	<-time.After(time.Minute)
	column.use("controller, restart of the API server", controller.since(before[0]), 0)
	column.use("node by slices, restart of the API server", bySlice.since(before[1]), 0)
	column.use("node by Nodes, restart of the API server", whole.since(before[2]), 0)
	t.Logf("%d nodes\n%s", f.n, column.text.String())
	asked, err := f.control.Requests(func(r kube.Request) bool { return strings.HasPrefix(r.Agent, "edgeway") })
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range asked {
		path, _, _ := strings.Cut(r.URI, "?")
		count[fmt.Sprint(r.User, " ", r.Verb, " ", path, " ", r.Code)]++
	}
	for _, what := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%6d %s", count[what], what)
	}
}

// figures are the lines of one column.
type figures struct {
	t    *testing.T
	text strings.Builder
}

func (f *figures) add(what string, value any) {
	fmt.Fprintf(&f.text, "%s\t%v\n", what, value)
	f.t.Logf("%s: %v", what, value)
}

// use adds what a program used; by the hour if it used that in a time.
func (f *figures) use(what string, u usage, in time.Duration) {
	if in == 0 {
		f.add(what, fmt.Sprintf("%d KB, %d ms CPU, %d MiB resident (peak %d)", u.bytes>>10, u.cpu.Milliseconds(), u.resident>>10, u.peak>>10))
		return
	}
	f.add(what, fmt.Sprintf("%d KB/h, %.2f %% CPU, %d MiB resident (peak %d)", int64(float64(u.bytes)*float64(time.Hour)/float64(in))>>10,
		100*float64(u.cpu)/float64(in), u.resident>>10, u.peak>>10))
}

// usage is what a program has used.
type usage struct {
	bytes          int64 // received by its machine
	cpu            time.Duration
	resident, peak int64 // KiB
}

type program struct {
	t   *testing.T
	pid int
}

func (p *program) now() (u usage) {
	u.bytes, _ = strconv.ParseInt(strings.Fields(p.line("net/dev", "eth0:"))[0], 10, 64)
	stat := strings.Fields(p.read("stat"))
	for _, i := range []int{13, 14} {
		ticks, _ := strconv.Atoi(stat[i])
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	for what, to := range map[string]*int64{"VmRSS:": &u.resident, "VmHWM:": &u.peak} {
		*to, _ = strconv.ParseInt(strings.Fields(p.line("status", what))[0], 10, 64)
	}
	return u
}

func (p *program) since(before usage) usage {
	u := p.now()
	u.bytes, u.cpu = u.bytes-before.bytes, u.cpu-before.cpu
	return u
}

func (p *program) read(file string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, file))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// line returns the rest of the line that begins with key.
func (p *program) line(file, key string) string {
	for line := range strings.Lines(p.read(file)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), key); ok {
			return rest
		}
	}
	p.t.Fatalf("no %s in %s", key, file)
	return ""
}

// each calls do for all numbers of Nodes, 16 at a time.
func (f *fleet) each(do func(i int)) {
	var working sync.WaitGroup
	for part := range 16 {
		working.Go(func() {
			for i := part; i < f.n; i += 16 {
				do(i)
			}
		})
	}
	working.Wait()
}

func fleetName(i int) string { return fmt.Sprintf("node-%05d", i) }

// create makes Nodes as kubelets do: 12 KB each, most of it the list of images. Shops have five nodes and a BGPPeer.
func (f *fleet) create(t *testing.T) {
	t.Helper()
	var images []corev1.ContainerImage
	for i := range 50 {
		images = append(images, corev1.ContainerImage{SizeBytes: 1e8 + int64(i), Names: []string{
			fmt.Sprintf("registry.example.com/team-%d/image-%d@sha256:%064x", i%7, i, i*7919), fmt.Sprintf("registry.example.com/team-%d/image-%d:v1.2.%d", i%7, i, i)}})
	}
	conditions := []corev1.NodeCondition{}
	for _, kind := range []corev1.NodeConditionType{"MemoryPressure", "DiskPressure", "PIDPressure", "Ready"} {
		conditions = append(conditions, corev1.NodeCondition{Type: kind, Status: "False", Reason: "KubeletHas" + string(kind), Message: "kubelet has no " + string(kind)})
	}
	f.each(func(i int) {
		if i >= 5 && i%5 == 0 {
			peer := fmt.Sprintf(fleetPeer, i/5, fleetName(i), 4200000000+i/5)
			if err := f.client.CoreV1().RESTClient().Post().AbsPath("/apis/network.openyurt.io/v1alpha1/bgppeers").SetHeader("Content-Type", "application/json").Body([]byte(peer)).Do(t.Context()).Error(); err != nil {
				t.Error(err)
			}
		}
		address := fmt.Sprintf("172.%d.%d.%d", 16+i/60000, i/250%250, 1+i%250)
		if i < 5 {
			address = fmt.Sprintf("10.98.1.%d", i+1)
		}
		cidr := fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fleetName(i), Labels: map[string]string{"shop": fmt.Sprint("s", i/5), "kubernetes.io/hostname": fleetName(i), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
			Status: corev1.NodeStatus{Images: images, Conditions: conditions, Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: address}, {Type: corev1.NodeHostName, Address: fleetName(i)}}},
		}
		if _, err := f.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// beat has every kubelet write its status every five minutes, until stop.
func (f *fleet) beat(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	due := make(chan int, f.n)
	working.Go(func() {
		tick := time.NewTicker(5 * time.Minute / time.Duration(f.n))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				select {
				case due <- i % f.n:
				default: // the API server is behind: fewer heartbeats are counted
				}
			}
		}
	})
	for range 8 {
		working.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case i := <-due:
					patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
					if _, err := f.client.CoreV1().Nodes().Patch(ctx, fleetName(i), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					f.beating.Add(1)
				}
			}
		})
	}
	return func() { cancel(); working.Wait() }
}

// move gives node-00003, which is in the same shop as the machines, another address.
func (f *fleet) move(t *testing.T, address string) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, address)
	if _, err := f.client.CoreV1().Nodes().Patch(t.Context(), fleetName(3), types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// speak makes node-00001 the speaker of the shop, and waits until the switch has a route to the pods of its nodes.
func (f *fleet) speak(t *testing.T) {
	t.Helper()
	if err := f.control.ApplyText(strings.ReplaceAll(fleetObjects, "localSpeakers: [node-00000]", "localSpeakers: [node-00001]")); err != nil {
		t.Fatal(err)
	}
	f.via(t, "switch", "10.98.1.4", time.Now())
}

// via waits until a machine's route to node-00003's pods has this next hop, and returns the time since.
func (f *fleet) via(t *testing.T, name, address string, since time.Time) time.Duration {
	err := lab.Wait(t.Context(), 5*time.Minute, func() error {
		return f.lab.Machine(name).Do(func() error {
			all, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			for _, r := range all {
				if r.Dst != nil && r.Dst.String() == "10.100.3.0/24" && r.Gw.String() == address {
					return nil
				}
			}
			return cmp.Or(err, errors.New("no such route yet"))
		})
	})
	if err != nil {
		t.Error(name, address, err)
	}
	return time.Since(since)
}

// publish starts the controller, and waits until the slices have all nodes.
func (f *fleet) publish(t *testing.T) (*program, time.Duration) {
	t.Helper()
	account, err := f.control.ServiceAccount("kube-system", "edgeway-controller")
	if err != nil {
		t.Fatal(err)
	}
	m := f.lab.Machine("control")
	config := filepath.Join(m.Dir, "edgeway-controller.yaml")
	if err := os.WriteFile(config, []byte("controller: {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join(bin(), "edgeway-controller"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p, err := m.Spawn(filepath.Join(m.Dir, "edgeway-controller.log"), path, "--kubeconfig", account, "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		t.Log(lab.Tail(filepath.Join(m.Dir, "edgeway-controller.log"), 12))
		_ = p.Kill()
	})
	err = lab.Wait(t.Context(), 10*time.Minute, func() error {
		text, err := f.client.CoreV1().RESTClient().Get().AbsPath("/apis/network.edgeway.io/v1alpha1/nodeslices/alive").SetHeader("Accept", "application/json").DoRaw(t.Context())
		if err == nil && !strings.Contains(string(text), "publishedAt") {
			err = errors.New("not alive yet")
		}
		return errors.Join(err, p.Err())
	})
	if err != nil {
		t.Fatal(err)
	}
	return &program{t, p.PID()}, time.Since(began)
}

// start starts edgewayd on a machine, and waits until it knows all nodes.
func (f *fleet) start(t *testing.T, name, account string) *program {
	t.Helper()
	kubeconfig, err := f.control.ServiceAccountOn(name, "kube-system", account)
	if err != nil {
		t.Fatal(err)
	}
	n := f.lab.Node(name)
	text, err := os.ReadFile(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Config, []byte(strings.ReplaceAll(string(text), "manifests: "+f.lab.ClusterDir, "kubeconfig: "+kubeconfig)), 0o644); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = lab.Wait(t.Context(), 5*time.Minute, func() error {
		s, err := n.Status(t.Context())
		if err == nil && (s.World.Nodes != f.n || len(s.Routes) != 4) {
			err = fmt.Errorf("knows %d nodes and has %d routes: %v", s.World.Nodes, len(s.Routes), s.Problems)
		}
		if err == nil {
			t.Logf("%s knows all nodes %v after its start: %s", name, time.Since(began).Round(10*time.Millisecond), s.World.Source)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { t.Log(lab.Tail(n.Log(), 12)) })
	return &program{t, n.PID()}
}

// sliceWatch is when each address first stood in a slice.
type sliceWatch struct {
	mu sync.Mutex // guards at
	at map[string]time.Time
}

func (f *fleet) watchSlices(t *testing.T) *sliceWatch {
	t.Helper()
	w := &sliceWatch{at: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := f.client.CoreV1().RESTClient().Get().AbsPath("/apis/network.edgeway.io/v1alpha1/nodeslices").SetHeader("Accept", "application/json").Param("watch", "true").Param("resourceVersion", "0").Param("timeoutSeconds", "86400").Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var watching sync.WaitGroup
	t.Cleanup(func() { cancel(); stream.Close(); watching.Wait() })
	watching.Go(func() {
		for d := json.NewDecoder(stream); ; {
			var event struct {
				Object struct {
					Spec struct {
						Nodes []struct{ Addresses []string }
					}
				}
			}
			if err := d.Decode(&event); err != nil {
				return // the API server ends, or the test
			}
			w.mu.Lock()
			for _, n := range event.Object.Spec.Nodes {
				for _, a := range n.Addresses {
					if w.at[a].IsZero() {
						w.at[a] = time.Now()
					}
				}
			}
			w.mu.Unlock()
		}
	})
	return w
}

func (w *sliceWatch) saw(t *testing.T, address string) (at time.Time) {
	t.Helper()
	err := lab.Wait(t.Context(), time.Minute, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if at = w.at[address]; at.IsZero() {
			return fmt.Errorf("%s is in no slice; %d addresses are", address, len(slices.Collect(maps.Keys(w.at))))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// spread prints the median and the longest.
func spread(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("median %v, longest %v", all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
}
