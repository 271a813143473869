// Package ens is a cloud for tests: the parts of the ENS OpenAPI (version 2017-11-10) and of the ECS OpenAPI (version
// 2014-05-26) that edgeway calls, with the rules of the real clouds. It checks signatures, nonces, clocks and
// permissions. An instance of ENS must be stopped before an interface is attached, an interface of ENS has at most 25
// addresses, and lists come in pages. [NewECS] says what differs there. A test can make the cloud lose an answer, hang,
// throttle, or show an old list.
//
// It shares no code with the client under test, and it knows nothing of edgeway. Whatever the documents of the
// real cloud leave open is decided the hard way here.
//
//	cloud := ens.New()
//	cloud.AddVSwitch("vsw-1", netip.MustParsePrefix("10.0.0.0/24"))
//	cloud.AddInstance("i-1", "vsw-1", "sg-1")
//	cloud.AddKey(ens.Key{ID: "AK", Secret: "SECRET", Actions: []string{"ens:*"}})
//	server := httptest.NewServer(cloud)
package ens

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Limits of the real cloud. No call tells them.
const (
	// MostInterfaces is the number of interfaces of an instance, its primary interface included.
	MostInterfaces = 10
	// MostAddresses is the number of secondary addresses of an interface.
	MostAddresses = 25
	// mostInPage is the largest page of a list. A larger PageSize is not an error: the page is just smaller.
	mostInPage = 50
	// kept is how many old states a list can show.
	kept = 8
)

// Status of an instance or an interface.
const (
	Running  = "Running"
	Stopping = "Stopping"
	Stopped  = "Stopped"
	Starting = "Starting"

	Available = "Available"
	Attaching = "Attaching"
	InUse     = "InUse"
	Detaching = "Detaching"
)

// Interface is an elastic network interface.
type Interface struct {
	ID, Name, MAC, VSwitch, Group string
	Instance                      string // "": none
	Primary                       bool
	Status                        string
	Address                       netip.Addr   // its own
	Addresses                     []netip.Addr // secondary
	left                          int          // lists until the middle state ends
}

// Instance is a machine of the cloud.
type Instance struct {
	ID, VSwitch, Group string
	Type               string // of ECS
	Status             string
	left               int
}

// vSwitch is a subnet.
type vSwitch struct {
	cidr netip.Prefix
	free int // the number of addresses that are left; the addresses themselves are found by search
	last netip.Addr
}

// Key is an access key and the actions that its user may call: "ens:*" or names such as "ens:StopInstance". The services
// of ECS are ecs and vpc.
type Key struct {
	ID, Secret, Token string // Token is set for a key of the Security Token Service
	Actions           []string
}

// Rule is a rule of a security group, in the words of the API.
type Rule struct {
	Direction, IpProtocol, PortRange, SourceCidrIp, DestCidrIp, Policy string
	Priority                                                           int
}

// Call is a call that the cloud has seen.
type Call struct {
	Action string
	Query  map[string]string // without the parameters of the signature
	Code   string            // "": it succeeded
}

// state is all that lists show. It is copied before each change, so that a list can show what was.
type state struct {
	instances  map[string]Instance
	interfaces map[string]Interface
	switches   map[string]vSwitch
}

func (s state) clone() state {
	c := state{maps.Clone(s.instances), maps.Clone(s.interfaces), maps.Clone(s.switches)}
	for id, n := range c.interfaces {
		n.Addresses = slices.Clone(n.Addresses)
		c.interfaces[id] = n
	}
	return c
}

// Cloud is a cloud of one account and one region. It implements http.Handler.
type Cloud struct {
	mu      sync.Mutex // guards everything below
	now     state
	before  []state             // older states, the oldest first
	types   map[string]Type     // of ECS; nil: the cloud is ENS
	tokens  map[string]tokenUse // by ClientToken
	groups  map[string][]Rule
	inner   map[string]bool // groups of ECS whose members reach each other
	keys    map[string]Key
	nonces  map[string]bool
	faults  func(Call) Fault
	calls   []Call
	names   int
	skew    time.Duration
	polls   int
	changed func(instance string) // called with mu held, after an instance started, stopped, or its addresses changed
	closing chan struct{}
}

