package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/cri"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	startTimeout = 60 * time.Second // a program on a busy machine
	stopTimeout  = 20 * time.Second
)

// node is a machine with namespaces of its own for network, mounts and host name, in which a real
// kubelet, containerd and edgewayd run with their default paths. Of the process IDs and the cgroup
// hierarchies there is one set for all.
type node struct {
	*lab.Node
	cgroup   cri.Cgroup
	install  installation
	images   []string // archives
	edgewayd string   // path of the daemon's executable

	holder *kube.Process            // keeps the namespaces
	runs   map[string]*kube.Process // by name
}

// installation is how edgewayd comes onto the nodes.
type installation string

const (
	byPackage   installation = "package"   // a program of the node, as its packages install it
	byDaemonSet installation = "daemonset" // pods, as kubectl apply -k deploy/kubernetes installs them
)

// newNode writes what is on the node's disk when it is first switched on.
func newNode(l *lab.Lab, name, bin string, install installation) (*node, error) {
	n := &node{Node: l.Node(name), cgroup: cri.NewCgroup(l.Prefix, name, os.Getpid()), install: install, runs: map[string]*kube.Process{},
		edgewayd: filepath.Join(bin, "edgewayd"), images: []string{filepath.Join(bin, "busybox.tar")}}
	plugins := []string{"loopback", "portmap"}
	files := map[string]string{
		"etc/containerd/config.toml":         containerdConfig,
		"etc/kubernetes/kubelet.yaml":        strings.ReplaceAll(kubeletConfig, "CGROUP", string(n.cgroup)),
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

// path of a file of the running node, as this process finds it.
func (n *node) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", n.holder.PID(), name) }

// Boot switches the node on: namespaces, then its programs.
func (n *node) Boot(ctx context.Context) error {
	if err := n.mount(ctx); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	second := n.startEdgewayd
	if n.install == byDaemonSet {
		second = n.startProxy // a pod finds the API server by a Service
	}
	if err := second(ctx); err != nil {
		return err
	}
	return n.startKubelet(ctx)
}

// mount makes the cgroup and the namespaces.
func (n *node) mount(ctx context.Context) error {
	const ready = "mounted"
	if err := n.cgroup.Make(); err != nil {
		return err
	}
	script := strings.NewReplacer("DIR", n.Dir, "NAME", n.Name, "READY", ready).Replace(bootScript)
	log := n.file("mounts.log")
	if err := os.RemoveAll(log); err != nil { // of an earlier boot
		return err
	}
	var err error
	n.holder, err = kube.Spawn(log, "nsenter", "--net="+n.Path(), "--", "unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script)
	if err != nil {
		return err
	}
	return lab.Wait(ctx, startTimeout, func() error {
		if err := n.holder.Err(); err != nil {
			return err
		}
		if text, err := os.ReadFile(log); err != nil || strings.TrimSpace(string(text)) != ready {
			return fmt.Errorf("%s: mounts: %s", n.Name, text)
		}
		return nil
	})
}

func (n *node) startContainerd(ctx context.Context) error {
	err := n.start(ctx, []string{"containerd"}, func() error {
		_, err := n.run(ctx, "ctr", "version")
		return err
	})
	if err != nil {
		return err
	}
	known, err := n.run(ctx, "ctr", "-n", "k8s.io", "images", "list", "-q")
	if err != nil || strings.Contains(known, cri.Image) {
		return err
	}
	for _, archive := range n.images {
		if _, err := n.run(ctx, "ctr", "-n", "k8s.io", "images", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) startProxy(ctx context.Context) error {
	return n.start(ctx, []string{kube.Program("kube-proxy"), "--config=/etc/kubernetes/kube-proxy.yaml"}, func() error { return nil })
}

// startEdgewayd starts the daemon. It is not waited for: the kubelet is not ready before it.
func (n *node) startEdgewayd(ctx context.Context) error {
	return n.start(ctx, []string{n.edgewayd, "run"}, func() error {
		_, err := n.status(ctx)
		return err
	})
}

func (n *node) startKubelet(ctx context.Context) error {
	return n.start(ctx, []string{kube.Program("kubelet"), "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		fmt.Sprintf("--node-ip=%s,%s", n.Addr(netip.IPv4Unspecified()), n.Addr(netip.IPv6Unspecified())), "--node-labels=" + nodeLabel, "--v=2"},
		func() error { return nil })
}

// start starts a program of the node and waits until it serves.
func (n *node) start(ctx context.Context, argv []string, serves func() error) error {
	name := filepath.Base(argv[0])
	p, err := kube.Spawn(n.file(name+".log"), n.inside(argv)...)
	if err != nil {
		return err
	}
	n.runs[name] = p
	return lab.Wait(ctx, startTimeout, func() error {
		if err := p.Err(); err != nil {
			return err
		}
		return serves()
	})
}

// inside is argv in the node's namespaces. nsenter becomes the program: same process ID.
func (n *node) inside(argv []string) []string {
	ns := fmt.Sprintf("/proc/%d/ns/", n.holder.PID())
	return append([]string{"nsenter", "--net=" + n.Path(), "--uts=" + ns + "uts", "--mount=" + ns + "mnt", "--"}, argv...)
}

// run runs a command on the node and returns what it prints.
func (n *node) run(ctx context.Context, argv ...string) (string, error) {
	inside := n.inside(argv)
	cmd := exec.CommandContext(ctx, inside[0], inside[1:]...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

// status asks the daemon, as an operator on the node does.
func (n *node) status(ctx context.Context) (api.Status, error) {
	var status api.Status
	out, err := n.run(ctx, n.edgewayd, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	return status, err
}

// PowerOff ends every program of the node and its pods as a power cut does. It does so however few
// of them run.
func (n *node) PowerOff(ctx context.Context) error {
	var errs []error
	for _, name := range []string{"kubelet", "containerd", "kube-proxy", "edgewayd"} { // first those that start others
		errs = append(errs, n.runs[name].Kill(stopTimeout))
	}
	if n.holder != nil {
		errs = append(errs, cri.KillShims(ctx, n.Machine, n.holder.PID()))
	}
	errs = append(errs, n.cgroup.Remove(ctx), n.holder.Kill(stopTimeout))
	return errors.Join(errs...)
}

// PowerOn boots the node with what is on its disk: new namespaces, a new boot ID, no link of a pod.
func (n *node) PowerOn(ctx context.Context) error {
	if err := n.Node.Reboot(ctx); err != nil {
		return err
	}
	return n.Boot(ctx)
}

// machine is a pod's network namespace, found by an address that it has.
func (n *node) machine(ctx context.Context, addr netip.Addr) (*lab.Machine, error) {
	paths, err := filepath.Glob(n.path("/run/netns/*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		// A machine's namespace is named below /run/netns; this one is in another mount namespace.
		m := &lab.Machine{Name: addr.String(), Netns: "../.." + path, Dir: n.Dir, Addrs: []netip.Addr{addr}}
		if out, err := m.Run(ctx, "ip", "-o", "addr", "show", "to", addr.String()); err == nil && out != "" {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%s: no pod has %s", n.Name, addr)
}

// killSandbox kills the pause process of the pod that has an address.
func (n *node) killSandbox(ctx context.Context, addr netip.Addr) error {
	m, err := n.machine(ctx, addr)
	if err != nil {
		return err
	}
	return n.kill(m, "sleep")
}

// kill kills the process of a pod's container that has a word in its command line. The pod is told
// by the network namespace that it is in.
func (n *node) kill(m *lab.Machine, word string) error {
	var want unix.Stat_t
	if err := unix.Stat(m.Path(), &want); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	for _, pid := range n.cgroup.PIDs() {
		var ns unix.Stat_t
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(line), word) && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &ns) == nil && ns.Ino == want.Ino {
			return unix.Kill(pid, unix.SIGKILL)
		}
	}
	return fmt.Errorf("%s: no container with %q in namespace %s", n.Name, word, m.Name)
}
