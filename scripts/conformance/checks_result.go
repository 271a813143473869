package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// resultCheck is a check of the result of an ADD, in each version.
func resultCheck(id string, l level, asks, since string, judge func(t *T, p *pod, r result)) check {
	return check{id: id, level: l, section: "5", asks: asks, since: since, each: true, run: func(t *T) {
		p, r := t.addPod()
		judge(t, p, r)
	}}
}

func resultChecks() []check {
	return []check{
		resultCheck("result.version", must, "cniVersion of the result is the input's", "0.3.0", func(t *T, p *pod, r result) {
			for _, raw := range p.results {
				if r, err := parseResult(raw); err != nil || r.CNIVersion != t.net.version {
					t.Errorf("says %q: %v", r.CNIVersion, err)
				}
			}
		}),
		resultCheck("result.shape", must, "the result has the keys and types of its version", "0.3.0", resultShape),
		resultCheck("result.library", must, "the CNI library decodes the result", "0.3.0", func(t *T, p *pod, _ result) {
			_, err := create.Create(t.net.version, p.prev)
			t.OK(err, "decode")
		}),
		resultCheck("result.stdout", must, "the standard output of ADD is one JSON value, without logs", "0.3.0", func(t *T, p *pod, r result) {
			for _, raw := range p.results {
				_, err := parseResult(raw)
				t.OK(err, "decode")
			}
		}),
		resultCheck("result.interface", must, "interfaces has CNI_IFNAME once, and its sandbox is CNI_NETNS", "0.3.0", func(t *T, p *pod, r result) {
			n := 0
			for _, i := range r.Interfaces {
				if i.Name == p.ifName && i.Sandbox == p.netns {
					n++
				}
			}
			if n != 1 {
				t.Errorf("found %d of it: %s", n, p.prev)
			}
		}),
		resultCheck("result.mac", must, "each interface's mac is the kernel's", "0.3.0", func(t *T, p *pod, r result) {
			for i, f := range r.Interfaces {
				l := t.linkOf(p, r, i)
				if l == nil {
					t.Errorf("interface %s does not exist", f.Name)
				} else if f.Mac != "" && !strings.EqualFold(l.Attrs().HardwareAddr.String(), f.Mac) {
					t.Errorf("%s: says %s, the kernel %s", f.Name, f.Mac, l.Attrs().HardwareAddr)
				}
			}
		}),
		resultCheck("result.mac-given", should, "the pod's interface has its mac in the result", "0.3.0", func(t *T, p *pod, r result) {
			for _, f := range r.Interfaces {
				if _, err := net.ParseMAC(f.Mac); f.Sandbox != "" && err != nil {
					t.Errorf("%s: mac %q", f.Name, f.Mac)
				}
			}
		}),
		resultCheck("result.mtu", should, "the pod's interface has its mtu in the result", "1.1.0", func(t *T, p *pod, r result) {
			for _, f := range r.Interfaces {
				if f.Name == p.ifName && f.Sandbox != "" && f.Mtu == nil {
					t.Errorf("%s has no mtu", f.Name)
				}
			}
		}),
		resultCheck("result.mtu-true", must, "an mtu in the result is the kernel's", "1.1.0", func(t *T, p *pod, r result) {
			for i, f := range r.Interfaces {
				if l := t.linkOf(p, r, i); l != nil && f.Mtu != nil && *f.Mtu != l.Attrs().MTU {
					t.Errorf("%s: says %d, the kernel %d", f.Name, *f.Mtu, l.Attrs().MTU)
				}
			}
		}),
		resultCheck("result.ips-interface", must, "ips[].interface is the index of the pod's interface", "0.3.0", func(t *T, p *pod, r result) {
			for _, ip := range r.IPs {
				switch {
				case ip.Interface == nil:
					t.Errorf("%s has none", ip.Address)
				case *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces):
					t.Errorf("%s: index %d of %d", ip.Address, *ip.Interface, len(r.Interfaces))
				case r.Interfaces[*ip.Interface].Name != p.ifName:
					t.Errorf("%s is on %s", ip.Address, r.Interfaces[*ip.Interface].Name)
				}
			}
			if len(r.IPs) == 0 {
				t.Errorf("no ips")
			}
		}),
		resultCheck("result.ips-installed", must, "each address of ips is on the pod's interface, with its prefix length", "0.3.0", func(t *T, p *pod, r result) {
			have, err := p.addrs(p.ifName)
			t.OK(err, "list addresses")
			for _, ip := range r.IPs {
				if !slices.Contains(have, ip.Address) {
					t.Errorf("%s is not among %v", ip.Address, have)
				}
			}
		}),
		resultCheck("result.ips-complete", must, "each address on the pod's interface is in ips", "0.3.0", func(t *T, p *pod, r result) {
			have, err := p.addrs(p.ifName)
			t.OK(err, "list addresses")
			for _, a := range have {
				if !slices.Contains(r.addrs(), a.Addr()) {
					t.Errorf("%s is not in the result", a)
				}
			}
		}),
		resultCheck("result.gateway", must, "a gateway has the address family of its ip", "0.3.0", func(t *T, p *pod, r result) {
			for _, ip := range r.IPs {
				if ip.Gateway == "" {
					continue
				}
				if g, err := netip.ParseAddr(ip.Gateway); err != nil || g.Unmap().Is4() != ip.Address.Addr().Unmap().Is4() {
					t.Errorf("gateway %q of %s", ip.Gateway, ip.Address)
				}
			}
		}),
		resultCheck("result.routes-installed", must, "each route of routes is in the pod", "0.3.0", func(t *T, p *pod, r result) {
			for _, want := range r.Routes {
				if _, err := p.route(want.Dst, want.Table); err != nil {
					t.Errorf("%v", err)
				}
			}
		}),
		resultCheck("result.routes-complete", should, "the pod's default route is in routes", "0.3.0", func(t *T, p *pod, r result) {
			for _, dst := range []string{"0.0.0.0/0", "::/0"} {
				dst := netip.MustParsePrefix(dst)
				_, err := p.route(dst, nil)
				listed := slices.ContainsFunc(r.Routes, func(x resultRoute) bool { return x.Dst == dst })
				if err == nil && !listed {
					t.Errorf("%s is not in the result", dst)
				}
			}
		}),
		resultCheck("result.host-interfaces", must, "interfaces has every link that ADD made on the host", "0.3.0", func(t *T, p *pod, r result) {
			fresh, q := t.snap(), t.pod()
			res := t.add(q)
			for _, line := range t.snap().minus(fresh) {
				if name, ok := strings.CutPrefix(line, "link "); ok {
					name, _, _ = strings.Cut(name, " ")
					if !slices.Contains(res.hostLinks(), name) {
						t.Errorf("link %s is not in the result", name)
					}
				}
			}
		}),
		resultCheck("result.old-keys", robust, "a result before 1.1.0 has no key that came with 1.1.0", "0.3.0", func(t *T, p *pod, _ result) {
			if !before(t.net.version, "1.1.0") {
				return
			}
			var raw struct{ Interfaces, Routes []object }
			t.OK(json.Unmarshal(p.prev, &raw), "decode")
			for _, o := range slices.Concat(raw.Interfaces, raw.Routes) {
				for _, k := range []string{"mtu", "socketPath", "pciID", "advmss", "priority", "table", "scope"} {
					if _, ok := o[k]; ok {
						t.Errorf("key %s in %s", k, p.prev)
					}
				}
			}
		}),
	}
}

