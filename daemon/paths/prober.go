package paths

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

const (
	// after is how many questions in a row a node must leave unanswered before anything is concluded. A start, a change
	// of mode and a lost packet are shorter.
	after = 3
	// patience bounds the wait for an answer. It is longer than any path of a LAN, and than ARP for a first packet.
	patience = 2 * time.Second
	// hostPause divides the wait for answers. After that part of the wait, the nodes themselves are asked: each says
	// whether its canary heard the question of this node's canary, which must have arrived by then.
	hostPause = 4
	// lately is how many rounds a question from another canary counts as heard.
	lately = 3
)

// Canary is this node's canary.
type Canary struct {
	ID     any // another value: another canary
	Addrs  []netip.Addr
	MTU    int                         // of its link, in bytes
	Inside func(do func() error) error // runs do in its network namespace
}

// Options of a Prober. Run alone calls the functions.
type Options struct {
	Version string
	Port    uint16        // UDP, the same on all nodes
	Every   time.Duration // from round to round, the same on all nodes
	Canary  func() (Canary, bool)
	Cluster func() *Cluster // nil: it is not known; the same pointer: nothing changed
	Changed func()          // the problems are others than before
	Log     *slog.Logger
}

// Prober asks other nodes, and answers them.
type Prober struct {
	o      Options
	secret []byte // of the passes
	report atomic.Pointer[Report]
	sent   atomic.Uint64
	lost   atomic.Uint64
	own    atomic.Pointer[station] // what the readers need to answer; nil: nobody is answered

	mu      sync.Mutex // guards the fields below
	waiting map[uint64]*question
	left    int                   // questions without an answer
	all     chan struct{}         // closed when left is 0
	heard   map[pathKey]time.Time // the last question from each node's canary

	// The fields below belong to Run.
	paths   map[pathKey]*path
	round   int
	known   *Cluster
	who     senders           // of known
	before  []cluster.Problem // of the last judgement: only what two in a row say is told
	sockets []*net.UDPConn
	readers sync.WaitGroup
	opened  sockets
}

// Report is what the rounds say.
type Report struct {
	Findings []Finding // sorted by node and family
	Problems []cluster.Problem
}

// New returns a Prober that has asked nobody yet.
func New(o Options) *Prober {
	p := &Prober{o: o, secret: newSecret(), heard: map[pathKey]time.Time{}, paths: map[pathKey]*path{}}
	p.report.Store(&Report{})
	return p
}

// Report returns what the last rounds say.
func (p *Prober) Report() Report { return *p.report.Load() }

// Count returns the number of questions to canaries so far, and of those that were not answered.
func (p *Prober) Count() (sent, lost uint64) { return p.sent.Load(), p.lost.Load() }

// sockets says what was opened: other values need other sockets.
type sockets struct {
	canary any
	hosts  [families]netip.Addr
}

// station is this node as its answers describe it, and who may ask.
type station struct {
	answer  Answer
	senders senders
	key     Key
	canary  [families]*net.UDPConn
	host    [families]*net.UDPConn
}

// senders finds the node that has an address.
type senders struct {
	nodes []Node // sorted by name
	hosts map[netip.Addr]string
	cidrs map[netip.Prefix]string
	bits  [families][]int // the lengths of cidrs
}

func newSenders(nodes []Node) senders {
	s := senders{nodes: nodes, hosts: map[netip.Addr]string{}, cidrs: map[netip.Prefix]string{}}
	for _, n := range nodes {
		for _, a := range n.Hosts {
			s.hosts[a] = n.Name
		}
		for _, c := range n.CIDRs {
			s.cidrs[c.Masked()] = n.Name
			if f := familyOf(c.Addr()); !slices.Contains(s.bits[f], c.Bits()) {
				s.bits[f] = append(s.bits[f], c.Bits())
			}
		}
	}
	return s
}

func (s senders) has(name string) bool {
	_, ok := slices.BinarySearchFunc(s.nodes, name, func(n Node, name string) int { return cmp.Compare(n.Name, name) })
	return ok
}

