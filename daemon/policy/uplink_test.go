package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/config"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/routes"
)

// uplinkNode is a node with uplinks, while its resource, its pods and its daemon change.
type uplinkNode struct {
	t     *testing.T
	r     *rand.Rand
	world World
	held  Held           // on disk: Granted, Pool, Pods
	rules []netip.Prefix // in the kernel: sources that have a rule
	token int
}

func (n *uplinkNode) address(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(30 + n.r.IntN(8))})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(30 + n.r.IntN(8))})
}

// edit is a person or a controller that writes the resource: addresses come, are withdrawn, go; the resource is
// deleted and comes back.
func (n *uplinkNode) edit() {
	if n.r.IntN(6) == 0 {
		n.world.Cluster.EdgeNodes = nil
		return
	}
	u := cluster.Uplinks{Provider: cluster.ProviderENS, Egress: cluster.EgressUplink}
	for i := range 1 + n.r.IntN(2) {
		one := cluster.Uplink{
			Name: fmt.Sprintf("eth%d", 1+i), Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(20 + i)}),
			Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
		}
		v6 := n.r.IntN(2) == 0
		if v6 {
			one.Address, one.Subnet, one.Gateway = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(20 + i)}), netip.MustParsePrefix("fd00::/64"), netip.MustParseAddr("fd00::fe")
		}
		if n.r.IntN(3) == 0 {
			one.Name, one.MAC = "", fmt.Sprintf("02:00:00:00:00:%02d", 1+i)
		}
		for range n.r.IntN(6) {
			a := n.address(v6)
			one.Addresses = append(one.Addresses, cluster.AddressRange{First: a, Last: a})
		}
		if n.r.IntN(2) == 0 {
			n.token++
			one.Withdrawn = append(one.Withdrawn, cluster.Withdrawal{Address: n.address(v6), Token: fmt.Sprint(n.token)})
		}
		u.Interfaces = append(u.Interfaces, one)
	}
	n.world.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: &u}}
}

// add is an ADD: it leases any address of the pool.
func (n *uplinkNode) add() {
	var free []netip.Addr
	for _, set := range n.held.Pool.Sets {
		for _, r := range set {
			for a := r.First; a.Compare(r.Last) <= 0; a = a.Next() {
				if _, taken := n.held.Pods[a]; !taken && Leases(n.held.Pool, a) {
					free = append(free, a)
				}
			}
		}
	}
	if len(free) > 0 {
		n.held.Pods[free[n.r.IntN(len(free))]] = "default/pod"
	}
}

func (n *uplinkNode) del() {
	for a := range n.held.Pods {
		delete(n.held.Pods, a)
		return
	}
}

// look is a look of the daemon, which may die after any of its steps. Without its store open it knows no lease.
func (n *uplinkNode) look() {
	w := n.world
	if w.Held = n.held; n.r.IntN(4) == 0 {
		w.Held = Held{Granted: n.held.Granted}
	}
	w.Host.Links = w.Host.Links[:1+n.r.IntN(3)] // eth1 or eth2 may be gone
	plan := Decide(w)
	for _, c := range plan.Confirmed {
		if _, leased := n.held.Pods[c.Address]; leased || Leases(n.held.Pool, c.Address) {
			n.t.Fatalf("%v is confirmed: leased %v, pool %v", c.Address, n.held.Pods, n.held.Pool)
		}
	}
	steps := n.r.IntN(8)
	if steps == 0 {
		return
	}
	n.held.Granted = plan.Uplinks
	n.check("after the file was written")
	if steps == 1 {
		return
	}
	n.rules = nil
	for _, r := range plan.Routes.Rules {
		n.rules = append(n.rules, r.From)
	}
	n.check("after the kernel was synced")
	if n.r.IntN(3) == 0 {
		n.add() // while the daemon works
	}
	if steps == 2 {
		return
	}
	if len(plan.Pool.Sets) > 0 {
		n.held.Pool = plan.Pool
	}
	n.check("after the pool was set")
}

