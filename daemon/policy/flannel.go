package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// A node of flannel is a Node that flannel says it manages and that no NetworkPool selects. Its pods are reached as
// flannel's own nodes reach them: in VXLAN, each family in a tunnel of that family, with the MAC of the annotations.
//
//	pod ── edgeway.1 ══ IPv4, VNI, port of the pool ══ flannel.1 ──── pod      IPv4
//	   └── edgeway.6 ══ IPv6                        ══ flannel-v6.1 ──┘        IPv6
//
// flannel sends to this node as the annotations say that this node writes. It sends with its own VNI and port
// (pkg/backend/vxlan: AddFDB names neither), so this node must receive there.

// flannel finds the nodes of flannel, if a NetworkPool asks for them.
func (s *Survey) flannel(c cluster.World) {
	if !slices.ContainsFunc(c.Pools, func(p cluster.NetworkPool) bool { return p.Flannel }) {
		return
	}
	var left []string
	for i, n := range c.Nodes {
		f, problems, ok := n.Flannel()
		switch {
		case !ok || writtenHere(f, n.Name):
		case s.places[i].pool != nil:
			left = append(left, n.Name)
		default:
			s.places[i].flannel = &f
			s.ofFlannel = append(s.ofFlannel, problems...)
		}
	}
	s.sharedMACs(c.Nodes)
	if len(left) > 0 {
		s.ofFlannel = append(s.ofFlannel, cluster.Problem{Object: "Node/" + left[0], Reason: cluster.FlannelLeft, Want: "nodes of flannel that no NetworkPool selects", Got: "annotations of flannel on " + few(left) + ", which a NetworkPool selects",
			Next: "where flannel is gone: kubectl annotate node " + left[0] + " flannel.alpha.coreos.com/kube-subnet-manager-; where flannel runs, correct spec.nodeSelector; the nodes count as edgeway's until then"})
	}
}

// sharedMACs takes away the ends of flannel's tunnels whose MAC another Node has, at another address. A VXLAN link sends
// what is for a MAC to one address, so that one of the two nodes would get the packets for the other's pods, and a kubelet
// can write any MAC into its annotations. A node of edgeway has the MAC of its name, and keeps it.
func (s *Survey) sharedMACs(nodes []cluster.Node) {
	type owner struct {
		node string
		addr netip.Addr // of flannel's end; zero: a node of edgeway
	}
	owners := map[string][]owner{}
	for i, n := range nodes {
		f := s.places[i].flannel
		if f == nil {
			owners[vtepMAC(n.Name)] = append(owners[vtepMAC(n.Name)], owner{node: n.Name})
			continue
		}
		for _, e := range f.Ends() {
			owners[e.MAC] = append(owners[e.MAC], owner{n.Name, e.Addr})
		}
	}
	for i, n := range nodes {
		f := s.places[i].flannel
		if f == nil {
			continue
		}
		for _, end := range []**cluster.FlannelEnd{&f.V4, &f.V6} {
			e := *end
			if e == nil {
				continue
			}
			var others []string
			for _, o := range owners[e.MAC] {
				if o.node != n.Name && o.addr != e.Addr {
					others = append(others, o.node)
				}
			}
			if len(others) == 0 {
				continue
			}
			s.ofFlannel = append(s.ofFlannel, cluster.Problem{Object: "Node/" + n.Name, Reason: cluster.BadAnnotation, Want: "a VtepMAC of its own in flannel's annotations",
				Got:  e.MAC + " at " + e.Addr.String() + ", which " + few(slices.Compact(others)) + " has at another address",
				Next: "where one machine is a copy of the other, write another /etc/machine-id, delete flannel's link and restart flannel; else find out who wrote the annotation; no tunnel of that family leads to the node's pods until then"})
			*end = nil
		}
	}
}

// OfFlannel reports whether the node with that index in the cluster state is a node of flannel, and edgeway does not
// run there.
func (s *Survey) OfFlannel(node int) bool { return s.places[node].flannel != nil }

// writtenHere reports whether edgeway wrote the annotations on the Node of that name.
func writtenHere(f cluster.Flannel, name string) bool {
	ends := f.Ends()
	return len(ends) > 0 && !slices.ContainsFunc(ends, func(e cluster.FlannelEnd) bool { return e.MAC != vtepMAC(name) })
}

