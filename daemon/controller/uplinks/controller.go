package uplinks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/client-go/rest"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// InstanceLabel returns the label of the Nodes that are instances of a service. Its value is the ID of the instance. The
// vendor's own programs set it.
func InstanceLabel(s cloud.Service) string { return "alibabacloud.com/" + string(s) + "-instance-id" }

// Config says how to reach a service of the cloud, and how many addresses its instances get.
type Config struct {
	Service          cloud.Service // "": ENS
	Endpoint, Region string
	Credentials      string // a file; "": the environment
	// Terms has no token. Its PerInterface of 0 is what the type of the instance can have. Its VSwitches are those of
	// new interfaces, of which each instance gets those in its zone; none: the instance's own.
	Terms Terms
	// TaintWhenFull: a Node gets a taint while it has no free address.
	TaintWhenFull bool
}

// Options of a controller.
type Options struct {
	Config
	API       *rest.Config
	Log       *slog.Logger
	UserAgent string
	Metrics   *Metrics // of all controllers of the process; nil: its own
	// Tell writes an Event about the Node of that name and UID.
	Tell  func(ctx context.Context, name, uid, reason, message string) error
	times times // zero: the defaults; tests use shorter times
}

type times struct {
	full       time.Duration // between two lists of a node where nothing happens; less a random part
	oldest     time.Duration // how old a list can be
	fresh      time.Duration // how long after its look began a call may be sent; shorter than oldest
	least      time.Duration // first pause after an error; doubled with each further error
	mostPause  time.Duration // of the whole controller
	mostBlock  time.Duration // of an interface or a vSwitch
	subnets    time.Duration // how long what the cloud says of a vSwitch counts
	callsASec  rate.Limit
	groupCheck time.Duration
	orphan     time.Duration // between two looks at an instance without a Node; longer than oldest
}

func defaultTimes() times {
	return times{full: 10 * time.Minute, oldest: oldest, fresh: oldest / 2, least: time.Second, mostPause: time.Minute, mostBlock: 5 * time.Minute,
		subnets: time.Hour, callsASec: 5, groupCheck: 24 * time.Hour, orphan: 10 * time.Minute}
}

// Controller gives nodes their uplinks while it runs. It may run again after it ended.
type Controller struct {
	Options
	server *server

	// The fields below belong to the goroutine of Run.
	cloud   *cloud.Client
	read    time.Time // modification time of the credentials file that cloud has
	limit   *rate.Limiter
	nodes   map[string]*node
	subnets map[string]subnet // by vSwitch
	groups  map[string]group
	limits  map[string]limits  // by type of instance
	blocks  map[string]backoff // of interfaces, vSwitches, addresses and instances
	tokens  map[string]string  // of calls without an answer, which are made again with their token
	pause   backoff            // of all calls
	left    leftover
	away    *cluster.Problem // why no call succeeds
}

// node is what is known of a node beside its objects.
type node struct {
	Node
	memory   memory
	issued   issued
	due      time.Time      // of the next look
	instance cloud.Instance // zero: it does not exist
	asked    time.Time      // when instance was
	limits   cloud.Limits   // of its type; ECS
	expected expected
	refused  error // the last call for another interface
	failed   backoff
	since    time.Time // of the first of the failed calls in failed
	problems []cluster.Problem
	said     map[subject]string
}

// leftover are the interfaces that were made for instances and that no instance has. No Node belongs to the node in it, which
// holds their problems.
type leftover struct {
	node
	since map[string]time.Time // by ID: when a list first showed it
}

type subnet struct {
	Subnet
	zone  string
	asked time.Time
}

type limits struct {
	cloud.Limits
	asked time.Time
}

type group struct {
	cloud.Group
	known bool
	asked time.Time
}

type backoff struct {
	until time.Time
	wait  time.Duration
}

// more doubles the pause.
func (b backoff) more(least, most time.Duration) backoff {
	b.wait = min(max(2*b.wait, least), most)
	b.until = time.Now().Add(b.wait)
	return b
}

// New returns a controller. Credentials that cannot be used are an error.
func New(o Options) (*Controller, error) {
	if o.times == (times{}) {
		o.times = defaultTimes()
	}
	o.Service = cmp.Or(o.Service, cloud.ENS)
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	o.Terms.Provider = cluster.Provider(o.Service)
	if o.Service == cloud.ECS {
		o.Terms.Batch = mostInCall
	}
	c := &Controller{Options: o}
	c.forget()
	if _, err := c.client(); err != nil {
		return nil, err
	}
	s, err := newServer(o.API, o.Service)
	c.server = s
	return c, err
}