// check says that no pod is cut off, now or after a reboot, and that no pod can start without rules.
func (n *uplinkNode) check(when string) {
	n.t.Helper()
	var all []netip.Addr
	for last := byte(30); last < 38; last++ {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, last}), netip.AddrFrom16([16]byte{0: 0xfd, 15: last}))
	}
	for _, a := range all {
		_, leased := n.held.Pods[a]
		if !leased && !Leases(n.held.Pool, a) {
			continue
		}
		granted := false
		for _, i := range n.held.Granted.Interfaces {
			granted = granted || slices.Contains(i.Addresses, a)
		}
		if !granted {
			n.t.Fatalf("%s: %v (leased: %v) is not in the file of the granted: %v", when, a, leased, n.held.Granted)
		}
		if !slices.ContainsFunc(n.rules, func(p netip.Prefix) bool { return p.IsValid() && p.Contains(a) }) {
			n.t.Fatalf("%s: %v (leased: %v) has no rule: %v", when, a, leased, n.rules)
		}
	}
}

// Whatever happens to the resource, the interfaces and the daemon, in any order: no running pod loses its rules, no
// pod starts without rules, and no address is given back while a pod has it or could get it.
func TestUplinksThroughRandomHistories(t *testing.T) {
	for seed := range uint64(800) {
		n := &uplinkNode{t: t, r: rand.New(rand.NewPCG(seed, 1)), held: Held{Known: true, Pods: map[netip.Addr]string{}}}
		n.world = World{Self: "n1", Config: config.Defaults()}
		n.world.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
		n.world.Host.Links = []routes.Link{{Name: "eth0", MAC: "02:00:00:00:00:00", MTU: 1500, Up: true}, {Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}, {Name: "eth2", MAC: "02:00:00:00:00:02", MTU: 1500, Up: true}}
		n.world.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("10.0.0.11/24")}}
		steps := []func(){n.edit, n.add, n.add, n.del, n.look, n.look}
		for range 40 {
			steps[n.r.IntN(len(steps))]()
			n.check("after a step")
		}
	}
}

// An address was granted that is in the pod CIDR of another node: two pods could have it. Nobody gets it, and the problem names both.
func TestAddressInAPodCIDR(t *testing.T) {
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}},
		{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.12")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.32/28")}}}
	w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{{
		Name: "eth1", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
		Addresses: []cluster.AddressRange{{First: netip.MustParseAddr("10.0.0.31"), Last: netip.MustParseAddr("10.0.0.32")}}}}}}}
	w.Host.Links = []routes.Link{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}
	plan := Decide(w)
	if !Leases(plan.Pool, netip.MustParseAddr("10.0.0.31")) || Leases(plan.Pool, netip.MustParseAddr("10.0.0.32")) {
		t.Errorf("pool %v", plan.Pool)
	}
	if !slices.ContainsFunc(plan.Problems, func(p cluster.Problem) bool {
		return p.Object == "EdgeNode/n1" && p.Reason == cluster.UplinkAddress && p.Got == "10.0.0.32, which is in the pod CIDR of Node/n2"
	}) {
		t.Errorf("problems %v", plan.Problems)
	}
}

// A pool that leases nothing is not an empty pool.
func TestDeletedEdgeNodeStopsNewPods(t *testing.T) {
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
	w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{{
		Name: "eth1", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
		Addresses: []cluster.AddressRange{{First: netip.MustParseAddr("10.0.0.31"), Last: netip.MustParseAddr("10.0.0.32")}}}}}}}
	w.Host.Links = []routes.Link{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}
	plan := Decide(w)
	w.Held = Held{Granted: plan.Uplinks, Known: true, Pool: plan.Pool}
	w.Cluster.EdgeNodes = nil
	plan = Decide(w)
	if err := plan.Pool.Validate(); err != nil || Leases(plan.Pool, netip.MustParseAddr("10.0.0.31")) || Leases(plan.Pool, netip.MustParseAddr("10.0.0.32")) {
		t.Errorf("pool %v, %v, want one that leases nothing", plan.Pool, err)
	}
	w.Held = Held{Granted: plan.Uplinks, Known: true, Pool: plan.Pool}
	if plan = Decide(w); len(plan.Uplinks.Interfaces) > 0 || len(plan.Routes.Rules) > 0 {
		t.Errorf("the next look leaves %v", plan.Uplinks)
	}
}

