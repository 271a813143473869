// Package lab builds laboratories out of network namespaces: LANs, switches that are real BIRD, FRR or
// OpenBGPD, nodes that run a real edgewayd, and pods that the real plugin wires. The demonstration and the
// LAN tests run in them.
//
// It is also the common base of the other scripts and of tests: it owns namespaces (Space), processes
// (Program), nodes with their own mounts (Box), cgroups and container images.
//
// The package surrounds the programs under test, so it shares no code with them. It configures links with
// iproute2, speaks CNI through libcni as a container runtime does, and sends its own packets. It needs
// root, and never touches anything outside of the namespaces that it made.
//
//	l, err := lab.New(lab.Options{Bin: "bin"})
//	defer l.Close()
//	err = l.Build(ctx, topology)                 // LANs, machines, switches
//	err = l.Node("Node-1").Start(ctx)            // its daemon
//	pod, err := l.Node("Node-1").AddPod(ctx, "default", "web")
//	rtt, err := l.Machine("vpc").Ping(ctx, pod.Addrs[0])
package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// netnsDir is where iproute2 keeps named network namespaces (ip-netns(8)).
	netnsDir = "/run/netns"
	// closeTimeout bounds taking a laboratory down, which happens after the caller's context has ended.
	closeTimeout = 20 * time.Second
	// maxSocketPath is the size of sun_path (unix(7)) without the final zero.
	maxSocketPath = 107
)

// Options are the options of a laboratory.
type Options struct {
	// Bin is the directory of the programs under test: edgeway and edgewayd.
	Bin string
	// Cluster is the directory of manifests that the nodes read; "" makes one in Dir.
	Cluster string
}

// Lab is one laboratory. The names of its namespaces begin with Prefix and its files are below Dir, so any
// number of laboratories can stand side by side.
type Lab struct {
	Prefix string // "ew-4f2a"
	Dir    string
	// ClusterDir is the directory of manifests that every node reads.
	ClusterDir string
	bin        string
	lock       *os.File // flock(2), held while the owner lives

	mu       sync.Mutex // guards the maps: several goroutines add and remove pods
	machines map[string]*Machine
	switches map[string]*Switch
	nodes    map[string]*Node
	pods     []*Pod
	cables   int               // number of cables made so far
	bridges  map[string]string // by LAN, in the namespace "wire"
}

// New makes an empty laboratory.
func New(o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("laboratory: needs root to make network namespaces; run it with sudo")
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, fmt.Errorf("laboratory: %w", err)
	}
	for {
		var b [2]byte
		rand.Read(b[:])
		prefix := "ew-" + hex.EncodeToString(b[:])
		dir := filepath.Join(os.TempDir(), prefix)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue // the name is taken by another laboratory
		}
		if err != nil {
			return nil, fmt.Errorf("laboratory: %w", err)
		}
		l := &Lab{Prefix: prefix, Dir: dir, ClusterDir: cmp.Or(o.Cluster, filepath.Join(dir, "cluster")), bin: bin,
			machines: map[string]*Machine{}, switches: map[string]*Switch{}, nodes: map[string]*Node{}, bridges: map[string]string{}}
		if l.lock, err = occupy(dir); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		return l, nil
	}
}

// Machine returns the machine with that name, or nil.
func (l *Lab) Machine(name string) *Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machines[name]
}

// Switch returns the switch with that name, or nil.
func (l *Lab) Switch(name string) *Switch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.switches[name]
}

// Node returns the node with that name, or nil.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// Nodes returns all nodes by name.
func (l *Lab) Nodes() map[string]*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.nodes)
}

// Keep leaves the laboratory standing when this process ends. Sweep ignores a kept laboratory; Down removes
// it. Close must not be called after Keep.
func (l *Lab) Keep() error {
	if err := os.WriteFile(filepath.Join(l.Dir, keptName), nil, 0o644); err != nil {
		return fmt.Errorf("keep laboratory %s: %w", l.Prefix, err)
	}
	return l.lock.Close()
}

// Close ends every process of the laboratory and removes its namespaces and files, even if the laboratory
// was only partly built. It may be called twice.
func (l *Lab) Close() error {
	err := remove(l.Prefix, l.Dir)
	l.lock.Close()
	return err
}

const (
	lockName = "lock"
	keptName = "kept"
)

// occupy makes this process the owner of a new laboratory. The lock is locked before it has its name: a Sweep of
// another process would take a laboratory with an unlocked lock for one whose owner died.
func occupy(dir string) (*os.File, error) {
	f, err := own(filepath.Join(dir, "new-"+lockName), os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, lockName)); err != nil {
		return nil, errors.Join(fmt.Errorf("laboratory: %w", err), f.Close())
	}
	return f, nil
}

// own locks the file at path. how may be os.O_CREATE.
func own(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|how, 0o644)
	if err != nil {
		return nil, fmt.Errorf("laboratory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// Sweep removes laboratories, and then the cgroups of pods, whose owner died without taking them down. It
// returns their names. Kept laboratories stay.
func Sweep() (gone []string, err error) {
	labs, err := takeDown(func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, keptName))
		return err != nil
	})
	pods, err2 := sweepCgroups()
	return append(labs, pods...), errors.Join(err, err2)
}

// Down also removes kept laboratories. It returns the names of those that it removed.
func Down() ([]string, error) { return takeDown(func(string) bool { return true }) }

func takeDown(wanted func(dir string) bool) (gone []string, err error) {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), "ew-????", lockName)) // the pattern is valid
	for _, path := range locks {
		dir := filepath.Dir(path)
		lock, owned := own(path, 0)
		if owned != nil {
			continue // the owner lives, or has just taken it down
		}
		if wanted(dir) {
			err = errors.Join(err, remove(filepath.Base(dir), dir))
			gone = append(gone, filepath.Base(dir))
		}
		lock.Close()
	}
	return gone, err
}

// remove ends the processes in the namespaces of prefix, then removes the namespaces and dir.
func remove(prefix, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	names, err := filepath.Glob(filepath.Join(netnsDir, prefix+"-*"))
	if err != nil {
		return fmt.Errorf("laboratory %s: %w", prefix, err)
	}
	var errs []error
	errs = append(errs, Wait(ctx, closeTimeout, func() error {
		pids, err := inSpaces(names...)
		if err != nil {
			return err
		}
		return kill(pids)
	}))
	for _, name := range names {
		errs = append(errs, ipNetns(ctx, "del "+filepath.Base(name)))
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*", canaryNetns))
	for _, path := range kept {
		(&Space{Path: path}).Remove()
	}
	errs = append(errs, err, os.RemoveAll(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down laboratory %s: %w", prefix, err)
	}
	return nil
}

// ipNetns runs one command of ip-netns(8), which gives namespaces the names that `ip netns exec` finds.
func ipNetns(ctx context.Context, command string) error {
	out, err := exec.CommandContext(ctx, "ip", append([]string{"netns"}, strings.Fields(command)...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip netns %s: %w: %s", command, err, bytes.TrimSpace(out))
	}
	return nil
}

// The pause between two checks is pollInterval, which is short compared with every event that is waited
// for. After a long check it is twice as long as the check, up to maxPoll: checks must not delay the event.
const (
	pollInterval = 20 * time.Millisecond
	maxPoll      = 250 * time.Millisecond
)

// Wait calls f until it returns nil, limit passes or ctx ends. It stops at ErrEnded, because an ended
// process does not come back. It returns f's last error.
func Wait(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		began := time.Now()
		err := f()
		if err == nil || errors.Is(err, ErrEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(min(max(pollInterval, 2*time.Since(began)), maxPoll)):
		}
	}
}
