package cluster

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// yurthub is OpenYurt's proxy on the node n1, between edgewayd and the API server. edgeway does not build it: the variable
// EDGEWAY_YURTHUB names the program.
type yurthub struct {
	program, dir string
	argv         []string
	// open is the port without TLS, where yurthub's own credentials count; secure is the port that pods use.
	open, secure, health string
}

const yurthubAccount = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: yurt-hub}
rules:
- {apiGroups: [""], resources: [configmaps, services, nodes], verbs: [get, list, watch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: yurt-hub}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: yurt-hub}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: yurt-hub-cfg, namespace: kube-system, labels: {openyurt.io/configmap-name: yurt-hub-cfg}}
data: {cache_agents: edgewayd}
`

// startYurthub starts a yurthub that caches for edgewayd.
func startYurthub(t *testing.T, cp *kube.ControlPlane) *yurthub {
	t.Helper()
	mustApply(t, cp, yurthubAccount)
	y := &yurthub{program: os.Getenv("EDGEWAY_YURTHUB"), dir: t.TempDir()}
	loopback := net.IPv4(127, 0, 0, 1)
	service := net.ParseIP(strings.TrimSpace(kubectl(t, cp, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")))
	pki := filepath.Join(y.dir, "pki")
	if err := os.Mkdir(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, group := range map[string]string{"yurthub": "openyurt:yurthub", "yurthub-server": "system:nodes"} {
		cert, key, err := cp.Certificate("system:node:n1", []string{group, "system:nodes"}, []net.IP{loopback, service, net.IPv4(169, 254, 2, 1)},
			[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(pki, name+"-1.pem"), string(append(cert, key...)))
		if err := os.Symlink(name+"-1.pem", filepath.Join(pki, name+"-current.pem")); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := os.ReadFile(cp.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(y.dir, "bootstrap.conf"), string(admin))
	var ports []string
	for range 4 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	y.open, y.secure, y.health = "http://127.0.0.1:"+ports[0], "https://127.0.0.1:"+ports[1], "http://127.0.0.1:"+ports[2]
	y.argv = []string{y.program, "--v=2", "--node-name=n1", "--nodepool-name=shop", "--node-ip=127.0.0.1", "--working-mode=edge",
		"--server-addr=" + cp.URL(), "--root-dir=" + y.dir, "--bootstrap-file=" + filepath.Join(y.dir, "bootstrap.conf"),
		"--disk-cache-path=" + filepath.Join(y.dir, "cache"), "--enable-dummy-if=false", "--enable-resource-filter=false",
		"--heartbeat-interval-seconds=1", "--heartbeat-failed-retry=1", "--heartbeat-healthy-threshold=1",
		"--proxy-port=" + ports[0], "--proxy-secure-port=" + ports[1], "--serve-port=" + ports[2], "--multiplexer-port=" + ports[3]}
	return y
}

func (y *yurthub) log() string { return filepath.Join(y.dir, "yurthub.log") }

// start returns when yurthub serves.
func (y *yurthub) start(t *testing.T) {
	t.Helper()
	p, err := lab.Program{Argv: y.argv, Log: y.log()}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("yurthub:\n%s", lab.Tail(y.log(), 30))
		}
		_ = p.Kill()
	})
	eventually(t, "yurthub is ready", "200", func() string {
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(y.health + "/v1/readyz")
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		return fmt.Sprint(resp.StatusCode)
	})
}

// answer is what yurthub answers to edgewayd.
func (y *yurthub) answer(t *testing.T, method, path, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, y.open+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "edgewayd/test")
	req.Header.Set("Accept", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/apply-patch+yaml")
	} else if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, text.String()
}

// The cloud is away and yurthub answers from its disk, which has one of the two Nodes and old NodeSlices: what is known
// counts, also after the daemon restarts, nobody takes yurthub's answer to a write for the API server's, and the cloud is heard when it is back.
func TestYurthubCloudAway(t *testing.T) {
	if os.Getenv("EDGEWAY_YURTHUB") == "" {
		t.Skip("EDGEWAY_YURTHUB names no yurthub")
	}
	cp := servedKinds(t, kube.Options{})
	for _, file := range []string{"node.yaml", "speaker.yaml", "secrets.yaml", "edgenode.yaml", "kubelet/bindings.yaml"} {
		mustApply(t, cp, rbac+file)
	}
	mustApply(t, cp, mustJSONText(apiNode(t, "n1", "192.0.2.11", "10.10.1.0/24")))
	mustApply(t, cp, mustJSONText(apiNode(t, "n2", "192.0.2.12", "10.10.2.0/24")))
	eventually(t, "refusal of a BGPPeer", "", func() string {
		if err := cp.ApplyText(strings.ReplaceAll(mustJSONText(apiPeer(t, "lan", `"n1"`)), `"bgp"`, `"bgp-secret"`)); err != nil {
			return err.Error()
		}
		return ""
	})
	mustApply(t, cp, mustJSONText(apiSecret(t, "bgp-secret", "one")))
	mustApply(t, cp, `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"EdgeNode","metadata":{"name":"n1"}}`)
	const pool = `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"NetworkPool","metadata":{"name":"shop"},"spec":{"mode":"underlay","nodeSelector":"all()"}}`
	mustApply(t, cp, pool)
	nodes := SliceSpec{Nodes: []SlicedNode{
		{Name: "n1", Addresses: []string{"192.0.2.11"}, PodCIDRs: []string{"10.10.1.0/24"}}, {Name: "n2", Addresses: []string{"192.0.2.12"}, PodCIDRs: []string{"10.10.2.0/24"}}}}
	for name, spec := range map[string]SliceSpec{"nodes-1": nodes, SliceIndex: {Slices: []string{"nodes-1"}}, SliceAlive: {PublishedAt: time.Now().UTC().Format(time.RFC3339)}} {
		mustApply(t, cp, string(mustJSON(NewNodeSlice(name, spec))))
	}
	const all = "n1 n2 BGPPeer/lan NetworkPool/shop EdgeNode/n1 Secret/bgp-secret=one"
	y := startYurthub(t, cp)
	y.start(t)

	byHub := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, byHub, kubeconfigOf(y.open, ""))
	asPod, err := cp.ServiceAccountOn("n1", "kube-system", "edgeway")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(asPod)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, asPod, strings.ReplaceAll(string(text), cp.URL(), y.secure))
	for _, way := range []string{byHub, asPod} {
		t.Run(filepath.Base(way), func(t *testing.T) {
			options := KubernetesOptions{Kubeconfig: way, Node: "n1", UserAgent: "edgewayd/test"}
			c := newClientOf(t, options, patient())
			c.untilIs(t, all)
			server, err := Connect(options)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			const status = `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"EdgeNode","metadata":{"name":"n1"},"status":{"mode":%q,"problemCount":0}}`
			write := func(mode string) error {
				_, err := server.Apply(t.Context(), Path(kindEdgeNode)+"/n1/status", "edgewayd", fmt.Appendf(nil, status, mode))
				return err
			}
			if err := write("underlay"); err != nil {
				t.Error(err)
			}

			if err := cp.StopAPIServer(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "answer from the disk", http.StatusNotFound, func() int {
				code, _, _ := y.answer(t, http.MethodGet, "/apis/nothing.io/v1/things", "")
				return code
			})
			for _, ask := range [][3]string{
				{"GET", "/api/v1/nodes"}, {"GET", "/" + Path(kindPool)}, {"GET", "/" + Path(kindEdgeNode) + "?fieldSelector=metadata.name%3Dn1"}, {"GET", "/" + Path(kindCluster)}, {"GET", "/" + SlicePath()},
				{"PATCH", "/" + Path(kindEdgeNode) + "/n1/status?fieldManager=e&force=true", fmt.Sprintf(status, "overlay")},
				{"POST", "/" + Path(kindEdgeNode), `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"EdgeNode","metadata":{"name":"n9"}}`},
				{"PATCH", "/api/v1/namespaces/default/events/e1?fieldManager=e&force=true", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e1","namespace":"default"},"reason":"x"}`},
			} {
				code, header, text := y.answer(t, ask[0], ask[1], ask[2])
				t.Logf("%s %s: %d %v %d bytes: %.160s", ask[0], ask[1], code, header, len(text), text)
			}
			// The daemon restarts, and restarts again twenty minutes later, when the NodeSlices are old.
			again, late := newClientOf(t, options, patient()), &client{source: newKubernetes(options, patient()), signal: make(chan struct{}, 1)}
			late.source.clock = func() time.Time { return time.Now().Add(20 * time.Minute) }
			startWatch(t, late.source, func() {
				select {
				case late.signal <- struct{}{}:
				default:
				}
			})
			for _, client := range []*client{c, again, late} {
				client.last = c.last
				client.until(t, "what was known, and who answers", func(w World, err error) bool {
					if len(w.Problems) > 0 {
						err = fmt.Errorf("%s", w.Problems[0])
					}
					return err != nil && strings.Contains(err.Error(), errHearsay.Error()) && describe(w) == all
				})
			}
			if err := write("overlay"); !unanswered(err) {
				t.Errorf("a write while the cloud is away: %v", err)
			}

			if err := cp.StartAPIServer(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			c.untilIs(t, all)
			t.Logf("no problem %v after the API server was ready", time.Since(back))
			kubectl(t, cp, "delete", "networkpool", "shop")
			c.untilIs(t, strings.Replace(all, " NetworkPool/shop", "", 1))
			mustApply(t, cp, pool)
			c.untilIs(t, all)
			c.stop()
		})
	}
}
