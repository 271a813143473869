package ipam

import "context"

// Store is the bbolt file that holds all leases of a node. One process holds it at a time;
// inside that process any number of goroutines may call it.
type Store struct{}

// Open opens or creates the store at path. A file that does not open or fails its check is
// kept aside, never deleted.
func Open(ctx context.Context, path string, opts Options) (*Store, error) { panic("not yet") }

// Close releases the file and its lock. Calls in flight finish first.
func (s *Store) Close() error { panic("not yet") }

// Allocate leases one address of each set to the attachment, and returns when that is on disk.
// Order of choice: the addresses asked for, the ones the pod had last, never used, longest free.
func (s *Store) Allocate(ctx context.Context, req Request) (Lease, error) { panic("not yet") }

// Release ends the attachment's lease and returns it; ok is false when there was none, which is
// no error.
func (s *Store) Release(ctx context.Context, a Attachment) (lease Lease, ok bool, err error) {
	panic("not yet")
}

// Lookup returns the attachment's lease.
func (s *Store) Lookup(a Attachment) (lease Lease, ok bool, err error) { panic("not yet") }

// Leases returns all leases, oldest first.
func (s *Store) Leases() ([]Lease, error) { panic("not yet") }

// SetPool makes p the pool of requests that name none. Leases outside p stay valid.
func (s *Store) SetPool(ctx context.Context, p Pool) error { panic("not yet") }

// Pool returns what SetPool stored last; ok is false when it never did.
func (s *Store) Pool() (p Pool, ok bool, err error) { panic("not yet") }

// Usage counts the addresses of p.
func (s *Store) Usage(p Pool) (Usage, error) { panic("not yet") }
