package policy

import (
	"fmt"
	"net/netip"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/routes"
)

// kernelMade is the protocol of the routes that the kernel makes for addresses (RTPROT_KERNEL).
const kernelMade routes.Protocol = 2

// shadows finds the routes of other owners that win over ours from another place: a route to a part of a
// node's pod CIDR, a route to all of it with a lower metric, or a route in a table to which a policy rule
// leads.
func (d *draft) shadows() {
	ours := map[netip.Prefix]routes.Route{}
	for _, r := range d.plan.Routes.Routes {
		if !r.Via.IsValid() || r.Protocol != routes.ProtoNode {
			continue
		}
		ours[r.Dst] = r
		if way, ok := d.Host.Ruled[r.Dst.Addr()]; ok && (way.Route.Via != r.Via || way.Route.Link != r.Link) {
			got, next := byRule(way)
			d.problem("route "+r.Dst.String(), cluster.Shadowed, r.String(), "packets take "+got, next)
		}
	}
	for _, h := range d.Host.Routes {
		if h.Protocol == kernelMade || h.Protocol == routes.ProtoNode || h.Protocol == routes.ProtoLearned {
			continue
		}
		for bits := h.Dst.Bits(); bits > 0; bits-- {
			outer, err := h.Dst.Addr().Prefix(bits)
			if err != nil {
				break
			}
			r, ok := ours[outer]
			if !ok {
				continue
			}
			if bits < h.Dst.Bits() || metric(h) < metric(r) {
				d.problem("route "+r.Dst.String(), cluster.Shadowed, r.String(), fmt.Sprintf("packets take %s", h),
					"stop the agent that owns it, or remove it: ip route del "+h.String())
			}
			break
		}
	}
}

// metric returns the priority that the kernel compares. An IPv6 route without a metric has 1024
// (IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h).
func metric(r routes.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return 1024
	}
	return r.Metric
}
