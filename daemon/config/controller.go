package config

import (
	"net/netip"

	"go.yaml.in/yaml/v3"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Controller is what the controller gives to which nodes: one pool, or several.
type Controller struct {
	PodPool
	Pools  []PodPool
	Listen string // host:port of /healthz and /metrics; default: none
}

// PodPool is where the pod CIDRs of some nodes come from.
type PodPool struct {
	NodeSelector cluster.Selector
	PodCIDRs     []netip.Prefix
	NodeMask     NodeMask       // the prefix length of one node's pod CIDR; 0: 24 and 64
	Exclude      []netip.Prefix // addresses that no node gets
}

// NodeMask is a prefix length for each family.
type NodeMask struct{ IPv4, IPv6 int }

func (c *Controller) read(s section) {
	c.PodPool.read(s)
	s.each("pools", "a list of pools", func(n *yaml.Node) {
		var p PodPool
		s.doc.read(n, p.read)
		c.Pools = append(c.Pools, p)
	})
	s.text("listen", &c.Listen)
}

func (p *PodPool) read(s section) {
	s.selector("nodeSelector", &p.NodeSelector)
	s.prefixes("podCIDRs", &p.PodCIDRs)
	s.inside("nodeMask", func(s section) {
		number(s, "ipv4", &p.NodeMask.IPv4, 1, 32, "a prefix length from 1 to 32")
		number(s, "ipv6", &p.NodeMask.IPv6, 1, 128, "a prefix length from 1 to 128")
	})
	s.prefixes("exclude", &p.Exclude)
}
