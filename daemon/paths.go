package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/paths"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

func (d *Daemon) newProber() *paths.Prober {
	c := d.config.Paths
	return paths.New(paths.Options{Version: d.options.Version, Port: c.Port, Every: c.Every, Canary: d.canary, Cluster: lastSurvey(d.loop),
		Changed: d.loop.look.fire, Log: d.options.Log})
}

func (d *Daemon) canary() (paths.Canary, bool) {
	c := d.pods.Canary()
	if c == nil {
		return paths.Canary{}, false
	}
	return paths.Canary{ID: c, Addrs: c.Addrs, MTU: c.MTU, Inside: c.Inside}, true
}

// lastSurvey returns a function that tells a prober what the last look saw. Looks are rarer than questions.
func lastSurvey(l *loop) func() *paths.Cluster {
	var of *view
	var c *paths.Cluster
	return func() *paths.Cluster {
		if v := l.seen.Load(); v != of && v != nil {
			of, c = v, surveyOf(v)
		}
		return c
	}
}

// surveyOf says who is there, and how packets of this node's pods travel; nil: it is not known, or the node has no pods.
func surveyOf(v *view) *paths.Cluster {
	if v.Survey == nil || len(v.Plan.Pool.Sets) == 0 {
		return nil
	}
	w := v.World
	c := &paths.Cluster{Nodes: make([]paths.Node, 0, len(w.Cluster.Nodes)), Known: map[cluster.Reason]bool{}}
	groups := map[string]string{} // thousands of nodes are in a few groups
	var key []byte
	ways := map[netip.Prefix]paths.Way{}
	atUplinks := len(v.Plan.Uplinks.Interfaces) > 0 // the canary too is there
	for _, r := range v.Plan.Routes.Routes {
		if atUplinks != (r.Table != 0) {
			continue
		}
		ways[r.Dst] = paths.Way{Tunnel: r.Link == routes.VXLANLink || r.Link == routes.VXLANLink6, Via: r.Via}
	}
	for i, n := range w.Cluster.Nodes {
		if n.Name != w.Self && v.Survey.OfFlannel(i) {
			continue // it has no canary
		}
		at := w.VXLAN(n)
		one := paths.Node{Name: n.Name, Hosts: n.Addresses, CIDRs: n.PodCIDRs, Terms: paths.Terms{Mode: string(w.Mode(n)), VNI: at.VNI, Port: at.Port}}
		pool, _ := w.Pool(n)
		key = fmt.Appendf(key[:0], "%v %s %v %v", v.Survey.LANs(i), pool.Name, one.Terms, len(n.PodCIDRs) > 0)
		if _, ok := groups[string(key)]; !ok {
			groups[string(key)] = string(key)
		}
		one.Group = groups[string(key)]
		for _, cidr := range n.PodCIDRs {
			one.Canary = append(one.Canary, policy.CanaryAddr(cidr))
			one.Ways = append(one.Ways, ways[cidr])
		}
		c.Nodes = append(c.Nodes, one)
		if n.Name == w.Self {
			c.Self = one
		}
	}
	c.Choice = paths.Choose(c.Nodes, w.Self)
	c.LAN, c.Near = near(v, c.Self)
	c.Hides, c.Link = hides(v.Plan.Routes.NAT), func(a netip.Addr) string {
		for _, i := range v.Plan.Uplinks.Interfaces {
			if link, ok := i.Link(w.Host); ok && slices.Contains(i.Addresses, a) {
				return link.Name
			}
		}
		return "an uplink that is away"
	}
	for _, p := range v.Plan.Problems {
		c.Known[p.Reason] = true
	}
	c.Key, c.NoKey = pathsKey(w)
	return c
}

// near returns the subnets of this node's own addresses, and those of its uplinks; without uplinks, the first twice.
func near(v *view, self paths.Node) (lan, uplinks []netip.Prefix) {
	for _, a := range v.World.Host.Addrs {
		if slices.Contains(self.Hosts, a.Prefix.Addr()) && !a.Prefix.IsSingleIP() {
			lan = append(lan, a.Prefix.Masked())
		}
	}
	for _, i := range v.Plan.Uplinks.Interfaces {
		uplinks = append(uplinks, i.Subnet)
	}
	if len(uplinks) == 0 {
		uplinks = lan
	}
	return lan, uplinks
}

