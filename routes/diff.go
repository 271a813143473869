package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	mainTable     = 254  // RT_TABLE_MAIN, linux/rtnetlink.h
	defaultMetric = 1024 // IP6_RT_PRIO_USER, net/ip6_route.h
)

// Diff returns the changes that turn observed into desired, in an order that can be applied. It is pure:
// Diff(x, x) is empty, and applying Diff(a, b) to a gives b. Observed objects that desired does not name
// are deleted, except sysctls; Observe adds such objects only if they are in scope.
//
// Links come before the objects on them, sysctls before addresses, addresses before neighbours and
// routes, routes before the rules that lead to them, and marks before the routes that marked packets must not take:
// a translated connection ends when one packet leaves by another link (net/netfilter/nf_nat_core.c: nf_nat_oif_changed).
// Deletions come last, so that a route that changes its metric or its link has no gap, and end with the links. A link that must be deleted and created again loses everything on it, which is then
// added again.
//
// A Change that must not be made already has its Err set.
func Diff(observed, desired State) []Change {
	links, dropLinks := diffLinks(observed.Links, desired.Links)
	observed = withoutRemade(observed, links)
	sysctls, _ := diff(observed.Sysctls, desired.Sysctls, sysctlsByKey())
	addrs, dropAddrs := diffAddrs(observed.Addrs, desired.Addrs)
	neighs, dropNeighs := diff(observed.Neighs, desired.Neighs, neighsByIP())
	fdb, dropFDB := diff(observed.FDB, desired.FDB, fdbByMAC())
	routes, dropRoutes := diff(observed.Routes, desired.Routes, routesByKey())
	rules, dropRules := diff(observed.Rules, desired.Rules, rulesByValue())
	proxies, dropProxies := diff(observed.Proxies, desired.Proxies, proxiesByValue())
	passages, dropPassages := diff(observed.Passages, desired.Passages, passagesByPlace())
	masq, dropMasq := diff(observed.Masq, desired.Masq, masqByAddr())
	// Senders are limited before their link is up, and until the link is about to be deleted.
	limit, unlimit := diffSenders(observed.Senders, desired.Senders), []Change(nil)
	if desired.Senders == nil {
		limit, unlimit = nil, limit
	}
	return slices.Concat(passages, dropPassages, diffSourceCheck(observed.SourceCheck, desired.SourceCheck), limit, links, sysctls, addrs, neighs, fdb, diffSymmetric(observed.Symmetric, desired.Symmetric), diffAnnounced(observed.Announced, desired.Announced), routes, rules, proxies,
		masq, dropMasq, diffNAT(observed.NAT, desired.NAT), dropProxies, dropRules, dropRoutes, dropFDB, dropNeighs, dropAddrs, unlimit, dropLinks)
}

// identity says when two objects of one kind stand in the same place, when the observed object is right,
// and whether it may be replaced.
type identity[T any, K comparable] struct {
	key     func(T) K
	right   func(got, want T) bool
	foreign func(got, want T) error // nil: nothing is foreign
}

// diff compares the objects of one kind. Several observed objects may share a key (appended IPv4 routes):
// the kernel replaces the first of them.
func diff[T any, K comparable](observed, desired []T, id identity[T, K]) (set, drop []Change) {
	first := make(map[K]int, len(observed)) // key to index in observed
	more := map[K][]int{}
	for i, o := range observed {
		k := id.key(o)
		if _, ok := first[k]; ok {
			more[k] = append(more[k], i)
			continue
		}
		first[k] = i
	}
	keep := make([]bool, len(observed))
	seen := make(map[K]int, len(desired))
	for n, d := range desired {
		k := id.key(d)
		if at, ok := seen[k]; ok {
			if twin := desired[at]; !id.right(twin, d) {
				set = append(set, Change{Op: Add, Object: d, Err: fmt.Errorf("%s: desired twice; the first desired object is %v", objectText(d), any(twin))})
			}
			continue
		}
		seen[k] = n
		i, ok := first[k]
		if !ok {
			set = append(set, Change{Op: Add, Object: d})
			continue
		}
		if len(more) == 0 && id.right(observed[i], d) {
			keep[i] = true
			continue
		}
		group := append([]int{i}, more[k]...)
		if c, at := id.settle(observed, group, d); c != nil {
			set = append(set, *c)
			keep[i] = true
		} else {
			keep[at] = true
		}
		for _, j := range group {
			if id.foreign != nil && id.foreign(observed[j], d) != nil {
				keep[j] = true
			}
		}
	}
	for i, o := range observed {
		if !keep[i] {
			drop = append(drop, Change{Op: Delete, Object: o})
		}
	}
	return set, drop
}

