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
	process "github.com/edgeway-cni/edgeway/scripts/lab"
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
func (l *lab) replica(t *testing.T) *process.Process {
	t.Helper()
	p, err := process.Program{Argv: []string{os.Args[0]}, Env: append(os.Environ(), asReplica+"="+l.spec), Log: l.replicaLog()}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(p.PID(), syscall.SIGCONT) // a replica that was killed while it stood still is not a failure
		if err := p.End(syscall.SIGTERM); err != nil {
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

// harm kills three replicas, has them stand still and go on, and starts new ones, until over.
func (l *lab) harm(t *testing.T, over <-chan struct{}) {
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
	replicas := []*process.Process{l.replica(t), l.replica(t), l.replica(t)}
	for kills, stops := 0, 0; ; {
		select {
		case <-over:
			for _, p := range replicas {
				_ = syscall.Kill(p.PID(), syscall.SIGCONT)
			}
			if t.Logf("%d replicas killed, %d times one stood still", kills, stops); kills == 0 || stops == 0 {
				t.Error("the harm was too little to show anything")
			}
			return
		case <-time.After(time.Duration(100+random.IntN(700)) * time.Millisecond):
		}
		i := random.IntN(len(replicas))
		pid := replicas[i].PID()
		switch random.IntN(5) {
		case 0, 1:
			_ = syscall.Kill(pid, syscall.SIGCONT)
			if err := replicas[i].Kill(); err != nil {
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
}

// allServed waits until so many Nodes are there and each has both families, and none another's.
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
			for i, a := range all {
				for _, b := range all[:i] {
					if overlap(a.Spec.PodCIDRs, b.Spec.PodCIDRs) {
						t.Errorf("%s and %s have %v and %v", a.Name, b.Name, a.Spec.PodCIDRs, b.Spec.PodCIDRs)
					}
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d Nodes have pod CIDRs", served, len(all))
		}
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