// The IPv6 entry was taken out of the EdgeNode while a pod had an address of it, and no new pod started before that pod had
// ended: 0 of 0 addresses were free.
func TestFamilyIsTakenOut(t *testing.T) {
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
	w.Host.Links = []routes.Link{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}
	v4, v6 := netip.MustParseAddr("10.0.0.31"), netip.MustParseAddr("fd00::31")
	both := []cluster.Uplink{{Name: "eth1", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
		Addresses: []cluster.AddressRange{{First: v4, Last: v4}}},
		{Name: "eth1", Address: netip.MustParseAddr("fd00::21"), Subnet: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::fe"),
			Addresses: []cluster.AddressRange{{First: v6, Last: v6}}}}
	w.Held = Held{Known: true, Pods: map[netip.Addr]string{v6: "default/web"}}
	for _, step := range []struct {
		name       string
		interfaces []cluster.Uplink
		links      []routes.Link
		want       string
	}{
		{"both families", both, w.Host.Links, "10.0.0.0/24 (10.0.0.31-10.0.0.31), fd00::/64 (fd00::31-fd00::31) reserved []"},
		{"the card is away", both, nil, "10.0.0.0/24 (10.0.0.31-10.0.0.31), fd00::/64 (fd00::31-fd00::31) reserved [10.0.0.31/32 fd00::31/128]"},
		{"IPv4 alone", both[:1], w.Host.Links, "10.0.0.0/24 (10.0.0.31-10.0.0.31) reserved [fd00::31/128]"},
		{"neither", nil, w.Host.Links, "10.0.0.0/24 (10.0.0.31-10.0.0.31), fd00::/64 (fd00::31-fd00::31) reserved [10.0.0.31/32 fd00::31/128]"},
	} {
		w.Cluster.EdgeNodes, w.Host.Links = []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: step.interfaces}}}, step.links
		plan := Decide(w)
		got := fmt.Sprint(slices.Concat(plan.Pool.Sets...), " reserved ", plan.Pool.Reserved)
		if got != step.want || !slices.ContainsFunc(plan.Uplinks.Interfaces, func(i uplink.Interface) bool { return slices.Contains(i.Addresses, v6) }) {
			t.Errorf("%s: got %s, want %s; and the pod's address in %v", step.name, got, step.want, plan.Uplinks)
		}
		w.Held.Granted, w.Held.Pool = plan.Uplinks, plan.Pool
	}
}

// The operator names the card by its MAC instead of its name, and back, while pods have addresses of it. It is one
// interface in the status, and its addresses can be leased, also while the card is unplugged.
func TestUplinkByNameBecomesUplinkByMAC(t *testing.T) {
	interfaces := func(name, mac string) []cluster.EdgeNode {
		return []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{{
			Name: name, MAC: mac, Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
			Addresses: []cluster.AddressRange{{First: netip.MustParseAddr("10.0.0.31"), Last: netip.MustParseAddr("10.0.0.33")}}}}}}}
	}
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
	card := []routes.Link{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}, {Name: "eth2", MAC: "02:00:00:00:00:02", MTU: 1500, Up: true}}
	w.Host.Links = card
	w.Held = Held{Known: true, Pods: map[netip.Addr]string{netip.MustParseAddr("10.0.0.31"): "default/web"}}
	for _, step := range []struct {
		name, mac, want string
		links           []routes.Link
	}{
		{"eth1", "", "eth1 3", card}, {"", "02:00:00:00:00:01", "02:00:00:00:00:01 3", card}, {"eth1", "", "eth1 3", card},
		{"", "02:00:00:00:00:01", "02:00:00:00:00:01 3", card[1:]}, {"", "02:00:00:00:00:01", "02:00:00:00:00:01 3", card},
		{"", "02:00:00:00:00:02", "02:00:00:00:00:02 0, 02:00:00:00:00:01 3", card}, // another card: the addresses stay until no pod has them
	} {
		w.Cluster.EdgeNodes, w.Host.Links = interfaces(step.name, step.mac), step.links
		plan := Decide(w)
		var got []string
		for _, i := range plan.Uplinks.Interfaces {
			got = append(got, fmt.Sprint(i, " ", len(i.Addresses)))
		}
		if strings.Join(got, ", ") != step.want {
			t.Errorf("%s%s: got %v, want %s", step.name, step.mac, got, step.want)
		}
		w.Held.Granted, w.Held.Pool = plan.Uplinks, plan.Pool
	}
}

