package uplinks

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// oldest is how old a list of the cloud may be. What lists lack for longer is gone.
const oldest = time.Minute

// mostWithdrawn is how many addresses are withdrawn at once: a mistake then costs a node few of its addresses.
const mostWithdrawn = 5

// The kinds of withdrawals, which begin their tokens. A token outlives the controller, and so does its kind.
const (
	// spare: the address is surplus. It will be unassigned, maybe by a call that is on its way already: it is never
	// granted again under this token.
	spare = "spare-"
	// lost: lists lack the address. It is never unassigned.
	lost = "lost-"
)

// Fill says how many addresses a node gets: all that its interfaces can have, or, if Free > 0, so many more than its
// pods use.
type Fill struct{ Free int }

// Release says what the controller may do in the cloud, for days on which the cloud misbehaves.
type Release string

// The values of Release.
const (
	On        Release = "on"
	NoRelease Release = "noRelease" // unassign nothing
	Off       Release = "off"       // no call that changes anything
)

// Subnet is what the cloud says of a vSwitch.
type Subnet struct {
	CIDR    netip.Prefix
	Gateway netip.Addr
	Free    int // addresses
}

// Cloud is the cloud's list of an instance, and what earlier lists said.
type Cloud struct {
	Interfaces []cloud.Interface // all of the instance
	Subnets    map[string]Subnet // by vSwitch
	// Lacking says for how long every list has lacked an address of the spec at its interface, or, without an address,
	// the interface. It counts from the first of at least two lists.
	Lacking map[Place]time.Duration
	// Blocked are the interfaces and vSwitches whose last call failed a short time ago, and the addresses that a call
	// may still take away.
	Blocked map[string]bool
	// Waiting are the interfaces that were made for the instance and that no instance has. They are looked for only while
	// the instance is to get more interfaces.
	Waiting []cloud.Interface
}

// Place is an address at an interface: the cloud can give one address to another interface later.
type Place struct {
	Interface string // its ID
	Address   netip.Addr
}

// Terms are what the configuration and the caller say.
type Terms struct {
	Fill         Fill
	PerInterface int // addresses
	Release      Release
	Oldest       time.Duration // how old a list can be; 0: a minute
	Token        string        // ends the tokens of new withdrawals; no other call of decide gets the same
	Issued       issued        // only what is in it is unassigned; other spare withdrawals get a new token first

	Provider cluster.Provider // of new EdgeNodes; "": ProviderENS
	Batch    int              // addresses that one call can assign; 0: one
	// Interfaces is how many secondary interfaces the instance gets while it runs; 0: as many as it has.
	Interfaces int
	Instance   string   // its ID, for the names of new interfaces
	VSwitches  []string // of new interfaces: that with the most free addresses counts
}

// Step is the next thing to do: Write, or else one call, or nothing.
type Step struct {
	Write *cluster.Uplinks // the whole spec.uplinks
	Call  Call
}

// Call is a call that changes the addresses of an interface, or the interfaces of an instance. One of Unassign, Assign,
// Attach and Create is set; none: no call.
type Call struct {
	Interface string     // "": a new one
	VSwitch   string     // of the interface
	Unassign  netip.Addr // an address
	Assign    int        // so many addresses that the cloud chooses
	Attach    bool       // to the instance
	Create    string     // the name of the new interface
}

// decide returns the next step for one node. spec is nil if the node has no EdgeNode; status is nil if the node has
// not written one.
//
// In this order: adopt what the list shows and the spec lacks; withdraw as lost what lists lack; forget withdrawals
// that are over; withdraw what is spare; have old confirmations confirmed again; unassign what the node has confirmed;
// assign.
func decide(c Cloud, spec *cluster.Uplinks, status *cluster.UplinksStatus, t Terms) Step {
	d := decision{Cloud: c, Terms: t, next: cluster.Uplinks{Provider: cmp.Or(t.Provider, cluster.ProviderENS), Egress: cluster.EgressUplink}}
	if spec != nil {
		d.next = copyOf(*spec)
	}
	d.Oldest = cmp.Or(t.Oldest, oldest)
	if status != nil {
		d.used, d.reported = status.Used, true
		d.confirmed = status.Confirmed
		d.missing = map[string]bool{}
		for _, i := range status.Interfaces {
			d.missing[i.MAC] = i.State == cluster.InterfaceMissing
		}
	}
	d.usable = slices.DeleteFunc(slices.Clone(c.Interfaces), func(n cloud.Interface) bool { return n.Primary || n.Status != cloud.InUse })
	d.adopt()
	d.settle()
	d.withdraw()
	d.renew()
	if spec == nil && len(d.next.Interfaces) > 0 || spec != nil && !equal(*spec, d.next) {
		return Step{Write: &d.next}
	}
	return Step{Call: d.call()}
}

