package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/routes"
)

// fault is a kernel that fails at the n-th call that it gets, before or after the call did its
// work.
type faultyKernel struct {
	kernel
	left *int // calls until the fault; negative: it has happened
	late bool
	stop context.CancelFunc // instead of an error: the call's context ends
	slow bool               // the pair cannot be made at once, so that it is made step by step
}

var errInjected = errors.New("injected")

func (f faultyKernel) strike(do func() error) error {
	*f.left--
	if *f.left != 0 {
		return do()
	}
	if f.stop != nil {
		f.stop()
		return do()
	}
	if f.late {
		return errors.Join(do(), errInjected)
	}
	return errInjected
}

func (f faultyKernel) Observe(ctx context.Context, scope routes.Scope, desired routes.State) (s routes.State, err error) {
	err = f.strike(func() error { s, err = f.kernel.Observe(ctx, scope, desired); return err })
	return s, err
}

func (f faultyKernel) MakePair(ctx context.Context, l routes.Link, addrs []netip.Addr, do furnish) (peer int, err error) {
	if f.slow {
		return 0, errInjected
	}
	err = f.strike(func() error { peer, err = f.kernel.MakePair(ctx, l, addrs, do); return err })
	return peer, err
}

func (f faultyKernel) Fill(ctx context.Context, index int, desired routes.State) error {
	return f.strike(func() error { return f.kernel.Fill(ctx, index, desired) })
}

func (f faultyKernel) Settle(link string) error {
	return f.strike(func() error { return f.kernel.Settle(link) })
}

func (f faultyKernel) Sync(ctx context.Context, scope routes.Scope, desired routes.State) (c []routes.Change, err error) {
	err = f.strike(func() error { c, err = f.kernel.Sync(ctx, scope, desired); return err })
	return c, err
}

func (f faultyKernel) Host(ctx context.Context) (h routes.Host, err error) {
	err = f.strike(func() error { h, err = f.kernel.Host(ctx); return err })
	return h, err
}

// An ADD that fails at any of its steps leaves nothing: no lease, no link, no route, nothing in
// the pod. The next one succeeds.
func TestFailedAddLeavesNothing(t *testing.T) {
	kernelTest(t)
	for _, way := range []string{
		"at once/before", "at once/after", "at once/cancelled", "at once/store shared",
		"step by step/before", "step by step/after", "step by step/cancelled", "step by step/store shared",
	} {
		pace, how, _ := strings.Cut(way, "/")
		t.Run(way, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			n := h.node(t)
			if how == "store shared" {
				h.share(t, n)
			}
			dial := n.dial
			steps := 0
			for {
				steps++
				left := steps
				ctx, cancel := context.WithCancel(t.Context())
				n.dial = func(ns *os.File) (kernel, error) {
					k, err := dial(ns)
					f := faultyKernel{kernel: k, left: &left, late: how == "after", slow: pace == "step by step"}
					if how == "cancelled" {
						f.stop = cancel
					}
					return f, err
				}
				drainIdle(n)
				c := call{verb: "ADD", id: fmt.Sprint("c", steps), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
				reply := doWith(ctx, t, c, n)
				cancel()
				n.dial = dial
				drainIdle(n)
				if !reply.Failed && left > 0 {
					c.verb = "DEL"
					c.does(t, n)
					break
				}
				if !reply.Failed { // the fault came where it does no harm
					c.verb = "DEL"
					c.do(t, n)
				}
				if leases := h.leases(t); len(leases) > 0 {
					t.Errorf("step %d: leases stay: %v; %s", steps, leases, reply.Output)
				}
				h.whole(t)
				if links := pod.sh(t, "ip -br link"); strings.Contains(links, "eth0") {
					t.Errorf("step %d: eth0 stays: %s", steps, links)
				}
			}
			if least := map[string]int{"at once": 3, "step by step": 8}[pace]; steps < least {
				t.Errorf("only %d steps were tried", steps)
			}
			t.Logf("%d steps", steps-1)
		})
	}
}

func drainIdle(n *Node) {
	for {
		select {
		case k := <-n.idle:
			k.Close()
		default:
			return
		}
	}
}

