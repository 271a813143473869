package uplinks

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cloud"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

// TestHistories plays random histories of one node, its EdgeNode, and the cloud: calls that are lost, late, or
// throttled, lists that are up to 30 seconds old, edits in the console, an EdgeNode that is deleted, an etcd that is restored
// from a backup, a controller that is killed between any two requests or works beside another one, a daemon that hears of changes late. Always:
//
//   - no address is unassigned while a pod has it, also when etcd is restored and old confirmations are there again;
//   - the node gives no pod an address that the controller may unassign;
//   - once faults have ended, each address of the interfaces is granted or withdrawn, and each granted address is
//     assigned;
//   - an instance that gets interfaces while it runs has all of them in the end, and no more were made than that, than
//     people took away, and than controllers were killed.
func TestHistories(t *testing.T) {
	histories := 3000
	if testing.Short() {
		histories = 200
	}
	for seed := range uint64(histories) {
		m := newModel(seed)
		for range 150 {
			m.step()
		}
		m.calm()
		if m.broken != "" {
			t.Fatalf("seed %d: %s\n%s", seed, m.broken, strings.Join(m.log, "\n"))
		}
	}
}

const (
	perInterface = 4
	staleness    = 30 * time.Second
)

type model struct {
	*rand.Rand
	now    time.Time
	broken string
	log    []string

	// The cloud.
	interfaces map[string][]netip.Addr
	waiting    map[string]bool // made, and not attached
	made       int
	mostMade   int
	next       netip.Addr
	lists      []snapshot // of every change, the newest last
	late       []lateCall // calls without an answer that are carried out later

	// The API server.
	spec    *cluster.Uplinks
	version int
	status  *cluster.UplinksStatus
	backups []backup // of every change

	// The node: the spec that it has, what is on its disk, its pods.
	had    *cluster.Uplinks
	leased map[netip.Addr]bool

	controllers []*controller // one, and sometimes a second
	terms       Terms
	tokens      int
}

type snapshot struct {
	at         time.Time
	interfaces map[string][]netip.Addr
	waiting    []string
}

// backup is what etcd had of the EdgeNode.
type backup struct {
	spec   *cluster.Uplinks
	status *cluster.UplinksStatus
}

// confirms reports whether the node had confirmed not to lease an address that a pod has now.
func (b backup) confirms(leased map[netip.Addr]bool) bool {
	return b.spec != nil && b.status != nil && slices.ContainsFunc(b.spec.Interfaces, func(u cluster.Uplink) bool {
		return slices.ContainsFunc(u.Withdrawn, func(w cluster.Withdrawal) bool {
			return leased[w.Address] && strings.HasPrefix(w.Token, spare) && slices.Contains(b.status.Confirmed, w)
		})
	})
}

type lateCall struct {
	at time.Time
	Call
}

// controller is what a process of the controller remembers, and where it stands.
type controller struct {
	memory   memory
	expected expected
	issued   issued
	step     Step
	at       time.Time // of the reads that step follows
	version  int
}

func newModel(seed uint64) *model {
	m := &model{Rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(0, 0), interfaces: map[string][]netip.Addr{"eni-1": nil, "eni-2": nil},
		next: addr("10.0.0.30"), leased: map[netip.Addr]bool{}, controllers: []*controller{{}}}
	m.waiting = map[string]bool{}
	m.terms = Terms{Fill: Fill{m.IntN(3)}, PerInterface: perInterface, Release: On}
	if m.IntN(2) == 0 { // an instance of ECS
		m.terms.Interfaces, m.terms.Batch, m.terms.Instance, m.terms.VSwitches = 1+m.IntN(3), 1+m.IntN(3), "i-1", []string{"vsw-1"}
		m.interfaces, m.mostMade = map[string][]netip.Addr{}, m.terms.Interfaces
	}
	m.changed()
	return m
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%4.0fs ", m.now.Sub(time.Unix(0, 0)).Seconds())+fmt.Sprintf(format, args...))
}

