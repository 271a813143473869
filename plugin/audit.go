package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// Attachments returns all leases, oldest first.
func (n *Node) Attachments(ctx context.Context) ([]Attached, error) {
	host, done, err := n.look(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	all, _, err := n.attached(ctx, host)
	return all, err
}

// ready prepares the Node for a request that is not a verb.
func (n *Node) ready(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	return n.needStore(ctx)
}

// look borrows a kernel of the host for such a request.
func (n *Node) look(ctx context.Context) (host kernel, done func(), err error) {
	if err := n.ready(ctx); err != nil {
		return nil, nil, err
	}
	return n.host()
}

// Remove ends an attachment as DEL does: link first, lease last. An absent attachment is not an error.
func (n *Node) Remove(ctx context.Context, a ipam.Attachment) error {
	if err := n.open(); err != nil {
		return err
	}
	return n.del(ctx, request{attachment: a})
}

// Ends are both ends of an attachment as the kernel has them.
type Ends struct {
	Host, Pod routes.State
	// NoPod says why the pod's end could not be observed.
	NoPod string
}

// Ends observes both ends of one attachment.
func (n *Node) Ends(ctx context.Context, a Attached) (e Ends, err error) {
	host, done, err := n.look(ctx)
	if err != nil {
		return e, err
	}
	defer done()
	if a.Linked {
		want := wiring{hostLink: a.Link, addrs: a.Lease.Addrs}.host(nil)
		want.Sysctls = nil
		if e.Host, err = host.Observe(ctx, routes.Scope{Links: []string{a.Link}}, want); err != nil {
			return e, fmt.Errorf("link %s: %w", a.Link, err)
		}
	}
	e.Pod, e.NoPod, err = n.podEnd(ctx, a.Lease)
	return e, err
}

// podEnd observes the pod's interface and routes; absent says why there is nothing to observe.
func (n *Node) podEnd(ctx context.Context, l ipam.Lease) (s routes.State, absent string, err error) {
	if l.Netns == "" {
		return s, "its namespace is not known", nil
	}
	f, err := OpenLeased(l)
	if err != nil {
		return s, "", err
	}
	if f == nil {
		return s, "its namespace " + l.Netns + " is gone", nil
	}
	defer f.Close()
	if n.podNetns(request{netns: f}) != nil {
		return s, l.Netns + " is not the namespace of a pod", nil
	}
	pod, err := n.dial(f)
	if err != nil {
		return s, "", fmt.Errorf("enter network namespace %s: %w", l.Netns, err)
	}
	defer pod.Close()
	if s, err = pod.Observe(ctx, routes.Scope{Protocol: routes.ProtoPod, Links: []string{l.Attachment.IfName}}, routes.State{}); err != nil {
		return s, "", fmt.Errorf("namespace %s: %w", l.Netns, err)
	}
	if len(s.Links) == 0 {
		absent = fmt.Sprintf("%s does not exist in %s", l.Attachment.IfName, l.Netns)
	}
	others, err := pod.Host(ctx)
	s.Routes = append(s.Routes, others.Routes...)
	return s, absent, err
}

// Finding is one disagreement between the store, the host and a pod.
type Finding struct {
	Object string `json:"object"`
	Got    string `json:"got"`
	// Repair is what Node.Repair does about it. Empty: nothing, and Next says who can help.
	Repair string `json:"repair,omitempty"`
	Next   string `json:"next,omitempty"`
	Done   bool   `json:"done,omitempty"` // Node.Repair did it
	// Of is the attachment that Object names; zero: Object is something else.
	Of ipam.Attachment `json:"-"`
}

// Audit compares leases with links, and both ends of each attachment with what ADD makes, as far as the
// store knows. It changes nothing. Verbs wait until it is done.
func (n *Node) Audit(ctx context.Context) (found []Finding, err error) {
	if err := n.ready(ctx); err != nil {
		return nil, err
	}
	err = n.alone(func(host kernel) error {
		a, err := n.audit(ctx, host)
		found = a.findings
		return err
	})
	return found, err
}

// Repair does what Sweep does, and restores what the host's ends of living attachments lack. It returns
// what Audit found before, and what it finds after.
func (n *Node) Repair(ctx context.Context) (found []Finding, err error) {
	if err := n.ready(ctx); err != nil {
		return nil, err
	}
	err = n.alone(func(host kernel) error {
		before, err := n.audit(ctx, host)
		if err != nil {
			return err
		}
		err = before.repair(ctx, n, host)
		after, aerr := n.audit(ctx, host)
		if aerr == nil {
			found = settled(before, after)
		}
		return errors.Join(err, aerr)
	})
	return found, err
}

// settled returns what is left after a repair, and what the repair did.
func settled(before, after audit) []Finding {
	out := after.findings
	for _, f := range before.findings {
		if !slices.Contains(after.findings, f) {
			f.Done = true
			out = append(out, f)
		}
	}
	return out
}

// audit is the result of one pass.
type audit struct {
	findings []Finding
	suspects []ipam.Lease // leases with findings; a lease may occur twice
	want     routes.State // the host's ends of living attachments
	stray    []routes.Route
	routes   []routes.Route // all routes of our protocol
}

func (a *audit) found(f Finding) { a.findings = append(a.findings, f) }

func (a *audit) against(l ipam.Lease, f Finding) {
	f.Object, f.Of = leaseText(l), l.Attachment
	a.suspects = append(a.suspects, l)
	a.found(f)
}

func (n *Node) audit(ctx context.Context, host kernel) (a audit, err error) {
	all, unowned, err := n.attached(ctx, host)
	if err != nil {
		return a, err
	}
	for _, link := range unowned {
		a.found(Finding{Object: "link " + link, Got: "no lease owns it", Repair: "delete it"})
	}
	return a, n.auditAttached(ctx, host, &a, all, n.auditPod)
}

// podAudit checks a pod's end, and corrects the wiring from it.
type podAudit func(ctx context.Context, a *audit, l ipam.Lease, w *wiring) error

// auditAttached judges attachments, and compares both ends of the living ones with what ADD makes.
func (n *Node) auditAttached(ctx context.Context, host kernel, a *audit, all []Attached, look podAudit) error {
	var living []ipam.Lease
	for _, one := range all {
		l := one.Lease
		f := Finding{}
		switch {
		case !one.lives():
			f.Got, f.Repair = whyDead(one), "release "+addrsText(l.Addrs)+"; the address remembers its pod"
		case one.Standing == Unlinked:
			f.Got, f.Next = "its link "+one.Link+" does not exist, but its namespace "+l.Netns+" does", "delete the pod, so that it is recreated"
		case one.Linked && one.Link != linkOf(l):
			f.Got, f.Next = "its link "+linkOf(l)+" was renamed to "+one.Link, "rename it back, or delete the pod, so that it is recreated"
		default:
			if one.Linked {
				living = append(living, l)
			}
			continue
		}
		a.against(l, f)
	}
	return n.auditEnds(ctx, host, a, living, look)
}

func whyDead(a Attached) string {
	switch {
	case a.Standing == EarlierBoot:
		return "of an earlier boot: its pod is gone"
	case isForeign(a.Lease):
		return "its namespace " + a.Lease.Netns + " is gone"
	}
	return "its link " + a.Link + " does not exist"
}

// leaseText names a lease as operators do.
func leaseText(l ipam.Lease) string {
	if p := l.Pod.String(); p != "" {
		return "pod " + p + " (" + addrsText(l.Addrs) + ")"
	}
	return "lease of " + strings.TrimSuffix(l.Attachment.String(), "/") + " (" + addrsText(l.Addrs) + ")"
}

func addrsText(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func (n *Node) auditEnds(ctx context.Context, host kernel, a *audit, living []ipam.Lease, look podAudit) error {
	if len(living) == 0 {
		return nil
	}
	links := make([]string, len(living))
	owner := map[string]ipam.Lease{}
	for i, l := range living {
		links[i] = linkOf(l)
		owner[links[i]] = l
	}
	have, err := host.Observe(ctx, routes.Scope{Protocol: routes.ProtoPod, Links: links}, routes.State{})
	if err != nil {
		return err
	}
	a.routes = have.Routes
	_, sourceless, err := host.Holders(ctx)
	if err != nil {
		return err
	}
	for _, l := range living {
		w := wiring{hostLink: linkOf(l), ifName: l.Attachment.IfName, addrs: l.Addrs, src: hostSource(sourceless)}
		if !isRecovered(l) {
			w.hostMAC, w.podMAC = macOf(l.Attachment, "host"), macOf(l.Attachment, "pod")
		}
		if err := look(ctx, a, l, &w); err != nil {
			a.against(l, Finding{Got: err.Error(), Next: "check " + l.Netns})
		}
		one := w.host(nil)
		one.Links[0].Peer = nil              // do not recreate a link that went away meanwhile
		if isRecovered(l) || l.Netns == "" { // the neighbours alone know the pod's MAC
			one.Neighs = nil
		}
		a.want.Links, a.want.Addrs = append(a.want.Links, one.Links...), append(a.want.Addrs, one.Addrs...)
		a.want.Routes, a.want.Neighs = append(a.want.Routes, one.Routes...), append(a.want.Neighs, one.Neighs...)
		for _, s := range one.Sysctls {
			if !slices.Contains(a.want.Sysctls, s) {
				a.want.Sysctls = append(a.want.Sysctls, s)
			}
		}
	}
	observed, err := host.Observe(ctx, routes.Scope{}, a.want)
	if err != nil {
		return err
	}
	for _, c := range routes.Diff(observed, a.want) {
		a.difference(c, owner)
	}
	a.strays(owner)
	return nil
}

// difference notes a change that Repair would make on the host.
func (a *audit) difference(c routes.Change, owner map[string]ipam.Lease) {
	link := linkUnder(c.Object)
	if _, ok := c.Object.(routes.Neigh); ok && c.Op == routes.Add {
		return // the kernel asks the pod
	}
	if l, ok := c.Object.(routes.Link); ok {
		link = l.Name
	}
	f := Finding{Object: "host", Repair: fmt.Sprintf("%s %v", c.Op, c.Object), Got: fmt.Sprintf("missing: %v", c.Object)}
	l, ofLease := owner[link]
	if c.Was != nil {
		f.Got = fmt.Sprintf("want %v, have %v", c.Object, c.Was)
	}
	if s, ok := c.Object.(routes.Sysctl); ok {
		f.Got, f.Repair = s.Key+" is not "+s.Value+": pods reach nothing outside of this node", "set it"
		if ofLease && s.Value == "0" {
			f.Got = s.Key + " is not " + s.Value + ": the pod can change the routes of this node"
		}
	}
	if c.Err != nil {
		f.Got, f.Repair, f.Next = c.Err.Error(), "", "stop the agent that owns it, or delete it; then check again"
	}
	if ofLease {
		a.against(l, f)
		return
	}
	a.found(f)
}

// strays notes our routes over a lease's link that lead to none of the lease's addresses.
func (a *audit) strays(owner map[string]ipam.Lease) {
	for _, r := range a.routes {
		l, ok := owner[r.Link]
		if !ok || r.Dst.IsSingleIP() && slices.Contains(l.Addrs, r.Dst.Addr()) {
			continue
		}
		a.stray = append(a.stray, r)
		a.suspects = append(a.suspects, l)
		a.found(Finding{Object: "route " + r.String(), Got: "no address of " + leaseText(l), Repair: "delete it"})
	}
}

// auditPod is a podAudit that asks the pod's kernel. It uses the pod's MAC, which the runtime may have
// chosen.
func (n *Node) auditPod(ctx context.Context, a *audit, l ipam.Lease, w *wiring) error {
	if l.Netns == "" {
		return nil
	}
	pod, absent, err := n.podEnd(ctx, l)
	if err != nil {
		return err
	}
	differs := func(format string, args ...any) {
		a.against(l, Finding{Got: fmt.Sprintf(format, args...), Next: "delete the pod, so that it is recreated; find out what changed it"})
	}
	if absent != "" {
		differs("%s, but its link %s exists on the host", absent, w.hostLink)
		return nil
	}
	if !isRecovered(l) {
		w.podMAC = pod.Links[0].MAC
	}
	if !pod.Links[0].Up {
		differs("%s in %s is down", w.ifName, l.Netns)
	}
	for _, addr := range l.Addrs {
		if !slices.ContainsFunc(pod.Addrs, func(p routes.Addr) bool { return p.Prefix.Addr() == addr }) {
			differs("%s in %s lacks its address %s", w.ifName, l.Netns, addr)
		}
	}
	for _, v6 := range []bool{false, true} {
		via := gateway(v6)
		if w.has(v6) && !slices.ContainsFunc(pod.Routes, func(r routes.Route) bool { return r.Dst.Addr().Is6() == v6 && r.Protocol == routes.ProtoPod }) {
			differs("%s in %s lost its routes through %s", w.ifName, l.Netns, via)
		}
		if !slices.ContainsFunc(pod.Routes, func(r routes.Route) bool { return r.Via == via && r.Link == w.ifName }) {
			continue
		}
		// The kernel asks for a missing entry.
		if slices.ContainsFunc(pod.Neighs, func(x routes.Neigh) bool { return x.IP == via && w.hostMAC != "" && x.MAC != w.hostMAC }) {
			differs("%s in %s has a neighbour entry that leads %s elsewhere than to the host", w.ifName, l.Netns, via)
		}
	}
	return nil
}

func (a *audit) repair(ctx context.Context, n *Node, host kernel) error {
	_, err := n.collect(ctx, host, Attached.lives)
	_, serr := host.Sync(ctx, routes.Scope{}, a.want)
	err = errors.Join(err, serr)
	if len(a.stray) > 0 {
		// Keep all routes of our protocol but the strays: Sync deletes the routes that it is not given.
		now, oerr := host.Observe(ctx, routes.Scope{Protocol: routes.ProtoPod}, routes.State{})
		if oerr != nil {
			return errors.Join(err, oerr)
		}
		keep := slices.DeleteFunc(now.Routes, func(r routes.Route) bool { return slices.Contains(a.stray, r) })
		_, serr = host.Sync(ctx, routes.Scope{Protocol: routes.ProtoPod}, routes.State{Routes: keep})
		err = errors.Join(err, serr)
	}
	return err
}