func doWith(ctx context.Context, t *testing.T, c call, n *Node) api.Reply {
	t.Helper()
	netns, err := OpenNetns(c.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	return n.Do(ctx, Call{CNI: c.cni(), NetnsFile: netns})
}

// A second ADD of a live attachment is refused, and the first does not notice.
func TestDuplicateAdd(t *testing.T) {
	kernelTest(t)
	h, pod, other := newHost(t), newSpace(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	first := h.must(t, c)
	h.refused(t, c, codeExists)
	elsewhere := c
	elsewhere.netns = other.path
	h.refused(t, elsewhere, codeExists)
	if links := other.sh(t, "ip -br link"); strings.Contains(links, "eth0") {
		t.Errorf("eth0 in the other namespace: %s", links)
	}
	check := c
	check.verb, check.conf = "CHECK", with(c.conf, "prevResult", first)
	h.must(t, check)
	h.sh(t, "ping -c1 -W5 "+parseResult(t, first).addrs()[0])
	h.end(t, c)
}

// The same attachment in a new namespace, after the old one went away with its pod: it is taken
// over, with its addresses.
func TestTakeover(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", conf: h.conf("1.1.0")}
	gone := newSpace(t)
	c.netns = gone.path
	want := parseResult(t, h.must(t, c)).addrs()
	gone.file.Close() // the last reference: the kernel takes the links down in its own time
	until(t, "the links of the closed namespace go", func() bool {
		links, _ := h.wired(t)
		return len(links) == 0
	})
	pod := newSpace(t)
	c.netns = pod.path
	got := parseResult(t, h.must(t, c)).addrs()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, had %v", got, want)
	}
	h.sh(t, "ping -c1 -W5 "+got[0])
	h.end(t, c)
}

// An interface that is there already is not touched.
func TestInterfaceExists(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	pod.sh(t, "ip link add eth0 type veth peer name other; ip addr add 198.51.100.1/24 dev eth0")
	before := pod.sh(t, "ip -o addr; ip -o link")
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	h.refused(t, c, codeExists)
	if after := pod.sh(t, "ip -o addr; ip -o link"); after != before {
		t.Errorf("before %s after %s", before, after)
	}
	if leases := h.leases(t); len(leases) > 0 {
		t.Errorf("leases: %v", leases)
	}
}

// DEL needs neither namespace nor prevResult, succeeds as often as it is called, and leaves a
// later holder of the address alone.
func TestDel(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	for name, change := range map[string]func(c *call){
		"empty namespace":    func(c *call) { c.netns = "" },
		"missing namespace":  func(c *call) { c.netns = "/none" },
		"garbage prevResult": func(c *call) { c.conf = with(c.conf, "prevResult", `{"ips":[{"address":"x"}]}`) },
		"bad CNI_ARGS":       func(c *call) { c.args = "=;;x" },
		"foreign prevResult": func(c *call) {
			c.conf = with(c.conf, "prevResult", `{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.1/24"}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newSpace(t)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.0.0")}
			h.must(t, c)
			c.verb = "DEL"
			change(&c)
			for range 3 {
				h.must(t, c)
			}
			if links := pod.sh(t, "ip -br link"); strings.Contains(links, "eth0") {
				t.Errorf("eth0 stays: %s", links)
			}
			if leases := h.leases(t); len(leases) > 0 {
				t.Errorf("leases: %v", leases)
			}
		})
	}
}

// The pod comes back under another container ID while the old sandbox was not deleted yet: it
// gets its address, and the late DEL does not disturb it.
func TestLateDelLeavesTheNewHolder(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	old := newSpace(t)
	args := "K8S_POD_NAMESPACE=default;K8S_POD_NAME=till-1;IgnoreUnknown=1"
	first := call{verb: "ADD", id: "old", ifName: "eth0", netns: old.path, args: args, conf: h.conf("1.1.0")}
	want := parseResult(t, h.must(t, first)).addrs()
	old.file.Close()
	until(t, "the links of the closed namespace go", func() bool {
		links, _ := h.wired(t)
		return len(links) == 0
	})
	pod := newSpace(t)
	second := first
	second.id, second.netns = "new", pod.path
	result := h.must(t, second)
	if got := parseResult(t, result).addrs(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, had %v", got, want)
	}
	first.verb, first.netns = "DEL", ""
	h.must(t, first)
	second.verb, second.conf = "CHECK", with(second.conf, "prevResult", result)
	h.must(t, second)
	h.sh(t, "ping -c1 -W5 "+want[0])
	h.end(t, second)
}

// GC keeps what is listed, under either key, and frees the rest of its own network. Without a
// Long names, a hostile environment, and namespaces with IPv6 switched off.
func TestOddButRight(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	long := strings.Repeat("0123456789", 20)
	for _, tt := range []struct {
		name, id, ifName, prepare string
	}{
		{"long names", long, "abcdefghijklmno", "true"},
		{"dots", "a.b_c-d", "eth0.100", "true"},
		{"IPv6 off", "v6", "eth0", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"},
		{"strict checks", "strict", "eth0", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.arp_ignore=2 net.ipv4.conf.default.arp_announce=2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := newSpace(t)
			pod.sh(t, tt.prepare)
			c := call{verb: "ADD", id: tt.id, ifName: tt.ifName, netns: pod.path, conf: h.conf("1.1.0")}
			added := h.must(t, c)
			for _, a := range parseResult(t, added).addrs() {
				h.sh(t, "ping -c1 -W5 "+a)
			}
			c.verb, c.conf = "CHECK", with(c.conf, "prevResult", added)
			h.must(t, c)
			h.end(t, c)
		})
	}
}

// What came from the plugin before is passed on (SPEC 1.1.0 section 2, ADD).
func TestPrevResultIsKept(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path}
	c.conf = with(h.conf("1.0.0"), "prevResult", `{"cniVersion":"1.0.0","interfaces":[{"name":"lo","mac":"00:00:00:00:00:00","sandbox":"`+pod.path+
		`"}],"ips":[{"address":"127.0.0.1/8","interface":0}],"routes":[{"dst":"198.51.100.0/24"}],"dns":{"nameservers":["192.0.2.53"]}}`)
	out := h.must(t, c)
	r := parseResult(t, out)
	if len(r.Interfaces) != 3 || r.Interfaces[0].Name != "lo" || len(r.IPs) != 3 || *r.IPs[1].Interface != 2 || len(r.Routes) != 3 || !strings.Contains(out, "192.0.2.53") {
		t.Errorf("result %s", out)
	}
	c.verb, c.conf = "CHECK", with(h.conf("1.0.0"), "prevResult", out)
	h.must(t, c)
	h.end(t, c)
}

// Requested addresses and MAC, in their order of precedence.
func TestRequests(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	for _, tt := range []struct{ name, args, keys, want string }{
		{"CNI_ARGS", "IP=10.99.3.4/16;MAC=02:00:00:00:00:01", `"x":1`, "[10.99.3.4 fd00:99::1] 02:00:00:00:00:01"},
		{"args before CNI_ARGS", "IP=10.99.3.4", `"args":{"cni":{"ips":["10.99.5.6/16","fd00:99::56"],"mac":"02:00:00:00:00:02"}}`, "[10.99.5.6 fd00:99::56] 02:00:00:00:00:02"},
		{"capabilities first", "IP=10.99.3.4;MAC=02:00:00:00:00:01", `"args":{"cni":{"ips":["10.99.5.6"]}},"runtimeConfig":{"ips":["10.99.7.8","fd00:99::78/64"],"mac":"02:00:00:00:00:03"}`, "[10.99.7.8 fd00:99::78] 02:00:00:00:00:03"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := newSpace(t)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, args: tt.args, conf: h.conf("1.1.0", tt.keys)}
			r := parseResult(t, h.must(t, c))
			if got := fmt.Sprint(r.addrs(), " ", r.Interfaces[1].Mac); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			h.sh(t, "ping -c1 -W5 "+r.addrs()[0])
			twin := c
			twin.id, twin.netns = "c2", newSpace(t).path
			h.refused(t, twin, codeInUse)
			h.end(t, c)
		})
	}
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: newSpace(t).path, args: "IP=203.0.113.9", conf: h.conf("1.1.0")}
	h.refused(t, c, codeConfig)
}

// Routes of the configuration, with what cniVersion 1.1.0 says of them, in the kernel.
func TestConfiguredRoutes(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipam":{"type":"edgeway","ranges":[[{"subnet":"10.99.0.0/16","gateway":"10.99.0.1"}],[{"subnet":"fd00:99::/64"}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"198.51.100.0/24","gw":"10.99.0.1","mtu":1400,"advmss":1300,"priority":50},{"dst":"203.0.113.0/24","table":77},{"dst":"fd01::/16"},{"dst":"192.0.2.64/26","scope":253}]}`)}
	added := h.must(t, c)
	got := pod.sh(t, "ip route; ip route show table 77; ip -6 route | grep -v fe80::/")
	for _, want := range []string{
		"default via 169.254.1.1 dev eth0",
		"198.51.100.0/24 via 10.99.0.1 dev eth0 proto 101 metric 50 mtu 1400 advmss 1300",
		"203.0.113.0/24 via 169.254.1.1 dev eth0",
		"fd01::/16 via fe80::1 dev eth0",
		"192.0.2.64/26 dev eth0 proto 101 scope link",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "default via fe80::1") {
		t.Errorf("a default route that was not asked for:\n%s", got)
	}
	c.verb, c.conf = "CHECK", with(c.conf, "prevResult", added)
	h.must(t, c)
	h.end(t, c)
}

// A pod's traffic that leaves its network has the node's address; inside it keeps its own.
func TestMasquerade(t *testing.T) {
	kernelTest(t)
	h, pod, lan := newHost(t), newSpace(t), newSpace(t)
	h.sh(t, "ip link add lan0 type veth peer name lan1 netns "+lan.path+"; ip link set lan0 up; ip addr add 198.51.100.1/24 dev lan0; ip addr add 2001:db8:1::1/64 dev lan0 nodad")
	lan.sh(t, "ip link set lan1 up; ip addr add 198.51.100.2/24 dev lan1; ip addr add 2001:db8:1::2/64 dev lan1 nodad")
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
	added := h.must(t, c)
	// The LAN has no route back to pods: an answer proves the node's address.
	for _, a := range []string{"198.51.100.2", "2001:db8:1::2"} {
		pod.sh(t, "ping -c1 -W5 "+a)
	}
	check := c
	check.verb, check.conf = "CHECK", with(c.conf, "prevResult", added)
	h.must(t, check)
	h.sh(t, "nft delete element inet edgeway pods4 '{ 10.99.0.1 }'")
	if text := h.refused(t, check, codeDifferent); !strings.Contains(text, "missing masquerade of 10.99.0.1") {
		t.Errorf("CHECK says %s", text)
	}
	h.end(t, c)
	if out, err := h.try(t, "nft list table inet edgeway 2>/dev/null"); err == nil && strings.Contains(out, "10.99.0.1") {
		t.Errorf("the pod's element stays: %s", out)
	}
}

// ipMasq went from the configuration while the pod ran: its element stayed for ever.
func TestMasqueradeOutlivesItsConfiguration(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	for _, end := range []string{"DEL", "GC"} {
		pod := newSpace(t)
		c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
		h.must(t, c)
		if out := h.sh(t, "nft list table inet edgeway"); !strings.Contains(out, "10.99.0.") {
			t.Fatalf("masquerade of ADD: %s", out)
		}
		c.verb, c.conf = end, h.conf("1.1.0", `"cni.dev/valid-attachments":[]`)
		h.must(t, c)
		if out := h.sh(t, "nft list table inet edgeway"); strings.Contains(out, "10.99.0.") || strings.Contains(out, "fd00:99::") {
			t.Errorf("after %s: %s", end, out)
		}
	}
}

// The store was lost, and DEL had no lease that says whose masquerade to end: the element stayed, and the
// address of a later pod was masqueraded without being asked.
func TestDELAfterALostStoreEndsMasquerade(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	var calls []call
	for i := range 8 {
		calls = append(calls, call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0", `"ipMasq":true`)})
		h.must(t, calls[i])
	}
	files, err := filepath.Glob(filepath.Join(h.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	h.sh(t, "ip link del "+HostLink(attachmentOf(calls[1]))) // its pod ended before
	var wait sync.WaitGroup
	end := func(c call) {
		c.verb = "DEL"
		if out, status := h.exec(t, c); status != 0 {
			t.Errorf("DEL %s: %s", c.id, out)
		}
	}
	for _, c := range calls[1:] {
		wait.Go(func() { end(c) })
	}
	wait.Wait()
	out := h.sh(t, "nft list table inet edgeway")
	for i := range calls {
		if has := strings.Contains(out, fmt.Sprint("10.99.0.", i+1)); has != (i == 0) {
			t.Errorf("masquerade of pod %d: %v, and pod 0 alone lives:\n%s", i, has, out)
		}
	}
	end(calls[0])
	if out := h.sh(t, "nft list table inet edgeway"); strings.Contains(out, "10.99.0.") || strings.Contains(out, "fd00:99::") {
		t.Errorf("masquerade stays:\n%s", out)
	}
}

// The daemon was killed before it had written the pod's lease, and the link went with the pod's namespace: DEL without
// the daemon found nothing to remove, and the address stayed masqueraded until the daemon's next sweep.
func TestDELOfAPodWithoutLeaseAndLinkEndsMasquerade(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h := newHost(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0", `"ipMasq":true`)}
	h.must(t, c)
	store := h.store(t)
	_, _, err := store.Release(t.Context(), attachmentOf(c))
	if err = errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	h.sh(t, "ip link del "+HostLink(attachmentOf(c)))
	h.end(t, c)
	if out := h.sh(t, "nft list ruleset"); strings.Contains(out, "10.99.0.1") || strings.Contains(out, "fd00:99::1") {
		t.Errorf("masquerade stays:\n%s", out)
	}
}

// The link of a pod goes with the pod's namespace. Where another plugin gave the address, no lease tells
// a later GC whose masquerade to end, and it stayed for ever.
func TestGCEndsMasqueradeOfAPodWhoseLinkWentFirst(t *testing.T) {
	kernelTest(t)
	need(t, "nft")
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipMasq":true`)}
	h.must(t, c)
	k, err := routes.OpenNetns(h.file)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	gone := netip.MustParseAddr("10.97.0.5")
	if _, err := k.Sync(t.Context(), routes.Scope{}, routes.State{Masq: []routes.Masq{{Addr: gone, Networks: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24")}}}}); err != nil {
		t.Fatal(err)
	}
	gc := c
	gc.verb, gc.conf = "GC", h.conf("1.1.0", `"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]`)
	h.must(t, gc)
	out := h.sh(t, "nft list table inet edgeway")
	if strings.Contains(out, "10.97.0.") || !strings.Contains(out, "10.99.0.1") || !strings.Contains(out, "fd00:99::1") {
		t.Errorf("want the masquerade of the pod that lives alone:\n%s", out)
	}
	h.end(t, c)
}

// Two interfaces of one container: traffic to both, and to one when the other is gone.
func TestTwoInterfaces(t *testing.T) {
	kernelTest(t)
	for _, first := range []string{"eth0", "net1"} {
		t.Run("without "+first, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			calls := map[string]call{}
			results := map[string]string{}
			for _, name := range []string{"eth0", "net1"} {
				c := call{verb: "ADD", id: "c1", ifName: name, netns: pod.path, conf: h.conf("1.1.0")}
				results[name] = h.must(t, c)
				calls[name] = c
			}
			reach := func(name string) {
				t.Helper()
				for _, a := range parseResult(t, results[name]).addrs() {
					h.sh(t, "ping -c1 -W5 "+a)
				}
				c := calls[name]
				c.verb, c.conf = "CHECK", with(c.conf, "prevResult", results[name])
				h.must(t, c)
			}
			reach("eth0")
			reach("net1")
			gone := calls[first]
			h.end(t, gone)
			delete(calls, first)
			for name, c := range calls {
				reach(name)
				pod.sh(t, "ping -c1 -W5 192.0.2.1 && ping -c1 -W5 2001:db8::1")
				h.end(t, c)
			}
		})
	}
}