func (m *model) fail(format string, args ...any) {
	if m.broken == "" {
		m.broken = fmt.Sprintf(format, args...)
		m.note("BROKEN: %s", m.broken)
	}
}

func (m *model) changed() {
	s := snapshot{m.now, map[string][]netip.Addr{}, slices.Sorted(maps.Keys(m.waiting))}
	for id, all := range m.interfaces {
		s.interfaces[id] = slices.Clone(all)
	}
	m.lists = append(m.lists, s)
}

func (m *model) step() {
	m.now = m.now.Add(time.Duration(m.IntN(6000)) * time.Millisecond)
	m.arrive()
	switch n := m.IntN(100); {
	case n < 55:
		m.controllerActs(m.controllers[m.IntN(len(m.controllers))], true)
	case n < 80:
		m.nodeActs()
	case n < 90:
		m.podsCome()
	case n < 93:
		m.console()
	case n < 95:
		m.controllers[m.IntN(len(m.controllers))] = &controller{} // killed
		m.mostMade++
		m.note("controller killed")
	case n < 96:
		if len(m.controllers) == 1 {
			m.controllers = append(m.controllers, &controller{})
			m.mostMade += 2 // it knows nothing of the other one's calls, nor the other one of its
		} else {
			m.controllers = m.controllers[1:]
		}
	case n < 97 && len(m.late) == 0 && m.spec != nil && !m.withdraws(spare):
		m.note("EdgeNode deleted") // not while an address is on its way back: the token was all that said so
		m.spec, m.status, m.version = nil, nil, m.version+1
	case n < 98 && len(m.backups) > 0:
		m.restore(m.backups[m.IntN(len(m.backups))])
	case n < 99:
		m.now = m.now.Add(20 * time.Second)
	}
	if b := (backup{m.spec, m.status}); len(m.backups) == 0 || m.backups[len(m.backups)-1] != b {
		m.backups = append(m.backups, b)
	}
	if i := slices.IndexFunc(m.backups, func(b backup) bool { return b.confirms(m.leased) }); i >= 0 && m.IntN(3) == 0 { // the worst of all
		m.restore(m.backups[i])
		m.backups = slices.Delete(m.backups, i, i+1)
	}
}

// restore puts etcd back to what it had. The API server is away for a minute meanwhile: no call is on its way any more.
func (m *model) restore(b backup) {
	m.now = m.now.Add(oldest)
	m.arrive()
	m.spec, m.status, m.version = b.spec, b.status, m.version+1
	m.note("etcd is restored: %s, confirmed %v", Step{Write: cmp.Or(b.spec, &cluster.Uplinks{})}.text(), cmp.Or(b.status, &cluster.UplinksStatus{}).Confirmed)
}

func (m *model) withdraws(kind string) bool {
	return slices.ContainsFunc(m.spec.Interfaces, func(u cluster.Uplink) bool {
		return slices.ContainsFunc(u.Withdrawn, func(w cluster.Withdrawal) bool { return strings.HasPrefix(w.Token, kind) })
	})
}

// list is the cloud's answer, which can be old.
func (m *model) list(stale bool) (out, waiting []cloud.Interface) {
	i := len(m.lists) - 1
	if stale && m.IntN(3) == 0 {
		for range m.IntN(4) {
			if i > 0 && m.now.Sub(m.lists[i].at) < staleness { // what was until then can still be shown
				i--
			}
		}
	}
	for id, all := range m.lists[i].interfaces {
		n := eni(id, "10.0.0.2"+id[len(id)-1:])
		n.Addresses = slices.Clone(all)
		out = append(out, n)
	}
	for _, id := range m.lists[i].waiting {
		waiting = append(waiting, eni(id, "10.0.0.2"+id[len(id)-1:]))
	}
	slices.SortFunc(out, func(a, b cloud.Interface) int { return strings.Compare(a.ID, b.ID) })
	return out, waiting
}

