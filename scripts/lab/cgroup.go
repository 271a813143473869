package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroups is where the machine has its hierarchies: several of version 1, or the one of version 2.
const Cgroups = "/sys/fs/cgroup"

// Cgroup is the parent of a node's pods, "/ew-4f2a-n1-owner1234". It tells their processes from all
// others: these live in namespaces of their own, whose parents may have ended. It also names the
// process whose laboratory the node belongs to, which may have ended without a word.
type Cgroup string

// NewCgroup names the group of a node in the laboratory of this prefix. It does not make it.
func NewCgroup(prefix, node string, owner int) Cgroup {
	return Cgroup(fmt.Sprintf("/%s-%s-owner%d", prefix, strings.ReplaceAll(node, "-", ""), owner))
}

// owned is what NewCgroup returns.
var owned = regexp.MustCompile(`^/ew-[0-9a-f]{4}-\w+-owner([1-9][0-9]*)$`)

// sweepCgroups kills the pods whose owner has ended, removes their cgroups and returns the names of
// these. Where another process has the owner's PID now, they stay for as long as that one lives.
func sweepCgroups() (gone []string, err error) {
	var errs []error
	for _, pattern := range []string{Cgroups + "/ew-*", Cgroups + "/*/ew-*"} {
		dirs, _ := filepath.Glob(pattern) // the pattern is valid
		for _, dir := range dirs {
			g := Cgroup("/" + filepath.Base(dir))
			match := owned.FindStringSubmatch(string(g))
			if match == nil || slices.Contains(gone, string(g)) {
				continue
			}
			if pid, err := strconv.Atoi(match[1]); err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				continue
			}
			errs = append(errs, g.Remove(context.Background()))
			gone = append(gone, string(g))
		}
	}
	return gone, errors.Join(errs...)
}

// Make makes the group in each hierarchy, for a kubelet, which wants to find it; containerd makes
// its own. In version 1 a new group of cpuset has no processors and no memory, and so could not hold a
// process: it gets its parent's.
func (g Cgroup) Make() error {
	hierarchies := []string{Cgroups}
	if _, err := os.Stat(filepath.Join(Cgroups, "cgroup.controllers")); err != nil {
		if hierarchies, err = filepath.Glob(Cgroups + "/*/cgroup.procs"); err != nil {
			return err
		}
	}
	for _, h := range hierarchies {
		h = strings.TrimSuffix(h, "/cgroup.procs")
		dir := filepath.Join(h, string(g))
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(h, name))
			if err != nil {
				continue // not this hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

// dirs are the group's directories, innermost first: one tree in each hierarchy of version 1, or a
// single one of version 2.
func (g Cgroup) dirs() []string {
	var all []string
	for _, root := range []string{Cgroups, Cgroups + "/*"} {
		tops, _ := filepath.Glob(root + string(g)) // the pattern is valid
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() { // what is gone meanwhile needs no removal
					all = append(all, path)
				}
				return nil
			})
		}
	}
	slices.Reverse(all)
	return all
}

// PIDs of the processes in the group.
func (g Cgroup) PIDs() []int {
	var all []int
	for _, dir := range g.dirs() {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all
}

// Remove kills every process of the group, waits for their end, and removes the group. One that is
// not there is success.
func (g Cgroup) Remove(ctx context.Context) error {
	return Wait(ctx, closeTimeout, func() error {
		if err := kill(g.PIDs()); err != nil {
			return fmt.Errorf("%s: %w", g, err)
		}
		var errs []error
		for _, dir := range g.dirs() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// KillIn kills what runs in a machine's network namespace, but for this process and another, and waits
// for the end. Of a node these are containerd's shims, and what they started outside of a pod.
func KillIn(ctx context.Context, m *Machine, but int) error {
	return Wait(ctx, closeTimeout, func() error {
		pids, err := inSpaces(m.Path)
		if err == nil {
			err = kill(slices.DeleteFunc(pids, func(pid int) bool { return pid == but }))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		return nil
	})
}

// inSpaces are the processes, but this one, in the network namespaces with these paths.
func inSpaces(paths ...string) (pids []int, err error) {
	ours := map[uint64]bool{} // inode numbers of nsfs tell namespaces apart
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			ours[st.Ino] = true
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, proc := range procs {
		var st unix.Stat_t
		pid, err := strconv.Atoi(filepath.Base(proc))
		// A process that has just ended has no namespace to look at.
		if err == nil && pid != os.Getpid() && unix.Stat(filepath.Join(proc, "ns/net"), &st) == nil && ours[st.Ino] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// kill kills processes. It is nil when there are none: a killed one takes a moment to end.
func kill(pids []int) error {
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	if len(pids) > 0 {
		return fmt.Errorf("processes %v have not ended", pids)
	}
	return nil
}
