package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
)

// storeWait bounds the wait for plugins that work on the store without the daemon.
const storeWait = 5 * time.Second

// leases is the open store, and the verbs on it.
type leases struct {
	store *ipam.Store
	verbs *plugin.Node
	busy  sync.RWMutex // held for reading by each verb, so that close waits for them
}

func storeFile(stateDir string) string { return filepath.Join(stateDir, plugin.StoreFile) }

// openLeases opens and checks the whole store, and removes the remains of a crash.
func openLeases(ctx context.Context, stateDir string) (*leases, []string, error) {
	open := func() (*ipam.Store, error) { return plugin.OpenStore(ctx, storeFile(stateDir), storeWait) }
	store, err := open()
	if err != nil {
		return nil, nil, err
	}
	if err := store.Check(); err != nil {
		// Opening a damaged store again rebuilds it.
		if err := errors.Join(err, store.Close()); !errors.Is(err, ipam.ErrDamaged) {
			return nil, nil, err
		}
		if store, err = open(); err != nil {
			return nil, nil, err
		}
	}
	n, err := leasesOf(store, stateDir)
	if err != nil {
		return nil, nil, err
	}
	swept, err := n.verbs.Sweep(ctx)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("sweep: %w", err), n.close())
	}
	return n, swept, nil
}

// leasesOf takes over the store. After an error it has closed the store.
func leasesOf(store *ipam.Store, stateDir string) (*leases, error) {
	verbs, err := plugin.NewNode(store, stateDir)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if err := verbs.DeleteEarly(); err != nil {
		return nil, errors.Join(err, verbs.Close(), store.Close())
	}
	return &leases{store: store, verbs: verbs}, nil
}

// close waits for the running verbs and closes the store.
func (n *leases) close() error {
	n.busy.Lock()
	defer n.busy.Unlock()
	return errors.Join(n.verbs.Close(), n.store.Close())
}

func (n *leases) copied() error {
	if n.store.Damage() != nil {
		return nil // the next start rebuilds it
	}
	ctx, cancel := context.WithTimeout(context.Background(), backupTimeout)
	defer cancel()
	return n.store.Backup(ctx)
}

// rebuilt returns the problem of a store that had to be rebuilt. It stays until the daemon is restarted.
func (n *leases) rebuilt() []cluster.Problem {
	r, ok := n.store.Rebuilt()
	if !ok {
		return nil
	}
	return []cluster.Problem{{Object: "store", Reason: cluster.StoreRebuilt, Want: "a file as it was written", Got: fmt.Sprint(r.Cause),
		Next: fmt.Sprintf("check the disk; the leases were rebuilt from the last copy (%d) and from the node's links (%d); the old file is %s", r.Copied, r.Found, r.Kept)}}
}

// full returns the problem of a pool that has no address for another pod. Running pods are not touched:
// STATUS succeeds.
func (n *leases) full(ctx context.Context) []cluster.Problem {
	full, err := n.verbs.Full(ctx)
	if err != nil || full == "" {
		return nil // usage returns the error
	}
	return []cluster.Problem{{Object: "pool", Reason: cluster.PoolFull, Want: "an address for the next pod", Got: full,
		Next: "delete pods of this node, lower the kubelet's maxPods, or give the node more addresses: a larger pod CIDR, or more in spec.uplinks of its EdgeNode; new pods wait until then"}}
}

// addressTaken returns the problem of each address that ADD passed over, because the kernel has it elsewhere.
func (n *leases) addressTaken(ctx context.Context) (out []cluster.Problem) {
	taken, err := n.verbs.Taken(ctx)
	if err != nil {
		return nil // usage returns the store's error; the next look asks again
	}
	for _, r := range taken {
		out = append(out, cluster.Problem{Object: "address " + r.Dst.Addr().String(), Reason: cluster.AddressTaken, Want: "a free address of the pool", Got: r.String(),
			Next: "delete that route, neighbour or address, or take it out of the node's pod CIDR; pods get other addresses until then"})
	}
	return out
}

