package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// edgewayd status of a node with an uplink ended the daemon: it took the uplink for a tunnel.
func TestUplinkIsNoTunnel(t *testing.T) {
	want := routes.State{
		Links: []routes.Link{{Name: "eth1", Up: true}, {Name: routes.VXLANLink, Kind: "vxlan", VXLAN: &routes.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("10.0.0.11")}}},
		Routes: []routes.Route{{Dst: netip.MustParsePrefix("10.10.2.0/24"), Via: netip.MustParseAddr("10.0.0.12"), Link: "eth0", Protocol: routes.ProtoNode},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.254"), Link: "eth1", Protocol: routes.ProtoNode, Table: routes.UplinkTable([6]byte{5: 1})}},
	}
	if got := tunnelStatus(want, want, nil); len(got) != 1 || got[0].Device != routes.VXLANLink {
		t.Errorf("tunnels %v, want the one", got)
	}
	if got := routeStatus(nil, want.Routes, want); len(got) != 1 || got[0].Dst != "10.10.2.0/24" {
		t.Errorf("routes to other nodes %v, want the one", got)
	}
}

// ruled is a machine whose kernel keeps policy rules.
type ruled struct {
	*machine
	rules  []routes.Rule
	refuse error // of one rule
	unread error
}

func (r *ruled) Sync(ctx context.Context, scope routes.Scope, desired routes.State) (changes []routes.Change, err error) {
	if r.unread != nil {
		return nil, r.unread
	}
	if scope.Rules {
		for n, rule := range desired.Rules {
			switch {
			case slices.Contains(r.rules, rule):
			case r.refuse != nil && n == 0:
				changes = append(changes, routes.Change{Op: routes.Add, Object: rule, Err: r.refuse})
				err = r.refuse
			default:
				changes = append(changes, routes.Change{Op: routes.Add, Object: rule})
			}
		}
		r.rules = slices.DeleteFunc(slices.Clone(desired.Rules), func(rule routes.Rule) bool {
			return slices.ContainsFunc(changes, func(c routes.Change) bool { return c.Object == any(rule) && c.Err != nil })
		})
	}
	return changes, err
}

// networkd deleted the rules of uplinks at each of its restarts, and only the log said so. Now a problem says so until ten
// minutes after the last time. Nothing else is taken for it: not the start, nor other addresses, nor a kernel that refuses
// a rule or cannot be read.
func TestRulesAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		k := &ruled{machine: m, unread: errors.New("interrupted")}
		m.loop.kernel = k
		m.loop.grant = func(uplink.Uplinks) error { return nil }
		grant := func(addrs ...string) {
			one := cluster.Uplink{MAC: "02:00:00:00:00:01", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254")}
			for _, a := range addrs {
				one.Addresses = append(one.Addresses, cluster.AddressRange{First: netip.MustParseAddr(a), Last: netip.MustParseAddr(a)})
			}
			m.world.EdgeNodes = []cluster.EdgeNode{{Name: "a", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{one}}}}
		}
		look := func() string {
			m.loop.reread.fire()
			time.Sleep(2 * time.Second)
			at := slices.IndexFunc(m.loop.seen.Load().Problems, func(p cluster.Problem) bool { return p.Reason == cluster.RulesRemoved })
			if at < 0 {
				return ""
			}
			return m.loop.seen.Load().Problems[at].String()
		}
		quiet := func(when string) {
			t.Helper()
			if p := look(); p != "" {
				t.Errorf("%s: %s", when, p)
			}
		}
		grant("10.0.0.31")
		m.run(func() {
			quiet("the kernel cannot be read")
			k.unread, k.refuse = nil, errors.New("no memory")
			quiet("a rule is refused")
			k.refuse = nil
			quiet("at the start")
			if len(k.rules) == 0 {
				t.Fatal("no rules")
			}
			grant("10.0.0.31", "10.0.0.32", "10.0.0.33")
			quiet("more addresses")
			grant("10.0.0.33")
			quiet("fewer addresses")
			grant("10.0.0.31", "10.0.0.33")
			quiet("an address comes back")

			said := func(when string, rules, times int) {
				t.Helper()
				k.rules = k.rules[rules:]
				want := fmt.Sprintf("EdgeNode/a: want the policy rules of uplinks to stay, got %d of them deleted by another program and put back, such as 512: from all lookup main suppress_prefixlength 31 proto 119; deletions so far: %d; edgewayd unmanage, ", rules, times)
				if p := look(); !strings.HasPrefix(p, want) {
					t.Errorf("%s:\ngot  %s\nwant %s...", when, p, want)
				}
			}
			said("all rules are gone", len(k.rules), 1)
			time.Sleep(9 * time.Minute)
			said("a rule is gone", 1, 2)
			time.Sleep(9 * time.Minute)
			if look() == "" {
				t.Error("the problem is gone after nine minutes")
			}
			time.Sleep(time.Minute)
			quiet("ten minutes later")
			said("a rule is gone again", 1, 1)
		})
	})
}

