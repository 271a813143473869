package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// Step is one thing that happens to the packet on this machine.
type Step struct {
	State string `json:"state"` // OK, Problem, Advice or Unclear
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"`
}

// Answer is the way of a connection's packets from A to B, and of the answers from B to A, as far as this machine has
// to do with it.
type Answer struct {
	Node  string `json:"node"`
	A     string `json:"a"`
	B     string `json:"b"`
	There []Step `json:"there"`
	Back  []Step `json:"back"`
	Stops string `json:"stops,omitempty"` // where the way ends, in words; "": it ends nowhere on this machine
	Next  string `json:"next,omitempty"`
}

// end is one end of the way.
type end struct {
	name string
	addr netip.Addr
	here bool   // it is on this machine
	link string // the host's end of a pod that is here; "" for this machine itself
	node string // whose pod CIDR or address it is; "": none of the cluster's
	pod  bool
}

func (e end) String() string {
	if e.name == e.addr.String() {
		return e.name
	}
	return fmt.Sprintf("%s (%v)", e.name, e.addr)
}

// way is a question at work.
type way struct {
	ctx    context.Context
	k      *routes.Kernel
	w      policy.World
	plan   policy.Plan
	leases []api.Lease
}

// Why says how packets travel from a to b and back, step by step, from what this machine really has: links, policy
// rules and routes as the kernel applies them, reverse path filter, firewalls, neighbours, MTU, tunnel, and what the
// switches are told. Each end is a pod of this node (namespace/name), a node's name, or an address. At least one end
// must be on this machine.
func Why(ctx context.Context, c config.Config, leases []api.Lease, a, b string) (Answer, error) {
	k, err := routes.Open()
	if err != nil {
		return Answer{}, err
	}
	defer k.Close()
	w, plan, err := look(ctx, c, k)
	if w.Self == "" {
		return Answer{}, err
	}
	q := &way{ctx, k, w, plan, leases}
	from, err := q.end(a, netip.Addr{})
	if err != nil {
		return Answer{}, err
	}
	to, err := q.end(b, from.addr)
	if err != nil {
		return Answer{}, err
	}
	if to.addr.Is4() != from.addr.Is4() {
		if from, err = q.end(a, to.addr); err != nil || to.addr.Is4() != from.addr.Is4() {
			return Answer{}, errors.Join(err, fmt.Errorf("%v and %v have no addresses of one family", a, b))
		}
	}
	if !from.here && !to.here {
		return Answer{}, fmt.Errorf("neither %v nor %v is on this node: run it on %s", from, to, strings.Join(slices.DeleteFunc([]string{from.node, to.node}, func(s string) bool { return s == "" }), " or on "))
	}
	packet := routes.Packet{Src: from.addr, Dst: to.addr, Protocol: routes.TCP, SrcPort: policy.SomePort, DstPort: policy.SomePort}
	answer := Answer{Node: w.Self, A: from.String(), B: to.String(), There: q.leg(from, to, packet)}
	packet.Src, packet.Dst, packet.Reply = packet.Dst, packet.Src, true
	answer.Back = q.leg(to, from, packet)
	if stopped := func(s Step) bool { return s.State == Problem }; !slices.ContainsFunc(answer.There, stopped) && !slices.ContainsFunc(answer.Back, stopped) {
		answer.There = append(answer.There, q.live(from, to)...)
	}
	for _, s := range slices.Concat(answer.There, answer.Back) {
		if s.State == Problem {
			answer.Stops, answer.Next = s.Text, s.Next
			break
		}
	}
	return answer, nil
}

// end finds out what a name or an address is. like has the family of the other end, if it is known.
func (q *way) end(name string, like netip.Addr) (end, error) {
	e := end{name: name}
	choose := func(all []netip.Addr) bool {
		for _, a := range all {
			if !like.IsValid() || a.Is4() == like.Is4() {
				e.addr = a
				return true
			}
		}
		return len(all) > 0 && !like.IsValid()
	}
	if a, err := netip.ParseAddr(name); err == nil {
		e.addr = a.Unmap()
	} else if n, ok := q.w.Cluster.Node(name); ok {
		if !choose(n.Addresses) {
			return e, fmt.Errorf("no address of Node/%s is of the family of %v", name, like)
		}
	} else {
		for _, l := range q.leases {
			var all []netip.Addr
			for _, text := range l.Addrs {
				if a, err := netip.ParseAddr(text); err == nil {
					all = append(all, a)
				}
			}
			if l.Pod == name && choose(all) {
				break
			}
		}
		if !e.addr.IsValid() {
			return e, fmt.Errorf("%q is neither an address, nor a Node, nor a pod of this node (namespace/name; edgewayd ipam list has them): give a pod of another node by its address", name)
		}
	}
	for _, n := range q.w.Cluster.Nodes {
		own := slices.Contains(n.Addresses, e.addr)
		inside := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(e.addr) })
		if own || inside {
			e.node, e.pod = n.Name, inside && !own
		}
	}
	e.here = slices.ContainsFunc(q.w.Host.Addrs, func(h routes.Addr) bool { return h.Prefix.Addr() == e.addr })
	for _, l := range q.leases {
		if slices.Contains(l.Addrs, e.addr.String()) {
			e.here, e.pod, e.link, e.node = true, true, l.Link, q.w.Self
			if l.Pod != "" && e.name == e.addr.String() {
				e.name = l.Pod
			}
		}
	}
	if e.node == q.w.Self {
		e.here = true
	}
	return e, nil
}

