package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// closeTimeout bounds taking down all nodes.
const closeTimeout = time.Minute

// node is a box in which a real kubelet, containerd and edgewayd run with their default paths.
type node struct {
	*lab.Box
	install  installation
	images   []string // archives of container images
	edgewayd string   // path of the daemon's executable
}

// installation is the way in which edgewayd is installed on the nodes.
type installation string

const (
	byPackage   installation = "package"   // a program of the node, installed like the deb and rpm packages do
	byDaemonSet installation = "daemonset" // pods, installed like kubectl apply -k deploy/kubernetes does
)

// newNode writes the disk of a node that was never switched on.
func newNode(l *lab.Lab, name, bin string, install installation) (*node, error) {
	n := &node{Box: l.NewBox(name), install: install,
		edgewayd: filepath.Join(bin, "edgewayd"), images: []string{filepath.Join(bin, "busybox.tar")}}
	plugins := []string{"loopback", "portmap"}
	files := map[string]string{
		"etc/containerd/config.toml":         lab.ContainerdConfig(lab.BusyboxImage, "/etc/cni/net.d", "/opt/cni/bin"),
		"etc/kubernetes/kubelet.yaml":        strings.ReplaceAll(kubeletConfig, "CGROUP", string(n.Cgroup)),
		"etc/kubernetes/kube-proxy.yaml":     proxyConfig,
		"etc/kubernetes/manifests/door.yaml": strings.ReplaceAll(staticPod, "CONTAINER", container),
		"etc/resolv.conf":                    "",
	}
	if install == byPackage {
		plugins = append(plugins, "edgeway")
		files["etc/edgeway/edgewayd.yaml"] = "cluster: {kubeconfig: /etc/kubernetes/kubelet.conf}\n"
	} else {
		n.images = append(n.images, filepath.Join(bin, "edgeway.tar"))
	}
	for _, dir := range []string{"var-lib/kubelet", "var-log/pods", "opt/cni/bin", "etc-work",
		"etc/edgeway", "etc/cni/net.d", "etc/containerd", "etc/kubernetes/manifests"} {
		if err := os.MkdirAll(n.file(dir), 0o755); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, plugin := range plugins {
		if err := copyFile(filepath.Join(bin, plugin), n.file("opt/cni/bin/"+plugin)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for path, text := range files {
		if err := os.WriteFile(n.file(path), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return n, nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func (n *node) file(name string) string { return filepath.Join(n.Dir, name) }

// Start boots the node, then starts its programs.
func (n *node) Start(ctx context.Context) error {
	if err := n.Cgroup.Make(); err != nil {
		return err
	}
	if err := n.Boot(ctx, lab.KubeletScript); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	second := n.startEdgewayd
	if n.install == byDaemonSet {
		second = n.startProxy // a pod reaches the API server through a Service
	}
	if err := second(ctx); err != nil {
		return err
	}
	return n.startKubelet(ctx)
}

func (n *node) startContainerd(ctx context.Context) error {
	err := n.StartProgram(ctx, []string{"containerd"}, func() error {
		_, err := n.RunInside(ctx, "ctr", "version")
		return err
	})
	if err != nil {
		return err
	}
	known, err := n.RunInside(ctx, "ctr", "-n", "k8s.io", "images", "list", "-q")
	if err != nil || strings.Contains(known, lab.BusyboxImage) {
		return err
	}
	for _, archive := range n.images {
		if _, err := n.RunInside(ctx, "ctr", "-n", "k8s.io", "images", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) startProxy(ctx context.Context) error {
	return n.StartProgram(ctx, []string{kube.Program("kube-proxy"), "--config=/etc/kubernetes/kube-proxy.yaml"}, func() error { return nil })
}

// startEdgewayd starts the daemon and waits until it answers.
func (n *node) startEdgewayd(ctx context.Context) error {
	return n.StartProgram(ctx, []string{n.edgewayd, "run"}, func() error {
		_, err := n.status(ctx)
		return err
	})
}

func (n *node) startKubelet(ctx context.Context) error {
	return n.StartProgram(ctx, []string{kube.Program("kubelet"), "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		fmt.Sprintf("--node-ip=%s,%s", n.Addr(netip.IPv4Unspecified()), n.Addr(netip.IPv6Unspecified())), "--node-labels=" + nodeLabel, "--v=2"},
		func() error { return nil })
}

func (n *node) status(ctx context.Context) (api.Status, error) {
	var status api.Status
	out, err := n.RunInside(ctx, n.edgewayd, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	return status, err
}

// PowerOn boots the node from its disk: new namespaces, a new boot ID, no link of a pod.
func (n *node) PowerOn(ctx context.Context) error {
	if err := n.Node.Reboot(ctx); err != nil {
		return err
	}
	return n.Start(ctx)
}

// machine returns the network namespace of the pod that has the address.
func (n *node) machine(ctx context.Context, addr netip.Addr) (*lab.Machine, error) {
	paths, err := filepath.Glob(n.InsidePath("/run/netns/*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		m := &lab.Machine{Space: &lab.Space{Path: path}, Name: addr.String(), Dir: n.Dir, Addrs: []netip.Addr{addr}}
		if out, err := m.Run(ctx, "ip", "-o", "addr", "show", "to", addr.String()); err == nil && out != "" {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%s: no pod has %s", n.Name, addr)
}

// killSandbox kills the pause process of the pod that has the address.
func (n *node) killSandbox(ctx context.Context, addr netip.Addr) error {
	m, err := n.machine(ctx, addr)
	if err != nil {
		return err
	}
	return n.kill(m, "sleep")
}

// kill kills the process in a pod's network namespace whose command line contains a word.
func (n *node) kill(m *lab.Machine, word string) error {
	var want unix.Stat_t
	if err := unix.Stat(m.Path, &want); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	for _, pid := range n.Cgroup.PIDs() {
		var ns unix.Stat_t
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(line), word) && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &ns) == nil && ns.Ino == want.Ino {
			return unix.Kill(pid, unix.SIGKILL)
		}
	}
	return fmt.Errorf("%s: no container with %q in namespace %s", n.Name, word, m.Name)
}
