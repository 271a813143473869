package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// applier makes changes in order. It collects changes of objects on links, and sends them together before
// a change that may depend on them. It collects settings too: they need a visit to the namespace.
type applier struct {
	k         *Kernel
	v         *view
	ctx       context.Context // of one call
	firewalls Firewalls       // that a Passage is in
	pending   []step
	settings  []*Change
	raised    []step // links to set up after their settings are written
	moved     bool   // routes have left a link, and a packet may still be on the old way
}

// onTheWay is how long a packet takes at most from the look-up of its route to the wire.
const onTheWay = 10 * time.Millisecond

// step is one message of a change.
type step struct {
	c    *Change
	m    message
	then message // sent after the kernel took m; nil: nothing follows
}

func (a *applier) apply(changes []Change) {
	routes := slices.IndexFunc(changes, func(c Change) bool { _, ok := c.Object.(Route); return ok })
	dying := dyingLinks(changes)
	changes = changes[:len(changes)-len(dying)]
	defer a.end(dying)
	for i := range changes {
		c := &changes[i]
		if i == routes {
			a.v.objects = a.objects(changes)
		}
		if c.Err != nil {
			continue
		}
		if err := a.ctx.Err(); err != nil {
			c.Err = fmt.Errorf("%v: not tried: %w", c, err)
			continue
		}
		a.await(c)
		if s, ok := c.Object.(Sysctl); ok {
			if value, known := a.v.told(s.Key); known && value == s.Value {
				continue // a link that was just made has the value by default
			}
			if m, ok := a.v.settingMessage(s); ok {
				a.pending = append(a.pending, step{c: c, m: m})
			} else {
				a.settings = append(a.settings, c)
			}
			continue
		}
		if _, ok := c.Object.(Link); !ok {
			a.set()
		}
		steps, alone, err := a.steps(c)
		switch {
		case err != nil:
			a.conclude(c, err)
		case alone != nil:
			a.send()
			start := time.Now()
			err := alone()
			c.Took = time.Since(start)
			a.conclude(c, err)
			a.raise(c)
		case raises(c):
			a.raised = append(a.raised, steps...)
		default:
			a.pending = append(a.pending, steps...)
		}
	}
	a.flush()
}

// await waits before the first deletion after routes have moved to another link, or have left a tunnel for a wider
// route: a packet that took the old way still needs the neighbour, the forwarding entry and the link.
func (a *applier) await(c *Change) {
	r, isRoute := c.Object.(Route)
	if was, ok := c.Was.(Route); ok && was.Link != r.Link || c.Op == Delete && strings.HasPrefix(r.Link, overlayPrefix) {
		a.moved = true
	}
	if !a.moved || isRoute || c.Op != Delete {
		return
	}
	a.moved = false
	a.flush()
	select {
	case <-time.After(onTheWay):
	case <-a.ctx.Done():
	}
}

// dyingLinks returns the deletions of links at the end, if there are at least two.
func dyingLinks(changes []Change) (dying []*Change) {
	for i := len(changes) - 1; i >= 0; i-- {
		if _, ok := changes[i].Object.(Link); !ok || changes[i].Op != Delete || changes[i].Err != nil {
			break
		}
		dying = append(dying, &changes[i])
	}
	if len(dying) < 2 {
		return nil
	}
	return dying
}

// end deletes the dying links.
func (a *applier) end(dying []*Change) {
	if len(dying) == 0 {
		return
	}
	if err := a.ctx.Err(); err != nil {
		for _, c := range dying {
			c.Err = fmt.Errorf("%v: not tried: %w", c, err)
		}
		return
	}
	start := time.Now()
	a.delLinks(dying)
	for _, c := range dying {
		c.Took = time.Since(start)
	}
}

