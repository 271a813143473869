package pods

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
)

func TestConflist(t *testing.T) {
	c := config.Defaults()
	c.CNI.ConfDir, c.CNI.BinDir = filepath.Join(t.TempDir(), "net.d"), t.TempDir()
	plugin := filepath.Join(c.CNI.BinDir, "edgeway")
	for _, mode := range []os.FileMode{0, 0o644, 0o755} { // missing, not executable, right
		if mode > 0 {
			if err := errors.Join(os.WriteFile(plugin, nil, mode), os.Chmod(plugin, mode)); err != nil {
				t.Fatal(err)
			}
		}
		problems, err := writeConflist(c, 1450, slog.New(slog.DiscardHandler))
		if err != nil || (len(problems) == 1 && problems[0].Reason == cluster.NoPlugin) != (mode != 0o755) {
			t.Fatalf("plugin with mode %v: %v, %v", mode, problems, err)
		}
	}
	if problems, err := writeConflist(c, 1450, slog.New(slog.DiscardHandler)); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	path := filepath.Join(c.CNI.ConfDir, conflistName)
	read := func() (list struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string
		Plugins     []struct {
			Type         string
			MTU          int
			Socket       string
			DataDir      string
			Capabilities map[string]bool
		}
	}) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	list := read()
	if list.CNIVersion != "1.0.0" || len(list.CNIVersions) != 3 || len(list.Plugins) != 1 || list.Plugins[0].MTU != 1450 ||
		list.Plugins[0].Socket != c.Socket || list.Plugins[0].DataDir != c.StateDir || !list.Plugins[0].Capabilities["ips"] {
		t.Errorf("got %+v", list)
	}

	// A file that is right is not written again: the runtime would reload it.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := writeConflist(c, 1450, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || after.ModTime().Unix() != 1 {
		t.Errorf("rewritten: %v", err)
	}

	// A torn file, as a power cut leaves it, is written again. A plugin that appeared is chained.
	if err := os.WriteFile(path, []byte(`{"cniVersion`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.CNI.BinDir, "portmap"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := writeConflist(c, 1450, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if list := read(); len(list.Plugins) != 2 || list.Plugins[1].Type != "portmap" || !list.Plugins[1].Capabilities["portMappings"] {
		t.Errorf("got %+v", list)
	}

	c.CNI.Chain = []string{"bandwidth"}
	if err := os.WriteFile(filepath.Join(c.CNI.ConfDir, "05-other.conf"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	problems, err := writeConflist(c, 1450, slog.New(slog.DiscardHandler))
	if err != nil || len(problems) != 2 || problems[0].Reason != "notInstalled" || problems[1].Reason != "competingNetwork" {
		t.Errorf("problems %v, %v", problems, err)
	}
	files, err := os.ReadDir(c.CNI.ConfDir)
	if err != nil || len(files) != 2 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// The disk of the leases is full, and new pods wait: the problem says what is missing. A disk that has no inodes to
// count (btrfs) is not full.
func TestDiskFull(t *testing.T) {
	const next = "; free room there: new pods wait until then, running pods are not touched"
	for _, tt := range []struct {
		name string
		disk unix.Statfs_t
		want string
	}{
		{"room", unix.Statfs_t{Bsize: 4096, Bavail: 1024, Files: 10, Ffree: 1}, ""},
		{"a block too few", unix.Statfs_t{Bsize: 4096, Bavail: 1023, Files: 10, Ffree: 1}, "disk of /var/lib/edgeway: want 4 MiB free for the leases, got 4092 KiB" + next},
		{"full", unix.Statfs_t{Bsize: 4096, Files: 10, Ffree: 1}, "disk of /var/lib/edgeway: want 4 MiB free for the leases, got 0 KiB" + next},
		{"no inode", unix.Statfs_t{Bsize: 4096, Bavail: 1024, Files: 10}, "disk of /var/lib/edgeway: want a free inode, got none" + next},
		{"no inodes to count", unix.Statfs_t{Bsize: 4096, Bavail: 1024}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			for _, p := range noRoom("/var/lib/edgeway", tt.disk) {
				if got = p.String(); p.Reason != cluster.DiskFull {
					t.Errorf("the reason is %s", p.Reason)
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
