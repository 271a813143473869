package report

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
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
	config, err := cluster.ClientConfig(kubeconfig, "edgewayd/test")
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
	group, version, _ := strings.Cut(cluster.APIVersion(kind), "/")
	return schema.GroupVersionResource{Group: group, Version: version, Resource: strings.ToLower(kind) + "s"}
}

// seeds returns the manifests that the tests of directories begin with, as users write them,
// without their Secrets, which have a placeholder that is not base64.
func seeds(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, name := range []string{"terway-edge", "terway-edge-password", "terway-hybrid"} {
		archive, err := txtar.ParseFile(filepath.Join("../cluster/testdata", name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(string(f.Data), -1) {
				if strings.Contains(doc, "kind: BGP") {
					all = append(all, doc)
				}
			}
		}
	}
	return all
}

// The documents that users have are applied as they are, and seen as they know it.
func TestAPIServerSeeds(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	all := seeds(t)
	if len(all) < 8 {
		t.Fatalf("%d manifests, want those of three texts", len(all))
	}
	for _, manifest := range all {
		if err := cp.ApplyText(manifest); err != nil {
			t.Errorf("%s\n%v", manifest, err)
		}
		if _, err := cp.Kubectl("delete", "bgppeers,bgpclusterconfigs", "--all"); err != nil {
			t.Fatal(err)
		}
	}
	const documented = `
apiVersion: network.openyurt.io/v1alpha1
kind: BGPPeer
metadata:
  name: peer
spec:
  localSpeakers:
    - node-1
    - node-2
  localAsNumber: 65010
  peerIP: 172.16.0.1
  peerAsNumber: 65001
  nodeSelector: alibabacloud.com/nodepool-id=npxxx
`
	if err := cp.ApplyText(documented); err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`\d+s`).ReplaceAllString(kubectl(t, cp, "get", "bgppeer", "peer"), "10m")
	const want = `
NAME   LOCALSPEAKERS         LOCALASNUMBER   PEERIP       PEERASNUMBER   AGE
peer   ["node-1","node-2"]   65010           172.16.0.1   65001          10m
`
	if d := cmp.Diff(want, "\n"+got); d != "" {
		t.Errorf("want (-) and got (+):\n%s", d)
	}
	for _, manifest := range all {
		if strings.Contains(manifest, "kind: BGPClusterConfig") {
			if err := cp.ApplyText(manifest); err != nil {
				t.Fatal(err)
			}
		}
	}
	got = strings.Join(strings.Fields(regexp.MustCompile(`\d+s`).ReplaceAllString(kubectl(t, cp, "get", "bgpcc", "-o", "wide"), "10m")), " ")
	const wantConfig = `NAME LOCALASN ESTABLISHED AGE NODESELECTOR GATEWAY bgp 65010 10m {"matchLabels":{"alibabacloud.com/nodepool-id":"np-xxx"}}`
	if got != wantConfig {
		t.Errorf("got  %s\nwant %s", got, wantConfig)
	}
	for _, field := range []string{
		"bgppeers.spec.nodeSelector", "bgppeers.spec.peerPort", "bgppeers.status.speakers.gracefulRestartSeconds",
		"bgpclusterconfigs.spec.bgpSpeakers.peers.ttlSecurity", "bgpclusterconfigs.spec.gateway",
		"networkpools.spec.mode", "networkpools.spec.podCIDRs.nodeMaskSize", "networkpools.status.podCIDRs.used",
		"edgenodes.spec.uplinks.interfaces.answerARP", "edgenodes.status.uplinks.interfaces.state",
		"edgenodes.status.paths.worstRoundTripMilliseconds", "edgenodes.status.conditions.type", "edgenodes.status.problemCount",
	} {
		if out := kubectl(t, cp, "explain", field); !regexp.MustCompile(`DESCRIPTION:\n    \w`).MatchString(out) {
			t.Errorf("kubectl explain %s says nothing:\n%s", field, out)
		}
	}
}

// peerManifest is a BGPPeer with speakers.
func peerManifest(name string, speakers ...string) string {
	return fmt.Sprintf(`{"apiVersion": "network.openyurt.io/v1alpha1", "kind": "BGPPeer", "metadata": {"name": %q}, "spec":
		{"localSpeakers": ["%s"], "localAsNumber": 65010, "peerIP": "172.16.0.1", "peerAsNumber": 65001, "nodeSelector": "all()"}}`,
		name, strings.Join(speakers, `","`))
}

