package report_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/controller"
	"github.com/edgeway-cni/edgeway/daemon/report"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"go.yaml.in/yaml/v3"
)

const (
	roles = "../../deploy/kubernetes/rbac"

	cast = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.10.1.0/24, podCIDRs: [10.10.1.0/24]}}
---
{apiVersion: network.openyurt.io/v1alpha1, kind: BGPPeer, metadata: {name: p}, spec: {localSpeakers: [n1],
  localAsNumber: 65010, peerIP: 10.0.0.1, peerAsNumber: 65001, nodeSelector: all(), authPassword: {secretKeyRef: {name: bgp-secret, key: password}}}}
---
{apiVersion: network.alibabacloud.com/v1beta1, kind: BGPClusterConfig, metadata: {name: c}, spec: {localASN: 65010, nodeSelector: all(),
  bgpSpeakers: [{name: n1, peers: [{name: s, peerASN: 65001, peerAddress: 10.0.0.2}]}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-n1, namespace: kube-system}, spec: {nodeName: n1, serviceAccountName: edgeway, containers: [{name: a, image: a}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-n2, namespace: kube-system}, spec: {nodeName: n2, serviceAccountName: edgeway, containers: [{name: a, image: a}]}}
---
{apiVersion: v1, kind: Secret, metadata: {name: bgp-secret, namespace: kube-system}, stringData: {password: hunter2}}
---
{apiVersion: v1, kind: Secret, metadata: {name: other, namespace: kube-system}, stringData: {password: hunter2}}
`
)

// must returns v, or ends the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 30 s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func clusterWith(t *testing.T, directories ...string) *kube.ControlPlane {
	t.Helper()
	cp := kube.Start(t, kube.Options{})
	for _, dir := range append([]string{"../../deploy/kubernetes/crds"}, directories...) {
		if _, err := os.Stat(filepath.Join(dir, "kustomization.yaml")); err == nil {
			must(cp.Kubectl("apply", "-k", dir))(t)
		} else {
			must("", cp.Apply(dir))(t)
		}
	}
	for _, name := range []string{"bgppeers", "bgpclusterconfigs", "networkpools", "edgenodes", "nodeslices"} {
		until(t, name, func() bool { _, err := cp.Kubectl("get", name); return err == nil })
	}
	must("", cp.ApplyText(cast))(t)
	return cp
}

// live is a node at work: it reads, and reports two sessions.
func live(t *testing.T, kubeconfig string) {
	t.Helper()
	o := cluster.KubernetesOptions{Kubeconfig: kubeconfig, Node: "n1", UserAgent: "edgewayd/test"}
	source, reporter := cluster.Kubernetes(o), report.New(o)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- source.Watch(ctx, func() {}) }()
	go func() { done <- reporter.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	until(t, "the World", func() bool {
		w, err := source.World(ctx, cluster.World{})
		return err == nil && len(w.Nodes) == 2 && len(w.Peerings) == 2 && len(w.Secrets) == 1
	})
	var sessions []report.Session
	for i, resource := range []string{"BGPPeer/p", "BGPClusterConfig/c"} {
		sessions = append(sessions, report.Session{
			Resource: resource, Peer: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), PeerASN: 65001, State: "Established", Since: time.Now(),
		})
	}
	reporter.Sync(sessions)
	for _, s := range sessions {
		reporter.Event(s.Event("n1"))
	}
	reporter.Self(report.Node{Mode: "underlay", Sessions: sessions})
	if p := reporter.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
}

// right is one thing that may be done, as RBAC and the audit log say it.
type right struct{ group, resource, verb string }

func (r right) String() string {
	return strings.TrimPrefix(r.group+"/", "/") + r.resource + " " + r.verb
}

// granted returns what the manifests of a directory allow, those below it left out.
func granted(t *testing.T, dir string) map[right]bool {
	t.Helper()
	all := map[right]bool{}
	files := must(fs.Glob(os.DirFS(dir), "*.yaml"))(t)
	for _, name := range files {
		d := yaml.NewDecoder(strings.NewReader(string(must(os.ReadFile(filepath.Join(dir, name)))(t))))
		for {
			var o struct {
				Rules []struct {
					APIGroups []string `yaml:"apiGroups"`
					Resources []string
					Verbs     []string
				}
			}
			if err := d.Decode(&o); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, r := range o.Rules {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						all[right{r.APIGroups[0], resource, verb}] = true
					}
				}
			}
		}
	}
	return all
}

// used returns what the user did, and fails the test for what it was refused.
func used(t *testing.T, cp *kube.ControlPlane, user string) map[right]bool {
	t.Helper()
	all := map[right]bool{}
	for _, q := range must(cp.Requests(func(q kube.Request) bool { return q.User == user }))(t) {
		r := asked(t, q)
		all[r] = true
		if q.Code == 401 || q.Code == 403 {
			t.Errorf("%v was refused: %v", r, q)
		}
	}
	return all
}

// asked returns the right that a request takes.
func asked(t *testing.T, q kube.Request) right {
	t.Helper()
	u := must(url.Parse(q.URI))(t)
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	r := right{verb: q.Verb}
	if parts[0] == "apis" {
		r.group, parts = parts[1], parts[1:]
	}
	parts = parts[2:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	if r.resource = parts[0]; len(parts) > 2 {
		r.resource += "/" + parts[2]
	}
	return r
}

// compare fails the test for each right that was used and is not granted, or the reverse.
func compare(t *testing.T, granted, used map[right]bool, seldom map[right]string) {
	t.Helper()
	for r := range used {
		if !granted[r] {
			t.Errorf("%v is used and no role has it", r)
		}
	}
	for r := range granted {
		if why, ok := seldom[r]; ok {
			t.Logf("%v: %s", r, why)
		} else if !used[r] {
			t.Errorf("%v is granted and nothing uses it", r)
		}
	}
}

// inApply: the audit log says patch, also of an apply that creates.
var inApply = map[right]string{{"", "events", "create"}: "is asked for inside an apply; TestAPIServerRolesAreNeeded tries without"}

// A node does its work with the roles as they are delivered: nothing is refused, and they hold
// nothing that is not used.
func TestAPIServerRoles(t *testing.T) {
	for _, test := range []struct {
		name, user string
		dirs       []string
		kubeconfig func(*kube.ControlPlane) (string, error)
	}{
		{"service account", "system:serviceaccount:kube-system:edgeway", []string{roles}, func(cp *kube.ControlPlane) (string, error) {
			return cp.ServiceAccountOf("on-n1", "kube-system", "edgeway")
		}},
		{"kubelet", "system:node:n1", []string{roles, roles + "/kubelet"}, func(cp *kube.ControlPlane) (string, error) {
			return cp.Kubeconfig("system:node:n1", "system:nodes")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cp := clusterWith(t, test.dirs...)
			live(t, must(test.kubeconfig(cp))(t))
			all := granted(t, roles)
			until(t, "both statuses and events", func() bool {
				now := used(t, cp, test.user)
				return now[right{"network.openyurt.io", "bgppeers/status", "patch"}] && now[right{"network.alibabacloud.com", "bgpclusterconfigs/status", "patch"}] &&
					now[right{"network.edgeway.io", "edgenodes/status", "patch"}] && now[right{"network.edgeway.io", "edgenodes", "create"}] &&
					strings.Count(must(cp.Kubectl("get", "events", "-o", "name"))(t), "\n") >= 2 && now[right{"", "secrets", "watch"}]
			})
			compare(t, all, used(t, cp, test.user), inApply)
			// No node reads another node's EdgeNode: a thousand nodes that change would else be a million events.
			for _, q := range must(cp.Requests(func(q kube.Request) bool {
				return q.User == test.user && strings.Contains(q.URI, "/edgenodes?") && q.Verb != "create"
			}))(t) {
				if !strings.Contains(q.URI, "fieldSelector=metadata.name%3Dn1") {
					t.Errorf("it reads others' EdgeNodes: %v", q)
				}
			}
		})
	}
}

// A node writes flannel's annotations with the role for that and no other: with a kubelet's credentials without it. It
// asks for nothing while its Node has them. Without the right a problem names the role.
func TestAPIServerRolesForFlannel(t *testing.T) {
	cp := clusterWith(t, roles)
	account := must(cp.ServiceAccount("kube-system", "edgeway"))(t)
	want := map[string]string{"flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:01"}`}
	said := func() string {
		return must(cp.Kubectl("get", "node", "n1", "-o", `jsonpath={.metadata.annotations.flannel\.alpha\.coreos\.com/backend-data}`))(t)
	}
	annotate := func(kubeconfig string) *report.Annotations {
		a := report.NewAnnotations(cluster.KubernetesOptions{Kubeconfig: kubeconfig, Node: "n1", UserAgent: "edgewayd/test"})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return a
	}
	const user = "system:serviceaccount:kube-system:edgeway"
	asked := func() int {
		return len(must(cp.Requests(func(q kube.Request) bool { return q.User == user }))(t))
	}

	a := annotate(account)
	must("", a.Sync(nil))(t)
	if n := asked(); n > 0 {
		t.Errorf("%d requests for a Node that has its annotations", n)
	}
	must("", a.Sync(want))(t)
	until(t, "a problem without the role", func() bool {
		p := a.Problems()
		return len(p) == 1 && p[0].Reason == cluster.AnnotationRefused && p[0].Object == "Node/n1" && strings.Contains(p[0].Next, "deploy/kubernetes/rbac/flannel")
	})
	if got := said(); got != "" {
		t.Errorf("without the role the Node says %s", got)
	}

	must(cp.Kubectl("apply", "-k", roles+"/flannel"))(t)
	until(t, "the right", func() bool {
		out, _ := cp.Kubectl("auth", "can-i", "--as", user, "patch", "nodes/n1", "--subresource", "status")
		return strings.TrimSpace(out) == "yes"
	})
	must("", a.Sync(nil))(t)
	if p := a.Problems(); len(p) > 0 {
		t.Errorf("problems of annotations that nobody wants: %v", p)
	}
	b := annotate(account)
	must("", b.Sync(want))(t)
	until(t, "the annotation", func() bool { return said() == want["flannel.alpha.coreos.com/backend-data"] })
	compare(t, granted(t, roles+"/flannel"), map[right]bool{{"", "nodes/status", "patch"}: true}, nil)
	for _, no := range [][]string{{"patch", "nodes/n1"}, {"update", "nodes/n1", "--subresource", "status"}, {"delete", "nodes/n1"}} {
		if out, _ := cp.Kubectl(append([]string{"auth", "can-i", "--as", user}, no...)...); strings.TrimSpace(out) == "yes" {
			t.Errorf("the role allows: %s", strings.Join(no, " "))
		}
	}

	other := map[string]string{"flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"4e:2d:f2:44:0a:02"}`}
	k := annotate(must(cp.Kubeconfig("system:node:n1", "system:nodes"))(t))
	must("", k.Sync(other))(t)
	until(t, "the annotation by a kubelet's credentials", func() bool { return said() == other["flannel.alpha.coreos.com/backend-data"] })
	if p := k.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
}

// Without one of the rights something is missing that an operator sees.
func TestAPIServerRolesAreNeeded(t *testing.T) {
	cp := clusterWith(t, roles)
	account := must(cp.ServiceAccountOf("on-n1", "kube-system", "edgeway"))(t)
	may := func(args ...string) bool {
		out, _ := cp.Kubectl(append([]string{"auth", "can-i", "--as", "system:serviceaccount:kube-system:edgeway"}, args...)...)
		return strings.TrimSpace(out) == "yes"
	}
	for _, no := range [][]string{
		{"list", "secrets", "-n", "kube-system"}, {"get", "secrets/other", "-n", "kube-system"}, {"list", "secrets/other", "-n", "kube-system"},
		{"get", "secrets/bgp-secret", "-n", "default"}, {"patch", "bgppeers/p"}, {"patch", "edgenodes/n1"}, {"get", "edgenodes/n1"}, {"delete", "edgenodes/n1"}, {"patch", "nodes/n1"}, {"patch", "nodes/n1", "--subresource", "status"}, {"list", "pods"}, {"create", "events", "-n", "kube-system"},
		{"delete", "bgppeers/p"}, {"get", "configmaps", "-n", "kube-system"},
	} {
		if may(no...) {
			t.Errorf("a node may %s", strings.Join(no, " "))
		}
	}
	if !may("list", "secrets/bgp-secret", "-n", "kube-system") {
		t.Error("a node may not list secrets/bgp-secret")
	}
	must(cp.Kubectl("patch", "role", "edgeway-node", "--type", "json", "-p", `[{"op": "replace", "path": "/rules/0/verbs", "value": ["patch"]}]`))(t)
	live(t, account)
	until(t, "an event refused, as it may not be created", func() bool {
		refused := must(cp.Requests(func(q kube.Request) bool { return strings.Contains(q.URI, "/events/") && q.Code == 403 }))(t)
		return len(refused) > 0
	})
}

// A node's credentials write the status of its own EdgeNode and of no other: a node that was broken into cannot say that
// another node has given an address back, which a pod still has.
func TestAPIServerNodeWritesItsOwnEdgeNode(t *testing.T) {
	cp := clusterWith(t, roles, roles+"/kubelet")
	pod := func(n string) string { return must(cp.ServiceAccountOf("on-"+n, "kube-system", "edgeway"))(t) }
	kubelet := func(n string) string { return must(cp.Kubeconfig("system:node:"+n, "system:nodes"))(t) }
	unbound := must(cp.ServiceAccount("kube-system", "edgeway"))(t)
	object := func(name, more string) string {
		path := filepath.Join(t.TempDir(), name+".json")
		text := `{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "EdgeNode", "metadata": {"name": "` + name + `"}` + more + `}`
		must("", os.WriteFile(path, []byte(text), 0o600))(t)
		return path
	}
	as := func(kubeconfig string, args ...string) string {
		_, err := cp.Kubectl(append([]string{"--kubeconfig", kubeconfig}, args...)...)
		return fmt.Sprint(err)
	}
	type act func(kubeconfig string) string
	confirm := func(name string) act {
		return func(kubeconfig string) string { // kubectl would read the object first
			c := must(cluster.Connect(cluster.KubernetesOptions{Kubeconfig: kubeconfig}))(t)
			defer c.Close()
			_, err := c.Apply(t.Context(), cluster.Path("EdgeNode")+"/"+name+"/status", "test", []byte(`{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "EdgeNode",
				"status": {"uplinks": {"confirmed": [{"address": "10.0.0.33", "token": "k3x9"}]}}}`))
			return fmt.Sprint(err)
		}
	}
	create := func(name, more string) act {
		return func(kubeconfig string) string {
			return as(kubeconfig, "create", "--validate=false", "-f", object(name, more))
		}
	}
	until(t, "the policy counts", func() bool { return strings.Contains(create("n1", "")(pod("n2")), "own EdgeNode only") })
	const own, none, spec = "node n2 writes its own EdgeNode only", "these credentials name no node", "a node writes no spec"
	for i, test := range []struct {
		kubeconfig, want string // "": it may
		act              act
	}{
		{pod("n1"), spec, create("n1", `, "spec": {}`)},
		{pod("n1"), "", create("n1", `, "status": {"mode": "overlay"}`)},
		{kubelet("n2"), own, create("n1", "")},
		{kubelet("n2"), spec, create("n2", `, "spec": {"uplinks": {"provider": "static", "interfaces": [{"name": "eth1", "address": "10.0.0.21", "subnet": "10.0.0.0/24", "gateway": "10.0.0.254"}]}}`)},
		{kubelet("n2"), "", create("n2", "")},
		{unbound, none, create("n3", "")},
		{unbound, none, confirm("n1")},
		{pod("n2"), own, confirm("n1")},
		{kubelet("n2"), own, confirm("n1")},
		{pod("n1"), "", confirm("n1")},
		{kubelet("n1"), "", confirm("n1")},
		{cp.AdminKubeconfig(), "", confirm("n2")},
		{cp.AdminKubeconfig(), "", create("n3", `, "spec": {}`)},
	} {
		if got := test.act(test.kubeconfig); !strings.Contains(got, test.want) || (test.want == "") != (got == "<nil>") {
			t.Errorf("%d, %s: got %q, want %q", i, filepath.Base(test.kubeconfig), got, test.want)
		}
	}
	if got := must(cp.Kubectl("get", "edgenode", "n1", "-o", "jsonpath={.status}"))(t); got != `{"uplinks":{"confirmed":[{"address":"10.0.0.33","token":"k3x9"}]}}` {
		t.Errorf("status of n1: %s", got)
	}
}

// The controller does its work with its roles, which hold nothing that is not used.
func TestAPIServerControllerRoles(t *testing.T) {
	cp := clusterWith(t, roles+"/controller")
	for i := range 3 {
		must("", cp.ApplyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m%d"}}`, i)))(t)
	}
	must("", cp.ApplyText(`{"apiVersion": "network.edgeway.io/v1alpha1", "kind": "NetworkPool", "metadata": {"name": "elsewhere"},
		"spec": {"nodeSelector": "pool=elsewhere", "mode": "underlay", "podCIDRs": [{"cidr": "10.20.0.0/16"}]}}`))(t)
	config := must(cluster.ClientConfig(must(cp.ServiceAccount("kube-system", "edgeway-controller"))(t), "edgewayd/test"))(t)
	// The pool has two blocks, and n1 has one of them: of three Nodes two get none, which is said.
	pool := controller.Pool{
		Selector: must(cluster.ParseSelector("all()"))(t), CIDRs: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/23")},
		Mask: controller.Mask{IPv4: 24, IPv6: 64},
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- controller.Run(ctx, controller.Options{API: config, Pools: []controller.Pool{pool}, Identity: "test", Log: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	const user = "system:serviceaccount:kube-system:edgeway-controller"
	seldom := map[right]string{
		{"", "nodes", "get"}:                           "only when a patch is refused as another one was faster",
		{"", "services", "get"}:                        "only before Kubernetes 1.33",
		{"network.edgeway.io", "nodeslices", "delete"}: "only when all nodes of a slice are gone",
	}
	for _, verb := range []string{"get", "list", "watch", "create", "patch", "delete"} {
		seldom[right{"network.edgeway.io", "edgenodes", verb}] = "only with ens: in its configuration, which needs a cloud"
	}
	all := granted(t, roles+"/controller")
	until(t, "all rights", func() bool {
		now := used(t, cp, user)
		for r := range all {
			if seldom[r] == "" && !now[r] {
				return false
			}
		}
		return true
	})
	compare(t, all, used(t, cp, user), seldom)
	given := strings.Fields(must(cp.Kubectl("get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"))(t))
	slices.Sort(given)
	if want := []string{"10.10.0.0/24", "10.10.1.0/24"}; !slices.Equal(given, want) {
		t.Errorf("pod CIDRs %v, want %v", given, want)
	}
}
