package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace.
type space struct {
	path string // where it is mounted; "" for this machine's own
	file *os.File
	nl   *netlink.Handle
}

// newSpace makes a network namespace and mounts it at path.
func newSpace(path string) (*space, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return nil, err
	}
	s := &space{path: path}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return s.open("/proc/thread-self/ns/net")
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return s, nil
}

func (s *space) open(path string) (err error) {
	if s.file, err = os.Open(path); err != nil {
		return err
	}
	s.nl, err = netlink.NewHandleAt(netns.NsHandle(s.file.Fd()))
	return err
}

// remove unmounts the namespace; it ends when nothing is inside any more.
func (s *space) remove() {
	if s.file == nil {
		return
	}
	s.nl.Close()
	s.file.Close()
	s.file = nil
	if s.path != "" {
		s.unlink()
	}
}

// unlink removes what CNI_NETNS names. The namespace ends: nobody else holds it.
func (s *space) unlink() {
	_ = unix.Unmount(s.path, unix.MNT_DETACH) // tests put other things there
	_ = os.Remove(s.path)
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// do runs f on a thread inside the namespace. Processes that it starts stay in there.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// link returns a link by name; nil when there is none.
func (s *space) link(name string) netlink.Link {
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return nil
	}
	return l
}

// sysctl writes a value inside the namespace.
func (s *space) sysctl(key, value string) error {
	return s.do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

// addrs are the global addresses on a link.
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

// mustLink makes a link, an address or a route in a script of them.
func (s *space) script(steps ...func(h *netlink.Handle) error) error {
	var errs []error
	for i, step := range steps {
		if err := step(s.nl); err != nil {
			errs = append(errs, fmt.Errorf("step %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func setUp(name string) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return h.LinkSetUp(l)
	}
}

func addAddr(name, prefix string) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		return h.AddrAdd(l, a)
	}
}

func addRoute(name, dst, via string) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		_, to, err := parseCIDR(dst)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: to}
		if via != "" {
			r.Gw = netip.MustParseAddr(via).AsSlice()
		}
		return h.RouteAdd(r)
	}
}

// The world around a fresh host: one uplink, and somebody beyond it who has no route to pods.
const (
	uplink   = "up0"
	hostIP   = "192.0.2.1"
	hostIP6  = "2001:db8::1"
	otherIP  = "192.0.2.254"
	otherIP6 = "2001:db8::fe"
)

// newHost makes a host with an uplink, and what is beyond it.
func newHost(dir string) (host, outside *space, err error) {
	if host, err = newSpace(filepath.Join(dir, "host")); err != nil {
		return nil, nil, err
	}
	if outside, err = newSpace(filepath.Join(dir, "outside")); err != nil {
		host.remove()
		return nil, nil, err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink, MTU: 1480, NumTxQueues: 1, NumRxQueues: 1}, PeerName: "up1",
		PeerNamespace: netlink.NsFd(outside.file.Fd())}
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
