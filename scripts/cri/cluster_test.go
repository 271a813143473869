package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func needTools(t *testing.T, runtime string) {
	t.Helper()
	var tools []string
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox", "nsenter", "unshare", "ip", "tc", "nft"} {
		tools = append(tools, toolPath(runtime, name))
	}
	fail := lab.Need(t, tools...)
	for _, name := range []string{"edgeway", "edgewayd"} {
		if _, err := os.Stat("../../bin/" + name); err != nil {
			fail("%v; run make build", err)
		}
	}
}

const (
	topology = `
nodes:
- name: n1
  links: [{lan: a, addrs: [192.0.2.11/24, "2001:db8::11/64"]}]
- name: n2
  links: [{lan: a, addrs: [192.0.2.12/24, "2001:db8::12/64"]}]
`
	manifests = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, "fd00:244:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}, {type: InternalIP, address: "2001:db8::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24, "fd00:244:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}, {type: InternalIP, address: "2001:db8::12"}]}
`
	httpPort = 80
	// waitLimit is for what a program does by itself after an event.
	waitLimit = 20 * time.Second
)

// chain has the reference plugins after ours. containerd calls loopback.
var chain = []string{"portmap", "bandwidth"}

// cluster is two nodes in one LAN, containerd and edgewayd on each.
type cluster struct {
	n1, n2 *Node
	pods   map[string]*pod // by name: what runs now
}

// pod is a pod as the kubelet keeps it over its sandboxes.
type pod struct {
	Sandbox
	on        *Node
	id        string // of the sandbox
	container string
	addrs     []netip.Addr
}

// newCluster makes the nodes; containerd runs on them, edgewayd does not.
func newCluster(t *testing.T, runtime string) *cluster {
	t.Helper()
	sweepAll(t)
	bin := buildPrograms(t)
	l, err := lab.New(lab.Options{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{pods: map[string]*pod{}}
	takeDown := sync.OnceValue(func() error { return errors.Join(c.close(), l.Close()) })
	t.Cleanup(func() {
		if t.Failed() {
			c.logTails(t)
		}
		if err := takeDown(); err != nil {
			t.Error(err)
		}
		wantNothingLeft(t, l)
	})
	spec, err := lab.ParseTopology([]byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range spec.Nodes {
		dir := filepath.Join(l.Dir, n.Name)
		spec.Nodes[i].Config = map[string]any{"cni": map[string]any{
			"confDir": filepath.Join(dir, "net.d"), "binDir": filepath.Join(dir, "cni"), "chain": chain}}
	}
	if err := l.Build(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.ClusterDir, "nodes.yaml"), []byte(manifests), 0o644); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(bin, "busybox.tar")
	if err := lab.WriteBusybox(archive); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]**Node{"n1": &c.n1, "n2": &c.n2} {
		plugins := filepath.Join(l.Dir, name, "cni")
		installPlugins(t, plugins, bin, recordPath(l, name))
		n, err := newNode(l, name, programs{edgewayd: filepath.Join(bin, "edgewayd"), cni: plugins, runtime: runtime, image: archive})
		if err != nil {
			t.Fatal(err)
		}
		*at = n
	}
	onSignal(t, takeDown)
	c.both(t, (*Node).Start)
	return c
}

// sweepAll removes what a killed test left.
func sweepAll(t *testing.T) {
	t.Helper()
	gone, err := lab.Sweep()
	if err != nil {
		t.Fatal(err)
	}
	if len(gone) > 0 {
		t.Logf("removed what an interrupted run left: %v", gone)
	}
}

// close ends the programs of the nodes. Some nodes may be missing.
func (c *cluster) close() error {
	var errs []error
	for _, n := range []*Node{c.n1, c.n2} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	return errors.Join(errs...)
}

// onSignal takes everything down when the test is interrupted. Otherwise the containers would outlive it.
func onSignal(t *testing.T, takeDown func() error) {
	ctx, stop := signal.NotifyContext(t.Context(), unix.SIGINT, unix.SIGTERM)
	t.Cleanup(stop)
	context.AfterFunc(ctx, func() {
		if t.Context().Err() == nil { // not the end of the test
			fmt.Fprintln(os.Stderr, "interrupted; taken down:", takeDown())
			os.Exit(1)
		}
	})
}

// logTails logs the last lines of the nodes' programs.
func (c *cluster) logTails(t *testing.T) {
	for _, n := range []*Node{c.n1, c.n2} {
		if n != nil {
			t.Logf("%s: containerd:\n%s", n.Name, lab.Tail(n.file("containerd.log"), 12))
			t.Logf("%s: edgewayd:\n%s", n.Name, lab.Tail(n.file("edgewayd.log"), 20))
		}
	}
}

// both does the same on both nodes at once.
func (c *cluster) both(t *testing.T, do func(*Node, context.Context) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	for _, n := range []*Node{c.n1, c.n2} {
		group.Go(func() error { return do(n, ctx) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// buildPrograms returns a directory with our programs, which `make build` made, and the reference plugins.
// Our programs are copied, so that a build does not change them during the test.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"edgeway", "edgewayd"} {
		program, err := os.ReadFile("../../bin/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const plugins = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", plugins+"main/loopback", plugins+"meta/portmap", plugins+"meta/bandwidth")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return dir
}

// installPlugins fills a node's directory of plugins. Calls of ours are recorded.
func installPlugins(t *testing.T, dir, bin, record string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"loopback"}, chain...) {
		if err := os.Symlink(filepath.Join(bin, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeRecorder(filepath.Join(dir, "edgeway"), filepath.Join(bin, "edgeway"), record); err != nil {
		t.Fatal(err)
	}
}

func recordPath(l *lab.Lab, node string) string { return filepath.Join(l.Dir, node, "cni-calls") }

// calls returns the calls of our plugin that a node's containerd made for a container, or for none.
func (n *Node) calls(t *testing.T, container string) []string {
	t.Helper()
	calls, err := readRecord(n.file("cni-calls"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range calls {
		if c.Container == container {
			lines = append(lines, c.String())
		}
	}
	return lines
}

// run makes a sandbox for the pod and starts its HTTP server, as the kubelet does. The pod may have had a
// sandbox before.
func (c *cluster) run(t *testing.T, n *Node, s Sandbox) *pod {
	t.Helper()
	s.Namespace, s.UID, s.CgroupParent = "default", "uid-of-"+s.Name, string(n.Cgroup)
	if old := c.pods[s.Name]; old != nil {
		s.Attempt, s.HostPorts, s.Annotations = old.Attempt+1, old.HostPorts, old.Annotations
	}
	p := &pod{Sandbox: s, on: n}
	start := time.Now()
	var err error
	if p.id, err = n.CRI.RunSandbox(t.Context(), s); err != nil {
		t.Fatalf("%s on %s: %v", s.Name, n.Name, err)
	}
	took := time.Since(start)
	server := fmt.Sprintf("echo %s >/www/index.html; exec /bin/busybox httpd -f -p %d -h /www", s.Name, httpPort)
	if p.container, err = n.CRI.RunContainer(t.Context(), p.id, s, lab.BusyboxImage, "/bin/busybox", "sh", "-c", server); err != nil {
		t.Fatalf("%s on %s: %v", s.Name, n.Name, err)
	}
	status, err := n.CRI.SandboxStatus(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	p.addrs = status.Addrs
	t.Logf("%s on %s: %v, sandbox after %d ms", s.Name, n.Name, p.addrs, took.Milliseconds())
	c.pods[s.Name] = p
	return p
}

// stop stops the pod's sandbox as the kubelet does.
func (p *pod) stop(t *testing.T) {
	t.Helper()
	if err := p.on.CRI.StopSandbox(t.Context(), p.id); err != nil {
		t.Fatalf("%s on %s: %v", p.Name, p.on.Name, err)
	}
}

// remove removes the pod's sandbox as the kubelet does, some 20 seconds after it was stopped.
func (p *pod) remove(t *testing.T) {
	t.Helper()
	if err := p.on.CRI.RemoveSandbox(t.Context(), p.id); err != nil {
		t.Fatalf("%s on %s: %v", p.Name, p.on.Name, err)
	}
}

// reaches checks that from gets the page of p, and answers to pings, at each address of p.
func (p *pod) reaches(t *testing.T, to *pod) {
	t.Helper()
	for _, addr := range to.addrs {
		url := "http://" + netip.AddrPortFrom(addr, httpPort).String() + "/"
		err := lab.Wait(t.Context(), waitLimit, func() error { // the server takes a moment
			page, err := p.on.CRI.Exec(t.Context(), p.container, "/bin/busybox", "timeout", "3", "/bin/busybox", "wget", "-qO-", url)
			if err == nil && strings.TrimSpace(page) != to.Name {
				err = fmt.Errorf("page is %q", page)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s on %s: %s of %s on %s: %v", p.Name, p.on.Name, url, to.Name, to.on.Name, err)
		}
		if _, err := p.on.CRI.Exec(t.Context(), p.container, "/bin/busybox", "ping", "-c1", "-W3", addr.String()); err != nil {
			t.Errorf("%s on %s: ping %s of %s on %s: %v", p.Name, p.on.Name, addr, to.Name, to.on.Name, err)
		}
	}
}

// get fetches a page from a node's network namespace.
func (n *Node) get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = n.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(text)), err
}

// wantPage returns nil if the node gets this page from a port of an address.
func (n *Node) wantPage(ctx context.Context, addr netip.Addr, port uint16, want string) error {
	url := "http://" + netip.AddrPortFrom(addr, port).String() + "/"
	page, err := n.get(ctx, url)
	if err != nil {
		return fmt.Errorf("from %s: %w", n.Name, err)
	}
	if page != want {
		return fmt.Errorf("from %s: %s is %q, want %q", n.Name, url, page, want)
	}
	return nil
}
