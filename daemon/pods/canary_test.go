package pods

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/daemon/cluster"
	"github.com/edgeway-cni/edgeway/daemon/policy"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
	"github.com/edgeway-cni/edgeway/plugin/uplink"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

func planFor(mtu int, cidrs ...string) (plan policy.Plan) {
	plan.MTU = mtu
	for _, c := range cidrs {
		plan.Pool.Sets = append(plan.Pool.Sets, ipam.RangeSet{{Subnet: netip.MustParsePrefix(c)}})
	}
	return plan
}

// keeps applies the plan, and returns the addresses of the canary; "" when there is none.
func (p *Pods) keeps(t *testing.T, n *leases, plan policy.Plan) string {
	t.Helper()
	if err := n.store.SetPool(t.Context(), plan.Pool); err != nil {
		t.Fatal(err)
	}
	if problems := p.keepCanary(t.Context(), n, plan); len(problems) > 0 {
		t.Fatal(problems)
	}
	var out []string
	if c := p.Canary(); c != nil {
		for _, a := range c.Addrs {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, " ")
}

func TestCanary(t *testing.T) {
	p, n, host := onMachine(t)
	p.config.Paths.Canary = true
	plan := planFor(1450, "10.88.0.0/24", "fd88::/64")
	const last = "10.88.0.254 fd88::ffff:ffff:ffff:ff7f"
	if got := p.keeps(t, n, plan); got != last {
		t.Fatalf("canary %q, want %q", got, last)
	}
	first := p.Canary()
	if p.keeps(t, n, plan); p.Canary() != first {
		t.Error("a second Sync made another canary")
	}
	if err := first.Inside(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil && link.MTU != 1450 {
			err = errors.New("MTU is wrong")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if l, problems := p.Status(t.Context()); l.Used != 0 || l.Free != 254 || len(problems) > 0 {
		t.Errorf("status: %+v, %v", l, problems)
	}
	if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || checked.Leases != 1 || len(checked.Findings) > 0 {
		t.Errorf("ipam check: %+v, %v", checked, err)
	}
	if list, err := n.list(t.Context()); err != nil || len(list.Leases) != 1 || list.Leases[0].Pod != canaryPod || list.Leases[0].State != string(plugin.Alive) {
		t.Errorf("ipam list: %+v, %v", list, err)
	}
	// A runtime does not list it, and a sweep sees that it lives.
	gc := api.CNI{Command: "GC", Stdin: []byte(`{"cniVersion":"1.1.0","name":"edgeway","type":"edgeway","dataDir":"` + p.config.StateDir + `","cni.dev/valid-attachments":[]}`)}
	if reply := p.CNI(t.Context(), api.Request{Op: "cni", CNI: &gc}, nil); reply.Failed {
		t.Errorf("GC: %s", reply.Output)
	}
	if err := p.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if p.keeps(t, n, plan); p.Canary() != first {
		t.Error("GC or a sweep ended the canary")
	}

	// It is what a new pod would be.
	for name, change := range map[string]func(){
		"another MTU":  func() { plan.MTU -= 50 },
		"another CIDR": func() { plan.Pool = planFor(0, "10.89.0.0/24").Pool },
		"link deleted by hand": func() {
			if err := host.IP(t.Context(), "link del "+plugin.HostLink(plugin.Canary())); err != nil {
				t.Fatal(err)
			}
		},
		"released by an operator": func() {
			if _, err := n.releaseLeases(t.Context(), []string{plugin.Canary().String(), Force}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		before := p.Canary()
		change()
		if p.keeps(t, n, plan); p.Canary() == before || p.Canary() == nil || p.Canary().MTU != plan.MTU {
			t.Errorf("%s: canary %+v", name, p.Canary())
		}
		if err := before.Inside(func() error { return nil }); !errors.Is(err, ErrNoCanary) {
			t.Errorf("%s: the old canary lives: %v", name, err)
		}
	}
	// A fault that Keep cannot repair ends it: nobody uses it.
	if err := host.IP(t.Context(), "link del "+plugin.HostLink(plugin.Canary())); err != nil {
		t.Fatal(err)
	}
	if err := p.keep(t.Context(), true); err != nil || p.Canary() != nil || len(p.unkept()) > 0 {
		t.Errorf("after Keep: %v, canary %v, problems %v", err, p.Canary(), p.unkept())
	}
	p.keeps(t, n, plan)

	// A node without a pod CIDR, or with the canary switched off, has none; the end of the daemon leaves nothing.
	p.config.Paths.Canary = false
	if got := p.keeps(t, n, planFor(1400, "10.90.0.0/24")); got != "" {
		t.Errorf("switched off: canary %s", got)
	}
	p.config.Paths.Canary = true
	p.keeps(t, n, plan)
	if err := p.endCanary(t.Context(), n, "the test ends"); err != nil {
		t.Error(err)
	}
	if leases, err := n.store.Leases(); err != nil || len(leases) > 0 {
		t.Errorf("left: %v, %v", leases, err)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// The canary took the last address, and a pod had to wait.
func TestCanaryGivesWay(t *testing.T) {
	p, n, _ := onMachine(t)
	p.config.Paths.Canary = true
	plan := planFor(1500, "10.88.0.0/30")
	says := func(used, free uint64, full bool) {
		t.Helper()
		l, problems := p.Status(t.Context())
		if reason := slices.ContainsFunc(problems, func(p cluster.Problem) bool { return p.Reason == cluster.PoolFull }); l.Used != used || l.Free != free || reason != full {
			t.Errorf("leases %+v, problems %+v; want %d used, %d free, full: %v", l, problems, used, free, full)
		}
	}
	if got := p.keeps(t, n, plan); got != "10.88.0.2" {
		t.Errorf("canary %q", got)
	}
	says(0, 2, false)
	pods := map[string]*lab.Space{"c1": newSpace(t), "c2": newSpace(t)}
	add := func(id string, ipam string) {
		t.Helper()
		if reply := p.call(t, "ADD", id, pods[id], ipam); reply.Failed {
			t.Fatalf("ADD %s: %s", id, reply.Output)
		}
	}
	add("c1", "{}")
	says(1, 1, false)
	add("c2", "{}") // before the next Sync
	if p.Canary() != nil {
		t.Error("the canary lives")
	}
	says(2, 0, true)
	if got := p.keeps(t, n, plan); got != "" {
		t.Errorf("a canary in a full pool: %s", got)
	}
	p.call(t, "DEL", "c2", pods["c2"], "{}")
	if got := p.keeps(t, n, plan); got != "" { // the last address is for the next pod
		t.Errorf("a canary has the last address: %s", got)
	}
	p.call(t, "DEL", "c1", pods["c1"], "{}")
	if got := p.keeps(t, n, plan); got != "10.88.0.2" {
		t.Errorf("canary %q", got)
	}
	add("c1", "{}")
	if got := p.keeps(t, n, plan); got != "" { // at the next Sync, the last address is free for a pod
		t.Errorf("the canary keeps the last address: %s", got)
	}
	p.call(t, "DEL", "c1", pods["c1"], "{}")

	// A pod that asks for the canary's address gets it.
	plan = planFor(1500, "10.88.0.0/24")
	p.keeps(t, n, plan)
	conf := `{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":"` + p.config.StateDir + `","runtimeConfig":{"ips":["10.88.0.254"]}}`
	cni := api.CNI{Command: "ADD", ContainerID: "c1", IfName: "eth0", Netns: pods["c1"].Path, Stdin: []byte(conf)}
	if reply := p.CNI(t.Context(), api.Request{Op: "cni", CNI: &cni}, pods["c1"].File); reply.Failed {
		t.Errorf("ADD: %s", reply.Output)
	}
	if got := p.keeps(t, n, plan); got == "" || got == "10.88.0.254" {
		t.Errorf("canary %q", got)
	}
	if err := p.endCanary(t.Context(), n, "the test ends"); err != nil {
		t.Error(err)
	}
	p.call(t, "DEL", "c1", pods["c1"], "{}")
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// A daemon that was killed left a lease and perhaps a link: the next daemon's canary has the same addresses.
func TestCanaryAfterACrash(t *testing.T) {
	p, n, _ := onMachine(t)
	p.config.Paths.Canary = true
	plan := planFor(1500, "10.88.0.0/24", "fd88::/64")
	before := p.keeps(t, n, plan)
	crashed := p.Canary()
	p.canary.Store(nil) // the process forgets it, its link and lease stay
	if after := p.keeps(t, n, plan); after != before {
		t.Errorf("canary %s, before the crash %s", after, before)
	}
	crashed.end()
	if checked, err := n.check(t.Context(), n.verbs.Audit); err != nil || checked.Leases != 1 || len(checked.Findings) > 0 {
		t.Errorf("ipam check: %+v, %v", checked, err)
	}
	if err := p.endCanary(t.Context(), n, "the test ends"); err != nil {
		t.Error(err)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// After a node's pod CIDR had changed, status showed 18446744073709551615 used addresses for a moment.
func TestStatusBeforeTheCanaryFollowsThePool(t *testing.T) {
	p, n, _ := onMachine(t)
	p.config.Paths.Canary = true
	p.keeps(t, n, planFor(1500, "10.88.0.0/24"))
	next := planFor(1500, "10.89.0.0/30")
	if err := n.store.SetPool(t.Context(), next.Pool); err != nil {
		t.Fatal(err)
	}
	if l, problems := p.Status(t.Context()); l.Used != 0 || l.Free != 2 || len(problems) > 0 {
		t.Errorf("leases %+v, problems %v", l, problems)
	}
	if err := errors.Join(p.endCanary(t.Context(), n, "the test ends"), n.close()); err != nil {
		t.Error(err)
	}
}

// The pods of a node with uplinks had no canary: nobody knew whether their packets arrive. The addresses are few: the last
// free one is for the next pod, and an address that is taken back is confirmed at once, without a word about the canary.
func TestCanaryAtAnUplink(t *testing.T) {
	p, n, _ := onMachine(t)
	p.config.Paths.Canary = true
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, a := range texts {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	var plan policy.Plan
	plan.MTU = 1500
	subnet := netip.MustParsePrefix("10.88.0.0/24")
	plan.Uplinks = uplink.Uplinks{Interfaces: []uplink.Interface{{Subnet: subnet, Addresses: addrs("10.88.0.20", "10.88.0.21", "10.88.0.22")}}}
	for _, c := range []struct {
		withheld []netip.Addr
		want     string
	}{{nil, "10.88.0.22"}, {addrs("10.88.0.22"), "10.88.0.21"}, {addrs("10.88.0.20", "10.88.0.22"), ""}, {nil, "10.88.0.22"}} {
		plan.Pool = plan.Uplinks.Pool(func(a netip.Addr) bool { return !slices.Contains(c.withheld, a) })
		if got := p.keeps(t, n, plan); got != c.want {
			t.Errorf("without %v: canary %q, want %q", c.withheld, got, c.want)
		}
		if held := p.Held(); len(held.Pods) > 0 || held.Used(plan.Uplinks) != 0 || held.Free() != 3-len(c.withheld) || len(held.Canary) > 1 || len(held.Canary) == 1 && held.Canary[0].String() != c.want {
			t.Errorf("without %v: %+v", c.withheld, held)
		}
	}
	pods := []*lab.Space{newSpace(t), newSpace(t), newSpace(t)}
	for i, want := range []string{"10.88.0.22", "", ""} {
		if reply := p.call(t, "ADD", fmt.Sprint("c", i), pods[i], "{}"); reply.Failed {
			t.Fatalf("ADD %d: %s", i, reply.Output)
		}
		if got := p.keeps(t, n, plan); got != want {
			t.Errorf("beside %d pods: canary %q, want %q", i+1, got, want)
		}
	}
	for i, ns := range pods {
		p.call(t, "DEL", fmt.Sprint("c", i), ns, "{}")
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// A user's pod that has the canary's name ended the canary and was never shown as broken.
func TestPodWithTheNameOfTheCanary(t *testing.T) {
	p, n, host := onMachine(t)
	p.config.Paths.Canary = true
	p.keeps(t, n, planFor(1500, "10.88.0.0/24"))
	pod := newSpace(t)
	cni := api.CNI{Command: "ADD", ContainerID: "c1", IfName: "eth0", Netns: pod.Path, Args: canaryArgs,
		Stdin: []byte(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":"` + p.config.StateDir + `"}`)}
	if reply := p.CNI(t.Context(), api.Request{Op: "cni", CNI: &cni}, pod.File); reply.Failed {
		t.Fatalf("ADD: %s", reply.Output)
	}
	if err := host.IP(t.Context(), "link del "+plugin.HostLink(ipam.Attachment{ContainerID: "c1", IfName: "eth0"})); err != nil {
		t.Fatal(err)
	}
	if err := p.keep(t.Context(), true); err != nil || p.Canary() == nil || len(p.unkept()) != 1 {
		t.Errorf("after Keep: %v, canary %v, problems %v", err, p.Canary(), p.unkept())
	}
	p.call(t, "DEL", "c1", pod, "{}")
	if err := errors.Join(p.endCanary(t.Context(), n, "the test ends"), n.close()); err != nil {
		t.Error(err)
	}
}

// After kill -9 of the daemon, the plugin alone starts a pod although the canary had the only address.
func TestPluginTakesTheAddressOfADeadCanary(t *testing.T) {
	p, n, host := onMachine(t)
	p.config.Paths.Canary = true
	p.keeps(t, n, planFor(1500, "10.88.0.0/30"))
	first, second := newSpace(t), newSpace(t)
	if reply := p.call(t, "ADD", "c1", first, "{}"); reply.Failed { // before the next Sync
		t.Fatalf("ADD: %s", reply.Output)
	}
	// The kernel closes the descriptors of a process that is killed. The store keeps the lease.
	p.canary.Load().end()
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c2", "CNI_IFNAME": "eth0", "CNI_NETNS": second.Path}
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"edgeway","dataDir":%q,"socket":%q}`, p.config.StateDir, filepath.Join(t.TempDir(), "none"))
	alone := func(verb string) (status int, answer string) {
		t.Helper()
		env["CNI_COMMAND"] = verb
		var out strings.Builder
		call := plugin.Process{Getenv: func(key string) string { return env[key] }, Stdin: strings.NewReader(conf), Stdout: &out, Stderr: io.Discard}
		if err := host.Do(func() error { status = call.Run(t.Context()); return nil }); err != nil {
			t.Fatal(err)
		}
		return status, out.String()
	}
	// The kernel deletes the namespace and its link a moment after the last descriptor is closed. Until then a
	// runtime is told to try again.
	deadline := time.Now().Add(10 * time.Second)
	status, answer := alone("ADD")
	for status != 0 && strings.Contains(answer, `"code":11,`) && time.Now().Before(deadline) {
		status, answer = alone("ADD")
	}
	if status != 0 || !strings.Contains(answer, "10.88.0.2/32") {
		t.Errorf("ADD: status %d, %s", status, answer)
	}
	for _, id := range []string{"c1", "c2"} {
		env["CNI_CONTAINERID"] = id
		if status, answer := alone("DEL"); status != 0 {
			t.Errorf("DEL %s: %s", id, answer)
		}
	}
}
