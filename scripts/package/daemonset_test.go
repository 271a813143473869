package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// TestAPIServerDaemonSet runs the pod of the manifests as written, with the rights of its service account,
// under a real containerd, API server and switch.
func TestAPIServerDaemonSet(t *testing.T) {
	needAsked(t, "containerd", "ctr", "runc", "nsenter", "unshare", "ip", "bird", "birdc")
	l, calls := newLab(t)
	server := kube.Start(t, kube.Options{Space: l.Machine("host").Space, Addr: l.Machine("host").Addrs[0]})
	applyCluster(t, server)

	dir := t.TempDir()
	k := startRuntime(t, l.Node("packaged"), dir)
	writePause(t, filepath.Join(dir, "pause.tar"))
	k.load(t, filepath.Join(dir, "pause.tar"), pauseImage)
	bin := loadVersion(t, k, "v0.0.1")
	runtimeCalls(t, k, calls, bin)

	spec := overlay(t, "canary").Spec.Template.Spec // the manifests, and the init container that keeps the canary
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			containers[i].Image = "localhost/edgeway"
		}
	}
	g := serviceAccount(t, server, dir)
	k.runPod(t, spec)
	if said := k.prepare(t, spec, g); !strings.Contains(said, "installed /opt/cni/bin/edgeway") {
		t.Errorf("the init container says:\n%s", said)
	}
	p := &podStory{k: k, lab: l, spec: spec, given: g}
	p.begins(t, "v0.0.1")

	var web *lab.Pod
	t.Run("pods start and are reached", func(t *testing.T) { web = p.serves(t, "web") })
	if web == nil {
		t.FailNow()
	}
	t.Run("the container sees what it must", func(t *testing.T) {
		if out, err := k.exec(t.Context(), p.id, "/edgewayd", "ipam", "check"); err != nil {
			t.Errorf("ipam check: %v: %s", err, out)
		}
		if out, err := k.exec(t.Context(), p.id, "/edgewayd", "uninstall"); err == nil || !strings.Contains(err.Error(), "edgewayd runs") {
			t.Errorf("uninstall beside the daemon: %v: %s; want an error that says so", err, out)
		}
		out, err := server.Kubectl("get", "bgppeer", "switch", "-o", "jsonpath={.status.speakers[0].node}")
		if err != nil || out != "packaged" {
			t.Errorf("status of the BGPPeer names speaker %q, %v; want packaged", out, err)
		}
	})
	t.Run("a new version", func(t *testing.T) {
		loadVersion(t, k, "v0.0.2")
		p.unnoticed(t, web, func() {
			p.ends(t)
			if said := k.prepare(t, spec, g); !strings.Contains(said, "replaced  /opt/cni/bin/edgeway") {
				t.Errorf("the init container says:\n%s", said)
			}
			p.begins(t, "v0.0.2")
		})
	})
	t.Run("a new container without the API server", func(t *testing.T) {
		p.unnoticed(t, web, func() {
			if err := server.StopAPIServer(); err != nil {
				t.Fatal(err)
			}
			p.ends(t)
			alone := p.serves(t, "alone") // by the plugin, without the daemon
			p.begins(t, "v0.0.2")
			if err := alone.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	// After the variables of the pod, KubeEdge's edgecore adds its own, which are empty: the runtime takes the last.
	p.given.env = append(p.given.env, "KUBERNETES_SERVICE_HOST=", "KUBERNETES_SERVICE_PORT=")
	status := func(args ...string) string {
		out, err := p.k.exec(t.Context(), p.id, append([]string{"/edgewayd", "status"}, args...)...)
		if err != nil {
			return err.Error()
		}
		return out
	}
	t.Run("a new container that is told of no API server, as in KubeEdge", func(t *testing.T) {
		p.unnoticed(t, web, func() {
			p.ends(t)
			p.begins(t, "v0.0.2")
		})
		if out := status(); !strings.Contains(out, "set cluster.kubeconfig to a file") {
			t.Error(out)
		}
	})
	t.Run("a new container with the kubeconfig for KubeEdge", func(t *testing.T) {
		if err := server.StartAPIServer(); err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(read(t, "../../docs/kubernetes.md"), "cluster: {kubeconfig: kubeconfig}\n```\n```yaml\n")
		text, _, _ = strings.Cut(text, "```")
		err := errors.Join(os.WriteFile(filepath.Join(dir, "config/kubeconfig"), []byte(strings.ReplaceAll(text, "https://192.0.2.10:6443", server.URL())), 0o644),
			os.WriteFile(filepath.Join(dir, "config/edgewayd.yaml"), []byte("cluster: {kubeconfig: kubeconfig}\n"), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		p.unnoticed(t, web, func() {
			p.ends(t)
			p.begins(t, "v0.0.2")
		})
		err = lab.Wait(t.Context(), waitLimit, func() error {
			var got api.Status
			if err := json.Unmarshal([]byte(status("-o", "json")), &got); err != nil {
				return err
			}
			if got.World.FromDisk || !strings.Contains(got.World.Source, server.URL()) {
				return fmt.Errorf("cluster state: %+v; want that of %s. Problems: %+v", got.World, server.URL(), got.Problems)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("uninstall", func(t *testing.T) { p.uninstalls(t, web) })
}

// podStory is the daemon's container on its node.
type podStory struct {
	k     *kubelet
	lab   *lab.Lab
	spec  corev1.PodSpec
	given given
	id    string
}

// begins starts the container, and waits for its probes and the session.
func (p *podStory) begins(t *testing.T, version string) {
	t.Helper()
	c := p.spec.Containers[0]
	p.id = p.k.start(t, p.spec, c, p.given)
	err := lab.Wait(t.Context(), bootTimeout, func() error {
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if err := p.k.probe(t.Context(), *probe.HTTPGet); err != nil {
				return err
			}
		}
		out, err := p.k.exec(t.Context(), p.id, "/edgewayd", "status", "-o", "json")
		if err != nil {
			return err
		}
		var status api.Status
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return err
		}
		if status.Version != version || len(status.Sessions) != 1 || status.Sessions[0].State != "Established" {
			return fmt.Errorf("version %s, sessions %+v, problems %+v; want %s and a session that is Established", status.Version, status.Sessions, status.Problems, version)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, p.k.said(p.id))
	}
}

// ends stops the container as the kubelet does. The network configuration stays.
func (p *podStory) ends(t *testing.T) {
	t.Helper()
	p.k.stop(t, p.id, time.Duration(*p.spec.TerminationGracePeriodSeconds)*time.Second)
	if _, err := os.Stat(p.k.path("/etc/cni/net.d/10-edgeway.conflist")); err != nil {
		t.Errorf("the network configuration went with the container: %v", err)
	}
}

// unnoticed does something that neither traffic nor the switch may notice.
func (p *podStory) unnoticed(t *testing.T, web *lab.Pod, do func()) {
	t.Helper()
	canary, links := p.canary(t)
	flows := map[string]*lab.Flow{}
	for name, addr := range map[string]netip.Addr{"web": web.Addrs[0], "the canary": canary} {
		flow, err := p.lab.Machine("host").StartFlow(addr, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		flows[name] = flow
	}
	monitor, err := p.lab.Machine("switch").Monitor(t.Context(), "bird")
	if err != nil {
		t.Fatal(err)
	}
	do()
	for name, flow := range flows {
		lost := flow.Stop()
		t.Logf("host to %s: %s", name, lost)
		if lost.Lost > 0 {
			t.Errorf("host to %s: %s", name, lost)
		}
	}
	if addr, now := p.canary(t); addr != canary || now != links {
		t.Errorf("canary %v, before %v; links (-before +after):\n%s", addr, canary, cmp.Diff(links, now))
	}
	if events, err := monitor.Stop(t.Context()); err != nil || len(events) > 0 {
		t.Errorf("routes of the switch changed: %v, %v", events, err)
	}
}

// canary returns the first address of the node's canary, and the node's links to pods with their indexes.
func (p *podStory) canary(t *testing.T) (addr netip.Addr, links string) {
	t.Helper()
	out, err := p.k.exec(t.Context(), p.id, "/edgewayd", "paths", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var said api.Paths
	if err := json.Unmarshal([]byte(out), &said); err != nil || len(said.Canary) == 0 || !said.CanaryKept {
		t.Fatalf("canary %v, kept: %v, %v", said.Canary, said.CanaryKept, err)
	}
	if links, err = p.k.Run(t.Context(), "ip", "-o", "link", "show", "type", "veth"); err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddr(said.Canary[0]), links
}

// serves starts a pod. The host behind the switch must reach it.
func (p *podStory) serves(t *testing.T, name string) *lab.Pod {
	t.Helper()
	pod, err := p.lab.Node("packaged").AddPod(t.Context(), "default", name)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.k.said(p.id))
	}
	for _, addr := range pod.Addrs {
		err := lab.Wait(t.Context(), waitLimit, func() error {
			_, err := p.lab.Machine("host").Ping(t.Context(), addr)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return pod
}

// uninstalls runs the container of the overlay that removes edgeway from the nodes.
func (p *podStory) uninstalls(t *testing.T, web *lab.Pod) {
	p.ends(t)
	spec := overlay(t, "uninstall").Spec.Template.Spec
	c := spec.Containers[0]
	c.Image = "localhost/edgeway"
	c.Args = []string{"uninstall", "--purge"}
	g := given{volumes: map[string]string{"config": t.TempDir(), "tmp": t.TempDir()}, account: t.TempDir()}
	id := p.k.start(t, spec, c, g)
	if code := p.k.ended(t, id); code == 0 || !strings.Contains(p.k.said(id), "default/web") {
		t.Errorf("while a pod runs, uninstall ends with status %d: %s", code, p.k.said(id))
	}
	if err := web.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	id = p.k.start(t, spec, c, g)
	if code := p.k.ended(t, id); code != 0 {
		t.Errorf("uninstall: exit status %d: %s", code, p.k.said(id))
	}
	t.Logf("uninstall --purge:\n%s", p.k.said(id))
	for _, pattern := range []string{"/opt/cni/bin/edgeway", "/etc/cni/net.d/*", "/var/lib/edgeway/*", "/run/edgeway/*"} {
		if left, _ := filepath.Glob(p.k.path(pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	for _, argv := range [][]string{{"ip", "route", "show", "proto", "119"}, {"ip", "-6", "route", "show", "proto", "119"}, {"ip", "route", "show", "proto", "101"},
		{"ip", "-o", "link", "show", "type", "veth"}, {"nft", "list", "ruleset"}} {
		out, err := p.k.Run(t.Context(), argv[0], argv[1:]...)
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, ": eth0@") {
				t.Errorf("%s: left: %s", strings.Join(argv, " "), line)
			}
		}
	}
}

// loadVersion builds a version's image and imports it, and returns the directory of its programs.
func loadVersion(t *testing.T, k *kubelet, version string) (bin string) {
	t.Helper()
	bin = buildPrograms(t, version)
	archive := filepath.Join(t.TempDir(), "edgeway.tar")
	if err := (programs{name: "edgeway", version: version, arch: runtime.GOARCH, dir: bin}).write("../../LICENSE", archive); err != nil {
		t.Fatal(err)
	}
	k.load(t, archive, "localhost/edgeway:"+version)
	return bin
}

// writePause writes the image of a program that waits. Its process keeps a pod's namespaces.
func writePause(t *testing.T, archive string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\nimport \"time\"\nfunc main() { for { time.Sleep(time.Hour) } }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"edgewayd", "edgeway"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := (programs{name: "edgeway", version: "pause", arch: runtime.GOARCH, dir: dir}).write("../../LICENSE", archive); err != nil {
		t.Fatal(err)
	}
}

// runtimeCalls has the laboratory, as the node's runtime, call the plugin that the init container
// installs, with the node's files before it.
func runtimeCalls(t *testing.T, k *kubelet, calls, built string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\nif [ /proc/self/ns/net -ef %s ]; then\n\texec nsenter --mount=/proc/%d/ns/mnt /opt/cni/bin/edgeway\nfi\nexec %s\n",
		k.Path, k.pid, filepath.Join(built, "edgeway"))
	if err := os.WriteFile(filepath.Join(calls, "edgeway"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Dir(k.Conflist())
	if err := errors.Join(os.Remove(conf), os.Symlink(k.path("/etc/cni/net.d"), conf)); err != nil {
		t.Fatal(err)
	}
}

// applyCluster applies an operator's manifests, and the nodes that a kubelet and a controller
// manager would have made.
func applyCluster(t *testing.T, server *kube.ControlPlane) {
	t.Helper()
	if _, err := server.Kubectl("apply", "--server-side", "-k", "../../deploy/kubernetes"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"); err != nil {
		t.Fatal(err)
	}
	err := lab.Wait(t.Context(), waitLimit, func() error { return server.ApplyText(manifests) })
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"packaged", "other"} {
		if _, err := server.Kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", addresses(name)); err != nil {
			t.Fatal(err)
		}
	}
}

func addresses(node string) string {
	last := map[string]string{"packaged": "11", "other": "12"}[node]
	return fmt.Sprintf(`{"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.%s"}, {"type": "InternalIP", "address": "fd00:10::%s"}]}}`, last, last)
}

// serviceAccount makes the files that the kubelet mounts into the pod.
func serviceAccount(t *testing.T, server *kube.ControlPlane, dir string) given {
	t.Helper()
	token, err := server.Kubectl("create", "token", "-n", "kube-system", "edgeway")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := server.Kubectl("config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}")
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	files := map[string]string{
		"account/token": strings.TrimSpace(token), "account/ca.crt": decode64(t, ca), "account/namespace": "kube-system",
		"config/edgewayd.yaml": read(t, "../../deploy/kubernetes/edgewayd.yaml"), "tmp/.keep": "",
	}
	for name, text := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o755), os.WriteFile(at(name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	return given{
		volumes: map[string]string{"config": at("config"), "tmp": at("tmp")}, account: at("account"),
		env: []string{"KUBERNETES_SERVICE_HOST=" + u.Hostname(), "KUBERNETES_SERVICE_PORT=" + u.Port()},
	}
}
