package plugin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// One attachment's life in each protocol version, executed as a runtime does.
func TestLifeInEachVersion(t *testing.T) {
	kernelTest(t)
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			c := call{id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf(version)}
			verb := func(v string) call { c.verb = v; return c }

			added := h.must(t, verb("ADD"))
			if r := parseResult(t, added); r.CNIVersion != version {
				t.Errorf("result of version %s", r.CNIVersion)
			}
			for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
				pod.sh(t, "ping -c1 -W5 "+a)
			}
			c.conf = with(c.conf, "prevResult", added)
			for _, v := range []struct{ verb, since string }{{"CHECK", "0.4.0"}, {"STATUS", "1.1.0"}, {"GC", "1.1.0"}} {
				if versionIndex(version) < versionIndex(v.since) {
					h.refused(t, verb(v.verb), codeVersion)
					continue
				}
				if out := h.must(t, verb(v.verb)); out != "" {
					t.Errorf("%s prints %q", v.verb, out)
				}
			}
			for range 2 {
				if out := h.must(t, verb("DEL")); out != "" {
					t.Errorf("DEL prints %q", out)
				}
			}
			if links := pod.sh(t, "ip -br link"); strings.Contains(links, "eth0") {
				t.Errorf("eth0 stays: %s", links)
			}
		})
	}
}

// Results in the shape of each version, as golden text.
func TestResultShapes(t *testing.T) {
	kernelTest(t)
	const (
		links = `"interfaces":[{"mac":"HOSTMAC","name":"HOST"},{"mac":"PODMAC","name":"eth0","sandbox":"NETNS"}]`
		dst   = `"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}]`
	)
	for _, tt := range []struct{ version, want string }{
		{"0.2.0", `{"cniVersion":"0.2.0","dns":{},"ip4":{"gateway":"169.254.1.1","ip":"10.99.0.1/32","routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]},"ip6":{"gateway":"fe80::1","ip":"fd00:99::1/128","routes":[{"dst":"::/0","gw":"fe80::1"}]}}`},
		{"0.3.1", `{"cniVersion":"0.3.1","dns":{},` + links + `,"ips":[{"address":"10.99.0.1/32","gateway":"169.254.1.1","interface":1,"version":"4"},{"address":"fd00:99::1/128","gateway":"fe80::1","interface":1,"version":"6"}],` + dst + `}`},
		{"1.0.0", `{"cniVersion":"1.0.0",` + links + `,"ips":[{"address":"10.99.0.1/32","gateway":"169.254.1.1","interface":1},{"address":"fd00:99::1/128","gateway":"fe80::1","interface":1}],` + dst + `}`},
		{"1.1.0", `{"cniVersion":"1.1.0",` + strings.ReplaceAll(links, `MAC",`, `MAC","mtu":1480,`) + `,"ips":[{"address":"10.99.0.1/32","gateway":"169.254.1.1","interface":1},{"address":"fd00:99::1/128","gateway":"fe80::1","interface":1}],` + dst + `}`},
	} {
		t.Run(tt.version, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf(tt.version)}
			var got any
			if err := json.Unmarshal([]byte(h.must(t, c)), &got); err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			a := attachmentOf(c)
			masked := strings.NewReplacer(HostLink(a), "HOST", macOf(a, "host"), "HOSTMAC", macOf(a, "pod"), "PODMAC", pod.path, "NETNS").Replace(string(text))
			if diff := cmp.Diff(tt.want, masked); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			h.end(t, c)
		})
	}
}

// What the kernel holds for a pod, on both sides, as ip prints it.
func TestWiring(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	h.must(t, c)
	a := attachmentOf(c)
	mask := strings.NewReplacer(HostLink(a), "HOST", macOf(a, "host"), "HOSTMAC", macOf(a, "pod"), "PODMAC", " \n", "\n")
	want := `10.99.0.1 dev HOST proto 101
fd00:99::1 dev HOST proto 101 metric 1024 pref medium
10.99.0.1 dev HOST lladdr PODMAC extern_learn STALE
fd00:99::1 dev HOST lladdr PODMAC extern_learn STALE
inet 169.254.1.1/32 scope host noprefixroute HOST
inet6 fe80::1/128 scope link nodad noprefixroute
inet 10.99.0.1/32 scope global noprefixroute eth0
inet6 fd00:99::1/128 scope global nodad noprefixroute
default via 169.254.1.1 dev eth0 proto 101
169.254.1.1 dev eth0 proto 101 scope link
default via fe80::1 dev eth0 proto 101 metric 1024 pref medium
169.254.1.1 dev eth0 lladdr HOSTMAC PERMANENT
fe80::1 dev eth0 lladdr HOSTMAC PERMANENT
1480 1480 1 1
`
	got := h.sh(t, "ip route | grep -v up0; ip -6 route | grep -v up0 | grep -v fe80::/; ip neigh show nud all | grep -w -e 10.99.0.1 -e fd00:99::1; ip addr show dev "+HostLink(a)+" | grep -o -e 'inet 169.*' -e 'inet6 fe80::1/.*'") +
		pod.sh(t, "ip addr show dev eth0 scope global | grep -o 'inet.*'; ip route; ip -6 route | grep -v fe80::/; ip neigh show nud permanent | sort") +
		fmt.Sprintln(strings.Fields(h.sh(t, "ip link show "+HostLink(a)))[4],
			strings.Fields(pod.sh(t, "ip link show eth0"))[4],
			strings.TrimSpace(h.sh(t, "sysctl -n net.ipv4.ip_forward")), strings.TrimSpace(h.sh(t, "sysctl -n net.ipv6.conf.all.forwarding")))
	if diff := cmp.Diff(want, mask.Replace(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	h.end(t, c)
}

// The first packet arrives: nothing waits for ARP, neighbour discovery, duplicate address
// detection or a link that comes up.
func TestFirstPacket(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	for i := range 20 {
		pods := [2]*space{newSpace(t), newSpace(t)}
		var calls [2]call
		var results [2]podResult
		for j, p := range pods {
			calls[j] = call{verb: "ADD", id: fmt.Sprintf("c%d-%d", i, j), ifName: "eth0", netns: p.path, conf: h.conf("1.1.0")}
			reply := calls[j].do(t, n)
			if reply.Failed {
				t.Fatalf("%s", reply.Output)
			}
			results[j] = parseResult(t, string(reply.Output))
			for _, a := range results[j].addrs() {
				if out, err := h.try(t, "ping -c1 -W1 "+a); err != nil {
					t.Errorf("host to pod %d: %s", i, out)
				}
			}
		}
		for _, a := range results[1].addrs() {
			if out, err := pods[0].try(t, "ping -c1 -W1 "+a); err != nil {
				t.Errorf("pod to pod %d: %s", i, out)
			}
		}
		for _, c := range calls {
			c.verb = "DEL"
			c.does(t, n)
		}
	}
}
