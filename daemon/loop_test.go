package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgeway-cni/edgeway/bgp"
	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/routes"
)

// machine is the one fake: what Sync is asked for, with what must always hold.
type machine struct {
	t      *testing.T
	world  cluster.World
	err    error // of the source
	kernel error
	state  routes.State
	bgp    bgp.State
	looks  int
	// learned is what was asked of the routes that switches announce, and whether others of them
	// were to be deleted.
	learned routes.State
	deletes bool
	heard   []bgp.LearnedPath
	all     bool // the switches have said all
	saves   int
	log     strings.Builder
	loop    *loop
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, world: cluster.World{Nodes: []cluster.Node{testNode("a", 1), testNode("b", 2)}}}
	c := config.Defaults()
	c.NodeName = "a"
	m.loop = newLoop(c, slog.New(slog.NewTextHandler(&m.log, nil)))
	m.loop.source, m.loop.kernel, m.loop.speaker, m.loop.pods = m, m, switches{m}, noPods{}
	m.loop.turned = func(bool, time.Duration) { m.looks++ }
	m.loop.save = func(cluster.World) error { m.saves++; return nil }
	return m
}

// noPods is a node that serves none.
type noPods struct{}

func (noPods) Sync(context.Context, policy.Plan) ([]cluster.Problem, error) { return nil, nil }
func (noPods) Status(context.Context) (api.Leases, []cluster.Problem)       { return api.Leases{}, nil }
func (noPods) Held() policy.Held                                            { return policy.Held{} }

func testNode(name string, n byte) cluster.Node {
	return cluster.Node{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}}
}

func (m *machine) World(context.Context, cluster.World) (cluster.World, error) { return m.world, m.err }
func (m *machine) Watch(context.Context, func()) error                         { return nil }

func (m *machine) Host(context.Context) (routes.Host, error) {
	return routes.Host{Addrs: []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}}}, nil
}

func (m *machine) Ruled(context.Context, []netip.Addr) (map[netip.Addr]routes.Way, error) {
	return nil, nil
}

func (m *machine) ForeignRules(context.Context) ([]routes.ForeignRule, error) { return nil, nil }

func (m *machine) Sync(_ context.Context, s routes.Scope, desired routes.State) ([]routes.Change, error) {
	if s.Protocol == 0 || s.Protocol == routes.ProtoLearned {
		m.learned, m.deletes = desired, s.Protocol != 0
		return nil, nil
	}
	if s.Protocol != routes.ProtoNode {
		m.t.Errorf("scope %+v", s)
	}
	if m.kernel != nil {
		return []routes.Change{{Op: routes.Add, Object: desired.Routes[0], Err: m.kernel}}, m.kernel
	}
	m.state = desired
	return nil, nil
}

type switches struct{ m *machine }

func (s switches) Sync(_ context.Context, desired bgp.State) ([]bgp.Change, error) {
	s.m.bgp = desired
	return nil, nil
}

func (s switches) Learned(context.Context) ([]bgp.LearnedPath, bool) { return s.m.heard, s.m.all }

func (s switches) Status(context.Context) []bgp.Status { return nil }

// run runs the loop beside story, in a bubble in which time passes only when all wait.
func (m *machine) run(story func()) {
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan struct{})
	go func() { m.loop.run(ctx); close(done) }()
	synctest.Wait()
	story()
	cancel()
	<-done
}

func (m *machine) routed(node string) bool {
	return strings.Contains(fmt.Sprint(m.state), fmt.Sprintf("10.244.%s.0/24", node))
}

func TestNothingIsTouchedBeforeAnythingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.err = errors.New("directory is gone")
		m.kernel = errors.New("must not be asked")
		m.run(func() {
			time.Sleep(5 * time.Minute)
			if v := m.loop.seen.Load(); len(v.Problems) != 1 || v.Problems[0].Reason != "clusterUnreadable" {
				t.Errorf("problems: %v", v.Problems)
			}
			if m.looks > 30 {
				t.Errorf("%d looks in five minutes of failure", m.looks)
			}
			m.err, m.kernel = nil, nil
			m.loop.reread.fire()
			time.Sleep(time.Second)
			if !m.routed("2") {
				t.Errorf("state %v", m.state)
			}
		})
		if n := strings.Count(m.log.String(), "directory is gone"); n != 1 {
			t.Errorf("the same failure was logged %d times", n)
		}
	})
}

func TestClusterGoneKeepsRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.run(func() {
			m.err, m.world = errors.New("gone"), cluster.World{}
			m.loop.reread.fire()
			time.Sleep(time.Hour)
			if !m.routed("2") {
				t.Errorf("state %v", m.state)
			}
			if m.saves != 1 {
				t.Errorf("saved %d times", m.saves)
			}
		})
	})
}

// countedPods is a node that counts how often its pods were told something.
type countedPods struct {
	noPods
	told *int
}

func (c countedPods) Sync(context.Context, policy.Plan) ([]cluster.Problem, error) {
	*c.told++
	return nil, nil
}

// With 20,000 nodes each route waited for the disk. Pods still wait for it: after a reboot without the cluster their addresses
// must be those of the saved state.
func TestASlowDiskDelaysNoRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, told := newMachine(t), 0
		m.loop.pods = countedPods{told: &told}
		m.loop.save = func(cluster.World) error { time.Sleep(time.Minute); return nil }
		m.run(func() {
			if !m.routed("2") || told != 0 {
				t.Errorf("while the disk writes: state %v, pods told %d times", m.state, told)
			}
			time.Sleep(2 * time.Minute)
			if told == 0 {
				t.Error("the pods were not told when the disk had written")
			}
		})
	})
}

// An unreadable cluster stopped being a problem as soon as something else happened.
func TestClusterGoneIsSaidAsLongAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.run(func() {
			m.err = errors.New("line is cut")
			m.loop.reread.fire()
			for range 20 {
				time.Sleep(time.Second)
				m.loop.look.fire()
				synctest.Wait()
				time.Sleep(settle)
				if v := m.loop.seen.Load(); len(v.Problems) != 1 || v.Problems[0].Reason != "clusterUnreadable" {
					t.Fatalf("problems: %v", v.Problems)
				}
			}
			m.err = nil
			m.loop.reread.fire()
			time.Sleep(time.Second)
			if v := m.loop.seen.Load(); len(v.Problems) != 0 {
				t.Errorf("problems: %v", v.Problems)
			}
		})
		if n := strings.Count(m.log.String(), "line is cut"); n != 1 {
			t.Errorf("the same failure was logged %d times", n)
		}
	})
}

func TestBurstOfEventsCostsFewLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.run(func() {
			before := m.looks
			for range 1000 {
				m.loop.look.fire()
				time.Sleep(time.Millisecond)
			}
			if n := m.looks - before; n < 2 || n > 12 {
				t.Errorf("%d looks for a second of events", n)
			}
		})
	})
}

func TestKernelRefusalIsProblemAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.kernel = fmt.Errorf("route 10.244.2.0/24: %w", routes.ErrForeign)
		m.run(func() {
			if v := m.loop.seen.Load(); len(v.Problems) != 1 || v.Problems[0].Reason != "foreignRoute" {
				t.Errorf("problems: %v", v.Problems)
			}
			m.kernel = nil
			time.Sleep(retryMost)
			if v := m.loop.seen.Load(); len(v.Problems) != 0 || !m.routed("2") {
				t.Errorf("problems %v, state %v", v.Problems, m.state)
			}
		})
	})
}

func TestNewcomerDoesNotTakeAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.run(func() {
			thief := testNode("c", 3)
			thief.PodCIDRs = testNode("b", 2).PodCIDRs
			m.world.Nodes = append(m.world.Nodes[:2:2], thief)
			m.loop.reread.fire()
			time.Sleep(time.Second)
			v := m.loop.seen.Load()
			if !m.routed("2") || len(v.Problems) != 1 || v.Problems[0].Reason != "overlap" || v.Problems[0].Object != "Node/c" {
				t.Errorf("problems %v, state %v", v.Problems, m.state)
			}
			m.world.Nodes[1].PodCIDRs = testNode("b", 9).PodCIDRs
			m.loop.reread.fire()
			time.Sleep(time.Second)
			m.loop.reread.fire()
			time.Sleep(time.Second)
			if v := m.loop.seen.Load(); len(v.Problems) != 0 || !m.routed("9") || !m.routed("2") {
				t.Errorf("after the owner moved: problems %v, state %v", v.Problems, m.state)
			}
		})
	})
}

