package controller

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// Pool is the source of the pod CIDRs for the nodes that its selector selects. A node that several pools
// select belongs to the first. NetworkPools come before the pools of the file, by name.
type Pool struct {
	Name     string    // of the NetworkPool; "": the pool is of the file
	Created  time.Time // when the NetworkPool was created
	Selector cluster.Selector
	// CIDRs has at least one range of each family that nodes should have, in order of use. Only a NetworkPool
	// may have none.
	CIDRs   []netip.Prefix
	Mask    Mask
	Exclude []netip.Prefix // addresses that no node gets
}

// Mask is the prefix length of a node's pod CIDR.
type Mask struct{ IPv4, IPv6 int }

func (m Mask) of(a netip.Addr) int {
	if a.Is4() {
		return m.IPv4
	}
	return m.IPv6
}

func (p Pool) String() string {
	if p.Name != "" {
		return "NetworkPool/" + p.Name
	}
	var texts []string
	for _, c := range p.CIDRs {
		texts = append(texts, c.String())
	}
	return "pool " + strings.Join(texts, ", ")
}

// families returns the pool's ranges by family, in the order in which the families first appear.
func (p Pool) families() [][]netip.Prefix {
	var out [][]netip.Prefix
	for _, c := range p.CIDRs {
		i := slices.IndexFunc(out, func(f []netip.Prefix) bool { return f[0].Addr().Is4() == c.Addr().Is4() })
		if i < 0 {
			out = append(out, nil)
			i = len(out) - 1
		}
		out[i] = append(out[i], c)
	}
	return out
}

// holds reports whether c lies in one of the pool's ranges.
func (p Pool) holds(c netip.Prefix) bool {
	return slices.ContainsFunc(p.CIDRs, func(r netip.Prefix) bool { return contains(r, c) })
}

// fits reports whether cidrs are a grant that this pool could make: one block of each family.
func (p Pool) fits(cidrs []netip.Prefix) bool {
	families := p.families()
	if len(cidrs) != len(families) {
		return false
	}
	for i, c := range cidrs {
		if c.Addr().Is4() != families[i][0].Addr().Is4() || c.Bits() != p.Mask.of(c.Addr()) || !p.holds(c) {
			return false
		}
	}
	return true
}

// poolOf returns the pool that gives the node its blocks, or nil. A node of a NetworkPool without ranges gets
// them from the file's pools.
func poolOf(pools []Pool, labels map[string]string) *Pool {
	member := memberOf(pools, labels)
	for i := range pools {
		p := &pools[i]
		if len(p.CIDRs) > 0 && p.Selector.Selects(labels) && (p.Name == "" || p.Name == member) {
			return p
		}
	}
	return nil
}

// memberOf returns the name of the NetworkPool that the node belongs to, or "".
func memberOf(pools []Pool, labels map[string]string) string {
	for _, p := range pools {
		if p.Name != "" && p.Selector.Selects(labels) {
			return p.Name
		}
	}
	return ""
}

// CheckPools returns an error for pools of a file that cannot work, such as a range smaller than one node's block, or
// ranges that overlap.
func CheckPools(pools []Pool) error {
	var ranges []netip.Prefix
	for _, p := range pools {
		if len(p.CIDRs) == 0 {
			return errors.New("a pool without podCIDRs; give it one CIDR of each family that the nodes should have")
		}
		if p.Selector.String() == "" {
			return fmt.Errorf("%v: no nodeSelector; write all() to select every node", p)
		}
		for _, c := range p.CIDRs {
			if c != c.Masked() || c.Addr().Is4In6() {
				return fmt.Errorf("podCIDRs %v: want the range's first address, as in 10.10.0.0/16 or fd00:10::/48", c)
			}
			if m := p.Mask.of(c.Addr()); m < c.Bits() || m > c.Addr().BitLen() {
				return fmt.Errorf("podCIDRs %v: no block of /%d fits in; set nodeMask from /%d to /%d", c, m, c.Bits(), c.Addr().BitLen())
			}
			for _, r := range ranges {
				if r.Overlaps(c) {
					return fmt.Errorf("podCIDRs %v: overlaps %v; keep one, or exclude the other's part by splitting it", c, r)
				}
			}
			ranges = append(ranges, c)
		}
	}
	return nil
}

// contains reports whether outer holds every address of inner.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
