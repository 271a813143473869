package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// grant is what an attachment may use, given by the store or by another IPAM plugin.
type grant struct {
	lease    ipam.Lease // zero when delegated
	commit   commit
	src      netip.Addr // the source of the host's routes to addrs; see hostSource
	unasked  bool       // nobody has asked yet who else has the addresses: src is not known either
	addrs    []netip.Addr
	networks []netip.Prefix // the networks of addrs
	routes   []podRoute
	dns      types.DNS
}

// commit returns when the lease is on disk (ipam.Store.Begin).
type commit func(context.Context) error

// order is an ADD whose demands were all checked.
type order struct {
	request
	pod      ipam.Pod
	mac      string
	addrs    []netip.Addr
	pool     *ipam.Pool
	routes   []podRoute
	previous *current.Result
	passed   []string // holders of addresses that earlier leases of this ADD had
}

// newOrder checks everything that can be checked without changing anything.
func newOrder(rq request) (order, error) {
	o := order{request: rq}
	a, err := parseArgs(rq.cni.Args)
	if err != nil {
		return o, err
	}
	o.pod = a.pod
	if o.previous, err = rq.conf.previous(); err != nil {
		return o, err
	}
	if o.mac, err = rq.conf.mac(a); err != nil {
		return o, err
	}
	if rq.conf.delegated() {
		return o, nil // the other plugin reads the addresses in its own format
	}
	if o.addrs, err = rq.conf.requested(a); err != nil {
		return o, err
	}
	if o.pool, err = rq.conf.pool(); err != nil {
		return o, err
	}
	if o.pool != nil {
		if err := o.pool.Validate(); err != nil {
			return o, err
		}
	}
	if o.conf.DNS, err = rq.conf.dns(); err != nil {
		return o, err
	}
	o.routes, err = rq.conf.routes()
	return o, err
}

func (c conf) routes() (out []podRoute, err error) {
	for _, r := range c.IPAM.Routes {
		parsed, err := r.parse()
		if err != nil {
			return nil, err
		}
		out = append(out, parsed)
	}
	return out, nil
}

// obtain gets the order's addresses. cookie is the cookie of the pod's namespace. ask: it makes sure that they lead
// nowhere else on this host; otherwise the caller must (see elsewhere).
func (n *Node) obtain(ctx context.Context, k kernel, o order, cookie uint64, ask bool) (grant, error) {
	if o.conf.delegated() {
		g, err := n.delegateAdd(ctx, o.request)
		if err == nil {
			var sourceless bool
			if _, sourceless, err = k.Holders(ctx); err != nil {
				err = errors.Join(err, n.giveBack(context.WithoutCancel(ctx), o.request))
			}
			g.src, g.commit = hostSource(sourceless), func(context.Context) error { return nil }
		}
		return g, err
	}
	dead := n.dead(ctx, k, o.attachment)
	if l, ok, err := n.Store.Lookup(recovered(o.attachment)); err != nil {
		return grant{}, err
	} else if ok && !dead(l) {
		return grant{}, fmt.Errorf("network %s: %w: %v", o.conf.Name, ipam.ErrHeld, l.Addrs)
	} else if ok {
		if _, _, err := n.Store.Release(ctx, l.Attachment); err != nil {
			return grant{}, err
		}
	}
	request := ipam.Request{
		Attachment: o.attachment, Network: o.conf.network(), Pod: o.pod, Pool: o.pool, Addrs: o.addrs,
		Netns: o.cni.Netns, NetnsCookie: cookie, Dead: dead,
	}
	g := grant{unasked: !ask}
	var err error
	if ask {
		g.lease, g.commit, g.src, err = n.lease(ctx, k, request, o)
	} else {
		g.lease, g.commit, err = n.begin(ctx, k, request)
	}
	if err != nil {
		return grant{}, fmt.Errorf("network %s: %w", o.conf.Name, err)
	}
	g.addrs, g.routes, g.dns = g.lease.Addrs, podRoutes(o.routes, g.lease.Addrs), o.conf.DNS
	pool := o.pool
	if pool == nil && o.conf.IPMasq {
		stored, _, err := n.storedPool()
		if err != nil {
			return g, errors.Join(err, n.giveBack(context.WithoutCancel(ctx), o.request))
		}
		pool = &stored
	}
	if pool != nil {
		g.networks = networksOf(pool, g.addrs)
	}
	return g, nil
}

