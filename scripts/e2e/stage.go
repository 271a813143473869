package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// stage holds the machines of the story.
type stage struct {
	lab     *lab.Lab
	bin     string // programs of the nodes
	deploy  string // directory of the cluster's manifests
	from    string // directory of an earlier version; "": none
	install installation
	control *kube.ControlPlane
	switchA *lab.Switch
	vpc     *lab.Machine // machine of the control plane
	nodes   []*node
	images  []string // archives of images that the nodes have beside those of their installation
}

// nodeNames are the names of the topology's nodes.
var nodeNames = []string{"node-1", "node-2", "node-3"}

// missing returns an error that names the tools and programs that this machine lacks.
func missing(bin string) error {
	tools := []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox", "nsenter", "unshare", "ping"}
	if all := lab.Missing(append(tools, lab.Tools(lab.BIRD)...)...); len(all) > 0 {
		return fmt.Errorf("not installed: %s; run scripts/install-test-tools.sh", strings.Join(all, ", "))
	}
	if all := kube.Missing("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy"); len(all) > 0 {
		return fmt.Errorf("not in %s: %s; run scripts/kube/build.sh", kube.Dir(), strings.Join(all, ", "))
	}
	for _, name := range []string{"edgeway", "edgewayd"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("%w; run make build", err)
		}
	}
	return nil
}

// collect copies the nodes' programs, so that a build does not change them during the run. It also builds
// the reference plugins that run beside ours.
func collect(ctx context.Context, bin, into string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"edgeway", "edgewayd"} {
		if err := copyFile(filepath.Join(bin, name), filepath.Join(into, name)); err != nil {
			return err
		}
	}
	const plugins = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", into+"/", plugins+"main/loopback", plugins+"meta/portmap")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	if err := pack(ctx, "e2e", into, filepath.Join(into, "edgeway.tar")); err != nil {
		return err
	}
	return lab.WriteBusybox(filepath.Join(into, "busybox.tar"))
}

// pack writes the image of the programs in the directory bin, with the tags version and latest.
func pack(ctx context.Context, version, bin, to string) error {
	cmd := exec.CommandContext(ctx, "go", "run", "./scripts/package", "-version", version, "-arch", runtime.GOARCH, "-bin", bin, "-out", to)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

// build makes machines, switch and control plane. The nodes stay switched off.
func (s *stage) build(ctx context.Context, bin string) error {
	s.bin = filepath.Join(s.lab.Dir, "bin")
	if err := collect(ctx, bin, s.bin); err != nil {
		return err
	}
	if s.from != "" { // nodes import it after the other image: it gets the tag latest
		archive := filepath.Join(s.bin, "earlier.tar")
		if err := pack(ctx, "earlier", filepath.Join(s.from, "bin"), archive); err != nil {
			return err
		}
		s.images = append(s.images, archive)
	}
	spec, err := lab.ParseTopology([]byte(topology))
	if err != nil {
		return err
	}
	if err := s.lab.Build(ctx, spec); err != nil {
		return err
	}
	s.switchA, s.vpc = s.lab.Switch("switch"), s.lab.Machine("control-plane")
	for _, name := range nodeNames {
		n, err := newNode(s.lab, name, s.bin, s.install)
		if err != nil {
			return err
		}
		n.images = append(n.images, s.images...)
		s.nodes = append(s.nodes, n)
	}
	s.control, err = kube.New(ctx, s.vpc.Dir, kube.Options{
		Space: s.vpc.Space, Addr: netip.MustParseAddr(controlPlaneAddr),
		PodCIDRs: []string{"10.244.0.0/16", "fd00:244::/48"}, Programs: []string{"kube-controller-manager", "kube-scheduler"},
		Args: map[string][]string{"kube-apiserver": {"--enable-admission-plugins=NodeRestriction"}}, // as installers do
	})
	return err
}

// admit installs the cluster's part of edgewayd and gives the nodes their credentials. An edgewayd from a
// package uses the kubelet's credentials.
func (s *stage) admit() error {
	deploy, parts := s.deploy, []string{"."}
	if s.from != "" {
		deploy = filepath.Join(s.from, "deploy/kubernetes")
	}
	if s.install == byPackage {
		if err := s.control.Apply(filepath.Join(s.deploy, "crds")); err != nil {
			return err
		}
		parts = []string{"rbac", "rbac/kubelet"}
	}
	for _, part := range parts {
		if _, err := s.control.Kubectl("apply", "-k", filepath.Join(deploy, part)); err != nil {
			return err
		}
	}
	proxy, err := s.control.Kubeconfig("system:kube-proxy")
	if err != nil {
		return err
	}
	for _, n := range s.nodes {
		kubelet, err := s.control.Kubeconfig("system:node:"+n.Name, "system:nodes")
		if err != nil {
			return err
		}
		for from, to := range map[string]string{kubelet: "etc/kubernetes/kubelet.conf", proxy: "etc/kubernetes/kube-proxy.conf"} {
			if err := copyFile(from, n.file(to)); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
	}
	return nil
}

func (s *stage) each(ctx context.Context, do func(*node, context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range s.nodes {
		group.Go(func() error { return do(n, ctx) })
	}
	return group.Wait()
}

func (s *stage) node(name string) *node {
	for _, n := range s.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// close takes everything down, even if the stage was only partly built. The error names what is left.
func (s *stage) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := []error{s.each(ctx, (*node).PowerOff)}
	if s.control != nil {
		errs = append(errs, s.control.Close())
	}
	errs = append(errs, s.lab.Close(), s.left())
	return errors.Join(errs...)
}

// left returns nil if the run has left nothing on the machine.
func (s *stage) left() error {
	var left []string
	for _, pattern := range []string{"/run/netns/" + s.lab.Prefix + "*", lab.Cgroups + "/" + s.lab.Prefix + "*", lab.Cgroups + "/*/" + s.lab.Prefix + "*", s.lab.Dir} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		left = append(left, found...)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), s.lab.Prefix) {
		left = append(left, "a mount")
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
	for _, path := range procs {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), s.lab.Prefix+"-") {
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %v", left)
	}
	return nil
}

// keepLogs copies the programs' logs to a directory that outlives the run.
func (s *stage) keepLogs() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "edgeway-e2e-"); err != nil {
		return "", err
	}
	err = filepath.WalkDir(s.lab.Dir, func(path string, e fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if e != nil && e.IsDir() && (name == "var-lib" || name == "var-log" || name == "opt") {
			return fs.SkipDir
		}
		if err != nil || filepath.Ext(name) != ".log" {
			return nil // a file that cannot be read cannot be kept
		}
		flat := strings.ReplaceAll(strings.TrimPrefix(path, s.lab.Dir+"/"), "/", "-")
		return copyFile(path, filepath.Join(dir, flat))
	})
	return dir, err
}
