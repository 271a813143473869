package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/routes"
)

func planCheck(rq request) (step, error) {
	previous, err := rq.conf.previous()
	if err == nil && previous == nil {
		err = fault(codeConfig, "CHECK has no prevResult").next("the runtime must pass the result of ADD as prevResult")
	}
	return func(n *Node, ctx context.Context) (api.Reply, error) { return n.check(ctx, rq, previous) }, err
}

// check compares both ends with what ADD made and prevResult still lists. It ignores what others added,
// and what others removed from prevResult (SPEC 1.1.0 section 2, CHECK).
func (n *Node) check(ctx context.Context, rq request, previous *current.Result) (reply api.Reply, err error) {
	release, err := n.enter(ctx, rq)
	if err != nil {
		return reply, err
	}
	defer release()
	p := inspection{rq: rq, previous: previous}
	if rq.conf.delegated() {
		if err := n.delegate(ctx, rq, "CHECK"); err != nil {
			return reply, err
		}
		p.addrs = p.listedAddrs(p.podInterface())
	} else if err := n.inspectLease(&p); err != nil {
		return reply, err
	}
	if !rq.conf.ipamOnly() {
		if err := n.inspectEnds(ctx, &p); err != nil {
			return reply, err
		}
	}
	if len(p.differences) > 0 {
		return reply, fault(codeDifferent, "%s is not as ADD left it: %s", rq.attachment, strings.Join(p.differences, "; ")).
			next("delete the pod, so that it is recreated; find out what changed it")
	}
	return reply, nil
}

type inspection struct {
	rq          request
	previous    *current.Result
	addrs       []netip.Addr
	answers     []routes.Addr // the pod's next hops that the host's end has
	differences []string
}

func (p *inspection) differs(format string, args ...any) {
	p.differences = append(p.differences, fmt.Sprintf(format, args...))
}

// inspectLease compares the reservation with prevResult.
func (n *Node) inspectLease(p *inspection) error {
	lease, ok, err := n.lookup(p.rq.attachment)
	if err != nil {
		return err
	}
	if !ok {
		p.differs("the store has no lease for it")
		p.addrs = p.listedAddrs(p.podInterface())
		return nil
	}
	listed := p.listedAddrs(-1)
	for _, a := range lease.Addrs {
		if !slices.Contains(listed, a) {
			p.differs("%s is leased, but prevResult does not list it", a)
			continue
		}
		p.addrs = append(p.addrs, a)
	}
	return nil
}

// podInterface is the index of our interface in prevResult; -1 when prevResult does not list it.
func (p *inspection) podInterface() int {
	return slices.IndexFunc(p.previous.Interfaces, func(i *current.Interface) bool {
		return i.Name == p.rq.attachment.IfName && i.Sandbox != ""
	})
}

