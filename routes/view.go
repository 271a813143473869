package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// device is a link with its current index.
type device struct {
	Link
	index  int
	lower  int  // the index of the link that a VLAN link is on
	closed bool // IPv4 forwarding is off on the link
	// rpFilter is the link's own setting. The kernel takes the greater of this and that of conf/all
	// (Documentation/networking/ip-sysctl.rst).
	rpFilter uint32
	peerNS   int // for a veth whose peer is in another network namespace: the namespace's number, from 1 on
}

// view is what one call has learned of links. Indexes are forgotten with the view.
type view struct {
	pods6   map[netip.Addr]bool // IPv6 addresses with a route of ProtoPod; nil: not read
	c       *conn
	byName  map[string]device
	byIndex map[int]device
	absent  map[string]bool
	asked   int
	whole   bool                         // every link has been read
	objects map[nextHop]uint32           // next hop objects that this call adds routes over
	holders bool                         // the caller wants other owners' routes in the place of desired routes
	conf    map[string]map[string][]byte // settings of links, by name and family
	gapped  bool                         // the pods' chain of nftables lacks rules
	quiet   bool                         // settings are not read: writing them costs less
	brief   bool                         // routes that are as desired are marked in right, and not observed
	right   []bool                       // by index of the desired routes
}

var errNoLink = errors.New("link does not exist")

// lookups is how many links are looked up one by one before all of them are read at once.
const lookups = 8

func newView(c *conn) *view {
	return &view{c: c, byName: map[string]device{}, byIndex: map[int]device{}, absent: map[string]bool{}, conf: map[string]map[string][]byte{}}
}

func (v *view) put(d device) {
	v.byName[d.Name] = d
	v.byIndex[d.index] = d
	delete(v.absent, d.Name)
}

func (v *view) forget(name string) {
	if d, ok := v.byName[name]; ok {
		delete(v.byName, name)
		delete(v.byIndex, d.index)
	}
}

// linkRequest leaves the counters out of the answers: they are most of an answer's size.
func linkRequest(typ uint16) message {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
	return newMessage(typ, 0, make([]byte, unix.SizeofIfInfomsg)).attr32(unix.IFLA_EXT_MASK, skipStats)
}

func (v *view) all() ([]device, error) {
	devices, err := dump(v.c, linkRequest(unix.RTM_GETLINK), 0, parseLink)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	v.whole = true
	v.byName, v.byIndex = make(map[string]device, len(devices)), make(map[int]device, len(devices))
	for _, d := range devices {
		v.put(d)
	}
	return devices, nil
}

// named finds a link by its name; ok is false if the link does not exist.
func (v *view) named(name string) (d device, ok bool, err error) {
	if d, ok := v.byName[name]; ok || v.whole || v.absent[name] {
		return d, ok, nil
	}
	if v.asked++; v.asked > lookups {
		if _, err := v.all(); err != nil {
			return device{}, false, err
		}
		d, ok = v.byName[name]
		return d, ok, nil
	}
	return v.fetch(name)
}

// fetch asks the kernel for one link now.
func (v *view) fetch(name string) (d device, ok bool, err error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return device{}, false, nil // no link can have such a name
	}
	body, err := v.c.get(linkRequest(unix.RTM_GETLINK).attrString(unix.IFLA_IFNAME, name))
	if errors.Is(err, unix.ENODEV) {
		v.absent[name] = true
		return device{}, false, nil
	}
	if err != nil {
		return device{}, false, fmt.Errorf("look up link %s: %w", name, err)
	}
	d, ok = parseLink(body)
	if ok {
		v.put(d)
		v.noteConf(d.Name, body)
	}
	return d, ok, nil
}

