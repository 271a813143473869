package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// snapshot is the state of a network namespace, with one line for each object.
type snapshot map[string]bool

// minus returns the lines of s that are not in o, sorted.
func (s snapshot) minus(o snapshot) (out []string) {
	for _, line := range slices.Sorted(maps.Keys(s)) {
		if !o[line] {
			out = append(out, line)
		}
	}
	return out
}

// look reads links, addresses, routes, permanent neighbours, rules, and nftables.
func (s *space) look() (snapshot, error) {
	out := snapshot{}
	links, err := s.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		line := "link " + l.Attrs().Name + " " + l.Type()
		if m := names[l.Attrs().MasterIndex]; m != "" {
			line += " in " + m
		}
		out[line] = true
	}
	addrs, err := s.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			out[fmt.Sprintf("addr %s on %s", a.IPNet, names[a.LinkIndex])] = true
		}
	}
	if err := s.lookRoutes(out, names); err != nil {
		return nil, err
	}
	for i := range names {
		neighs, err := s.nl.NeighList(i, netlink.FAMILY_ALL)
		if err != nil {
			continue // the link has just gone
		}
		for _, n := range neighs {
			if n.State&unix.NUD_PERMANENT != 0 && !n.IP.IsMulticast() {
				out[fmt.Sprintf("neigh %s on %s", n.IP, names[n.LinkIndex])] = true
			}
		}
	}
	s.lookRules(out)
	return out, nil
}

func (s *space) lookRoutes(out snapshot, names map[int]string) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := s.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Table == unix.RT_TABLE_LOCAL || r.Dst != nil && (r.Dst.IP.IsMulticast() || r.Dst.IP.IsLinkLocalUnicast()) {
				continue
			}
			line := "route " + dstOf(r)
			if r.Gw != nil {
				line += " via " + r.Gw.String()
			}
			out[fmt.Sprintf("%s dev %s table %d", line, names[r.LinkIndex], r.Table)] = true
		}
		rules, err := s.nl.RuleList(family)
		if err != nil {
			return fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range rules {
			out[fmt.Sprintf("rule %d: from %v table %d", r.Priority, r.Src, r.Table)] = true
		}
	}
	return nil
}

func dstOf(r netlink.Route) string {
	if r.Dst == nil {
		return "default"
	}
	if ones, _ := r.Dst.Mask.Size(); ones == 0 {
		return "default"
	}
	return r.Dst.String()
}

// lookRules adds nftables to the snapshot: rules by their number in the chain, elements by their key.
// Objects that the kernel does not list are left out. The separate tables of iptables are not read.
func (s *space) lookRules(out snapshot) {
	c, err := nftables.New(nftables.WithNetNSFd(int(s.File.Fd())))
	if err != nil {
		return
	}
	tables, _ := c.ListTables()
	for _, t := range tables {
		name := fmt.Sprintf("nft %d %s", t.Family, t.Name)
		sets, _ := c.GetSets(t)
		for _, set := range sets {
			if set.Anonymous {
				continue
			}
			out[name+" set "+set.Name] = true
			elements, _ := c.GetSetElements(set)
			for _, e := range elements {
				out[fmt.Sprintf("%s set %s element %x", name, set.Name, e.Key)] = true
			}
		}
	}
	chains, _ := c.ListChains()
	for _, ch := range chains {
		name := fmt.Sprintf("nft %d %s chain %s", ch.Table.Family, ch.Table.Name, ch.Name)
		out[name] = true
		rules, _ := c.GetRules(ch.Table, ch)
		for i := range rules {
			out[fmt.Sprintf("%s rule %d", name, i+1)] = true
		}
	}
}

// rules returns the lines about firewall rules.
func (s snapshot) rules() (out []string) {
	for _, line := range slices.Sorted(maps.Keys(s)) {
		if strings.HasPrefix(line, "nft ") {
			out = append(out, line)
		}
	}
	return out
}

func (t *T) snap() snapshot {
	s, err := t.host.look()
	t.OK(err, "look at the host")
	return s
}

// quiet attaches and detaches one pod, so that all objects that a network keeps for all pods exist. It
// returns a snapshot of the host.
func (t *T) quiet() snapshot {
	p, _ := t.addPod()
	t.del(p)
	s := t.snap()
	if t.daemon != nil {
		// A daemon chooses when to add and remove objects that serve all pods.
		maps.Copy(t.calm, s)
		maps.Copy(s, t.calm)
	}
	return s
}

// nothingNew fails if the host has objects that it did not have before.
func (t *T) nothingNew(before snapshot, what string) {
	if left := t.left(before); len(left) > 0 {
		t.Errorf("%s leaves on the host: %s", what, strings.Join(left, ", "))
	}
}

// noNewRules is nothingNew for firewall rules only.
func (t *T) noNewRules(before snapshot, what string) {
	left := slices.DeleteFunc(t.left(before), func(line string) bool { return !strings.HasPrefix(line, "nft ") })
	if len(left) > 0 {
		t.Errorf("%s leaves on the host: %s", what, strings.Join(left, ", "))
	}
}

// left returns the objects that the host did not have before. A daemon gets some time to remove objects
// that serve all pods.
func (t *T) left(before snapshot) []string {
	left := t.snap().minus(before)
	if len(left) > 0 && t.daemon != nil {
		t.eventually(before)
		left = t.snap().minus(before)
	}
	return left
}

// noNewVeth fails if the host has a new veth. A new bridge may stay.
func (t *T) noNewVeth(before snapshot) {
	for _, line := range t.snap().minus(before) {
		if strings.HasPrefix(line, "link veth") {
			t.Errorf("left on the host: %s", line)
		}
	}
}

func (t *T) noInterface(p *pod) {
	if p.link(p.ifName) != nil {
		t.Errorf("%s is in the pod", p.ifName)
	}
}

// unchanged fails if f changes the pod.
func (t *T) unchanged(p *pod, f func()) {
	before, err := p.look()
	t.OK(err, "look at the pod")
	f()
	now, err := p.look()
	t.OK(err, "look at the pod")
	if diff := append(before.minus(now), now.minus(before)...); len(diff) > 0 {
		t.Errorf("the pod changed: %s", strings.Join(diff, ", "))
	}
}

// sameAs fails if the host is not as before.
func (t *T) sameAs(before snapshot, what string) {
	now := t.snap()
	diff := append(before.minus(now), now.minus(before)...)
	if t.daemon != nil { // objects that a daemon keeps for all pods may change
		diff = slices.DeleteFunc(diff, func(line string) bool {
			return strings.HasPrefix(line, "nft ") && !strings.Contains(line, " element ")
		})
	}
	if len(diff) > 0 {
		t.Errorf("%s changes the host: %s", what, strings.Join(diff, ", "))
	}
}

func (s *space) deleteTables() error {
	c, err := nftables.New(nftables.WithNetNSFd(int(s.File.Fd())))
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		c.DelTable(t)
	}
	return c.Flush()
}