// settle compares the objects in one place with d. It returns nil and the index of the right object, or
// the change that makes the place right.
func (id identity[T, K]) settle(observed []T, group []int, d T) (*Change, int) {
	for _, j := range group {
		if id.right(observed[j], d) {
			return nil, j
		}
	}
	got := observed[group[0]]
	c := &Change{Op: Replace, Object: d, Was: got, shared: len(group) > 1}
	if id.foreign != nil {
		c.Err = id.foreign(got, d)
	}
	return c, 0
}

type routeKey struct {
	dst    netip.Prefix
	table  int
	metric int
}

func keyOfRoute(r Route) routeKey {
	r = normal(r)
	return routeKey{r.Dst, r.Table, r.Metric}
}

// normal replaces zero fields by the values that they stand for.
func normal(r Route) Route {
	r.Dst = r.Dst.Masked()
	if r.Table == 0 {
		r.Table = mainTable
	}
	r.NextHopID, r.Leaf = 0, false
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		r.Metric = defaultMetric
	}
	return r
}

func routesByKey() identity[Route, routeKey] {
	return identity[Route, routeKey]{
		key:     keyOfRoute,
		right:   func(got, want Route) bool { return normal(got) == normal(want) },
		foreign: foreignRoute,
	}
}

func sysctlsByKey() identity[Sysctl, string] {
	return identity[Sysctl, string]{
		key: func(s Sysctl) string { return s.Key },
		right: func(got, want Sysctl) bool {
			return slices.Equal(strings.Fields(got.Value), strings.Fields(want.Value))
		},
	}
}

func neighsByIP() identity[Neigh, Neigh] {
	return identity[Neigh, Neigh]{
		key:   func(n Neigh) Neigh { return Neigh{Link: n.Link, IP: n.IP} },
		right: func(got, want Neigh) bool { return got.Learns == want.Learns && strings.EqualFold(got.MAC, want.MAC) },
	}
}

func fdbByMAC() identity[FDB, FDB] {
	return identity[FDB, FDB]{key: keyOfFDB, right: func(got, want FDB) bool {
		return got.Dst == want.Dst && got.VNI == want.VNI && got.Port == want.Port && got.Temporary == want.Temporary
	}}
}

func masqByAddr() identity[Masq, netip.Addr] {
	return identity[Masq, netip.Addr]{
		key: func(m Masq) netip.Addr { return m.Addr },
		right: func(got, want Masq) bool {
			return want.Networks == nil || samePrefixes(got.networks(), want.networks())
		},
	}
}

// foreignError says who holds the place of a route.
type foreignError struct{ want, held Route }

func (e *foreignError) Error() string {
	want, held := "route "+prefixText(e.want.Dst), "held by proto "+e.held.Protocol.String()
	if e.want.Via.IsValid() {
		want += " via " + e.want.Via.String()
	}
	switch {
	case e.held.Type != "":
		held += " as " + e.held.Type
	case e.held.Via.IsValid():
		held += " via " + e.held.Via.String()
	case e.held.Link != "":
		held += " dev " + e.held.Link
	}
	return want + ": " + held + "; stop the other agent or change the CIDR"
}

func (e *foreignError) Unwrap() error { return ErrForeign }

func foreignRoute(got, want Route) error {
	if got.Protocol == want.Protocol {
		return nil
	}
	return &foreignError{want, got}
}

// keyOfFDB returns the place of f. A MAC has one VTEP, but the all-zero MAC floods to any number of VTEPs
// (drivers/net/vxlan/vxlan_core.c: vxlan_fdb_append).
func keyOfFDB(f FDB) FDB {
	k := FDB{Link: f.Link, MAC: strings.ToLower(f.MAC)}
	if k.MAC == "00:00:00:00:00:00" {
		k.Dst = f.Dst
	}
	return k
}

// diffAddrs compares addresses. A link has an IPv6 address once, whatever the prefix length
// (net/ipv6/addrconf.c: ipv6_add_addr), so a wrong length is deleted before the right one is added.
func diffAddrs(observed, desired []Addr) (set, drop []Change) {
	adds, drops := diff(observed, desired, identity[Addr, Addr]{
		key:   func(a Addr) Addr { return a },
		right: func(got, want Addr) bool { return true },
	})
	if len(adds) == 0 {
		return nil, drops
	}
	for _, c := range adds {
		add := c.Object.(Addr)
		drops = slices.DeleteFunc(drops, func(d Change) bool {
			old := d.Object.(Addr)
			clash := old.Link == add.Link && old.Prefix.Addr() == add.Prefix.Addr() && add.Prefix.Addr().Is6()
			if clash {
				set = append(set, d)
			}
			return clash
		})
		set = append(set, c)
	}
	return set, drops
}

