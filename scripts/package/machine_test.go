package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

const (
	bootTimeout = 60 * time.Second // systemd on a busy machine
	waitLimit   = 30 * time.Second
)

// machine is a node of a laboratory with a real systemd. Its root is this machine's root under an overlay
// that takes the writes; its network is the node's namespace.
type machine struct {
	*lab.Node
	dir string
	pid int // systemd's, on this machine
}

// bootScript starts systemd in a cgroup, mounts and namespaces of its own. The
// units that this machine would start at its boot are not started.
const bootScript = `set -e
dir=$1 netns=$2 name=$3
for cgroup in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
	test -e $cgroup/cgroup.procs || continue
	mkdir -p $cgroup/$name
	echo $$ >$cgroup/$name/cgroup.procs
done
mkdir -p $dir/upper $dir/work $dir/root
mount -t overlay overlay -o lowerdir=/,upperdir=$dir/upper,workdir=$dir/work $dir/root
cd $dir/root
rm -rf etc/cni opt/cni etc/edgeway var/lib/edgeway var/lib/cni etc/machine-id usr/sbin/policy-rc.d
for unit in systemd-sysctl nftables systemd-networkd networking systemd-udevd systemd-modules-load systemd-firstboot; do
	ln -sf /dev/null etc/systemd/system/$unit.service
done
exec systemd-nspawn --quiet --register=no --keep-unit --console=pipe --machine=$name --directory=. \
	--network-namespace-path=$netns --bind=/run/netns --bind=$dir/share:/srv \
	--capability=CAP_NET_ADMIN,CAP_SYS_ADMIN /lib/systemd/systemd --unit=sysinit.target
`

// boot starts systemd on a node, and returns when it answers. dir/share is its /srv.
func boot(t *testing.T, n *lab.Node, dir string) *machine {
	t.Helper()
	m := &machine{Node: n, dir: dir}
	log, err := os.Create(filepath.Join(dir, "systemd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", bootScript, "sh", dir, n.Path, n.Netns())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.run(context.Background(), "journalctl", "--no-pager", "-n", "60")
			text, _ := os.ReadFile(log.Name())
			t.Logf("journal:\n%s\nsystemd:\n%s", out, text)
		}
		if m.pid != 0 {
			_ = unix.Kill(m.pid, unix.SIGKILL) // and its whole PID namespace
		} else {
			_ = cmd.Process.Kill()
		}
		<-done
		removeCgroups(t, n.Netns())
	})
	err = lab.Wait(t.Context(), bootTimeout, func() error {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("systemd ended: %v", err)
		default:
		}
		if m.pid == 0 {
			m.pid = firstProcess(n)
		}
		if m.pid == 0 {
			return errors.New("systemd does not run yet")
		}
		out, err := m.run(t.Context(), "systemctl", "is-active", "sysinit.target")
		if err != nil {
			return fmt.Errorf("sysinit.target: %s: %w", strings.TrimSpace(out), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// firstProcess returns the process that is number 1 of its PID namespace and in the node's network.
func firstProcess(n *lab.Node) int {
	var want unix.Stat_t
	if unix.Stat(n.Path, &want) != nil {
		return 0
	}
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, proc := range all {
		var have unix.Stat_t
		status, err := os.ReadFile(filepath.Join(proc, "status"))
		if err != nil || unix.Stat(filepath.Join(proc, "ns/net"), &have) != nil || have.Ino != want.Ino {
			continue
		}
		_, line, _ := strings.Cut(string(status), "NSpid:")
		line, _, _ = strings.Cut(line, "\n")
		if pids := strings.Fields(line); len(pids) == 2 && pids[1] == "1" {
			var pid int
			fmt.Sscan(pids[0], &pid)
			return pid
		}
	}
	return 0
}

// run runs a command on the machine and returns what it prints.
func (m *machine) run(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(m.pid), "-m", "-u", "-i", "-p", "-n", "-r", "-w", "--"}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), err
}

func (m *machine) must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := m.run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// path is the path of the machine's file on this machine.
func (m *machine) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.pid), name)
}

func (m *machine) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// changed lists the files that the machine wrote, without the files that systemd itself writes.
func (m *machine) changed(t *testing.T) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	upper := filepath.Join(m.dir, "upper")
	err := filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file that systemd has just removed
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, upper)
		for _, own := range []string{"/var/log", "/var/cache", "/var/lib/dpkg", "/var/lib/systemd", "/var/tmp", "/tmp", "/run"} {
			if name == own || strings.HasPrefix(name, own+"/") {
				return nil
			}
		}
		// The overlay copies a lower directory when a file in it changes; a whiteout is a device.
		if below, err := os.Stat(name); err == nil && below.IsDir() && d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode()&fs.ModeCharDevice == 0 {
			files[name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// network lists what a program may leave in the machine's network. Anycast addresses come with
// forwarding, which stays on.
func (m *machine) network(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, argv := range [][]string{
		{"ip", "-d", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "nexthop"}, {"nft", "list", "ruleset"},
	} {
		fmt.Fprintf(&out, "# %s\n", strings.Join(argv, " "))
		for line := range strings.Lines(m.must(t, argv...)) {
			if !strings.HasPrefix(line, "anycast ") {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

// removeCgroups removes the cgroups that boot made, after the last process has ended.
func removeCgroups(t *testing.T, name string) {
	if err := lab.Cgroup("/" + name).Remove(context.Background()); err != nil {
		t.Errorf("cgroups: %v", err)
	}
}
