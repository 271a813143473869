package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/durable"
	"github.com/edgeway-cni/edgeway/daemon/pods"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// Remains lists the parts of edgeway that stay on this machine when its programs are removed.
type Remains struct {
	Pods   []string // running pods: pod and addresses, or a link without a lease
	Kernel []string // links, routes and rules
	Files  []string
}

// Remaining returns the remains on this machine. No daemon may run, because Remaining opens the store.
func Remaining(ctx context.Context, c config.Config) (r Remains, err error) {
	owned := map[string]bool{plugin.HostLink(plugin.Canary()): true} // it gives way to an uninstall, too
	err = pods.WithVerbs(ctx, c, func(verbs *plugin.Node) error {
		all, err := verbs.Attachments(ctx)
		for _, a := range all {
			owned[a.Link] = true
			if a.Standing.Lives() && a.Lease.Attachment != plugin.Canary() {
				r.Pods = append(r.Pods, fmt.Sprintf("%s %v", a.Lease.Pod, a.Lease.Addrs))
			}
		}
		return err
	})
	if err != nil {
		return r, err
	}
	err = eachScope(ctx, func(k *routes.Kernel, s routes.Scope) error {
		observed, err := k.Observe(ctx, s, routes.State{})
		for _, change := range routes.Diff(observed, routes.State{}) {
			r.Kernel = append(r.Kernel, fmt.Sprint(change.Object))
			if l, ok := change.Object.(routes.Link); ok && hostEnd().MatchString(l.Name) && !owned[l.Name] {
				r.Pods = append(r.Pods, "link "+l.Name)
			}
		}
		return err
	})
	if path := pods.CanaryNetns(c); routes.NetnsPinned(path) {
		r.Kernel = append(r.Kernel, "network namespace "+path)
	}
	r.Files = stateFiles(c)
	return r, err
}

// EndCanary ends the canary and removes its network namespace, where no daemon runs. It returns what it did.
func EndCanary(ctx context.Context, c config.Config) (did []string, err error) {
	path := pods.CanaryNetns(c)
	err = pods.WithVerbs(ctx, c, func(verbs *plugin.Node) error { return verbs.Remove(ctx, plugin.Canary()) })
	if err != nil {
		return nil, fmt.Errorf("end the canary: %w", err)
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, nil
	}
	switch err := routes.UnpinNetns(path); {
	case err == nil:
		did = append(did, "delete "+path)
	case !routes.NetnsPinned(path):
		return nil, fmt.Errorf("end the canary: %w", err)
	} // a container that may not unmount it leaves an empty namespace, which Remaining lists
	return did, nil
}

// Purge removes everything that Remaining finds: running pods lose their network. It returns the list of
// removals. After a failure it continues with the rest.
func Purge(ctx context.Context, c config.Config) (did []string, err error) {
	var errs []error
	errs = append(errs, pods.WithVerbs(ctx, c, func(verbs *plugin.Node) error {
		all, err := verbs.Attachments(ctx)
		errs := []error{err}
		for _, a := range all {
			if err := verbs.Remove(ctx, a.Lease.Attachment); err != nil {
				errs = append(errs, fmt.Errorf("release %s: %w", a.Lease.Attachment, err))
				continue
			}
			did = append(did, fmt.Sprintf("release %v of %s", a.Lease.Addrs, a.Lease.Attachment))
		}
		return errors.Join(errs...)
	}))
	errs = append(errs, eachScope(ctx, func(k *routes.Kernel, s routes.Scope) error {
		changes, err := k.Sync(ctx, s, routes.State{})
		for _, change := range changes {
			if change.Err == nil {
				did = append(did, change.String())
			}
		}
		return err
	}))
	if err := errors.Join(errs...); err != nil {
		return did, fmt.Errorf("%w; the files of %s are kept: try again", err, c.StateDir)
	}
	for _, path := range stateFiles(c) {
		if err := durable.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove state: %w", err))
			continue
		}
		did = append(did, "delete "+path)
	}
	for _, dir := range []string{c.StateDir, filepath.Dir(c.Socket)} {
		if os.Remove(dir) == nil { // a directory with other programs' files stays
			did = append(did, "delete "+dir)
		}
	}
	return did, errors.Join(errs...)
}

// hostEnd matches the names of pod links: ew and hexadecimal digits of a hash (plugin.HostLink).
func hostEnd() *regexp.Regexp { return regexp.MustCompile(`^ew([0-9a-f]{11}|[0-9a-f]{13})$`) }

// eachScope calls f with each part of the host's network namespace that belongs to edgeway. The pod links
// come first, because their routes go with them.
func eachScope(ctx context.Context, f func(*routes.Kernel, routes.Scope) error) error {
	k, err := routes.Open()
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w; this needs CAP_NET_ADMIN", err)
	}
	defer k.Close()
	links, err := k.Links(ctx, "ew")
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if hostEnd().MatchString(l.Name) {
			names = append(names, l.Name)
		}
	}
	all := policy.Scope()
	all.Masq = routes.Everywhere()
	var errs []error
	for _, s := range []routes.Scope{
		{Protocol: routes.ProtoPod, Links: names},
		{Protocol: routes.ProtoLearned},
		all, // last: the nftables table is deleted with all its content
	} {
		errs = append(errs, f(k, s))
	}
	return errors.Join(errs...)
}

// stateFiles returns the socket and edgeway's files in the state directory. Other files stay, because other
// programs may use stateDir too.
func stateFiles(c config.Config) (paths []string) {
	for _, pattern := range []string{plugin.StoreFile + "*", "plugin.lock", "world.json*", ".world.json*", uplink.File + "*", "." + uplink.File + "*"} {
		found, _ := filepath.Glob(filepath.Join(c.StateDir, pattern)) // the pattern is valid
		paths = append(paths, found...)
	}
	if _, err := os.Lstat(c.Socket); err == nil {
		paths = append(paths, c.Socket)
	}
	return paths
}