func (s senders) owner(a netip.Addr) (node string, ok bool) {
	if node, ok = s.hosts[a]; ok {
		return node, true
	}
	for _, bits := range s.bits[familyOf(a)] {
		if c, err := a.Prefix(bits); err == nil {
			if node, ok = s.cidrs[c]; ok {
				return node, true
			}
		}
	}
	return "", false
}

// kind is what a question asks.
type kind int

const (
	small kind = iota
	full
	host
	kinds
)

type pathKey struct {
	node string
	family
}

// path is what was learned about one node in one family.
type path struct {
	node       Node
	verdict    [kinds]tally
	said       Answer
	rtt        time.Duration
	size       int // of the last full-size question
	sent, lost int // questions to the canary
	translated netip.Addr
	round      int    // of the last question
	pass       uint64 // of the node's last answer at its own address
	hope       hope
}

// counts reports whether the path is known to work, or must.
func (at *path) counts() bool { return at.hope == sure || at.rtt > 0 }

// closed forgets the questions to a canary that cannot be asked any more.
func (at *path) closed() {
	at.verdict[small], at.verdict[full], at.sent, at.lost, at.rtt, at.translated = tally{}, tally{}, 0, 0, 0, netip.Addr{}
}

// tally counts the questions in a row that were not answered.
type tally struct {
	asked    bool
	misses   int
	otherKey bool // of the last one, something with another key came back
}

func (t *tally) count(answered, otherKey bool) {
	t.asked, t.otherKey = true, otherKey && !answered
	if answered {
		t.misses = 0
	} else {
		t.misses++
	}
}

func (t tally) verdict() Verdict {
	switch {
	case t.asked && t.misses == 0:
		return Answers
	case t.misses >= after && t.otherKey:
		return OtherKey
	case t.misses >= after:
		return Silent
	}
	return Unsure
}

// question is one that was sent in this round.
type question struct {
	key    pathKey
	kind   kind
	to     netip.Addr
	sent   time.Time
	answer *Answer
	rtt    time.Duration
	// otherKey: an answer without a right tag came. It ends no wait: a right one may follow.
	otherKey bool
}

// Run asks and answers until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	defer p.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(p.o.Every)
		if p.open(ctx) {
			p.ask(ctx)
		} else {
			p.publish(p.unable())
		}
	}
}

// unable is the report of a round without questions.
func (p *Prober) unable() *Report {
	r := &Report{}
	if c := p.o.Cluster(); c != nil && c.NoKey.Reason != "" {
		r.Problems = []cluster.Problem{c.NoKey}
	}
	return r
}

// publish makes the report the present one.
func (p *Prober) publish(r *Report) {
	old := p.report.Swap(r)
	if !slices.Equal(old.Problems, r.Problems) {
		p.o.Changed()
	}
}

