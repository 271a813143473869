package controller

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/cluster"
)

func selector(t testing.TB, text string) cluster.Selector {
	t.Helper()
	s, err := cluster.ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pool(t testing.TB, cidrs ...string) Pool {
	return Pool{Selector: selector(t, "all()"), CIDRs: prefixes(cidrs...), Mask: Mask{IPv4: 24, IPv6: 64}}
}

// epoch is when the tests' nodes were created, unless they say otherwise.
var epoch = time.Date(2026, 11, 26, 5, 0, 0, 0, time.UTC)

func node(name string, cidrs ...string) Node {
	return Node{Name: name, UID: "uid-" + name, Created: epoch, PodCIDRs: prefixes(cidrs...)}
}

// text is a plan as an operator would note it.
func (p Plan) text() string {
	var lines []string
	for _, g := range p.Grants {
		lines = append(lines, g.Node+" gets "+join(g.PodCIDRs))
	}
	for _, problem := range p.Problems {
		lines = append(lines, string(problem.Reason)+": "+problem.String())
	}
	return strings.Join(lines, "\n")
}

func TestAllocate(t *testing.T) {
	dual := pool(t, "10.10.0.0/16", "fd00:10::/48")
	tiny := Pool{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/24"), Mask: Mask{IPv4: 25}}
	young := func(n Node, by string) Node {
		n.Created, n.SetBy = epoch.Add(time.Hour), by
		return n
	}
	labelled := func(n Node, label string) Node {
		key, value, _ := strings.Cut(label, "=")
		n.Labels = map[string]string{key: value}
		return n
	}
	addressed := func(n Node, a string) Node {
		n.Addresses = []netip.Addr{netip.MustParseAddr(a)}
		return n
	}
	named := func(name string, age time.Duration, selects string, cidrs ...string) Pool {
		return Pool{Name: name, Created: epoch.Add(-age), Selector: selector(t, selects), CIDRs: prefixes(cidrs...), Mask: Mask{IPv4: 24, IPv6: 64}}
	}
	tests := []struct {
		name  string
		state State
		want  string
	}{
		{"a block of each family", State{Pools: []Pool{dual}, Nodes: []Node{node("a"), node("b")}}, `
a gets 10.10.0.0/24, fd00:10::/64
b gets 10.10.1.0/24, fd00:10:0:1::/64`},
		{"a node that has them is left alone", State{Pools: []Pool{dual}, Nodes: []Node{node("a", "10.10.7.0/24", "fd00:10:0:7::/64")}}, ""},
		{"who came first is served first", State{Pools: []Pool{dual}, Nodes: []Node{young(node("a"), ""), node("b")}}, `
b gets 10.10.0.0/24, fd00:10::/64
a gets 10.10.1.0/24, fd00:10:0:1::/64`},
		{"never what another node has, selected or not", State{
			Pools: []Pool{{Selector: selector(t, "pool=edge"), CIDRs: prefixes("10.10.0.0/16"), Mask: Mask{IPv4: 24}}},
			Nodes: []Node{labelled(node("a"), "pool=edge"), node("cloud", "10.10.0.0/23"), node("none")}}, `
a gets 10.10.2.0/24`},
		{"never what is excluded", State{
			Pools: []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/16"), Mask: Mask{IPv4: 24}, Exclude: prefixes("10.10.0.0/17", "10.10.128.9/32")}},
			Nodes: []Node{node("a")}}, `
a gets 10.10.129.0/24`},
		{"each node from its own pool, the first that selects it", State{
			Pools: []Pool{
				{Selector: selector(t, "pool=a"), CIDRs: prefixes("10.10.0.0/16"), Mask: Mask{IPv4: 26}},
				{Selector: selector(t, "all()"), CIDRs: prefixes("10.20.0.0/16"), Mask: Mask{IPv4: 24}}},
			Nodes: []Node{labelled(node("n1"), "pool=a"), labelled(node("n2"), "pool=b"), labelled(node("n3"), "pool=a")}}, `
n1 gets 10.10.0.0/26
n3 gets 10.10.0.64/26
n2 gets 10.20.0.0/24`},
		{"a NetworkPool before the file, the first by name of several; without ranges the file's pool gives", State{
			Pools: []Pool{named("a", 0, "pool=a", "10.30.0.0/16"), named("b", 0, "pool in (a,b)", "10.40.0.0/16"), named("c", 0, "pool in (c)"), named("d", 0, "pool=c", "10.50.0.0/16"), dual},
			Nodes: []Node{labelled(node("n1"), "pool=a"), labelled(node("n2"), "pool=b"), labelled(node("n3"), "pool=c"), node("n4")}}, `
n1 gets 10.30.0.0/24
n2 gets 10.40.0.0/24
n3 gets 10.10.0.0/24, fd00:10::/64
n4 gets 10.10.1.0/24, fd00:10:0:1::/64`},
		{"of two NetworkPools that overlap the younger gives nothing", State{
			Pools: []Pool{named("a", time.Hour, "pool=a", "10.30.0.0/16"), named("b", 2*time.Hour, "pool=b", "10.30.128.0/17")},
			Nodes: []Node{labelled(node("n1"), "pool=a"), labelled(node("n2"), "pool=b")}}, `
n2 gets 10.30.128.0/24
overlapsPool: NetworkPool/a: want podCIDRs of its own, got 10.30.0.0/16, which overlaps 10.30.128.0/17 of NetworkPool/b, the older pool; without pod CIDRs: n1; choose other spec.podCIDRs; nodes keep what they have`},
		{"a NetworkPool that overlaps a pool of the file, the Service CIDR, a node", State{
			Pools:    []Pool{named("a", 0, "pool=a", "10.10.0.0/20"), named("b", 0, "pool=b", "10.96.0.0/16"), named("c", 0, "pool=c", "192.0.2.0/24"), dual},
			Services: prefixes("10.96.0.0/12"), Nodes: []Node{addressed(labelled(node("n1"), "pool=a"), "192.0.2.1")}}, `
overlapsPool: NetworkPool/a: want podCIDRs of its own, got 10.10.0.0/20, which overlaps 10.10.0.0/16 of pool 10.10.0.0/16, fd00:10::/48, the older pool; without pod CIDRs: n1; choose other spec.podCIDRs; nodes keep what they have
overlapsServices: NetworkPool/b: want podCIDRs apart from the Service CIDRs, got 10.96.0.0/16, which overlaps the Service CIDR 10.96.0.0/12; choose other spec.podCIDRs; nodes keep what they have
overlapsNode: NetworkPool/c: want podCIDRs apart from the nodes' own subnets, got 192.0.2.0/24, which holds the address 192.0.2.1 of Node/n1; choose other spec.podCIDRs; nodes keep what they have`},
		{"a NetworkPool that overlaps the pod CIDRs that another program gave to nodes elsewhere", State{
			Pools: []Pool{named("a", 0, "pool=a", "10.244.128.0/17"), named("b", 0, "pool=b", "10.30.0.0/16"), named("c", 0, "pool=c", "10.40.0.0/16")},
			Nodes: []Node{labelled(node("n1"), "pool=a"), labelled(node("n2"), "pool=b"), labelled(node("n3"), "pool=c"),
				{Name: "cloud", UID: "u", Created: epoch, PodCIDRs: prefixes("10.244.131.0/24"), SetBy: "kube-controller-manager"},
				{Name: "moved", UID: "v", Created: epoch, PodCIDRs: prefixes("10.30.0.0/24"), SetBy: FieldManager},
				labelled(Node{Name: "own", UID: "w", Created: epoch, PodCIDRs: prefixes("10.40.0.0/24"), SetBy: "kube-controller-manager"}, "pool=c")}}, `
n2 gets 10.30.1.0/24
n3 gets 10.40.1.0/24
overlapsNode: NetworkPool/a: want podCIDRs apart from the pod CIDRs of nodes outside of the pool, got 10.244.128.0/17, which overlaps 10.244.131.0/24 of Node/cloud, set by kube-controller-manager; without pod CIDRs: n1; choose other spec.podCIDRs; nodes keep what they have`},
		{"a node that is being deleted gets none", State{Pools: []Pool{dual}, Nodes: []Node{{Name: "a", UID: "u", Leaving: true}}}, ""},
		{"a node that is too new waits", State{Pools: []Pool{dual}, Nodes: []Node{node("a")}, Early: map[string]bool{"uid-a": true}}, ""},
		{"exhausted: who holds it, who waits", State{Pools: []Pool{tiny}, Nodes: []Node{node("a", "10.10.0.0/25"), node("b", "10.10.0.128/25"), node("c"), node("d")}}, `
noFreeBlock: pool 10.10.0.0/24: want a free block of each family, got no /25 left in 10.10.0.0/24 (Nodes that hold IPv4 pod CIDRs of it: 2); without pod CIDRs: c, d; add a CIDR to the pool's podCIDRs, exclude less, or delete Nodes that are gone for good`},
		{"both families or none", State{
			Pools: []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/24", "fd00:10::/48"), Mask: Mask{24, 64}}},
			Nodes: []Node{node("a", "10.10.0.0/24", "fd00:10::/64"), node("b")}}, `
noFreeBlock: pool 10.10.0.0/24, fd00:10::/48: want a free block of each family, got no /24 left in 10.10.0.0/24 (Nodes that hold IPv4 pod CIDRs of it: 1); without pod CIDRs: b; add a CIDR to the pool's podCIDRs, exclude less, or delete Nodes that are gone for good`},
		{"the pool's second range, once the first is full", State{
			Pools: []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/24", "10.20.0.0/24"), Mask: Mask{IPv4: 24}}},
			Nodes: []Node{node("a"), node("b")}}, `
a gets 10.10.0.0/24
b gets 10.20.0.0/24`},
		{"the pool overlaps the Service CIDR", State{Pools: []Pool{pool(t, "10.10.0.0/16")}, Services: prefixes("10.10.64.0/18"), Nodes: []Node{node("a")}}, `
overlapsServices: pool 10.10.0.0/16: want podCIDRs apart from the Service CIDRs, got 10.10.0.0/16, which overlaps the Service CIDR 10.10.64.0/18; without pod CIDRs: a; choose other podCIDRs, or list those addresses in the pool's exclude; nodes keep what they have`},
		{"the pool overlaps the Service CIDR, which is excluded", State{
			Pools:    []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/16"), Mask: Mask{IPv4: 24}, Exclude: prefixes("10.10.0.0/17")}},
			Services: prefixes("10.10.64.0/18"), Nodes: []Node{node("a")}}, `
a gets 10.10.128.0/24`},
		{"the pool holds a node's address", State{Pools: []Pool{dual}, Nodes: []Node{node("a"), addressed(node("b", "10.10.3.0/24", "fd00:10:0:3::/64"), "10.10.9.9")}}, `
overlapsNode: pool 10.10.0.0/16, fd00:10::/48: want podCIDRs apart from the nodes' own subnets, got 10.10.0.0/16, which holds the address 10.10.9.9 of Node/b; without pod CIDRs: a; choose other podCIDRs, or list those addresses in the pool's exclude; nodes keep what they have`},
		{"an old node of one family", State{Pools: []Pool{dual}, Nodes: []Node{node("old", "10.10.0.0/24"), node("new")}}, `
new gets 10.10.1.0/24, fd00:10::/64
oneFamily: pool 10.10.0.0/16, fd00:10::/48: want a pod CIDR of each family on its nodes, got old 10.10.0.0/24; the API server lets nobody add one; for both families drain the node, delete the Node and let it register again`},
		{"a node from elsewhere, from before the ledger", State{Pools: []Pool{dual}, Ledger: Ledger{Since: epoch.Add(time.Minute)},
			Nodes: []Node{{Name: "old", UID: "o", Created: epoch, PodCIDRs: prefixes("10.244.0.0/24", "fd00:244::/64"), SetBy: "kube-controller-manager"}, node("new")}}, `
new gets 10.10.0.0/24, fd00:10::/64
outsidePool: pool 10.10.0.0/16, fd00:10::/48: want pod CIDRs of this pool on its nodes, got old 10.244.0.0/24, fd00:244::/64 (set by kube-controller-manager); they stay, and routes to them too; to move a node into the pool drain it, delete the Node and let it register again`},
		{"two nodes with one CIDR: said to both, changed at neither", State{Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{node("a", "10.10.3.0/24"), node("b", "10.10.3.0/24"), node("c")}}, `
c gets 10.10.0.0/24
sharedPodCIDR: Node/a: want a pod CIDR of its own, got 10.10.3.0/24, which overlaps 10.10.3.0/24 of Node/b; drain one of the two, delete its Node and let it register again; until then pods of both can have one address
sharedPodCIDR: Node/b: want a pod CIDR of its own, got 10.10.3.0/24, which overlaps 10.10.3.0/24 of Node/a; drain one of the two, delete its Node and let it register again; until then pods of both can have one address`},
		{"the mask was changed: old blocks stay", State{Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{node("a", "10.10.0.0/26"), node("b")}}, `
b gets 10.10.1.0/24`},
		{"text that is no CIDR", State{Pools: []Pool{dual}, Nodes: []Node{{Name: "odd", UID: "o", Unread: "010.0.0.0/24"}, node("a")}}, `
unreadPodCIDR: Node/odd: want CIDRs in spec.podCIDRs, got "010.0.0.0/24"; without pod CIDRs: a; delete the Node and let it register again; no Node gets pod CIDRs meanwhile, because the taken ones are not known`},
		{"somebody else serves new nodes", State{Pools: []Pool{dual}, Ledger: Ledger{Since: epoch},
			Nodes: []Node{node("a"), young(node("b", "10.10.9.0/24", "fd00:10:0:9::/64"), "kube-controller-manager")}}, `
otherAllocator: pool 10.10.0.0/16, fd00:10::/48: want nobody else who gives pod CIDRs to this pool's nodes, got Node/b, new, with 10.10.9.0/24, fd00:10:0:9::/64 set by kube-controller-manager; without pod CIDRs: a; edgeway gives none now. Let one of the two do it: stop edgeway-controller; or end the other (kube-controller-manager --allocate-node-cidrs=false), then: kubectl -n kube-system patch configmap edgeway-controller --type=merge -p '{"data":{"since":null}}'`},
		{"after the operator restarted the ledger", State{Pools: []Pool{dual},
			Nodes: []Node{node("a"), young(node("b", "10.10.9.0/24", "fd00:10:0:9::/64"), "kube-controller-manager")}}, `
a gets 10.10.0.0/24, fd00:10::/64`},
		{"a person set them with kubectl", State{Pools: []Pool{dual}, Ledger: Ledger{Since: epoch},
			Nodes: []Node{node("a"), young(node("b", "10.10.9.0/24", "fd00:10:0:9::/64"), "kubectl-patch")}}, `
a gets 10.10.0.0/24, fd00:10::/64`},
		{"we set them, with the pool as it was before", State{Pools: []Pool{dual}, Ledger: Ledger{Since: epoch},
			Nodes: []Node{node("a"), young(node("b", "10.99.9.0/24"), FieldManager)}}, `
a gets 10.10.0.0/24, fd00:10::/64
oneFamily: pool 10.10.0.0/16, fd00:10::/48: want a pod CIDR of each family on its nodes, got b 10.99.9.0/24; the API server lets nobody add one; for both families drain the node, delete the Node and let it register again
outsidePool: pool 10.10.0.0/16, fd00:10::/48: want pod CIDRs of this pool on its nodes, got b 10.99.9.0/24 (set by edgeway-controller); they stay, and routes to them too; to move a node into the pool drain it, delete the Node and let it register again`},
		{"a promise is kept", State{Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{node("a"), node("b")},
			Ledger: Ledger{Promised: []Promise{{"b", "uid-b", prefixes("10.10.0.0/24")}}}}, `
a gets 10.10.1.0/24
b gets 10.10.0.0/24`},
		{"a promise of a pool that is gone: another block, and the old one is nobody's yet", State{
			Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{node("a"), node("b")},
			Ledger: Ledger{Promised: []Promise{{"b", "uid-b", prefixes("10.10.0.0/23")}}}}, `
a gets 10.10.2.0/24
b gets 10.10.3.0/24`},
		{"a promise of a block that somebody took: another block", State{
			Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{node("b"), node("thief", "10.10.0.0/24")},
			Ledger: Ledger{Promised: []Promise{{"b", "uid-b", prefixes("10.10.0.0/24")}}}}, `
b gets 10.10.1.0/24`},
		{"a Node of the same name is another Node: its own block again, as a new promise", State{
			Pools: []Pool{pool(t, "10.10.0.0/16")}, Nodes: []Node{{Name: "b", UID: "second"}, node("a")},
			Ledger: Ledger{Promised: []Promise{{"b", "first", prefixes("10.10.5.0/24")}}}}, `
b gets 10.10.5.0/24
a gets 10.10.0.0/24`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got, want := allocate(test.state).text(), strings.TrimPrefix(test.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// carryOut does what a plan says.
func carryOut(s *State, p Plan) {
	s.Before, s.Ledger = slices.Clone(s.Nodes), p.Ledger
	for _, g := range p.Grants {
		for i := range s.Nodes {
			if s.Nodes[i].UID == g.UID {
				s.Nodes[i].PodCIDRs, s.Nodes[i].SetBy = g.PodCIDRs, FieldManager
			}
		}
	}
	s.Before = slices.Clone(s.Nodes)
}

// A block comes again as late as can be: when all others are taken, the longest free first. A
// Node that comes back gets its own.
func TestLateReuse(t *testing.T) {
	s := State{Pools: []Pool{{Selector: selector(t, "all()"), CIDRs: prefixes("10.10.0.0/24"), Mask: Mask{IPv4: 26}}}}
	step := func(what, want string) {
		t.Helper()
		for _, w := range strings.Fields(what) {
			if name := w[1:]; w[0] == '+' {
				s.Nodes = append(s.Nodes, Node{Name: name, UID: fmt.Sprint(name, "-", len(s.Ledger.Released)), Created: epoch})
			} else {
				s.Nodes = slices.DeleteFunc(s.Nodes, func(n Node) bool { return n.Name == name })
			}
		}
		p := allocate(s)
		if got := p.text(); got != want {
			t.Fatalf("%s: got\n%s\nwant\n%s\nledger %v", what, got, want, s.Ledger)
		}
		carryOut(&s, p)
	}
	step("+a", "a gets 10.10.0.0/26")
	step("-a +b", "b gets 10.10.0.64/26")
	step("+c", "c gets 10.10.0.128/26")
	step("-b", "")
	step("+d", "d gets 10.10.0.192/26")
	step("+b", "b gets 10.10.0.64/26") // its own, though a's is free for longer
	step("-c", "")
	step("-b", "")
	step("+e", "e gets 10.10.0.0/26")   // a's, free for the longest time
	step("+f", "f gets 10.10.0.128/26") // c's
	step("+g", "g gets 10.10.0.64/26")  // b's
	step("-d -e", "")
	step("+e", "e gets 10.10.0.0/26")
	step("+d", "d gets 10.10.0.192/26")
	p := allocate(State{Pools: s.Pools, Ledger: s.Ledger, Nodes: append(s.Nodes, node("h"))})
	if len(p.Grants) != 0 || !strings.Contains(p.text(), "(Nodes that hold IPv4 pod CIDRs of it: 4); without pod CIDRs: h") {
		t.Errorf("a fifth node of four: %s", p.text())
	}
}

// randomStep lets nodes come and go, with and without pod CIDRs, and now and then changes the pools.
func randomStep(t *testing.T, r *rand.Rand, s *State) {
	pools := [][]Pool{
		{pool(t, "10.10.0.0/19", "fd00:10::/58")},
		{pool(t, "10.10.0.0/19")},
		{{Selector: selector(t, "pool=a"), CIDRs: prefixes("10.10.0.0/20"), Mask: Mask{IPv4: 26}}, pool(t, "10.10.16.0/20", "fd00:10::/59")},
		{{Selector: selector(t, "all()"), CIDRs: prefixes("10.20.0.0/22", "10.10.0.0/22"), Mask: Mask{IPv4: 25}, Exclude: prefixes("10.10.1.0/24", "10.20.0.8/32")}},
	}
	if s.Pools == nil || r.IntN(20) == 0 {
		s.Pools = pools[r.IntN(len(pools))]
	}
	for range r.IntN(6) {
		n := Node{Name: fmt.Sprint("n", r.IntN(30)), UID: fmt.Sprint(r.Uint64()), Created: epoch, Labels: map[string]string{"pool": string(rune('a' + r.IntN(3)))}}
		if r.IntN(10) == 0 {
			n.PodCIDRs = prefixes(fmt.Sprintf("10.10.%d.0/24", r.IntN(32)))
		}
		s.Nodes = slices.DeleteFunc(s.Nodes, func(o Node) bool { return o.Name == n.Name })
		if r.IntN(4) > 0 {
			s.Nodes = append(s.Nodes, n)
		}
	}
}

// Nodes come and go, and pools change: no grant overlaps anything, no Node is forgotten, the order of the list
// does not matter, and a plan that was carried out is final.
func TestAllocateProperties(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		var s State
		for range 40 {
			randomStep(t, r, &s)
			p := allocate(s)
			checkPlan(t, s, p)
			mixed := s
			mixed.Nodes = slices.Clone(s.Nodes)
			r.Shuffle(len(mixed.Nodes), func(i, j int) { mixed.Nodes[i], mixed.Nodes[j] = mixed.Nodes[j], mixed.Nodes[i] })
			if again := allocate(mixed); again.text() != p.text() || !again.Ledger.equal(p.Ledger) {
				t.Fatalf("seed %d: in another order\n%s\nnot\n%s", seed, again.text(), p.text())
			}
			if text, err := parseLedger(p.Ledger.String()); err != nil || text.String() != p.Ledger.String() {
				t.Fatalf("seed %d: the ledger %v comes back as %v (%v)", seed, p.Ledger, text, err)
			}
			if r.IntN(3) == 0 { // the patches get lost; the ledger was written
				s.Before, s.Ledger = slices.Clone(s.Nodes), p.Ledger
				continue
			}
			carryOut(&s, p)
			// A promise of earlier pools holds a block until its Node has another one: who found
			// none for that reason finds one now.
			waits := slices.ContainsFunc(p.Problems, func(q Problem) bool { return q.Reason == noFreeBlock })
			if again := allocate(s); len(again.Grants) > 0 && !waits {
				t.Fatalf("seed %d: then %s", seed, again.text())
			}
		}
	}
}

func checkPlan(t *testing.T, s State, p Plan) {
	t.Helper()
	var others space
	for _, n := range s.Nodes {
		for _, c := range n.PodCIDRs {
			others.take(c)
		}
	}
	for _, pool := range s.Pools {
		for _, c := range pool.Exclude {
			others.take(c)
		}
	}
	granted := map[string]bool{}
	for _, g := range p.Grants {
		granted[g.Node] = true
		if !slices.ContainsFunc(p.Ledger.Promised, func(q Promise) bool { return q.UID == g.UID && slices.Equal(q.PodCIDRs, g.PodCIDRs) }) {
			t.Fatalf("granted, not promised: %v", g)
		}
		for _, c := range g.PodCIDRs {
			if others.overlaps(c) {
				t.Fatalf("%v overlaps what is held or excluded, or granted before", g)
			}
			others.take(c)
		}
		i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.UID == g.UID })
		if i < 0 || s.Nodes[i].hasPodCIDRs() || !poolOf(s.Pools, s.Nodes[i].Labels).fits(g.PodCIDRs) {
			t.Fatalf("%v to nobody who waits for it", g)
		}
	}
	for i, a := range p.Ledger.Promised {
		for _, b := range p.Ledger.Promised[:i] {
			for _, c := range a.PodCIDRs {
				if a.UID != b.UID && slices.ContainsFunc(b.PodCIDRs, c.Overlaps) {
					t.Fatalf("promised twice: %v and %v", a, b)
				}
			}
		}
	}
	for _, n := range s.Nodes {
		said := slices.ContainsFunc(p.Problems, func(q Problem) bool { return slices.Contains(q.Nodes, n.Name) })
		if poolOf(s.Pools, n.Labels) != nil && !n.hasPodCIDRs() && !granted[n.Name] && !said && !p.Later {
			t.Fatalf("%s has no pod CIDRs and nobody says why: %s", n.Name, p.text())
		}
	}
}

// A cluster of 5,000 nodes, a thousand of which wait.
func BenchmarkAllocate(b *testing.B) {
	s := State{Pools: []Pool{pool(b, "10.0.0.0/10", "fd00:10::/48")}}
	for i := range 5000 {
		n := Node{Name: fmt.Sprint("n", i), UID: fmt.Sprint("uid-", i), Created: epoch}
		if i%5 > 0 {
			n.PodCIDRs = prefixes(fmt.Sprintf("10.%d.%d.0/24", i*2/256, i*2%256), fmt.Sprintf("fd00:10:0:%x::/64", i*2))
		}
		s.Nodes = append(s.Nodes, n)
	}
	for b.Loop() {
		if p := allocate(s); len(p.Grants) != 1000 {
			b.Fatal(len(p.Grants), p.text())
		}
	}
}
