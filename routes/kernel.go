package routes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Kernel talks to one network namespace over sockets that stay open. Its methods may be called
// from any goroutine.
type Kernel struct {
	c  *conn
	ns netns.NsHandle

	filter   sync.Mutex // guards filtered
	filtered *conn      // socket for nftables and connection tracking; nil until it is needed

	passages passages
	proxied  atomic.Bool // a State had IPv6 proxies: routes of pods count for Watch
	xtLock   string      // the lock of legacy iptables; tests have one of their own
}

// Open returns the Kernel of the calling thread's network namespace.
func Open() (*Kernel, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	return open(ns)
}

// OpenNetns returns the Kernel of the namespace that the open file names
// (/proc/PID/ns/net or a bind mount of such a file). The file may be closed afterwards.
func OpenNetns(ns *os.File) (*Kernel, error) {
	fd, err := dup(ns)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", ns.Name(), err)
	}
	k, err := open(netns.NsHandle(fd))
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", ns.Name(), err)
	}
	return k, nil
}

// open takes ownership of ns.
func open(ns netns.NsHandle) (*Kernel, error) {
	c, err := dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &Kernel{c: c, ns: ns, xtLock: xtLockFile}, nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	k.c.close()
	if k.filtered != nil {
		k.filtered.close()
	}
	k.ns.Close()
}

// netfilter returns the socket for nftables and connection tracking.
func (k *Kernel) netfilter() (*conn, error) {
	k.filter.Lock()
	defer k.filter.Unlock()
	if k.filtered != nil {
		return k.filtered, nil
	}
	c, err := dial(k.ns, unix.NETLINK_NETFILTER)
	if err == nil {
		k.filtered = c
	}
	return c, err
}

// Observe reads the objects that the namespace has in scope, and the objects in the place of each
// object that desired names.
func (k *Kernel) Observe(ctx context.Context, scope Scope, desired State) (State, error) {
	v := newView(k.c)
	v.holders = true
	return k.observe(ctx, v, scope, desired)
}

func (k *Kernel) observe(ctx context.Context, v *view, scope Scope, desired State) (s State, err error) {
	parts := []func() error{
		func() (err error) { s.Links, err = v.observeLinks(scope, desired.Links); return err },
		func() error { v.brief = v.brief && !remakes(s.Links, desired.Links); return nil },
		func() (err error) { s.Addrs, err = v.observeAddrs(scope, desired.Addrs); return err },
		func() (err error) { s.Neighs, err = v.observeNeighs(scope, desired.Neighs); return err },
		func() (err error) { s.FDB, err = v.observeFDB(scope, desired.FDB); return err },
		func() (err error) { s.Routes, err = v.observeRoutes(scope, desired.Routes); return err },
		func() (err error) { s.Rules, err = v.observeRules(scope, desired.Rules); return err },
		func() (err error) { s.Proxies, err = v.observeProxies(scope, desired.Proxies); return err },
		func() (err error) { s.Sysctls, err = k.observeSysctls(v, desired.Sysctls); return err },
		func() error { s.NAT = k.observeNAT(scope, desired); return nil },
		func() error { s.Senders = k.observeSenders(scope, desired.Senders); return nil },
		func() error { s.SourceCheck = k.observeSourceCheck(scope, desired.SourceCheck); return nil },
		func() error { s.Symmetric = k.observeSymmetric(scope, desired.Symmetric); return nil },
		func() error { s.Announced = k.observeAnnounced(scope, desired.Announced); return nil },
		func() (err error) {
			if scope.Passages != nil {
				s.Passages, err = scope.Passages.observe(ctx, k)
			}
			return err
		},
		func() (err error) { s.Masq, err = k.observeMasq(v, scope.Masq, desired.Masq); return err },
	}
	for _, read := range parts {
		if err := ctx.Err(); err != nil {
			return State{}, err
		}
		if err := read(); err != nil {
			return State{}, fmt.Errorf("observe: %w", err)
		}
	}
	return s, nil
}

// Sync makes the namespace look like desired. It returns the changes that it made or could not make.
// The error joins the errors of the changes: one error does not stop the other changes.
func (k *Kernel) Sync(ctx context.Context, scope Scope, desired State) ([]Change, error) {
	v := newView(k.c)
	if desired.SourceCheck != nil {
		others, err := v.otherAddrs()
		if err != nil {
			return nil, err
		}
		desired.SourceCheck = &SourceCheck{others: others}
	}
	var err error
	if scope.Passages == nil {
		desired.Passages = nil
	} else if desired.Passages, err = scope.Passages.existing(k, desired.Passages); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(desired.Proxies, ProxyNeigh.v6) {
		k.proxied.Store(true) // before the routes of pods are read: Watch reports what changes afterwards
	}
	v.brief = true
	observed, err := k.observe(ctx, v, scope, desired)
	if err != nil {
		return nil, err
	}
	desired.Routes = v.wrong(desired.Routes)
	if desired.Proxies, err = v.answerable(desired.Proxies); err != nil {
		return nil, err
	}
	changes := Diff(observed, desired)
	a := applier{k: k, v: v, ctx: ctx, firewalls: scope.Passages}
	a.apply(changes)
	errs := []error{a.sweep(changes)}
	for _, c := range changes {
		errs = append(errs, c.Err)
	}
	return changes, errors.Join(errs...)
}

// Links returns the links whose names start with prefix.
func (k *Kernel) Links(ctx context.Context, prefix string) ([]Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return newView(k.c).links(func(name string) bool { return strings.HasPrefix(name, prefix) })
}
