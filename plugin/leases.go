package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/edgeway-cni/edgeway/ipam"
)

// errNoStore: the Node has no store (yet).
var errNoStore = errors.New("the store of leases is not open")

// needStore must be called before the methods below. A store that has no file yet has no leases, so no
// Store is needed to say so.
func (n *Node) needStore(ctx context.Context) (err error) {
	if n.Store == nil && n.reopen != nil {
		n.Store, err = n.reopen(ctx)
		return err
	}
	if n.Store == nil && !n.unborn {
		return fault(codeTryAgain, "%w", errNoStore).next("check edgewayd status and its log")
	}
	return nil
}

// yield closes the store for other processes, until the next needStore. A store that is not shared stays
// open.
func (n *Node) yield() error {
	if n.Store == nil || n.reopen == nil {
		return nil
	}
	store := n.Store
	n.Store = nil
	return store.Close()
}

func (n *Node) lookup(a ipam.Attachment) (l ipam.Lease, ok bool, err error) {
	if n.Store == nil {
		return l, false, nil
	}
	if l, ok, err = n.Store.Lookup(a); ok || err != nil {
		return l, ok, err
	}
	return n.Store.Lookup(recovered(a))
}

func (n *Node) leases() ([]ipam.Lease, error) {
	if n.Store == nil {
		return nil, nil
	}
	return n.Store.Leases()
}

func (n *Node) release(ctx context.Context, a ipam.Attachment) error {
	if n.Store == nil {
		return nil
	}
	_, _, err := n.Store.Release(ctx, a)
	return err
}

func (n *Node) storedPool() (p ipam.Pool, ok bool, err error) {
	if n.Store == nil {
		return p, false, nil
	}
	return n.Store.Pool()
}

// poolOf is the pool of a network configuration or, without one, the pool that the daemon set.
func (n *Node) poolOf(configured *ipam.Pool) (*ipam.Pool, error) {
	if configured != nil {
		return configured, nil
	}
	stored, ok, err := n.storedPool()
	if err == nil && !ok {
		err = fmt.Errorf("%w yet", ipam.ErrNoPool)
	}
	return &stored, err
}
