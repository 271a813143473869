package paths

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// hopeTries is how many questions try a path that may never have been meant to work, before it has to wait.
	hopeTries = 3
	// hopeEvery is in how many rounds such a path is tried again.
	hopeEvery = 30
)

// hope says what silence of a canary means.
type hope int

const (
	none  hope = iota // pods do not reach each other that way by design: it is not asked
	maybe             // the path counts from its first answer
	sure              // packets must arrive
)

// hope returns what to expect of packets of this node's canary to an address of another node's canary. mine says that
// this node's canary is in this node's pod CIDRs.
//
//	both in pod CIDRs              sure: routes, switches and tunnels are what edgeway is for
//	one end in a tunnel's node     none, since a tunnel begins at a node's own address, unless the node hides the pod
//	both nodes in one LAN, and on  sure
//	one subnet, or by a route of
//	edgeway to the node
//	else                           maybe: routers decide that edgeway knows nothing of, and two sites may have
//	                               uplinks in subnets of the same addresses
func (c *Cluster) hope(n Node, to netip.Addr, mine bool) hope {
	theirs := n.holds(to)
	hidden := c.hides(to)
	overlay := string(cluster.Overlay)
	switch {
	case mine && theirs:
		return sure
	case !hidden && (theirs && n.Terms.Mode == overlay || mine && c.Self.Terms.Mode == overlay):
		return none
	case hidden:
		return maybe
	case theirs && n.way(to).Via.IsValid(), !theirs && in(c.Near, to) && slices.ContainsFunc(n.Hosts, func(a netip.Addr) bool { return in(c.LAN, a) }):
		return sure
	}
	return maybe
}

func (c *Cluster) hides(to netip.Addr) bool { return c.Hides != nil && c.Hides(to) }

// holds reports whether the address is in a pod CIDR of the node.
func (n Node) holds(a netip.Addr) bool { return in(n.CIDRs, a) }

func in(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
}

// admits reports whether a node may say that its canary has the address, outside its pod CIDRs: it belongs to no node as
// far as the cluster state says. No node's packets are led to the machine itself, or to many machines.
func (s senders) admits(a netip.Addr) bool {
	_, known := s.owner(a)
	return !known && a.IsGlobalUnicast()
}

// newSecret returns what makes the passes of one Prober.
func newSecret() []byte {
	out := make([]byte, sha256.Size)
	_, _ = rand.Read(out) // never fails
	return out
}

// pass returns the number that lets a canary of the node ask from that address. Only who gets the packets of the node's
// own address learns it, and only for an address that the node named there itself.
func (p *Prober) pass(node string, from netip.Addr) uint64 {
	mac := hmac.New(sha256.New, p.secret)
	mac.Write([]byte(node + " " + from.String()))
	return max(1, binary.BigEndian.Uint64(mac.Sum(nil)))
}

// grant returns the pass for the canary that a node names in a question from its own address; 0: none.
func (p *Prober) grant(own *station, node string, from netip.Addr, m message) uint64 {
	a, ok := familyOf(from).of(m.Uplink)
	if _, host := own.senders.hosts[from]; !ok || !host || !own.senders.admits(a) {
		return 0
	}
	return p.pass(node, a)
}

// admitted returns the node whose canary asks from an address that the cluster state does not have.
func (p *Prober) admitted(own *station, from netip.Addr, m message) (node string, ok bool) {
	return m.Name, m.Pass != 0 && own.senders.has(m.Name) && own.senders.admits(from) && m.Pass == p.pass(m.Name, from)
}