// name returns a link's name; "" if the link is gone.
func (v *view) name(index int) string {
	if d, ok := v.byIndex[index]; ok || v.whole || index == 0 {
		return d.Name
	}
	if v.asked++; v.asked > lookups {
		_, _ = v.all()
		return v.byIndex[index].Name
	}
	m := linkRequest(unix.RTM_GETLINK)
	binary.NativeEndian.PutUint32(m[unix.SizeofNlMsghdr+4:], uint32(index))
	body, err := v.c.get(m)
	if err != nil {
		return ""
	}
	if d, ok := parseLink(body); ok {
		v.put(d)
	}
	return v.byIndex[index].Name
}

// index returns a link's index for a message about an object on the link.
func (v *view) index(name string) (int, error) {
	d, ok, err := v.named(name)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("%w: %s", errNoLink, name)
	}
	return d.index, nil
}

func parseLink(b []byte) (device, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return device{}, false
	}
	d := device{index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	group := uint32(0)
	d.Up = binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0
	for typ, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			d.Name = attrName(v)
		case unix.IFLA_ADDRESS:
			if len(v) == 6 {
				d.MAC = LinkAddr(net.HardwareAddr(v))
			}
		case unix.IFLA_MTU:
			d.MTU = int(attrUint32(v))
		case unix.IFLA_IFALIAS:
			d.Alias = attrName(v)
		case unix.IFLA_LINKINFO:
			d.Kind, d.VXLAN, d.VLAN = parseKind(v)
		case unix.IFLA_LINK:
			d.lower = int(attrUint32(v))
		case unix.IFLA_GROUP:
			group = attrUint32(v)
		case unix.IFLA_AF_SPEC:
			d.closed, d.rpFilter = parseIPv4Conf(v)
		case unix.IFLA_LINK_NETNSID:
			d.peerNS = int(int32(attrUint32(v))) + 1
		}
	}
	if d.peerNS != 0 {
		d.lower = 0
	}
	if d.VLAN != nil {
		d.VLAN.Foreign = group != vlanGroup
	}
	return d, d.Name != ""
}

func parseKind(b []byte) (kind string, vx *VXLAN, vlan *VLAN) {
	var data []byte
	for typ, v := range attrs(b) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			kind = attrName(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	}
	if kind == "vlan" {
		return kind, nil, parseVLAN(data)
	}
	if kind != "vxlan" {
		return kind, nil, nil
	}
	vx = &VXLAN{}
	for typ, v := range attrs(data) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			vx.VNI = attrUint32(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			vx.Local = attrAddr(v)
		case unix.IFLA_VXLAN_LEARNING:
			vx.Learning = len(v) > 0 && v[0] != 0
		case unix.IFLA_VXLAN_PORT:
			if len(v) == 2 {
				vx.Port = binary.BigEndian.Uint16(v)
			}
		default:
			if text := otherVXLAN(typ, v); text != "" {
				vx.Other = strings.TrimPrefix(vx.Other+" "+text, " ")
			}
		}
	}
	return kind, vx, nil
}

// parseVLAN returns nil for a link with the tags of IEEE 802.1ad.
func parseVLAN(data []byte) *VLAN {
	vlan := &VLAN{}
	for typ, v := range attrs(data) {
		switch {
		case typ == unix.IFLA_VLAN_ID && len(v) == 2:
			vlan.ID = binary.NativeEndian.Uint16(v)
		case typ == unix.IFLA_VLAN_PROTOCOL && len(v) == 2 && binary.BigEndian.Uint16(v) != unix.ETH_P_8021Q:
			return nil
		}
	}
	return vlan
}

// link returns the device with the name of the link that it is on.
func (v *view) link(d device) Link {
	if d.VLAN != nil {
		vlan := *d.VLAN
		vlan.Parent, d.VLAN = v.name(d.lower), &vlan
	}
	return d.Link
}

