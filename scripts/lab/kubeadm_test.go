package lab_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// systemctlScript is the part of systemd that kubeadm uses: the kubelet's unit as kubeadm's package writes it. Settings
// for a laboratory come from a drop-in directory, so kubeadm's own files stay as on a real node.
const systemctlScript = `#!/bin/sh
case "$1 $2" in
"stop kubelet" | "restart kubelet") [ ! -e /run/kubelet.pid ] || kill "$(cat /run/kubelet.pid)" 2>/dev/null ;;
esac
case "$1 $2" in
"start kubelet" | "restart kubelet")
	. /var/lib/kubelet/kubeadm-flags.env
	setsid kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
		--config=/var/lib/kubelet/config.yaml --config-dir=/etc/kubelet.conf.d $KUBELET_KUBEADM_ARGS \
		</dev/null >>DIR/kubelet.log 2>&1 &
	echo $! >/run/kubelet.pid
	;;
"is-active kubelet") echo active ;;
esac
`

// kubeletDropIn stops the kubelet from changing settings outside of its namespaces. The nodes share the machine's disk.
const kubeletDropIn = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: CGROUP
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", imagefs.available: "0%", memory.available: "0%"}
`

// proxyCommands let kube-proxy leave alone the size of the table of connections, which belongs to the whole machine.
const proxyCommands = `kubectl -n kube-system get configmap kube-proxy -o yaml | sed 's/maxPerCore: null/maxPerCore: 0/' | kubectl replace -f -
kubectl -n kube-system delete pods -l k8s-app=kube-proxy --wait=false
`

// kubeadmIgnores are the checks of kubeadm that a laboratory fails: it has no kernel configuration to read and may
// have swap or one processor.
const kubeadmIgnores = " --ignore-preflight-errors=SystemVerification,Swap,NumCPU"

// TestGettingStartedKubeadm types the blocks of "Kubernetes with kubeadm", "The switch" and "A pod that the LAN
// reaches" of docs/getting-started.md in their order, on three machines that have what Kubernetes' packages install,
// with FRR as the switch. It takes minutes, so it runs by hand: make e2e-kubeadm.
func TestGettingStartedKubeadm(t *testing.T) {
	if os.Getenv("EDGEWAY_KUBEADM") == "" {
		t.Skip("takes minutes; run make e2e-kubeadm")
	}
	lab.Need(t, append(lab.Tools(lab.FRR), "containerd", "ctr", "runc", "busybox", "curl", "iptables")...)
	needPrograms(t)
	if missing := kube.Missing("etcd-3.6", "kubeadm", "kubelet", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"); len(missing) > 0 {
		t.Fatalf("not in %s: %v; run scripts/kube/build.sh", kube.Dir(), missing)
	}
	ctx := t.Context()
	text, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := func(chapter, language string) (all []string) {
		_, part, _ := strings.Cut(string(text), "\n## "+chapter+"\n")
		part, _, _ = strings.Cut(part, "\n## ")
		for _, m := range regexp.MustCompile("(?s)\n```("+language+")\n(.*?)```\n").FindAllStringSubmatch(part, -1) {
			all = append(all, m[2])
		}
		return all
	}
	install, theSwitch, thePod := blocks("Kubernetes with kubeadm", "bash"), blocks("The switch", "bash|sh"), blocks("A pod that the LAN reaches", "bash")
	peer, web := blocks("The values", "yaml"), blocks("A pod that the LAN reaches", "yaml")
	if len(install) != 4 || len(theSwitch) != 2 || len(thePod) != 2 || len(peer) != 1 || len(web) != 1 {
		t.Fatalf("the chapters have %d, %d, %d, %d, %d blocks: teach this test where the new ones are typed",
			len(install), len(theSwitch), len(thePod), len(peer), len(web))
	}

	programs, err := filepath.Abs(bin())
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Options{Bin: programs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	// The source, in which the reader types, and the images: there is no registry.
	source := filepath.Join(l.Dir, "source")
	files := map[string]string{"peer.yaml": peer[0], "web.yaml": strings.Replace(web[0], "image: nginx\n",
		"image: "+lab.BusyboxImage+"\n    command: [/bin/busybox, httpd, -f, -p, \"80\", -h, /www]\n", 1)}
	for name, content := range files {
		write(t, filepath.Join(source, name), content)
	}
	if err := os.CopyFS(filepath.Join(source, "deploy"), os.DirFS("../../deploy")); err != nil {
		t.Fatal(err)
	}
	images := kubeadmImages(t, programs, source)

	topology, err := lab.ParseTopology([]byte(theLAN))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(ctx, topology); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]*lab.Box{}
	for _, spec := range topology.Nodes {
		nodes[spec.Name] = kubeadmNode(t, l, spec.Name, programs, install[0], images)
	}
	first := nodes["node-1"]
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx := context.WithoutCancel(ctx)
		for _, words := range []string{"get pods -A -o wide", "describe nodes", "-n kube-system logs -l app.kubernetes.io/name=edgewayd --tail=30"} {
			out, err := first.RunInside(ctx, "sh", "-c", "kubectl --kubeconfig=/etc/kubernetes/admin.conf "+words)
			t.Log(words, out, err)
		}
		for _, b := range nodes {
			t.Log(b.Name, lab.Tail(filepath.Join(b.Dir, "kubelet.log"), 15), lab.Tail(filepath.Join(b.Dir, "containerd.log"), 15))
		}
	})
	typed := func(b *lab.Box, commands string) string {
		t.Helper()
		t.Logf("%s# %s", b.Name, strings.TrimSpace(commands))
		out, err := b.RunInside(ctx, "sh", "-ec", "exec 2>&1\ncd "+source+"\nexport KUBECONFIG=/etc/kubernetes/admin.conf\n"+commands)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Log(out)
		return out
	}

	printed := typed(first, strings.Replace(install[1], "kubeadm init", "kubeadm init"+kubeadmIgnores, 1))
	join := regexp.MustCompile(`kubeadm join 10\.0\.10\.11:6443 --token \S+ \\?\s*--discovery-token-ca-cert-hash sha256:\w+`).FindString(printed)
	if join == "" {
		t.Fatal("kubeadm init printed no such line as the page has:", install[2])
	}
	typed(first, proxyCommands)
	for _, name := range []string{"node-2", "node-3"} {
		typed(nodes[name], join+kubeadmIgnores)
	}
	load, rest, ok := strings.Cut(install[3], "kubectl label")
	if !ok {
		t.Fatalf("no label in\n%s", install[3])
	}
	for _, b := range nodes {
		typed(b, load)
	}
	waitKubectl(t, first, 3, `(?m)^node-\d `, "get", "nodes")
	typed(first, "kubectl label"+rest)
	waitKubectl(t, first, 3, `(?m)^node-\d +Ready `, "get", "nodes")

	waitKubectl(t, first, 2, `(?m)^coredns\S+ +1/1 +Running`, "-n", "kube-system", "get", "pods")

	_, config, ok := strings.Cut(typed(first, theSwitch[0]), "Problems: none\n")
	if !ok {
		t.Fatal("plan found a problem")
	}
	sw, err := lab.NewSwitch(l.Machine("switch"), lab.SwitchSpec{Flavour: lab.FRR})
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.StartWith(ctx, map[string]string{"bgpd.conf": config, "zebra.conf": "hostname switch\n"}); err != nil {
		t.Fatal(err)
	}
	waitKubectl(t, first, 1, `"node-1".*"node-2"|"node-2".*"node-1"`, "get", "bgppeers", "-o", "wide")
	typed(first, theSwitch[1])
	if err := lab.Wait(ctx, waitLimit, func() error {
		routes, err := l.Machine("switch").Routes(ctx, "proto", sw.Proto())
		if err == nil && len(routes) != len(nodes) {
			err = fmt.Errorf("the switch has the routes %v", routes)
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	typed(first, thePod[0])
	addr, err := first.RunInside(ctx, "kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "pod", "web", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		t.Fatal(err)
	}
	commands := strings.NewReplacer("http://10.10.2.1/", "http://"+addr+"/cgi-bin/who", "10.10.2.1", addr).Replace(thePod[1])
	out, err := l.Machine("pc").Run(ctx, "sh", "-ec", commands)
	if err != nil || !regexp.MustCompile(`web \[?(::ffff:)?10\.0\.10\.99`).MatchString(out) {
		t.Errorf("%s%v\n%s", commands, err, out)
	}
	t.Logf("pc# %s%s", commands, out)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// kubeadmNode is a machine with Debian's containerd, which looks for plugins where Debian has them, Kubernetes' packages and
// their images. The page's commands prepare it.
func kubeadmNode(t *testing.T, l *lab.Lab, name, programs, prepare string, images []string) *lab.Box {
	t.Helper()
	ctx := t.Context()
	b := l.NewBox(name)
	t.Cleanup(func() {
		if err := b.PowerOff(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	b.Env = append(os.Environ(), "PATH="+b.Dir+"/bin:"+kube.Dir()+":"+programs+":"+os.Getenv("PATH"))
	write(t, filepath.Join(b.Dir, "bin/systemctl"), strings.ReplaceAll(systemctlScript, "DIR", b.Dir))
	write(t, filepath.Join(b.Dir, "etc/kubelet.conf.d/10-lab.conf"), strings.ReplaceAll(kubeletDropIn, "CGROUP", string(b.Cgroup)))
	write(t, filepath.Join(b.Dir, "etc/containerd/config.toml"), lab.ContainerdConfig(lab.BusyboxImage, "/etc/cni/net.d", "/usr/lib/cni"))
	write(t, filepath.Join(b.Dir, "etc/resolv.conf"), "nameserver 10.0.10.1\n") // CoreDNS does not start without one
	for _, dir := range []string{"var-lib/kubelet", "var-log/pods", "opt/cni/bin", "etc-work", "etc/cni/net.d"} {
		if err := os.MkdirAll(filepath.Join(b.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const plugins = "github.com/containernetworking/plugins/plugins/" // of the package kubernetes-cni
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(b.Dir, "opt/cni/bin")+"/", plugins+"main/loopback", plugins+"meta/portmap")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	if err := b.Cgroup.Make(); err != nil {
		t.Fatal(err)
	}
	if err := b.Boot(ctx, lab.KubeletScript); err != nil {
		t.Fatal(err)
	}
	if _, err := b.RunInside(ctx, "sh", "-ec", prepare); err != nil {
		t.Fatal(err)
	}
	if err := b.StartProgram(ctx, []string{"containerd"}, func() error {
		_, err := b.RunInside(ctx, "ctr", "version")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		if name != "node-1" && regexp.MustCompile("apiserver|controller|scheduler|etcd").MatchString(image) {
			continue
		}
		if _, err := b.RunInside(ctx, "ctr", "-n", "k8s.io", "images", "import", image); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// kubeadmImages makes the images that kubeadm's components run in from the built programs, and edgeway's image as
// `make image` does. It returns the archives of the first.
func kubeadmImages(t *testing.T, programs, source string) []string {
	t.Helper()
	edgeway := filepath.Join(source, "dist/edgeway-VERSION-"+runtime.GOARCH+".tar")
	if err := os.MkdirAll(filepath.Dir(edgeway), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "./scripts/package", "-name", "edgeway", "-version", "lab", "-arch", runtime.GOARCH, "-bin", programs, "-out", edgeway)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	busybox := filepath.Join(source, "dist/busybox.tar")
	if err := lab.WriteBusybox(busybox); err != nil {
		t.Fatal(err)
	}
	list, err := exec.CommandContext(t.Context(), kube.Program("kubeadm"), "config", "images", "list", "--kubernetes-version", kube.Version).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{busybox}
	for _, image := range strings.Fields(string(list)) {
		name, tag, _ := strings.Cut(image, ":")
		program := filepath.Base(name)
		i := lab.Image{Name: name, Tags: []string{tag}, Arch: runtime.GOARCH, Level: gzip.BestSpeed,
			Config: map[string]any{"Entrypoint": []string{"/usr/local/bin/" + program}, "Env": []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}}
		for _, dir := range []string{"dev/", "etc/", "proc/", "run/", "sys/", "tmp/", "var/lib/"} {
			i.Files = append(i.Files, lab.File{Name: dir, Mode: 0o755})
		}
		path := kube.Program(program)
		switch program {
		case "etcd":
			path = kube.Program("etcd-3.6")
		case "coredns":
			path = filepath.Join(kube.Dir(), program)
		case "kube-proxy":
			i.Files = append(i.Files, iptablesFiles(t)...)
		case "pause": // only to satisfy kubeadm: containerd's configuration names the one that it runs
			path, _ = exec.LookPath("busybox")
		}
		body, err := os.ReadFile(path)
		if err != nil {
			t.Logf("no image %s: %v", image, err)
			continue
		}
		i.Files = append(i.Files, lab.File{Name: "usr/local/bin/" + program, Mode: 0o755, Body: body})
		archive, err := i.Archive()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(source, "dist", program+".tar")
		write(t, file, string(archive))
		all = append(all, file)
	}
	return all
}

// iptablesFiles are this machine's iptables, with the libraries that it needs.
func iptablesFiles(t *testing.T) (files []lab.File) {
	t.Helper()
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil {
		t.Fatal(err)
	}
	if files, err = lab.Executables(append(extensions, "/usr/sbin/xtables-nft-multi")...); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			files = append(files, lab.File{Name: "usr/sbin/" + version + verb, Link: "xtables-nft-multi"})
		}
	}
	return files
}

// waitKubectl waits until the output of kubectl has a pattern so many times.
func waitKubectl(t *testing.T, b *lab.Box, count int, pattern string, args ...string) {
	t.Helper()
	if err := lab.Wait(t.Context(), 5*waitLimit, func() error {
		out, err := b.RunInside(t.Context(), append([]string{"kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"}, args...)...)
		if err == nil && len(regexp.MustCompile(pattern).FindAllString(out, -1)) != count {
			err = fmt.Errorf("%v: want %d times %s in\n%s", args, count, pattern, out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
