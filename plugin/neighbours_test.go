package plugin

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
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

// firewall accepts what it is told of in prevResult; the host drops the rest of what it forwards.
func TestChainWithFirewall(t *testing.T) {
	kernelTest(t)
	need(t, "iptables", "ip6tables")
	h := newHost(t)
	c := newChain(t, h, h.conf("1.1.0"), `{"type":"firewall","backend":"iptables"}`)
	peer := newSpace(t)
	peer.sh(t, "ip link set lo up")
	h.sh(t, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
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
