package plugin

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

const (
	linkPrefix = "ew"
	// linkDigits: 44 bits of hash. Among 250 pods two share a name with a chance of 2e-9; then ADD is
	// refused, and the runtime tries again with another container ID.
	linkDigits = 11
	// delegatedNetwork and delegatedDigits: an attachment whose addresses another IPAM plugin gave has no
	// lease. The name of its link says the network, so that GC knows the owner. The length of the name
	// tells it from our other links.
	delegatedNetwork = 5
	delegatedDigits  = 8
)

// HostLink is the name of the host's end of the attachment's veth pair: "ew" and 11 hex digits.
func HostLink(a ipam.Attachment) string { return linkPrefix + hash(a.String())[:linkDigits] }

// delegatedLink is the host's end if another IPAM plugin gives the addresses.
func delegatedLink(network string, a ipam.Attachment) string {
	return delegatedPrefix(network) + hash(a.String())[:delegatedDigits]
}

func delegatedPrefix(network string) string { return linkPrefix + hash(network)[:delegatedNetwork] }

func (rq request) hostLink() string {
	if rq.conf.delegated() {
		return delegatedLink(rq.conf.Name, rq.attachment)
	}
	return HostLink(rq.attachment)
}

// isOwnLink and isDelegatedLink report whether a name has the shape of HostLink or delegatedLink.
func isOwnLink(name string) bool       { return hexDigits(name) == linkDigits }
func isDelegatedLink(name string) bool { return hexDigits(name) == delegatedNetwork+delegatedDigits }

