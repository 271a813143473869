package routes

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Most settings can be read from rtnetlink answers. That takes a tenth of the time of entering the
// namespace and opening a file for each: in a new namespace the kernel creates the whole directory
// when the first file is opened (fs/proc/proc_sysctl.c).

// Attributes and indexes of linux/netconf.h, linux/if_link.h, linux/ip.h and linux/ipv6.h.
const (
	netconfIfIndex    = 1 // NETCONFA_IFINDEX
	netconfForwarding = 2 // NETCONFA_FORWARDING
	netconfRPFilter   = 3 // NETCONFA_RP_FILTER
	netconfAll        = 0xffffffff
)

// linkSettings returns the place of a setting in a link's description, by family and name. The place of an
// IPv4 setting is its number minus one, because the numbers start at 1 (net/ipv4/devinet.c).
func linkSettings(family, name string) (at int, ok bool) {
	switch family + " " + name {
	case "ipv4 forwarding", "ipv6 forwarding":
		return 0, true
	case "ipv4 accept_redirects", "ipv6 accept_ra":
		return 3, true
	case "ipv4 arp_notify":
		return 21, true
	case "ipv6 accept_redirects":
		return 4, true
	case "ipv6 disable_ipv6":
		return 26, true
	case "ipv6 accept_dad":
		return 27, true
	case "ipv6 ndisc_notify":
		return 29, true
	}
	return 0, false
}

// told reads a setting without opening its file. known is false if only the file has the value. The value
// is "" if the link does not exist and so has no settings.
func (v *view) told(key string) (value string, known bool) {
	switch key {
	case v4Forwarding:
		return v.forwards(unix.AF_INET)
	case v6Forwarding:
		return v.forwards(unix.AF_INET6)
	}
	family, link, at, ok := linkSetting(key)
	if !ok {
		return "", false
	}
	if _, there, err := v.named(link); err == nil && !there {
		return "", true
	}
	conf := v.linkConf(link)
	values, ok := conf[family]
	if !ok && len(conf) > 0 && isRefusal(key) {
		return "0", true // a link without IPv6 accepts nothing
	}
	if len(values) < 4*(at+1) {
		return "", false
	}
	return strconv.Itoa(int(int32(binary.NativeEndian.Uint32(values[4*at:])))), true
}

// linkSetting splits a key like net/ipv6/conf/LINK/accept_ra. ok is false if a link's description does not
// have the setting, or linkSettings does not know its place.
func linkSetting(key string) (family, link string, at int, ok bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 5 || parts[2] != "conf" {
		return "", "", 0, false
	}
	at, ok = linkSettings(parts[1], parts[4])
	return parts[1], parts[3], at, ok
}

// settingMessage sets an IPv4 setting of a link by netlink, without a visit to the namespace
// (net/ipv4/devinet.c: inet_set_link_af). IPv6 has no such message. The message is right only for settings
// whose file has no other effect when it is written: all in linkSettings but forwarding.
func (v *view) settingMessage(s Sysctl) (m message, ok bool) {
	family, link, at, ok := linkSetting(s.Key)
	if !ok || family != "ipv4" || strings.HasSuffix(s.Key, "/forwarding") {
		return nil, false
	}
	value, err := strconv.ParseUint(s.Value, 10, 31)
	if err != nil {
		return nil, false
	}
	index, err := v.index(link)
	if err != nil {
		return nil, false
	}
	return linkHeader(unix.RTM_NEWLINK, index).nest(unix.IFLA_AF_SPEC, func(m message) message {
		return m.nest(unix.AF_INET, func(m message) message {
			return m.nest(unix.IFLA_INET_CONF, func(m message) message { return m.attr32(uint16(at)+1, uint32(value)) })
		})
	}), true
}

// forwards reads the forwarding setting of the whole namespace.
func (v *view) forwards(family uint8) (string, bool) { return v.everywhere(family, netconfForwarding) }

// everywhere reads a setting of the whole namespace: net/ipv4/conf/all/...
func (v *view) everywhere(family uint8, setting uint16) (string, bool) {
	if v.quiet {
		return "", false
	}
	m := newMessage(unix.RTM_GETNETCONF, 0, []byte{family, 0, 0, 0}).attr32(netconfIfIndex, netconfAll)
	body, err := v.c.get(m)
	if err != nil || len(body) < 4 {
		return "", false
	}
	for typ, value := range attrs(body[4:]) { // after struct netconfmsg
		if typ == setting {
			return strconv.Itoa(int(int32(attrUint32(value)))), true
		}
	}
	return "", false
}

// linkConf returns a link's settings by family. It asks the kernel once.
func (v *view) linkConf(link string) map[string][]byte {
	if _, ok := v.conf[link]; !ok && !v.quiet {
		_, _, _ = v.fetch(link) // after an error the settings are not known
	}
	return v.conf[link]
}

// noteConf keeps the settings in a link's description.
func (v *view) noteConf(link string, description []byte) {
	for typ, value := range attrs(description[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_AF_SPEC {
			v.conf[link] = parseConf(value)
		}
	}
}

// parseIPv4Conf returns what a link's settings say about IPv4: whether forwarding is off, and rp_filter.
func parseIPv4Conf(b []byte) (closed bool, rpFilter uint32) {
	const forwarding, reversePath = 0, 7 // see linkSettings
	values := parseConf(b)["ipv4"]
	if len(values) < 4*(reversePath+1) {
		return false, 0
	}
	return binary.NativeEndian.Uint32(values[4*forwarding:]) == 0, binary.NativeEndian.Uint32(values[4*reversePath:])
}

func parseConf(b []byte) map[string][]byte {
	conf := map[string][]byte{}
	for family, of := range attrs(b) {
		for typ, values := range attrs(of) {
			switch {
			case family == unix.AF_INET && typ == unix.IFLA_INET_CONF:
				conf["ipv4"] = values
			case family == unix.AF_INET6 && typ == unix.IFLA_INET6_CONF:
				conf["ipv6"] = values
			}
		}
	}
	return conf
}
