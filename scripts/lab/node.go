package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

// Node is a machine that runs edgewayd and pods.
type Node struct {
	*Machine
	Config string // path of the daemon's configuration
	lab    *Lab
	spec   NodeSpec
	daemon *Process
}

// addNode turns a wired machine into a node. It does not start the daemon.
func (l *Lab) addNode(spec NodeSpec) error {
	n := &Node{Machine: l.Machine(spec.Name), lab: l, spec: spec}
	n.Config = n.file("edgewayd.yaml")
	if len(n.Socket()) > maxSocketPath {
		return fmt.Errorf("%s: socket path %s is longer than %d bytes; set TMPDIR to a shorter directory",
			spec.Name, n.Socket(), maxSocketPath)
	}
	config := map[string]any{
		"nodeName": spec.Name,
		"cluster":  map[string]any{"manifests": l.ClusterDir},
		"cni":      map[string]any{"confDir": n.file("net.d"), "binDir": n.Plugins(), "chain": []string{}},
		"stateDir": n.file("state"),
		"socket":   n.Socket(),
		"metrics":  "",
		// Stories count addresses and links. A story about paths overrides it.
		"paths": map[string]any{"canary": false},
	}
	maps.Copy(config, spec.Config)
	maps.DeleteFunc(config, func(_ string, v any) bool { return v == nil })
	text, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("%s: configuration: %w", spec.Name, err)
	}
	for _, dir := range []string{"bin", "net.d", "state"} {
		if err := os.MkdirAll(n.file(dir), 0o755); err != nil {
			return fmt.Errorf("%s: %w", spec.Name, err)
		}
	}
	if err := n.Install(l.bin, "edgeway", "edgewayd"); err != nil {
		return err
	}
	if err := os.WriteFile(n.Config, text, 0o644); err != nil {
		return fmt.Errorf("%s: configuration: %w", spec.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes[spec.Name] = n
	return nil
}

// canaryNetns is where `edgewayd keep-canary` mounts a namespace, in a node's directory.
const canaryNetns = "canary/netns"

// Socket is the path of the daemon's unix socket.
func (n *Node) Socket() string { return n.file("edgewayd.sock") }

// Log is the path of the daemon's log.
func (n *Node) Log() string { return n.file("edgewayd.log") }

func (n *Node) file(name string) string { return filepath.Join(n.Dir, name) }

// Program is the path of the daemon's executable.
func (n *Node) Program() string { return filepath.Join(n.Plugins(), "edgewayd") }

// Install gives the node these programs of the directory dir, each by rename, as an upgrade does. A daemon that runs
// goes on as it is until it is started again.
func (n *Node) Install(dir string, programs ...string) error {
	for _, name := range programs {
		link := n.file("bin/" + name)
		if err := os.Symlink(filepath.Join(dir, name), link+".new"); err != nil {
			return fmt.Errorf("%s: install %s: %w", n.Name, name, err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			return fmt.Errorf("%s: install %s: %w", n.Name, name, err)
		}
	}
	return nil
}

// Start starts the daemon. It returns when the daemon answers on its socket and pods can be added.
func (n *Node) Start(ctx context.Context) error {
	if n.daemon.Err() == nil {
		return fmt.Errorf("%s: its daemon runs already", n.Name)
	}
	var err error
	if n.daemon, err = n.Spawn(n.Log(), n.Program(), "run", "--config", n.Config); err != nil {
		return err
	}
	return Wait(ctx, startTimeout, func() error {
		if err := n.daemon.Err(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if _, err := n.network(); err != nil {
			return err
		}
		_, err := n.Status(ctx)
		return err
	})
}

// Kill ends the daemon as a crash does.
func (n *Node) Kill() error { return n.stop(unix.SIGKILL) }

// Terminate ends the daemon as systemd and the kubelet do.
func (n *Node) Terminate() error { return n.stop(unix.SIGTERM) }

func (n *Node) stop(sig syscall.Signal) error {
	if err := n.daemon.End(sig); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}

// PID returns the daemon's process ID, or 0 if the daemon does not run.
func (n *Node) PID() int {
	if n.daemon.Err() != nil {
		return 0
	}
	return n.daemon.PID()
}

// Command runs the daemon's executable as an operator does on the command line.
func (n *Node) Command(ctx context.Context, args ...string) (string, error) {
	return n.Run(ctx, n.Program(), slices.Concat(args, []string{"--config", n.Config})...) // append would write into the caller's args
}

// Status asks the daemon for its status.
func (n *Node) Status(ctx context.Context) (api.Status, error) {
	var status api.Status
	if _, err := os.Stat(n.Socket()); errors.Is(err, fs.ErrNotExist) {
		return status, fmt.Errorf("%s: %s is not there yet", n.Name, n.Socket())
	}
	out, err := n.Command(ctx, "status", "-o", "json")
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return status, fmt.Errorf("%s: status is not JSON: %w: %.200s", n.Name, err, out)
	}
	return status, nil
}

// Reboot ends the daemon and every pod, and gives the node a fresh network namespace with its fixed
// addresses and routes. Only the files on disk stay. The daemon is not started.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.Kill(); err != nil {
		return err
	}
	for _, p := range n.Pods() {
		if err := n.lab.removeMachine(ctx, p.Machine); err != nil {
			return err
		}
	}
	(&Space{Path: n.file(canaryNetns)}).Remove()
	if err := os.Remove(n.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := n.lab.removeMachine(ctx, n.Machine); err != nil {
		return err
	}
	// The kernel removes the other ends of the namespace's links later; wire makes new links.
	if err := n.lab.wire(ctx, []HostSpec{n.spec.HostSpec}); err != nil {
		return fmt.Errorf("%s: reboot: %w", n.Name, err)
	}
	n.Machine = n.lab.Machine(n.Name)
	return nil
}

// WaitSession waits until the node has at least one BGP session and all of its sessions are established.
func (n *Node) WaitSession(ctx context.Context, limit time.Duration) error {
	return Wait(ctx, limit, func() error {
		status, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if len(status.Sessions) == 0 {
			return fmt.Errorf("%s: has no BGP session", n.Name)
		}
		for _, s := range status.Sessions {
			if s.State != "Established" {
				return fmt.Errorf("%s: session to %s is %s: %s", n.Name, s.Peer, s.State, s.Detail)
			}
		}
		return nil
	})
}
