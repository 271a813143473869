package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

const fallbackMTU = 1500 // RFC 894

func planAdd(rq request) (step, error) {
	o, err := newOrder(rq)
	return func(n *Node, ctx context.Context) (api.Reply, error) {
		if rq.conf.ipamOnly() {
			return n.lend(ctx, o)
		}
		return n.add(ctx, o)
	}, err
}

// add makes an attachment: first addresses, then links (see Do).
func (n *Node) add(ctx context.Context, o order) (reply api.Reply, err error) {
	rq := o.request
	release, err := n.enter(ctx, rq)
	if err != nil {
		return reply, err
	}
	defer release()

	pod, err := n.dial(rq.netns)
	if err != nil {
		return reply, fault(codeIO, "enter network namespace %s: %w", rq.cni.Netns, err).next("check that the namespace exists: its container may have ended")
	}
	defer pod.Close()
	host, done, err := n.host()
	if err != nil {
		return reply, err
	}
	defer done()
	if o, err = n.ensureUplinks(ctx, host, o); err != nil {
		return reply, err
	}
	// At first the kernel says who has the addresses while it makes the link. When somebody has, or had at an earlier
	// ADD, it is asked before there is a link, because a link takes long to delete.
	ask := n.somePassedOver()
	for range maxRefused {
		var refused []netip.Addr
		reply, refused, err = n.attach(ctx, o, ends{host: host, pod: pod}, ask)
		ask = true
		if len(refused) == 0 || slices.ContainsFunc(refused, func(a netip.Addr) bool { return slices.Contains(o.addrs, a) }) {
			break
		}
		n.passOver(refused)
		if held := (heldError{}); errors.As(err, &held) {
			o.passed = append(o.passed, held.by...)
		}
		pool, perr := n.reserve(o.pool, refused)
		if perr != nil {
			return reply, errors.Join(err, perr)
		}
		o.pool = pool
	}
	if errors.Is(err, ipam.ErrHeld) {
		err = errors.Join(n.vacant(ctx, o, pod), err)
	}
	return reply, err
}

// vacant checks that the pod has no interface of that name.
func (n *Node) vacant(ctx context.Context, o order, pod kernel) error {
	taken, err := linkExists(ctx, pod, o.attachment.IfName)
	if err == nil && taken {
		err = fault(codeExists, "interface %s exists in %s already", o.attachment.IfName, o.cni.Netns).
			next("call DEL before a second ADD, or choose another CNI_IFNAME")
	}
	return err
}

// enter keeps other verbs off the attachment, and sweeps off all attachments.
func (n *Node) enter(ctx context.Context, rq request) (release func(), err error) {
	if !rq.conf.delegated() {
		if err := n.needStore(ctx); err != nil {
			return nil, err
		}
	}
	n.sweep.RLock()
	if n.Store == nil || n.claimed {
		return n.sweep.RUnlock, nil
	}
	unclaim, err := ipam.Claim(ctx, n.Store.Path(), rq.attachment)
	if err != nil {
		n.sweep.RUnlock()
		return nil, err
	}
	return func() {
		_ = unclaim() // nothing was written to the file
		n.sweep.RUnlock()
	}, nil
}

// ends are the two namespaces of an attachment.
type ends struct{ host, pod kernel }

// maxRefused bounds how many leases one ADD tries: each costs a link that is made and deleted.
const maxRefused = 4

// attach is the part of ADD that changes something. It undoes its changes when it fails. The refused
// addresses are those of a lease that something else on this host has: either it was not asked (see obtain), or
// Holders did not see it and the kernel does not take the address.
func (n *Node) attach(ctx context.Context, o order, at ends, ask bool) (reply api.Reply, refused []netip.Addr, err error) {
	mtu, err := o.mtu(ctx, at.host)
	if err != nil {
		return reply, nil, err
	}
	g, err := n.obtain(ctx, at.host, o, at.pod.Cookie(), ask)
	if err != nil {
		return reply, nil, err
	}
	w := wiring{
		hostLink: o.hostLink(), hostMAC: macOf(o.attachment, "host"),
		ifName: o.attachment.IfName, podMAC: macOf(o.attachment, "pod"),
		mtu: mtu, addrs: g.addrs, routes: g.routes, src: g.src,
		alias: aliasOf(ipam.Lease{Attachment: o.attachment, Network: o.conf.network(), Pod: o.pod}, n.Dir),
	}
	if o.mac != "" {
		w.podMAC = o.mac
	}
	if o.conf.IPMasq {
		w.masq = masquerade(g.addrs, g.networks)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.undo(ctx, o.request, at.host, w, refused))
		}
	}()
	// In the daemon the pod is wired while the lease is written. A process without a daemon first lets other
	// processes use the store. A process that is killed in between leaves links that no lease owns: they are swept,
	// their addresses are passed over until then, and a DEL finds them by name.
	if n.reopen != nil {
		if err := errors.Join(g.commit(ctx), n.yield()); err != nil {
			return reply, nil, err
		}
	}
	if least := minMTUFor(w.has(true)); mtu < least {
		return reply, nil, smallMTU(mtu, least)
	}
	if w.metric, err = n.make(ctx, o, g, w, at); err != nil {
		var held heldError
		switch {
		case errors.As(err, &held):
			refused = held.addrs
		case errors.Is(err, routes.ErrForeign) && !o.conf.delegated():
			refused = g.addrs
		}
		return reply, refused, err
	}
	reply, err = printed(w.result(o.previous, g.dns, o.cni.Netns), o.conf.CNIVersion)
	if err = errors.Join(err, g.commit(ctx)); err != nil {
		return api.Reply{}, nil, err
	}
	reply.Undelivered = func(ctx context.Context) { n.withdraw(ctx, o.request, g.lease) }
	return reply, nil, nil
}

