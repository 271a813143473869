package ens

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// The cloud's network forwards what belongs to an interface, and drops and counts everything else.
func TestPlug(t *testing.T) {
	lab.Need(t, "ip", "nft", "ping")
	l, err := lab.New(lab.Options{Bin: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	spec, err := lab.ParseTopology([]byte(`
hosts:
- {name: vpc, links: [{lan: world, addrs: [192.0.2.1/24]}], forward: true}
- {name: world, links: [{lan: world, addrs: [192.0.2.2/24]}], routes: [{to: 10.0.0.0/24, via: 192.0.2.1}]}
- {name: n1}
- {name: n2}
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Build(ctx, spec); err != nil {
		t.Fatal(err)
	}
	cloud, by := newCloud(t) // with the instance i-1, 10.0.0.1
	cloud.SetMiddle(0)
	cloud.AddInstance("i-2", "vsw-1", "sg-1")
	p, err := NewPlug(ctx, cloud, l.Machine("vpc"))
	if err != nil {
		t.Fatal(err)
	}
	n1, n2, world := l.Machine("n1"), l.Machine("n2"), l.Machine("world")
	for instance, m := range map[string]*lab.Machine{"i-1": n1, "i-2": n2} {
		if err := p.Connect(ctx, instance, m); err != nil {
			t.Fatal(err)
		}
	}
	ping := func(from *lab.Machine, source, to string, want bool) {
		t.Helper()
		args := []string{"-c1", "-W1", to}
		if want {
			args = []string{"-c1", "-w20", to} // until one is answered
		}
		if source != "" {
			args = append([]string{"-I", source}, args...)
		}
		if _, err := from.Run(ctx, "ping", args...); (err == nil) != want {
			t.Errorf("%s (%s) to %s: %v, want it answered: %v", from.Name, source, to, err, want)
		}
	}
	spoofed := func(more bool) {
		t.Helper()
		n, err := p.Spoofed(ctx)
		if err != nil || (n > 0) != more {
			t.Errorf("%d spoofed packets, %v; want some: %v", n, err, more)
		}
	}
	run := func(m *lab.Machine, script string) {
		t.Helper()
		if err := m.IP(ctx, script); err != nil {
			t.Fatal(err)
		}
	}
	ping(n1, "", "10.0.0.2", true)
	ping(n1, "", "192.0.2.2", true)
	ping(world, "", "10.0.0.1", true)

	// A second interface appears when the instance has been stopped and started.
	id := by.must("CreateNetworkInterface", "VSwitchId", "vsw-1", "SecurityGroupIds", `["sg-1"]`, "Name", "n")["NetworkInterfaceIds"].([]any)[0].(string)
	status := func(want string) {
		t.Helper()
		by.must("DescribeInstances", "InstanceIds", `["i-1"]`)
		if got := cloud.Status("i-1"); got != want {
			t.Fatalf("the instance is %s, want %s", got, want)
		}
	}
	by.must("StopInstance", "InstanceId", "i-1")
	status(Stopped)
	if out, err := n1.Run(ctx, "ip", "-br", "link", "show", "type", "veth"); err != nil || out != "" {
		t.Errorf("a stopped instance has links: %s, %v", out, err)
	}
	by.must("AttachNetworkInterface", "NetworkInterfaceId", id, "InstanceId", "i-1")
	by.must("DescribeNetworkInterfaces", "InstanceId", "i-1")
	by.must("StartInstance", "InstanceId", "i-1")
	status(Running)
	ping(n1, "", "10.0.0.2", true)
	n := cloud.Interfaces("i-1")[1]
	a, b := cloud.Give(id), cloud.Give(id)
	for _, pod := range []netip.Addr{a, b} { // what a node does for its pods
		run(n1, fmt.Sprintf("addr add %v/32 dev lo\nrule add from %v lookup 100\n", pod, pod))
	}
	run(n1, fmt.Sprintf("link set dev eth1 up\naddr add %v/32 dev eth1\nroute add 10.0.0.253 dev eth1 table 100\nroute add default via 10.0.0.253 dev eth1 onlink table 100\n", n.Address))
	ping(n1, a.String(), "10.0.0.2", true)
	ping(n1, b.String(), "192.0.2.2", true)
	ping(n2, "", a.String(), true)
	ping(world, "", b.String(), true)
	spoofed(false)

	// An address that is taken back in the console: packets just vanish. So does the wrong interface.
	cloud.Take(id, b)
	ping(world, "", b.String(), false)
	ping(n1, b.String(), "192.0.2.2", false)
	spoofed(true)
	before, _ := p.Spoofed(ctx)
	run(n1, fmt.Sprintf("rule del from %v lookup 100\n", a))
	ping(n1, a.String(), "192.0.2.2", false)
	if after, err := p.Spoofed(ctx); err != nil || after <= before {
		t.Errorf("by the wrong interface: %d spoofed packets, before %d (%v)", after, before, err)
	}
}
