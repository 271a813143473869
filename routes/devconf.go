package routes

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Most settings that are asked for can be read from answers of rtnetlink, for a tenth of what it
// takes to enter the namespace and to open a file for each: in a new namespace the kernel makes
// the whole directory for the first that opens one (fs/proc/proc_sysctl.c).

// Attributes and indexes of linux/netconf.h, linux/if_link.h, linux/ip.h and linux/ipv6.h.
const (
	netconfIfIndex    = 1 // NETCONFA_IFINDEX
	netconfForwarding = 2 // NETCONFA_FORWARDING
	netconfAll        = 0xffffffff

	inetConf  = 1 // IFLA_INET_CONF: one number each, from the second on (net/ipv4/devinet.c)
	inet6Conf = 2 // IFLA_INET6_CONF
)

// linkSettings are the settings of a link that its description has: family and place.
func linkSettings(family, name string) (at int, ok bool) {
	switch family + " " + name {
	case "ipv4 arp_notify":
		return 22 - 1, true // IPV4_DEVCONF_ARP_NOTIFY
	case "ipv6 disable_ipv6":
		return 26, true // DEVCONF_DISABLE_IPV6
	case "ipv6 accept_dad":
		return 27, true // DEVCONF_ACCEPT_DAD
	case "ipv6 ndisc_notify":
		return 29, true // DEVCONF_NDISC_NOTIFY
	}
	return 0, false
}

// told reads a setting without opening it; ok is false where only the file can tell.
func (v *view) told(key string) (value string, ok bool) {
	switch key {
	case "net/ipv4/ip_forward":
		return v.forwards(unix.AF_INET)
	case v6Forwarding:
		return v.forwards(unix.AF_INET6)
	}
	parts := strings.Split(key, "/") // net/ipv6/conf/LINK/NAME
	if len(parts) != 5 || parts[2] != "conf" {
		return "", false
	}
	at, ok := linkSettings(parts[1], parts[4])
	if !ok {
		return "", false
	}
	values, ok := v.linkConf(parts[3])[parts[1]]
	if !ok || len(values) < 4*(at+1) {
		return "", false
	}
	return strconv.Itoa(int(int32(binary.NativeEndian.Uint32(values[4*at:])))), true
}

// forwards asks for the forwarding of the whole namespace.
func (v *view) forwards(family uint8) (string, bool) {
	m := newMessage(unix.RTM_GETNETCONF, 0, []byte{family, 0, 0, 0}).attr32(netconfIfIndex, netconfAll)
	body, err := v.c.get(m)
	if err != nil || len(body) < 4 {
		return "", false
	}
	for typ, value := range attrs(body[4:]) { // behind struct netconfmsg
		if typ == netconfForwarding {
			return strconv.Itoa(int(int32(attrUint32(value)))), true
		}
	}
	return "", false
}

// linkConf are a link's settings by family, asked for once.
func (v *view) linkConf(link string) map[string][]byte {
	if conf, ok := v.conf[link]; ok {
		return conf
	}
	conf := map[string][]byte{}
	body, err := v.c.get(linkRequest(unix.RTM_GETLINK).attrString(unix.IFLA_IFNAME, link))
	if err == nil && len(body) >= unix.SizeofIfInfomsg {
		for typ, value := range attrs(body[unix.SizeofIfInfomsg:]) {
			if typ == unix.IFLA_AF_SPEC {
				conf = parseConf(value)
			}
		}
	}
	if v.conf == nil {
		v.conf = map[string]map[string][]byte{}
	}
	if !errors.Is(err, unix.ENODEV) {
		v.conf[link] = conf
	}
	return conf
}

func parseConf(b []byte) map[string][]byte {
	conf := map[string][]byte{}
	for family, of := range attrs(b) {
		for typ, values := range attrs(of) {
			switch {
			case family == unix.AF_INET && typ == inetConf:
				conf["ipv4"] = values
			case family == unix.AF_INET6 && typ == inet6Conf:
				conf["ipv6"] = values
			}
		}
	}
	return conf
}
