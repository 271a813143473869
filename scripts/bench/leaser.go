package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"go.etcd.io/bbolt"

	"github.com/edgeway-cni/edgeway/ipam"
)

// fillers is how many goroutines lease the permanent leases, because the store commits concurrent leases
// together.
const fillers = 1024

// ours is the store under test.
type ours struct {
	store *ipam.Store
}

func openOurs(ctx context.Context, dir string, n int) (leaser, error) {
	s, err := ipam.Open(ctx, filepath.Join(dir, "ipam.db"), ipam.Options{BootID: "boot-1"})
	if err != nil {
		return nil, err
	}
	pool := ipam.Pool{Sets: []ipam.RangeSet{{{Subnet: netip.MustParsePrefix(storeSubnet)}}}}
	if err := s.SetPool(ctx, pool); err != nil {
		return nil, err
	}
	o := ours{s}
	q := queue{n: n, deadline: time.Now().Add(5 * time.Minute)}
	return o, parallel(ctx, fillers, 0, func(int) error {
		for i, ok := q.take(); ok; i, ok = q.take() {
			if err := o.allocate(ctx, fmt.Sprintf("%064x", i)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (o ours) allocate(ctx context.Context, id string) error {
	_, err := o.store.Allocate(ctx, ipam.Request{
		Attachment: ipam.Attachment{ContainerID: id, IfName: "eth0"}, Network: "edgeway",
		Pod: ipam.Pod{Namespace: "default", Name: "pod-" + id[len(id)-12:]},
	})
	return err
}

func (o ours) release(ctx context.Context, id string) error {
	_, _, err := o.store.Release(ctx, ipam.Attachment{ContainerID: id, IfName: "eth0"})
	return err
}

func (o ours) close() error { return o.store.Close() }

// updates is the simplest store on bbolt: one transaction a call. It chooses addresses in memory and does
// not store pods.
type updates struct {
	db   *bbolt.DB
	next atomic.Uint32
	mu   sync.Mutex        // guards addr
	addr map[string][]byte // by container ID
}

func openUpdates(ctx context.Context, dir string, n int) (leaser, error) {
	db, err := bbolt.Open(filepath.Join(dir, "ipam.db"), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	u := &updates{db: db, addr: map[string][]byte{}}
	for i := range n {
		if err := u.allocate(ctx, fmt.Sprintf("%064x", i)); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *updates) allocate(_ context.Context, id string) error {
	i := u.next.Add(1)
	addr := []byte{10, 1, byte(i >> 8), byte(i)}
	record, err := json.Marshal(ipam.Lease{Attachment: ipam.Attachment{ContainerID: id, IfName: "eth0"}, Since: time.Now()})
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.addr[id] = addr
	u.mu.Unlock()
	return u.db.Update(func(tx *bbolt.Tx) error {
		leases, err := tx.CreateBucketIfNotExists([]byte("leases"))
		if err != nil {
			return err
		}
		addrs, err := tx.CreateBucketIfNotExists([]byte("addrs"))
		if err != nil {
			return err
		}
		if err := addrs.Put(addr, []byte(id)); err != nil {
			return err
		}
		return leases.Put([]byte(id), record)
	})
}

func (u *updates) release(_ context.Context, id string) error {
	u.mu.Lock()
	addr := u.addr[id]
	delete(u.addr, id)
	u.mu.Unlock()
	return u.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("addrs")).Delete(addr); err != nil {
			return err
		}
		return tx.Bucket([]byte("leases")).Delete([]byte(id))
	})
}

func (u *updates) close() error { return u.db.Close() }

// hostLocal does the work of one exec of the host-local plugin, with the plugin's own packages.
type hostLocal struct {
	dir  string
	sets allocator.RangeSet
}

const hostLocalNetwork = "bench"

func openHostLocal(ctx context.Context, dir string, n int) (leaser, error) {
	_, subnet, err := net.ParseCIDR(storeSubnet)
	if err != nil {
		return nil, err
	}
	r := allocator.Range{Subnet: types.IPNet(*subnet)}
	if err := r.Canonicalize(); err != nil {
		return nil, err
	}
	h := &hostLocal{dir, allocator.RangeSet{r}}
	// A lease is a file named by its address (backend/disk: Reserve). The permanent leases have the last
	// addresses, so that the search for a free address, which starts at the first, does not meet them.
	if err := os.MkdirAll(filepath.Join(dir, hostLocalNetwork), 0o755); err != nil {
		return nil, err
	}
	for i := range n {
		name := netip.AddrFrom4([4]byte{10, 1, byte(200 + i>>8), byte(i)}).String()
		content := fmt.Sprintf("%064x\r\neth0", i)
		if err := os.WriteFile(filepath.Join(dir, hostLocalNetwork, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *hostLocal) with(f func(*allocator.IPAllocator) error) error {
	s, err := disk.New(hostLocalNetwork, h.dir)
	if err != nil {
		return err
	}
	defer s.Close()
	return f(allocator.NewIPAllocator(&h.sets, s, 0))
}

func (h *hostLocal) allocate(_ context.Context, id string) error {
	return h.with(func(a *allocator.IPAllocator) error {
		_, err := a.Get(id, "eth0", nil)
		return err
	})
}

func (h *hostLocal) release(_ context.Context, id string) error {
	return h.with(func(a *allocator.IPAllocator) error { return a.Release(id, "eth0") })
}

func (h *hostLocal) close() error { return nil }