// begin chooses addresses. The lease is on disk after commit.
func (n *Node) begin(ctx context.Context, host kernel, ask ipam.Request) (lease ipam.Lease, commit commit, err error) {
	lease, commit, err = n.Store.Begin(ctx, ask)
	if errors.Is(err, ipam.ErrExhausted) {
		if some, rerr := n.reclaim(ctx, host); rerr != nil {
			err = errors.Join(err, rerr)
		} else if some {
			lease, commit, err = n.Store.Begin(ctx, ask)
		}
	}
	return lease, commit, err
}

// maxPassedOver bounds how many addresses one ADD passes over.
const maxPassedOver = 32

// lease gets addresses that lead nowhere else on this host, and passes over others. If such an address was
// requested, the ADD is refused. src is the source of the host's routes to the addresses (see hostSource). The lease
// is on disk after commit.
func (n *Node) lease(ctx context.Context, host kernel, ask ipam.Request, o order) (lease ipam.Lease, commit commit, src netip.Addr, err error) {
	passed := o.passed
	for {
		lease, commit, err = n.begin(ctx, host, ask)
		if err != nil && len(passed) > 0 {
			err = fmt.Errorf("%w; passed over, because something else on this host has them: %s", err, strings.Join(passed, ", "))
		}
		if err != nil {
			return lease, commit, src, err
		}
		there, sourceless, err := host.Holders(ctx, lease.Addrs...)
		if err == nil {
			err = elsewhere(ctx, host, lease, o.hostLink(), there)
		}
		if err == nil {
			return lease, commit, hostSource(sourceless), nil
		}
		var held heldError
		isHeld := errors.As(err, &held)
		if uerr := n.unlearn(context.WithoutCancel(ctx), lease, held.addrs); uerr != nil || !isHeld {
			return lease, commit, src, errors.Join(err, uerr)
		}
		passed = append(passed, held.by...)
		if len(passed) > maxPassedOver || held.anyOf(ask.Addrs) {
			return lease, commit, src, heldError{held.addrs, passed}
		}
		n.passOver(held.addrs)
		if ask.Pool, err = n.reserve(ask.Pool, held.addrs); err != nil {
			return lease, commit, src, err
		}
	}
}

// heldError says that addresses of a lease lead elsewhere on this host.
type heldError struct {
	addrs []netip.Addr
	by    []string
}

func (e heldError) Error() string {
	return "addresses lead elsewhere on this host: " + strings.Join(e.by, ", ")
}

func (e heldError) Unwrap() error {
	return fault(codeInUse, "addresses are in use").next("delete the routes or addresses, or take them out of the pod's network")
}

