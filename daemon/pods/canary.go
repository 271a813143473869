package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/routes"
)

// The canary's names. Its network is not the pods' network, so that a runtime's GC, which does not list it, leaves it
// alone.
const (
	canaryNetwork = "edgeway-canary"
	canaryArgs    = "K8S_POD_NAMESPACE=edgeway;K8S_POD_NAME=canary"
	canaryPod     = "edgeway/canary"
)

// Canary is a pod of the daemon's own. The plugin's verbs lease its addresses and wire it, so its packets take exactly
// the way of a pod's packets: host routes, forward hooks, NAT, tunnel, MTU and switch.
//
// Its network namespace is the namespace that is mounted at [CanaryNetns]. The daemon itself may not mount, as systemd's
// sandbox and the DaemonSet's have it: `edgewayd keep-canary` does that before. Then the canary is kept: it lives on
// when the daemon ends, and the next daemon adopts it with its link and lease. Without the mount, the namespace lives
// as long as the daemon's descriptor of it. The next daemon makes the canary again, with the same addresses, link name
// and MACs: the store remembers the first, and the others are functions of names.
//
// It gives way: an address that a pod needs is the pod's (plugin.Node.GiveWay).
type Canary struct {
	Addrs []netip.Addr // one of each pod CIDR, or one of each family of the uplinks
	MTU   int          // of its link, in bytes: the MTU of a new pod
	Kept  bool         // it lives on when the daemon ends

	mu    sync.RWMutex // held for writing to close netns
	netns *os.File     // nil: the canary has ended
}

// ErrNoCanary says that the canary has ended.
var ErrNoCanary = errors.New("the canary has ended")

// Inside runs do on a thread in the canary's namespace. Sockets that do opens stay there. The error is ErrNoCanary
// when the canary has ended.
func (c *Canary) Inside(do func() error) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.netns == nil {
		return ErrNoCanary
	}
	return routes.Inside(c.netns, do)
}

func (c *Canary) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.netns != nil {
		_ = c.netns.Close() // nothing was written to it
		c.netns = nil
	}
}

// CanaryNetns is where the canary's network namespace is mounted. Its directory has nothing else.
func CanaryNetns(c config.Config) string {
	return filepath.Join(filepath.Dir(c.Socket), "canary", "netns")
}

// Canary returns the node's canary; nil while there is none: it is switched off, the node has no pod CIDR and no
// uplink, the pool has no room for it, or it could not be made.
func (p *Pods) Canary() *Canary { return p.canary.Load() }

// keepCanary makes, adopts, replaces or ends the canary as the plan and the room in the pool say. It returns the problem of a
// canary that cannot be made.
func (p *Pods) keepCanary(ctx context.Context, n *leases, plan policy.Plan) []cluster.Problem {
	p.canaryBusy.Lock()
	defer p.canaryBusy.Unlock()
	have := p.canary.Load()
	wanted := p.config.Paths.Canary
	if have == nil {
		have = p.leftCanary(n)
	}
	switch {
	case have == nil:
	case wanted && have.fits(n, plan):
		if p.canary.Swap(have) != have {
			p.log.Info("canary of an earlier edgewayd", "addresses", have.Addrs, "mtu", have.MTU)
		}
	default:
		have.end()
		if err := p.removeCanary(ctx, n, "it is not what a new pod would be"); err != nil {
			return noCanary(err)
		}
		have = nil
	}
	l, err := n.usage()
	if err != nil || !wanted {
		return nil // Status returns the store's error
	}
	switch room := l.Free > 1; { // the last free address is for the next pod
	case have != nil && !room:
		err = p.removeCanary(ctx, n, "the last address is for the next pod")
	case have == nil && room:
		err = p.addCanary(ctx, n, plan)
	}
	if err != nil {
		return noCanary(err)
	}
	return nil
}

func noCanary(err error) []cluster.Problem {
	return []cluster.Problem{{Object: "pod " + canaryPod, Reason: cluster.NoCanary, Want: "a pod of edgewayd's own that proves the paths", Got: err.Error(),
		Next: "edgewayd tries again on its own; pods are not touched"}}
}

// fits reports that the canary is as a new pod would be: an address of each set, the MTU, its lease and its link.
func (c *Canary) fits(n *leases, plan policy.Plan) bool {
	if c.MTU != plan.MTU || len(c.Addrs) != len(plan.Pool.Sets) {
		return false
	}
	for _, set := range plan.Pool.Sets { // an address of uplinks may leave the pool
		if !slices.ContainsFunc(c.Addrs, func(a netip.Addr) bool {
			return policy.Leases(ipam.Pool{Sets: []ipam.RangeSet{set}, Reserved: plan.Pool.Reserved}, a)
		}) {
			return false
		}
	}
	lease, held, err := n.store.Lookup(plugin.Canary())
	if err != nil || !held || !slices.Equal(lease.Addrs, c.Addrs) {
		return err != nil // an unreadable store says nothing
	}
	f, err := plugin.OpenLeased(lease)
	if f == nil {
		return err != nil // nil: what was mounted there is not any more
	}
	_ = f.Close() // nothing was written to it
	mtu, err := c.linkMTU()
	return err == nil && mtu == c.MTU
}

// linkMTU is the MTU that the canary's link has now.
func (c *Canary) linkMTU() (mtu int, err error) {
	err = c.Inside(func() error {
		link, err := net.InterfaceByName(plugin.Canary().IfName)
		if err == nil {
			mtu = link.MTU
		}
		return err
	})
	return mtu, err
}