// New returns a cloud without instances, whose middle states last for two lists.
func New() *Cloud {
	return &Cloud{
		now:    state{map[string]Instance{}, map[string]Interface{}, map[string]vSwitch{}},
		groups: map[string][]Rule{}, inner: map[string]bool{}, keys: map[string]Key{}, nonces: map[string]bool{},
		polls: 2, changed: func(string) {}, closing: make(chan struct{}),
	}
}

// Close ends the calls that hang, so that the HTTP server can end. It must be called once, before the server is
// closed.
func (c *Cloud) Close() { close(c.closing) }

// AddKey makes an access key, or replaces the key of the same ID.
func (c *Cloud) AddKey(k Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[k.ID] = k
}

// AddVSwitch makes a subnet. Its gateway is the third address from the end.
func (c *Cloud) AddVSwitch(id string, cidr netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.switches[id] = vSwitch{cidr: cidr, free: 1<<(32-cidr.Bits()) - 4, last: cidr.Addr()}
}

// AddGroup makes a security group.
func (c *Cloud) AddGroup(id string, rules ...Rule) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups[id] = rules
}

// AddInstance makes a running instance with a primary interface, whose address it returns.
func (c *Cloud) AddInstance(id, vswitch, group string) netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.instances[id] = Instance{ID: id, VSwitch: vswitch, Group: group, Status: Running}
	n, err := c.makeInterface(vswitch, group, "")
	if err != nil {
		panic(err) // the test named a vSwitch that it did not make
	}
	n.Primary, n.Instance, n.Status = true, id, InUse
	c.now.interfaces[n.ID] = n
	return n.Address
}

// RemoveInstance releases an instance with its primary interface. Its other interfaces become Available.
func (c *Cloud) RemoveInstance(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember()
	delete(c.now.instances, id)
	for _, n := range c.ofInstance(id) {
		n.Instance, n.Status = "", Available
		c.now.interfaces[n.ID] = n
		if n.Primary {
			delete(c.now.interfaces, n.ID)
		}
	}
	c.changed(id)
}

// Limit sets how many addresses a vSwitch still has.
func (c *Cloud) Limit(vswitch string, free int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.now.switches[vswitch]
	s.free = free
	c.now.switches[vswitch] = s
}

// SetMiddle sets how many lists show a middle state such as Stopping, before a list shows its end.
func (c *Cloud) SetMiddle(lists int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.polls = lists
}

// SetSkew sets the cloud's clock before or after the clock of this machine.
func (c *Cloud) SetSkew(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = d
}

// Bind makes an interface and attaches it, as a person does in the console, and returns it.
func (c *Cloud) Bind(instance string) Interface {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember()
	i := c.now.instances[instance]
	n, err := c.makeInterface(i.VSwitch, i.Group, "")
	if err != nil {
		panic(err) // the test named an instance that it did not make
	}
	n.Instance, n.Status = instance, InUse
	c.now.interfaces[n.ID] = n
	c.changed(instance)
	return n
}

// Unbind detaches an interface at once, as if its instance had been stopped in between.
func (c *Cloud) Unbind(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember()
	n := c.now.interfaces[id]
	was := n.Instance
	n.Instance, n.Status = "", Available
	c.now.interfaces[id] = n
	c.changed(was)
}

// Take removes an address from an interface, as a person does in the console.
func (c *Cloud) Take(id string, address netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember()
	c.unassign(id, []netip.Addr{address})
}

// Give adds an address to an interface, as a person does in the console, and returns it.
func (c *Cloud) Give(id string) netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember()
	a, err := c.assign(id)
	if err != nil {
		panic(err) // the test asked for more than the limits allow
	}
	return a
}

// Interfaces returns the interfaces of an instance as they are now, the primary interface first; "" returns all
// interfaces that have no instance.
func (c *Cloud) Interfaces(instance string) []Interface {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ofInstance(instance)
}

// Status returns the status of an instance.
func (c *Cloud) Status(instance string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.instances[instance].Status
}

// Calls returns the calls so far.
func (c *Cloud) Calls() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