// mostInCall is how many addresses one call of ECS assigns. An interface that is not attached takes no more, and the
// vendor's own programs ask for no more.
const mostInCall = 10

// forget drops all that is remembered. The next looks find it again within a minute or so.
func (c *Controller) forget() {
	c.limit = rate.NewLimiter(c.times.callsASec, 1)
	c.nodes, c.subnets, c.groups, c.limits = map[string]*node{}, map[string]subnet{}, map[string]group{}, map[string]limits{}
	c.blocks, c.tokens, c.left = map[string]backoff{}, map[string]string{}, leftover{}
}

// client returns the cloud's client, a new one when the file of the credentials has changed.
func (c *Controller) client() (*cloud.Client, error) {
	var k cloud.Credentials
	var err error
	if c.Credentials == "" {
		if c.cloud != nil {
			return c.cloud, nil
		}
		k, err = cloud.EnvCredentials()
	} else {
		info, statErr := os.Stat(c.Credentials)
		if statErr != nil {
			return nil, fmt.Errorf("credentials: %w", statErr)
		}
		if c.cloud != nil && info.ModTime().Equal(c.read) {
			return c.cloud, nil
		}
		if k, err = cloud.ReadCredentials(c.Credentials); err == nil { // chmod, which an error asks for, changes no time
			c.read = info.ModTime()
		}
	}
	if err != nil {
		return nil, err
	}
	c.cloud, err = cloud.New(cloud.Options{Service: c.Service, Credentials: k, Region: c.Region, Endpoint: c.Endpoint, UserAgent: c.UserAgent, Seen: c.Metrics.call,
		Turn: func(ctx context.Context) error { return c.limit.Wait(ctx) }})
	return c.cloud, err
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) {
	c.forget()
	events, err := c.server.watch(ctx, c.Log)
	if err != nil {
		c.Log.Warn("watch EdgeNodes", "err", err)
		return // ctx has ended
	}
	for ctx.Err() == nil {
		c.meet(ctx, events.take())
		next := c.round(ctx)
		c.leave(ctx)
		c.sweep(ctx)
		next = earlier(next, c.left.due)
		maps.DeleteFunc(c.blocks, func(_ string, b backoff) bool { return time.Since(b.until) > c.times.mostBlock })
		for _, b := range c.blocks {
			if b.until.After(time.Now()) {
				next = earlier(next, b.until)
			}
		}
		c.Metrics.set(c.Service, append(slices.Collect(maps.Values(c.nodes)), &c.left.node), c.away)
		t := time.NewTimer(max(time.Until(next), time.Millisecond))
		select {
		case <-ctx.Done():
		case <-events.more:
		case <-t.C:
		}
		t.Stop()
	}
}

// round looks at each node that is due, and returns when the next one is.
func (c *Controller) round(ctx context.Context) (next time.Time) {
	next = time.Now().Add(c.times.full)
	for _, n := range c.inTurn() {
		if !n.due.After(time.Now()) {
			c.look(ctx, n)
			c.say(ctx, n)
		}
		next = earlier(next, n.due)
	}
	return next
}

// meet takes over the list of Nodes, and looks soon at those whose objects changed.
func (c *Controller) meet(ctx context.Context, changed map[string]bool) {
	all := map[string]bool{}
	for _, n := range c.server.listNodes() {
		all[n.Name] = true
		known := c.nodes[n.Name]
		if known == nil || known.Instance != n.Instance || known.UID != n.UID {
			c.nodes[n.Name] = &node{Node: n}
			continue
		}
		known.Node = n
		if changed[n.Name] {
			known.due = time.Time{}
		}
	}
	for name, n := range c.nodes {
		if !all[name] { // the Node is gone, or its label
			delete(c.nodes, name)
			c.taint(ctx, n, edgeNode{})
		}
	}
}

// inTurn returns the nodes, the longest due first.
func (c *Controller) inTurn() []*node {
	return slices.SortedFunc(maps.Values(c.nodes), func(a, b *node) int {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.Name, b.Name))
	})
}

