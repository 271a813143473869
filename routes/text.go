package routes

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String returns the name that ip prints (iproute2, etc/iproute2/rt_protos).
func (p Protocol) String() string {
	names := map[Protocol]string{
		0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 11: "zebra", 12: "bird",
		16: "dhcp", 18: "keepalived", 42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
	}
	if name, ok := names[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// String returns the route as ip route prints it.
func (r Route) String() string {
	var b strings.Builder
	if r.Type != "" {
		b.WriteString(r.Type + " ")
	}
	b.WriteString(prefixText(r.Dst))
	if r.Via.IsValid() {
		b.WriteString(" via " + r.Via.String())
	}
	if r.Link != "" {
		b.WriteString(" dev " + r.Link)
	}
	if r.Table != 0 && r.Table != mainTable {
		b.WriteString(" table " + strconv.Itoa(r.Table))
	}
	if r.Type != TypeNeighbour && r.Type != TypeLearned {
		b.WriteString(" proto " + r.Protocol.String())
	}
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"metric", r.Metric}, {"mtu", r.MTU}, {"advmss", r.AdvMSS}} {
		if n.value != 0 {
			fmt.Fprintf(&b, " %s %d", n.name, n.value)
		}
	}
	if r.Onlink {
		b.WriteString(" onlink")
	}
	if r.Multipath {
		b.WriteString(" multipath")
	}
	return b.String()
}

