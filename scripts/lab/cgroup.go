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

// Cgroups is where the machine mounts its cgroup hierarchies: several of version 1, or the single one of
// version 2.
const Cgroups = "/sys/fs/cgroup"

// Cgroup is the parent cgroup of a node's pods, "/ew-4f2a-n1-owner1234". It identifies their processes,
// which have their own namespaces and whose parents may have ended. The name contains the PID of the
// laboratory's owner, which may die without cleaning up.
type Cgroup string

// NewCgroup names the group of a node in the laboratory with this prefix. It does not create the group.
func NewCgroup(prefix, node string, owner int) Cgroup {
	return Cgroup(fmt.Sprintf("/%s-%s-owner%d", prefix, strings.ReplaceAll(node, "-", ""), owner))
}

var owned = regexp.MustCompile(`^/ew-[0-9a-f]{4}-\w+-owner([1-9][0-9]*)$`)

// sweepCgroups kills the pods whose owner has ended, removes their cgroups and returns the names of the
// cgroups. If another process now has the owner's PID, the pods stay as long as that process lives.
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

// Make creates the group in each hierarchy. A kubelet expects to find the group; containerd creates its
// own. In version 1 a new cpuset group has no processors and no memory, so it could not hold a process.
// Make copies both from the parent.
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
				continue // the hierarchy has no cpuset
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

// dirs are the group's directories, innermost first: one tree in each hierarchy of version 1, or a single
// tree in version 2.
func (g Cgroup) dirs() []string {
	var all []string
	for _, root := range []string{Cgroups, Cgroups + "/*"} {
		tops, _ := filepath.Glob(root + string(g)) // the pattern is valid
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() { // a directory that is gone by now needs no removal
					all = append(all, path)
				}
				return nil
			})
		}
	}
	slices.Reverse(all)
	return all
}

// PIDs returns the processes in the group.
func (g Cgroup) PIDs() []int {
	var all []int
	for _, dir := range g.dirs() {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed in the meantime
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all
}

// Remove kills every process of the group, waits for their end, and removes the group. A missing group is
// not an error.
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

// KillIn kills the processes in a machine's network namespace, except this process and the process with the
// PID but, and waits for their end. On a node these are containerd's shims and the programs that they
// started outside of a pod.
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

// inSpaces returns the processes in the network namespaces with these paths, except this process.
func inSpaces(paths ...string) (pids []int, err error) {
	ours := map[uint64]bool{} // nsfs gives each namespace its own inode number
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
		// A process that has just ended has no namespace.
		if err == nil && pid != os.Getpid() && unix.Stat(filepath.Join(proc, "ns/net"), &st) == nil && ours[st.Ino] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// kill kills the processes. It returns nil only when the list is empty, because a killed process takes a
// moment to end.
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
