package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const pauseImage = "localhost/edgeway:pause"

// kubelet has the parts of a kubelet that the DaemonSet's pod needs. It gives the orders of a kubelet to a
// real containerd on a node of the laboratory.
type kubelet struct {
	*lab.Node
	dir     string
	pid     int // containerd's
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	sandbox *runtimeapi.PodSandboxConfig
	id      string // of the sandbox
	attempt uint32
}

// runtimeScript starts containerd where the default paths belong to the node. The network namespaces
// below /run/netns appear there too.
const runtimeScript = `set -e
dir=$1
mkdir -p $dir/netns $dir/lib $dir/etc $dir/etc-work
mount --rbind /run/netns $dir/netns
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run # as systemd makes it
mkdir /run/netns
touch /run/xtables.lock # as the kubelet does for a volume of type FileOrCreate
mount --rbind $dir/netns /run/netns
mount --bind $dir/lib /var/lib
mount -t tmpfs -o mode=755 tmpfs /opt
mount -t overlay -o lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/etc-work overlay /etc
rm -rf /etc/cni
exec containerd --config $dir/containerd.toml
`

func startRuntime(t *testing.T, n *lab.Node, dir string) *kubelet {
	t.Helper()
	k := &kubelet{Node: n, dir: dir}
	if err := k.cgroup().Make(); err != nil {
		t.Fatal(err)
	}
	config := lab.ContainerdConfig(pauseImage, "/etc/cni/net.d", "/opt/cni/bin")
	if err := os.WriteFile(filepath.Join(dir, "containerd.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "containerd.log")
	p, err := lab.Program{Argv: []string{"unshare", "--mount", "--propagation", "slave", "sh", "-c", runtimeScript, "sh", dir}, Log: log, Space: n.Space}.Start()
	if err != nil {
		t.Fatal(err)
	}
	k.pid = p.PID() // the shell becomes containerd
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd:\n%s", lab.Tail(log, 40))
		}
		ctx := context.Background() // the test's context has ended
		if err := errors.Join(lab.KillIn(ctx, n.Machine, 0), k.cgroup().Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/run/containerd/containerd.sock", k.pid), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	k.runtime, k.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	err = lab.Wait(t.Context(), bootTimeout, func() error {
		_, err := k.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cgroup is the parent of the node's pods.
func (k *kubelet) cgroup() lab.Cgroup { return lab.Cgroup("/" + k.Netns()) }

// load imports an archive.
func (k *kubelet) load(t *testing.T, archive, name string) {
	t.Helper()
	cmd := exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", k.pid), "ctr", "-n", "k8s.io", "images", "import", archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := lab.Wait(t.Context(), waitLimit, func() error { // CRI learns about both names by events
		imported, err := k.imageID(t.Context(), name)
		if err != nil {
			return err
		}
		latest, err := k.imageID(t.Context(), "localhost/edgeway:latest")
		if err == nil && latest != imported {
			err = errors.New("latest is not " + name + " yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (k *kubelet) imageID(ctx context.Context, name string) (string, error) {
	reply, err := k.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err == nil && reply.Image == nil {
		err = errors.New("CRI does not know " + name)
	}
	return reply.GetImage().GetId(), err
}

// path is the path of a node's file on this machine.
func (k *kubelet) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", k.pid), name)
}

// readDaemonSet reads the manifest as it is applied.
func readDaemonSet(t *testing.T, path string) appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(text, &ds); err != nil {
		t.Fatal(err)
	}
	return ds
}

// given is what the API server gives the kubelet.
type given struct {
	volumes map[string]string // directories of the volumes that are not directories of the host
	account string            // directory of the service account's files
	env     []string          // NAME=VALUE, in the kubelet's order
}

// runPod makes the pod's sandbox, as the kubelet does.
func (k *kubelet) runPod(t *testing.T, spec corev1.PodSpec) {
	t.Helper()
	if !spec.HostNetwork {
		t.Fatal("the pod does not have the host's network")
	}
	k.sandbox = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "kube-system", Name: "edgewayd-x", Uid: "u1"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: string(k.cgroup()),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				Privileged:       slices.ContainsFunc(spec.InitContainers, privileged),
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	reply, err := k.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: k.sandbox})
	if err != nil {
		t.Fatal(err)
	}
	k.id = reply.PodSandboxId
}

func privileged(c corev1.Container) bool {
	return c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

// prepare runs the init containers and returns what they say.
func (k *kubelet) prepare(t *testing.T, spec corev1.PodSpec, g given) (said string) {
	t.Helper()
	for _, c := range spec.InitContainers {
		id := k.start(t, spec, c, g)
		if code := k.ended(t, id); code != 0 {
			t.Fatalf("init container %s: exit status %d: %s", c.Name, code, k.said(id))
		}
		said += k.said(id)
	}
	return said
}

// start starts one container of the pod.
func (k *kubelet) start(t *testing.T, spec corev1.PodSpec, c corev1.Container, g given) (id string) {
	t.Helper()
	k.attempt++
	log := fmt.Sprintf("/run/%s-%d.log", c.Name, k.attempt)
	k.sandbox.LogDirectory = "/run"
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: k.attempt},
		Image:    &runtimeapi.ImageSpec{Image: c.Image + ":latest"},
		Command:  c.Command,
		LogPath:  filepath.Base(log),
		Mounts:   mounts(t, spec, c, g),
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			Capabilities:     &runtimeapi.Capability{},
			Privileged:       privileged(c),
			ReadonlyRootfs:   *c.SecurityContext.ReadOnlyRootFilesystem,
			NoNewPrivs:       !privileged(c) && !*c.SecurityContext.AllowPrivilegeEscalation,
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			NamespaceOptions: k.sandbox.Linux.SecurityContext.NamespaceOptions,
			// The kubelet passes these for a container without privileges.
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		}},
	}
	for _, arg := range c.Args {
		config.Args = append(config.Args, strings.ReplaceAll(arg, "$(NODE_NAME)", k.Name))
	}
	for _, variable := range g.env {
		key, value, _ := strings.Cut(variable, "=")
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: key, Value: value})
	}
	if caps := c.SecurityContext.Capabilities; caps != nil {
		for _, add := range caps.Add {
			config.Linux.SecurityContext.Capabilities.AddCapabilities = append(config.Linux.SecurityContext.Capabilities.AddCapabilities, string(add))
		}
		for _, drop := range caps.Drop {
			config.Linux.SecurityContext.Capabilities.DropCapabilities = append(config.Linux.SecurityContext.Capabilities.DropCapabilities, string(drop))
		}
	}
	if privileged(c) { // the kubelet masks nothing then
		config.Linux.SecurityContext.MaskedPaths, config.Linux.SecurityContext.ReadonlyPaths = nil, nil
	}
	created, err := k.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: k.id, SandboxConfig: k.sandbox, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return created.ContainerId
}

