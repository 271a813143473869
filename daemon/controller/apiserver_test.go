package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// 200 nodes register in bursts, by eight clients at once, and some of them again under their
// name, while three replicas are killed, stand still for longer than their Lease, and restart:
// every Node gets both families, no two overlap at any time, none changes.
func TestAPIServerBurst(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	l.watchForOverlaps(t)
	var nodes, harm sync.WaitGroup
	over := make(chan struct{})
	harm.Go(func() { l.harm(t, over) })
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

// The operator stops the cluster and puts back yesterday's data directory of etcd, while the controller runs. Nodes that
// have joined since are gone, and so is what the ledger said of them. A new Node registers before they do: it does not
// get a block whose pods run, and they get their blocks again, without a restart of the controller.
func TestAPIServerEtcdIsRestored(t *testing.T) {
	l := newLab(t, kube.Options{}, "all()")
	crds, err := filepath.Glob("../../deploy/kubernetes/crds/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, crd := range crds {
		if err := l.Apply(crd); err != nil {
			t.Fatal(err)
		}
	}
	data, backup := filepath.Join(l.Dir, "etcd"), filepath.Join(t.TempDir(), "etcd")
	restart := func(between func() error) {
		t.Helper()
		if err := errors.Join(l.StopAPIServer(), l.Stop("etcd"), between(), l.ControlPlane.Run("etcd"), l.StartAPIServer()); err != nil {
			t.Fatal(err)
		}
	}
	had := func() map[string]string {
		out := map[string]string{}
		for _, n := range l.list(t) {
			out[n.Name] = fmt.Sprint(n.Spec.PodCIDRs)
		}
		return out
	}
	slices := func() string {
		out, err := l.Kubectl("get", "nodeslices", "-o", `jsonpath={range .items[*].spec.nodes[*]}{.name} {.podCIDRs}{"\n"}{end}`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	p := l.replica(t)
	l.create(t, "n1", "a")
	l.allServed(t, 1)
	restart(func() error { return os.CopyFS(backup, os.DirFS(data)) })
	for _, name := range []string{"n2", "n3", "n4"} {
		l.create(t, name, "a")
	}
	l.allServed(t, 4)
	before := had()

	restart(func() error { return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(backup))) })
	back := time.Now()
	l.create(t, "n5", "a")
	l.allServed(t, 2)
	for _, name := range []string{"n4", "n3", "n2"} { // as their kubelets do
		l.create(t, name, "a")
	}
	l.allServed(t, 5)
	after := had()
	for name, cidrs := range before {
		if after[name] != cidrs {
			t.Errorf("%s had %s and has %s", name, cidrs, after[name])
		}
		if after["n5"] == cidrs {
			t.Errorf("n5 got %s, which was %s's", cidrs, name)
		}
	}
	until(t, "the NodeSlices name all five", func() bool {
		text := slices()
		for name := range after {
			if !strings.Contains(text, name+" ") {
				return false
			}
		}
		return true
	})
	t.Logf("right %v after the API server was ready:\n%s", time.Since(back).Round(time.Millisecond), slices())
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}