func (c *Cloud) ofInstance(id string) []Interface {
	var out []Interface
	for _, n := range c.now.interfaces {
		if n.Instance == id {
			n.Addresses = slices.Clone(n.Addresses)
			out = append(out, n)
		}
	}
	slices.SortFunc(out, byPlace)
	return out
}

// remember keeps the present state for lists that are stale. It is called before each change.
func (c *Cloud) remember() {
	c.before = append(c.before, c.now.clone())
	c.before = c.before[max(0, len(c.before)-kept):]
}

// name returns a new identifier.
func (c *Cloud) name(kind string) string {
	c.names++
	return fmt.Sprintf("%s-5%05x", kind, c.names*7919)
}

func (c *Cloud) makeInterface(vswitch, group, name string) (Interface, error) {
	a, err := c.address(vswitch)
	if err != nil {
		return Interface{}, err
	}
	n := Interface{ID: c.name("eni"), Name: name, VSwitch: vswitch, Group: group, Status: Available, Address: a}
	n.MAC = fmt.Sprintf("00:16:3e:08:%02x:%02x", c.names/256, c.names%256)
	return n, nil
}

// address takes an address out of a vSwitch. The cloud chooses it; an address comes back only after all others.
func (c *Cloud) address(vswitch string) (netip.Addr, error) {
	s, ok := c.now.switches[vswitch]
	if !ok {
		return netip.Addr{}, refuse("InvalidVSwitchId.NotFound", "the vSwitch %s does not exist", vswitch)
	}
	taken := map[netip.Addr]bool{gateway(s.cidr): true}
	for _, n := range c.now.interfaces {
		taken[n.Address] = true
		for _, a := range n.Addresses {
			taken[a] = true
		}
	}
	for a := s.last.Next(); s.free > 0; a = a.Next() {
		if !s.cidr.Contains(a.Next()) || !s.cidr.Contains(a) { // the last address is the broadcast address
			a = s.cidr.Addr()
			continue
		}
		if !taken[a] {
			s.last = a
			s.free--
			c.now.switches[vswitch] = s
			return a, nil
		}
	}
	return netip.Addr{}, refuse("InvalidVSwitchId.IpNotEnough", "the vSwitch %s has no free address", vswitch)
}

// gateway is the third address from the end of a subnet.
func gateway(cidr netip.Prefix) netip.Addr {
	b := cidr.Masked().Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += 1<<(32-cidr.Bits()) - 3
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (c *Cloud) assign(id string) (netip.Addr, error) {
	n, ok := c.now.interfaces[id]
	switch {
	case !ok:
		return netip.Addr{}, refuse("InvalidEniId.NotFound", "the interface %s does not exist", id)
	case n.Primary:
		return netip.Addr{}, refuse("InvalidParameter.NetworkInterfaceId", "the primary interface %s takes no addresses", id)
	case n.Status != InUse && n.Status != Available:
		return netip.Addr{}, refuse("InvalidOperation.InvalidEniState", "the interface %s is %s", id, n.Status)
	case len(n.Addresses) >= MostAddresses:
		return netip.Addr{}, refuse("QuotaExceeded.PrivateIpAddress", "the interface %s has %d addresses", id, len(n.Addresses))
	}
	a, err := c.address(n.VSwitch)
	if err != nil {
		return a, err
	}
	n.Addresses = append(slices.Clone(n.Addresses), a)
	c.now.interfaces[id] = n
	c.changed(n.Instance)
	return a, nil
}

func (c *Cloud) unassign(id string, addresses []netip.Addr) {
	n := c.now.interfaces[id]
	kept := slices.DeleteFunc(slices.Clone(n.Addresses), func(a netip.Addr) bool { return slices.Contains(addresses, a) })
	s := c.now.switches[n.VSwitch]
	s.free += len(n.Addresses) - len(kept)
	c.now.switches[n.VSwitch] = s
	n.Addresses = kept
	c.now.interfaces[id] = n
	c.changed(n.Instance)
}

// refusal is an error of the API.
type refusal struct {
	status        int
	code, message string
}

func (r refusal) Error() string { return r.code + ": " + r.message }

// refuse returns an error as ENS gives it: status 400, whatever the code is.
func refuse(code, format string, args ...any) error {
	return refusal{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}