// open opens the sockets that the canary and the node's addresses need. Without a canary the node asks nobody, and still
// says that it is there. open reports false without the key that there must be.
func (p *Prober) open(ctx context.Context) bool {
	canary, ok := p.o.Canary()
	c := p.o.Cluster()
	if c == nil || c.NoKey.Reason != "" {
		p.close()
		return false
	}
	want := sockets{canary: canary.ID}
	for f := range families {
		want.hosts[f], _ = f.of(c.Self.Hosts)
	}
	old := p.own.Load()
	if old == nil || p.opened != want {
		p.close()
		old = &station{}
		var err error
		if ok {
			err = canary.Inside(func() error {
				var errs []error
				for f := range families {
					if a, ok := f.of(canary.Addrs); ok {
						conn, err := listen(ctx, netip.AddrPortFrom(a, p.o.Port))
						old.canary[f] = conn
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})
		}
		for f := range families {
			if a := want.hosts[f]; a.IsValid() {
				conn, herr := listen(ctx, netip.AddrPortFrom(a, p.o.Port))
				old.host[f], err = conn, errors.Join(err, herr)
			}
		}
		if err != nil {
			p.o.Log.Debug("paths", "err", err) // the canary ended, or an address is not here; the next round tries again
		}
		p.opened = want
		if err != nil {
			p.opened = sockets{}
		}
	}
	if p.known != c {
		p.known, p.who = c, newSenders(c.Nodes)
	}
	own := &station{senders: p.who, key: c.Key, canary: old.canary, host: old.host}
	own.answer = Answer{Name: c.Self.Name, Version: p.o.Version, Terms: c.Self.Terms, MTU: canary.MTU, Cause: p.cause(c)}
	for _, a := range canary.Addrs {
		if c.Self.holds(a) {
			own.answer.Canary = append(own.answer.Canary, a)
		} else {
			own.answer.Uplink = append(own.answer.Uplink, a)
		}
	}
	fresh := p.own.Load() == nil
	p.own.Store(own)
	if fresh {
		for f := range families {
			p.read(own.canary[f], true)
			p.read(own.host[f], false)
		}
	}
	return true
}

// cause is this node's own problem that cuts its pods off, for the answers.
func (p *Prober) cause(c *Cluster) string {
	for _, r := range []cluster.Reason{cluster.ForwardDropped, cluster.HostDropped, cluster.SilentGateway} {
		if c.Known[r] {
			return string(r)
		}
	}
	for _, x := range p.report.Load().Problems {
		if x.Object == "Node/"+c.Self.Name && (x.Reason == cluster.ForwardDropped || x.Reason == cluster.TunnelFiltered || x.Reason == cluster.UplinkFiltered) {
			return string(x.Reason)
		}
	}
	return ""
}

func (p *Prober) close() {
	p.own.Store(nil)
	for _, c := range p.sockets {
		c.Close() // the error says nothing: every datagram stands alone
	}
	p.readers.Wait()
	p.sockets, p.opened = nil, sockets{}
}

// read answers the questions that arrive at a socket, and notes the answers, until the socket is closed.
func (p *Prober) read(conn *net.UDPConn, atCanary bool) {
	if conn == nil {
		return
	}
	p.sockets = append(p.sockets, conn)
	p.readers.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			switch own := p.own.Load(); {
			case errors.Is(err, net.ErrClosed):
				return
			case err == nil && own != nil:
				p.take(own, conn, buf[:n], from, atCanary)
			}
		}
	})
}

// take takes one datagram.
func (p *Prober) take(own *station, conn *net.UDPConn, b []byte, from netip.AddrPort, atCanary bool) {
	m, ok := decode(b)
	if !ok {
		return
	}
	src := from.Addr().Unmap().WithZone("")
	node, known := own.senders.owner(src)
	if !known && atCanary && m.Kind == questionOf {
		node, known = p.admitted(own, src, m)
	}
	if !known && m.Kind == questionOf { // nobody else gets an answer
		return
	}
	now := time.Now()
	proven := own.key.proves(b)
	switch m.Kind {
	case answerTo, otherKey:
		p.mu.Lock()
		defer p.mu.Unlock()
		q := p.waiting[m.ID]
		switch {
		case q == nil || q.answer != nil || !known && src != q.to:
			return
		case m.Kind == otherKey || !proven:
			q.otherKey = true
			return
		case own.key.own != nil && q.kind != host && m.Name != q.key.node:
			return // somebody led the question to another node
		}
		q.answer, q.rtt = &m.Answer, now.Sub(q.sent)
		if p.left--; p.left == 0 {
			close(p.all)
		}
	case questionOf:
		if !proven {
			if out, ok := encode(message{Kind: otherKey, ID: m.ID}, min(otherBytes, len(b))); ok {
				_, _ = conn.WriteToUDPAddrPort(out, from)
			}
			return
		}
		reply := message{Kind: answerTo, ID: m.ID, Answer: own.answer}
		reply.Saw = src
		if !atCanary {
			reply.Pass = p.grant(own, node, src, m)
		}
		p.mu.Lock()
		asker := pathKey{node, familyOf(src)}
		if atCanary {
			p.heard[asker] = now
		}
		limit := now.Add(-lately * p.o.Every)
		reply.HeardYou = p.heard[asker].After(limit)
		for other, at := range p.heard {
			switch {
			case !at.After(limit):
				delete(p.heard, other)
			case other.node != node && other.family == asker.family:
				reply.Heard++
			}
		}
		p.mu.Unlock()
		if out, ok := encode(reply, len(b)); ok { // never longer than the question
			own.key.sign(out)
			_, _ = conn.WriteToUDPAddrPort(out, from) // a lost answer is the asker's finding
		}
	}
}