// look reads what the cloud and the API server have of a node, and does the next step.
func (c *Controller) look(ctx context.Context, n *node) {
	if wait := time.Until(c.pause.until); wait > 0 {
		n.due = c.pause.until
		return
	}
	n.problems = slices.DeleteFunc(n.problems, passing) // the others count until a look can judge again
	n.due = time.Now().Add(c.times.full - rand.N(c.times.full/5))
	began := time.Now()
	object, err := c.server.edgeNode(ctx, n.Name)
	if err != nil {
		c.retry(ctx, n, fmt.Errorf("read EdgeNode %s: %w", n.Name, err))
		return
	}
	c.taint(ctx, n, object) // also while the cloud is away
	for _, other := range c.nodes {
		if other.Instance == n.Instance && other.Name < n.Name {
			n.only(cluster.Problem{Object: "Node/" + n.Name, Reason: sharedInstance, Want: "an instance of its own", Got: n.Instance + ", which Node/" + other.Name + " has too",
				Next: "delete the Node that is no longer used, or correct the label " + InstanceLabel(c.Service)})
			return
		}
	}
	if object.uplinks != nil && object.uplinks.Provider != c.Terms.Provider {
		n.only(cluster.Problem{Object: "EdgeNode/" + n.Name, Reason: notOurs, Want: "provider: " + string(c.Terms.Provider) + ", because the Node has the label " + InstanceLabel(c.Service), Got: "provider: " + string(object.uplinks.Provider),
			Next: "remove spec.uplinks or the label; nothing is changed until then"})
		return
	}
	seen, err := c.ask(ctx, n)
	switch {
	case cloud.Is(err, cloud.Refused), cloud.Is(err, cloud.NotFound): // it concerns this node only
		n.only(cluster.Problem{Object: "Node/" + n.Name, Reason: noInterface, Want: "the interfaces of " + n.Instance, Got: err.Error(),
			Next: "correct the label " + InstanceLabel(c.Service) + " of the Node, or the key and the region of the controller; the node keeps what it has"})
		return
	case err != nil:
		c.fail(ctx, n, err)
		return
	}
	c.pause, c.away = backoff{}, nil
	seen.Lacking = n.memory.note(seen.Interfaces, object.uplinks, time.Now())
	n.issued.note(object.uplinks)
	terms := c.terms(n)
	for range 2 { // a write, and then the call that follows from it
		terms.Token, terms.Oldest, terms.Issued = token(), c.times.oldest, n.issued
		step := decide(seen, object.uplinks, object.status, terms)
		switch {
		case step.Write != nil:
			n.issued.add(step.Write, terms.Token) // also if the answer is lost
			if object, err = c.server.write(ctx, object, n.Instance, *step.Write); err != nil {
				if !errors.Is(err, errConflict) {
					err = fmt.Errorf("write EdgeNode %s: %w", n.Name, err)
				}
				c.retry(ctx, n, err)
				return
			}
			c.Log.Info("uplinks written", "node", n.Name, "interfaces", len(step.Write.Interfaces), "addresses", granted(step.Write))
			continue
		case step.Call != Call{}:
			c.call(ctx, n, step.Call, began.Add(c.times.fresh))
			return
		}
		break
	}
	n.failed = backoff{}
	if len(seen.Lacking) > 0 {
		n.due = time.Now().Add(c.times.oldest / 2)
	}
	c.judge(ctx, n, seen, object.uplinks, terms)
}

// terms are the terms of a node: what the configuration says, within the limits of its instance.
func (c *Controller) terms(n *node) Terms {
	t := c.Terms
	t.Instance = n.Instance
	if c.Service == cloud.ENS {
		return t
	}
	t.Interfaces = min(t.Interfaces, n.limits.Interfaces)
	t.PerInterface = min(cmp.Or(t.PerInterface, n.limits.Addresses), n.limits.Addresses)
	t.VSwitches = slices.DeleteFunc(slices.Clone(t.VSwitches), func(id string) bool { return c.subnets[id].zone != n.instance.Zone })
	if len(c.Terms.VSwitches) == 0 {
		t.VSwitches = []string{n.instance.VSwitch}
	}
	return t
}

// taint keeps pods away from a node that has no address for them.
func (c *Controller) taint(ctx context.Context, n *node, object edgeNode) {
	want := false
	if u := object.uplinks; u != nil {
		if u.Provider != c.Terms.Provider && u.Provider != cluster.ProviderStatic {
			return // the controller of the other service decides
		}
		want = c.TaintWhenFull && u.Provider == c.Terms.Provider && object.status != nil && object.status.Free == 0
	}
	if want == n.Tainted {
		return
	}
	if err := c.server.taint(ctx, n.Name, want); err != nil {
		c.Log.Warn("taint of Node", "node", n.Name, "err", err)
		n.due = earlier(n.due, time.Now().Add(10*c.times.least))
		return
	}
	c.Log.Info("taint of Node", "node", n.Name, "taint", fullTaint, "set", want)
}

