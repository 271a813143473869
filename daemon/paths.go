package daemon

import (
	"fmt"
	"net/netip"
	"sync"

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
func lastSurvey(l *loop) func() (paths.Cluster, bool) {
	var mu sync.Mutex // guards the rest
	var of *view
	var c paths.Cluster
	return func() (paths.Cluster, bool) {
		mu.Lock()
		defer mu.Unlock()
		v := l.seen.Load()
		if v == nil || len(v.Plan.Pool.Sets) == 0 {
			return paths.Cluster{}, false
		}
		if v != of {
			of, c = v, surveyOf(v)
		}
		return c, true
	}
}

// surveyOf says who is there, and how packets of this node's pods travel.
func surveyOf(v *view) (c paths.Cluster) {
	ways := map[netip.Prefix]paths.Way{}
	for _, r := range v.Plan.Routes.Routes {
		ways[r.Dst] = paths.Way{Tunnel: r.Link == routes.VXLANLink, Via: r.Via}
	}
	w := v.World
	for _, n := range w.Cluster.Nodes {
		at := w.VXLAN(n)
		one := paths.Node{Name: n.Name, Hosts: n.Addresses, CIDRs: n.PodCIDRs, Terms: paths.Terms{Mode: string(w.Mode(n)), VNI: at.VNI, Port: at.Port}}
		pool, _ := w.Pool(n)
		one.Group = fmt.Sprint(policy.LANs(w.Cluster, n), pool.Name, one.Terms)
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
	c.Known = map[cluster.Reason]bool{}
	for _, p := range v.Plan.Problems {
		c.Known[p.Reason] = true
	}
	return c
}

// pathStatus is what the questions to other nodes say.
func (d *Daemon) pathStatus() (out api.Paths) {
	if c := d.pods.Canary(); c != nil {
		for _, a := range c.Addrs {
			out.Canary = append(out.Canary, a.String())
		}
	}
	out.Sent, out.Lost = d.prober.Count()
	for _, f := range d.prober.Report().Findings {
		out.Probed++
		if f.Canary == paths.Answers {
			out.Reached++
		}
		out.Asked = append(out.Asked, api.Asked{Node: f.Node.Name, Address: f.Addr.String(), Canary: f.Canary.String(), FullSize: f.Full.String(), Host: f.Host.String(),
			FullBytes: f.Size, Seconds: f.RTT.Seconds(), Sent: f.Sent, Lost: f.Lost, Version: f.Said.Version, Mode: f.Said.Terms.Mode})
	}
	return out
}
