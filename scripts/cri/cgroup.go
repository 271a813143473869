package cri

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

// cgroup is the parent of a node's pods, "/ew-4f2a-n1-owner1234". It tells their processes from all
// others: these live in namespaces of their own, whose parents may have ended. It also names the
// process whose laboratory the node belongs to, which may have ended without a word.
type cgroup string

func newCgroup(prefix, node string, owner int) cgroup {
	return cgroup(fmt.Sprintf("/%s-%s-owner%d", prefix, node, owner))
}

// owned is what newCgroup returns.
var owned = regexp.MustCompile(`^/ew-[0-9a-f]{4}-\w+-owner([1-9][0-9]*)$`)

// sweep kills the pods whose owner has ended, removes their cgroups and returns the names of these.
// Where another process has the owner's PID now, they stay for as long as that one lives.
func sweep(ctx context.Context) (gone []string, err error) {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/ew-*", "/sys/fs/cgroup/*/ew-*"} {
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
			errs = append(errs, g.kill(ctx), g.remove(ctx))
			gone = append(gone, string(g))
		}
	}
	return gone, errors.Join(errs...)
}

// dirs are the group's directories, innermost first: one tree in each hierarchy of version 1, or a
// single one of version 2.
func (g cgroup) dirs() []string {
	var all []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
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

// pids of the processes in the group.
func (g cgroup) pids() []int {
	var all []int
	for _, dir := range g.dirs() {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile
		}
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all
}

// kill kills every process of the group and waits for their end.
func (g cgroup) kill(ctx context.Context) error {
	return lab.Wait(ctx, stopTimeout, func() error {
		pids := g.pids()
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v of %s have not ended", pids, g)
		}
		return nil
	})
}

// remove removes the empty group.
func (g cgroup) remove(ctx context.Context) error {
	return lab.Wait(ctx, stopTimeout, func() error {
		var errs []error
		for _, dir := range g.dirs() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}