// call makes a call before the deadline: a process that stood still must not act on what it read earlier. Whatever
// the answer is, the node is looked at again.
func (c *Controller) call(ctx context.Context, n *node, call Call, deadline time.Time) {
	n.due = time.Time{}
	fresh, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := c.limit.Wait(fresh)
	if err != nil {
		return // ctx has ended, or it is too late
	}
	key := cmp.Or(call.Interface, n.Instance)
	var id string // of the interface of the call
	again := fmt.Sprint(call)
	c.tokens[again] = cmp.Or(c.tokens[again], token())
	switch {
	case call.Unassign.IsValid():
		key = call.Unassign.String()
		// The cloud may carry out the call after the wait for its answer, and lists may be old. An EdgeNode that
		// somebody deletes meanwhile is written again from a list: without this address.
		b := c.blocks[key]
		b.until = time.Now().Add(c.times.oldest)
		c.blocks[key] = b
		err = c.cloud.UnassignAddress(fresh, call.Interface, call.Unassign)
	case call.Assign > 0:
		err = c.cloud.AssignAddresses(fresh, call.Interface, call.Assign, c.tokens[again])
	case call.Attach:
		id, err = call.Interface, c.cloud.AttachInterface(fresh, call.Interface, n.Instance)
	default:
		id, err = c.cloud.CreateInterface(fresh, cloud.NewInterface{Name: call.Create, VSwitch: call.VSwitch, Groups: n.instance.Groups, Token: c.tokens[again]})
	}
	refused := cloud.Is(err, cloud.Refused) || cloud.Is(err, cloud.NotFound)
	if err == nil || refused {
		delete(c.tokens, again)
		n.failed = backoff{}
	}
	if v, ok := c.subnets[call.VSwitch]; ok && err == nil {
		v.Free = max(v.Free-call.Assign, 0)
		if call.Create != "" {
			v.Free = max(v.Free-1, 0)
		}
		c.subnets[call.VSwitch] = v
	} else if !call.Unassign.IsValid() && !call.Attach {
		delete(c.subnets, call.VSwitch) // how many addresses it has left is not known
	}
	if call.Attach || call.Create != "" {
		n.expected, n.refused = expected{id, call.Attach, time.Now().Add(c.times.oldest)}, err
		if refused {
			n.expected = expected{}
		}
	}
	switch {
	case err == nil:
		delete(c.blocks, call.Interface)
		delete(c.blocks, call.VSwitch)
		switch {
		case call.Unassign.IsValid():
			c.Log.Info("address unassigned", "node", n.Name, "interface", call.Interface, "address", call.Unassign)
		case id != "":
			c.Log.Info(map[bool]string{true: "interface attached", false: "interface created"}[call.Attach], "node", n.Name, "interface", id)
		}
		return
	case refused:
		// The codes for a full interface and for an empty vSwitch are not documented: the count of the vSwitch tells.
		c.blocks[key] = c.blocks[key].more(c.times.least, c.times.mostBlock)
		c.Log.Warn("call refused", "node", n.Name, "interface", cmp.Or(call.Interface, call.Create), "err", err, "again", c.blocks[key].wait)
	default:
		c.fail(ctx, n, err)
	}
}

