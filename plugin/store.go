package plugin

import (
	"context"
	"path/filepath"
	"time"

	"github.com/edgeway-cni/edgeway/ipam"
)

// OpenStore opens the store of leases at path for this boot. A damaged file is rebuilt from its last good
// copy and from this node's links. The host network namespace is the calling thread's. wait bounds the
// wait for the store's lock.
func OpenStore(ctx context.Context, path string, wait time.Duration) (*ipam.Store, error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	f := found{dir: filepath.Dir(filepath.Clean(path)), names: map[ipam.Attachment]bool{}}
	return ipam.Open(ctx, path, ipam.Options{BootID: boot, LockTimeout: wait, Recover: f.recover, FoundAs: f.as, Lives: Lives})
}

// found are the attachments whose links named them.
type found struct {
	dir   string
	names map[ipam.Attachment]bool
}

func (f found) recover() ([]ipam.Lease, error) {
	leases, err := Recover(f.dir)
	for _, l := range leases {
		f.names[l.Attachment] = true
	}
	return leases, err
}

// as is the attachment that recover reports for an attachment of the last good copy.
func (f found) as(a ipam.Attachment) ipam.Attachment {
	if f.names[a] {
		return a
	}
	return recovered(a)
}