// mtu is the MTU of the pod's link: the configuration's, or the uplink's.
func (o order) mtu(ctx context.Context, host kernel) (int, error) {
	if o.conf.MTU != 0 {
		return o.conf.MTU, nil
	}
	return uplinkMTU(ctx, host)
}

// minMTUOf is the least MTU of a link with an address of each set of the pool.
func minMTUOf(p *ipam.Pool) int {
	return minMTUFor(slices.ContainsFunc(p.Sets, func(s ipam.RangeSet) bool { return len(s) > 0 && s[0].Subnet.Addr().Is6() }))
}

func minMTUFor(v6 bool) int {
	if v6 {
		return minMTU6
	}
	return minMTU
}

func smallMTU(mtu, least int) error {
	return fault(codeConfig, "mtu %d is too small for the pod's addresses: the least is %d", mtu, least).
		next("raise mtu in the network configuration, or the uplink's")
}

// freeMetric returns 0, or secondMetric if another interface of the pod already has the wanted routes.
func freeMetric(ctx context.Context, pod kernel, w wiring, a ipam.Attachment) (int, error) {
	observed, err := pod.Observe(ctx, routes.Scope{}, routes.State{Routes: w.pod().Routes})
	if err != nil {
		return 0, fmt.Errorf("read the routes of the pod: %w", err)
	}
	if len(observed.Routes) > 0 {
		return secondMetric(a), nil
	}
	return 0, nil
}

// firstIndex is the index of a namespace's first link after lo.
const firstIndex = 2

// make builds both ends, and returns the metric of the pod's routes. At first it does not ask the kernel
// about anything that ADD itself decides. If the kernel refuses a step, repair reads what exists and adds
// what is missing. The error is a heldError if something else on this host has the addresses of an unasked grant.
func (n *Node) make(ctx context.Context, o order, g grant, w wiring, at ends) (metric int, err error) {
	var unasked []netip.Addr
	if g.unasked {
		unasked = g.addrs
	}
	judge := func(there []routes.Route, sourceless bool) error {
		w.src = hostSource(sourceless)
		if err := elsewhere(ctx, at.host, g.lease, o.hostLink(), there); err != nil {
			return fmt.Errorf("network %s: %w", o.conf.Name, err)
		}
		unasked = nil
		return nil
	}
	peer, err := at.host.MakePair(ctx, w.host(o.netns).Links[0], unasked, func(there []routes.Route, sourceless bool) (routes.State, error) {
		if g.unasked {
			if err := judge(there, sourceless); err != nil {
				return routes.State{}, err
			}
		}
		return w.host(o.netns), nil
	})
	if err == nil && peer != firstIndex {
		w.metric, err = freeMetric(ctx, at.pod, w, o.attachment)
	}
	if err == nil {
		err = at.pod.Fill(ctx, peer, w.pod())
	}
	if errors.As(err, new(heldError)) {
		return 0, err
	}
	if err != nil && unasked != nil { // the link was refused before anybody answered
		there, sourceless, herr := at.host.Holders(ctx, unasked...)
		if herr == nil {
			herr = judge(there, sourceless)
		}
		if herr != nil {
			return 0, herr
		}
	}
	if err != nil {
		if w.metric, err = n.repair(ctx, o, w, at); err != nil {
			return 0, err
		}
	} else if err := settle(at, w); err != nil {
		return 0, fault(codeWiring, "%s: %w", o.attachment, err).next("check ip link and dmesg of the host")
	}
	if err := n.answer(ctx, at.host, w.addrs); err != nil {
		return 0, fault(codeWiring, "%s: neighbours of the uplink: %w", o.attachment, err).next("check ip -6 neigh show proxy and dmesg of the host")
	}
	n.announce(ctx, at.host, w.addrs)
	at.pod.AwaitLocal(ctx, w.addrs)
	return w.metric, nil
}

