package controller

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// asReplica in the environment has the test's own program run as a controller: one that can be
// stopped and killed as no goroutine can.
const asReplica = "EDGEWAY_TEST_REPLICA"

func TestMain(m *testing.M) {
	if spec := os.Getenv(asReplica); spec != "" {
		runReplica(spec)
		return
	}
	os.Exit(m.Run())
}

// runReplica runs a controller: "KUBECONFIG SELECTOR CIDR,CIDR".
func runReplica(spec string) {
	f := strings.Fields(spec)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	selects, err := cluster.ParseSelector(f[1])
	if err == nil {
		var o Options
		o.API, err = cluster.ClientConfig(f[0], "edgewayd-controller/test")
		o.Pools = []Pool{{Selector: selects, CIDRs: prefixes(strings.Split(f[2], ",")...), Mask: Mask{24, 64}}}
		o.Identity, o.Log, o.times = fmt.Sprint("replica-", os.Getpid()), log, hurry()
		o.times.pace.courtesy = 100 * time.Millisecond
		if err == nil {
			err = Run(ctx, o)
		}
	}
	if err != nil {
		log.Error("replica", "err", err)
		os.Exit(1)
	}
}

// lab is a control plane and a client that may do everything in it.
type lab struct {
	*kube.ControlPlane
	client kubernetes.Interface
	spec   string // of a replica
}