// ask reads what the cloud has of a node.
func (c *Controller) ask(ctx context.Context, n *node) (out Cloud, err error) {
	client, err := c.client()
	if err != nil {
		return out, err
	}
	if err := c.limit.Wait(ctx); err != nil {
		return out, err
	}
	if out.Interfaces, err = client.Interfaces(ctx, cloud.Filter{Instance: n.Instance}); err != nil {
		return out, err
	}
	now := time.Now()
	nothing := len(out.Interfaces) == 0 // not even the primary interface: maybe this account does not have the instance
	if nothing || now.Sub(n.asked) > c.times.subnets {
		if err := c.limit.Wait(ctx); err != nil {
			return out, err
		}
		all, err := client.Instances(ctx, n.Instance)
		if err != nil {
			return out, err
		}
		n.instance = cloud.Instance{}
		for _, i := range all {
			n.instance = i
		}
		if err := c.askLimits(ctx, client, n); err != nil {
			return out, err
		}
		switch {
		case len(all) > 0: // else the list may be older than the instance
			n.asked = now
		case nothing:
			return out, &cloud.Error{Action: "DescribeInstances", Kind: cloud.NotFound, Message: "no such instance in this account and region"}
		}
	}
	var unknown []string
	look := func(id string) {
		if s, ok := c.subnets[id]; (!ok || now.Sub(s.asked) > c.times.subnets) && !slices.Contains(unknown, id) {
			unknown = append(unknown, id)
		}
	}
	for _, i := range out.Interfaces {
		if !i.Primary {
			look(i.VSwitch)
		}
	}
	if c.Terms.Interfaces > 0 {
		for _, id := range c.Terms.VSwitches {
			look(id)
		}
		if out.Waiting, err = c.waiting(ctx, client, n, out.Interfaces); err != nil {
			return out, err
		}
	}
	if len(unknown) > 0 {
		if err := c.limit.Wait(ctx); err != nil {
			return out, err
		}
		all, err := client.VSwitches(ctx, unknown...)
		if err != nil {
			return out, err
		}
		for _, v := range all {
			if v.CIDR.IsValid() && v.CIDR.Addr().Is4() {
				c.subnets[v.ID] = subnet{Subnet{CIDR: v.CIDR, Free: v.Free}, v.Zone, now}
			}
		}
	}
	out.Subnets, out.Blocked = map[string]Subnet{}, map[string]bool{}
	for id, s := range c.subnets {
		s.Gateway, _ = gatewayOf(n.instance.Addresses, s.CIDR)
		out.Subnets[id] = s.Subnet
		if s.Free == 0 {
			out.Blocked[id] = true
		}
	}
	for key, b := range c.blocks {
		if b.until.After(now) {
			out.Blocked[key] = true
			n.due = earlier(n.due, b.until)
		}
	}
	if n.expected.open(out.Interfaces, out.Waiting, now) {
		out.Blocked[n.Instance] = true
		n.due = earlier(n.due, now.Add(2*c.times.least))
	}
	for _, i := range out.Interfaces {
		if s, ok := c.subnets[i.VSwitch]; ok && s.Free == 0 && now.Sub(s.asked) > c.times.mostBlock {
			delete(c.subnets, i.VSwitch) // ask again whether it is still empty
			n.due = time.Time{}
		} else if ok && s.Free == 0 {
			n.due = earlier(n.due, s.asked.Add(c.times.mostBlock+time.Second))
		}
	}
	return out, nil
}

// askLimits reads the limits of the instance's type.
func (c *Controller) askLimits(ctx context.Context, client *cloud.Client, n *node) error {
	if c.Service != cloud.ECS || n.instance.Type == "" {
		return nil
	}
	l, known := c.limits[n.instance.Type]
	if !known || time.Since(l.asked) > c.times.subnets {
		if err := c.limit.Wait(ctx); err != nil {
			return err
		}
		l.asked = time.Now()
		var err error
		if l.Limits, err = client.Limits(ctx, n.instance.Type); err != nil {
			return err
		}
		c.limits[n.instance.Type] = l
	}
	n.limits = l.Limits
	return nil
}

// waiting returns the interfaces that were made for the instance and not attached yet, if it is to have more.
func (c *Controller) waiting(ctx context.Context, client *cloud.Client, n *node, attached []cloud.Interface) (out []cloud.Interface, err error) {
	secondary := 0
	for _, i := range attached {
		if !i.Primary {
			secondary++
		}
	}
	if secondary >= c.terms(n).Interfaces {
		return nil, nil
	}
	if err := c.limit.Wait(ctx); err != nil {
		return nil, err
	}
	all, err := client.Interfaces(ctx, cloud.Filter{Status: cloud.Available})
	for _, i := range all {
		if madeFor(i.Name) == n.Instance {
			out = append(out, i)
		}
	}
	return out, err
}

// gatewayOf returns the gateway of a subnet: what the instance names, else the third address from the end, as it is
// in this cloud's subnets.
func gatewayOf(known []cloud.GatewayAddress, cidr netip.Prefix) (gateway netip.Addr, sure bool) {
	for _, g := range known {
		if cidr.Contains(g.Address) && g.Gateway.IsValid() {
			return g.Gateway, true
		}
	}
	b := cidr.Masked().Addr().As4()
	last := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) | (1<<(32-cidr.Bits()) - 1)
	last -= 2
	return netip.AddrFrom4([4]byte{byte(last >> 24), byte(last >> 16), byte(last >> 8), byte(last)}), false
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// retry looks again soon at a node whose EdgeNode could not be read or written.
func (c *Controller) retry(ctx context.Context, n *node, err error) {
	n.due = time.Now().Add(c.times.least)
	if errors.Is(err, errConflict) || ctx.Err() != nil {
		return
	}
	n.due = time.Now().Add(10 * c.times.least)
	n.problem(cluster.Problem{Object: "EdgeNode/" + n.Name, Reason: edgeNodeRefused, Want: "to read and to write it", Got: err.Error(),
		Next: "apply the CRDs and the ClusterRole edgeway-controller of this version; the node keeps what it has"})
}