func TestLearnedRoutesAreDeletedOnlyWhenTheSwitchesHaveSaidAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.loop.config.BGP.Learn = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
		path := func(p string) bgp.LearnedPath {
			via := netip.MustParseAddr("192.0.2.254")
			return bgp.LearnedPath{Path: bgp.Path{Prefix: netip.MustParsePrefix(p), NextHop: via}, From: via}
		}
		look := func() string {
			m.loop.look.fire()
			time.Sleep(time.Second)
			return fmt.Sprint(m.learned, m.deletes)
		}
		m.run(func() {
			if m.learned.Routes != nil || m.deletes {
				t.Errorf("at first: %v, deletes %v", m.learned, m.deletes)
			}
			m.heard = []bgp.LearnedPath{path("192.168.5.0/24")}
			if got := look(); !strings.Contains(got, "192.168.5.0/24 via 192.0.2.254 dev eth0") || m.deletes {
				t.Error(got)
			}
			m.all = true
			if got := look(); !strings.Contains(got, "192.168.5.0/24") || !m.deletes {
				t.Error(got)
			}
			if strings.Contains(fmt.Sprint(m.state), "192.168.5.0/24") || !m.routed("2") {
				t.Errorf("among the routes to nodes: %v", m.state)
			}
			m.world, m.err = cluster.World{}, errors.New("gone")
			m.heard = nil
			if got := look(); len(m.learned.Routes) != 0 || !m.deletes {
				t.Error(got)
			}
		})
	})
}

func TestNothingToLearnRemovesLeftovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.heard = []bgp.LearnedPath{{Path: bgp.Path{Prefix: netip.MustParsePrefix("192.168.5.0/24")}}}
		m.run(func() {
			if m.learned.Routes != nil || !m.deletes {
				t.Errorf("%v, deletes %v", m.learned, m.deletes)
			}
		})
	})
}

// A node that joined 5,000 others filled the log with a line for each route, neighbour and forwarding entry.
func TestManyChangesAreFewLines(t *testing.T) {
	m := newMachine(t)
	var level slog.LevelVar
	m.loop.log = slog.New(slog.NewTextHandler(&m.log, &slog.HandlerOptions{Level: &level}))
	route := func(i int) routes.Route {
		return routes.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)}), 32), Link: "eth0", Protocol: routes.ProtoNode}
	}
	var changes []routes.Change
	for i := range 5000 {
		changes = append(changes, routes.Change{Op: routes.Add, Object: route(i)}, routes.Change{Op: routes.Add, Object: routes.FDB{Link: "edgeway.1"}},
			routes.Change{Op: routes.Delete, Object: route(i), Err: errors.New("no")})
	}
	changes = append(changes, routes.Change{Op: routes.Delete, Object: route(7)})
	lines := func() (n int) {
		o := outcome{said: map[string]bool{}}
		m.log.Reset()
		m.loop.changed(&o, changes, errors.New("no"))
		if len(o.problems) != 5000 {
			t.Errorf("%d problems, want one for each refusal", len(o.problems))
		}
		return strings.Count(m.log.String(), "\n")
	}
	if n := lines(); n != 2+1+linesMost+1 {
		t.Errorf("%d lines:\n%s", n, m.log.String())
	}
	for _, want := range []string{`msg="add route" count=5000 first="add route 10.64.0.0 dev eth0 proto 119"`, `msg="add fdb" count=5000`, `msg="delete route 10.64.0.7 dev eth0 proto 119"`, "4980 of them"} {
		if !strings.Contains(m.log.String(), want) {
			t.Errorf("no line %s", want)
		}
	}
	level.Set(slog.LevelDebug)
	if n := lines(); n != 10001+linesMost+1 {
		t.Errorf("%d lines at the level debug", n)
	}
}
