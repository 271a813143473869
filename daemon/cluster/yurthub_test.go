package cluster

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
)

// yurthub is OpenYurt's proxy on the node n1, between edgewayd and the API server. edgeway does not build it: the variable
// EDGEWAY_YURTHUB names the program. Its URL is the port without TLS, where yurthub's own credentials count; secure is the
// port that pods use.
type yurthub struct {
	edgeProxy
	secure string
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

// startYurthub starts a yurthub that caches for edgewayd, and returns when it serves.
func startYurthub(t *testing.T, cp *kube.ControlPlane) yurthub {
	t.Helper()
	mustApply(t, cp, yurthubAccount)
	dir := t.TempDir()
	loopback := net.IPv4(127, 0, 0, 1)
	service := net.ParseIP(strings.TrimSpace(kubectl(t, cp, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")))
	pki := filepath.Join(dir, "pki")
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
	mustWrite(t, filepath.Join(dir, "bootstrap.conf"), string(admin))
	ports := freePorts(t, 4)
	startProgram(t, filepath.Join(dir, "yurthub.log"), func() string { return serves("http://127.0.0.1:" + ports[2] + "/v1/readyz") },
		os.Getenv("EDGEWAY_YURTHUB"), "--v=2", "--node-name=n1", "--nodepool-name=shop", "--node-ip=127.0.0.1", "--working-mode=edge",
		"--server-addr="+cp.URL(), "--root-dir="+dir, "--bootstrap-file="+filepath.Join(dir, "bootstrap.conf"),
		"--disk-cache-path="+filepath.Join(dir, "cache"), "--enable-dummy-if=false", "--enable-resource-filter=false",
		"--heartbeat-interval-seconds=1", "--heartbeat-failed-retry=1", "--heartbeat-healthy-threshold=1",
		"--proxy-port="+ports[0], "--proxy-secure-port="+ports[1], "--serve-port="+ports[2], "--multiplexer-port="+ports[3])
	return yurthub{edgeProxy{"http://127.0.0.1:" + ports[0]}, "https://127.0.0.1:" + ports[1]}
}

// The cloud is away and yurthub answers from its disk, which has one of the two Nodes and old NodeSlices: what is known
// counts, also after the daemon restarts, nobody takes yurthub's answer to a write for the API server's, and the cloud is heard when it is back.
func TestYurthubCloudAway(t *testing.T) {
	if os.Getenv("EDGEWAY_YURTHUB") == "" {
		t.Skip("EDGEWAY_YURTHUB names no yurthub")
	}
	cp := startShop(t)
	y := startYurthub(t, cp)

	byHub := filepath.Join(t.TempDir(), "kubeconfig")
	mustWrite(t, byHub, kubeconfigOf(y.url, ""))
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
			c.untilIs(t, shopKnown)
			if err := writeStatus(t, options, "underlay"); err != nil {
				t.Error(err)
			}

			if err := cp.StopAPIServer(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "answer from the disk", http.StatusNotFound, func() int {
				code, _, _ := y.answer(t, http.MethodGet, "/apis/nothing.io/v1/things", "")
				return code
			})
			y.logAnswers(t, "the cloud is away")
			c.knownStays(t, options, shopKnown, "check the network between this node and the server")
			if err := writeStatus(t, options, "overlay"); !unanswered(err) {
				t.Errorf("a write while the cloud is away: %v", err)
			}

			if err := cp.StartAPIServer(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			c.untilIs(t, shopKnown)
			t.Logf("no problem %v after the API server was ready", time.Since(back))
			kubectl(t, cp, "delete", "networkpool", "shop")
			c.untilIs(t, strings.Replace(shopKnown, " NetworkPool/shop", "", 1))
			mustApply(t, cp, shopPool)
			c.untilIs(t, shopKnown)
			c.stop()
		})
	}
}
