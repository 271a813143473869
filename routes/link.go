package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

func hardwareAddr(text string) ([]byte, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%q is not a MAC address of 6 bytes", text)
	}
	return mac, nil
}

// linkMessage creates a link (flags NLM_F_CREATE|NLM_F_EXCL, index 0) or changes a link. A link is
// created down: see raise.
func linkMessage(l Link, index, flags int) (message, error) {
	header := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	if index != 0 {
		if l.Up {
			binary.NativeEndian.PutUint32(header[8:], unix.IFF_UP)
		}
		binary.NativeEndian.PutUint32(header[12:], unix.IFF_UP) // the mask of flags to change
	}
	m := newMessage(unix.RTM_NEWLINK, flags, header)
	if index == 0 {
		m = m.attrString(unix.IFLA_IFNAME, l.Name)
	}
	m, err := commonAttrs(m, l.MAC, l.MTU)
	if index != 0 && l.Alias != "" {
		m = m.attr(unix.IFLA_IFALIAS, []byte(l.Alias))
	}
	if err != nil || index != 0 {
		return m, err
	}
	if l.Kind == "veth" {
		m = oneQueue(m)
	}
	m = m.nest(unix.IFLA_LINKINFO, func(m message) message {
		m = m.attrString(unix.IFLA_INFO_KIND, l.Kind)
		switch {
		case l.Kind == "veth" && l.Peer != nil:
			return m.nest(unix.IFLA_INFO_DATA, func(m message) message {
				return m.nest(vethInfoPeer, func(m message) message {
					m, err = peerAttrs(m, l)
					return m
				})
			})
		case l.VXLAN != nil:
			return m.nest(unix.IFLA_INFO_DATA, func(m message) message { return vxlanAttrs(m, *l.VXLAN) })
		case l.VLAN != nil:
			return m.nest(unix.IFLA_INFO_DATA, func(m message) message {
				return m.attr(unix.IFLA_VLAN_ID, binary.NativeEndian.AppendUint16(nil, l.VLAN.ID))
			})
		}
		return m
	})
	return m, err
}

const vethInfoPeer = 1 // VETH_INFO_PEER, linux/veth.h

func commonAttrs(m message, mac string, mtu int) (message, error) {
	if mac != "" {
		hw, err := hardwareAddr(mac)
		if err != nil {
			return m, err
		}
		m = m.attr(unix.IFLA_ADDRESS, hw)
	}
	if mtu != 0 {
		m = m.attr32(unix.IFLA_MTU, uint32(mtu))
	}
	return m, nil
}

// oneQueue sets one queue. By default a veth has one queue per possible CPU at each end; they cost
// milliseconds on big machines and do nothing without XDP (drivers/net/veth.c is lockless on transmit).
func oneQueue(m message) message {
	return m.attr32(unix.IFLA_NUM_TX_QUEUES, 1).attr32(unix.IFLA_NUM_RX_QUEUES, 1)
}

// peerAttrs describes the other end. The message cannot set the peer up: veth_newlink configures the
// peer before it joins the pair, and the kernel answers ENOTCONN.
func peerAttrs(m message, l Link) (message, error) {
	p := *l.Peer
	if p.MTU == 0 {
		p.MTU = l.MTU
	}
	m = append(m, make([]byte, unix.SizeofIfInfomsg)...)
	m = oneQueue(m.attrString(unix.IFLA_IFNAME, p.Name))
	if p.Netns != nil {
		m = m.attr32(unix.IFLA_NET_NS_FD, uint32(p.Netns.Fd()))
	}
	return commonAttrs(m, p.MAC, p.MTU)
}

func vxlanAttrs(m message, vx VXLAN) message {
	m = m.attr32(unix.IFLA_VXLAN_ID, vx.VNI)
	m = m.attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, vx.Port))
	m = m.attr8(unix.IFLA_VXLAN_LEARNING, 0)
	// Over IPv4 the outer UDP header has no checksum (RFC 7348, section 5). A checksum is the kernel's default, and it is
	// wrong on the wire once a rule of this machine translates the outer packet, such as a masquerade of everything that
	// leaves: the kernel takes it for the sum of a header whose rest the card adds, because the card adds the inner
	// checksum (net/core/utils.c: inet_proto_csum_replace4 with CHECKSUM_PARTIAL). A link that has a checksum keeps it.
	m = m.attr8(unix.IFLA_VXLAN_UDP_CSUM, 0)
	if !vx.Local.IsValid() {
		return m
	}
	if vx.Local.Is4() {
		return m.attrAddr(unix.IFLA_VXLAN_LOCAL, vx.Local)
	}
	return m.attrAddr(unix.IFLA_VXLAN_LOCAL6, vx.Local)
}

