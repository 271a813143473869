package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// The nodes of a NetworkPool get blocks of its ranges, and its status says so: a running controller notices a pool
// that is created, one that overlaps another, and the repair. Without the CRD there are no pools. The roles are
// those that are shipped.
func TestAPIServerNetworkPool(t *testing.T) {
	l := newLab(t, kube.Options{}, "pool=file")
	l.replica(t)
	l.create(t, "f1", "file")
	l.allServed(t, 1)

	if err := l.Apply("../../deploy/kubernetes/crds"); err != nil {
		t.Fatal(err)
	}
	pool := func(name, more string) {
		t.Helper()
		text := fmt.Sprintf(`{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "NetworkPool", "metadata": {"name": %q}, "spec": {"nodeSelector": "pool=%[1]s", "mode": "overlay", %s}}`, name, more)
		var err error
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); pause(t.Context(), 100*time.Millisecond) {
			if err = l.ApplyText(text); err == nil { // a CRD is served some time after it was created
				return
			}
		}
		t.Fatal(err)
	}
	until := func(what string, args []string, want string) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); pause(t.Context(), 100*time.Millisecond) {
			if got, _ = l.Kubectl(args...); strings.Contains(got, want) {
				return
			}
		}
		t.Fatalf("%s: got %s, want %s\n%s", what, got, want, l.logged(t))
	}
	pool("a", `"podCIDRs": [{"cidr": "10.20.0.0/16", "nodeMaskSize": 26}, {"cidr": "fd00:20::/48"}]`)
	pool("b", `"podCIDRs": [{"cidr": "10.20.128.0/17"}]`)
	l.create(t, "a1", "a")
	l.create(t, "b1", "b")
	until("blocks of the pool", []string{"get", "node", "a1", "-o", "jsonpath={.spec.podCIDRs}"}, `["10.20.0.0/26","fd00:20::/64"]`)
	status := []string{"get", "networkpool", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.nodes} {.status.podCIDRs[0]} {.status.conditions[0].status} {.status.conditions[0].reason}{"\n"}{end}`}
	until("the status of the pool that serves", status, `a 1 {"blocks":1024,"cidr":"10.20.0.0/16","used":1} True AllServed`)
	until("the status of the pool that overlaps it", status, `b 1 {"blocks":128,"cidr":"10.20.128.0/17","used":0} False OverlapsPool`)
	until("both names", []string{"get", "networkpool", "b", "-o", "jsonpath={.status.conditions[0].message}"}, "10.20.128.0/17, which overlaps 10.20.0.0/16 of NetworkPool/a, the older pool; without pod CIDRs: b1")

	// The other ranges that a pool must not have: those of Services, and of nodes.
	if out, err := l.Kubectl("patch", "node", "f1", "--subresource=status", "-p", `{"status": {"addresses": [{"type": "InternalIP", "address": "10.30.0.5"}]}}`); err != nil {
		t.Fatal(out, err)
	}
	pool("c", `"podCIDRs": [{"cidr": "10.96.128.0/17"}], "sourceNAT": {"enabled": true, "exclude": ["192.168.0.0/16"]}, "vxlan": {"vni": 7, "port": 4789}, "mtu": 1400`)
	pool("d", `"podCIDRs": [{"cidr": "10.30.0.0/16"}]`)
	reason := []string{"get", "networkpool", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[0].reason}: {.status.conditions[0].message}{"\n"}{end}`}
	until("a pool in the Service CIDR", reason, "c OverlapsServices: NetworkPool/c: want podCIDRs apart from the Service CIDRs, got 10.96.128.0/17, which overlaps the Service CIDR 10.96.0.0/16")
	until("a pool with a node's address", reason, "d OverlapsNode: NetworkPool/d: want podCIDRs apart from the nodes' own subnets, got 10.30.0.0/16, which holds the address 10.30.0.5 of Node/f1")

	pool("b", `"podCIDRs": [{"cidr": "10.21.0.0/16"}]`)
	until("the status after the repair", status, `b 1 {"blocks":256,"cidr":"10.21.0.0/16","used":1} True AllServed`)
	until("blocks after the repair", []string{"get", "node", "b1", "-o", "jsonpath={.spec.podCIDRs}"}, `["10.21.0.0/24"]`)
}

// A status is written only when it says something new: each write is a request, and an object that others watch.
func TestStatusIsSettled(t *testing.T) {
	list := `{"kind": "NetworkPoolList", "apiVersion": "network.edgeway.io/v1alpha1", "metadata": {"resourceVersion": "7"}, "items": [{"kind": "NetworkPool",
		"apiVersion": "network.edgeway.io/v1alpha1", "metadata": {"name": "a", "generation": 3}, "spec": {"nodeSelector": "all()", "mode": "auto", "podCIDRs": [{"cidr": "fd00::/16"}]}}]}`
	objects, version, err := readPools([]byte(list))
	if err != nil || version != "7" || len(objects) != 1 || objects[0].Generation != 3 {
		t.Fatalf("got %+v, version %q, %v", objects, version, err)
	}
	pools := allPools(objects, nil)
	nodes := []Node{node("n1", "fd00:20:0:1::/64"), node("n2")}
	now := epoch
	first := statusOf(objects[0], pools, nodes, nil, now)
	if r := first.PodCIDRs[0]; r.Blocks != mostBlocks || r.Used != 1 || first.Nodes != 2 || first.Conditions[0].Reason != "Waiting" {
		t.Errorf("got %+v", first)
	}
	objects[0].Status = first
	if again := statusOf(objects[0], pools, nodes, nil, now.Add(time.Hour)); !again.equal(first) {
		t.Errorf("an hour later: got %+v, want %+v", again, first)
	}
	nodes[1].PodCIDRs = prefixes("fd00:20:0:2::/64")
	served := statusOf(objects[0], pools, nodes, nil, now.Add(time.Hour))
	if c := served.Conditions[0]; c.Status != metav1.ConditionTrue || !c.LastTransitionTime.Equal(&metav1.Time{Time: now.Add(time.Hour)}) {
		t.Errorf("got %+v", served)
	}
}

// A NetworkPool that is not valid stops everything: its nodes would get blocks of another pool.
func TestNetworkPoolThatIsNotValid(t *testing.T) {
	_, _, err := readPools([]byte(`{"kind": "NetworkPoolList", "apiVersion": "network.edgeway.io/v1alpha1", "items": [{"kind": "NetworkPool",
		"apiVersion": "network.edgeway.io/v1alpha1", "metadata": {"name": "a"}, "spec": {"nodeSelector": "all()", "mode": "auto", "podCIDRs": [{"cidr": "fd00:20::1/48"}]}}]}`))
	const want = `NetworkPool/a: want fd00:20::/48 (no host bits) in spec.podCIDRs[0].cidr, got "fd00:20::1/48"; kubectl edit networkpool a; no Node gets pod CIDRs until then`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if pools, _, err := readPools([]byte(`{"kind": "NetworkPoolList", "metadata": {"resourceVersion": "7"}, "items": []}`)); err != nil || len(pools) != 0 {
		t.Errorf("an empty list: got %v, %v", pools, err)
	}
}
