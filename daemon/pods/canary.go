package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/routes"
)

// The canary's names. Its network is not the pods' network, so that a runtime's GC, which does not list it, leaves it
// alone.
const (
	canaryNetwork = "edgeway-canary"
	canaryID      = "edgeway-canary"
	canaryIfName  = "eth0"
	canaryArgs    = "K8S_POD_NAMESPACE=edgeway;K8S_POD_NAME=canary"
	canaryPod     = "edgeway/canary"
)

// Canary is a pod of the daemon's own. The plugin's verbs lease its addresses and wire it, so its packets take exactly
// the way of a pod's packets: host routes, forward hooks, NAT, tunnel, MTU and switch.
//
// Its network namespace lives as long as the daemon's descriptor of it. A mount would outlive the daemon, but neither
// the systemd unit nor the DaemonSet may mount. So the canary ends with the daemon, and nothing of it is left to an
// uninstall. The next daemon makes it again, with the same addresses, link name and MACs: the store remembers the
// first, and the others are functions of names.
//
// It gives way: an address that a pod needs is the pod's (see Pods.giveWay).
type Canary struct {
	Addrs []netip.Addr // one of each pod CIDR
	MTU   int          // of its link, in bytes: the MTU of a new pod

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

func canaryAttachment() ipam.Attachment {
	return ipam.Attachment{ContainerID: canaryID, IfName: canaryIfName}
}

// Canary returns the node's canary; nil while there is none: it is switched off, the node has no pod CIDR, the pool
// has no room for it, or it could not be made.
func (p *Pods) Canary() *Canary { return p.canary.Load() }

// keepCanary makes, replaces or ends the canary as the plan and the room in the pool say. It returns the problem of a
// canary that cannot be made.
func (p *Pods) keepCanary(ctx context.Context, n *leases, plan policy.Plan) []cluster.Problem {
	p.canaryBusy.Lock()
	defer p.canaryBusy.Unlock()
	have := p.canary.Load()
	// Nobody asks for a canary at an uplink: other nodes ask at pod CIDRs, and a cloud's addresses are few.
	wanted := p.config.Paths.Canary && len(plan.Uplinks.Interfaces) == 0
	if have != nil && !(wanted && have.fits(n, plan)) {
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
	for _, set := range plan.Pool.Sets {
		if !slices.ContainsFunc(c.Addrs, func(a netip.Addr) bool { return inPool(ipam.Pool{Sets: []ipam.RangeSet{set}}, a) }) {
			return false
		}
	}
	lease, held, err := n.store.Lookup(canaryAttachment())
	if err != nil || !held || !slices.Equal(lease.Addrs, c.Addrs) {
		return err != nil // an unreadable store says nothing
	}
	return c.Inside(func() error {
		_, err := net.InterfaceByName(canaryIfName)
		return err
	}) == nil
}

// addCanary makes the canary. First it ends what an earlier daemon left.
func (p *Pods) addCanary(ctx context.Context, n *leases, plan policy.Plan) (err error) {
	if err := n.verbs.Remove(ctx, canaryAttachment()); err != nil {
		return err
	}
	netns, err := routes.NewNetns()
	if err != nil {
		return err
	}
	c := &Canary{MTU: plan.MTU, netns: netns}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	var wanted []string
	for _, set := range plan.Pool.Sets {
		for _, r := range set {
			wanted = append(wanted, policy.CanaryAddr(r.Subnet).String())
		}
	}
	reply, err := p.wire(ctx, n, netns, plan.MTU, wanted)
	if err == nil && reply.Failed { // a pod, or the host, has one of them
		reply, err = p.wire(ctx, n, netns, plan.MTU, nil)
	}
	if err != nil {
		return err
	}
	if c.Addrs, err = addrsOf(reply); err != nil {
		return err
	}
	p.canary.Store(c)
	p.log.Info("canary", "addresses", c.Addrs, "mtu", c.MTU)
	return nil
}

// wire runs ADD for the canary, asking for addresses.
func (p *Pods) wire(ctx context.Context, n *leases, netns *os.File, mtu int, addrs []string) (api.Reply, error) {
	type object = map[string]any
	conf, err := json.Marshal(object{"cniVersion": "1.1.0", "name": canaryNetwork, "type": "edgeway", "mtu": mtu,
		"socket": p.config.Socket, "dataDir": p.config.StateDir, "runtimeConfig": object{"ips": addrs}})
	if err != nil {
		return api.Reply{}, err
	}
	cni := api.CNI{Command: "ADD", ContainerID: canaryID, IfName: canaryIfName, Args: canaryArgs, Stdin: conf,
		Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), netns.Fd())}
	return n.verbs.Do(ctx, plugin.Call{CNI: cni, NetnsFile: netns}), nil
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

// removeCanary ends the canary, if there is one. The caller holds canaryBusy.
func (p *Pods) removeCanary(ctx context.Context, n *leases, why string) error {
	c := p.canary.Load()
	if c == nil {
		return nil
	}
	p.canary.Store(nil)
	c.end()
	if err := n.verbs.Remove(ctx, canaryAttachment()); err != nil {
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

// The codes of a failed ADD that the canary's address may be the reason of: no address is left (try again later, CNI
// SPEC 1.1.0, section 5), or a requested address is in use.
const (
	codeTryAgain = 11
	codeInUse    = 101
)

// giveWay ends the canary when a pod's ADD failed because an address was missing. It reports that another ADD may
// succeed.
func (p *Pods) giveWay(ctx context.Context, n *leases, add api.Reply) bool {
	var failed struct{ Code int }
	if n == nil || json.Unmarshal(add.Output, &failed) != nil || failed.Code != codeTryAgain && failed.Code != codeInUse {
		return false
	}
	if failed.Code == codeTryAgain {
		if full, err := n.verbs.Full(ctx); err != nil || full == "" {
			return false
		}
	}
	p.canaryBusy.Lock() // a canary that is being made has its lease already
	defer p.canaryBusy.Unlock()
	if p.canary.Load() == nil {
		return false
	}
	if err := p.removeCanary(ctx, n, "a pod needs its address"); err != nil {
		p.log.Warn("canary", "err", err)
		return false
	}
	return true
}