const (
	// doomed is the group of links that are deleted together.
	doomed = 0x65770001
	// vlanGroup is the group of our VLAN links. Their names are names that an operator may give too, and the kernel sets
	// the group with the same request that creates the link: there is no moment in which the link is nobody's.
	vlanGroup = 0x65770002
)

// delLinks deletes links together. A deletion waits some 20 ms until all processors have released the
// device (net/core/dev.c: netdev_run_todo, rcu_barrier); a group waits once.
func (a *applier) delLinks(changes []*Change) {
	var marked []*Change
	var msgs []message
	for _, c := range changes {
		name := c.Object.(Link).Name
		d, ok, err := a.v.fetch(name)
		a.v.forget(name)
		if err != nil {
			a.conclude(c, err)
		}
		if !ok {
			continue
		}
		marked = append(marked, c)
		msgs = append(msgs, linkHeader(unix.RTM_NEWLINK, d.index).attr32(unix.IFLA_GROUP, doomed))
	}
	if len(marked) == 0 {
		return
	}
	errs := a.k.c.change(msgs...)
	err := a.k.c.change(linkHeader(unix.RTM_DELLINK, 0).attr32(unix.IFLA_GROUP, doomed))[0]
	for i, c := range marked {
		if errs[i] == nil {
			errs[i] = err
		}
		a.conclude(c, errs[i])
	}
}

// raise sets a new link up and gives it its alias: the kernel takes no alias while it creates a link
// (net/core/rtnetlink.c: rtnl_create_link).
func (a *applier) raise(c *Change) {
	l, ok := c.Object.(Link)
	if !ok || c.Op != Add || c.Err != nil || !l.Up && l.Alias == "" {
		return
	}
	index, err := a.v.index(l.Name)
	if err == nil {
		var m message
		m, err = linkMessage(Link{Up: l.Up, Alias: l.Alias}, index, 0)
		a.raised = append(a.raised, step{c: c, m: m})
	}
	a.conclude(c, err)
}

func linkHeader(typ uint16, index int) message {
	h := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	return newMessage(typ, 0, h)
}

func (a *applier) addLink(l Link) error {
	switch {
	case l.Kind == "":
		return fmt.Errorf("%w; edgeway does not create this link: check the name", errNoLink)
	case l.Kind == "veth" && l.Peer == nil:
		return errors.New("a veth needs a peer, but the desired link has no peer")
	case len(l.Name) >= unix.IFNAMSIZ || (l.Peer != nil && len(l.Peer.Name) >= unix.IFNAMSIZ):
		return fmt.Errorf("the name of a link can have at most %d bytes", unix.IFNAMSIZ-1)
	}
	m, err := linkMessage(l, 0, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if err == nil && l.VLAN != nil {
		var parent int
		parent, err = a.v.index(l.VLAN.Parent)
		m = m.attr32(unix.IFLA_LINK, uint32(parent)).attr32(unix.IFLA_GROUP, vlanGroup)
	}
	if err != nil {
		return err
	}
	err = a.k.c.change(m)[0]
	d, ok, ferr := a.v.fetch(l.Name)
	if errors.Is(err, unix.EEXIST) && ok && l.VLAN != nil && sameKind(a.v.link(d), l) {
		err = nil // another process of ours made the link meanwhile
	}
	if errors.Is(err, unix.EEXIST) && !ok && l.Peer != nil {
		return fmt.Errorf("the peer's network namespace already has a link %s: %w", l.Peer.Name, err)
	}
	return errors.Join(err, ferr)
}

func (a *applier) delLink(l Link) error {
	d, ok, err := a.v.fetch(l.Name)
	a.v.forget(l.Name)
	if err != nil || !ok {
		return err
	}
	return a.k.c.change(linkHeader(unix.RTM_DELLINK, d.index))[0]
}