// steps returns the requests that make c. It returns alone instead where the requests depend on answers
// of the kernel.
func (a *applier) steps(c *Change) (steps []step, alone func() error, err error) {
	if err := possible(c.Object); err != nil {
		return nil, nil, err
	}
	one := step{c: c}
	index := 0
	switch o := c.Object.(type) {
	case Link:
		switch c.Op {
		case Add:
			return nil, func() error { return a.addLink(o) }, nil
		case Delete:
			return nil, func() error { return a.delLink(o) }, nil
		}
		if index, err = a.v.index(o.Name); err == nil {
			one.m, err = linkMessage(o, index, 0)
		}
	case NAT:
		return nil, func() error { return a.k.setNAT(c.Op, o) }, nil
	case Senders:
		return nil, func() error { return a.k.setTable(c.Op, o.table()) }, nil
	case SourceCheck:
		return nil, func() error { return a.k.setTable(c.Op, o.table()) }, nil
	case Symmetric:
		return nil, func() error { return a.k.setTable(c.Op, o.table()) }, nil
	case Announced:
		return nil, func() error { return a.k.setTable(c.Op, o.table()) }, nil
	case Passage:
		return nil, func() error { return a.firewalls.set(a.ctx, a.k, c.Op, o) }, nil
	case Masq:
		return nil, func() error { return a.setMasq(c.Op, o) }, nil
	case Rule:
		one.m = o.message(c.Op)
	case ProxyNeigh:
		index, err = a.v.index(o.Link)
		one.m = o.message(c.Op, index)
	case Route:
		one, err = a.v.routeStep(c, o)
	case Addr:
		index, err = a.v.index(o.Link)
		if one.m = addrMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, o, index); c.Op == Delete {
			one.m = addrMessage(unix.RTM_DELADDR, 0, o, index)
		}
	case Neigh:
		index, ierr := a.v.index(o.Link)
		msgs, err := o.messages(neighType(c.Op), index)
		for _, m := range msgs {
			steps = append(steps, step{c: c, m: m})
		}
		return steps, nil, errors.Join(ierr, err)
	case FDB:
		if index, err = a.v.index(o.Link); err == nil {
			one.m, err = o.message(neighType(c.Op), index)
		}
	default:
		err = fmt.Errorf("type %T is not part of a State", o)
	}
	return []step{one}, nil, err
}

// possible refuses objects whose zero fields the kernel would read as something else: a route without Dst
// is a default route.
func possible(object any) error {
	proper := func(what string, a netip.Addr) error {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("%s %q is not a plain address", what, a)
		}
		return nil
	}
	switch o := object.(type) {
	case Route:
		if o.Via.IsValid() {
			if err := proper("next hop", o.Via); err != nil {
				return err
			}
			if o.Dst.Addr().Is6() && o.Via.Is4() {
				return errors.New("an IPv6 route cannot have an IPv4 next hop")
			}
		}
		return proper("destination", o.Dst.Addr())
	case Addr:
		return proper("address", o.Prefix.Addr())
	case Rule:
		return o.possible()
	case Neigh:
		return proper("neighbour", o.IP)
	case ProxyNeigh:
		return proper("neighbour", o.IP)
	case FDB:
		return proper("VTEP", o.Dst)
	case Masq:
		return proper("masqueraded address", o.Addr)
	}
	return nil
}

func neighType(op Op) uint16 {
	if op == Delete {
		return unix.RTM_DELNEIGH
	}
	return unix.RTM_NEWNEIGH
}

// raises reports whether c sets an existing link up.
func raises(c *Change) bool {
	l, ok := c.Object.(Link)
	was, _ := c.Was.(Link)
	return ok && c.Op == Replace && l.Up && !was.Up
}

// set writes the collected settings, and then sets up the links that the settings may belong to: a link
// that is up hears its neighbours at once.
func (a *applier) set() {
	if changes := a.settings; len(changes) > 0 {
		a.settings = nil
		if slices.ContainsFunc(a.pending, func(s step) bool { _, ok := s.c.Object.(Link); return ok }) {
			a.send() // a link of another MTU may have other settings
		}
		var settings []Sysctl
		for _, c := range changes {
			settings = append(settings, c.Object.(Sysctl))
		}
		start := time.Now()
		errs := a.k.setSysctls(settings)
		each := time.Since(start) / time.Duration(len(settings))
		for i, c := range changes {
			c.Took = each
			a.conclude(c, errs[i])
		}
	}
	a.pending, a.raised = append(a.pending, a.raised...), nil
}

func (a *applier) flush() {
	a.set()
	a.send()
}

func (a *applier) send() {
	if len(a.pending) == 0 {
		return
	}
	msgs := make([]message, len(a.pending))
	for i, s := range a.pending {
		msgs[i] = s.m
	}
	start := time.Now()
	errs := a.k.c.change(msgs...)
	each := time.Since(start) / time.Duration(len(a.pending))
	var then []step
	msgs = msgs[:0]
	for i, s := range a.pending {
		s.c.Took += each
		a.conclude(s.c, errs[i])
		if s.then != nil && errs[i] == nil {
			then, msgs = append(then, s), append(msgs, s.then)
		}
	}
	a.pending = nil
	for i, err := range a.k.c.change(msgs...) {
		if !absent(err) {
			a.conclude(then[i].c, err)
		}
	}
}