// controllerActs makes the next request of a controller: it reads and decides, or it does what it decided.
func (m *model) controllerActs(c *controller, faults bool) {
	if c.step == (Step{}) {
		if faults && m.IntN(10) == 0 {
			return // the list failed
		}
		list, waiting := m.list(faults)
		in := Cloud{Interfaces: list, Waiting: waiting, Subnets: subnets, Blocked: map[string]bool{"i-1": c.expected.open(list, waiting, m.now)}}
		in.Lacking = c.memory.note(list, m.spec, m.now)
		m.tokens++
		m.terms.Token = fmt.Sprint(m.tokens)
		c.issued.note(m.spec)
		m.terms.Issued = c.issued
		c.step, c.at, c.version = decide(in, m.spec, m.status, m.terms), m.now, m.version
		return
	}
	s := c.step
	c.step = Step{}
	if m.now.Sub(c.at) > oldest/2 {
		return // what it read is too old to act on
	}
	if s.Write != nil {
		c.issued.add(s.Write, m.terms.Token)
		if c.version != m.version {
			return // 409 Conflict
		}
		text, _ := json.Marshal(s.Write)
		m.spec = &cluster.Uplinks{}
		_ = json.Unmarshal(text, m.spec)
		m.version++
		m.note("%s", s.text())
		return
	}
	kind := 0
	if faults {
		kind = m.IntN(6)
	}
	if grows := s.Call.Attach || s.Call.Create != ""; grows {
		c.expected = expected{attach: s.Call.Attach, until: m.now.Add(oldest)}
		if kind > 2 || !faults {
			c.expected.id = s.Call.Interface
			if s.Call.Create != "" {
				c.expected.id = fmt.Sprint("eni-", m.made+3)
			}
		}
	}
	m.note("%s (fault %d)", s.text(), kind)
	switch kind {
	case 1: // throttled, or lost on the way
	case 2: // without an answer, and carried out later
		m.late = append(m.late, lateCall{m.now.Add(time.Duration(m.IntN(20)) * time.Second), s.Call})
	default: // answered, or the answer is lost: it is not used anyway
		m.carryOut(s.Call)
	}
}

// arrive carries out the calls whose time has come, each at its own time: lists are older than the call for 30 seconds from
// then, and not from the present step.
func (m *model) arrive() {
	now := m.now
	slices.SortFunc(m.late, func(a, b lateCall) int { return a.at.Compare(b.at) })
	m.late = slices.DeleteFunc(m.late, func(l lateCall) bool {
		if now.Before(l.at) {
			return false
		}
		m.now = l.at
		m.carryOut(l.Call)
		return true
	})
	m.now = now
}

func (m *model) carryOut(c Call) {
	all, there := m.interfaces[c.Interface]
	i := slices.Index(all, c.Unassign)
	switch {
	case c.Create != "":
		m.waiting[fmt.Sprint("eni-", m.made+3)] = true
		if m.made++; m.made > m.mostMade {
			m.fail("%d interfaces were made, at most %d make sense", m.made, m.mostMade)
		}
	case c.Attach:
		if m.waiting[c.Interface] {
			delete(m.waiting, c.Interface)
			m.interfaces[c.Interface] = nil
		}
	case !there:
	case c.Assign > 0 && len(all)+c.Assign <= perInterface:
		for range c.Assign {
			m.interfaces[c.Interface] = append(slices.Clone(m.interfaces[c.Interface]), m.free())
		}
	case i >= 0:
		if m.leased[c.Unassign] {
			m.fail("%v was unassigned, and a pod has it", c.Unassign)
		}
		m.interfaces[c.Interface] = slices.Delete(slices.Clone(all), i, i+1)
	}
	m.changed()
}

// free is an address that the cloud chooses: soon the same address again, because the subnet is small.
func (m *model) free() netip.Addr {
	for {
		end := addr("10.0.0.45")
		if m.terms.Interfaces > 0 {
			end = addr("10.0.0.120")
		}
		if m.next = m.next.Next(); m.next == end {
			m.next = addr("10.0.0.30")
		}
		taken := false
		for _, all := range m.interfaces {
			taken = taken || slices.Contains(all, m.next)
		}
		if !taken {
			return m.next
		}
	}
}