func newLab(t *testing.T, o kube.Options, selects string) *lab {
	t.Helper()
	l := &lab{ControlPlane: kube.Start(t, o)}
	config, err := cluster.ClientConfig(l.AdminKubeconfig(), "test")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 200
	if l.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	// The account and the roles are those that are shipped.
	if _, err := l.Kubectl("apply", "-k", "../../deploy/kubernetes/rbac/controller"); err != nil {
		t.Fatal(err)
	}
	account, err := l.Kubeconfig("system:serviceaccount:kube-system:edgeway-controller", "system:serviceaccounts", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	l.spec = account + " " + selects + " 10.10.0.0/16,fd00:10::/48"
	return l
}

// server are the cluster's objects for who may do everything.
func (l *lab) server(t *testing.T) *server {
	t.Helper()
	config, err := cluster.ClientConfig(l.AdminKubeconfig(), "test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return &server{client: c}
}

// replica starts a process.
func (l *lab) replica(t *testing.T) *kube.Process {
	t.Helper()
	p, err := kube.Spawn(l.replicaLog(), "env", asReplica+"="+l.spec, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(p.PID(), syscall.SIGCONT) // one that was killed while it stood still is no failure
		if err := p.End(20 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (l *lab) replicaLog() string { return filepath.Join(l.Dir, "replicas.log") }

func (l *lab) logged(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(l.replicaLog())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// create makes a Node as a kubelet does.
func (l *lab) create(t *testing.T, name, pool string) {
	t.Helper()
	_, err := l.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pool": pool}}}, metav1.CreateOptions{})
	if err != nil {
		t.Error(err)
	}
}

func (l *lab) list(t *testing.T) []corev1.Node {
	t.Helper()
	nodes, err := l.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return nodes.Items
}

// watchForOverlaps looks at every version of every Node: pod CIDRs never change and never overlap.
func (l *lab) watchForOverlaps(t *testing.T) {
	list, err := l.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		had := map[string][]string{} // by UID
		for event := range w.ResultChan() {
			n, ok := event.Object.(*corev1.Node)
			if !ok {
				if t.Context().Err() == nil { // else the test is over
					t.Errorf("watch: %v", event.Object)
				}
				return
			}
			if event.Type == "DELETED" {
				delete(had, string(n.UID))
				continue
			}
			if was := had[string(n.UID)]; len(was) > 0 && !slices.Equal(was, n.Spec.PodCIDRs) {
				t.Errorf("Node %s had %v and has %v", n.Name, was, n.Spec.PodCIDRs)
			}
			for other, cidrs := range had {
				if other != string(n.UID) && overlap(cidrs, n.Spec.PodCIDRs) {
					t.Errorf("Node %s (%s) has %v, which %s has too", n.Name, n.UID, n.Spec.PodCIDRs, other)
				}
			}
			had[string(n.UID)] = n.Spec.PodCIDRs
		}
	})
	t.Cleanup(func() { w.Stop(); wait.Wait() })
}

func overlap(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if netip.MustParsePrefix(x).Overlaps(netip.MustParsePrefix(y)) {
				return true
			}
		}
	}
	return false
}

// 200 nodes register in bursts, by eight clients at once, and some of them again under their
// name, while three replicas are killed, stand still for longer than their Lease, and start anew:
// every Node gets both families, no two overlap at any time, none changes.
func TestAPIServerBurst(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	l.watchForOverlaps(t)
	var nodes, harm sync.WaitGroup
	over := make(chan struct{})
	harm.Go(func() {
		random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
		replicas := []*kube.Process{l.replica(t), l.replica(t), l.replica(t)}
		for kills, stops := 0, 0; ; {
			select {
			case <-over:
				for _, p := range replicas {
					_ = syscall.Kill(p.PID(), syscall.SIGCONT)
				}
				if t.Logf("%d replicas killed, %d times one stood still", kills, stops); kills == 0 || stops == 0 {
					t.Error("that is too little harm to show anything")
				}
				return
			case <-time.After(time.Duration(100+random.IntN(700)) * time.Millisecond):
			}
			i := random.IntN(len(replicas))
			pid := replicas[i].PID()
			switch random.IntN(5) {
			case 0, 1:
				_ = syscall.Kill(pid, syscall.SIGCONT)
				if err := replicas[i].Kill(20 * time.Second); err != nil {
					t.Error(err)
				}
				replicas[i] = l.replica(t)
				kills++
			case 2, 3:
				_ = syscall.Kill(pid, syscall.SIGSTOP)
				stops++
			default:
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
	})
	for client := range 8 {
		nodes.Go(func() {
			for i := range 25 {
				name := fmt.Sprintf("n%d-%d", client, i)
				l.create(t, name, "a")
				if i%5 == 4 { // the end of a burst; one of it goes and comes again
					again := fmt.Sprintf("n%d-%d", client, i-2)
					if err := l.client.CoreV1().Nodes().Delete(t.Context(), again, metav1.DeleteOptions{}); err != nil {
						t.Error(err)
					}
					l.create(t, again, "a")
					pause(t.Context(), 3*time.Second)
				}
			}
		})
	}
	nodes.Wait()
	began := time.Now()
	l.allServed(t, 200)
	t.Logf("all served %v after the last one registered", time.Since(began).Round(time.Millisecond))
	close(over)
	harm.Wait()
	if n := strings.Count(l.logged(t), "panic"); n > 0 {
		t.Errorf("%d panics:\n%s", n, l.logged(t))
	}
}

// allServed waits until so many Nodes are there and each has both families.
func (l *lab) allServed(t *testing.T, want int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			text := l.logged(t)
			t.Logf("replicas:\n%s", text[max(0, len(text)-8000):])
		}
	}()
	for deadline := time.Now().Add(4 * time.Minute); ; pause(t.Context(), 200*time.Millisecond) {
		all, served := l.list(t), 0
		for _, n := range all {
			if len(n.Spec.PodCIDRs) == 2 {
				served++
			}
		}
		if served == want && len(all) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d Nodes have pod CIDRs", served, len(all))
		}
	}
}

// Replicas that never ask who leads, against the real API server.
func TestAPIServerAllLead(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	l.watchForOverlaps(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	for range 3 {
		config, err := cluster.ClientConfig(strings.Fields(l.spec)[0], "edgewayd-controller/test")
		if err != nil {
			t.Fatal(err)
		}
		c, err := newClient(config)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorker(Options{Pools: []Pool{pool(t, "10.10.0.0/18", "fd00:10::/58")}, Log: slog.New(slog.DiscardHandler), times: hurry()}, c)
		wait.Go(func() { w.run(ctx) })
	}
	for i := range 60 { // of 64 blocks
		l.create(t, fmt.Sprint("n", i), "a")
		if i%6 == 5 {
			if err := l.client.CoreV1().Nodes().Delete(t.Context(), fmt.Sprint("n", i-3), metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
			l.create(t, fmt.Sprint("n", i-3), "a")
		}
	}
	l.allServed(t, 60)
}

// The parts of the protocol that the API server keeps: it refuses a grant to another UID or to a
// Node that has pod CIDRs, and a ledger that somebody else wrote meanwhile.
func TestAPIServerRefuses(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	s, other := l.server(t), l.server(t)
	ctx := t.Context()
	l.create(t, "a", "a")
	nodes, _, err := s.nodes(ctx)
	if err != nil || len(nodes) != 1 || nodes[0].UID == "" || nodes[0].hasPodCIDRs() {
		t.Fatalf("got %v, %v", nodes, err)
	}
	services, err := s.services(ctx)
	if err != nil || fmt.Sprint(services) != "[10.96.0.0/16 fd00:96::/112]" {
		t.Errorf("Service CIDRs %v, %v", services, err)
	}
	first, second := prefixes("10.10.0.0/24", "fd00:10::/64"), prefixes("10.10.1.0/24", "fd00:10:0:1::/64")
	grant := func(what, name, uid string, cidrs []netip.Prefix, want error) {
		t.Helper()
		if err := s.grant(ctx, Promise{name, uid, cidrs}); fmt.Sprint(err) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	grant("another UID", "a", "00000000-0000-0000-0000-000000000000", first, errRefused)
	grant("nobody", "b", nodes[0].UID, first, errRefused)
	grant("who waits", "a", nodes[0].UID, first, nil)
	grant("who has some", "a", nodes[0].UID, second, errRefused)
	grant("who has the same", "a", nodes[0].UID, first, errRefused)
	nodes, _, err = s.nodes(ctx)
	if err != nil || len(nodes) != 1 || join(nodes[0].PodCIDRs) != "10.10.0.0/24, fd00:10::/64" || nodes[0].SetBy != FieldManager {
		t.Errorf("got %+v, %v", nodes, err)
	}

	for _, s := range []*server{s, other} {
		if _, version, err := s.ledger(ctx); version != "" || err != nil {
			t.Fatalf("a ledger already: %s, %v", version, err)
		}
	}
	book := Ledger{Since: epoch, Promised: []Promise{{"a", "u", first}}}
	if err := s.save(ctx, book, ""); err != nil {
		t.Fatal(err)
	}
	if err := other.save(ctx, Ledger{Since: epoch}, ""); err != errChanged {
		t.Errorf("made twice: %v", err)
	}
	got, version, err := other.ledger(ctx)
	if err != nil || !got.equal(book) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := other.save(ctx, Ledger{Since: epoch}, version); err != nil {
		t.Error(err)
	}
	if err := s.save(ctx, book, version); err != errChanged {
		t.Errorf("written over: %v", err)
	}
}

// Beside a kube-controller-manager that gives pod CIDRs, the controller gives none, says so, and
// goes on when that one has stopped and the operator says so.
func TestAPIServerBesideControllerManager(t *testing.T) {
	l := newLab(t, kube.Options{PodCIDRs: []string{"10.244.0.0/16", "fd00:244::/48"}}, "pool=edge")
	l.create(t, "before", "edge")
	l.allServed(t, 1)
	l.replica(t)
	waitFor(t, l, "it leads", "msg=leading")
	waitFor(t, l, "it names who gave the old Node its CIDRs", "before 10.244.0.0/24, fd00:244::/64 (set by kube-controller-manager)")
	pause(t.Context(), time.Second) // a Node's creation time has whole seconds
	for i := range 10 {
		l.create(t, fmt.Sprint("n", i), "edge")
	}
	l.allServed(t, 11)
	for _, n := range l.list(t) {
		if !strings.HasPrefix(n.Spec.PodCIDR, "10.244.") {
			t.Errorf("Node %s has %v", n.Name, n.Spec.PodCIDRs)
		}
	}
	waitFor(t, l, "it says that somebody else does it", "msg=otherAllocator")
	if err := l.Stop("kube-controller-manager"); err != nil {
		t.Fatal(err)
	}
	l.create(t, "late", "edge")
	l.event(t, "late", "PodCIDRNotAvailable", "set by kube-controller-manager; without pod CIDRs: late; edgeway gives none now")
	if _, err := l.Kubectl("-n", Namespace, "patch", "configmap", Name, "--type=merge", "-p", `{"data":{"since":null}}`); err != nil {
		t.Fatal(err)
	}
	l.allServed(t, 12)
	late, err := l.client.CoreV1().Nodes().Get(t.Context(), "late", metav1.GetOptions{})
	if err != nil || fmt.Sprint(late.Spec.PodCIDRs) != "[10.10.0.0/24 fd00:10::/64]" {
		t.Errorf("late has %v, %v", late.Spec.PodCIDRs, err)
	}
}

// event waits for an Event that `kubectl describe node` shows.
func (l *lab) event(t *testing.T, node, reason, text string) {
	t.Helper()
	var out string
	until(t, "an Event "+reason+" of "+node, func() bool {
		var err error
		if out, err = l.Kubectl("describe", "node", node); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out, reason) && strings.Contains(out, text)
	})
}

func waitFor(t *testing.T, l *lab, what, text string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(l.logged(t))
		}
	}()
	until(t, what, func() bool { return strings.Contains(l.logged(t), text) })
}

// The API server is away for longer than the Lease: the same process serves again afterwards.
func TestAPIServerAwayForAWhile(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	p := l.replica(t)
	l.create(t, "a", "a")
	l.allServed(t, 1)
	if err := l.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, l, "it no longer leads", `msg="leadership lost"`)
	if err := l.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	l.create(t, "b", "a")
	l.allServed(t, 2)
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}
