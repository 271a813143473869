package cluster

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/bits"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// EdgeNode (network.edgeway.io/v1alpha1) holds what concerns one node only. It has the name of the Node, and
// at an API server only that node's daemon watches it. A node with static uplinks also reads, now and then, which other
// EdgeNodes share an address with its own. Nodes write the status and never the spec.
type EdgeNode struct {
	Name string `json:"name"`
	// Generation counts the changes of the spec at an API server. It is not saved; 0: not known.
	Generation int64 `json:"-"`
	// Uplinks is nil on a node whose pods have addresses of pod CIDRs.
	Uplinks *Uplinks `json:"uplinks,omitempty"`
	Origin  string   `json:"origin,omitempty"`
}

// Ref names the resource as messages do: "EdgeNode/shop-7".
func (e EdgeNode) Ref() string { return kindEdgeNode + "/" + e.Name }

// Uplinks are the secondary interfaces of a node whose pods have addresses of these interfaces. Its JSON is
// spec.uplinks of the resource, with the defaults filled in. IPv6 addresses are there with ProviderStatic only.
type Uplinks struct {
	Provider Provider `json:"provider"`
	Egress   Egress   `json:"egress"`
	// Inside are the destinations that pods reach by their uplink where Egress is EgressNode.
	Inside []netip.Prefix `json:"inside,omitempty"`
	// Mark is the bit of packets' marks for connections that did not come by an uplink; 0: the node's own choice.
	Mark       uint32   `json:"mark,omitempty"`
	Interfaces []Uplink `json:"interfaces"`
}

// Provider says who writes spec.uplinks.
type Provider string

// The providers: a person, or the controller that copies the interfaces of an instance of Alibaba's ENS, or of its ECS.
const (
	ProviderStatic Provider = "static"
	ProviderENS    Provider = "ens"
	ProviderECS    Provider = "ecs"
)

// HostPods is how many pods of the host network a node with uplinks is taken to have: they need no address, and the
// kubelet's maxPods counts them.
const HostPods = 10

// Egress says how packets of pods leave the node.
type Egress string

// The egresses: every packet by the pod's uplink, or only packets to Uplinks.Inside, and the others by the
// node's own default route with the node's address.
const (
	EgressUplink Egress = "uplink"
	EgressNode   Egress = "node"
)

// Uplink is one secondary interface with addresses of one family: exactly one of MAC, Name and VLAN is set. An interface
// with both families is two Uplinks.
type Uplink struct {
	MAC     string       `json:"mac,omitempty"` // in lower case: "00:16:3e:08:60:0a"
	Name    string       `json:"name,omitempty"`
	VLAN    VLAN         `json:"vlan,omitzero"` // the node makes the link
	ID      string       `json:"id,omitempty"`  // of the cloud's interface
	Address netip.Addr   `json:"address"`       // the interface's own, which no pod gets
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
	// AnswerARP: the node answers ARP requests, or neighbour solicitations, for the addresses of its pods, as no cloud
	// does it.
	AnswerARP bool `json:"answerARP"`
	// OnLink: pods reach the subnet directly, and not by the gateway.
	OnLink    bool           `json:"onLink"`
	Addresses []AddressRange `json:"addresses,omitempty"` // granted to pods
	Withdrawn []Withdrawal   `json:"withdrawn,omitempty"`
}

// VLAN is a tag of IEEE 802.1Q on the frames of the interface Parent.
type VLAN struct {
	Parent string `json:"parent"`
	ID     uint16 `json:"id"` // 1 to 4094
}

// LinkName returns the name of the link; "" if the MAC says which link it is. The link of a VLAN is "eth0.100". Where that
// is too long for the kernel, the name has the first characters of the parent's name, and a hash of the rest.
func (u Uplink) LinkName() string {
	if u.VLAN == (VLAN{}) {
		return u.Name
	}
	parent, id := u.VLAN.Parent, fmt.Sprintf(".%d", u.VLAN.ID)
	if len(parent)+len(id) > maxLinkName {
		h := fnv.New32a()
		h.Write([]byte(parent))
		id = fmt.Sprintf("-%04x", h.Sum32()&0xffff) + id
		parent = parent[:maxLinkName-len(id)]
	}
	return parent + id
}

// maxLinkName is the length of the longest name of a link in bytes (linux/if.h: IFNAMSIZ, with a zero byte).
const maxLinkName = 15

// V6 reports whether the addresses are IPv6.
func (u Uplink) V6() bool { return u.Subnet.Addr().Is6() }

// Withdrawal takes an address back: no pod gets it again under this token, and the status says when no pod
// has it any more.
type Withdrawal struct {
	Address netip.Addr `json:"address"`
	Token   string     `json:"token"`
}