// listedAddrs are the addresses of one interface in prevResult, or of all interfaces for -1.
func (p *inspection) listedAddrs(index int) (out []netip.Addr) {
	for _, ip := range p.previous.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if ok && (index < 0 || ip.Interface == nil || *ip.Interface == index) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// wiring is the expected state: our wiring as far as prevResult lists it, with the values that later
// plugins set.
func (p *inspection) wiring() (wiring, error) {
	w := wiring{
		hostLink: p.rq.hostLink(), hostMAC: macOf(p.rq.attachment, "host"),
		ifName: p.rq.attachment.IfName, podMAC: macOf(p.rq.attachment, "pod"), addrs: p.addrs,
	}
	for _, i := range p.previous.Interfaces {
		switch {
		case i.Sandbox == "" && i.Name == w.hostLink:
			w.mtu, w.hostMAC = i.Mtu, cmp.Or(i.Mac, w.hostMAC)
		case i.Sandbox != "" && i.Name == w.ifName:
			w.podMTU, w.podMAC = i.Mtu, cmp.Or(i.Mac, w.podMAC)
		}
	}
	if p.rq.conf.IPMasq {
		w.masq = masquerade(p.addrs, nil)
	}
	asked, err := p.rq.conf.routes()
	if err != nil || p.rq.conf.delegated() {
		asked = nil
	}
	for _, r := range podRoutes(asked, p.addrs) {
		if p.lists(r) {
			w.routes = append(w.routes, r)
		}
	}
	return w, err
}

// lists reports whether prevResult has the route. Results before 1.1.0 give only the destination and next
// hop of a route.
func (p *inspection) lists(r podRoute) bool {
	for _, l := range p.previous.Routes {
		dst, ok := netip.AddrFromSlice(l.Dst.IP)
		bits, _ := l.Dst.Mask.Size()
		via, _ := netip.AddrFromSlice(l.GW)
		if ok && netip.PrefixFrom(dst.Unmap(), bits) == r.dst && via.Unmap() == r.nextHop() {
			return true
		}
	}
	return false
}

// inspectEnds compares both namespaces with the wiring.
func (n *Node) inspectEnds(ctx context.Context, p *inspection) error {
	if p.podInterface() < 0 {
		p.differs("prevResult lists no interface %s in a sandbox", p.rq.attachment.IfName)
	}
	w, err := p.wiring()
	if err != nil {
		return err
	}
	host, done, err := n.host()
	if err != nil {
		return err
	}
	defer done()
	answers, err := host.Observe(ctx, routes.Scope{}, routes.State{Addrs: w.answers()})
	if err != nil {
		return fmt.Errorf("read the host's end: %w", err)
	}
	p.answers = answers.Addrs
	pod, err := n.dial(p.rq.netns)
	if err != nil {
		return fault(codeIO, "enter network namespace %s: %w", p.rq.cni.Netns, err).next("check that the namespace exists: its container may have ended")
	}
	defer pod.Close()
	pods := p.compare(ctx, pod, "pod", w)
	if w.metric = secondMetric(p.rq.attachment); pods.err == nil && len(pods.differences) > 0 {
		// The routes of a second interface rank behind those of the first.
		if second := p.compare(ctx, pod, "pod", w); len(second.differences) < len(pods.differences) {
			pods = second
		}
	}
	hosts := p.compare(ctx, host, "host", w)
	p.differences = slices.Concat(p.differences, hosts.differences, pods.differences)
	return errors.Join(hosts.err, pods.err)
}

type comparison struct {
	differences []string
	err         error
}

// compare notes what would have to be added or replaced at one end.
func (p *inspection) compare(ctx context.Context, k kernel, end string, w wiring) (out comparison) {
	want := w.host(nil)
	want.Addrs = nil // earlier versions set no addresses
	if end == "pod" {
		want = w.pod()
		want.Sysctls = nil // they took effect when the link came up
	}
	observed, err := k.Observe(ctx, routes.Scope{}, want)
	if err != nil {
		out.err = fmt.Errorf("read the %s's end: %w", end, err)
		return out
	}
	if end == "pod" {
		lowerMTU(want.Links, observed.Links)
	}
	changes := routes.Diff(observed, want)
	if end == "pod" {
		if changes, err = withoutMoved(ctx, k, w.ifName, changes); err != nil {
			out.err = fmt.Errorf("read the %s's end: %w", end, err)
			return out
		}
	}
	differs := func(format string, args ...any) {
		out.differences = append(out.differences, end+": "+fmt.Sprintf(format, args...))
	}
	missing := map[string]bool{} // missing links: their objects are missing too
	for _, c := range changes {
		if l, ok := c.Object.(routes.Link); ok && c.Op == routes.Add {
			missing[l.Name] = true
			differs("missing link %s", l.Name)
			continue
		}
		switch {
		case missing[linkUnder(c.Object)] || c.Op == routes.Delete: // not ours to judge
		case p.learns(c), otherSource(c):
		case c.Op == routes.Add:
			differs("missing %v", c.Object)
		default:
			differs("want %v, have %v", c.Object, c.Was)
		}
	}
	return out
}

// lowerMTU accepts a smaller MTU as set by a later plugin: tuning sets the MTU and leaves prevResult as
// it is. The pod's packets still fit through the host's end, but with a larger MTU they would not.
func lowerMTU(want, have []routes.Link) {
	for i := range want {
		for _, l := range have {
			if l.Name == want[i].Name && l.MTU < want[i].MTU {
				want[i].MTU = l.MTU
			}
		}
	}
}

// withoutMoved leaves out routes that are missing in the main table and present in another table: sbr
// moves them, and leaves prevResult as it is.
func withoutMoved(ctx context.Context, k kernel, link string, changes []routes.Change) ([]routes.Change, error) {
	lacks := func(c routes.Change) bool {
		r, ok := c.Object.(routes.Route)
		return ok && c.Op == routes.Add && r.Table == 0
	}
	noLink := slices.ContainsFunc(changes, func(c routes.Change) bool {
		l, ok := c.Object.(routes.Link)
		return ok && c.Op == routes.Add && l.Name == link
	})
	if noLink || !slices.ContainsFunc(changes, lacks) {
		return changes, nil
	}
	have, err := k.RoutesOn(ctx, link)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(changes, func(c routes.Change) bool {
		return lacks(c) && slices.ContainsFunc(have, func(h routes.Route) bool {
			r := c.Object.(routes.Route)
			return h.Table != unix.RT_TABLE_MAIN && h.Dst == r.Dst && h.Via == r.Via
		})
	}), nil
}

// otherSource reports that a route differs only in its source. That is right while the host has no other
// address, and the daemon corrects it.
func otherSource(c routes.Change) bool {
	want, ok := c.Object.(routes.Route)
	was, replaced := c.Was.(routes.Route)
	was.Src, want.Src = netip.Addr{}, netip.Addr{}
	return ok && replaced && len(routes.Diff(routes.State{Routes: []routes.Route{was}}, routes.State{Routes: []routes.Route{want}})) == 0
}

// learns reports that a neighbour entry does not count as a difference. The kernel finds a missing entry
// and corrects an entry that learns. An earlier version made the host end's entries permanent. The pod's
// kernel drops its own entries when the MAC changes, as tuning does.
func (p *inspection) learns(c routes.Change) bool {
	want, ok := c.Object.(routes.Neigh)
	if !ok {
		return false
	}
	if was, ok := c.Was.(routes.Neigh); ok {
		return was.Learns || strings.EqualFold(was.MAC, want.MAC)
	}
	return want.Learns || slices.ContainsFunc(p.answers, func(a routes.Addr) bool { return a.Prefix.Addr() == want.IP })
}

// linkUnder is the link of an object; "" if the object has none.
func linkUnder(object any) string {
	switch o := object.(type) {
	case routes.Addr:
		return o.Link
	case routes.Neigh:
		return o.Link
	case routes.Route:
		return o.Link
	case routes.Sysctl:
		if parts := strings.Split(o.Key, "/"); len(parts) == 5 { // net/ipv6/conf/LINK/accept_ra
			return parts[3]
		}
	}
	return ""
}
