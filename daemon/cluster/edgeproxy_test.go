package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// What the tests of proxies between edgewayd and the API server share: OpenYurt's yurthub and KubeEdge's metaserver.

// shopKnown is what edgewayd on n1 knows of the cluster of startShop.
const shopKnown = "n1 n2 BGPPeer/lan NetworkPool/shop EdgeNode/n1 Secret/bgp-secret=one"

const shopPool = `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"NetworkPool","metadata":{"name":"shop"},"spec":{"mode":"underlay","nodeSelector":"all()"}}`

// startShop starts an API server with two Nodes and an object of each kind that n1 reads.
func startShop(t *testing.T) *kube.ControlPlane {
	t.Helper()
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
	mustApply(t, cp, shopPool)
	nodes := SliceSpec{Nodes: []SlicedNode{
		{Name: "n1", Addresses: []string{"192.0.2.11"}, PodCIDRs: []string{"10.10.1.0/24"}}, {Name: "n2", Addresses: []string{"192.0.2.12"}, PodCIDRs: []string{"10.10.2.0/24"}}}}
	for name, spec := range map[string]SliceSpec{"nodes-1": nodes, SliceIndex: {Slices: []string{"nodes-1"}}, SliceAlive: {PublishedAt: time.Now().UTC().Format(time.RFC3339)}} {
		mustApply(t, cp, string(mustJSON(NewNodeSlice(name, spec))))
	}
	return cp
}

const nodeStatus = `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"EdgeNode","metadata":{"name":"n1"},"status":{"mode":%q,"problemCount":0}}`

// writeStatus writes the status of n1 as edgewayd does.
func writeStatus(t *testing.T, o KubernetesOptions, mode string) error {
	t.Helper()
	server, err := Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, err = server.Apply(t.Context(), Path(kindEdgeNode)+"/n1/status", "edgewayd", fmt.Appendf(nil, nodeStatus, mode))
	return err
}

// edgeProxy is a program on the node n1 that answers for the API server at an URL.
type edgeProxy struct {
	url string
}

// proxyLimit is longer than edgecore waits for a cloudcore that went away.
const proxyLimit = 15 * time.Second

// answer is what the proxy answers to edgewayd, of a watch that does not end what comes within proxyLimit.
func (p edgeProxy) answer(t *testing.T, method, path, body string) (int, http.Header, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), proxyLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "edgewayd/test")
	req.Header.Set("Accept", acceptJSON)
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/apply-patch+yaml")
	} else if body != "" {
		req.Header.Set("Content-Type", acceptJSON)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, text.String()
}

// logAnswers asks all that edgewayd asks, for the table in docs/kubernetes.md.
func (p edgeProxy) logAnswers(t *testing.T, when string) {
	t.Helper()
	for _, ask := range [][3]string{
		{"GET", "/api/v1/nodes"}, {"GET", "/" + Path(kindPool)}, {"GET", "/" + Path(kindEdgeNode) + "?fieldSelector=metadata.name%3Dn1"}, {"GET", "/" + Path(kindCluster)}, {"GET", "/" + SlicePath()},
		{"GET", "/api/v1/namespaces/kube-system/secrets?fieldSelector=metadata.name%3Dbgp-secret"},
		{"GET", "/api/v1/nodes?watch=true&timeoutSeconds=2"},
		{"PATCH", "/" + Path(kindEdgeNode) + "/n1/status?fieldManager=e&force=true", fmt.Sprintf(nodeStatus, "overlay")},
		{"POST", "/" + Path(kindEdgeNode), `{"apiVersion":"network.edgeway.io/v1alpha1","kind":"EdgeNode","metadata":{"name":"n9"}}`},
		{"PATCH", "/api/v1/namespaces/default/events/e1?fieldManager=e&force=true", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e1","namespace":"default"},"reason":"x"}`},
	} {
		code, header, text := p.answer(t, ask[0], ask[1], ask[2])
		t.Logf("%s: %s %s: %d %v %d bytes: %.160s", when, ask[0], ask[1], code, header, len(text), text)
	}
}

// knownStays waits until c, and daemons that start now and twenty minutes later, when the NodeSlices are old, have what c knew
// and say that not the API server answers. next is what each of them names as the next step.
func (c *client) knownStays(t *testing.T, o KubernetesOptions, want, next string) {
	t.Helper()
	again, late := newClientOf(t, o, patient()), &client{source: newKubernetes(o, patient()), signal: make(chan struct{}, 1)}
	late.source.clock = func() time.Time { return time.Now().Add(20 * time.Minute) }
	startWatch(t, late.source, func() {
		select {
		case late.signal <- struct{}{}:
		default:
		}
	})
	select {
	case c.signal <- struct{}{}: // it may have said so long before
	default:
	}
	for _, client := range []*client{c, again, late} {
		client.last = c.last
		client.until(t, "what was known, and who answers", func(w World, err error) bool {
			if len(w.Problems) > 0 {
				err = fmt.Errorf("%s", w.Problems[0])
			}
			return err != nil && strings.Contains(err.Error(), errHearsay.Error()) && strings.Contains(err.Error(), next) && describe(w) == want
		})
	}
}

// freePorts returns ports of 127.0.0.1 that nobody listens at.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// startProgram returns when the program is ready. The program ends with the test.
func startProgram(t *testing.T, log string, ready func() string, argv ...string) *lab.Process {
	t.Helper()
	p, err := lab.Program{Argv: argv, Log: log}.Start()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(argv[0])
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", name, lab.Tail(log, 30))
		}
		_ = p.Kill()
	})
	eventually(t, name+" is ready", "", func() string {
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		return ready()
	})
	return p
}

// serves says why a URL does not answer with 200; "": it does.
func serves(url string) string {
	resp, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return ""
}