// ask asks one round of questions, and judges.
func (p *Prober) ask(ctx context.Context) {
	own := p.own.Load()
	c := p.known
	p.round++
	chosen := p.choose(c)
	p.mu.Lock()
	p.waiting, p.left, p.all = map[uint64]*question{}, 1, make(chan struct{}) // one is left until all are sent
	p.mu.Unlock()
	wait := min(patience, p.o.Every*2/3)
	for _, i := range chosen {
		p.askCanary(own, c, i)
	}
	pause(ctx, wait/hostPause)
	for _, i := range chosen {
		p.askHost(own, c, i)
	}
	p.mu.Lock()
	if p.left--; p.left == 0 {
		close(p.all)
	}
	all := p.all
	p.mu.Unlock()
	timer := time.NewTimer(wait)
	select {
	case <-ctx.Done():
	case <-all:
	case <-timer.C:
	}
	timer.Stop()
	if ctx.Err() != nil {
		return
	}
	p.settle(own)
	p.forget(c)
	p.judge(own, c)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// choose returns the nodes of this round: the cluster's choice, and those that did not answer.
func (p *Prober) choose(c *Cluster) []int {
	chosen := c.Choice.Round(p.round)
	suspects := map[string]bool{}
	for key, at := range p.paths {
		if at.counts() && (at.verdict[small].misses > 0 || at.verdict[full].misses > 0) {
			suspects[key.node] = true
		}
	}
	left := suspectsMost
	for i, n := range c.Nodes {
		if suspects[n.Name] && left > 0 && !slices.Contains(chosen, i) {
			chosen = append(chosen, i)
			left--
		}
	}
	return chosen
}

// at returns the path to a node, for questions of this round.
func (p *Prober) at(n Node, f family) *path {
	key := pathKey{n.Name, f}
	if p.paths[key] == nil {
		p.paths[key] = &path{}
	}
	at := p.paths[key]
	at.node, at.round = n, p.round
	return at
}

// askCanary sends the questions to the canary of a node: to the address that the node said, or that a canary asks for. A
// node without pod CIDRs may have a canary, which it alone knows: the node itself is asked.
func (p *Prober) askCanary(own *station, c *Cluster, i int) {
	n := c.Nodes[i]
	for f := range families {
		conn, known := own.canary[f], p.paths[pathKey{n.Name, f}]
		addr, ok := n.canary(f, known, own.senders)
		_, outside := f.of(own.answer.Uplink)
		hope := c.hope(n, addr, !outside)
		if conn == nil || !ok && len(n.CIDRs) > 0 || ok && hope == none {
			if known != nil {
				known.closed()
			}
			continue
		}
		at := p.at(n, f)
		at.hope = hope
		var m message
		if outside && !c.hides(addr) {
			m.Name, m.Pass = c.Self.Name, at.pass
		}
		if !ok || m.Name != "" && m.Pass == 0 {
			at.closed()
			continue
		}
		away := at.verdict[small].misses >= after && at.verdict[host].misses >= after
		if away && !n.holds(addr) || !at.counts() && at.sent >= hopeTries && p.round%hopeEvery != 0 {
			continue
		}
		to, q := netip.AddrPortFrom(addr, p.o.Port), question{key: pathKey{n.Name, f}, kind: small}
		p.send(own, conn, to, m, q, smallBytes)
		if at.said.MTU > 0 && at.verdict[small].verdict() == Answers {
			at.size, q.kind = min(own.answer.MTU, at.said.MTU), full
			p.send(own, conn, to, m, q, min(at.size-f.headers(), maxDatagram))
		}
	}
}

// canary returns the address of the node's canary: the one that it said, or else the one that a canary asks for.
func (n Node) canary(f family, at *path, known senders) (netip.Addr, bool) {
	if at != nil && at.said.Name == n.Name {
		if a, ok := f.of(at.said.Uplink); ok && known.admits(a) {
			return a, true
		}
		if a, ok := f.of(at.said.Canary); ok && n.holds(a) {
			return a, true
		}
	}
	return f.of(n.Canary)
}

// way returns how packets to an address in one of the node's pod CIDRs leave.
func (n Node) way(a netip.Addr) Way {
	for i, c := range n.CIDRs {
		if c.Contains(a) && i < len(n.Ways) {
			return n.Ways[i]
		}
	}
	return Way{}
}

// askHost asks the node itself, where askCanary did not leave it out.
func (p *Prober) askHost(own *station, c *Cluster, i int) {
	n := c.Nodes[i]
	for f := range families {
		key := pathKey{n.Name, f}
		to, ok := f.of(n.Hosts)
		if at := p.paths[key]; own.host[f] == nil || !ok || at == nil || at.round != p.round {
			continue
		}
		var m message
		if a, ok := f.of(own.answer.Uplink); ok {
			m.Uplink = []netip.Addr{a}
		}
		p.send(own, own.host[f], netip.AddrPortFrom(to, p.o.Port), m, question{key: key, kind: host}, smallBytes)
	}
}

// send sends a question. One that cannot be sent is not answered.
func (p *Prober) send(own *station, conn *net.UDPConn, to netip.AddrPort, m message, q question, size int) {
	m.Kind, m.ID = questionOf, rand.Uint64()
	out, ok := encode(m, size)
	if !ok {
		return
	}
	own.key.sign(out)
	q.sent, q.to = time.Now(), to.Addr()
	p.mu.Lock()
	p.waiting[m.ID] = &q
	p.left++
	p.mu.Unlock()
	_, _ = conn.WriteToUDPAddrPort(out, to)
}

// settle counts the answers of the round.
func (p *Prober) settle(own *station) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.waiting {
		at := p.paths[q.key]
		at.verdict[q.kind].count(q.answer != nil, q.otherKey)
		if q.kind != host {
			p.sent.Add(1)
			if at.sent++; q.answer == nil {
				at.lost++
				p.lost.Add(1)
			}
		}
		if q.answer == nil {
			continue
		}
		if q.kind == small {
			at.rtt, at.translated = q.rtt, netip.Addr{}
			if q.answer.Saw.IsValid() && !slices.Contains(own.answer.canaries(), q.answer.Saw) && !p.known.hides(q.to) {
				at.translated = q.answer.Saw
			}
		}
		if q.kind == host {
			at.pass = q.answer.Pass
		}
		if q.kind == host || at.verdict[host].misses > 0 || !at.verdict[host].asked {
			at.said = *q.answer
		}
	}
	p.waiting = nil
}