// withSpeakers makes a BGPPeer named peer, and the Nodes that it names.
func withSpeakers(t *testing.T, cp *kube.ControlPlane, nodes ...string) {
	t.Helper()
	for _, node := range nodes {
		if err := cp.ApplyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q}}`, node)); err != nil {
			t.Fatal(err)
		}
	}
	if err := cp.ApplyText(peerManifest("peer", nodes...)); err != nil {
		t.Fatal(err)
	}
}

// reportingTo starts a Reporter of the node toward the control plane.
func reportingTo(t *testing.T, kubeconfig, node string, p reportPace) *Reporter {
	t.Helper()
	r := New(cluster.KubernetesOptions{Kubeconfig: kubeconfig, Node: node, UserAgent: "edgewayd/test"})
	r.pace = p
	running(t, r.Run)
	return r
}

// An operator sees with kubectl a session that is up, and a session that is down.
func TestAPIServerDescribe(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	withSpeakers(t, cp, "node-1", "node-2")
	sessions := map[string]Session{
		"node-1": up("BGPPeer/peer", 3),
		"node-2": down("BGPPeer/peer", "refused", "172.16.0.1:179 refuses the connection: start BGP on the switch"),
	}
	for _, node := range []string{"node-1", "node-2"} {
		r := reportingTo(t, cp.AdminKubeconfig(), node, quickReports)
		s := sessions[node]
		s.Peer = netip.MustParseAddr("172.16.0.1")
		r.Sync([]Session{s})
		r.Event(s.Event(node))
		eventually(t, "event of "+node, true, func() bool {
			return strings.Contains(kubectl(t, cp, "get", "events"), node)
		})
		if node == "node-2" {
			r.Event(s.Event(node))
			eventually(t, "the second is counted", "2", func() string {
				return kubectl(t, cp, "get", "events", "--field-selector=reason=FailedEstablish", "-o", "jsonpath={.items[*].count}")
			})
		}
	}
	wide := regexp.MustCompile(`\d+s`).ReplaceAllString(kubectl(t, cp, "get", "bgppeer", "-o", "wide"), "3s")
	golden(t, "testdata/describe/wide.txt", wide)
	golden(t, "testdata/describe/bgppeer.txt", settledText(kubectl(t, cp, "describe", "bgppeers", "peer")))
}

// settledText is text without what differs from run to run.
func settledText(text string) string {
	for _, r := range [][2]string{
		{`(?m)^( *Resource Version:).*$`, "$1 (number)"},
		{`(?m)^( *UID:).*$`, "$1 (uid)"},
		{`(?m)^( *Creation Timestamp:).*$`, "$1 (time)"},
		{`\d+s( \(x2 over )\d+s\)`, "1s${1}2s)"},
		{`(Established +)\d+s`, "${1}1s"},
		{`(?m) +$`, ""},
		{` {2,}(edgewayd, )`, "  $1"},
		{`(Normal|Warning) +(Established|FailedEstablish) +`, "$1  $2  "},
		{`(?m)^  (Type|----) +.*$`, "  $1 ..."},
	} {
		text = regexp.MustCompile(r[0]).ReplaceAllString(text, r[1])
	}
	above, events, _ := strings.Cut(text, "---- ...\n")
	lines := strings.SplitAfter(events, "\n")
	slices.Sort(lines) // kubectl sorts by time, and two may have the same
	return above + "---- ...\n" + strings.Join(lines, "")
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: want (-) and got (+):\n%s\nall of it:\n%s", path, d, got)
	}
}

// Three speakers report at once to one resource that somebody edits meanwhile: nothing is lost,
// each owns its own entries, and when nothing changes nothing is written.
func TestAPIServerReporters(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	nodes := []string{"n1", "n2", "n3"}
	withSpeakers(t, cp, nodes...)
	c := dynamicClient(t, cp.AdminKubeconfig()).Resource(gvr("BGPPeer"))
	read := func() *unstructured.Unstructured {
		o, err := c.Get(context.Background(), "peer", metav1.GetOptions{})
		if err != nil {
			t.Error(err) // Fatal belongs to the test's own goroutine
			return &unstructured.Unstructured{}
		}
		return o
	}
	prefixes := func() []string {
		var all []string
		list, _, _ := unstructured.NestedSlice(read().Object, "status", "speakers")
		for _, e := range list {
			m := e.(map[string]any)
			all = append(all, fmt.Sprint(m["node"], " ", m["prefixesAdvertised"]))
		}
		slices.Sort(all)
		return all
	}
	p := quickReports
	p.coalesce, p.count, p.check = time.Millisecond, time.Millisecond, 100*time.Millisecond
	const changes = 500
	var all sync.WaitGroup
	for _, node := range nodes {
		r := reportingTo(t, cp.AdminKubeconfig(), node, p)
		all.Go(func() {
			for i := range changes + 1 {
				r.Sync([]Session{up("BGPPeer/peer", i)})
				if i%10 != 0 {
					continue // it may be written with the next one
				}
				want := fmt.Sprint(node, " ", i)
				for deadline := time.Now().Add(longest); !slices.Contains(prefixes(), want); {
					if time.Now().After(deadline) {
						t.Errorf("%q is not written: %v", want, prefixes())
						return
					}
				}
			}
		})
	}
	edits := 0
	finished := make(chan struct{})
	go func() { all.Wait(); close(finished) }()
	for running := true; running; edits++ {
		select {
		case <-finished:
			running = false
		default:
			kubectl(t, cp, "label", "--overwrite", "bgppeer", "peer", fmt.Sprintf("edit=%d", edits))
		}
	}
	eventually(t, "the last of each", []string{"n1 500", "n2 500", "n3 500"}, prefixes)

	o := read()
	up, _, _ := unstructured.NestedStringSlice(o.Object, "status", "established")
	slices.Sort(up)
	if d := cmp.Diff(nodes, up); d != "" {
		t.Errorf("status.established: want (-) and got (+):\n%s", d)
	}
	if edits < 3 || o.GetLabels()["edit"] != fmt.Sprint(edits-2) && o.GetLabels()["edit"] != fmt.Sprint(edits-1) {
		t.Errorf("after %d edits the label is %v", edits, o.GetLabels())
	}
	for _, f := range o.GetManagedFields() {
		node, ours := strings.CutPrefix(f.Manager, "edgewayd-")
		if !ours {
			continue
		}
		text := string(f.FieldsV1.GetRawBytes())
		for _, other := range nodes {
			if (strings.Contains(text, `\"`+other+`\"`) || strings.Contains(text, `"v:\"`+other)) != (other == node) {
				t.Errorf("%s owns %s", f.Manager, text)
			}
		}
	}
	version, began := o.GetResourceVersion(), time.Now()
	requests := func() int {
		all, err := cp.Requests(func(q kube.Request) bool {
			return q.Verb == "patch" && strings.Contains(q.URI, "bgppeers/peer/status")
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := requests()
	eventually(t, "checks", true, func() bool { return requests() > before+15 })
	if now := read().GetResourceVersion(); now != version {
		t.Errorf("resourceVersion %s became %s in %v in which nothing changed", version, now, time.Since(began))
	}
	t.Logf("%d requests for %d changes of 3 nodes, %d edits beside them", before, 3*changes, edits)
	reads, err := cp.Requests(func(q kube.Request) bool { return q.Agent == "edgewayd/test" && strings.Contains(q.URI, "/nodes") })
	if err != nil || len(reads) > len(nodes)*(len(nodes)-1) {
		t.Errorf("%d Nodes were read (%v), want one of each other speaker at most: %v", len(reads), err, reads)
	}
}

// While the API server is away for hours, callers go on; when it is back it hears of the present,
// once.
func TestAPIServerOutage(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	withSpeakers(t, cp, "n1")
	r := reportingTo(t, cp.AdminKubeconfig(), "n1", quickReports)
	r.Sync([]Session{up("BGPPeer/peer", 0)})
	prefixes := func() string {
		return kubectl(t, cp, "get", "bgppeer", "peer", "-o", "jsonpath={.status.speakers[*].prefixesAdvertised}")
	}
	eventually(t, "written", "0", prefixes)
	if err := cp.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 3600 {
		failed := down("BGPPeer/peer", "refused", "start BGP on the switch")
		r.Sync([]Session{failed})
		r.Event(failed.Event("n1"))
		came := up("BGPPeer/peer", i+1)
		r.Sync([]Session{came})
		r.Event(came.Event("n1"))
	}
	if took := time.Since(began); took > reportTimeout/2 {
		t.Errorf("14,400 calls took %v while the API server was away", took)
	}
	if err := cp.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the present", "3600", prefixes)
	told := func() string {
		return kubectl(t, cp, "get", "events", "-o", "jsonpath={range .items[*]}{.reason} x{.count}{end}")
	}
	eventually(t, "one event", "Established x1", told)
	writes, err := cp.Requests(func(q kube.Request) bool {
		return q.Verb == "patch" && q.Agent == "edgewayd/test" && q.At.After(began) && q.Code < 400
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(writes) > 4 {
		t.Errorf("%d writes of the reporter since the API server is back, want two:\n%v", len(writes), writes)
	}
}

// An operator sees a fleet in one screen; after an outage of the API server it shows the present at once, by one write.
func TestAPIServerEdgeNodes(t *testing.T) {
	cp := servedKinds(t, kube.Options{})
	withSpeakers(t, cp, "n1", "n2")
	p := quickReports
	p.coalesce, p.count, p.own = 10*time.Millisecond, 10*time.Millisecond, time.Hour
	node := map[string]Node{"n1": peaceful(14), "n2": {Mode: "overlay", Version: "1.4.1", MTU: 1450, Sessions: []Session{down("BGPPeer/peer", "refused", "start BGP on the switch")},
		Paths:    Paths{Probed: 2, Reached: 1, Cut: 1},
		Problems: []cluster.Problem{{Object: "store", Reason: cluster.PoolFull, Got: "254 of 254", Next: "delete pods"}, {Object: "BGPPeer/peer", Reason: "refused"}}}}
	r := map[string]*Reporter{}
	for _, name := range []string{"n1", "n2"} {
		r[name] = reportingTo(t, cp.AdminKubeconfig(), name, p)
		r[name].Sync(node[name].Sessions)
		r[name].Self(node[name])
	}
	get := func(args ...string) string {
		return "\n" + regexp.MustCompile(`\d+s`).ReplaceAllString(kubectl(t, cp, append([]string{"get", "edgenodes"}, args...)...), "5s")
	}
	eventually(t, "the fleet", `
NAME   MODE       VERSION   READY   PATHS   SESSIONS   USED   FREE   PROBLEMS   AGE
n1     underlay   1.4.0     True    3/3                14     240    0          5s
n2     overlay    1.4.1     False   1/2     0/1                      2          5s
`, func() string { return get() })
	eventually(t, "its owner", "Node n1", func() string {
		return kubectl(t, cp, "get", "edgenode", "n1", "-o", "jsonpath={.metadata.ownerReferences[0].kind} {.metadata.ownerReferences[0].name}")
	})
	kubectl(t, cp, "wait", "--for=condition=Ready", "--timeout=10s", "edgenode/n1")
	kubectl(t, cp, "wait", "--for=jsonpath={.status.conditions[?(@.type==\"SessionsUp\")].reason}=refused", "--timeout=10s", "edgenode/n2")
	since := func() string {
		return kubectl(t, cp, "get", "edgenode", "n1", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].lastTransitionTime}`)
	}
	first := since()

	if err := cp.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 3600 {
		n := peaceful(uint64(i % 200))
		n.Problems = []cluster.Problem{{Object: "API server " + cp.URL(), Reason: cluster.APIServerUnreachable}}
		if i%2 == 0 {
			n.Problems = append(n.Problems, node["n2"].Problems...)
		}
		r["n1"].Self(n)
	}
	if err := cp.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	r["n1"].Self(peaceful(77))
	eventually(t, "the present", "77", func() string {
		return kubectl(t, cp, "get", "edgenode", "n1", "-o", "jsonpath={.status.addresses[0].used}")
	})
	if now := since(); now != first {
		t.Errorf("ready since %s, and after the outage since %s", first, now)
	}
	writes, err := cp.Requests(func(q kube.Request) bool {
		return q.Verb == "patch" && strings.Contains(q.URI, "edgenodes/n1/status") && q.At.After(began) && q.Code < 400
	})
	if err != nil || len(writes) > 2 {
		t.Errorf("%d writes since the API server is back, want one (%v): %v", len(writes), err, writes)
	}

	// The object is deleted by hand, and is back once the source hears it.
	kubectl(t, cp, "delete", "edgenode", "n1")
	gone := peaceful(77)
	gone.Generation = 0
	r["n1"].Self(gone)
	eventually(t, "it is back", "77", func() string {
		out, _ := cp.Kubectl("get", "edgenode", "n1", "-o", "jsonpath={.status.addresses[0].used}")
		return out
	})

	// The daemons are newer than the CustomResourceDefinition, which Helm leaves as it is: that is said, and does not delay
	// what else is to be written.
	kubectl(t, cp, "patch", "crd", "edgenodes.network.edgeway.io", "--type", "json", "-p", `[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/mtu"}]`)
	changing := node["n2"]
	refused := func() (said string) {
		changing.MTU++ // the API server may still take an earlier one
		r["n2"].Self(changing)
		for _, p := range r["n2"].Problems() {
			next, _, _ := strings.Cut(p.Next, " and ")
			said += p.Object + " " + string(p.Reason) + " " + next
		}
		return said
	}
	eventually(t, "the kind is of an earlier version", "EdgeNode/n2 statusRefused apply deploy/kubernetes/crds", refused)
	if err := cp.Apply(crds); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is written", "", refused)
}
