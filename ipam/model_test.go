package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
)

// model is the store's contract in its simplest form: maps, and a walk for every question.
type model struct {
	seq    int
	boot   string
	leases map[Attachment]modelLease
	past   map[netip.Addr]modelAddr // every address that is known
	max    int                      // of free addresses
}

type modelLease struct {
	Lease
	seq int
}

type modelAddr struct {
	last   modelLease // its last lease
	held   bool
	freed  int
	forgot bool
}

func newModel(boot string, most int) *model {
	return &model{boot: boot, max: most, leases: map[Attachment]modelLease{}, past: map[netip.Addr]modelAddr{}}
}

func (m *model) next() int { m.seq++; return m.seq }

// free counts the known addresses that nobody holds.
func (m *model) free() (n int) {
	for _, p := range m.past {
		if !p.held {
			n++
		}
	}
	return n
}

// settle forgets the longest free addresses beyond the most that are known.
func (m *model) settle() {
	for m.free() > m.max {
		var oldest netip.Addr
		for a, p := range m.past {
			if o := m.past[oldest]; !p.held && (!oldest.IsValid() || p.freed < o.freed || p.freed == o.freed && a.Less(oldest)) {
				oldest = a
			}
		}
		delete(m.past, oldest)
	}
}

func (m *model) release(a Attachment) {
	l := m.leases[a]
	delete(m.leases, a)
	for _, x := range l.Addrs {
		p := m.past[x]
		p.held, p.freed = false, m.next()
		m.past[x] = p
	}
}

func (l modelLease) memory() string {
	return memoryKey(l.Network, l.Pod, l.Attachment.IfName)
}

// candidates of a set in ascending order.
func candidates(p Pool, set int) []netip.Addr {
	var out []netip.Addr
	for _, r := range p.Sets[set] {
		net, last := r.Subnet.Masked().Addr(), lastOf(r.Subnet)
		for a := net.Next(); a.IsValid() && r.Subnet.Contains(a); a = a.Next() {
			reserved := slices.ContainsFunc(p.Reserved, func(x netip.Prefix) bool { return x.Contains(a) })
			gateway := slices.ContainsFunc(p.Sets, func(s RangeSet) bool {
				return slices.ContainsFunc(s, func(x Range) bool { return x.Gateway == a })
			})
			if a == last && a.Is4() || reserved || gateway || r.First.IsValid() && a.Less(r.First) || r.Last.IsValid() && r.Last.Less(a) {
				continue
			}
			out = append(out, a)
		}
	}
	return out
}

func (m *model) allocate(req Request) (Lease, error) {
	ended := map[Attachment]bool{}
	own, has := m.leases[req.Attachment]
	if has {
		if own.BootID == m.boot && (req.Dead == nil || !req.Dead(own.Lease)) {
			return own.Lease, ErrHeld
		}
		ended[req.Attachment] = true
	}
	sets := make([][]netip.Addr, len(req.Pool.Sets))
	for i := range sets {
		sets[i] = candidates(*req.Pool, i)
	}
	asked := make([]netip.Addr, len(sets))
	for _, a := range req.Addrs {
		i := slices.IndexFunc(sets, func(s []netip.Addr) bool { return slices.Contains(s, a) })
		if i < 0 {
			return Lease{}, ErrNotInPool
		}
		if asked[i].IsValid() && asked[i] != a {
			return Lease{}, ErrInvalid
		}
		asked[i] = a
	}
	addrs := make([]netip.Addr, len(sets))
	for i := range sets {
		a, err := m.choose(req, own, has, sets[i], asked[i], ended)
		if err != nil {
			return Lease{}, err
		}
		addrs[i] = a
	}
	var order []modelLease
	for a := range ended {
		order = append(order, m.leases[a])
	}
	slices.SortFunc(order, func(a, b modelLease) int { return a.seq - b.seq })
	for _, l := range order {
		m.release(l.Attachment)
	}
	l := modelLease{Lease{Attachment: req.Attachment, Network: req.Network, Pod: req.Pod, Addrs: addrs, BootID: m.boot}, m.next()}
	m.leases[req.Attachment] = l
	for _, a := range addrs {
		m.past[a] = modelAddr{last: l, held: true}
	}
	return l.Lease, nil
}