// AddressRange is a range of addresses with both ends. Its text is an address, "10.0.0.40-10.0.0.55", or a
// CIDR, of which it has every address.
type AddressRange struct{ First, Last netip.Addr }

// EdgeNodeStatus is the part of an EdgeNode's status about its uplinks, which controllers read too. Package report
// has the other parts. Only the node's own daemon writes the status.
type EdgeNodeStatus struct {
	Uplinks *UplinksStatus `json:"uplinks,omitempty"`
}

// UplinksStatus is status.uplinks of an EdgeNode.
type UplinksStatus struct {
	// Confirmed are the withdrawals whose address no pod has, and which the node will not lease: that is on the
	// node's disk.
	Confirmed  []Withdrawal   `json:"confirmed,omitempty"`
	Interfaces []UplinkStatus `json:"interfaces,omitempty"` // in the order of the spec
	Used       int            `json:"used"`                 // addresses that pods have
	Free       int            `json:"free"`                 // addresses for more pods
}

// UplinkStatus says how one interface of the spec is on the node.
type UplinkStatus struct {
	MAC   string      `json:"mac,omitempty"`
	Name  string      `json:"name,omitempty"` // as the spec has it, or of the VLAN's link
	Link  string      `json:"link,omitempty"` // the interface's present name
	State UplinkState `json:"state"`
}

// UplinkState is the state of an interface.
type UplinkState string

// The states of an interface. Missing: the node has no such interface.
const (
	InterfaceUp      UplinkState = "Up"
	InterfaceDown    UplinkState = "Down"
	InterfaceMissing UplinkState = "Missing"
)

// maxRange bounds the addresses of one entry of spec.uplinks.interfaces[].addresses.
const maxRange = 4096

// EdgeNode returns the EdgeNode with that name.
func (w World) EdgeNode(name string) (EdgeNode, bool) {
	for _, e := range w.EdgeNodes {
		if e.Name == name {
			return e, true
		}
	}
	return EdgeNode{}, false
}

