package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// pools finds what is wrong with the NetworkPools of this node: two that select it, and keys of its file that say
// something else than its pool.
func (d *draft) pools() {
	var mine []string
	for _, p := range d.Cluster.Pools {
		if p.Selector.Selects(d.self.Labels) {
			mine = append(mine, p.Ref())
		}
	}
	if len(mine) > 1 {
		d.problem("Node/"+d.self.Name, cluster.SeveralPools, "one NetworkPool that selects it", strings.Join(mine, " and "),
			"correct spec.nodeSelector of one, or the labels of the Node; until then "+mine[0]+" counts, the first by name")
	}
	if d.pool != nil {
		d.fileAgainst(*d.pool)
	}
}

// pools finds pools that select nothing, and ranges of pools that overlap ranges of other pools or hold
// addresses of nodes. edgeway-controller, which also knows the Service CIDRs, gives no node a block of such a
// range.
func (s *Survey) pools(c cluster.World) {
	const next = "choose other podCIDRs for one of the two; edgeway-controller gives no blocks of the younger pool until then"
	for i, p := range c.Pools {
		if len(s.inPool[i]) == 0 {
			s.problem(p.Ref(), cluster.SelectsNothing, "nodes that match "+p.Selector.String(), "none", "label the Nodes, or correct spec.nodeSelector")
		}
		for _, r := range p.PodCIDRs {
			for _, other := range c.Pools[:i] {
				for _, o := range other.PodCIDRs {
					if r.CIDR.Overlaps(o.CIDR) {
						s.problem(p.Ref(), cluster.Overlap, "podCIDRs of its own", fmt.Sprintf("%s, which overlaps %s of %s", r.CIDR, o.CIDR, other.Ref()), next)
					}
				}
			}
			for _, n := range c.Nodes {
				if i := slices.IndexFunc(n.Addresses, r.CIDR.Contains); i >= 0 {
					s.problem(p.Ref(), cluster.Overlap, "podCIDRs apart from the nodes' addresses", fmt.Sprintf("%s, which holds %s of Node/%s", r.CIDR, n.Addresses[i], n.Name),
						"choose other podCIDRs; edgeway-controller gives no blocks of the pool until then")
					break // the other nodes of that subnet say the same
				}
			}
		}
	}
}

// fileAgainst finds keys of this node's file that differ from its pool. The pool counts: if the file did, two
// nodes could disagree.
func (d *draft) fileAgainst(p cluster.NetworkPool) {
	differs := func(key, pool, file string) {
		if pool != file && slices.Contains(d.Config.Given, key) {
			d.problem(p.Ref(), cluster.FileDiffers, key+" "+pool+" on Node/"+d.self.Name, file+" in the configuration file of the node",
				"remove "+key+" from the file, or correct the pool; the pool counts")
		}
	}
	file := d.fileMode(d.self)
	key := "mode"
	if file != d.Config.Mode {
		key = "modes"
	}
	differs(key, string(p.Mode), string(file))
	differs("vxlan.vni", fmt.Sprint(p.VXLAN.VNI), fmt.Sprint(d.Config.VXLAN.VNI))
	differs("vxlan.port", fmt.Sprint(p.VXLAN.Port), fmt.Sprint(d.Config.VXLAN.Port))
	if p.SourceNAT != nil {
		differs("sourceNAT", natText(*p.SourceNAT), natText(d.Config.SourceNAT))
	}
	if p.MTU != 0 {
		differs("cni.mtu", fmt.Sprint(p.MTU), fmt.Sprint(d.Config.CNI.MTU))
	}
}

func natText(n cluster.SourceNAT) string {
	if !n.Enabled {
		return "off"
	}
	exclude := slices.SortedFunc(slices.Values(n.Exclude), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return fmt.Sprintf("on, exclude %v", exclude)
}