// hexDigits counts the hex digits after the prefix of our links; 0 if there is any other character.
func hexDigits(name string) int {
	digits, ok := strings.CutPrefix(name, linkPrefix)
	if !ok || strings.Trim(digits, "0123456789abcdef") != "" {
		return 0
	}
	return len(digits)
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// macOf derives a unicast, locally administered address (IEEE 802, section 8.4). The address is the same
// each time and needs no storage.
func macOf(a ipam.Attachment, end string) string {
	sum := sha256.Sum256([]byte(a.String() + " " + end))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return routes.LinkAddr(mac)
}

// gateway is the next hop of every pod, the same for all: each host end has it as an address of that link
// alone. A permanent neighbour entry of the pod leads to it.
func gateway(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

func anywhere(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// podRoute is a route that the pod asks for. A zero via means the pod's gateway.
type podRoute struct {
	dst      netip.Prefix
	via      netip.Addr
	onLink   bool // scope link: no next hop
	mtu      int
	advMSS   int
	priority int
	table    *int
	scope    *int
}

// nextHop is the route's next hop; zero for a route on the link itself.
func (r podRoute) nextHop() netip.Addr {
	switch {
	case r.onLink:
		return netip.Addr{}
	case r.via.IsValid():
		return r.via
	}
	return gateway(r.dst.Addr().Is6())
}

// wiring is all that the kernel holds for one attachment, except the pod's lo.
type wiring struct {
	hostLink, hostMAC string
	alias             string // of the host's end; "" leaves the alias unchanged
	ifName, podMAC    string
	mtu, podMTU       int // podMTU: if it differs
	addrs             []netip.Addr
	routes            []podRoute
	masq              []routes.Masq
	// src is the host's IPv4 address towards the pod; zero if the host has an IPv4 address.
	src netip.Addr
	// metric of the pod's routes that ask for none: 0, or secondMetric if another interface of the pod
	// already has such routes.
	metric int
}

// secondMetric ranks the routes of a pod's second interface behind the first's, and apart from a third's.
// It is a function of the attachment, so that CHECK computes it again.
func secondMetric(a ipam.Attachment) int {
	sum := sha256.Sum256([]byte(a.String()))
	return 2048 + int(binary.BigEndian.Uint16(sum[:]))
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (w wiring) has(v6 bool) bool {
	return slices.ContainsFunc(w.addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
}

// host is the host's side. The veth pair is made as a whole, with its other end inside netns.
func (w wiring) host(netns *os.File) routes.State {
	s := routes.State{
		Links: []routes.Link{{
			Name: w.hostLink, Kind: "veth", MAC: w.hostMAC, MTU: w.mtu, Up: true, Alias: w.alias,
			Peer: &routes.Peer{Name: w.ifName, MAC: w.podMAC, MTU: w.mtu, Netns: netns},
		}},
		// A pod must not become this machine's router.
		Sysctls: append(w.forwarding(), w.trust()...),
	}
	s.Addrs, s.Masq = w.answers(), w.masq
	for _, a := range w.addrs {
		r := routes.Route{Dst: single(a), Link: w.hostLink, Protocol: routes.ProtoPod, Leaf: true}
		if a.Is4() {
			r.Src = w.src
		}
		s.Routes = append(s.Routes, r)
		// Not permanent: a later plugin (tuning), or the pod, may change the pod's MAC.
		s.Neighs = append(s.Neighs, routes.Neigh{Link: w.hostLink, IP: a, MAC: w.podMAC, Learns: true})
	}
	return s
}

// answers are the addresses of the host's end. When the pod's MAC changes, the pod's kernel forgets its
// permanent neighbours (net/core/neighbour.c: neigh_changeaddr) and asks for the next hop. Neither
// address is chosen as a source by itself: one has host scope, and the pod's route is a Leaf; the other is
// link-local. See hostSource.
func (w wiring) answers() (out []routes.Addr) {
	for _, v6 := range []bool{false, true} {
		if w.has(v6) {
			out = append(out, routes.Addr{Link: w.hostLink, Prefix: single(gateway(v6)), HostScope: !v6})
		}
	}
	return out
}

// hostSource is the source that the host's routes to pods name: none while the host has an IPv4 address.
// A host that lost its last address (no DHCP answer, cable out) would send to its pods from 0.0.0.0, and
// the kubelet's probes would fail. It sends from the pods' gateway instead, which each pod's link has, so
// the pod can answer. A second address would not do: on the pod's link it would always win over the
// host's, and we do not control the order of other links (net/ipv4/devinet.c: inet_select_addr).
func hostSource(sourceless bool) (none netip.Addr) {
	if sourceless {
		return gateway(false)
	}
	return none
}

// forwarding is what the host needs to route for pods, for the families in use.
func (w wiring) forwarding() (out []routes.Sysctl) {
	for _, v6 := range []bool{false, true} {
		if w.has(v6) {
			out = append(out, routes.Forwarding("", v6))
		}
	}
	return out
}

// trust are the settings of the host's end: it forwards for the pod, and takes no advice from the pod.
func (w wiring) trust() (out []routes.Sysctl) {
	for _, v6 := range []bool{false, true} {
		if w.has(v6) {
			out = append(out, routes.Forwarding(w.hostLink, v6))
		}
		if w.has(v6) && v6 { // IPv6 may be off by default on the host
			out = append(out, routes.Sysctl{Key: "net/ipv6/conf/" + w.hostLink + "/disable_ipv6", Value: "0"})
		}
	}
	return append(out, routes.Refusals(w.hostLink)...)
}

func (w wiring) pod() routes.State {
	s := routes.State{Links: []routes.Link{{Name: w.ifName, MAC: w.podMAC, MTU: cmp.Or(w.podMTU, w.mtu), Up: true}}}
	// A changed MAC is announced, so that the host learns it before its next packet.
	if w.has(false) {
		s.Sysctls = append(s.Sysctls, routes.Sysctl{Key: "net/ipv4/conf/" + w.ifName + "/arp_notify", Value: "1"})
	}
	if w.has(true) {
		// Runtimes switch IPv6 off by default in a new namespace. accept_dad=0 saves the link-local
		// address two seconds of duplicate detection on a link of two.
		for _, set := range []routes.Sysctl{{Key: "disable_ipv6", Value: "0"}, {Key: "accept_dad", Value: "0"}, {Key: "ndisc_notify", Value: "1"}} {
			set.Key = "net/ipv6/conf/" + w.ifName + "/" + set.Key
			s.Sysctls = append(s.Sysctls, set)
		}
	}
	for _, a := range w.addrs {
		s.Addrs = append(s.Addrs, routes.Addr{Link: w.ifName, Prefix: single(a)})
	}
	hops := map[netip.Addr]bool{}
	for _, r := range w.routes {
		via := r.nextHop()
		if via.IsValid() && !hops[via] {
			hops[via] = true
			s.Neighs = append(s.Neighs, routes.Neigh{Link: w.ifName, IP: via, MAC: w.hostMAC})
			// A next hop must be on a link (net/ipv4/fib_semantics.c: fib_check_nh); an IPv6 link-local
			// next hop always is.
			if !via.IsLinkLocalUnicast() || via.Is4() {
				s.Routes = append(s.Routes, routes.Route{Dst: single(via), Link: w.ifName, Protocol: routes.ProtoPod, Metric: w.metric})
			}
		}
	}
	for _, r := range w.routes {
		s.Routes = append(s.Routes, w.kernelRoute(r))
	}
	return s
}

func (w wiring) kernelRoute(r podRoute) routes.Route {
	out := routes.Route{
		Dst: r.dst, Via: r.nextHop(), Link: w.ifName, Protocol: routes.ProtoPod,
		Metric: cmp.Or(r.priority, w.metric), MTU: r.mtu, AdvMSS: r.advMSS,
	}
	if r.table != nil {
		out.Table = *r.table
	}
	return out
}

// podRoutes are the configured routes of the pod's families; without any, a default route of each family.
func podRoutes(asked []podRoute, addrs []netip.Addr) (out []podRoute) {
	has := func(v6 bool) bool {
		return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	}
	for _, v6 := range []bool{false, true} {
		if len(asked) == 0 && has(v6) {
			out = append(out, podRoute{dst: anywhere(v6)})
		}
	}
	for _, r := range asked {
		if has(r.dst.Addr().Is6()) {
			out = append(out, r)
		}
	}
	return out
}

// parse checks a route of ipam.routes.
func (r routeConf) parse() (podRoute, error) {
	dst, err := netip.ParsePrefix(r.Dst)
	if err != nil {
		return podRoute{}, fault(codeConfig, "ipam.routes: dst %q is not a prefix", r.Dst).next("write it as 0.0.0.0/0")
	}
	out := podRoute{
		dst: netip.PrefixFrom(dst.Addr().Unmap(), dst.Bits()).Masked(),
		mtu: r.MTU, advMSS: r.AdvMSS, priority: r.Priority, table: r.Table, scope: r.Scope,
	}
	if r.GW != "" {
		via, err := netip.ParseAddr(r.GW)
		if err != nil || via.Unmap().Is6() != out.dst.Addr().Is6() {
			return out, fault(codeConfig, "ipam.routes: gw %q of %s is not an address of its family", r.GW, out.dst).next("correct it, or leave it out for the pod's gateway")
		}
		out.via = via.Unmap()
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"mtu", r.MTU}, {"advmss", r.AdvMSS}, {"priority", r.Priority}} {
		if n.value < 0 {
			return out, fault(codeConfig, "ipam.routes: %s %d of %s is negative", n.key, n.value, out.dst).next("use 0 for the kernel's choice")
		}
	}
	if r.Scope != nil {
		switch *r.Scope {
		case 0: // universe
		case 253: // link (SPEC 1.1.0 section 5)
			out.onLink = !out.via.IsValid()
		default:
			return out, fault(codeConfig, "ipam.routes: scope %d of %s is not supported", *r.Scope, out.dst).next("use 0 (universe) or 253 (link)")
		}
	}
	return out, nil
}
