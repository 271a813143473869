package plugin

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	// verbTimeout bounds one verb. Runtimes wait minutes; a kernel that needs longer than this for one
	// link is stuck.
	verbTimeout = 60 * time.Second
	// undoTimeout bounds the work after a verb's own context ended.
	undoTimeout = 20 * time.Second
	// idleKernels is how many sockets to the host's namespace stay open. The kernel serialises changes
	// (rtnl). But the caller that deletes a link then waits for an RCU grace period (net/core/dev.c:
	// netdev_run_todo), and those waits overlap.
	idleKernels = 8
)

// Node makes attachments: one store, one host network namespace. The zero Node with a Store is ready; its
// host namespace is the namespace of the first calling thread. With a nil Store, verbs that need a store
// ask the runtime to try again later.
type Node struct {
	Store *ipam.Store
	// Dir is the store's directory. Links name it: links of other stores are left alone.
	Dir string

	// unborn: the store has no file yet, so there are no leases.
	unborn bool
	// reopen opens the store again in a process that shares it with others (yield). Nil: the process
	// keeps the store as long as it lives.
	reopen func(context.Context) (*ipam.Store, error)
	// claimed: this process, which serves one call, has claimed the attachment already (ipam.Claim).
	claimed bool

	opened  sync.Once
	openErr error
	home    *os.File // the host's network namespace
	idle    chan kernel
	// deletions, when set, delete the links of a DEL: see DeleteEarly.
	deletions *routes.Deletions

	// sweep keeps GC and Sweep, which work on all attachments, apart from the verbs. The verbs of one
	// attachment are serialised by their claims (ipam.Claim).
	sweep sync.RWMutex

	// decided are the proxy entries of uplinks in a process that keeps the store; see SetProxies.
	decided atomic.Pointer[[]routes.ProxyNeigh]

	// taken are addresses that ADD passed over; Taken asks the kernel again.
	taken struct {
		sync.Mutex
		addrs map[netip.Addr]bool
	}

	// announcing are announcements that no call waits for: see announce.
	announcing sync.WaitGroup

	// stderr receives a delegated plugin's standard error, which also goes into the error. Nil: into the
	// error alone.
	stderr io.Writer

	// dial opens a kernel; tests add faults. Nil: routes.OpenNetns.
	dial func(netns *os.File) (kernel, error)
}

// NewNode returns a Node on the store in dir. Its host network namespace is the calling thread's.
func NewNode(store *ipam.Store, dir string) (*Node, error) {
	n := &Node{Store: store, Dir: filepath.Clean(dir)}
	return n, n.open()
}

// DeleteEarly makes a DEL answer once the kernel announces that its link is gone, some 20 ms before the
// kernel acknowledges the deletion. Close waits for the acknowledgements, so a process that serves one
// call does not use this.
func (n *Node) DeleteEarly() (err error) {
	n.deletions, err = routes.OpenDeletions(n.home)
	return err
}

// Close closes the sockets, not the Store. No verb may be running.
func (n *Node) Close() error {
	n.announcing.Wait()
	if n.home == nil {
		return nil
	}
	if n.deletions != nil {
		n.deletions.Close()
	}
	for {
		select {
		case k := <-n.idle:
			k.Close()
		default:
			return n.home.Close()
		}
	}
}

func (n *Node) open() error {
	n.opened.Do(func() {
		n.idle = make(chan kernel, idleKernels)
		n.home, n.openErr = os.Open("/proc/thread-self/ns/net")
		if n.dial == nil {
			n.dial = func(netns *os.File) (kernel, error) { return routes.OpenNetns(netns) }
		}
	})
	if n.openErr != nil {
		return fault(codeIO, "open the host's network namespace: %w", n.openErr).next("mount /proc")
	}
	return nil
}

// kernel is the part of routes.Kernel that the verbs use.
type kernel interface {
	Observe(ctx context.Context, scope routes.Scope, desired routes.State) (routes.State, error)
	Sync(ctx context.Context, scope routes.Scope, desired routes.State) ([]routes.Change, error)
	MakePair(ctx context.Context, l routes.Link, addrs []netip.Addr, furnish furnish) (peer int, err error)
	Fill(ctx context.Context, index int, desired routes.State) error
	Settle(link string) error
	AwaitLocal(ctx context.Context, addrs []netip.Addr)
	Announce(ctx context.Context, link string, a netip.Addr) error
	Cookie() uint64
	Host(ctx context.Context) (routes.Host, error)
	Lookup(ctx context.Context, a netip.Addr) (routes.Route, error)
	Links(ctx context.Context, prefix string) ([]routes.Link, error)
	Holders(ctx context.Context, addrs ...netip.Addr) (held []routes.Route, sourceless bool, err error)
	Answering(ctx context.Context, held []routes.Route) ([]routes.Route, error)
	RoutesOn(ctx context.Context, link string) ([]routes.Route, error)
	FlushConntrack(ctx context.Context, a netip.Addr) error
	Close()
}

var _ kernel = (*routes.Kernel)(nil)

// furnish says what the host's end of a new pair gets, or why it gets nothing (routes.Kernel.MakePair).
type furnish = func(held []routes.Route, sourceless bool) (routes.State, error)

// host borrows a kernel of the host's namespace; done gives the kernel back.
func (n *Node) host() (k kernel, done func(), err error) {
	select {
	case k = <-n.idle:
	default:
		if k, err = n.dial(n.home); err != nil {
			return nil, nil, fault(codeIO, "open the host's network namespace: %w", err).next("run the plugin as root in the host's network namespace")
		}
	}
	return k, func() {
		select {
		case n.idle <- k:
		default:
			k.Close()
		}
	}, nil
}

// alone calls do with a kernel of the host, while no verb runs.
func (n *Node) alone(do func(host kernel) error) error {
	host, done, err := n.host()
	if err != nil {
		return err
	}
	defer done()
	n.sweep.Lock()
	defer n.sweep.Unlock()
	return do(host)
}

func linkExists(ctx context.Context, k kernel, name string) (bool, error) {
	observed, err := k.Observe(ctx, routes.Scope{}, routes.State{Links: []routes.Link{{Name: name}}})
	if err != nil {
		return false, fmt.Errorf("look up link %s: %w", name, err)
	}
	return len(observed.Links) > 0, nil
}

// deleteLinks removes links of ours and everything on them; an absent link is not an error.
func deleteLinks(ctx context.Context, k kernel, names ...string) error {
	_, err := k.Sync(ctx, routes.Scope{Links: names}, routes.State{})
	return err
}