// leg is the way in one direction.
func (q *way) leg(from, to end, p routes.Packet) (out []Step) {
	say := func(state, next, format string, args ...any) {
		out = append(out, Step{state, fmt.Sprintf(format, args...), next})
	}
	switch {
	case from.here && from.pod:
		p.In = from.link
		if !q.linkOf(from, say) {
			return out
		}
	case !from.here:
		p.In = routes.ByRoute
		if r, err := q.back(from, to); err == nil {
			p.In = r.Link
			say(OK, "", "%v sends; packets arrive on %s, by which this machine would answer", from, r.Link)
		} else {
			say(Problem, "edgewayd routes; edgewayd doctor", "this machine has no route to %v: %v", from, err)
			return out
		}
		if from.node != "" {
			say(OK, "", "edgewayd why, run on %s, says what that node does with the packet", from.node)
		}
	default:
		say(OK, "", "this machine sends")
	}
	if to.here && to.pod && to.link == "" {
		say(Problem, "edgewayd ipam list", "no pod of this node has %v", to.addr)
		return out
	}
	if p.In != "" && (!to.here || to.pod) && !q.forwards(p, say) {
		return out // the kernel has no route for such a packet
	}
	r, ok := q.route(to, p, say)
	if !ok {
		return out
	}
	if !to.here || to.pod {
		p.Out = r.Link
	}
	q.firewall(p, say)
	if to.here && !to.pod {
		say(OK, "", "it arrives at this machine")
		return out
	}
	q.nextHop(to, r, say)
	if from.here && from.pod {
		q.size(from, r, say)
	}
	if to.here {
		say(OK, "", "it arrives at the pod, by %s", r.Link)
	} else {
		q.told(from, r, say)
	}
	return out
}

// back is the route of the answer. A pod's answer leaves by the uplink of the pod's address, if that is of one.
func (q *way) back(from, to end) (routes.Route, error) {
	if to.pod && to.link != "" {
		return q.k.Way(q.ctx, routes.Packet{Src: to.addr, Dst: from.addr, In: to.link})
	}
	return q.k.Lookup(q.ctx, from.addr)
}

type sayer = func(state, next, format string, args ...any)

// linkOf looks at the host's end of a pod's link.
func (q *way) linkOf(e end, say sayer) bool {
	if e.link == "" {
		say(Problem, "edgewayd ipam list shows the pods of this node", "no pod of this node has %v", e.addr)
		return false
	}
	links, err := q.k.Links(q.ctx, e.link)
	at := slices.IndexFunc(links, func(l routes.Link) bool { return l.Name == e.link })
	switch {
	case err != nil || at < 0:
		say(Problem, "delete the pod, so that it is recreated", "the link %s of %v is missing", e.link, e)
		return false
	case !links[at].Up:
		say(Problem, "ip link set "+e.link+" up; edgewayd keeps it up while it runs", "the link %s of %v is down", e.link, e)
		return false
	}
	say(OK, "", "%v sends by its link %s, MTU %d", e, e.link, links[at].MTU)
	return true
}

// route asks the kernel for the packet's route, and compares it with the plan.
func (q *way) route(to end, p routes.Packet, say sayer) (routes.Route, bool) {
	r, err := q.k.Way(q.ctx, p)
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL) && p.In != "":
		say(Problem, fmt.Sprintf("find out why the packet comes by %[1]s although the route to %[2]v leads elsewhere: ip route get %[2]v; or sysctl -w net.ipv4.conf.%[1]s.rp_filter=2", p.In, p.Src),
			"the kernel drops a packet from %v that arrives on %s: the reverse path filter (rp_filter is %s there), or the address may not be on that link", p.Src, p.In, q.sysctl("net/ipv4/conf/"+p.In+"/rp_filter"))
		return r, false
	case err != nil:
		next := "edgewayd routes; ip route get " + p.Dst.String()
		for _, problem := range q.plan.Problems {
			if to.node != "" && strings.Contains(problem.String(), to.node) {
				next = problem.String()
			}
		}
		say(Problem, next, "%v", err)
		return r, false
	}
	say(OK, "", "the kernel's route: %s", strings.TrimSuffix(r.String(), " proto unspec"))
	for _, want := range q.plan.Routes.Routes {
		if want.Type == "" && want.Table == 0 && want.Dst.Contains(p.Dst) && (want.Via != r.Via || want.Link != r.Link) {
			say(Problem, "edgewayd problems names who owns the other route or policy rule: ip route get "+p.Dst.String(), "edgeway wants another route: %v", want)
			return r, false
		}
	}
	return r, true
}

