package plugin

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/ipam"
)

// chain is a configuration list and a pod that a runtime attaches with it.
type chain struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
	pod  *space
	host *host
}

// newChain makes a list of the plugins' configurations.
func newChain(t *testing.T, h *host, plugins ...string) *chain {
	t.Helper()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"net","plugins":[%s]}`, strings.Join(plugins, ",")))
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{cni: runtimeOf(t), list: list, host: h}
	c.next(t, "c1")
	return c
}

// next makes a new container of the pod.
func (c *chain) next(t *testing.T, id string) {
	t.Helper()
	c.pod = newSpace(t)
	c.rt = &libcni.RuntimeConf{
		ContainerID: id, NetNS: c.pod.path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "p1"}},
	}
}

func (c *chain) add(t *testing.T) *current.Result {
	t.Helper()
	var result *current.Result
	c.host.run(t, func() error {
		r, err := c.cni.AddNetworkList(t.Context(), c.list, c.rt)
		if err != nil {
			return fmt.Errorf("ADD: %w", err)
		}
		result, err = current.NewResultFromResult(r)
		return err
	})
	return result
}

// must runs a verb of libcni on the host.
func (c *chain) must(t *testing.T, verb string) {
	t.Helper()
	if err := c.try(t, verb); err != nil {
		t.Errorf("%s: %v", verb, err)
	}
}

func (c *chain) try(t *testing.T, verb string) (err error) {
	t.Helper()
	c.host.run(t, func() error {
		switch ctx := t.Context(); verb {
		case "CHECK":
			err = c.cni.CheckNetworkList(ctx, c.list, c.rt)
		case "DEL":
			err = c.cni.DelNetworkList(ctx, c.list, c.rt)
		case "GC":
			err = c.cni.GCNetworkList(ctx, c.list, &libcni.GCArgs{})
		case "STATUS":
			err = c.cni.GetStatusNetworkList(ctx, c.list)
		default:
			err = errors.New("no such verb")
		}
		return nil
	})
	return err
}

// described is a result in short: interface names, "pod" for those in the pod, and addresses with
// the index of their interface.
func (c *chain) described(r *current.Result) (out []string) {
	for _, i := range r.Interfaces {
		where := "host "
		if i.Sandbox == c.pod.path {
			where = "pod "
		}
		out = append(out, where+i.Name)
	}
	for _, ip := range r.IPs {
		at := "-"
		if ip.Interface != nil {
			at = fmt.Sprint(*ip.Interface)
		}
		out = append(out, ip.Address.String()+" "+at)
	}
	return out
}

// neighbourOf makes another machine, 198.51.100.2 and 2001:db8:1::2, that reaches the pods through
// the host.
func neighbourOf(t *testing.T, h *host) *space {
	t.Helper()
	peer := newSpace(t)
	peer.sh(t, "ip link set lo up")
	h.sh(t, fmt.Sprintf(`ip link add peer0 type veth peer name peer1
		ip link set peer1 netns %s
		ip link set peer0 up
		ip addr add 198.51.100.1/24 dev peer0
		ip addr add 2001:db8:1::1/64 dev peer0 nodad`, peer.path))
	peer.sh(t, `ip link set peer1 up
		ip addr add 198.51.100.2/24 dev peer1
		ip addr add 2001:db8:1::2/64 dev peer1 nodad
		ip route add default via 198.51.100.1
		ip -6 route add default via 2001:db8:1::1`)
	return peer
}

// firewall accepts what it is told of in prevResult; the host drops the rest of what it forwards.
func TestChainWithFirewall(t *testing.T) {
	kernelTest(t)
	need(t, "iptables", "ip6tables")
	h := newHost(t)
	c := newChain(t, h, h.conf("1.1.0"), `{"type":"firewall","backend":"iptables"}`)
	neighbourOf(t, h)
	h.sh(t, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")

	rules := func() string { return h.sh(t, "iptables -S; ip6tables -S") }
	result := c.add(t)
	for _, ip := range result.IPs {
		for _, rule := range []string{"-s " + ip.Address.String() + " -j ACCEPT", "-d " + ip.Address.String() + " -m conntrack"} {
			if !strings.Contains(rules(), rule) {
				t.Errorf("no rule %s in\n%s", rule, rules())
			}
		}
	}
	c.must(t, "CHECK")
	c.must(t, "STATUS")
	for _, to := range []string{"192.0.2.1", "2001:db8::1", "198.51.100.2", "2001:db8:1::2"} {
		c.pod.sh(t, "ping -c1 -W5 "+to)
	}
	h.sh(t, "iptables -D CNI-FORWARD -s "+result.IPs[0].Address.IP.String()+" -j ACCEPT")
	if err := c.try(t, "CHECK"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("CHECK without the firewall's rule: %v", err)
	}
	for range 2 {
		c.must(t, "DEL")
	}
	if left := rules(); strings.Contains(left, "10.99.") || strings.Contains(left, "fd00:99:") {
		t.Errorf("rules stay:\n%s", left)
	}
}

// The addresses that static is told in the configuration, by the capability ips and by CNI_ARGS.
func TestDelegatedToStatic(t *testing.T) {
	kernelTest(t)
	const dual = `"addresses":[{"address":"10.97.0.5/24"},{"address":"fd00:97::5/64"}],`
	for _, test := range []struct {
		name, addresses string
		tell            func(*libcni.RuntimeConf)
	}{
		{"configuration", dual, func(*libcni.RuntimeConf) {}},
		{"capability", "", func(rt *libcni.RuntimeConf) {
			rt.CapabilityArgs = map[string]any{"ips": []string{"10.97.0.5/24", "fd00:97::5/64"}}
		}},
		{"CNI_ARGS", "", func(rt *libcni.RuntimeConf) {
			rt.Args = append(rt.Args, [2]string{"IP", "10.97.0.5/24,fd00:97::5/64"})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			c := newChain(t, h, h.conf("1.1.0", `"capabilities":{"ips":true}`,
				`"ipam":{"type":"static",`+test.addresses+`"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}`))
			test.tell(c.rt)
			c.must(t, "STATUS")
			link := delegatedLink("net", ipam.Attachment{ContainerID: "c1", IfName: "eth0"})
			want := []string{"host " + link, "pod eth0", "10.97.0.5/32 1", "fd00:97::5/128 1"}
			if diff := cmp.Diff(want, c.described(c.add(t))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			c.must(t, "CHECK")
			for _, a := range []string{"10.97.0.5", "fd00:97::5"} {
				h.sh(t, "ping -c1 -W5 "+a)
			}
			c.pod.sh(t, "ping -c1 -W5 192.0.2.1; ping -c1 -W5 2001:db8::1")
			if test.name == "configuration" {
				c.must(t, "GC") // of a runtime that lists no attachment
			}
			for range 2 {
				c.must(t, "DEL")
			}
			if links := h.sh(t, "ip -br link"); strings.Contains(links, linkPrefix) {
				t.Errorf("links stay: %s", links)
			}
		})
	}
}

