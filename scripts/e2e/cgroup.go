package main

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

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// cgroups is where the machine has its hierarchies: several of version 1, or the one of version 2.
const cgroups = "/sys/fs/cgroup"

// cgroup is the parent of a node's pods, "/ew-4f2a-node3-owner1234": it tells their processes from
// all others, and names the process whose run they belong to, which may have ended without a word.
type cgroup string

func newCgroup(prefix, node string) cgroup {
	return cgroup(fmt.Sprintf("/%s-%s-owner%d", prefix, strings.ReplaceAll(node, "-", ""), os.Getpid()))
}

var owned = regexp.MustCompile(`^/ew-[0-9a-f]{4}-\w+-owner([1-9][0-9]*)$`)

// sweepCgroups ends the pods whose owner has ended, and returns the names of their groups.
func sweepCgroups(ctx context.Context) (gone []string, err error) {
	var errs []error
	for _, pattern := range []string{cgroups + "/ew-*", cgroups + "/*/ew-*"} {
		dirs, _ := filepath.Glob(pattern) // the pattern is valid
		for _, dir := range dirs {
			g := cgroup("/" + filepath.Base(dir))
			match := owned.FindStringSubmatch(string(g))
			if match == nil || slices.Contains(gone, string(g)) {
				continue
			}
			if pid, err := strconv.Atoi(match[1]); err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				continue
			}
			errs = append(errs, g.remove(ctx))
			gone = append(gone, string(g))
		}
	}
	return gone, errors.Join(errs...)
}

// make makes the group in each hierarchy. In version 1 a new group of cpuset has no processors and
// no memory, and so could hold no process: it gets its parent's.
func (g cgroup) make() error {
	hierarchies := []string{cgroups}
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err != nil {
		if hierarchies, err = filepath.Glob(cgroups + "/*/cgroup.procs"); err != nil {
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

// dirs are the group's directories, innermost first.
func (g cgroup) dirs() []string {
	var all []string
	for _, pattern := range []string{cgroups, cgroups + "/*"} {
		tops, _ := filepath.Glob(pattern + string(g)) // the pattern is valid
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

// pids of the processes in the group.
func (g cgroup) pids() []int {
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

// remove kills every process of the group, waits for their end, and removes the group.
func (g cgroup) remove(ctx context.Context) error {
	return lab.Wait(ctx, stopTimeout, func() error {
		for _, pid := range g.pids() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if pids := g.pids(); len(pids) > 0 {
			return fmt.Errorf("processes %v of %s have not ended", pids, g)
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
