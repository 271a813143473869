package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
)

// NetworkPool (network.edgeway.io/v1alpha1) says how the nodes that it selects are connected.
//
// What two nodes must agree on, the mode and the VXLAN, comes from the pools alone: all nodes read the same
// pools, so two nodes cannot disagree. What concerns one node (source NAT, MTU) comes from that node's file
// where the pool does not have it.
type NetworkPool struct {
	Name     string     `json:"name"`
	Selector Selector   `json:"selector"`
	Mode     Mode       `json:"mode"`
	PodCIDRs []PoolCIDR `json:"podCIDRs,omitempty"` // in order of use; empty: another program gives pod CIDRs
	VXLAN    VXLAN      `json:"vxlan"`
	// Flannel: the nodes of the pool and nodes of flannel that no pool selects tunnel to each other.
	Flannel bool `json:"flannel,omitempty"`
	// SourceNAT is nil where each node's own file decides.
	SourceNAT *SourceNAT `json:"sourceNAT,omitempty"`
	MTU       int        `json:"mtu,omitempty"` // of the pods' links, in bytes; 0: each node's own file decides
	Origin    string     `json:"origin,omitempty"`
}

// PoolCIDR is a range from which each node of a pool gets one block.
type PoolCIDR struct {
	CIDR         netip.Prefix `json:"cidr"`
	NodeMaskSize int          `json:"nodeMaskSize"` // prefix length of a node's block
}

// Mode says how packets reach the pods of other nodes.
type Mode string

// The modes: routed by the LAN, in VXLAN, or in VXLAN only where the LAN does not reach.
const (
	Underlay Mode = "underlay"
	Overlay  Mode = "overlay"
	Auto     Mode = "auto"
)

// Modes returns all modes.
func Modes() []Mode { return []Mode{Underlay, Overlay, Auto} }

// VXLAN is where a node receives the overlay's packets (RFC 7348).
type VXLAN struct {
	VNI  uint32 `json:"vni"`
	Port uint16 `json:"port"` // UDP
}

// DefaultVXLAN returns the VXLAN of a pool, or of a node's file, that does not name one.
func DefaultVXLAN() VXLAN { return VXLAN{VNI: 1, Port: 8472} }

// SourceNAT gives pods' packets the node's address where they leave the pods' own networks.
type SourceNAT struct {
	Enabled bool           `json:"enabled"`
	Exclude []netip.Prefix `json:"exclude,omitempty"` // destinations that keep seeing the pod's address
}

// The default masks of a node's block are those of kube-controller-manager.
const (
	defaultMask4 = 24
	defaultMask6 = 64
)

// Ref names the pool as messages do: "NetworkPool/warehouse".
func (p NetworkPool) Ref() string { return kindPool + "/" + p.Name }

// readPool reads a NetworkPool.
func readPool(root mapping, name string) NetworkPool {
	spec := strictSpec(root, "nodeSelector", "mode", "podCIDRs", "sourceNAT", "vxlan", "mtu")
	spec.require("nodeSelector", "mode")
	vxlan := spec.at("vxlan").mapping("vni", "port", "flannel")
	p := NetworkPool{
		Name:     name,
		Selector: spec.at("nodeSelector").selector(),
		Mode:     spec.at("mode").mode(),
		PodCIDRs: readPoolCIDRs(spec.at("podCIDRs")),
		VXLAN: VXLAN{ // RFC 7348, section 5: the VNI has 24 bits
			VNI:  cmp.Or(uint32(vxlan.at("vni").number(badValue, 1, 1<<24-1)), DefaultVXLAN().VNI),
			Port: cmp.Or(uint16(vxlan.at("port").number(badValue, 1, 65535)), DefaultVXLAN().Port),
		},
		Flannel: vxlan.at("flannel").boolean(),
		MTU:     int(spec.at("mtu").number(badValue, 1280, 65535)), // RFC 8200, section 5: no IPv6 link is smaller
	}
	if nat := spec.at("sourceNAT").mapping("enabled", "exclude"); !nat.absent() {
		nat.require("enabled")
		p.SourceNAT = &SourceNAT{Enabled: nat.at("enabled").boolean()}
		for _, f := range nat.at("exclude").list() {
			if c := f.cidr(); c.IsValid() {
				p.SourceNAT.Exclude = append(p.SourceNAT.Exclude, c)
			}
		}
	}
	return p
}

func (f field) mode() Mode {
	return Mode(f.oneOf(string(Underlay), string(Overlay), string(Auto)))
}

// readPoolCIDRs reads spec.podCIDRs. Nodes get one block of each family, so all ranges of a family have blocks
// of one size.
func readPoolCIDRs(list field) (out []PoolCIDR) {
	masks := map[bool]int{}
	for _, f := range list.items("CIDR") {
		m := f.mapping("cidr", "nodeMaskSize")
		m.require("cidr")
		cidr, size := m.at("cidr"), m.at("nodeMaskSize")
		c := PoolCIDR{NodeMaskSize: int(size.number(badValue, 1, 128))}
		if !cidr.absent() {
			c.CIDR = cidr.prefix()
		}
		if !c.CIDR.IsValid() {
			continue
		}
		is4, most := c.CIDR.Addr().Is4(), c.CIDR.Addr().BitLen()
		if size.absent() {
			c.NodeMaskSize = defaultMask6
			if is4 {
				c.NodeMaskSize = defaultMask4
			}
		}
		if c.NodeMaskSize < c.CIDR.Bits() || c.NodeMaskSize > most {
			size.bad(badValue, fmt.Sprintf("a number from %d to %d in %s, as blocks of %s", c.CIDR.Bits(), most, size.path, c.CIDR), fmt.Sprint(c.NodeMaskSize))
		}
		if first, ok := masks[is4]; ok && first != c.NodeMaskSize {
			f.bad(badValue, "one nodeMaskSize for each family in "+list.path, fmt.Sprintf("%d and %d", first, c.NodeMaskSize))
		} else {
			masks[is4] = c.NodeMaskSize
		}
		for _, other := range out {
			if other.CIDR.Overlaps(c.CIDR) {
				cidr.bad(duplicateEntry, "CIDRs that do not overlap in "+list.path, fmt.Sprintf("%s and %s", other.CIDR, c.CIDR))
			}
		}
		out = append(out, c)
	}
	return out
}