func prefixText(p netip.Prefix) string {
	switch {
	case p.IsValid() && p.Bits() == 0:
		return "default"
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// String returns the link in the words of ip link add.
func (l Link) String() string {
	var b strings.Builder
	b.WriteString(l.Name)
	if l.MAC != "" {
		b.WriteString(" address " + l.MAC)
	}
	if l.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", l.MTU)
	}
	if l.Up {
		b.WriteString(" up")
	} else {
		b.WriteString(" down")
	}
	if l.Alias != "" {
		fmt.Fprintf(&b, " alias %q", l.Alias)
	}
	if l.Kind != "" {
		b.WriteString(" type " + l.Kind)
	}
	if v := l.VXLAN; v != nil {
		fmt.Fprintf(&b, " id %d", v.VNI)
		if v.Local.IsValid() {
			fmt.Fprintf(&b, " local %v", v.Local)
		}
		fmt.Fprintf(&b, " dstport %d", v.Port)
		if v.Learning {
			b.WriteString(" learning")
		} else {
			b.WriteString(" nolearning")
		}
		if v.Other != "" {
			b.WriteString(" " + v.Other)
		}
	}
	if v := l.VLAN; v != nil {
		fmt.Fprintf(&b, " id %d dev %s", v.ID, v.Parent)
	}
	if p := l.Peer; p != nil {
		b.WriteString(" peer " + p.Name)
		if p.MAC != "" {
			b.WriteString(" address " + p.MAC)
		}
	}
	return b.String()
}

func (a Addr) String() string {
	s := a.Prefix.String()
	switch {
	case a.HostScope && a.Prefix.Addr().Is6():
		s += " deprecated"
	case a.HostScope:
		s += " scope host"
	}
	return s + " dev " + a.Link
}

func (n Neigh) String() string {
	s := n.IP.String() + " lladdr " + n.MAC + " dev " + n.Link
	if n.Learns {
		return s + " extern_learn"
	}
	return s + " nud permanent"
}

// String returns the entry as bridge fdb prints it.
func (f FDB) String() string {
	s := f.MAC + " dev " + f.Link + " dst " + f.Dst.String()
	if f.Port != 0 {
		s += " port " + strconv.Itoa(int(f.Port))
	}
	if f.VNI != 0 {
		s += " vni " + strconv.Itoa(int(f.VNI))
	}
	if f.Temporary {
		s += " temporary"
	}
	return s
}

// String returns the setting as sysctl.conf writes it.
func (s Sysctl) String() string { return s.Key + " = " + s.Value }

func (n NAT) String() string {
	s := fmt.Sprintf("table inet %s sources %v exclude %v", tableName, n.Sources, n.Exclude)
	if n.Off {
		s = fmt.Sprintf("table inet %s sources %v off", tableName, n.Sources)
	}
	if len(n.Nodes) > 0 {
		s += fmt.Sprintf(" except nodes %v", n.Nodes)
	}
	if n.Damaged {
		s += " damaged"
	}
	return s
}

// String names the first senders only: a node among 5,000 has 10,000 of them, and a log line is for people.
func (s Senders) String() string {
	const named = 16
	text := fmt.Sprintf("table inet %s vni %d port %d from %v", sendersTable, s.VNI, s.Port, s.From[:min(len(s.From), named)])
	if more := len(s.From) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if s.Damaged {
		text += " damaged"
	}
	return text
}

func (s SourceCheck) String() string {
	text := "table inet " + sourceTable + ": pods send from their own addresses alone"
	if s.Damaged {
		text += ", damaged"
	}
	return text
}

func (m Masq) String() string {
	s := "masquerade of " + m.Addr.String()
	if len(m.Networks) > 0 {
		s += fmt.Sprintf(" outside of %v", m.Networks)
	}
	return s
}

// String returns the change in an operator's words: "add route 10.10.2.0/24 via 10.0.0.12 dev eth0
// proto 119".
func (c Change) String() string {
	s := string(c.Op) + " " + objectText(c.Object)
	if c.Was != nil {
		s += " (was " + fmt.Sprint(c.Was) + ")"
	}
	return s
}

// Kind returns the operation and the kind of the object: "add route".
func (c Change) Kind() string { return strings.TrimSpace(string(c.Op) + " " + noun(c.Object)) }

// objectText puts the noun before the object.
func objectText(o any) string { return noun(o) + fmt.Sprint(o) }

// noun returns the noun of the object and a blank, or "" where the object's text begins with a noun.
func noun(o any) string {
	switch o.(type) {
	case Link:
		return "link "
	case Addr:
		return "address "
	case Route:
		return "route "
	case Rule:
		return "rule "
	case Neigh, ProxyNeigh:
		return "neighbour "
	case FDB:
		return "fdb "
	case Sysctl:
		return "sysctl "
	case NAT:
		return "nat "
	case Passage:
		return "rules in "
	}
	return ""
}

// String returns the state, one object a line, in the words of ip and sysctl.
func (s State) String() string {
	var b strings.Builder
	list := func(word string, n int, item func(int) string) {
		for i := range n {
			fmt.Fprintln(&b, strings.TrimPrefix(word+" "+item(i), " "))
		}
	}
	list("link", len(s.Links), func(i int) string { return s.Links[i].String() })
	list("addr", len(s.Addrs), func(i int) string { return s.Addrs[i].String() })
	list("route", len(s.Routes), func(i int) string { return s.Routes[i].String() })
	list("rule", len(s.Rules), func(i int) string { return s.Rules[i].String() })
	list("neigh", len(s.Neighs), func(i int) string { return s.Neighs[i].String() })
	list("neigh", len(s.Proxies), func(i int) string { return s.Proxies[i].String() })
	list("fdb", len(s.FDB), func(i int) string { return s.FDB[i].String() })
	list("sysctl", len(s.Sysctls), func(i int) string { return s.Sysctls[i].String() })
	if s.NAT != nil {
		fmt.Fprintln(&b, s.NAT.String())
	}
	if s.Senders != nil {
		fmt.Fprintln(&b, s.Senders.String())
	}
	if s.SourceCheck != nil {
		fmt.Fprintln(&b, s.SourceCheck.String())
	}
	if s.Symmetric != nil {
		fmt.Fprintln(&b, s.Symmetric.String())
	}
	if s.Announced != nil {
		fmt.Fprintln(&b, s.Announced.String())
	}
	list("passage", len(s.Passages), func(i int) string { return s.Passages[i].String() })
	list("", len(s.Masq), func(i int) string { return s.Masq[i].String() })
	return b.String()
}