// macvlan asks for addresses before its pod has any link of ours.
func TestIPAMOfMacvlan(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := newChain(t, h, fmt.Sprintf(`{"type":"macvlan","master":"up1","mode":"bridge","ipam":{"type":"edgeway","dataDir":%q,"socket":%q,
		"ranges":[[{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.100","gateway":"192.0.2.1"}],[{"subnet":"2001:db8::/64","rangeStart":"2001:db8::100","gateway":"2001:db8::1"}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`, h.dir, filepath.Join(h.dir, "sock")))
	const noDAD = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad" // macvlan waits for it, 2 s
	c.pod.sh(t, noDAD)
	c.must(t, "STATUS")
	first := c.described(c.add(t))
	if want := []string{"pod eth0", "192.0.2.100/24 0", "2001:db8::100/64 0"}; !cmp.Equal(want, first) {
		t.Errorf("result %q, want %q", first, want)
	}
	c.must(t, "CHECK")
	c.pod.sh(t, "ping -c1 -W5 192.0.2.1; ping -c1 -W5 2001:db8::1")
	c.standing(t, "c1 foreign")
	c.must(t, "DEL")
	c.standing(t)

	// Another pod takes the next addresses: the first pod's wait for it.
	c.next(t, "c2")
	c.pod.sh(t, noDAD)
	c.rt.Args[2][1] = "p2"
	if second := c.described(c.add(t)); cmp.Equal(first, second) {
		t.Errorf("another pod got %q at once", second)
	}
	c.next(t, "c3")
	c.pod.sh(t, noDAD)
	if again := c.described(c.add(t)); !cmp.Equal(first, again) {
		t.Errorf("the pod that comes back got %q, had %q", again, first)
	}
	c.must(t, "CHECK")
	c.standing(t, "c2 foreign", "c3 foreign")
	c.must(t, "GC")
	c.standing(t)
}