func (m *model) choose(req Request, own modelLease, has bool, set []netip.Addr, asked netip.Addr, ended map[Attachment]bool) (netip.Addr, error) {
	mine := memoryKey(req.Network, req.Pod, req.Attachment.IfName)
	dead := func(l modelLease) bool {
		return l.BootID != m.boot || mine != "" && l.memory() == mine && req.Dead != nil && req.Dead(l.Lease)
	}
	if asked.IsValid() {
		p := m.past[asked]
		if p.held && !ended[p.last.Attachment] {
			if !dead(p.last) {
				return asked, ErrInUse
			}
			ended[p.last.Attachment] = true
		}
		return asked, nil
	}
	if has {
		for _, a := range own.Addrs {
			if slices.Contains(set, a) {
				return a, nil
			}
		}
	}
	best := netip.Addr{}
	if mine != "" {
		for _, a := range set {
			p, ok := m.past[a]
			if ok && !p.forgot && p.last.memory() == mine && (!p.held || dead(p.last)) && (!best.IsValid() || p.last.seq > m.past[best].last.seq) {
				best = a
			}
		}
	}
	if best.IsValid() {
		if p := m.past[best]; p.held {
			ended[p.last.Attachment] = true
		}
		return best, nil
	}
	never := slices.IndexFunc(set, func(a netip.Addr) bool { _, ok := m.past[a]; return !ok })
	for _, a := range set {
		p, ok := m.past[a]
		if ok && !p.held && (!best.IsValid() || p.freed < m.past[best].freed || p.freed == m.past[best].freed && a.Less(best)) {
			best = a
		}
	}
	if never >= 0 && (m.free() < m.max || !best.IsValid()) {
		return set[never], nil
	}
	if best.IsValid() {
		return best, nil
	}
	for _, a := range set {
		p := m.past[a]
		if p.last.BootID != m.boot && (!best.IsValid() || p.last.seq < m.past[best].last.seq) {
			best = a
		}
	}
	if best.IsValid() {
		ended[m.past[best].last.Attachment] = true
		return best, nil
	}
	return best, ErrExhausted
}

func (m *model) usage(p Pool) Usage {
	var u Usage
	in := map[netip.Addr]bool{}
	for i := range p.Sets {
		for _, a := range candidates(p, i) {
			in[a] = true
			u.Total++
		}
	}
	for a, x := range m.past {
		switch {
		case x.held && !in[a]:
			u.Outside++
		case x.held:
			u.Used++
		case in[a] && !x.forgot && x.last.memory() != "":
			u.Remembered++
		}
	}
	u.Free = u.Total - u.Used
	return u
}

// pools of a test: they overlap, contain each other, have holes and two families.
func modelPools(t testing.TB) []Pool {
	small := testPool(t, "10.1.0.0/28", "fd00::/123")
	large := testPool(t, "10.1.0.0/27", "fd00::/123")
	holes := testPool(t, "10.1.0.0/28")
	holes.Sets[0][0].Gateway = addr("10.1.0.1")
	holes.Reserved = []netip.Prefix{netip.MustParsePrefix("10.1.0.8/30")}
	shifted := testPool(t, "10.1.0.0/27")
	shifted.Sets[0][0].First, shifted.Sets[0][0].Last = addr("10.1.0.10"), addr("10.1.0.20")
	split := testPool(t, "10.1.0.0/30")
	split.Sets[0] = append(split.Sets[0], Range{Subnet: netip.MustParsePrefix("10.1.0.16/29")})
	return []Pool{small, large, holes, shifted, split}
}

func TestAgainstModel(t *testing.T) {
	runs, steps := 40, 400
	if testing.Short() {
		runs, steps = 3, 150
	}
	r := random(t)
	for run := range runs {
		t.Run(fmt.Sprint(run), func(t *testing.T) { modelRun(t, r, steps) })
	}
}