// few lists names: "a, b, c and 7 more".
func few(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// asksFlannel reports whether this node and the nodes of flannel tunnel to each other.
func (d *draft) asksFlannel() bool { return d.pool != nil && d.pool.Flannel }

// flannelAt returns what flannel says of the node that belongs at that place; nil: the node counts as edgeway's.
func (d *draft) flannelAt(at place) *cluster.Flannel {
	if !d.asksFlannel() {
		return nil
	}
	return at.flannel
}

// addresses returns the addresses of the node with that index, also those that only flannel says.
func (d *draft) addresses(node int) []netip.Addr {
	all := d.Cluster.Nodes[node].Addresses
	if f := d.flannelAt(d.survey.places[node]); f != nil {
		for _, e := range f.Ends() {
			if !slices.Contains(all, e.Addr) {
				all = append(slices.Clip(all), e.Addr)
			}
		}
	}
	return all
}

// senders returns the addresses from which other nodes send in VXLAN.
func (d *draft) senders() []netip.Addr {
	var more []netip.Addr
	for i, n := range d.Cluster.Nodes {
		more = append(more, d.addresses(i)[len(n.Addresses):]...)
	}
	if len(more) == 0 {
		return d.others // without a copy: there are thousands
	}
	return slices.Concat(d.others, more)
}

// unlike are nodes of flannel to which no tunnel leads, for one reason.
type unlike struct {
	want, got, next string
	nodes           []string
}

// differs notes that flannel's node differs from what a tunnel needs.
func (d *draft) differs(node, want, got, next string) {
	i := slices.IndexFunc(d.unlike, func(u unlike) bool { return u.want == want && u.got == got })
	if i < 0 {
		i, d.unlike = len(d.unlike), append(d.unlike, unlike{want: want, got: got, next: next})
	}
	if u := &d.unlike[i]; !slices.Contains(u.nodes, node) {
		u.nodes = append(u.nodes, node)
	}
}

// flannelEnd returns the end of the tunnel to flannel's node n, for packets of the family of like.
func (d *draft) flannelEnd(n cluster.Node, f cluster.Flannel, like netip.Addr) (to tunnelEnd, ok bool) {
	family, end := "IPv4", f.V4
	if like.Is6() {
		family, end = "IPv6", f.V6
	}
	ours := d.vxlan(d.pool)
	local, here := d.underlay(d.self, like)
	switch {
	case f.Backend == "" || end == nil && slices.ContainsFunc(d.survey.ofFlannel, func(p cluster.Problem) bool { return p.Object == "Node/"+n.Name }):
		// The problem badAnnotation says why.
	case f.Backend != cluster.FlannelVXLAN:
		d.differs(n.Name, "flannel's backend vxlan, as a tunnel needs it", "the backend "+f.Backend,
			"set Backend.Type: vxlan in flannel's net-conf.json; or mode: underlay in the pool, where the LAN carries packets of pods")
	case !d.hasPods(like): // no pod here needs it
	case end == nil:
		d.differs(n.Name, "flannel's annotations for "+family, "none", "let flannel carry "+family+" too: EnableIPv4 and EnableIPv6 in its net-conf.json")
	case end.VNI != ours.VNI && end.VNI != cluster.FlannelVNI(ours.VNI):
		d.differs(n.Name, fmt.Sprintf("VNI %d, where this node receives", ours.VNI), fmt.Sprintf("VNI %d", end.VNI),
			fmt.Sprintf("set vxlan.vni: %d in the pool, or VNI in flannel's net-conf.json; flannel sends with its own VNI alone", end.VNI))
	case !here:
		d.differs(n.Name, "an "+family+" InternalIP of this node, for a tunnel as flannel makes it", fmt.Sprint(d.self.Addresses), "add the address to the Node's status.addresses")
	default:
		return tunnelEnd{local, end.Addr, end.MAC, ours}, true
	}
	return to, false
}

// flannelProblems records what is wrong between this node and nodes of flannel, each difference once.
func (d *draft) flannelProblems() {
	if !d.asksFlannel() {
		return
	}
	d.plan.Problems = append(d.plan.Problems, d.survey.ofFlannel...)
	for _, u := range d.unlike {
		d.problem(d.pool.Ref(), cluster.FlannelDiffers, u.want, u.got+", towards "+few(u.nodes), u.next+"; no tunnel leads to these nodes until then")
	}
	two := slices.ContainsFunc(d.survey.places, func(p place) bool { return p.flannel != nil && len(p.flannel.Ends()) == 2 })
	if said := d.announced().Ends(); two && len(said) == 1 {
		d.problem("Node/"+d.self.Name, cluster.FlannelDiffers, "an InternalIP and a pod CIDR of each family, as flannel's nodes have them", fmt.Sprintf("%v, and pod CIDRs %v", d.self.Addresses, d.self.PodCIDRs),
			"give the Node both; flannel with two families ignores a node with one, and sends nothing to its pods")
	}
}

// announced returns the ends of this node's tunnels, as flannel may know them: an end only for a family of which this
// node has a pod CIDR, because flannel reads no Node that has the address of a family and no pod CIDR of it
// (pkg/subnet/kube: nodeToLease).
func (d *draft) announced() cluster.Flannel {
	f := cluster.Flannel{Backend: cluster.FlannelVXLAN}
	for _, l := range d.plan.Routes.Links {
		if l.VXLAN == nil || !d.hasPods(l.VXLAN.Local) {
			continue
		}
		end := &cluster.FlannelEnd{VNI: cluster.FlannelVNI(l.VXLAN.VNI), MAC: l.MAC, Addr: l.VXLAN.Local}
		if end.Addr.Is4() {
			f.V4 = end
		} else {
			f.V6 = end
		}
	}
	return f
}

// announce decides flannel's annotations that this node's Node lacks. A node without a tunnel, as where flannel itself
// still runs on it, says nothing.
func (d *draft) announce() {
	said, _, _ := d.self.Flannel()
	if f := d.announced(); d.asksFlannel() && len(f.Ends()) > 0 && !f.Equal(said) {
		d.plan.Annotations = f.Annotations()
	}
}

// hasPods reports whether this node has a pod CIDR of the family of like.
func (d *draft) hasPods(like netip.Addr) bool {
	return slices.ContainsFunc(d.self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() == like.Is4() })
}
