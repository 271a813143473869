package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// describe describes the machine of the measurement. The facts do not identify the machine.
func describe(ctx context.Context, o options) []fact {
	facts := []fact{
		{"processors", fmt.Sprintf("%d, %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"))},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"kernel", strings.TrimSpace(read("/proc/sys/kernel/osrelease"))},
		{"stores on", fileSystem(o.dir)},
		{"load before", strings.Join(strings.Fields(read("/proc/loadavg") + " - - -")[:3], " ")},
		{"go", runtime.Version()},
	}
	if out, err := exec.CommandContext(ctx, o.bin+"/edgewayd", "--version").Output(); err == nil {
		facts = append(facts, fact{"edgeway", strings.TrimSpace(string(out))})
	}
	if out, err := exec.CommandContext(ctx, "bird", "--version").CombinedOutput(); err == nil {
		facts = append(facts, fact{"bird", strings.TrimSpace(strings.TrimPrefix(string(out), "BIRD version"))})
	}
	if out, err := exec.CommandContext(ctx, "ip", "-V").Output(); err == nil {
		facts = append(facts, fact{"iproute2", strings.TrimSpace(strings.TrimPrefix(string(out), "ip utility, iproute2-"))})
	}
	info, _ := debug.ReadBuildInfo() // nil only outside of module builds
	if info != nil {
		for _, d := range info.Deps {
			switch d.Path {
			case "github.com/containernetworking/plugins", "go.etcd.io/bbolt":
				facts = append(facts, fact{d.Path[strings.Index(d.Path, "/")+1:], d.Version})
			}
		}
	}
	return facts
}

func read(path string) string {
	b, _ := os.ReadFile(path) // a missing file is shown as empty
	return string(b)
}

// field returns the value of the first "name: value" line in a file below /proc.
func field(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "unknown"
}

// fileSystem returns the type of dir's file system (statfs(2)).
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err.Error()
	}
	names := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs: fsync does nothing", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}
	if n, ok := names[int64(st.Type)]; ok {
		return n
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