// mounts returns the container's mounts. The kubelet makes a directory of each volume: the host's, or one
// that the test gives.
func mounts(t *testing.T, spec corev1.PodSpec, c corev1.Container, g given) (out []*runtimeapi.Mount) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		mount := &runtimeapi.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly, HostPath: g.volumes[m.Name]}
		for _, v := range spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				mount.HostPath = v.HostPath.Path
			}
		}
		if mount.HostPath == "" {
			t.Fatalf("container %s: no volume %s", c.Name, m.Name)
		}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer {
			mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
			mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		out = append(out, mount)
	}
	return append(out, &runtimeapi.Mount{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: g.account, Readonly: true})
}

// ended waits until a container has ended.
func (k *kubelet) ended(t *testing.T, id string) (code int32) {
	t.Helper()
	err := lab.Wait(t.Context(), waitLimit, func() error {
		reply, err := k.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err == nil && reply.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			err = errors.New("container " + id + " has not ended")
		}
		code = reply.GetStatus().GetExitCode()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// said returns a container's log.
func (k *kubelet) said(id string) string {
	reply, err := k.runtime.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return err.Error()
	}
	text, err := os.ReadFile(k.path(reply.Status.LogPath))
	return fmt.Sprint(string(text), err)
}

// exec runs a command in a container.
func (k *kubelet) exec(ctx context.Context, id string, argv ...string) (string, error) {
	reply, err := k.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: 20})
	if code := reply.GetExitCode(); err == nil && code != 0 {
		err = fmt.Errorf("%s: exit status %d: %s%s", strings.Join(argv, " "), code, reply.Stdout, reply.Stderr)
	}
	return string(reply.GetStdout()), err
}

// probe asks in the node's network, as the kubelet does.
func (k *kubelet) probe(ctx context.Context, get corev1.HTTPGetAction) error {
	var conn net.Conn
	err := k.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: waitLimit}).DialContext(ctx, "tcp", net.JoinHostPort(get.Host, get.Port.String()))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+get.Host+get.Path, nil)
	if err != nil {
		return err
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", get.Path, answer.Status)
	}
	return err
}

// stop ends a container as the kubelet does.
func (k *kubelet) stop(t *testing.T, id string, grace time.Duration) {
	t.Helper()
	if _, err := k.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())}); err != nil {
		t.Fatal(err)
	}
	if code := k.ended(t, id); code != 0 {
		t.Errorf("the daemon ended with status %d: %s", code, k.said(id))
	}
}