// console is what people do.
func (m *model) console() {
	id := fmt.Sprint("eni-", 1+m.IntN(2))
	if m.made > 0 && m.IntN(2) == 0 {
		id = fmt.Sprint("eni-", 3+m.IntN(m.made))
	}
	all, there := m.interfaces[id]
	switch n := m.IntN(4); {
	case n == 0 && there:
		m.note("console: detach %s", id)
		delete(m.interfaces, id)
		m.mostMade++
	case n == 1 && !there && !m.waiting[id]:
		m.note("console: attach %s", id)
		m.interfaces[id] = nil
	case n == 2 && len(all) > 0:
		a := all[m.IntN(len(all))]
		m.note("console: remove %v", a)
		m.interfaces[id] = slices.DeleteFunc(slices.Clone(all), func(b netip.Addr) bool { return a == b })
	case n == 3 && there && len(all) < perInterface:
		m.interfaces[id] = append(slices.Clone(all), m.free())
		m.note("console: add an address to %s", id)
	}
	m.changed()
}

// nodeActs is one thing that the daemon does: hear the spec, or write the status of the spec that it has.
func (m *model) nodeActs() {
	if m.IntN(2) == 0 {
		m.had = m.spec // SetPool: from now on it leases by this spec
		return
	}
	if m.had == nil || m.spec == nil {
		return
	}
	s := &cluster.UplinksStatus{Used: len(m.leased)}
	for _, u := range m.had.Interfaces {
		for _, w := range u.Withdrawn {
			if !m.leased[w.Address] {
				s.Confirmed = append(s.Confirmed, w)
			}
		}
	}
	m.status = s
}

// podsCome and go.
func (m *model) podsCome() {
	if m.IntN(3) == 0 {
		for a := range m.leased {
			delete(m.leased, a)
			m.note("pod of %v ends", a)
			return
		}
	}
	if m.had == nil {
		return
	}
	for _, u := range m.had.Interfaces {
		for _, a := range addresses(u) {
			if !m.leased[a] && m.IntN(4) == 0 {
				m.leased[a] = true
				m.note("pod gets %v", a)
				return
			}
		}
	}
}

// calm ends the faults and lets everything settle. Then the spec is what the cloud has.
func (m *model) calm() {
	m.note("calm")
	m.controllers = m.controllers[:1]
	for range 300 {
		m.now = m.now.Add(2 * time.Second)
		m.arrive()
		m.controllerActs(m.controllers[0], false)
		m.nodeActs()
	}
	if m.spec == nil {
		if len(m.interfaces) > 0 || m.terms.Interfaces > 0 {
			m.fail("no EdgeNode")
		}
		return
	}
	granted, withdrawn := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, u := range m.spec.Interfaces {
		for _, a := range addresses(u) {
			granted[a] = true
			if !slices.Contains(m.interfaces[u.ID], a) {
				m.fail("%v is granted by %s and not assigned", a, u.ID)
			}
		}
		for _, w := range u.Withdrawn {
			withdrawn[w.Address] = true
			if !m.leased[w.Address] {
				m.fail("%v is withdrawn for ever, and no pod has it", w)
			}
		}
	}
	for id, all := range m.interfaces {
		for _, a := range all {
			if !granted[a] && !withdrawn[a] {
				m.fail("%v of %s leaked", a, id)
			}
		}
		if m.terms.Fill.Free == 0 && len(all) < perInterface {
			m.fail("%s has %d addresses, want %d", id, len(all), perInterface)
		}
	}
	if len(m.interfaces) < m.terms.Interfaces && m.terms.Fill.Free == 0 {
		m.fail("%d interfaces, want %d", len(m.interfaces), m.terms.Interfaces)
	}
	if free := len(granted) - len(m.leased); m.terms.Fill.Free > 0 && len(m.interfaces) == 2 && free < m.terms.Fill.Free && len(granted)+len(withdrawn) < 2*perInterface {
		m.fail("%d addresses are free, want %d", free, m.terms.Fill.Free)
	}
}
