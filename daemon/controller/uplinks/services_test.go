package uplinks

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgeway-cni/edgeway/scripts/ens"
	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// Services on two ENS nodes, with a real kube-proxy, an API server, and the cloud's network, which drops and counts each
// packet that leaves by the wrong interface: pods, nodes, NodePorts of both policies, ClusterIPs and hostPorts. The
// nodes check sources strictly. What a pod sees as the source is checked as well.
func TestAPIServerServices(t *testing.T) {
	kube.Need(t, "kube-proxy")
	l, s := newCloudLab(t, func(*lab.Lab, *stage) {}, "n1", "n2")
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	world := l.Machine("world")
	s.cloud.AddInstance("i-2", "vsw-1", "sg-1")
	s.options.Terms.PerInterface = 4
	plug, err := ens.NewPlug(ctx, s.cloud, l.Machine("vpc"))
	must("plug", err)
	proxy, err := s.Kubeconfig("system:kube-proxy")
	must("kubeconfig", err)
	nodes := []*lab.Node{l.Node("n1"), l.Node("n2")}
	addrs := []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")} // of the nodes
	for i, node := range nodes {
		instance := fmt.Sprint("i-", i+1)
		must("plug", plug.Connect(ctx, instance, node.Machine))
		s.cloud.Bind(instance)
		for _, link := range []string{"all", "default", "eth0", "eth1"} {
			must("rp_filter", node.Sysctl("net/ipv4/conf/"+link+"/rp_filter", "1"))
		}
		s.join(node, instance, addrs[i].String())
		log := filepath.Join(node.Dir, "kube-proxy.log")
		p, err := node.Spawn(log, kube.Program("kube-proxy"), "--kubeconfig="+proxy, "--hostname-override="+node.Name, "--proxy-mode=nftables",
			"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
		must("kube-proxy", err)
		t.Cleanup(func() {
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Log(lab.Tail(log, 20))
				t.Log(lab.Tail(node.Log(), 30))
			}
		})
	}
	s.start()
	mirrors := map[string]*lab.Mirror{}
	serve := func(m *lab.Machine) {
		t.Helper()
		mirror, err := m.Serve()
		must("serve", err)
		t.Cleanup(mirror.Close)
		mirrors[m.Name] = mirror
	}
	pods := map[string]*lab.Pod{}
	for i, node := range nodes {
		must("daemon", node.Start(ctx))
		for _, name := range [][]string{{"a1", "a2"}, {"b1", "b2"}}[i] {
			must("pod", lab.Wait(ctx, time.Minute, func() error {
				p, err := node.AddPod(ctx, "default", name)
				pods[name] = p
				return err
			}))
			serve(pods[name].Machine)
		}
		serve(node.Machine)
	}

	// reach connects until it succeeds, and compares the source that the server sees.
	reach := func(from *lab.Machine, to netip.AddrPort, want netip.Addr) {
		t.Helper()
		if err := lab.Wait(ctx, time.Minute, func() error {
			saw, err := from.Seen(ctx, to)
			if err == nil && saw != want {
				err = fmt.Errorf("the server saw %v, want %v", saw, want)
			}
			return err
		}); err != nil {
			t.Errorf("%s to %v: %v", from.Name, to, err)
		}
	}
	of := func(name string) netip.AddrPort { return netip.AddrPortFrom(pods[name].Addrs[0], mirrors[name].Port()) }
	for _, pair := range []string{"a1 a2", "a1 b1", "b1 a1", "b1 b2"} { // of one node, and of two
		from, to, _ := strings.Cut(pair, " ")
		reach(pods[from].Machine, of(to), pods[from].Addrs[0])
	}
	for i, node := range nodes { // a kubelet's probe; a pod's call to its own node and to the other
		for _, name := range []string{"a1", "b1"} {
			reach(node.Machine, of(name), addrs[i])
			reach(pods[name].Machine, netip.AddrPortFrom(addrs[i], mirrors[node.Name].Port()), pods[name].Addrs[0])
		}
	}
	reach(world, of("a1"), world.Addrs[0])

	// near has a pod of n1, far has a pod of n2; local does not translate the source of what comes from outside.
	service := func(name, policy, pod, node string) (cluster netip.AddrPort, port uint16) {
		t.Helper()
		must(name, s.ApplyText(fmt.Sprintf(`
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": %q}, "spec": {"type": "NodePort", "externalTrafficPolicy": %q, "ports": [{"port": 80, "protocol": "TCP"}]}}
---
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": %q, "labels": {"kubernetes.io/service-name": %q}}, "addressType": "IPv4",
 "ports": [{"port": %d, "protocol": "TCP"}], "endpoints": [{"addresses": [%q], "nodeName": %q, "conditions": {"ready": true}}]}`,
			name, policy, name, name, of(pod).Port(), pods[pod].Addrs[0], node)))
		var ip string
		_, err := fmt.Sscan(s.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}"), &ip, &port)
		must(name, err)
		return netip.AddrPortFrom(addr(ip), 80), port
	}
	near, nearPort := service("near", "Cluster", "a1", "n1")
	far, farPort := service("far", "Cluster", "b1", "n2")
	_, localPort := service("local", "Local", "a1", "n1")
	reach(pods["a2"].Machine, near, pods["a2"].Addrs[0])
	reach(pods["a2"].Machine, far, pods["a2"].Addrs[0])
	reach(pods["b2"].Machine, near, pods["b2"].Addrs[0])
	reach(nodes[0].Machine, far, addrs[0])
	reach(world, netip.AddrPortFrom(addrs[0], localPort), world.Addrs[0])
	if _, err := world.Seen(ctx, netip.AddrPortFrom(addrs[1], localPort)); err == nil {
		t.Error("a NodePort with the policy Local answers on a node without its pod")
	}
	if saw, err := world.Seen(ctx, netip.AddrPortFrom(addrs[0], nearPort)); err != nil {
		t.Errorf("NodePort to a pod of this node: %v, %v", saw, err)
	}
	reach(world, netip.AddrPortFrom(addrs[0], farPort), addrs[0])
	reach(pods["b2"].Machine, netip.AddrPortFrom(addrs[0], localPort), pods["b2"].Addrs[0])

	// A hostPort, as portmap translates it.
	_, err = nodes[0].Run(ctx, "nft", fmt.Sprintf(`table ip hostport {
	chain in { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 8080 dnat to %v; }
}`, of("a2")))
	must("hostPort", err)
	reach(world, netip.AddrPortFrom(addrs[0], 8080), world.Addrs[0])
	reach(pods["b1"].Machine, netip.AddrPortFrom(addrs[0], 8080), pods["b1"].Addrs[0])
	reach(nodes[1].Machine, netip.AddrPortFrom(addrs[0], 8080), addrs[1])
	if n, err := plug.Spoofed(ctx); n != 0 || err != nil {
		t.Errorf("%d spoofed packets, %v", n, err)
	}
}