// hides returns a function that says to which addresses packets of pods get the node's own address; nil: to none.
func hides(nat *routes.NAT) func(netip.Addr) bool {
	if nat == nil || nat.Off {
		return nil
	}
	return func(to netip.Addr) bool {
		return !slices.ContainsFunc(nat.Exclude, func(p netip.Prefix) bool { return p.Contains(to) })
	}
}

// pathsKey returns the key of questions between nodes, or the problem of a key that must be there and is not.
func pathsKey(w policy.World) (paths.Key, cluster.Problem) {
	name := w.Config.Paths.Secret
	if name == "" {
		return paths.Key{}, cluster.Problem{}
	}
	got := "no such Secret"
	for _, s := range w.Cluster.Secrets {
		if s.Name == name {
			var key paths.Key
			if key, got = paths.KeyOf(s.Data); got == "" {
				return key, cluster.Problem{}
			}
		}
	}
	return paths.Key{}, cluster.Problem{Object: "Secret/" + name, Reason: cluster.NoPathsKey, Want: "Secret kube-system/" + name + " with the key: at least 16 bytes in its data", Got: got,
		Next: "set it; until then this node asks no other node whether packets arrive, and answers none"}
}

// pathStatus is what the questions to other nodes say.
func (d *Daemon) pathStatus() (out api.Paths) {
	if c := d.pods.Canary(); c != nil {
		for _, a := range c.Addrs {
			out.Canary = append(out.Canary, a.String())
		}
		out.CanaryKept = c.Kept
	}
	out.Sent, out.Lost = d.prober.Count()
	for _, f := range d.prober.Report().Findings {
		out.Probed++
		if f.Canary == paths.Answers {
			out.Reached++
		}
		addr := ""
		if f.Addr.IsValid() {
			addr = f.Addr.String()
		}
		out.Asked = append(out.Asked, api.Asked{Node: f.Node.Name, Address: addr, Canary: f.Canary.String(), FullSize: f.Full.String(), Host: f.Host.String(),
			FullBytes: f.Size, Seconds: f.RTT.Seconds(), Sent: f.Sent, Lost: f.Lost, Version: f.Said.Version, Mode: f.Said.Terms.Mode})
	}
	return out
}

// unreachable returns the ends of tunnels that are known not to be reached: by the kernel, which found no route or got
// no answer from the next hop, or by the questions to other nodes' canaries.
func (d *Daemon) unreachable(ctx context.Context, v *view) map[netip.Addr]api.Unreachable {
	var ends []netip.Addr
	for _, f := range v.Plan.Routes.FDB {
		ends = append(ends, f.Dst)
	}
	if len(ends) == 0 {
		return nil
	}
	hops, err := d.kernel.Unanswered(ctx, ends)
	if err != nil {
		d.options.Log.Debug("next hops of the tunnel", "err", err) // the canaries still say something
	}
	return unreachable(v.World.Cluster.Nodes, hops, d.prober.Report().Findings)
}

func unreachable(nodes []cluster.Node, hops map[netip.Addr]routes.Neighbour, found []paths.Finding) map[netip.Addr]api.Unreachable {
	silent, answers := map[string]string{}, map[string]bool{}
	for _, f := range found {
		switch {
		case !f.Way.Tunnel:
		case f.Canary == paths.Answers:
			answers[f.Node.Name] = true
		case f.Canary == paths.Silent && f.Host == paths.Silent:
			silent[f.Node.Name] = "neither the node nor its canary answers"
		case f.Canary == paths.Silent && f.Host == paths.Answers:
			silent[f.Node.Name] = "its canary does not answer through the tunnel, while the node answers"
		}
	}
	out := map[netip.Addr]api.Unreachable{}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			why := silent[n.Name]
			switch hop, ok := hops[a]; {
			case answers[n.Name]:
				continue // the kernel's knowledge is older
			case ok && !hop.IP.IsValid():
				why = "no route to " + a.String()
			case ok && hop.IP == a:
				why = fmt.Sprintf("%v does not answer on %s", a, hop.Link)
			case ok:
				why = fmt.Sprintf("the next hop %v does not answer on %s", hop.IP, hop.Link)
			}
			if why != "" {
				out[a] = api.Unreachable{Node: n.Name, Address: a.String(), Why: why}
			}
		}
	}
	return out
}