func modelRun(t *testing.T, r *rand.Rand, steps int) {
	path := filepath.Join(ramDir(t), "ipam.db")
	boots := 1
	m := newModel("boot-1", []int{4, 9, 20, maxFree}[r.IntN(4)])
	reopen := func() *Store {
		s := open(t, path, m.boot)
		s.maxFree = uint64(m.max)
		return s
	}
	s := reopen()
	pools := modelPools(t)
	pool := pools[r.IntN(len(pools))]
	var log []string
	defer func() {
		if t.Failed() {
			for _, l := range log[max(0, len(log)-40):] {
				t.Log(l)
			}
		}
	}()
	for range steps {
		m.settle() // after what the last step changed
		switch n := r.IntN(100); {
		case n < 50:
			req := Request{Attachment: Attachment{fmt.Sprint("c", r.IntN(40)), "eth0"}, Network: "n", Pool: &pool}
			if r.IntN(4) > 0 {
				req.Pod = Pod{Namespace: "default", Name: fmt.Sprint("p", r.IntN(20))}
			}
			if r.IntN(6) == 0 {
				req.Addrs = append(req.Addrs, addr("10.1.0.0"))
				for range r.IntN(24) {
					req.Addrs[0] = req.Addrs[0].Next()
				}
			}
			if r.IntN(3) == 0 {
				parity := r.IntN(2) == 0
				req.Dead = func(l Lease) bool { return (l.Attachment.ContainerID[1]%2 == 0) == parity }
			}
			wantLease, wantErr := m.allocate(req)
			got, err := s.Allocate(t.Context(), req)
			log = append(log, fmt.Sprintf("allocate %s pod %s addrs %v dead %v boot %s: %v %v, want %v %v", req.Attachment, req.Pod, req.Addrs, req.Dead != nil, m.boot, got.Addrs, err, wantLease.Addrs, wantErr))
			if !errors.Is(err, wantErr) || !slices.Equal(got.Addrs, wantLease.Addrs) {
				t.Fatal("differs from the model")
			}
		case n < 80:
			a := Attachment{fmt.Sprint("c", r.IntN(40)), "eth0"}
			_, has := m.leases[a]
			got, ok, err := s.Release(t.Context(), a)
			log = append(log, fmt.Sprintf("release %s: %v %v", a, got.Addrs, ok))
			if err != nil || ok != has || !slices.Equal(got.Addrs, m.leases[a].Addrs) {
				t.Fatal(got, ok, err)
			}
			if has {
				m.release(a)
			}
		case n < 84:
			pool = pools[r.IntN(len(pools))]
			log = append(log, fmt.Sprint("pool ", pool))
		case n < 88:
			s.Close()
			if r.IntN(2) == 0 {
				boots++
				m.boot = fmt.Sprint("boot-", boots)
			}
			s = reopen()
			log = append(log, "open "+m.boot)
		case n < 91:
			var all []netip.Addr
			for a := range m.past {
				all = append(all, a)
			}
			if len(all) == 0 {
				continue
			}
			slices.SortFunc(all, netip.Addr.Compare)
			a := all[r.IntN(len(all))]
			err := s.Forget(t.Context(), a)
			log = append(log, fmt.Sprintf("forget %s: %v", a, err))
			p := m.past[a]
			if p.held != errors.Is(err, ErrInUse) || !p.held && err != nil {
				t.Fatal(err)
			}
			if !p.held {
				p.freed, p.forgot = 0, true
				m.past[a] = p
			}
		case n < 94:
			l := Lease{Attachment: Attachment{fmt.Sprint("c", r.IntN(40)), "eth0"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(32))})}}
			old, has := m.leases[l.Attachment]
			err := s.Import(t.Context(), []Lease{l})
			log = append(log, fmt.Sprintf("import %s %v: %v", l.Attachment, l.Addrs, err))
			switch {
			case has && slices.Equal(old.Addrs, l.Addrs):
				if err != nil {
					t.Fatal(err)
				}
			case has:
				if !errors.Is(err, ErrHeld) {
					t.Fatal(err)
				}
			case m.past[l.Addrs[0]].held:
				if !errors.Is(err, ErrInUse) {
					t.Fatal(err)
				}
			default:
				if err != nil {
					t.Fatal(err)
				}
				l.BootID = m.boot
				x := modelLease{l, m.next()}
				m.leases[l.Attachment] = x
				m.past[l.Addrs[0]] = modelAddr{last: x, held: true}
			}
		default:
			u, err := s.Usage(pool)
			if wantUsage := m.usage(pool); err != nil || u != wantUsage {
				t.Fatalf("usage %+v, want %+v, %v", u, wantUsage, err)
			}
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.settle()
	leases, err := s.Leases()
	if err != nil || len(leases) != len(m.leases) {
		t.Fatal(len(leases), len(m.leases), err)
	}
	for _, l := range leases {
		if !slices.Equal(l.Addrs, m.leases[l.Attachment].Addrs) {
			t.Fatal(l)
		}
	}
	memories, err := s.Remembered()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range m.past {
		if !p.held && !p.forgot && p.last.memory() != "" {
			n++
		}
	}
	if n != len(memories) {
		t.Fatalf("%d memories, want %d", len(memories), n)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}
