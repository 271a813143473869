package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
)

// Apply is the argument of "import" that carries the import out. Without Apply, the answer says what an
// import would do.
const Apply = "--apply"

// importLeases takes over the leases of another IPAM plugin. Its args are the network that now serves the
// pods, the leases as JSON, and Apply.
func (n *leases) importLeases(ctx context.Context, c config.Config, args []string) ([]api.Imported, error) {
	var leases []ipam.Lease
	if len(args) < 2 || json.Unmarshal([]byte(args[1]), &leases) != nil {
		return nil, errors.New("import: the request is not understood; the daemon is of another version than this command")
	}
	for i := range leases {
		leases[i] = plugin.Adopted(leases[i], args[0])
	}
	p, err := n.importPlan(ctx, c, leases)
	if err != nil || !slices.Contains(args[2:], Apply) {
		return p.rows, err
	}
	if err := n.store.Import(ctx, append(slices.Clone(p.hold), p.remember...)); err != nil {
		return nil, err
	}
	for _, l := range p.remember {
		if _, _, err := n.store.Release(ctx, l.Attachment); err != nil {
			return nil, fmt.Errorf("%w; it is released when edgewayd starts", err)
		}
	}
	return p.rows, nil
}

type importPlan struct {
	rows           []api.Imported
	hold, remember []ipam.Lease

	held   map[netip.Addr]ipam.Lease
	own    map[ipam.Attachment]ipam.Lease
	memory map[netip.Addr]ipam.Memory
	pods   map[podOn]netip.Addr // the address that a pod has, or last had
	inside func(netip.Addr) bool
}

// podOn is the interface of a pod on a network. The store remembers an address for each podOn.
type podOn struct{ network, pod, ifName string }

func (n *leases) importPlan(ctx context.Context, c config.Config, leases []ipam.Lease) (p importPlan, err error) {
	p = importPlan{rows: []api.Imported{}, held: map[netip.Addr]ipam.Lease{}, own: map[ipam.Attachment]ipam.Lease{},
		memory: map[netip.Addr]ipam.Memory{}, pods: map[podOn]netip.Addr{}}
	pool, known, err := n.poolToBe(ctx, c)
	if err != nil {
		return p, err
	}
	p.inside = func(a netip.Addr) bool { return !known || inPool(pool, a) }
	have, err := n.store.Leases()
	if err != nil {
		return p, err
	}
	for _, l := range have {
		p.own[l.Attachment] = l
		for _, a := range l.Addrs {
			p.held[a] = l
			p.pods[podOn{l.Network, l.Pod.String(), l.Attachment.IfName}] = a
		}
	}
	memories, err := n.store.Remembered()
	if err != nil {
		return p, err
	}
	for _, m := range memories {
		p.memory[m.Addr] = m
		p.pods[podOn{m.Network, m.Pod.String(), m.IfName}] = m.Addr
	}
	// Running pods come first, then the pods that ended last: one address is remembered for each pod.
	slices.SortStableFunc(leases, func(a, b ipam.Lease) int {
		if x, y := plugin.Gone(a), plugin.Gone(b); x != y {
			if x {
				return 1
			}
			return -1
		}
		return b.Since.Compare(a.Since)
	})
	for _, l := range leases {
		p.add(l)
	}
	slices.SortStableFunc(p.rows, func(a, b api.Imported) int { return firstAddr(a.Lease).Compare(firstAddr(b.Lease)) })
	return p, nil
}

func firstAddr(l api.Lease) netip.Addr {
	if len(l.Addrs) == 0 {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(l.Addrs[0]) // leaseRow printed it
	return a
}

func inPool(pool ipam.Pool, a netip.Addr) bool {
	for _, set := range pool.Sets {
		if slices.ContainsFunc(set, func(r ipam.Range) bool { return r.Subnet.Contains(a) }) {
			return true
		}
	}
	return false
}

func (p *importPlan) add(l ipam.Lease) {
	gone := plugin.Gone(l)
	row := api.Imported{Lease: leaseRow(plugin.Attached{Lease: l, Standing: plugin.Foreign})}
	if gone {
		row.State = string(plugin.Dead)
	}
	row.Action, row.Why = p.decide(l, gone)
	switch row.Action {
	case api.Hold:
		p.hold = append(p.hold, l)
		p.pods[podOn{l.RememberAs, l.Pod.String(), l.Attachment.IfName}] = l.Addrs[0]
	case api.Remember:
		p.remember = append(p.remember, l)
	}
	p.rows = append(p.rows, row)
}

func (p *importPlan) decide(l ipam.Lease, gone bool) (action, why string) {
	if old, ok := p.own[l.Attachment]; ok {
		if slices.Equal(old.Addrs, l.Addrs) {
			return api.Known, ""
		}
		return api.Skip, fmt.Sprintf("the store has %v for it", old.Addrs)
	}
	for _, a := range l.Addrs {
		if by, ok := p.held[a]; ok {
			who := by.Attachment.String()
			if by.Pod.Name != "" {
				who = "pod " + by.Pod.String()
			}
			if gone {
				return api.Skip, who + " has " + a.String() + " since"
			}
			return api.Skip, who + " has " + a.String() + " too: two pods answer for it; delete one of them"
		}
	}
	outside := ""
	if !p.inside(l.Addrs[0]) {
		outside = "outside the node's pod CIDRs: its next pod gets another"
	}
	switch {
	case gone && l.Pod.Name == "":
		return api.Skip, "the container is gone, and its pod is not known"
	case gone && outside != "":
		return api.Skip, "the pod is gone, and " + l.Addrs[0].String() + " is outside the node's pod CIDRs"
	case gone:
		return p.remembers(l)
	case outside != "":
		return api.Hold, outside
	case l.Netns == "":
		return api.Hold, "its namespace is not known: held until DEL, release or the next boot"
	case l.Pod.Name == "":
		return api.Hold, "its pod is not known: the pod gets another address when it is recreated"
	}
	return api.Hold, ""
}

// remembers decides about a pod that is gone. The store's own knowledge of the pod or the address is newer.
func (p *importPlan) remembers(l ipam.Lease) (action, why string) {
	for _, a := range l.Addrs {
		if m, ok := p.memory[a]; ok {
			if m.Pod.String() == l.Pod.String() && m.Network == l.RememberAs {
				return api.Known, ""
			}
			return api.Skip, a.String() + " remembers pod " + m.Pod.String() + " since"
		}
	}
	key := podOn{l.RememberAs, l.Pod.String(), l.Attachment.IfName}
	if a, ok := p.pods[key]; ok && a.Is4() == l.Addrs[0].Is4() {
		return api.Skip, "the pod has " + a.String() + " since"
	}
	p.pods[key] = l.Addrs[0]
	return api.Remember, ""
}