// The kubelet's maxPods was 110 on a node with 48 addresses, and nothing said so. An instance of a cloud may get more
// addresses; how many an ECS instance can have, only the controller knows.
func TestMostPods(t *testing.T) {
	u := uplink.Uplinks{Interfaces: []uplink.Interface{{Addresses: make([]netip.Addr, 25)}, {Addresses: make([]netip.Addr, 3)}}}
	for provider, want := range map[cluster.Provider]int{cluster.ProviderStatic: 38, cluster.ProviderENS: 60, cluster.ProviderECS: 0, "": 0} {
		if got := mostPods(&cluster.Uplinks{Provider: provider}, u); got != want {
			t.Errorf("provider %q: %d, want %d", provider, got, want)
		}
	}
	v6 := uplink.Interface{Subnet: netip.MustParsePrefix("fd00::/64"), Addresses: make([]netip.Addr, 20)}
	for want, one := range map[int]uplink.Uplinks{30: {Interfaces: append(u.Interfaces, v6)}, 31: {Interfaces: []uplink.Interface{v6, {Subnet: v6.Subnet, Addresses: v6.Addresses[:1]}}}} {
		if got := mostPods(&cluster.Uplinks{Provider: cluster.ProviderStatic}, one); got != want {
			t.Errorf("a pod has an address of each family: %d, want %d", got, want)
		}
	}
}

// stored is a node's store that leases from the pool that was set last, and has no pods.
type stored struct {
	noPods
	pool ipam.Pool
}

func (s *stored) Sync(_ context.Context, plan policy.Plan) ([]cluster.Problem, error) {
	s.pool = plan.Pool
	return nil, nil
}

func (s *stored) Held() policy.Held { return policy.Held{Known: true, Pool: s.pool} }

// carded is a machine with the card of an uplink.
type carded struct{ *ruled }

func (c carded) Host(ctx context.Context) (routes.Host, error) {
	h, err := c.ruled.Host(ctx)
	h.Links = append(h.Links, routes.Link{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true})
	return h, err
}

// The controller withdrew an address that no pod had. The node took it out of the pool at once, and confirmed that half a
// minute later, at the next look that came by itself.
func TestWithdrawalIsConfirmedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.loop.kernel, m.loop.pods = carded{&ruled{machine: m}}, &stored{}
		m.loop.grant = func(uplink.Uplinks) error { return nil }
		a, b := netip.MustParseAddr("10.0.0.31"), netip.MustParseAddr("10.0.0.32")
		one := cluster.Uplink{MAC: "02:00:00:00:00:01", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
			Addresses: []cluster.AddressRange{{First: a, Last: b}}}
		write := func() {
			m.world.EdgeNodes = []cluster.EdgeNode{{Name: "a", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{one}}}}
			m.loop.reread.fire()
			time.Sleep(5 * time.Second)
		}
		m.run(func() {
			write()
			one.Addresses, one.Withdrawn = []cluster.AddressRange{{First: a, Last: a}}, []cluster.Withdrawal{{Address: b, Token: "t"}}
			write()
			if got := m.loop.seen.Load().Plan.Confirmed; !slices.Equal(got, one.Withdrawn) {
				t.Errorf("confirmed %v, want %v", got, one.Withdrawn)
			}
		})
	})
}
