package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// Admit returns next, with two exceptions. A Node whose new pod CIDR overlaps the pod CIDR that another node
// already has keeps its old pod CIDRs, or gets none if it is new. A Node whose new pod CIDR overlaps a subnet
// of this host keeps its old pod CIDRs. So today's mistake does not cut off a node that worked yesterday. If
// two Nodes come at the same time with overlapping CIDRs, both are admitted, and Decide routes to neither.
func Admit(last, next cluster.World, host routes.Host) (cluster.World, []cluster.Problem) {
	had := byName(last.Nodes)
	settled, changed := make([]int, 0, len(next.Nodes)), []int(nil)
	for i, n := range next.Nodes {
		if old := had[n.Name]; old != nil && slices.Equal(old.PodCIDRs, n.PodCIDRs) {
			settled = append(settled, i)
		} else {
			changed = append(changed, i)
		}
	}
	var problems []cluster.Problem
	nodes := slices.Clone(next.Nodes)
	for _, i := range changed {
		n := &nodes[i]
		want := "a pod CIDR of its own"
		got := claimed(next.Nodes, settled, *n)
		old := had[n.Name]
		if old == nil {
			old = &cluster.Node{}
		}
		if got == "" && len(old.PodCIDRs) > 0 {
			want, got = "a pod CIDR outside the LAN's own addresses", onLAN(host, *n)
		}
		if got == "" {
			continue
		}
		n.PodCIDRs = old.PodCIDRs
		kept := "none"
		if len(n.PodCIDRs) > 0 {
			kept = fmt.Sprint(n.PodCIDRs)
		}
		problems = append(problems, cluster.Problem{
			Object: "Node/" + n.Name, Reason: cluster.Overlap, Want: want, Got: got,
			Next: fmt.Sprintf("change one of the two; until then Node/%s keeps the pod CIDRs it had: %s", n.Name, kept),
		})
	}
	next.Nodes = nodes
	return next, problems
}

// clockOff is the difference of clocks from which an operator should act. Below it, an answer of the API server
// may just have been slow.
const clockOff = time.Minute

// Date sets Since of each node of next: the time in last if the node's addresses and pod CIDRs did not
// change, else now, and always later than before. Now is read from this machine's clock. The API server's
// clock counts, where there is one: a speaker whose clock is a day ahead would win over all others for a day.
// A time that lies in the API server's future is wrong, and becomes now.
func Date(last, next cluster.World, now time.Time) (cluster.World, []cluster.Problem) {
	now = now.Add(-next.Ahead).UTC().Truncate(time.Second)
	had := byName(last.Nodes)
	next.Nodes = slices.Clone(next.Nodes)
	var future time.Time
	for i := range next.Nodes {
		n := &next.Nodes[i]
		old := had[n.Name]
		switch n.Since = now; {
		case old == nil, old.Since.IsZero(), next.Ahead != 0 && old.Since.After(now.Add(clockOff)):
		case slices.Equal(old.Addresses, n.Addresses) && slices.Equal(old.PodCIDRs, n.PodCIDRs):
			n.Since = old.Since
		case !now.After(old.Since):
			n.Since = old.Since.Add(time.Second)
		}
		if n.Since.After(now.Add(clockOff)) {
			future = n.Since
		}
	}
	p := cluster.Problem{Object: "clock", Reason: cluster.WrongClock, Next: "check the time service (chronyd, systemd-timesyncd) of this node"}
	switch {
	case next.Ahead.Abs() > clockOff:
		p.Want, p.Got = "the API server's time", fmt.Sprintf("a difference of %s", next.Ahead.Round(time.Second))
		p.Next += "; BGP paths are dated by the API server's clock meanwhile"
	case !future.IsZero():
		p.Want, p.Got = "a time after "+future.Format(time.RFC3339)+", when a Node changed", now.Format(time.RFC3339)
		p.Next += "; where this node is a speaker, switches may prefer an absent speaker's older paths until then"
	default:
		return next, nil
	}
	return next, []cluster.Problem{p}
}

// Leave sets Left of next: the last resource that selected the node self, if no resource selects it now and that
// resource is gone.
func Leave(last, next cluster.World, self string) cluster.World {
	selecting := func(w cluster.World) string {
		n, _ := w.Node(self)
		i := slices.IndexFunc(w.Peerings, func(r cluster.Peering) bool { return r.Selector.Selects(n.Labels) })
		if i < 0 {
			return ""
		}
		return w.Peerings[i].Ref()
	}
	next.Left = cmp.Or(selecting(last), last.Left)
	if selecting(next) != "" || slices.ContainsFunc(next.Peerings, func(r cluster.Peering) bool { return r.Ref() == next.Left }) {
		next.Left = "" // another problem says that the resource does not select the node
	}
	return next
}

// byName returns the nodes by their names.
func byName(nodes []cluster.Node) map[string]*cluster.Node {
	out := make(map[string]*cluster.Node, len(nodes))
	for i := range nodes {
		out[nodes[i].Name] = &nodes[i]
	}
	return out
}

// claimed names the pod CIDR of a settled node that overlaps a pod CIDR of n, or returns "".
func claimed(nodes []cluster.Node, settled []int, n cluster.Node) string {
	for _, i := range settled {
		for _, theirs := range nodes[i].PodCIDRs {
			for _, ours := range n.PodCIDRs {
				if ours.Overlaps(theirs) {
					return fmt.Sprintf("%s, which overlaps %s of Node/%s", ours, theirs, nodes[i].Name)
				}
			}
		}
	}
	return ""
}

// onLAN names the subnet of this host that overlaps a pod CIDR of n, or returns "".
func onLAN(host routes.Host, n cluster.Node) string {
	for _, a := range host.Addrs {
		for _, c := range n.PodCIDRs {
			if subnet := a.Prefix.Masked(); !a.Prefix.IsSingleIP() && subnet.Overlaps(c) {
				return fmt.Sprintf("%s, which overlaps %s on %s", c, subnet, a.Link)
			}
		}
	}
	return ""
}