func resultShape(t *T, p *pod, _ result) {
	var raw map[string]json.RawMessage
	t.OK(json.Unmarshal(p.prev, &raw), "decode")
	for k := range raw {
		if !slices.Contains([]string{"cniVersion", "interfaces", "ips", "routes", "dns"}, k) {
			t.Errorf("key %q", k)
		}
	}
	r := p.result()
	old := before(t.net.version, "1.0.0")
	for _, ip := range r.IPs {
		want := "6"
		if ip.Address.Addr().Unmap().Is4() {
			want = "4"
		}
		switch {
		case old && (ip.Version == nil || *ip.Version != want):
			t.Errorf("ips[].version is not %q: %s", want, p.prev)
		case !old && ip.Version != nil:
			t.Errorf("ips[].version was removed in 1.0.0: %s", p.prev)
		case !ip.Address.IsValid():
			t.Errorf("ips[].address is missing: %s", p.prev)
		}
	}
	for _, x := range r.Routes {
		if !x.Dst.IsValid() {
			t.Errorf("routes[].dst is missing: %s", p.prev)
		}
	}
}

// linkOf returns the kernel's link for an interface in a result.
func (t *T) linkOf(p *pod, r result, i int) netlink.Link {
	if r.Interfaces[i].Sandbox == "" {
		return t.host.link(r.Interfaces[i].Name)
	}
	return p.link(r.Interfaces[i].Name)
}

// route finds a route by destination, in the main table unless table is set.
func (s *space) route(dst netip.Prefix, table *int) (netlink.Route, error) {
	family, id := unix.AF_INET, unix.RT_TABLE_MAIN
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	if table != nil {
		id = *table
	}
	routes, err := s.nl.RouteListFiltered(family, &netlink.Route{Table: id}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netlink.Route{}, err
	}
	want := dst.Masked().String()
	if dst.Bits() == 0 {
		want = "default"
	}
	for _, r := range routes {
		if dstOf(r) == want {
			return r, nil
		}
	}
	return netlink.Route{}, fmt.Errorf("route %s is not in table %d", dst, id)
}

// veth makes a pair of links inside the namespace and sets them up.
func (s *space) veth(name, peer string) error {
	return s.script(func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer})
	}, setUp(name), setUp(peer))
}
