package pods

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/durable"
)

// conflistName sorts before the files of most other networks: a runtime takes the first file.
const conflistName = "10-edgeway.conflist"

// networkName is the name of the network in that file. Other networks of the node have MTUs of their own.
const networkName = "edgeway"

// Conflist is the path of the network configuration list that the daemon writes.
func Conflist(c config.Config) string { return filepath.Join(c.CNI.ConfDir, conflistName) }

// conflist is the network configuration list that the container runtime reads (CNI SPEC 1.1.0, section 1).
// cniVersion is 1.0.0 because containerd 1.6 loads a list of version 1.1.0 and then fails every ADD.
// cniVersions lets newer runtimes choose 1.1.0 and ask for STATUS.
func conflist(c config.Config, mtu int, chain []string) ([]byte, error) {
	type object = map[string]any
	ours := object{
		"type": "edgeway", "mtu": mtu, "socket": c.Socket, "dataDir": c.StateDir,
		"capabilities": object{"ips": true, "mac": true},
	}
	plugins := []object{ours}
	for _, name := range chain {
		p := object{"type": name}
		if key := capability(name); key != "" {
			p["capabilities"] = object{key: true}
		}
		plugins = append(plugins, p)
	}
	text, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"}, "name": networkName, "plugins": plugins,
	}, "", "  ")
	return append(text, '\n'), err
}

// capability is the runtimeConfig key that the runtime gives to a known plugin (CNI CONVENTIONS, dynamic
// plugin specific fields), or "" for another plugin.
func capability(plugin string) string {
	switch plugin {
	case "portmap":
		return "portMappings"
	case "bandwidth":
		return "bandwidth"
	}
	return ""
}

// writeConflist writes the list where the runtime looks for it, unless the file is already right. It logs that it did, and
// returns the problems with that directory. It leaves out plugins of the chain that are not installed: pods without
// hostPorts are better than no pods.
func writeConflist(c config.Config, mtu int, log *slog.Logger) ([]cluster.Problem, error) {
	var problems []cluster.Problem
	var chain []string
	wanted := c.CNI.Chain
	if wanted == nil {
		wanted = []string{"portmap"}
	}
	for _, name := range wanted {
		if _, err := os.Stat(filepath.Join(c.CNI.BinDir, name)); err == nil {
			chain = append(chain, name)
		} else if c.CNI.Chain != nil {
			problems = append(problems, cluster.Problem{Object: "plugin " + name, Reason: cluster.NotInstalled, Want: "an executable in " + c.CNI.BinDir,
				Got: "none", Next: "install it (containernetworking plugins), or take it out of cni.chain; pods start without it"})
		}
	}
	problems = append(problems, noPlugin(c)...)
	text, err := conflist(c, mtu, chain)
	if err != nil {
		return problems, err
	}
	path := Conflist(c)
	if other := earlierConf(c.CNI.ConfDir); other != "" {
		problems = append(problems, competing(c, other))
	}
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, text) {
		return problems, nil
	}
	was := "another text"
	if errors.Is(err, fs.ErrNotExist) {
		was = "no file"
	}
	if err := os.MkdirAll(c.CNI.ConfDir, 0o755); err != nil {
		return problems, err
	}
	if err := durable.Replace(path, text, 0o644); err != nil {
		return problems, fmt.Errorf("write %s: %w", path, err)
	}
	log.Info("network configuration written", "file", path, "was", was)
	return problems, nil
}

// Examine returns what keeps the runtime from starting pods, also without a daemon.
func Examine(c config.Config) []cluster.Problem {
	problems := append(noPlugin(c), diskFull(c.StateDir)...)
	path := Conflist(c)
	if other := earlierConf(c.CNI.ConfDir); other != "" {
		problems = append(problems, competing(c, other))
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		problems = append(problems, cluster.Problem{Object: "file " + path, Reason: cluster.PodsNotServed, Want: "the network of edgeway for the runtime", Got: "no such file",
			Next: "start edgewayd, which writes it; then find out who deletes it"})
	}
	return problems
}

func competing(c config.Config, other string) cluster.Problem {
	return cluster.Problem{Object: "file " + filepath.Join(c.CNI.ConfDir, other), Reason: cluster.CompetingNetwork, Want: conflistName + " to be the first file",
		Got: other + " before it", Next: "remove it: the runtime uses the first file of the directory"}
}

// noPlugin returns the problem of a plugin that the runtime cannot execute. The network configuration is written all the
// same: without it, the runtime would take another network, or none.
func noPlugin(c config.Config) []cluster.Problem {
	path := filepath.Join(c.CNI.BinDir, "edgeway")
	p := cluster.Problem{Object: "plugin edgeway", Reason: cluster.NoPlugin, Want: "an executable " + path, Next: "run edgewayd install, or install the package again; pods cannot start or end until then"}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		p.Got = "no such file"
	case err != nil:
		p.Got = err.Error()
	case !info.Mode().IsRegular():
		p.Got = "not a file: " + info.Mode().String()
	case info.Mode().Perm()&0o111 == 0:
		p.Got, p.Next = "mode "+info.Mode().Perm().String(), "chmod 0755 "+path+"; pods cannot start or end until then"
	default:
		return nil
	}
	return []cluster.Problem{p}
}

// roomLeast is the room on the disk, in bytes, below which a lease may fail. The file of leases grows by less.
const roomLeast = 4 << 20

// diskFull returns the problem of a disk on which no lease can be written.
func diskFull(stateDir string) []cluster.Problem {
	var fs unix.Statfs_t
	if err := unix.Statfs(stateDir, &fs); err != nil || fs.Blocks == 0 {
		return nil // opening the store says what is wrong
	}
	return noRoom(stateDir, fs)
}

func noRoom(stateDir string, fs unix.Statfs_t) []cluster.Problem {
	p := cluster.Problem{Object: "disk of " + stateDir, Reason: cluster.DiskFull, Next: "free room there: new pods wait until then, running pods are not touched"}
	switch left := fs.Bavail * uint64(fs.Bsize); {
	case left < roomLeast:
		p.Want, p.Got = fmt.Sprintf("%d MiB free for the leases", roomLeast>>20), fmt.Sprintf("%d KiB", left>>10)
	case fs.Files > 0 && fs.Ffree == 0:
		p.Want, p.Got = "a free inode", "none"
	default:
		return nil
	}
	return []cluster.Problem{p}
}

// earlierConf returns the name of a network configuration that the runtime prefers to ours, or "".
func earlierConf(dir string) string {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if e.Name() >= conflistName {
			return ""
		}
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			return e.Name()
		}
	}
	return ""
}
