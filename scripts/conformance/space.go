package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// space is a network namespace with a netlink socket in it.
type space struct {
	*lab.Space
	nl *netlink.Handle
}

func newSpace(path string) (*space, error) {
	s, err := lab.NewSpace(path)
	if err != nil {
		return nil, err
	}
	return ask(s)
}

func ask(s *lab.Space) (*space, error) {
	nl, err := netlink.NewHandleAt(netns.NsHandle(s.File.Fd()))
	return &space{s, nl}, err
}

// remove unmounts the namespace, which ends when nothing uses it any more. It may be called twice.
func (s *space) remove() {
	if s.nl != nil {
		s.nl.Close()
		s.nl = nil
		s.Remove()
	}
}

// link returns a link by name, or nil if there is none.
func (s *space) link(name string) netlink.Link {
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return nil
	}
	return l
}

// addrs returns the global addresses of a link.
func (s *space) addrs(link string) (out []netip.Prefix, err error) {
	l, err := s.nl.LinkByName(link)
	if err != nil {
		return nil, err
	}
	list, err := s.nl.AddrList(l, netlink.FAMILY_ALL)
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip.Unmap(), bits); ok && a.Scope != int(netlink.SCOPE_LINK) {
			out = append(out, p)
		}
	}
	return out, err
}

// step changes one thing in a namespace.
type step = func(h *netlink.Handle) error

// script runs all steps, even after a step fails.
func (s *space) script(steps ...step) error {
	var errs []error
	for i, step := range steps {
		if err := step(s.nl); err != nil {
			errs = append(errs, fmt.Errorf("step %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func onLink(name string, f func(h *netlink.Handle, l netlink.Link) error) step {
	return func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return f(h, l)
	}
}

func setUp(name string) step { return onLink(name, (*netlink.Handle).LinkSetUp) }

func addAddr(name, prefix string) step {
	return onLink(name, func(h *netlink.Handle, l netlink.Link) error {
		a, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		return h.AddrAdd(l, a)
	})
}

// addRoute adds a route through a router. Without a router, dst is on the link.
func addRoute(name, dst, via string) step {
	return onLink(name, func(h *netlink.Handle, l netlink.Link) error {
		_, to, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}
		if via != "" {
			r.Gw, r.Scope = netip.MustParseAddr(via).AsSlice(), netlink.SCOPE_UNIVERSE
		}
		return h.RouteAdd(r)
	})
}

func (s *space) setDown(name string) error {
	return s.script(onLink(name, (*netlink.Handle).LinkSetDown))
}

func (s *space) deleteLink(name string) error {
	return s.script(onLink(name, (*netlink.Handle).LinkDel))
}

// flush removes the addresses of a link.
func (s *space) flush(name string) error {
	return s.script(onLink(name, func(h *netlink.Handle, l netlink.Link) error {
		list, err := h.AddrList(l, unix.AF_UNSPEC)
		for _, a := range list {
			err = errors.Join(err, h.AddrDel(l, &a))
		}
		return err
	}))
}

// otherMAC is the address that setMAC sets.
const otherMAC = "02:00:00:00:00:77"

func (s *space) setMAC(name string) error {
	return s.script(onLink(name, func(h *netlink.Handle, l netlink.Link) error {
		mac, err := net.ParseMAC(otherMAC)
		if err != nil {
			return err
		}
		return h.LinkSetHardwareAddr(l, mac)
	}))
}

// The surroundings of a fresh host: one uplink, and a machine beyond the uplink that has no route to pods.
const (
	uplink   = "up0"
	hostIP   = "192.0.2.1"
	hostIP6  = "2001:db8::1"
	otherIP  = "192.0.2.254"
	otherIP6 = "2001:db8::fe"
)

// newHost makes a host with an uplink, and the machine beyond the uplink.
func newHost(dir string) (host, outside *space, err error) {
	if host, err = newSpace(filepath.Join(dir, "host")); err != nil {
		return nil, nil, err
	}
	if outside, err = newSpace(filepath.Join(dir, "outside")); err != nil {
		host.remove()
		return nil, nil, err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink, MTU: 1480, NumTxQueues: 1, NumRxQueues: 1}, PeerName: "up1",
		PeerNamespace: netlink.NsFd(outside.File.Fd())}
	err = errors.Join(
		host.script(func(h *netlink.Handle) error { return h.LinkAdd(veth) }, setUp("lo")),
		outside.script(setUp("up1"), addAddr("up1", otherIP+"/24"), addAddr("up1", otherIP6+"/64")),
		host.script(setUp(uplink), addAddr(uplink, hostIP+"/24"), addAddr(uplink, hostIP6+"/64"),
			addRoute(uplink, "0.0.0.0/0", otherIP), addRoute(uplink, "::/0", otherIP6)),
	)
	if err != nil {
		host.remove()
		outside.remove()
		return nil, nil, fmt.Errorf("make the host's network: %w", err)
	}
	return host, outside, nil
}
