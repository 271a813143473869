package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// minFree is the free disk space in bytes below which a lease may not fit: bbolt grows its file in steps.
const minFree = 1 << 20

// unavailable gives an error of STATUS a code that STATUS may return: 51 if running pods suffer,
// otherwise 50 (SPEC 1.1.0 section 5). Errors of other verbs stay as they are.
func unavailable(command string, err error) error {
	if err == nil || command != "STATUS" {
		return err
	}
	e := asCNI(err)
	if e.code != codeLimited && !e.said {
		e.code = codeUnavailable
	}
	return e
}

// planStatus makes the checks of an ADD.
func planStatus(rq request) (step, error) {
	o, err := newOrder(rq)
	return func(n *Node, ctx context.Context) (api.Reply, error) { return api.Reply{}, n.status(ctx, o) }, unavailable("STATUS", err)
}

// status says whether an ADD could be served now (SPEC 1.1.0 section 2, STATUS). It changes nothing.
//
// A full pool is not an error here: the kubelet takes a failed STATUS as a node that is not ready, and
// evicts the node's running pods. ADD and Full report a full pool.
func (n *Node) status(ctx context.Context, o order) error {
	rq := o.request
	if rq.conf.delegated() {
		return n.delegate(ctx, rq, "STATUS")
	}
	if err := n.needStore(ctx); err != nil {
		return err
	}
	if err := n.writable(rq.conf.dataDir()); err != nil {
		return err
	}
	pool, err := n.poolOf(o.pool)
	if err != nil || rq.conf.ipamOnly() {
		return err
	}
	leases, err := n.leases()
	if err != nil {
		return err
	}
	boot, err := BootID()
	if err != nil {
		return err
	}
	host, done, err := n.host()
	if err != nil {
		return err
	}
	defer done()
	if mtu, err := o.mtu(ctx, host); err != nil {
		return err
	} else if least := minMTUOf(pool); mtu < least {
		return smallMTU(mtu, least)
	}
	return forwards(ctx, host, leases, boot)
}

// writable checks, without writing, whether the store could grow.
func (n *Node) writable(dir string) error {
	paths := []string{dir, filepath.Join(dir, StoreFile)}
	if n.Store == nil { // the first ADD makes the directory and the file
		for dir != "/" && unix.Access(dir, unix.F_OK) == unix.ENOENT {
			dir = filepath.Dir(dir)
		}
		paths = []string{dir}
	}
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	switch {
	case err != nil:
		return fault(codeUnavailable, "data directory %s: %w", dir, err).next("create the directory, or correct dataDir")
	case fs.Flags&unix.ST_RDONLY != 0:
		return fault(codeUnavailable, "data directory %s is on a read-only file system", dir).next("mount it writable")
	case fs.Bavail*uint64(fs.Bsize) < minFree:
		return fault(codeUnavailable, "data directory %s has %d bytes left", dir, fs.Bavail*uint64(fs.Bsize)).next("make room on its file system")
	}
	for _, path := range paths {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fault(codeUnavailable, "%s is not writable: %w", path, err).next("let root write to it")
		}
	}
	return nil
}

// Full describes the first set of the store's pool that has no address for another pod; "" when every set
// has one. Leases whose holders are gone do not count: ADD takes their addresses.
func (n *Node) Full(ctx context.Context) (string, error) {
	pool, _, err := n.storedPool()
	if err != nil {
		return "", err
	}
	for _, set := range pool.Sets {
		u, err := n.Store.Usage(ipam.Pool{Sets: []ipam.RangeSet{set}, Reserved: pool.Reserved})
		if err != nil {
			return "", err
		}
		if u.Free > 0 {
			continue
		}
		all, err := n.Attachments(ctx)
		if err != nil {
			return "", err
		}
		gone := func(a Attached) bool {
			return !a.lives() && touches(a.Lease, set)
		}
		if !slices.ContainsFunc(all, gone) {
			return fmt.Sprintf("%d of %d addresses of %s are used", u.Used, u.Total, subnets(set)), nil
		}
	}
	return "", nil
}

func touches(l ipam.Lease, set ipam.RangeSet) bool {
	for _, a := range l.Addrs {
		if slices.ContainsFunc(set, func(r ipam.Range) bool { return r.Subnet.Contains(a) }) {
			return true
		}
	}
	return false
}

func subnets(set ipam.RangeSet) string {
	var out []string
	for _, r := range set {
		out = append(out, r.Subnet.String())
	}
	return strings.Join(out, ", ")
}

// forwards reports running pods that the host does not route for. Pods of an earlier boot do not run, and
// the first ADD switches forwarding on.
func forwards(ctx context.Context, host kernel, leases []ipam.Lease, boot string) error {
	var w wiring
	for _, l := range leases {
		if l.BootID == boot && !isForeign(l) {
			w.addrs = append(w.addrs, l.Addrs...)
		}
	}
	want := routes.State{Sysctls: w.forwarding()}
	if len(want.Sysctls) == 0 {
		return nil
	}
	observed, err := host.Observe(ctx, routes.Scope{}, want)
	if err != nil {
		return err
	}
	var off []string
	for _, c := range routes.Diff(observed, want) {
		if s, ok := c.Object.(routes.Sysctl); ok {
			off = append(off, s.Key)
		}
	}
	if len(off) > 0 {
		return fault(codeLimited, "the host does not route for its pods: %s is not 1", strings.Join(off, ", ")).
			next("something switched forwarding off: find the sysctl configuration that does, and set it to 1")
	}
	return nil
}

// BootID identifies this boot of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fault(codeIO, "read the boot ID: %w", err).next("mount /proc")
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", errors.New("/proc/sys/kernel/random/boot_id is empty")
	}
	return id, nil
}