// otherVXLAN returns an attribute of a VXLAN link in the words of ip-link(8), if it differs from the links that Sync
// makes. A link with ttl 1 reaches no node behind a router, one with l2miss or proxy asks a program that is not there,
// and one with another extension of the header (gbp, gpe, remcsum) is not understood by the other nodes. A link with
// udpcsum is right: earlier versions made it, and the kernel cannot change it. To make it again costs 0.2 s of packets.
func otherVXLAN(typ uint16, v []byte) string {
	value := 1 // a flag without a value, or an IPv6 address
	switch len(v) {
	case 1:
		value = int(v[0])
	case 4:
		value = int(attrUint32(v))
	}
	for _, a := range []struct {
		typ   uint16
		ours  int
		words string
	}{
		{unix.IFLA_VXLAN_GROUP, 0, "remote"}, {unix.IFLA_VXLAN_GROUP6, 0, "remote"}, {unix.IFLA_VXLAN_LINK, 0, "dev"},
		{unix.IFLA_VXLAN_TTL, 0, "ttl %d"}, {unix.IFLA_VXLAN_TTL_INHERIT, 0, "ttl inherit"}, {unix.IFLA_VXLAN_TOS, 0, "tos %#x"},
		{unix.IFLA_VXLAN_LABEL, 0, "flowlabel"}, {unix.IFLA_VXLAN_DF, 0, "df"}, {unix.IFLA_VXLAN_PORT_RANGE, 0, "srcport"},
		{unix.IFLA_VXLAN_AGEING, 300, "ageing %d"}, // drivers/net/vxlan/vxlan_core.c: FDB_AGE_DEFAULT
		{unix.IFLA_VXLAN_LIMIT, 0, "maxaddress %d"}, {unix.IFLA_VXLAN_PROXY, 0, "proxy"}, {unix.IFLA_VXLAN_RSC, 0, "rsc"},
		{unix.IFLA_VXLAN_L2MISS, 0, "l2miss"}, {unix.IFLA_VXLAN_L3MISS, 0, "l3miss"}, {unix.IFLA_VXLAN_COLLECT_METADATA, 0, "external"},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, 0, "udp6zerocsumtx"}, {unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 0, "udp6zerocsumrx"},
		{unix.IFLA_VXLAN_REMCSUM_TX, 0, "remcsumtx"}, {unix.IFLA_VXLAN_REMCSUM_RX, 0, "remcsumrx"},
		{unix.IFLA_VXLAN_GBP, 0, "gbp"}, {unix.IFLA_VXLAN_GPE, 0, "gpe"}, {unix.IFLA_VXLAN_VNIFILTER, 0, "vnifilter"}, {unix.IFLA_VXLAN_LOCALBYPASS, 1, "nolocalbypass"},
	} {
		switch {
		case a.typ != typ || value == a.ours:
		case strings.Contains(a.words, "%"):
			return fmt.Sprintf(a.words, value)
		default:
			return a.words
		}
	}
	return ""
}

// links returns the links whose names are wanted.
func (v *view) links(wanted func(name string) bool) ([]Link, error) {
	devices, err := v.all()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, d := range devices {
		if wanted(d.Name) {
			out = append(out, v.link(d))
		}
	}
	return out, nil
}

// observeLinks reads the desired links and our links.
func (v *view) observeLinks(scope Scope, desired []Link) ([]Link, error) {
	var names []string
	for _, l := range desired {
		if !slices.Contains(names, l.Name) { // a link that is observed twice would be deleted once
			names = append(names, l.Name)
		}
	}
	for _, name := range scope.Links {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if scope.Rules {
		if !v.whole {
			if _, err := v.all(); err != nil {
				return nil, err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v.byName)) {
			if d := v.byName[name]; d.VLAN != nil && !d.VLAN.Foreign && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	var out []Link
	var errs []error
	for _, name := range names {
		d, ok, err := v.named(name)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			out = append(out, v.link(d))
		}
	}
	return out, errors.Join(errs...)
}

// overlayPrefix begins the names of the overlay's links.
const overlayPrefix = "edgeway."

// ours reports whether this project gives links such a name.
func ours(name string) bool {
	return strings.HasPrefix(name, "ew") || strings.HasPrefix(name, overlayPrefix)
}