// Contains reports whether the range has the address.
func (r AddressRange) Contains(a netip.Addr) bool {
	return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String returns an address, or both ends with "-" between them.
func (r AddressRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// MarshalText returns String.
func (r AddressRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads an address, two addresses with "-" between them, or a CIDR without host bits.
func (r *AddressRange) UnmarshalText(text []byte) error {
	s := string(text)
	first, last, isRange := strings.Cut(s, "-")
	prefix, err := netip.ParsePrefix(s)
	if err == nil {
		if !hostAddr(prefix.Addr()) || prefix != prefix.Masked() {
			return fmt.Errorf("addresses %q: want a CIDR without host bits", s)
		}
		first, last = prefix.Addr().String(), lastOf(prefix).String()
	} else if !isRange {
		last = first
	}
	a, errA := netip.ParseAddr(first)
	b, errB := netip.ParseAddr(last)
	if errA != nil || errB != nil || dotted(s) || !hostAddr(a) || !hostAddr(b) || a.Is4() != b.Is4() || b.Less(a) || apart(a, b) >= maxRange {
		return fmt.Errorf("addresses %q: want an address, a range 10.0.0.40-10.0.0.55 or a CIDR 10.0.0.64/28, of at most %d addresses", s, maxRange)
	}
	*r = AddressRange{a, b}
	return nil
}

// apart is b - a, at most math.MaxUint64. Both are of one family, and a is not the greater one.
func apart(a, b netip.Addr) uint64 {
	x, y := a.As16(), b.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(y[8:]), binary.BigEndian.Uint64(x[8:]), 0)
	if high, _ := bits.Sub64(binary.BigEndian.Uint64(y[:8]), binary.BigEndian.Uint64(x[:8]), borrow); high != 0 {
		return math.MaxUint64
	}
	return low
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// hostAddr reports whether a host of a LAN can have the address: RFC 1122, section 3.2.1.3; in IPv6 global unicast (RFC
// 4291, section 2.4, as it is given out) and unique local (RFC 4193).
func hostAddr(a netip.Addr) bool {
	b := a.AsSlice()
	if a.Is4() {
		return b[0] >= 1 && b[0] <= 223 && b[0] != 127
	}
	return a.Is6() && a.Zone() == "" && (b[0]&0xe0 == 0x20 || b[0]&0xfe == 0xfc)
}

// readEdgeNode reads an EdgeNode. Its status is not read.
func readEdgeNode(root mapping, name string) EdgeNode {
	root.mapping(objectKeys...)
	meta := root.at("metadata").mapping(metadataKeys...)
	e := EdgeNode{Name: name, Generation: int64(meta.at("generation").number(badValue, 0, math.MaxInt64))}
	uplinks := root.at("spec").mapping("uplinks").at("uplinks").mapping("provider", "egress", "inside", "mark", "interfaces")
	if uplinks.absent() {
		return e
	}
	uplinks.require("provider", "interfaces")
	u := Uplinks{
		Provider: Provider(uplinks.at("provider").oneOf(string(ProviderStatic), string(ProviderENS), string(ProviderECS))),
		Egress:   Egress(uplinks.at("egress").oneOf(string(EgressUplink), string(EgressNode))),
	}
	if u.Egress == "" {
		u.Egress = EgressUplink
	}
	inside := uplinks.at("inside")
	for _, f := range inside.list() {
		u.Inside = append(u.Inside, f.uplinkCIDR())
	}
	if len(u.Inside) > 0 && u.Egress != EgressNode {
		inside.bad(badValue, "spec.uplinks.inside only with egress: node", "egress: "+string(u.Egress))
	}
	u.Mark = uplinks.at("mark").bit()
	for _, f := range uplinks.at("interfaces").items("interface") {
		one := readUplink(f, u.Provider == ProviderStatic)
		for _, o := range u.Interfaces {
			switch {
			case one.LinkName() == "" || one.LinkName() != o.LinkName() || one.V6() != o.V6():
			case one.VLAN != (VLAN{}) && o.VLAN != (VLAN{}):
				f.bad(badValue, "each VLAN once, for each family, in spec.uplinks.interfaces", fmt.Sprintf("VLAN %d of %s twice", one.VLAN.ID, one.VLAN.Parent))
			case one.VLAN != o.VLAN:
				vlan := cmp.Or(one.VLAN, o.VLAN)
				f.bad(badValue, "each VLAN once, for each family, in spec.uplinks.interfaces", fmt.Sprintf("VLAN %d of %s, and name: %s, which is its link", vlan.ID, vlan.Parent, one.LinkName()))
			}
		}
		u.Interfaces = append(u.Interfaces, one)
	}
	if v6 := u.firstV6(); v6.IsValid() && u.Provider != ProviderStatic {
		uplinks.bad(badValue, "IPv4 addresses in spec.uplinks, as the provider "+string(u.Provider)+" has no others", v6.String())
	}
	e.Uplinks = &u
	return e
}

var (
	macPattern  = regexp.MustCompile(`^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$`)
	linkPattern = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.@]{0,14}$`)
)

const nameOfInterface = "the name of an interface, of at most 15 characters"

// IsLinkName reports whether an EdgeNode may name a link so: no pattern, and no more than one name.
func IsLinkName(name string) bool { return linkPattern.MatchString(name) }

// readUplink reads one interface. A plain LAN needs what a cloud's network does itself, so answerARP and
// onLink are true by default where static is.
func readUplink(f field, static bool) Uplink {
	m := f.mapping("mac", "name", "vlan", "id", "address", "subnet", "gateway", "answerARP", "onLink", "addresses", "withdrawn")
	m.require("address", "subnet", "gateway")
	var by []string
	for _, key := range []string{"mac", "name", "vlan"} {
		if !m.at(key).absent() {
			by = append(by, key)
		}
	}
	if len(by) != 1 && !m.absent() {
		f.bad(badValue, "one of mac, name and vlan"+m.inPath(), cmp.Or(strings.Join(by, " and "), "none"))
	}
	vlan := m.at("vlan").mapping("parent", "id")
	vlan.require("parent", "id")
	u := Uplink{
		MAC:     strings.ToLower(m.at("mac").matching(macPattern, "the MAC of one interface (00:16:3e:08:60:0a)")),
		Name:    m.at("name").matching(linkPattern, nameOfInterface),
		VLAN:    VLAN{Parent: vlan.at("parent").matching(linkPattern, nameOfInterface), ID: uint16(vlan.at("id").number(badValue, 1, 4094))},
		ID:      m.at("id").text(),
		Address: m.at("address").uplinkAddr(hostAddr), Gateway: m.at("gateway").uplinkAddr(router), Subnet: m.at("subnet").uplinkCIDR(),
		AnswerARP: static, OnLink: static,
	}
	if u.MAC == "00:00:00:00:00:00" || u.Name == "lo" || u.VLAN.Parent == "lo" {
		f.bad(badValue, "an interface to a network"+m.inPath(), "the loopback interface")
	}
	if answer := m.at("answerARP"); !answer.absent() {
		u.AnswerARP = answer.boolean()
	}
	if onLink := m.at("onLink"); !onLink.absent() {
		u.OnLink = onLink.boolean()
	}
	for _, f := range m.at("addresses").list() {
		var r AddressRange
		if text := f.text(); r.UnmarshalText([]byte(text)) != nil {
			f.badText(badAddress, fmt.Sprintf("an address, a range (10.0.0.40-10.0.0.55) or a CIDR (10.0.0.64/28), of at most %d addresses", maxRange))
		}
		u.Addresses = append(u.Addresses, r)
	}
	for _, f := range m.at("withdrawn").list() {
		w := f.mapping("address", "token")
		w.require("address", "token")
		token := w.at("token")
		if !token.absent() && token.text() == "" {
			token.badText(badValue, "a token")
		}
		u.Withdrawn = append(u.Withdrawn, Withdrawal{Address: w.at("address").uplinkAddr(hostAddr), Token: token.text()})
	}
	if other := u.ofOtherFamily(); other.IsValid() {
		f.bad(badValue, "addresses of one family"+m.inPath()+"; an interface with both families is two entries", u.Subnet.String()+" and "+other.String())
	}
	return u
}

// ofOtherFamily returns an address that is of another family than the subnet.
func (u Uplink) ofOtherFamily() netip.Addr {
	all := []netip.Addr{u.Address, u.Gateway}
	for _, r := range u.Addresses {
		all = append(all, r.First)
	}
	for _, w := range u.Withdrawn {
		all = append(all, w.Address)
	}
	at := slices.IndexFunc(all, func(a netip.Addr) bool { return u.Subnet.IsValid() && a.IsValid() && a.Is4() != u.Subnet.Addr().Is4() })
	if at < 0 {
		return netip.Addr{}
	}
	return all[at]
}

// othersMarks are bits of programs that most nodes have. portmap (markMasqBit 13) and kube-proxy (iptables.masqueradeBit 14)
// give packets with them the node's address, and the kubelet's chain KUBE-MARK-DROP drops those with 0x8000.
const othersMarks = 0x2000 | 0x4000 | 0x8000

// bit reads a number that has one bit, in decimal, or in hexadecimal as firewalls show marks.
func (f field) bit() uint32 {
	if f.absent() {
		return 0
	}
	n, err := strconv.ParseUint(f.node.Value, 0, 31)
	if err != nil || bits.OnesCount64(n) != 1 || f.node.Tag != "!!int" || n&othersMarks != 0 {
		f.badText(badValue, "one bit, such as 32 or 0x40, and not 0x2000 (portmap), 0x4000 or 0x8000 (kube-proxy)")
		return 0
	}
	return uint32(n)
}

// oneOf reads one of the words.
func (f field) oneOf(words ...string) string {
	s := f.text()
	if !f.absent() && !slices.Contains(words, s) {
		f.badText(badValue, strings.Join(words[:len(words)-1], ", ")+" or "+words[len(words)-1])
	}
	return s
}

// matching reads a text of the pattern.
func (f field) matching(pattern *regexp.Regexp, want string) string {
	s := f.text()
	if !f.absent() && !pattern.MatchString(s) {
		f.badText(badValue, want)
	}
	return s
}

// firstV6 returns what is IPv6.
func (u Uplinks) firstV6() netip.Prefix {
	all := slices.Clone(u.Inside)
	for _, i := range u.Interfaces {
		all = append(all, i.Subnet)
	}
	if at := slices.IndexFunc(all, func(p netip.Prefix) bool { return p.Addr().Is6() }); at >= 0 {
		return all[at]
	}
	return netip.Prefix{}
}

// router reports whether a router can have the address. In IPv6 it may be link-local.
func router(a netip.Addr) bool {
	return hostAddr(a) || a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == ""
}

// dotted reports whether an IPv6 address is written with an IPv4 address in it, which the schema of the resource lacks.
func dotted(text string) bool { return strings.Contains(text, ":") && strings.Contains(text, ".") }

// uplinkAddr reads an address.
func (f field) uplinkAddr(ok func(netip.Addr) bool) netip.Addr {
	if f.absent() {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(f.text())
	if err != nil || !ok(a) || dotted(f.text()) {
		f.badText(badAddress, "the address of a host")
		return netip.Addr{}
	}
	return a
}

// uplinkCIDR reads a CIDR without host bits.
func (f field) uplinkCIDR() netip.Prefix {
	if f.absent() {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(f.text())
	switch {
	case err != nil || !hostAddr(p.Addr()) || p.Bits() == 0 || dotted(f.text()):
		f.badText(badCIDR, "a CIDR (10.0.0.0/24)")
	case p != p.Masked():
		f.badText(badCIDR, p.Masked().String()+" (no host bits)")
	default:
		return p
	}
	return netip.Prefix{}
}