// otherMTU returns the running pods whose MTU is not that of new pods, by name. The mode of a node changes while
// pods run.
func (n *leases) otherMTU(ctx context.Context, mtu int) (out []api.PodMTU) {
	all, err := n.verbs.Attachments(ctx)
	if err != nil || mtu == 0 {
		return nil // usage returns the store's error; the next look asks again
	}
	for _, a := range all {
		if a.MTU != 0 && a.MTU != mtu && a.Lease.Network == networkName {
			out = append(out, api.PodMTU{Pod: cmp.Or(a.Lease.Pod.String(), a.Lease.Attachment.String()), MTU: a.MTU})
		}
	}
	slices.SortFunc(out, func(a, b api.PodMTU) int { return cmp.Compare(a.Pod, b.Pod) })
	return out
}

// podsNamed is how many pods one line of advice names. The leases in the status name all of them.
const podsNamed = 5

// adviseMTU returns one line for each MTU that pods keep from an earlier mode of the node. A pod with a larger MTU
// than new pods is answered "fragmentation needed" where the path does not carry its packets, and a pod with a
// smaller MTU sends smaller packets than it could.
func adviseMTU(pods []api.PodMTU, mtu int) (out []cluster.Problem) {
	named := map[int][]string{}
	for _, p := range pods {
		named[p.MTU] = append(named[p.MTU], p.Pod)
	}
	for _, other := range slices.Sorted(maps.Keys(named)) {
		names := named[other]
		got := fmt.Sprintf("%d for %s", other, strings.Join(names[:min(len(names), podsNamed)], ", "))
		if more := len(names) - podsNamed; more > 0 {
			got += fmt.Sprintf(" and %d more", more)
		}
		out = append(out, cluster.Problem{Object: "pods", Reason: cluster.OtherMTU, Want: fmt.Sprintf("the MTU of new pods, %d", mtu), Got: got,
			Next: "recreate the pods when it suits you; until then the kernel tells them which size the path carries"})
	}
	return out
}

// usage counts pods, not addresses. A pod takes one address of each set, so the smallest set says how many
// more pods fit. The canary gives way, so its addresses count as free.
func (n *leases) usage() (l api.Leases, err error) {
	pool, ok, err := n.store.Pool()
	if err != nil || !ok {
		return l, err
	}
	canary, _, err := n.store.Lookup(plugin.Canary())
	if err != nil {
		return l, err
	}
	for i, set := range pool.Sets {
		one := ipam.Pool{Sets: []ipam.RangeSet{set}, Reserved: pool.Reserved}
		u, err := n.store.Usage(one)
		if err != nil {
			return l, err
		}
		ofCanary := slices.ContainsFunc(canary.Addrs, func(a netip.Addr) bool { return inPool(one, a) })
		if ofCanary && u.Used > 0 { // the canary may have ended since Lookup
			u.Used, u.Free = u.Used-1, u.Free+1
		}
		if i == 0 || u.Free < l.Free {
			l.Total, l.Free = u.Total, u.Free
		}
		l.Used = max(l.Used, u.Used)
		l.Families = append(l.Families, api.Family{Family: familyOf(set), Used: u.Used, Free: u.Free})
	}
	u, err := n.store.Usage(pool)
	l.Outside = u.Outside
	return l, err
}

func familyOf(set ipam.RangeSet) string {
	if len(set) > 0 && !set[0].Subnet.Addr().Is4() {
		return "IPv6"
	}
	return "IPv4"
}

// Held says which addresses pods have, and from which pool ADD leases.
func (p *Pods) Held() policy.Held {
	n := p.leases.Load()
	if n == nil {
		return policy.Held{}
	}
	pool, _, err := n.store.Pool()
	all, lerr := n.store.Leases()
	if err != nil || lerr != nil {
		return policy.Held{} // Status returns the error
	}
	h := policy.Held{Known: true, Pool: pool, Pods: map[netip.Addr]string{}}
	for _, l := range all {
		if l.Attachment == plugin.Canary() {
			h.Canary = l.Addrs
			continue
		}
		for _, a := range l.Addrs {
			h.Pods[a] = cmp.Or(l.Pod.String(), l.Attachment.String())
		}
	}
	return h
}

// WithVerbs opens the store of a node on which no daemon runs, and calls f. Without a store it does nothing.
func WithVerbs(ctx context.Context, c config.Config, f func(*plugin.Node) error) error {
	if _, err := os.Stat(storeFile(c.StateDir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	store, err := plugin.OpenStore(ctx, storeFile(c.StateDir), storeWait)
	if err != nil {
		return err
	}
	n, err := leasesOf(store, c.StateDir)
	if err != nil {
		return err
	}
	return errors.Join(f(n.verbs), n.close())
}