// leftCanary returns the canary that an earlier daemon left; nil: none. It may be broken, which fits says, and Keep of
// its routes and settings.
func (p *Pods) leftCanary(n *leases) *Canary {
	lease, held, err := n.store.Lookup(plugin.Canary())
	if err != nil || !held {
		return nil
	}
	c := &Canary{Addrs: lease.Addrs, Kept: lease.Netns == CanaryNetns(p.config)}
	if c.Kept { // a path of an ended process names nothing, or another's namespace
		c.netns, _ = plugin.OpenLeased(lease) // nil does not fit
	}
	c.MTU, _ = c.linkMTU()
	return c
}

// openNetns opens the namespace that keep-canary mounted, or makes one without a mount.
func (p *Pods) openNetns() (netns *os.File, kept bool, err error) {
	path := CanaryNetns(p.config)
	if netns, err = plugin.OpenLeased(ipam.Lease{Netns: path}); err != nil {
		return nil, false, err
	}
	if netns == nil {
		netns, err = routes.NewNetns()
		return netns, false, err
	}
	err = routes.Inside(netns, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagUp != 0 && l.Flags&net.FlagLoopback == 0 {
				return fmt.Errorf("the network namespace at %s has the interface %s, which is not edgeway's: unmount it, and restart edgewayd", path, l.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, false, errors.Join(err, netns.Close())
	}
	return netns, true, nil
}

// addCanary makes the canary. First it ends what an earlier daemon left.
func (p *Pods) addCanary(ctx context.Context, n *leases, plan policy.Plan) (err error) {
	if err := n.verbs.Remove(ctx, plugin.Canary()); err != nil {
		return err
	}
	netns, kept, err := p.openNetns()
	if err != nil {
		return err
	}
	c := &Canary{MTU: plan.MTU, Kept: kept, netns: netns}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	var wanted []string
	for _, a := range plan.CanaryAddrs() {
		wanted = append(wanted, a.String())
	}
	reply, err := p.wire(ctx, n, c, wanted)
	if err == nil && reply.Failed { // a pod, or the host, has one of them
		reply, err = p.wire(ctx, n, c, nil)
	}
	if err != nil {
		return err
	}
	if c.Addrs, err = addrsOf(reply); err != nil {
		return err
	}
	p.canary.Store(c)
	p.log.Info("canary", "addresses", c.Addrs, "mtu", c.MTU, "kept", c.Kept)
	return nil
}

// wire runs ADD for the canary, asking for addresses.
func (p *Pods) wire(ctx context.Context, n *leases, c *Canary, addrs []string) (api.Reply, error) {
	type object = map[string]any
	conf, err := json.Marshal(object{"cniVersion": "1.1.0", "name": canaryNetwork, "type": "edgeway", "mtu": c.MTU,
		"socket": p.config.Socket, "dataDir": p.config.StateDir, "runtimeConfig": object{"ips": addrs}})
	if err != nil {
		return api.Reply{}, err
	}
	cni := api.CNI{Command: "ADD", ContainerID: plugin.Canary().ContainerID, IfName: plugin.Canary().IfName, Args: canaryArgs, Stdin: conf,
		Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.netns.Fd())}
	if c.Kept {
		cni.Netns = CanaryNetns(p.config)
	}
	return n.verbs.Do(ctx, plugin.Call{CNI: cni, NetnsFile: c.netns}), nil
}

// addrsOf reads the addresses of an ADD's result (CNI SPEC 1.1.0, section 5), or its error.
func addrsOf(reply api.Reply) (out []netip.Addr, err error) {
	var result struct {
		Msg string
		IPs []struct{ Address netip.Prefix }
	}
	err = json.Unmarshal(reply.Output, &result)
	switch {
	case reply.Failed && err == nil:
		return nil, errors.New(result.Msg)
	case err != nil:
		return nil, fmt.Errorf("ADD of the canary: %w", err)
	}
	for _, ip := range result.IPs {
		out = append(out, ip.Address.Addr())
	}
	return out, nil
}

// removeCanary ends the canary, if there is one, also one that an earlier daemon left. The caller holds canaryBusy.
func (p *Pods) removeCanary(ctx context.Context, n *leases, why string) error {
	if c := p.canary.Swap(nil); c != nil {
		c.end()
	}
	if _, held, err := n.store.Lookup(plugin.Canary()); err != nil || !held {
		return err
	}
	if err := n.verbs.Remove(ctx, plugin.Canary()); err != nil {
		return err
	}
	p.log.Info("canary ended", "why", why)
	return nil
}

// endCanary ends the canary. The next Sync makes it again, if there is room.
func (p *Pods) endCanary(ctx context.Context, n *leases, why string) error {
	p.canaryBusy.Lock()
	defer p.canaryBusy.Unlock()
	return p.removeCanary(ctx, n, why)
}

// leaveCanary ends the canary, unless it is kept, at the end of the daemon.
func (p *Pods) leaveCanary(ctx context.Context, n *leases) error {
	p.canaryBusy.Lock()
	defer p.canaryBusy.Unlock()
	switch c := p.canary.Load(); {
	case c == nil:
		return nil
	case c.Kept:
		p.canary.Store(nil)
		c.end()
		return nil
	}
	return p.removeCanary(ctx, n, "edgewayd stops")
}

// giveWay ends the canary when a pod's ADD failed because an address was missing. It reports that another ADD may
// succeed.
func (p *Pods) giveWay(ctx context.Context, n *leases, add api.Reply) bool {
	if n == nil {
		return false
	}
	p.canaryBusy.Lock()
	defer p.canaryBusy.Unlock()
	if !n.verbs.GiveWay(ctx, add) {
		return false
	}
	if c := p.canary.Swap(nil); c != nil {
		c.end()
	}
	p.log.Info("canary ended", "why", "a pod needs its address")
	return true
}
