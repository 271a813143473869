package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	startTimeout = 30 * time.Second // containerd on a busy machine
	closeTimeout = 15 * time.Second
)

// Node is a laboratory's node on which a real containerd runs the pods. Containerd, its shims and runc
// have their default paths in its box.
type Node struct {
	*lab.Box
	CRI  *Client
	bins programs
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
	n := &Node{Box: l.NewBox(name), bins: bins}
	if bins.runtime != "" { // containerd and its shims find their own programs first
		n.Env = append(os.Environ(), "PATH="+bins.runtime+":"+os.Getenv("PATH"))
	}
	config := lab.ContainerdConfig(lab.BusyboxImage, filepath.Dir(n.Conflist()), bins.cni)
	if err := errors.Join(os.MkdirAll(n.file("var-lib"), 0o755), os.WriteFile(n.file("containerd.toml"), []byte(config), 0o644)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

func (n *Node) file(name string) string { return filepath.Join(n.Dir, name) }

// Start switches the node on, with the files on its disk, and returns when containerd answers. The daemon
// is not started.
func (n *Node) Start(ctx context.Context) error {
	if err := n.Boot(ctx, "mount -t tmpfs -o mode=755 tmpfs /run\nmount --bind DIR/var-lib /var/lib"); err != nil {
		return err
	}
	return n.StartContainerd(ctx)
}

// StartContainerd starts containerd and returns when it answers and knows the image.
func (n *Node) StartContainerd(ctx context.Context) (err error) {
	if n.CRI, err = Dial(n.InsidePath("/run/containerd/containerd.sock")); err != nil {
		return err
	}
	err = n.StartProgram(ctx, []string{n.tool("containerd"), "--config", n.file("containerd.toml")}, func() error {
		_, err := n.CRI.Version(ctx)
		return err
	})
	if err != nil {
		return err
	}
	known, err := n.CRI.HasImage(ctx, lab.BusyboxImage)
	if err != nil || known {
		return err
	}
	if _, err := n.RunInside(ctx, n.tool("ctr"), "-n", "k8s.io", "images", "import", n.bins.image); err != nil {
		return err
	}
	return lab.Wait(ctx, startTimeout, func() error { // CRI learns about the import by an event
		if known, err := n.CRI.HasImage(ctx, lab.BusyboxImage); err != nil || !known {
			return errors.Join(fmt.Errorf("%s: CRI does not know image %s", n.Name, lab.BusyboxImage), err)
		}
		return nil
	})
}

// StopContainerd ends containerd as systemd does. The pods go on.
func (n *Node) StopContainerd() error {
	_ = n.CRI.Close()
	return n.Program("containerd").End(unix.SIGTERM)
}

// StartDaemon starts edgewayd and returns when it answers and its network configuration is there.
func (n *Node) StartDaemon(ctx context.Context) error {
	return n.StartProgram(ctx, []string{n.bins.edgewayd, "run", "--config", n.Config}, func() error {
		if _, err := os.Stat(n.Conflist()); err != nil {
			return err
		}
		_, err := n.Status(ctx)
		return err
	})
}

// StopDaemon ends edgewayd as systemd does.
func (n *Node) StopDaemon() error { return n.Program("edgewayd").End(unix.SIGTERM) }

// Reboot ends every program of the node and its pods as a power cut does, and boots the node with the files
// on its disk. The daemon is not started.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.PowerOff(ctx); err != nil {
		return err
	}
	if err := n.Node.Reboot(ctx); err != nil {
		return err
	}
	return n.Start(ctx)
}

// Close ends what runs on the node and removes its cgroups. The rest lies below the laboratory's
// directory.
func (n *Node) Close() error {
	if n.CRI != nil {
		_ = n.CRI.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return n.PowerOff(ctx)
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