type decision struct {
	Cloud
	Terms
	next      cluster.Uplinks
	usable    []cloud.Interface // secondary, and in use
	confirmed []cluster.Withdrawal
	used      int
	reported  bool // the node has written its status
	// missing are the MACs of interfaces that the node does not have. It knows nothing of the pods there: a Node that has
	// the label of another machine's instance would confirm whatever it is asked.
	missing map[string]bool
}

// adopt adds to the spec what the list shows.
func (d *decision) adopt() {
	for _, n := range d.usable {
		subnet, known := d.Subnets[n.VSwitch]
		i := slices.IndexFunc(d.next.Interfaces, func(u cluster.Uplink) bool { return u.ID == n.ID })
		if i < 0 {
			if !known || !n.Address.IsValid() {
				continue // the node could not use it
			}
			i = len(d.next.Interfaces)
			d.next.Interfaces = append(d.next.Interfaces, cluster.Uplink{ID: n.ID})
		}
		u := &d.next.Interfaces[i]
		u.MAC, u.Address = n.MAC, cmp.Or(n.Address, u.Address)
		if known {
			u.Subnet, u.Gateway = subnet.CIDR, subnet.Gateway
		}
		for _, a := range n.Addresses {
			w := slices.IndexFunc(u.Withdrawn, func(w cluster.Withdrawal) bool { return w.Address == a })
			if w >= 0 && strings.HasPrefix(u.Withdrawn[w].Token, lost) && slices.Contains(d.confirmed, u.Withdrawn[w]) {
				u.Withdrawn = slices.Delete(u.Withdrawn, w, w+1) // it was lost, and is back
				w = -1
			}
			if w < 0 && !d.mentions(a) && !d.Blocked[a.String()] {
				u.Addresses = append(u.Addresses, one(a))
			}
		}
	}
	slices.SortFunc(d.next.Interfaces, func(a, b cluster.Uplink) int { return strings.Compare(a.ID, b.ID) })
}

// mentions reports whether the spec grants or withdraws an address, by any interface. An address that the cloud has
// moved to another interface is granted there once the node has confirmed that no pod uses it by the first.
func (d *decision) mentions(a netip.Addr) bool {
	return slices.ContainsFunc(d.next.Interfaces, func(u cluster.Uplink) bool {
		return grants(u, a) || slices.ContainsFunc(u.Withdrawn, func(w cluster.Withdrawal) bool { return w.Address == a })
	})
}

// settle withdraws addresses that are gone, and forgets withdrawals and interfaces that are over.
func (d *decision) settle() {
	for i := range d.next.Interfaces {
		u := &d.next.Interfaces[i]
		var gone []netip.Addr
		for _, a := range addresses(*u) {
			if d.Lacking[Place{u.ID, a}] >= d.Oldest {
				gone = append(gone, a)
			}
		}
		d.take(u, lost, gone)
		u.Withdrawn = slices.DeleteFunc(u.Withdrawn, func(w cluster.Withdrawal) bool {
			return slices.Contains(d.confirmed, w) && d.Lacking[Place{u.ID, w.Address}] >= d.Oldest
		})
	}
	d.next.Interfaces = slices.DeleteFunc(d.next.Interfaces, func(u cluster.Uplink) bool {
		return d.Lacking[Place{Interface: u.ID}] >= d.Oldest && len(u.Addresses)+len(u.Withdrawn) == 0
	})
}

// withdraw takes surplus addresses out of the pool, the highest first. A second batch waits until the node has
// confirmed the first.
func (d *decision) withdraw() {
	if d.Fill.Free == 0 || !d.reported || d.Release != On {
		return
	}
	granted := 0
	most := -1 // the interface with the most addresses
	for i, u := range d.next.Interfaces {
		if d.missing[u.MAC] {
			return
		}
		n := len(addresses(u))
		granted += n
		if most < 0 || n > len(addresses(d.next.Interfaces[most])) {
			most = i
		}
		for _, w := range u.Withdrawn {
			if strings.HasPrefix(w.Token, spare) && !slices.Contains(d.confirmed, w) {
				return
			}
		}
	}
	// Between free and twice free nothing happens: a pod that comes and goes must not cost two calls.
	surplus := granted - d.used - 2*d.Fill.Free
	if surplus <= 0 {
		return
	}
	all := addresses(d.next.Interfaces[most])
	slices.SortFunc(all, func(a, b netip.Addr) int { return b.Compare(a) })
	d.take(&d.next.Interfaces[most], spare, all[:min(surplus, mostWithdrawn, len(all))])
}

