package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// boxTimeout bounds the start of a program such as containerd on a busy machine.
const boxTimeout = 60 * time.Second

// Box is a node that also has mount and UTS (host name) namespaces, so that programs find their default
// paths in it, and a cgroup for its pods. The mounts disappear with the last process of the box. Process
// IDs and cgroup hierarchies are shared with the whole machine.
type Box struct {
	*Node
	Cgroup Cgroup
	Env    []string // environment of the box's programs; nil: this process's environment

	holder *Process // keeps the namespaces
	runs   []run    // in start order
}

type run struct {
	name string
	*Process
}

// NewBox prepares the box of a node without starting anything.
func (l *Lab) NewBox(name string) *Box {
	return &Box{Node: l.Node(name), Cgroup: NewCgroup(l.Prefix, name, os.Getpid())}
}

// bootedWord is the last word that a boot script prints.
const bootedWord = "booted"

// Boot switches the box on. The script mounts the directories that are new at each boot and those that stay
// on the node's disk. In the script, DIR is the node's directory, NAME is its name, and pretend PATH
// CONTENT covers a file of /proc/sys. Each box has a boot ID of its own (drivers/char/random.c), which
// changes at each boot.
func (b *Box) Boot(ctx context.Context, script string) error {
	script = strings.NewReplacer("DIR", b.Dir, "NAME", b.Name).Replace(`set -e
pretend() { mkdir -p /run/sys; echo "$2" >/run/sys/$(basename $1); mount --bind /run/sys/$(basename $1) /proc/sys/$1; }
` + script + `
pretend kernel/random/boot_id $(cat /proc/sys/kernel/random/uuid)
echo ` + bootedWord + `
exec sleep infinity
`)
	log := b.file("mounts.log")
	if err := os.RemoveAll(log); err != nil { // left by an earlier boot
		return fmt.Errorf("%s: %w", b.Name, err)
	}
	var err error
	b.holder, err = Program{Argv: []string{"unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script}, Log: log, Space: b.Space}.Start()
	if err != nil {
		return err
	}
	return Wait(ctx, boxTimeout, func() error {
		if err := b.holder.Err(); err != nil {
			return fmt.Errorf("%s: %w", b.Name, err)
		}
		if out := Tail(log, 1); out != bootedWord {
			return fmt.Errorf("%s: mounts: %s", b.Name, out)
		}
		return nil
	})
}

// InsidePath is the path under which this process finds a file of the running box.
func (b *Box) InsidePath(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", b.holder.PID(), name)
}

// inside is the command line that runs argv in the box's mount and UTS namespaces. nsenter executes the
// program in its own process, so the process ID stays the same.
func (b *Box) inside(argv []string) []string {
	ns := fmt.Sprintf("/proc/%d/ns/", b.holder.PID())
	return append([]string{"nsenter", "--uts=" + ns + "uts", "--mount=" + ns + "mnt", "--"}, argv...)
}

// StartProgram starts a program in the box and waits until it serves. Its log is NAME.log.
func (b *Box) StartProgram(ctx context.Context, argv []string, serves func() error) error {
	name := filepath.Base(argv[0])
	p, err := Program{Argv: b.inside(argv), Log: b.file(name + ".log"), Env: b.Env, Space: b.Space}.Start()
	if err != nil {
		return fmt.Errorf("%s: %w", b.Name, err)
	}
	b.runs = append(slices.DeleteFunc(b.runs, func(r run) bool { return r.name == name }), run{name, p})
	return Wait(ctx, boxTimeout, func() error {
		if err := p.Err(); err != nil {
			return fmt.Errorf("%s: %w", b.Name, err)
		}
		return serves()
	})
}

// Program returns a started program of the box, or nil if it was not started.
func (b *Box) Program(name string) *Process {
	for _, r := range b.runs {
		if r.name == name {
			return r.Process
		}
	}
	return nil
}

// RunInside runs a command in the box and returns its standard output.
func (b *Box) RunInside(ctx context.Context, argv ...string) (string, error) {
	inside := b.inside(argv)
	out, err := b.run(ctx, b.Env, "", inside[0], inside[1:]...)
	if err != nil {
		err = fmt.Errorf("%s: %w", b.Name, err)
	}
	return out, err
}

// PowerOff kills every program of the box and its pods, as a power cut does. Programs that start others are
// killed first. Only some of them need to run.
func (b *Box) PowerOff(ctx context.Context) error {
	var errs []error
	for _, r := range slices.Backward(b.runs) {
		errs = append(errs, r.Kill())
	}
	b.runs = nil
	if b.holder != nil {
		errs = append(errs, KillIn(ctx, b.Machine, b.holder.PID()))
	}
	errs = append(errs, b.Cgroup.Remove(ctx), b.holder.Kill())
	return errors.Join(errs...)
}

// ContainerdConfig is a configuration of version 2, which containerd 1.6 and 2.x read. A test machine may
// have no AppArmor. It may also lack CAP_SYS_RESOURCE, without which runc cannot lower an OOM score.
func ContainerdConfig(image, confDir, binDir string) string {
	return strings.NewReplacer("IMAGE", image, "CNI_CONF", confDir, "CNI_BIN", binDir).Replace(`version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "CNI_CONF"
  bin_dir = "CNI_BIN"
`)
}

// KubeletScript boots a node that runs a kubelet and a container runtime with their default paths: it mounts
// the node's own directories and those that are new at each boot. It mounts /sys again, because /sys shows the
// network namespace in which it was mounted. The kubelet wants to change some settings of the whole machine.
// It sees files in their place.
const KubeletScript = `
hostname NAME
mkdir -p DIR/cgroup
mount --rbind /sys/fs/cgroup DIR/cgroup
umount -R -l /sys
mount -t sysfs sysfs /sys
mount --rbind DIR/cgroup /sys/fs/cgroup
umount -R -l DIR/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind DIR/var-lib /var/lib
mount --bind DIR/var-log /var/log
mount --bind DIR/opt /opt
mount -t overlay overlay -o lowerdir=/etc,upperdir=DIR/etc,workdir=DIR/etc-work /etc
pretend vm/overcommit_memory 1
pretend vm/panic_on_oom 0
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000
pretend kernel/keys/root_maxbytes 25000000
mount --make-rshared /`
