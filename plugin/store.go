package plugin

import (
	"context"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
)

// OpenStore opens the store of leases at path for this boot. A damaged file is rebuilt from its
// last good copy and from what this node's links say; the host network namespace is the calling
// thread's. wait bounds the wait for the store's lock.
func OpenStore(ctx context.Context, path string, wait time.Duration) (*ipam.Store, error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	return ipam.Open(ctx, path, ipam.Options{BootID: boot, LockTimeout: wait, Recover: Recover, FoundAs: recovered, Lives: Lives})
}