func (e heldError) anyOf(addrs []netip.Addr) bool {
	return slices.ContainsFunc(e.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
}

// elsewhere returns a heldError for the addresses of a lease that the host itself has, that a neighbour of the host
// has and answers for, or to which a route of another agent or of another store's pod leads. there is what Holders
// returned; link is the future host link.
func elsewhere(ctx context.Context, host kernel, lease ipam.Lease, link string, there []routes.Route) (err error) {
	if isForeign(lease) { // the other main plugin's link has the subnet, and knows its pods
		there = slices.DeleteFunc(there, func(r routes.Route) bool {
			return r.Type == "" || r.Type == routes.TypeNeighbour || r.Type == routes.TypeLearned
		})
	} else if there, err = host.Answering(ctx, there); err != nil {
		return err
	}
	var held heldError
	for _, r := range there {
		if r.Type != "" || r.Link != link {
			held.addrs, held.by = append(held.addrs, r.Dst.Addr()), append(held.by, r.String())
		}
	}
	if len(held.addrs) == 0 {
		return nil
	}
	return held
}

// passOver remembers addresses for Taken.
func (n *Node) passOver(addrs []netip.Addr) {
	n.taken.Lock()
	defer n.taken.Unlock()
	if n.taken.addrs == nil {
		n.taken.addrs = map[netip.Addr]bool{}
	}
	for _, a := range addrs {
		n.taken.addrs[a] = true
	}
}

// somePassedOver reports that ADDs have passed over addresses, and may again.
func (n *Node) somePassedOver() bool {
	n.taken.Lock()
	defer n.taken.Unlock()
	return len(n.taken.addrs) > 0
}

// Taken returns who has the addresses that an ADD of this Node passed over, in the order of the addresses. It
// forgets addresses that nobody has any more, and addresses that were leased since.
func (n *Node) Taken(ctx context.Context) ([]routes.Route, error) {
	n.taken.Lock()
	defer n.taken.Unlock()
	if len(n.taken.addrs) == 0 {
		return nil, nil
	}
	leases, err := n.leases()
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		for _, a := range l.Addrs {
			delete(n.taken.addrs, a)
		}
	}
	host, done, err := n.host()
	if err != nil {
		return nil, err
	}
	defer done()
	there, _, err := host.Holders(ctx, slices.SortedFunc(maps.Keys(n.taken.addrs), netip.Addr.Compare)...)
	if err == nil {
		there, err = host.Answering(ctx, there)
	}
	if err != nil {
		return nil, err
	}
	others, err := host.Host(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range others.Routes { // blackholes and the like
		if r.Type != "" && r.Dst.IsSingleIP() && n.taken.addrs[r.Dst.Addr()] {
			there = append(there, r)
		}
	}
	clear(n.taken.addrs)
	for _, r := range there {
		n.taken.addrs[r.Dst.Addr()] = true
	}
	return there, nil
}

// unlearn releases a lease; its unusable addresses do not remember the pod.
func (n *Node) unlearn(ctx context.Context, l ipam.Lease, unusable []netip.Addr) error {
	err := n.release(ctx, l.Attachment)
	for _, a := range unusable {
		if err == nil {
			err = n.Store.Forget(ctx, a)
		}
	}
	return err
}

// reserve returns the pool (nil: the store's pool) with the addresses reserved.
func (n *Node) reserve(pool *ipam.Pool, addrs []netip.Addr) (*ipam.Pool, error) {
	pool, err := n.poolOf(pool)
	if err != nil {
		return nil, err
	}
	out := *pool
	out.Reserved = slices.Clone(out.Reserved)
	for _, a := range addrs {
		out.Reserved = append(out.Reserved, single(a))
	}
	return &out, nil
}

// giveBack ends the grant of obtain.
func (n *Node) giveBack(ctx context.Context, rq request) error {
	if rq.conf.delegated() {
		return n.delegate(ctx, rq, "DEL")
	}
	return n.release(ctx, rq.attachment)
}

// reclaim ends the leases whose holders are gone, and reports whether there were any. The store asks only
// about holders of the same pod; a full pool makes reclaim check all holders.
func (n *Node) reclaim(ctx context.Context, host kernel) (some bool, err error) {
	all, _, err := n.attached(ctx, host)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, a := range all {
		l := a.Lease
		if a.Standing.Lives() {
			continue
		}
		unclaim, err := ipam.TryClaim(n.Store.Path(), l.Attachment)
		if err != nil {
			continue // a verb works on it
		}
		// A verb may have made the link since.
		s, err := n.sight(ctx, host)
		if err == nil && !s.judge(l).Lives() {
			var now ipam.Lease
			var held bool
			if now, held, err = n.lookup(l.Attachment); held && now.Since.Equal(l.Since) {
				err = n.release(ctx, l.Attachment)
				some = true
			}
		}
		errs = append(errs, err, unclaim())
	}
	return some, errors.Join(errs...)
}

// flows is the number of tracked connections of the namespace (net/netfilter/nf_conntrack_standalone.c).
const flows = "net/netfilter/nf_conntrack_count"

// endFlows lets the next holder of the addresses start without old connections. Searching the kernel's
// connections takes ten milliseconds and more even if there are none.
func endFlows(ctx context.Context, k kernel, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	observed, err := k.Observe(ctx, routes.Scope{}, routes.State{Sysctls: []routes.Sysctl{{Key: flows}}})
	if err == nil && (len(observed.Sysctls) == 0 || observed.Sysctls[0].Value == "0") {
		return nil
	}
	var errs []error
	for _, a := range addrs {
		errs = append(errs, k.FlushConntrack(ctx, a))
	}
	return errors.Join(errs...)
}

// masquerade makes the pod's packets that leave its networks take the node's address.
func masquerade(addrs []netip.Addr, networks []netip.Prefix) (out []routes.Masq) {
	for _, a := range addrs {
		out = append(out, routes.Masq{Addr: a, Networks: networks})
	}
	return out
}

func endMasquerade(ctx context.Context, k kernel, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	var scope routes.Scope
	for _, a := range addrs {
		scope.Masq = append(scope.Masq, single(a))
	}
	_, err := k.Sync(ctx, scope, routes.State{})
	return err
}

// endStrayMasquerade ends the masquerade of addresses that nothing on the host leads to. A pod's link
// disappears with the pod's namespace; if another plugin gave the address, no lease names it then.
func endStrayMasquerade(ctx context.Context, host kernel) error {
	have, err := host.Observe(ctx, routes.Scope{Masq: routes.Everywhere()}, routes.State{})
	if err != nil || len(have.Masq) == 0 {
		return err
	}
	// Read the links after the masquerade: an ADD makes its route first.
	links, err := host.Links(ctx, linkPrefix)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	led, err := host.Observe(ctx, routes.Scope{Protocol: routes.ProtoPod, Links: names}, routes.State{})
	if err != nil {
		return err
	}
	var stray []netip.Addr
	for _, m := range have.Masq {
		if !slices.ContainsFunc(led.Routes, func(r routes.Route) bool { return r.Dst == single(m.Addr) }) &&
			!slices.ContainsFunc(led.Neighs, func(x routes.Neigh) bool { return x.IP == m.Addr }) {
			stray = append(stray, m.Addr)
		}
	}
	return endMasquerade(ctx, host, stray)
}

// networksOf are the subnets of the pool that contain the addresses.
func networksOf(p *ipam.Pool, addrs []netip.Addr) (out []netip.Prefix) {
	for _, set := range p.Sets {
		for _, r := range set {
			if slices.ContainsFunc(addrs, r.Subnet.Contains) {
				out = append(out, r.Subnet)
			}
		}
	}
	return out
}

// addrsOn are the pod addresses that lead to each host link, by the link's routes and neighbours: either
// may be lost.
func addrsOn(ctx context.Context, k kernel, links ...string) (map[string][]netip.Addr, error) {
	observed, err := k.Observe(ctx, routes.Scope{Protocol: routes.ProtoPod, Links: links}, routes.State{})
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.Addr{}
	for _, r := range observed.Routes {
		if r.Dst.IsSingleIP() && slices.Contains(links, r.Link) {
			out[r.Link] = append(out[r.Link], r.Dst.Addr())
		}
	}
	for _, n := range observed.Neighs {
		if !n.IP.IsMulticast() && !n.IP.IsLinkLocalUnicast() && !slices.Contains(out[n.Link], n.IP) {
			out[n.Link] = append(out[n.Link], n.IP)
		}
	}
	return out, nil
}