// fail pauses all calls after an error that concerns all nodes, and the calls of this node for longer: the cause may be its own,
// and it must not be first again after each pause.
func (c *Controller) fail(ctx context.Context, n *node, err error) {
	if ctx.Err() != nil {
		return
	}
	first := n.failed.wait == 0
	if first {
		n.since = time.Now()
	}
	c.pause = c.pause.more(c.times.least, c.times.mostPause)
	n.failed = n.failed.more(c.times.least, c.times.mostPause)
	n.due = n.failed.until
	if c.away == nil && first {
		c.Log.Warn("cloud", "err", err, "next", "nodes keep what they have; the controller tries again by itself")
	}
	c.away = &cluster.Problem{Object: "cloud", Reason: cloudUnreachable, Want: "an answer; there is none since " + n.since.UTC().Format(time.RFC3339), Got: err.Error(),
		Next: "nodes keep what they have, and new nodes wait for addresses"}
	n.problem(*c.away)
}

// leave removes the EdgeNodes of nodes that are gone for good: the Node and the instance, or another Node has the
// instance now.
func (c *Controller) leave(ctx context.Context) {
	for _, o := range c.server.orphans() {
		b := c.blocks["orphan "+o.name]
		if time.Now().Before(b.until) || time.Now().Before(c.pause.until) {
			continue
		}
		taken := slices.ContainsFunc(slices.Collect(maps.Values(c.nodes)), func(n *node) bool { return n.Instance == o.instance })
		if !taken {
			var all []cloud.Instance
			client, err := c.client()
			if err == nil {
				err = c.limit.Wait(ctx)
			}
			if err == nil {
				all, err = client.Instances(ctx, o.instance)
			}
			gone := err == nil && len(all) == 0
			if !gone || b.wait == 0 { // only a second answer without it, a while after the first, proves it
				if b = b.more(c.times.orphan, c.times.orphan); !gone {
					b.wait = 0
				}
				c.blocks["orphan "+o.name] = b
				continue
			}
		}
		if err := c.server.remove(ctx, o); err != nil {
			c.Log.Warn("delete EdgeNode", "name", o.name, "err", err)
			c.blocks["orphan "+o.name] = b.more(c.times.orphan, c.times.orphan)
			continue
		}
		c.Log.Info("EdgeNode deleted", "name", o.name, "instance", o.instance)
	}
}

// sweep reports the interfaces that are left over: nobody uses them, and they take addresses of their vSwitch. They are
// never deleted here: only a person knows whether they are still wanted.
func (c *Controller) sweep(ctx context.Context) {
	n := &c.left.node
	if n.due.After(time.Now()) || c.pause.until.After(time.Now()) {
		return
	}
	n.due = time.Now().Add(c.times.full)
	client, err := c.client()
	var all []cloud.Interface
	if err == nil {
		if c.limit.Wait(ctx) != nil {
			return
		}
		all, err = client.Interfaces(ctx, cloud.Filter{Status: cloud.Available})
	}
	if err != nil {
		n.problems = slices.DeleteFunc(n.problems, passing)
		c.fail(ctx, n, err)
		return
	}
	was := c.left.since
	n.problems, n.failed, c.left.since = nil, backoff{}, map[string]time.Time{}
	for _, i := range all {
		instance := madeFor(i.Name)
		if instance == "" {
			continue
		}
		since, known := was[i.ID]
		if !known {
			since = time.Now() // it may be on its way
		}
		c.left.since[i.ID] = since
		if known {
			n.problem(cluster.Problem{Object: "interface " + i.ID, Reason: eniLeft, Want: "an instance that has it; it was made for " + instance, Got: "none, status " + i.Status,
				Next: "attach it again, or delete it in the console: it takes an address of vSwitch " + i.VSwitch})
		}
	}
	c.say(ctx, n)
}

func granted(u *cluster.Uplinks) (n int) {
	if u != nil {
		for _, i := range u.Interfaces {
			n += len(addresses(i))
		}
	}
	return n
}