func (q *way) sysctl(key string) string {
	text, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// forwards reads the kernel's switches for forwarding.
func (q *way) forwards(p routes.Packet, say sayer) bool {
	key := routes.Forwarding("", p.Dst.Is6()).Key // of all links
	if p.Dst.Is4() {
		if per := routes.Forwarding(p.In, false).Key; q.sysctl(per) == "0" {
			key = per
		}
	}
	if q.sysctl(key) != "0" {
		return true
	}
	say(Problem, "sysctl -w "+strings.ReplaceAll(key, "/", ".")+"=1; edgewayd keeps the general switch on while it runs", "forwarding is off: %s = 0", key)
	return false
}

// firewall reports each hook that the packet passes.
func (q *way) firewall(p routes.Packet, say sayer) {
	all, err := q.k.Judge(q.ctx, p)
	if err != nil || len(all) == 0 {
		say(Unclear, "run it as root", "the firewalls cannot be read: %v", err)
		return
	}
	var passes []string
	for _, f := range all[0] {
		switch {
		case f.Outcome == routes.Accepts:
			passes = append(passes, f.Hook.String())
		case f.Outcome == routes.Unclear:
			say(Unclear, f.Place.Show(), "%s: %v", f.Hook, f)
		case f.Outcome == routes.Translates:
			say(Advice, f.Place.Show(), "%s: %v: the packet goes on with another address", f.Hook, f)
		default:
			say(Problem, q.letThrough(f, p), "%s: %v", f.Hook, f)
		}
	}
	if len(passes) > 0 {
		say(OK, "", "no firewall stops it at %s", strings.Join(passes, ", "))
	}
	if nat := q.plan.Routes.NAT; nat != nil && p.In != "" && p.Out != "" && !p.Reply {
		in := func(all []netip.Prefix, a netip.Addr) bool {
			return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		if in(nat.Sources, p.Src) && (in(nat.Nodes, p.Dst) || !nat.Off && !in(nat.Exclude, p.Dst) && !in(nat.Sources, p.Dst)) {
			say(OK, "", "it leaves with this node's address: source NAT is on for %v", p.Dst)
		}
	}
}

// letThrough is the next step of the problem that the policy has of the same rule.
func (q *way) letThrough(f routes.Finding, p routes.Packet) string {
	f.Packets, f.Counted = 0, false
	w := q.w
	w.Barriers = []policy.Barrier{{Packet: p, Finding: f}}
	for _, problem := range policy.Decide(w).Problems {
		if problem.Reason == cluster.ForwardDropped || problem.Reason == cluster.HostDropped {
			return problem.Next
		}
	}
	return f.Place.Show()
}

// nextHop asks whether the machine that gets the packet next is there.
func (q *way) nextHop(to end, r routes.Route, say sayer) {
	ask := routes.Neighbour{Link: r.Link, IP: r.Via}
	who := "the next hop"
	if !ask.IP.IsValid() {
		ask.IP, who = to.addr, to.name
	}
	if vxlan := tunnel(q.plan, r.Link); vxlan != nil {
		end, ok := farEnd(q.plan.Routes, r)
		if !ok {
			say(Problem, "edgewayd problems", "nobody knows where the tunnel's end %v is", r.Via)
			return
		}
		say(OK, "", "it travels in VXLAN (VNI %d, UDP port %d) from %v to %v", vxlan.VNI, vxlan.Port, vxlan.Local, end)
		q.firewall(routes.Packet{Src: vxlan.Local, Dst: end, Out: routes.ByRoute, Protocol: routes.UDP, SrcPort: policy.SomePort, DstPort: vxlan.Port}, say)
		outer, err := q.k.Lookup(q.ctx, end)
		if err != nil {
			say(Problem, "ip route get "+end.String(), "no route to the tunnel's other end: %v", err)
			return
		}
		ask = routes.Neighbour{Link: outer.Link, IP: outer.Via}
		if !ask.IP.IsValid() {
			ask.IP = end
		}
	}
	heard, err := hear(q.ctx, q.k, []routes.Neighbour{ask})
	switch {
	case err != nil:
		say(Unclear, "", "whether %v answers cannot be told: %v", ask.IP, err)
	case heard[ask] == routes.Silent:
		say(Problem, "check that machine, its cable, and the VLAN of its port; for a pod: edgewayd ipam check", "%s, %v, does not answer on %s", who, ask.IP, ask.Link)
	case heard[ask] == routes.Answers:
		say(OK, "", "%s, %v, answers on %s", who, ask.IP, ask.Link)
	}
}

// farEnd returns the address of the machine to which the tunnel carries packets of the route.
func farEnd(s routes.State, r routes.Route) (netip.Addr, bool) {
	for _, n := range s.Neighs {
		for _, f := range s.FDB {
			if n.Link == r.Link && n.IP == r.Via && f.Link == n.Link && f.MAC == n.MAC {
				return f.Dst, true
			}
		}
	}
	return netip.Addr{}, false
}

// size compares the MTU of the sending pod's link with that of the link that the packet leaves by.
func (q *way) size(from end, r routes.Route, say sayer) {
	links, err := q.k.Links(q.ctx, "")
	if err != nil {
		return
	}
	mtu := map[string]int{}
	for _, l := range links {
		mtu[l.Name] = l.MTU
	}
	out := mtu[r.Link]
	if r.MTU > 0 {
		out = min(out, r.MTU)
	}
	if in := mtu[from.link]; out > 0 && in > out {
		say(Advice, "recreate the pod, which gets the smaller MTU; programs that ignore \"fragmentation needed\" lose large packets", "the pod sends up to %d bytes, and %s carries %d", in, r.Link, out)
	}
}

// told says who tells the switches where the sender is: the answers of another LAN come back by them.
func (q *way) told(from end, r routes.Route, say sayer) {
	direct := tunnel(q.plan, r.Link) != nil || !r.Via.IsValid() || slices.ContainsFunc(q.w.Cluster.Nodes, func(n cluster.Node) bool { return slices.Contains(n.Addresses, r.Via) })
	if direct || !from.pod || !from.here {
		return
	}
	self, _ := q.w.Cluster.Node(q.w.Self)
	var cidr netip.Prefix
	for _, c := range self.PodCIDRs {
		if c.Contains(from.addr) {
			cidr = c
		}
	}
	if !cidr.IsValid() {
		return // an address of an uplink, which its LAN knows
	}
	for _, s := range q.plan.BGP.Sessions {
		if slices.ContainsFunc(q.plan.Sessions, func(p policy.Session) bool { return p.Key == s.Peer.Key() && !p.IsHeld() }) {
			say(OK, "", "this node tells the switch %v that %v is here; edgewayd peers says whether the session is established", s.Peer.Address, cidr)
			return
		}
	}
	var speakers []string
	for _, p := range q.w.Cluster.Peerings {
		if p.Selector.Selects(self.Labels) {
			for _, s := range p.Speakers {
				speakers = append(speakers, s.Node)
			}
		}
	}
	if len(speakers) == 0 {
		say(Advice, "let a BGPPeer select this node, or give the switch a static route", "no speaker tells a switch where %v is: answers come back only if the switch has a route of its own", cidr)
		return
	}
	slices.Sort(speakers)
	say(OK, "", "the switch must know %v via this node; it hears so from %s", cidr, strings.Join(slices.Compact(speakers), ", "))
}

// live sends the far end a UDP packet from this machine's own address. A machine that is there answers that the port is
// closed, unless its firewall drops it.
func (q *way) live(from, to end) []Step {
	far := to
	if to.here {
		far = from
	}
	r, err := q.k.Lookup(q.ctx, far.addr)
	if far.here || err != nil {
		return nil
	}
	var reach routes.Reacher
	defer reach.Close()
	n := routes.Neighbour{Link: r.Link, IP: far.addr}
	for end := time.Now().Add(silenceAfter); ; {
		heard, err := reach.Reach(q.ctx, []routes.Neighbour{n})
		switch {
		case err != nil:
			return []Step{{Unclear, fmt.Sprintf("live: a packet from this node to %v cannot be sent: %v", far.addr, err), ""}}
		case heard[n] == routes.Answers:
			return []Step{{OK, fmt.Sprintf("live: %v answers a packet from this node", far.addr), ""}}
		case heard[n] == routes.Silent:
			return []Step{{Problem, fmt.Sprintf("live: a router says that %v cannot be reached", far.addr), "ask the router's owner for its route to it: on the switch, show ip route " + far.addr.String()}}
		case time.Now().After(end):
			return []Step{{Unclear, fmt.Sprintf("live: no answer of %v to packets from this node: it is away, or a firewall drops them", far.addr), "run edgewayd why on the other node"}}
		}
		select {
		case <-q.ctx.Done():
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}