func (a *applier) conclude(c *Change, err error) {
	if err == nil || (c.Op == Delete && absent(err)) {
		return
	}
	if s, ok := c.Object.(Sysctl); ok && isRefusal(s.Key) && absent(err) {
		return // the link disappeared meanwhile
	}
	if r, ok := c.Object.(Route); ok {
		if errors.Is(err, unix.EINVAL) && r.Onlink && r.Via.Is6() {
			if err = a.onlink(c, r); err == nil {
				return
			}
		}
		if held, found := a.v.holder(r, err); found && normal(held) == normal(r) {
			return // another process of ours made the route meanwhile
		} else if found && held.Protocol != r.Protocol {
			c.Err = &foreignError{r, held}
			return
		}
	}
	c.Err = fmt.Errorf("%v: %w%s", c, err, nextStep(c.Object, err))
}

// onlink makes an IPv6 route whose next hop is covered by a route over another link. The kernel refuses such
// a route although it says that the next hop is on the link (net/ipv6/route.c: ip6_route_check_nh_onlink).
// This happens whenever a pod CIDR moves from the underlay to the overlay, because the next hop lies in the
// CIDR. A host route to the next hop stands in meanwhile, so the destination always has a route.
func (a *applier) onlink(c *Change, r Route) error {
	stand := Route{Dst: netip.PrefixFrom(r.Via, r.Via.BitLen()), Link: r.Link, Protocol: r.Protocol, Table: r.Table}
	there, err := a.v.newRoute(stand, unix.NLM_F_EXCL)
	if err != nil {
		return err
	}
	route, err := a.v.routeStep(c, r)
	if err != nil {
		return err
	}
	gone, err := a.v.delRoute(stand)
	if err != nil {
		return err
	}
	if a.k.c.change(there)[0] != nil { // a route to the next hop exists already, and stays
		return a.k.c.change(route.m)[0]
	}
	return a.k.c.change(route.m, gone)[0]
}

// absent reports whether the object of a delete is already gone, perhaps with its link.
func absent(err error) bool {
	for _, gone := range []error{unix.ESRCH, unix.ENOENT, unix.EADDRNOTAVAIL, unix.ENODEV, unix.ENXIO, errNoLink} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// nextStep says what an operator can do about an error with an outside cause.
func nextStep(object any, err error) string {
	_, masq := object.(Masq)
	_, senders := object.(Senders)
	_, check := object.(SourceCheck)
	_, symmetric := object.(Symmetric)
	_, announced := object.(Announced)
	_, passage := object.(Passage)
	link, _ := object.(Link)
	switch {
	case link.VLAN != nil && errors.Is(err, unix.EOPNOTSUPP): // net/core/rtnetlink.c: an unknown kind of link
		return "; load the kernel module: modprobe 8021q"
	case passage:
		return "; let the packets pass by the commands of the firewall's own program (docs/troubleshooting.md, Firewalls), or set firewall to off"
	case masq && unsupported(err):
		return "; load the kernel module nf_tables, or switch masquerade off"
	case senders && unsupported(err):
		return "; load the kernel module nf_tables, or set vxlan.acceptAll"
	case check && (unsupported(err) || errors.Is(err, unix.ENOENT)): // ENOENT: no such expression
		return "; load the kernel modules nf_tables and nft_fib_inet, or set cni.sourceCheck to false"
	case symmetric && (unsupported(err) || errors.Is(err, unix.ENOENT)):
		return "; load the kernel modules nf_tables and nft_ct; until then NodePorts and hostPorts of pods on uplinks do not answer"
	case announced && (unsupported(err) || errors.Is(err, unix.ENOENT)):
		return "; use a kernel with CONFIG_NF_TABLES_ARP; until then a machine that knows a pod's address at another MAC does not reach the pod before its entry has aged"
	case errors.Is(err, unix.EPERM):
		return "; run as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.ENETDOWN):
		return "; set the link up"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		if r, ok := object.(Route); ok && r.Via.IsValid() {
			return fmt.Sprintf("; no address of link %s has %v in its subnet", r.Link, r.Via)
		}
	}
	return ""
}

// holder finds the route in the place of r, if err says that there is one. It prefers r itself, then
// other owners' routes, then ours.
func (v *view) holder(r Route, err error) (Route, bool) {
	if !errors.Is(err, unix.EEXIST) {
		return Route{}, false
	}
	r = normal(r)
	entries, err := v.fib(family(r.Dst.Addr()), r.Table, 0, 0)
	if err != nil {
		return Route{}, false
	}
	var held Route
	found := false
	for _, e := range entries {
		if keyOfRoute(e.Route) != keyOfRoute(r) {
			continue
		}
		there := v.route(e)
		if normal(there) == r {
			return there, true
		}
		if !found || there.Protocol != r.Protocol {
			held, found = there, true
		}
	}
	return held, found
}