// renew gives new tokens to the confirmed withdrawals that this process has not issued. It does not know what happened
// since they were confirmed: where etcd was restored from a backup, the address may have been granted again since, and a
// pod may have it. The node confirms the new token if no pod has it.
func (d *decision) renew() {
	for _, u := range d.next.Interfaces {
		for i, w := range u.Withdrawn {
			if d.returns(u, w) && !d.Issued[w] {
				u.Withdrawn[i].Token = spare + d.Token
			}
		}
	}
}

// returns reports whether an address is to be unassigned: it is spare, the node has confirmed its withdrawal, and the list shows it.
func (d *decision) returns(u cluster.Uplink, w cluster.Withdrawal) bool {
	i := slices.IndexFunc(d.usable, func(n cloud.Interface) bool { return n.ID == u.ID })
	return d.Release == On && i >= 0 && !d.missing[u.MAC] && strings.HasPrefix(w.Token, spare) && slices.Contains(d.confirmed, w) &&
		slices.Contains(d.usable[i].Addresses, w.Address) && !d.Blocked[w.Address.String()]
}

// take moves addresses from the granted to the withdrawn.
func (d *decision) take(u *cluster.Uplink, kind string, gone []netip.Addr) {
	if len(gone) == 0 {
		return
	}
	var keep []cluster.AddressRange
	for _, a := range addresses(*u) {
		if !slices.Contains(gone, a) {
			keep = append(keep, one(a))
		}
	}
	u.Addresses = keep
	for _, a := range gone {
		u.Withdrawn = append(u.Withdrawn, cluster.Withdrawal{Address: a, Token: kind + d.Token})
	}
}

// call returns the next call for a spec that is as it should be.
func (d *decision) call() Call {
	if d.Release == Off {
		return Call{}
	}
	granted := 0
	for _, u := range d.next.Interfaces {
		granted += len(addresses(u))
		for _, w := range u.Withdrawn {
			if d.returns(u, w) && d.Issued[w] {
				i := slices.IndexFunc(d.usable, func(n cloud.Interface) bool { return n.ID == u.ID })
				return Call{Interface: u.ID, VSwitch: d.usable[i].VSwitch, Unassign: w.Address}
			}
		}
	}
	if d.Fill.Free > 0 && granted-d.used >= d.Fill.Free {
		return Call{}
	}
	var best *cloud.Interface
	waits := false // an interface may have room, but its subnet is not known yet, or its last call was refused a moment ago
	for i := range d.usable {
		n := &d.usable[i]
		known := slices.ContainsFunc(d.next.Interfaces, func(u cluster.Uplink) bool { return u.ID == n.ID })
		if !known || len(n.Addresses) >= d.PerInterface || d.Blocked[n.ID] || d.Blocked[n.VSwitch] {
			waits = waits || !known || len(n.Addresses) < d.PerInterface && !d.Blocked[n.VSwitch]
			continue
		}
		if best == nil || len(n.Addresses) < len(best.Addresses) {
			best = n
		}
	}
	switch {
	case best == nil && waits:
		return Call{}
	case best == nil:
		return d.grow()
	}
	count := min(max(d.Batch, 1), d.PerInterface-len(best.Addresses))
	if free := d.Subnets[best.VSwitch].Free; free > 0 { // a call for more than there are gives none
		count = min(count, free)
	}
	if d.Fill.Free > 0 {
		count = min(count, d.Fill.Free-(granted-d.used))
	}
	return Call{Interface: best.ID, VSwitch: best.VSwitch, Assign: count}
}

// grow attaches an interface that was made for the instance, or makes one. One at a time is on its way.
func (d *decision) grow() Call {
	taken, secondary := map[string]bool{}, 0
	for _, n := range d.Cloud.Interfaces {
		if n.Primary {
			continue
		}
		if n.Status != cloud.InUse {
			return Call{}
		}
		taken[n.Name] = true
		secondary++
	}
	if secondary >= d.Terms.Interfaces || d.Blocked[d.Instance] {
		return Call{}
	}
	for _, n := range d.Waiting {
		if !d.Blocked[n.ID] {
			return Call{Interface: n.ID, VSwitch: n.VSwitch, Attach: true}
		}
	}
	best := ""
	for _, v := range d.VSwitches {
		// The interface takes one address itself. A vSwitch that is not known yet has many.
		if s, known := d.Subnets[v]; d.Blocked[v] || known && s.Free < 2 {
			continue
		}
		if best == "" || d.Subnets[v].Free > d.Subnets[best].Free {
			best = v
		}
	}
	if len(d.Waiting) > 0 || best == "" {
		return Call{}
	}
	for n := 1; ; n++ {
		if name := interfaceName(d.Instance, n); !taken[name] {
			return Call{VSwitch: best, Create: name}
		}
	}
}