// forget drops the nodes that left the cluster, and those that were not asked for a whole cycle.
func (p *Prober) forget(c *Cluster) {
	there := map[string]bool{}
	for _, n := range c.Nodes {
		there[n.Name] = true
	}
	for key, at := range p.paths {
		if !there[key.node] || at.round+c.Choice.Cycle()+1 < p.round {
			delete(p.paths, key)
		}
	}
}

// judge publishes the findings and the problems.
func (p *Prober) judge(own *station, c *Cluster) {
	r := &Report{}
	self := Self{Name: c.Self.Name, Group: c.Self.Group, Terms: c.Self.Terms, CIDRs: c.Self.CIDRs, Known: c.Known}
	for _, a := range own.answer.Uplink {
		self.Uplink = append(self.Uplink, a.String()+" on "+c.Link(a))
	}
	for key, at := range p.paths {
		addr, ok := at.node.canary(key.family, at, own.senders)
		if !(at.counts() && at.sent > 0) && at.verdict[host].verdict() != OtherKey {
			continue
		}
		_, from := key.family.of(own.answer.Uplink)
		f := Finding{Node: at.node, Family: key.family.String(), Addr: addr, From: from, To: ok && !at.node.holds(addr), Canary: at.verdict[small].verdict(), Full: at.verdict[full].verdict(), Host: at.verdict[host].verdict(),
			Size: at.size, RTT: at.rtt, Sent: at.sent, Lost: at.lost, Said: at.said, Translated: at.translated, Way: at.node.way(addr)}
		r.Findings = append(r.Findings, f)
	}
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Node.Name, b.Node.Name), cmp.Compare(a.Family, b.Family))
	})
	judged := Judge(self, r.Findings)
	for _, x := range judged {
		if slices.ContainsFunc(p.before, func(y cluster.Problem) bool { return y.Object == x.Object && y.Reason == x.Reason }) {
			r.Problems = append(r.Problems, x)
		}
	}
	p.before = judged
	p.publish(r)
}