// standing wants the leases, as container and standing.
func (c *chain) standing(t *testing.T, want ...string) {
	t.Helper()
	store := c.host.store(t)
	defer store.Close()
	var got []string
	c.host.run(t, func() error {
		n, err := NewNode(store, c.host.dir)
		if err != nil {
			return err
		}
		defer n.Close()
		all, err := n.Attachments(t.Context())
		for _, a := range all {
			got = append(got, fmt.Sprint(a.Lease.Attachment.ContainerID, " ", a.Standing))
		}
		return err
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

// tuning lowers the MTU of the pod's end and leaves it out of its result: SPEC 1.1.0 section 2 has
// CHECK allow for what later plugins changed.
func TestCheckFailsAfterTuningSetMTU(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := newChain(t, h, h.conf("1.1.0"), `{"type":"tuning","mtu":1400}`)
	c.add(t)
	c.must(t, "CHECK")
	c.pod.sh(t, "ip link set eth0 mtu 1500")
	c.list.Plugins = c.list.Plugins[:1]
	if err := c.try(t, "CHECK"); err == nil || !strings.Contains(err.Error(), "mtu 1500") {
		t.Errorf("CHECK with an MTU above the host end's: %v", err)
	}
	c.must(t, "DEL")
}

// tuning gives the pod another MAC after ADD, which cut the pod off in both directions: the host
// sent to the old one, and the pod's kernel forgets its permanent neighbours with its address.
func TestPodIsCutOffAfterTuningSetMAC(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	peer := neighbourOf(t, h)
	reached := func(c *chain, what string) {
		t.Helper()
		for _, to := range []string{"10.99.0.1", "fd00:99::1"} {
			if out, err := peer.try(t, "ping -c1 -W1 "+to); err != nil {
				t.Errorf("%s: from another machine: %s", what, out)
			}
			if out, err := h.try(t, "ping -c1 -W1 "+to); err != nil {
				t.Errorf("%s: from the host: %s", what, out)
			}
		}
		for _, to := range []string{"192.0.2.1", "2001:db8::1", "198.51.100.2", "2001:db8:1::2"} {
			if out, err := c.pod.try(t, "ping -c1 -W1 "+to); err != nil {
				t.Errorf("%s: from the pod: %s", what, out)
			}
		}
	}
	c := newChain(t, h, h.conf("1.1.0"), `{"type":"tuning","mac":"02:00:00:00:00:d1"}`)
	c.add(t)
	reached(c, "after ADD")
	c.must(t, "CHECK")
	c.pod.sh(t, "ip link set eth0 address 02:00:00:00:00:d2")
	reached(c, "changed later")
	c.must(t, "DEL")
}

// sbr moves the routes to a table for each family, and lists them in its result as before.
func TestCheckFailsAfterSBRMovedRoutes(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := newChain(t, h, h.conf("1.1.0"), `{"type":"sbr"}`)
	c.add(t)
	c.must(t, "CHECK")
	c.pod.sh(t, "ping -c1 -W5 -I 10.99.0.1 192.0.2.1; ping -c1 -W5 -I fd00:99::1 2001:db8::1")
	c.pod.sh(t, "ip route flush table 100")
	err := c.try(t, "CHECK")
	if err == nil || !strings.Contains(err.Error(), "missing default via 169.254.1.1") || strings.Contains(err.Error(), "default via fe80::1") {
		t.Errorf("CHECK without the IPv4 routes: %v", err)
	}
	c.must(t, "DEL")
}

// What the plugins before made stays in the result, and CHECK of each finds its own.
func TestChainAfterOthers(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := newChain(t, h, `{"type":"loopback"}`, h.conf("1.1.0"), `{"type":"tuning","sysctl":{"net.core.somaxconn":"300"}}`)
	link := HostLink(ipam.Attachment{ContainerID: "c1", IfName: "eth0"})
	want := []string{"pod lo", "host " + link, "pod eth0", "127.0.0.1/8 0", "::1/128 0", "10.99.0.1/32 2", "fd00:99::1/128 2"}
	if diff := cmp.Diff(want, c.described(c.add(t))); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	c.must(t, "CHECK")
	c.pod.sh(t, "ping -c1 -W5 127.0.0.1; ping -c1 -W5 192.0.2.1; ping -c1 -W5 2001:db8::1")
	c.must(t, "STATUS")
	for range 2 {
		c.must(t, "DEL")
	}
	c.next(t, "c2")
	c.add(t)
	c.must(t, "GC") // of a runtime that lists no attachment
	if got := h.leases(t); len(got) > 0 {
		t.Errorf("leases after GC: %v", got)
	}
}

// A main plugin before us that made the interface leaves none to make: the refusal says so, touches
// nothing of the other's, and DEL of the chain removes all.
func TestChainAfterMacvlan(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	c := newChain(t, h, `{"type":"macvlan","master":"up1","ipam":{"type":"static","addresses":[{"address":"192.0.2.9/24"}]}}`, h.conf("1.1.0"))
	var err error
	h.run(t, func() error {
		_, err = c.cni.AddNetworkList(t.Context(), c.list, c.rt)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "interface eth0 exists") {
		t.Errorf("ADD: %v", err)
	}
	c.pod.sh(t, "ping -c1 -W5 192.0.2.1")
	c.must(t, "DEL")
	if out, err := c.pod.try(t, "ip link show eth0"); err == nil {
		t.Errorf("eth0 stays: %s", out)
	}
}