// interfaceName is the name of an interface that the controller makes. eni-tool has the same names.
func interfaceName(instance string, n int) string { return fmt.Sprintf("edgeway-%s-%d", instance, n) }

// madeFor returns the instance that an interface was made for; "": it was not made by us.
func madeFor(name string) string {
	rest, ours := strings.CutPrefix(name, "edgeway-")
	at := strings.LastIndexByte(rest, '-')
	if !ours || at < 0 {
		return ""
	}
	return rest[:at]
}

// expected is the interface of the last call that made or attached one. No further interface is made until a list shows
// this one, or until every list is younger than the call.
type expected struct {
	id     string // "": the call had no answer
	attach bool
	until  time.Time
}

// open reports whether a list does not show the interface yet, though it may exist.
func (e expected) open(attached, waiting []cloud.Interface, now time.Time) bool {
	here := func(all []cloud.Interface) bool {
		return slices.ContainsFunc(all, func(i cloud.Interface) bool { return i.ID == e.id })
	}
	return e.until.After(now) && !here(attached) && (e.attach || !here(waiting))
}

// issued are the withdrawals that this process has written, and has seen in every spec that it read since. It is lost with the
// controller: then they are confirmed again.
type issued map[cluster.Withdrawal]bool

// note forgets what a spec lacks: the address may be granted again.
func (i issued) note(spec *cluster.Uplinks) {
	there := issued{}
	if spec != nil {
		for _, u := range spec.Interfaces {
			for _, w := range u.Withdrawn {
				there[w] = true
			}
		}
	}
	maps.DeleteFunc(i, func(w cluster.Withdrawal, _ bool) bool { return !there[w] })
}

// add adds the withdrawals of a spec that have a new token.
func (i *issued) add(spec *cluster.Uplinks, token string) {
	if *i == nil {
		*i = issued{}
	}
	for _, u := range spec.Interfaces {
		for _, w := range u.Withdrawn {
			if w.Token == spare+token {
				(*i)[w] = true
			}
		}
	}
}

// memory is since when lists lack something. It is lost with the controller: then a decision comes a minute later.
type memory map[Place]time.Time

// note adds a list to the memory, and says for how long lists have lacked what the spec has.
func (m *memory) note(list []cloud.Interface, spec *cluster.Uplinks, now time.Time) map[Place]time.Duration {
	shown := map[Place]bool{}
	for _, n := range list {
		shown[Place{Interface: n.ID}] = true
		for _, a := range n.Addresses {
			shown[Place{n.ID, a}] = true
		}
	}
	was := *m
	*m = memory{}
	lacking := map[Place]time.Duration{}
	look := func(p Place) {
		if shown[p] {
			return
		}
		since, known := was[p]
		if !known {
			since = now
		}
		(*m)[p], lacking[p] = since, now.Sub(since)
	}
	if spec != nil {
		for _, u := range spec.Interfaces {
			look(Place{Interface: u.ID})
			for _, a := range addresses(u) {
				look(Place{u.ID, a})
			}
			for _, w := range u.Withdrawn {
				look(Place{u.ID, w.Address})
			}
		}
	}
	return lacking
}

func one(a netip.Addr) cluster.AddressRange { return cluster.AddressRange{First: a, Last: a} }

func grants(u cluster.Uplink, a netip.Addr) bool {
	return slices.ContainsFunc(u.Addresses, func(r cluster.AddressRange) bool { return r.Contains(a) })
}

// addresses are the granted addresses, each by itself.
func addresses(u cluster.Uplink) (out []netip.Addr) {
	for _, r := range u.Addresses {
		for a := r.First; r.Contains(a); a = a.Next() {
			out = append(out, a)
		}
	}
	return out
}

func copyOf(u cluster.Uplinks) cluster.Uplinks {
	u.Interfaces = slices.Clone(u.Interfaces)
	for i := range u.Interfaces {
		u.Interfaces[i].Addresses = slices.Clone(u.Interfaces[i].Addresses)
		u.Interfaces[i].Withdrawn = slices.Clone(u.Interfaces[i].Withdrawn)
	}
	return u
}

// equal reports whether both grant and withdraw the same by the same interfaces.
func equal(a, b cluster.Uplinks) bool {
	return a.Provider == b.Provider && slices.EqualFunc(a.Interfaces, b.Interfaces, func(x, y cluster.Uplink) bool {
		return x.ID == y.ID && x.MAC == y.MAC && x.Address == y.Address && x.Subnet == y.Subnet && x.Gateway == y.Gateway &&
			maps.Equal(set(addresses(x)), set(addresses(y))) && maps.Equal(set(x.Withdrawn), set(y.Withdrawn))
	})
}

func set[T comparable](all []T) map[T]bool {
	out := map[T]bool{}
	for _, t := range all {
		out[t] = true
	}
	return out
}