func settle(at ends, w wiring) error {
	return errors.Join(at.pod.Settle(w.ifName), at.host.Settle(w.hostLink))
}

// repair builds both ends from whatever exists. A link of the same name is half a pair or left over from
// a crash: its lease was missing or dead.
func (n *Node) repair(ctx context.Context, o order, w wiring, at ends) (metric int, err error) {
	err = deleteLinks(ctx, at.host, w.hostLink)
	if err == nil {
		err = n.vacant(ctx, o, at.pod)
	}
	if err != nil {
		return 0, err
	}
	if w.metric, err = freeMetric(ctx, at.pod, w, o.attachment); err != nil {
		return 0, err
	}
	if _, err = at.host.Sync(ctx, routes.Scope{}, w.host(o.netns)); err != nil {
		return 0, fault(codeWiring, "%s: host end: %w", o.attachment, err).next("check ip link, ip route and dmesg of the host")
	}
	want := w.pod()
	_, err = at.pod.Sync(ctx, routes.Scope{}, routes.State{Links: want.Links, Sysctls: want.Sysctls})
	if err == nil {
		err = settle(at, w)
	}
	if err == nil {
		_, err = at.pod.Sync(ctx, routes.Scope{}, want)
	}
	if err != nil {
		return 0, fault(codeWiring, "%s: pod end: %w", o.attachment, err).next("check ip link and ip route inside %s", o.cni.Netns)
	}
	return w.metric, nil
}

// undo removes what a failed ADD made. The lease goes last: its address must not be leased again while a
// link carries it. Addresses in forget do not remember the pod.
func (n *Node) undo(ctx context.Context, rq request, host kernel, w wiring, forget []netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := deleteLinks(ctx, host, w.hostLink)
	if err == nil && rq.conf.IPMasq {
		err = endMasquerade(ctx, host, w.addrs)
	}
	if err == nil && !rq.conf.delegated() {
		err = n.needStore(ctx)
	}
	if err == nil {
		err = n.giveBack(ctx, rq)
	}
	for _, a := range forget {
		if err == nil {
			err = n.Store.Forget(ctx, a)
		}
	}
	if err != nil {
		return fmt.Errorf("undo the ADD: %w", err)
	}
	return nil
}

// withdraw undoes an ADD whose result was not delivered, unless the attachment was made again since.
func (n *Node) withdraw(ctx context.Context, rq request, made ipam.Lease) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	release, err := n.enter(ctx, rq)
	if err != nil {
		return
	}
	defer release()
	if !rq.conf.delegated() {
		now, ok, err := n.lookup(rq.attachment)
		if err != nil || !ok || !now.Since.Equal(made.Since) || !slices.Equal(now.Addrs, made.Addrs) {
			return
		}
	}
	// The next DEL or sweep finds the rest after a failure.
	_ = n.detach(ctx, rq)
}

// waysOut returns addresses of the Internet in the order in which uplinkMTU asks for their routes: one of each
// half of IPv4, because a VPN routes 0.0.0.0/1 and 128.0.0.0/1, and one of IPv6. Nothing is sent to them.
func waysOut() [][]netip.Addr {
	return [][]netip.Addr{
		{netip.AddrFrom4([4]byte{64, 0, 0, 1}), netip.AddrFrom4([4]byte{193, 0, 0, 1})},
		{netip.AddrFrom16([16]byte{0: 0x24, 15: 1})},
	}
}

// uplinkMTU is the MTU of the link by which the kernel sends packets out of the LAN. Policy rules and routes
// that are narrower than the default route count. Without a way out, it is the MTU of the only link with an
// address.
func uplinkMTU(ctx context.Context, host kernel) (int, error) {
	h, err := host.Host(ctx)
	if err != nil {
		return 0, fault(codeIO, "find the uplink's MTU: %w", err).next("set mtu in the network configuration")
	}
	for _, addrs := range waysOut() {
		least := 0
		for _, a := range addrs {
			r, err := host.Lookup(ctx, a)
			if err != nil {
				continue // no way out
			}
			for _, l := range h.Links {
				if l.Name == r.Link && isMTU(l.MTU) && (least == 0 || l.MTU < least) {
					least = l.MTU
				}
			}
		}
		if least != 0 {
			return least, nil
		}
	}
	if only, ok := h.OnlyLink(); ok && isMTU(only.MTU) {
		return only.MTU, nil
	}
	return fallbackMTU, nil
}

// isMTU reports whether a veth link can have that MTU. The loopback's is larger.
func isMTU(mtu int) bool { return mtu >= minMTU && mtu <= maxMTU }