func diffLinks(observed, desired []Link) (set, drop []Change) {
	changes, drop := diff(observed, desired, identity[Link, string]{
		key: func(l Link) string { return l.Name }, right: rightLink, foreign: foreignLink,
	})
	for _, c := range changes {
		if was, ok := c.Was.(Link); ok && c.Err == nil && !sameKind(was, c.Object.(Link)) {
			set = append(set, Change{Op: Delete, Object: was})
			c = Change{Op: Add, Object: c.Object}
		}
		set = append(set, c)
	}
	return set, drop
}

// remakes reports whether a link must be deleted and created again. It loses its routes.
func remakes(observed, desired []Link) bool {
	set, _ := diffLinks(observed, desired)
	return slices.ContainsFunc(set, func(c Change) bool { return c.Op == Delete })
}

func rightLink(got, want Link) bool {
	return (want.Kind == "" || got.Kind == want.Kind) &&
		(want.MAC == "" || strings.EqualFold(got.MAC, want.MAC)) &&
		(want.MTU == 0 || got.MTU == want.MTU) &&
		(want.Alias == "" || got.Alias == want.Alias) &&
		got.Up == want.Up && sameKind(got, want)
}

// sameKind reports whether what only a link of that kind has is the same. It cannot be changed.
func sameKind(got, want Link) bool {
	return (want.VXLAN == nil || got.VXLAN != nil && *got.VXLAN == *want.VXLAN) && (want.VLAN == nil || got.VLAN != nil && *got.VLAN == *want.VLAN)
}

// foreignLink returns an error for a link of our name that we did not make: it has another kind, or is a VLAN link that
// is not in the group of ours.
func foreignLink(got, want Link) error {
	if want.VLAN != nil && got.Kind == want.Kind && (got.VLAN == nil || got.VLAN.Foreign) {
		return fmt.Errorf("link %s: %w; delete or rename the existing link", want.Name, ErrForeign)
	}
	if want.Kind == "" || got.Kind == want.Kind {
		return nil
	}
	kind := got.Kind
	if kind == "" {
		kind = "hardware"
	}
	return fmt.Errorf("link %s: want type %s, but the existing link has type %s: %w; delete or rename the existing link", want.Name, want.Kind, kind, ErrForeign)
}

// withoutRemade removes the objects that are lost with links that are deleted and created again.
func withoutRemade(s State, links []Change) State {
	remade := map[string]bool{}
	for _, c := range links {
		if c.Op == Delete {
			remade[c.Object.(Link).Name] = true
		}
	}
	if len(remade) == 0 {
		return s
	}
	s.Addrs = without(s.Addrs, func(a Addr) bool { return remade[a.Link] })
	s.Neighs = without(s.Neighs, func(n Neigh) bool { return remade[n.Link] })
	s.FDB = without(s.FDB, func(f FDB) bool { return remade[f.Link] })
	s.Routes = without(s.Routes, func(r Route) bool { return remade[r.Link] })
	s.Proxies = without(s.Proxies, func(p ProxyNeigh) bool { return remade[p.Link] })
	s.Sysctls = without(s.Sysctls, func(y Sysctl) bool { // net/ipv4/conf/LINK/rp_filter
		parts := strings.Split(y.Key, "/")
		return len(parts) == 5 && remade[parts[3]]
	})
	return s
}

func without[T any](in []T, drop func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(in), drop)
}

func diffNAT(observed, desired *NAT) []Change {
	return diffOne(observed, desired, func(got, want NAT) bool {
		return !got.Damaged && got.Off == want.Off && samePrefixes(got.Sources, want.Sources) && samePrefixes(got.Exclude, want.Exclude) && samePrefixes(got.Nodes, want.Nodes)
	})
}

// diffOne compares objects of which a namespace has at most one.
func diffOne[T any](observed, desired *T, right func(got, want T) bool) []Change {
	switch {
	case observed == nil && desired == nil:
		return nil
	case observed == nil:
		return []Change{{Op: Add, Object: *desired}}
	case desired == nil:
		return []Change{{Op: Delete, Object: *observed}}
	case right(*observed, *desired):
		return nil
	}
	return []Change{{Op: Replace, Object: *desired, Was: *observed}}
}
