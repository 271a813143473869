package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	startTimeout = 30 * time.Second // containerd on a busy machine
	stopTimeout  = 15 * time.Second
)

// Node is a laboratory's node on which a real containerd runs the pods.
//
// Its programs share a mount namespace, where /run is empty at each boot and /var/lib is the
// node's own: containerd, its shims and runc have their default paths there, and all their mounts
// end with the last of them.
type Node struct {
	*lab.Node
	CRI    *Client
	cgroup Cgroup
	bins   programs

	holder     *process // keeps the mount namespace
	containerd *process
	daemon     *process
}

// programs are the executables of a node.
type programs struct {
	edgewayd string
	cni      string // directory of the CNI plugins
	runtime  string // directory of containerd, looked at before PATH; ""
	image    string // archive of the image
}

// newNode prepares a node of the laboratory: nothing runs yet.
func newNode(l *lab.Lab, name string, bins programs) (*Node, error) {
	n := &Node{Node: l.Node(name), bins: bins, cgroup: NewCgroup(l.Prefix, name, os.Getpid())}
	if err := os.MkdirAll(n.file("var-lib"), 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	config := strings.NewReplacer("IMAGE", Image, "CNI_CONF", filepath.Dir(n.Conflist()), "CNI_BIN", bins.cni).Replace(containerdConfig)
	if err := os.WriteFile(n.file("containerd.toml"), []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// containerdConfig is of version 2, which containerd 1.6 and 2.x read. Where a test runs there is
// perhaps no AppArmor, and no CAP_SYS_RESOURCE, without which runc cannot lower an OOM score.
const containerdConfig = `version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "CNI_CONF"
  bin_dir = "CNI_BIN"
`

func (n *Node) file(name string) string { return filepath.Join(n.Dir, name) }

// bootScript makes what is new at each boot. A boot is told from another by its boot ID
// (drivers/char/random.c).
const bootScript = `set -e
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind VARLIB /var/lib
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
echo READY
exec sleep infinity
`

// Boot makes the mount namespace and starts containerd in it. It returns when containerd answers.
func (n *Node) Boot(ctx context.Context) error {
	const ready = "mounted"
	script := strings.NewReplacer("VARLIB", n.file("var-lib"), "READY", ready).Replace(bootScript)
	log := n.file("mounts.log")
	if err := os.RemoveAll(log); err != nil { // of an earlier boot
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	var err error
	if n.holder, err = start(n.Machine, log, nil, "unshare", "--mount", "--propagation", "private", "sh", "-c", script); err != nil {
		return err
	}
	err = lab.Wait(ctx, startTimeout, func() error {
		if err := n.holder.running(); err != nil {
			return err
		}
		if out := tail(log, 1); out != ready {
			return fmt.Errorf("%s: private mounts: %s", n.Name, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.StartContainerd(ctx)
}

// StartContainerd starts containerd and returns when it answers and knows the image.
func (n *Node) StartContainerd(ctx context.Context) (err error) {
	if n.containerd, err = n.start("containerd.log", n.tool("containerd"), "--config", n.file("containerd.toml")); err != nil {
		return err
	}
	if n.CRI, err = Dial(fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", n.holder.pid())); err != nil {
		return err
	}
	err = lab.Wait(ctx, startTimeout, func() error {
		if err := n.containerd.running(); err != nil {
			return err
		}
		_, err := n.CRI.Version(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: containerd: %w", n.Name, err)
	}
	known, err := n.CRI.HasImage(ctx, Image)
	if err != nil || known {
		return err
	}
	if out, err := n.run(ctx, n.tool("ctr"), "-n", "k8s.io", "images", "import", n.bins.image); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return lab.Wait(ctx, startTimeout, func() error { // CRI hears of the import by an event
		if known, err := n.CRI.HasImage(ctx, Image); err != nil || !known {
			return errors.Join(fmt.Errorf("%s: CRI does not know image %s", n.Name, Image), err)
		}
		return nil
	})
}

// StopContainerd ends containerd as systemd does: the pods go on.
func (n *Node) StopContainerd() error {
	if n.CRI != nil {
		_ = n.CRI.Close()
	}
	return n.containerd.end(unix.SIGTERM)
}

// StartDaemon starts edgewayd and returns when it answers and its network configuration is there.
func (n *Node) StartDaemon(ctx context.Context) (err error) {
	if n.daemon, err = n.start("edgewayd.log", n.bins.edgewayd, "run", "--config", n.Config); err != nil {
		return err
	}
	return lab.Wait(ctx, startTimeout, func() error {
		if err := n.daemon.running(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if _, err := os.Stat(n.Conflist()); err != nil {
			return err
		}
		_, err := n.Status(ctx)
		return err
	})
}

// StopDaemon ends edgewayd as systemd does.
func (n *Node) StopDaemon() error { return n.daemon.end(unix.SIGTERM) }

// Reboot ends every program of the node and its pods as a power cut does, and boots it with what is
// on disk. The daemon is not started.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.powerOff(ctx); err != nil {
		return err
	}
	if err := n.Node.Reboot(ctx); err != nil {
		return err
	}
	return n.Boot(ctx)
}

// powerOff kills every process of the node by its PID. It does so however few of them run.
func (n *Node) powerOff(ctx context.Context) error {
	if n.CRI != nil {
		_ = n.CRI.Close()
	}
	// First those that would start others.
	errs := []error{n.daemon.end(unix.SIGKILL), n.containerd.end(unix.SIGKILL)}
	if n.holder != nil {
		errs = append(errs, KillShims(ctx, n.Machine, n.holder.pid()))
	}
	errs = append(errs, n.cgroup.Remove(ctx), n.holder.end(unix.SIGKILL))
	return errors.Join(errs...)
}

// Close ends what runs on the node and removes its cgroups. The rest lies below the laboratory's
// directory.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return n.powerOff(ctx)
}

// tool is the path of a program of the runtime.
func (n *Node) tool(name string) string { return toolPath(n.bins.runtime, name) }

func toolPath(dir, name string) string {
	if path := filepath.Join(dir, name); dir != "" {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return name
}

// environment has containerd and its shims find their own programs first.
func (n *Node) environment() []string {
	env := os.Environ()
	if n.bins.runtime != "" {
		env = append(env, "PATH="+n.bins.runtime+":"+os.Getenv("PATH"))
	}
	return env
}

// inside is argv in the node's mount namespace. nsenter becomes the program: same PID.
func (n *Node) inside(argv ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", n.holder.pid()), "--"}, argv...)
}

func (n *Node) start(log string, argv ...string) (*process, error) {
	return start(n.Machine, n.file(log), n.environment(), n.inside(argv...)...)
}

// run runs a command on the node and returns what it prints.
func (n *Node) run(ctx context.Context, argv ...string) (string, error) {
	argv = n.inside(argv...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, n.environment()
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w", n.Name, strings.Join(argv[3:], " "), err)
	}
	return out.String(), err
}