// The canary gives way: nobody is told to delete it, and an address is not given back while it has it.
func TestCanaryOfAWithdrawnAddress(t *testing.T) {
	first, last := netip.MustParseAddr("10.0.0.31"), netip.MustParseAddr("10.0.0.32")
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
	spec := cluster.Uplink{Name: "eth1", Address: netip.MustParseAddr("10.0.0.21"), Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254"),
		Addresses: []cluster.AddressRange{{First: first, Last: last}}}
	grant := func() {
		w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{spec}}}}
	}
	grant()
	w.Host.Links = []routes.Link{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}
	plan := Decide(w)
	if got := plan.CanaryAddrs(); !slices.Equal(got, []netip.Addr{last}) {
		t.Errorf("canary at %v, want the last address", got)
	}
	w.Held = Held{Granted: plan.Uplinks, Known: true, Pool: plan.Pool, Canary: []netip.Addr{last}}
	if w.Held.Free() != 2 || w.Held.Used(plan.Uplinks) != 0 {
		t.Errorf("free %d, used %d", w.Held.Free(), w.Held.Used(plan.Uplinks))
	}
	spec.Addresses[0].Last = first
	spec.Withdrawn = []cluster.Withdrawal{{Address: last, Token: "k3x9"}}
	grant()
	plan = Decide(w)
	if got := plan.CanaryAddrs(); !slices.Equal(got, []netip.Addr{first}) {
		t.Errorf("canary at %v, want the address that is left", got)
	}
	w.Held.Granted, w.Held.Pool = plan.Uplinks, plan.Pool
	plan = Decide(w)
	if len(plan.Confirmed) > 0 || slices.ContainsFunc(plan.Problems, func(p cluster.Problem) bool { return p.Reason == cluster.AddressRemoved }) {
		t.Errorf("while the canary has it: confirmed %v, problems %v", plan.Confirmed, plan.Problems)
	}
	w.Held.Canary = []netip.Addr{first}
	if plan = Decide(w); len(plan.Confirmed) != 1 {
		t.Errorf("confirmed %v", plan.Confirmed)
	}
}

// The gateway of an uplink was dead, and only the pods knew.
func TestDeadGatewayOfAnUplink(t *testing.T) {
	w := World{Self: "n1", Config: config.Defaults()}
	w.Cluster.Nodes = []cluster.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11")}}}
	w.Host.Addrs = []routes.Addr{{Link: "eth0", Prefix: netip.MustParsePrefix("10.0.0.11/24")}}
	w.Cluster.EdgeNodes = []cluster.EdgeNode{{Name: "n1", Uplinks: &cluster.Uplinks{Interfaces: []cluster.Uplink{{
		Name: "eth1", Address: netip.MustParseAddr("10.0.1.21"), Subnet: netip.MustParsePrefix("10.0.1.0/24"), Gateway: netip.MustParseAddr("10.0.1.254"),
		Addresses: []cluster.AddressRange{{First: netip.MustParseAddr("10.0.1.31"), Last: netip.MustParseAddr("10.0.1.32")}}}}}}}
	w.Host.Links = []routes.Link{{Name: "eth0", MAC: "02:00:00:00:00:00", MTU: 1500, Up: true}, {Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true}}
	gateway := routes.Neighbour{Link: "eth1", IP: netip.MustParseAddr("10.0.1.254")}
	plan := Decide(w)
	if !slices.Equal(plan.Gateways, []routes.Neighbour{gateway}) || len(plan.Problems) > 0 {
		t.Errorf("gateways %v, problems %v", plan.Gateways, plan.Problems)
	}
	w.Dead = map[routes.Neighbour]bool{gateway: true}
	plan = Decide(w)
	if len(plan.Problems) != 1 || plan.Problems[0].Reason != cluster.SilentGateway || plan.Problems[0].Want != "the gateway of an uplink of EdgeNode/n1 to answer on eth1" {
		t.Errorf("problems %v", plan.Problems)
	}
	w.Host.Links[1].Up = false
	if plan = Decide(w); len(plan.Gateways) > 0 {
		t.Errorf("a link that is down: %v", plan.Gateways)
	}
}
