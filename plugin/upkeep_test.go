package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/routes"
)

// STATUS of a full pool failed, so that the kubelet took the node for not ready and evicted its
// running pods. ADD says that the pool is full, until the first DEL.
func TestFullPoolEvictsPods(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	conf := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.98.0.0/29"}],[{"subnet":"fd00:98::/64"}]]}`)
	var held []call
	for i := range 6 {
		pod := newSpace(t)
		c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: conf}
		h.must(t, c)
		held = append(held, c)
	}
	pod := newSpace(t)
	c := call{verb: "ADD", id: "late", ifName: "eth0", netns: pod.path, conf: conf}
	if text := h.refused(t, c, codeTryAgain); !strings.Contains(text, "network net") || !strings.Contains(text, "10.98.0") {
		t.Errorf("the network and range are not named: %s", text)
	}
	status := call{verb: "STATUS", conf: conf}
	h.must(t, status)
	held[3].verb = "DEL"
	h.must(t, held[3])
	h.must(t, status)
	h.must(t, c)
	held[3] = c
	h.end(t, held...)
}

// STATUS was ready where every ADD failed: it did not check what an ADD does.
func TestStatusIsReadyAndEveryAddFails(t *testing.T) {
	kernelTest(t)
	for _, tt := range []struct{ name, do, ipam string }{
		{"unusable route", "true", `{"subnet":"10.98.0.0/24","routes":[{"dst":"10.0.0.0"}]}`},
		{"sets that overlap", "true", `{"ranges":[[{"subnet":"10.98.0.0/24"}],[{"subnet":"10.98.0.0/16"}]]}`},
		{"uplink too small for IPv6", "ip link set up0 mtu 1000", `{"ranges":[[{"subnet":"fd00:98::/64"}]]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.sh(t, tt.do)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0", `"ipam":`+tt.ipam)}
			if out, status := h.exec(t, c); status == 0 {
				t.Errorf("ADD works: %s", out)
			}
			h.refused(t, call{verb: "STATUS", conf: c.conf}, codeUnavailable)
		})
	}
}

// STATUS gave the code of a delegated IPAM plugin as 50, whatever that plugin had said.
func TestStatusPassesTheDelegatesCodeOn(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	script := "#!/bin/sh\necho '{\"cniVersion\":\"1.1.0\",\"code\":123,\"msg\":\"the server is away\",\"details\":\"start it\"}'\nexit 1\n"
	if err := os.WriteFile(filepath.Join(h.dir, "away"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := call{verb: "STATUS", path: h.dir, conf: h.conf("1.1.0", `"ipam":{"type":"away"}`)}
	if text := h.refused(t, c, 123); !strings.Contains(text, "the server is away; start it") {
		t.Errorf("got %s", text)
	}
}

// Without a default route, or with two halves of one, pods got MTU 1500, whatever the link could carry.
func TestMTUComesFromTheLinkThatCarriesThePodsPackets(t *testing.T) {
	kernelTest(t)
	const offline = "ip route del default; ip -6 route del default; "
	const vpn = "ip link add vpn0 type veth peer name vpn1; ip link set vpn1 up; ip link set vpn0 up mtu 1400; ip addr add 198.51.100.1/24 dev vpn0; "
	for _, tt := range []struct {
		name, do string
		want     int
	}{
		{"default route", vpn, 1480},
		{"no default route", offline, 1480},
		{"no default route and two links", offline + vpn, fallbackMTU},
		{"halves", offline + vpn + "ip route add 0.0.0.0/1 dev vpn0; ip route add 128.0.0.0/1 dev vpn0", 1400},
		{"halves beside the default route", vpn + "ip route add 0.0.0.0/1 dev vpn0; ip route add 128.0.0.0/1 dev vpn0", 1400},
		{"IPv6 halves", offline + vpn + "ip route add ::/1 dev vpn0; ip route add 8000::/1 dev vpn0", 1400},
		{"policy rule", vpn + "ip route add default dev vpn0 table 7; ip rule add lookup 7 pref 7", 1400},
		{"default route that drops", offline + "ip route add unreachable default", 1480},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			h.sh(t, tt.do)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
			h.must(t, c)
			if got := pod.sh(t, "ip link show eth0"); !strings.Contains(got, fmt.Sprintf("mtu %d ", tt.want)) {
				t.Errorf("want mtu %d, got %s", tt.want, got)
			}
			h.end(t, c)
		})
	}
}

// A host that has IPv6 off by default got no pods with IPv6, though its own links could have it.
func TestIPv6OffByDefault(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	h.sh(t, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	added := parseResult(t, h.must(t, c))
	h.sh(t, "ping -c1 -W5 "+added.addrs()[1])
	h.end(t, c)
}

// systemd 256 sets forwarding=0 for new links: a new pod reached the host alone.
func TestNewPodReachesNobodyWhereNewLinksDoNotForward(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	h.sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0")
	first, second := newSpace(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: first.path, conf: h.conf("1.1.0")}
	addrs := parseResult(t, h.must(t, c)).addrs()
	other := c
	other.id, other.netns = "c2", second.path
	h.must(t, other)
	for _, a := range addrs {
		second.sh(t, "ping -c1 -W5 "+a)
	}
	h.end(t, c, other)
}

// STATUS of a store that cannot be written failed with code 5, which the SPEC has for other faults.
func TestStatusOfAReadOnlyStore(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	h.must(t, c)
	h.run(t, func() error {
		plugin := call{verb: "STATUS", conf: c.conf}.command(t.Context())
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$0"`, plugin.Path, h.dir)
		cmd.Env, cmd.Stdin = plugin.Env, plugin.Stdin
		out, err := cmd.Output()
		if text := wantError(t, "STATUS", string(out), err != nil, codeUnavailable); !strings.Contains(text, "read-only file system") {
			t.Errorf("the reason is not said: %s", text)
		}
		return nil
	})
	h.end(t, c)
}

// The file system became read-only under an open store, as after a disk error: STATUS was ready, and every ADD failed.
func TestStatusOfAStoreThatBecameReadOnly(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: newSpace(t).path, conf: h.conf("1.1.0")}
	c.does(t, n)
	status := call{verb: "STATUS", conf: c.conf}
	status.does(t, n)
	reply := make(chan api.Reply, 1)
	go func() { // the thread has a mount namespace of its own from here on, and ends with the goroutine
		runtime.LockOSThread()
		err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(h.dir, h.dir, "", unix.MS_BIND, ""), unix.Mount("", h.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		if err != nil {
			t.Error(err)
		}
		reply <- n.Do(t.Context(), Call{CNI: status.cni()})
	}()
	got := <-reply
	if text := wantError(t, "STATUS", string(got.Output), got.Failed, codeUnavailable); !strings.Contains(text, "read-only file system") {
		t.Errorf("the reason is not said: %s", text)
	}
	status.does(t, n)
	h.endAll(t, n, "c1")
}

// CHECK sees each thing that is gone, on both ends, and nothing that others added.
func TestCheck(t *testing.T) {
	kernelTest(t)
	for _, tt := range []struct {
		name, end, do string
		want          string // "": CHECK passes
	}{
		{"as added", "pod", "true", ""},
		{"pod link down", "pod", "ip link set eth0 down", "pod: want eth0"},
		{"pod address gone", "pod", "ip addr del 10.99.0.1/32 dev eth0", "pod: missing 10.99.0.1/32"},
		{"pod v6 address gone", "pod", "ip addr del fd00:99::1/128 dev eth0", "pod: missing fd00:99::1/128"},
		{"pod default route gone", "pod", "ip route del default", "pod: missing default via 169.254.1.1"},
		{"pod neighbour gone", "pod", "ip neigh del 169.254.1.1 dev eth0", ""}, // the host's end answers
		{"pod neighbour leads elsewhere", "pod", "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0", "pod: want 169.254.1.1 lladdr"},
		{"pod MAC changed", "pod", "ip link set eth0 address 02:00:00:00:00:99", "pod: want eth0"},
		{"pod link gone", "pod", "ip link del eth0", "pod: missing link eth0"},
		{"host link down", "host", "ip link set HOST down", "host: want HOST"},
		{"host route gone", "host", "ip route del 10.99.0.1", "host: missing 10.99.0.1 dev HOST"},
		{"host v6 route gone", "host", "ip -6 route del fd00:99::1", "host: missing fd00:99::1 dev HOST"},
		{"host neighbour gone", "host", "ip neigh del 10.99.0.1 dev HOST", ""}, // the pod answers
		{"host neighbour leads elsewhere", "host", "ip neigh replace 10.99.0.1 lladdr 02:00:00:00:00:01 nud permanent dev HOST", "host: want 10.99.0.1 lladdr"},
		{"made by version 0.1", "host", "ip addr flush dev HOST scope host; ip route add 10.99.0.1 dev HOST proto 101; ip neigh add 10.99.0.1 lladdr PODMAC nud permanent dev HOST", ""},
		{"forwarding off", "host", "sysctl -qw net.ipv4.ip_forward=0", "host: want net/ipv4/ip_forward = 1"},
		{"router advertisements accepted", "host", "sysctl -qw net.ipv6.conf.HOST.accept_ra=2", "host: want net/ipv6/conf/HOST/accept_ra = 0"},
		{"redirects accepted", "host", "sysctl -qw net.ipv4.conf.HOST.accept_redirects=1", "host: want net/ipv4/conf/HOST/accept_redirects = 0"},
		{"another address", "pod", "ip addr add 198.51.100.7/32 dev eth0", ""},
		{"another route", "pod", "ip route add 198.51.100.0/24 via 169.254.1.1", ""},
		{"another link", "pod", "ip link add net1 type veth peer name x", ""},
		{"another host route", "host", "ip route add 198.51.100.0/24 dev HOST", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
			added := h.must(t, c)
			end := map[string]*space{"host": h.space, "pod": pod}[tt.end]
			link := HostLink(attachmentOf(c))
			end.sh(t, strings.NewReplacer("HOST", link, "PODMAC", macOf(attachmentOf(c), "pod")).Replace(tt.do))
			check := c
			check.verb, check.conf = "CHECK", with(c.conf, "prevResult", added)
			if tt.want == "" {
				h.must(t, check)
			} else if text := h.refused(t, check, codeDifferent); !strings.Contains(text, strings.ReplaceAll(tt.want, "HOST", link)) {
				t.Errorf("got %s, want %s in it", text, tt.want)
			}
			h.end(t, c)
		})
	}
}

// Multus removes a default route from the pod and from prevResult.
func TestCheckGoesByPrevResult(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	added := h.must(t, c)
	var result map[string]any
	if err := json.Unmarshal([]byte(added), &result); err != nil {
		t.Fatal(err)
	}
	pod.sh(t, "ip route del default; ip -6 route del default; ip route del 169.254.1.1")
	delete(result, "routes")
	text, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	c.verb, c.conf = "CHECK", with(c.conf, "prevResult", string(text))
	h.must(t, c)
	h.end(t, c)
}

// list it does nothing.
func TestGC(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	conf := h.conf("1.1.0")
	add := func(id, ifName, conf string) call {
		pod := newSpace(t)
		c := call{verb: "ADD", id: id, ifName: ifName, netns: pod.path, conf: conf}
		h.must(t, c)
		return c
	}
	add("c1", "eth0", conf)
	add("c1", "net1", conf)
	add("c2", "eth0", conf)
	other := add("c3", "eth0", strings.Replace(conf, `"name":"net"`, `"name":"other"`, 1))
	held := func() string {
		var out []string
		for _, l := range h.leases(t) {
			out = append(out, l.Attachment.String())
		}
		h.whole(t)
		return strings.Join(out, " ")
	}
	gc := call{verb: "GC", conf: conf}
	for _, tt := range []struct{ key, list, want string }{
		{"x", `1`, "c1/eth0 c1/net1 c2/eth0 c3/eth0"},
		{"cni.dev/valid-attachments", `null`, "c1/eth0 c1/net1 c2/eth0 c3/eth0"},
		{"cni.dev/valid-attachments", `[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"eth0"}]`, "c1/eth0 c2/eth0 c3/eth0"},
		{"cni.dev/attachments", `[{"containerID":"c2","ifname":"eth0"}]`, "c2/eth0 c3/eth0"},
		{"cni.dev/valid-attachments", `[]`, "c3/eth0"},
	} {
		gc.conf = with(conf, tt.key, tt.list)
		h.must(t, gc)
		if got := held(); got != tt.want {
			t.Errorf("after %s: held %q, want %q", tt.list, got, tt.want)
		}
	}
	h.end(t, other)
}

// A link that could not be deleted ended a GC before it freed the rest (SPEC 1.1.0 section 2, GC:
// "a plugin should continue").
func TestGCStopsAtTheFirstError(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	pods := []*space{newSpace(t), newSpace(t)}
	for i, p := range pods {
		c := call{verb: "ADD", id: []string{"c1", "c2"}[i], ifName: "eth0", netns: p.path, conf: h.conf("1.1.0")}
		c.does(t, n)
	}
	pods[1].sh(t, "ip link del eth0") // the second one's link is gone, the first one's cannot be deleted
	dial := n.dial
	n.dial = func(ns *os.File) (kernel, error) {
		k, err := dial(ns)
		return stuckLinks{k}, err
	}
	drainIdle(n)
	gc := call{verb: "GC", conf: h.conf("1.1.0", `"cni.dev/valid-attachments":[]`)}
	wantError(t, "GC", string(gc.do(t, n).Output), true, codeIO)
	leases, err := n.Store.Leases()
	if err != nil || len(leases) != 1 || leases[0].Attachment.ContainerID != "c1" {
		t.Errorf("leases after it: %v, %v", leases, err)
	}
	n.dial = dial
	drainIdle(n)
	gc.does(t, n)
}

// stuckLinks is a kernel that deletes no link.
type stuckLinks struct{ kernel }

func (k stuckLinks) Sync(ctx context.Context, scope routes.Scope, desired routes.State) ([]routes.Change, error) {
	if len(scope.Links) > 0 && len(desired.Links) == 0 {
		return nil, errInjected
	}
	return k.kernel.Sync(ctx, scope, desired)
}

// Sweep removes half attachments, and only those: a user's link with a name like ours was deleted, and
// so were living links of another store.
func TestSweep(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	var calls []call
	var pods []*space
	for i := range 3 {
		pod := newSpace(t)
		pods = append(pods, pod)
		c := call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
		h.must(t, c)
		calls = append(calls, c)
	}
	h.sh(t, "ip link del "+HostLink(attachmentOf(calls[1])))
	pods[1].file.Close()
	// The crash's own, a name like ours, and one of another store.
	unowned, other := HostLink(ipam.Attachment{ContainerID: "x", IfName: "eth0"}), HostLink(ipam.Attachment{ContainerID: "y", IfName: "eth0"})
	h.sh(t, fmt.Sprintf(`ip link add %s type veth peer name x; ip link set %[1]s alias "network net attachment x/eth0 store %s"
		ip link add %s type veth peer name y; ip link set %[3]s alias "network net attachment y/eth0 store /elsewhere"
		ip link add ewan-backup01 type veth peer name user`, unowned, h.dir, other))
	// As a version made it that let pods advertise routers.
	h.sh(t, "sysctl -qw net.ipv6.conf."+HostLink(attachmentOf(calls[0]))+".accept_ra=1 net.ipv6.conf.ewan-backup01.accept_ra=1")
	n := h.node(t)
	did, err := n.Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	did = slices.DeleteFunc(did, func(s string) bool { return strings.HasPrefix(s, "set ") && strings.Contains(s, other) })
	if len(did) != 3 || !strings.Contains(fmt.Sprint(did), "c1/eth0") || !strings.Contains(fmt.Sprint(did), unowned) ||
		!strings.Contains(fmt.Sprint(did), HostLink(attachmentOf(calls[0]))+"/accept_ra = 0") {
		t.Errorf("did %q", did)
	}
	h.sh(t, "ip link show ewan-backup01; ip link del "+other)
	h.whole(t)
	if again, err := n.Sweep(t.Context()); err != nil || len(again) > 0 {
		t.Errorf("again: %q, %v", again, err)
	}
	if got := h.sh(t, "sysctl -n net.ipv6.conf.ewan-backup01.accept_ra"); strings.TrimSpace(got) != "1" {
		t.Errorf("a link that is not ours was set: accept_ra %s", got)
	}
	for _, c := range calls {
		c.verb = "DEL"
		c.does(t, n)
	}
}

// The store is lost while pods run: their addresses are not leased again, and their DEL works.
func TestLostStore(t *testing.T) {
	kernelTest(t)
	h, pod, next := newHost(t), newSpace(t), newSpace(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	had := parseResult(t, h.must(t, c)).addrs()
	h.sh(t, "rm "+h.dir+"/*")
	d := c
	d.id, d.netns = "c2", next.path
	if got := parseResult(t, h.must(t, d)).addrs(); fmt.Sprint(got) == fmt.Sprint(had) {
		t.Errorf("%v is leased twice", got)
	}
	h.sh(t, "ping -c1 -W5 "+had[0])
	h.end(t, c, d)
	if leases := h.leases(t); len(leases) > 0 {
		t.Errorf("leases: %v", leases)
	}
}

// A store that was rebuilt from the node's links showed hashes for names, and GC of no network
// ended the leases that it had found. A link of an earlier version has no alias: it is kept under its name.
func TestRebuiltStoreShowsHashes(t *testing.T) {
	kernelTest(t)
	for _, tt := range []struct {
		name, do string
		want     func(a ipam.Attachment) ipam.Attachment
		freed    bool // by GC of the network
	}{
		{"named", "true", func(a ipam.Attachment) ipam.Attachment { return a }, true},
		{"made by version 0.1", "ip link set HOST alias ''", recovered, false},
		{"named by somebody else", "ip link set HOST alias 'network net attachment c9/eth0'", recovered, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0"),
				args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=till-1"}
			had := parseResult(t, h.must(t, c)).addrs()
			link := HostLink(attachmentOf(c))
			h.sh(t, "ip link show "+link+" | grep -qw 'alias pod default/till-1 network net attachment c1/eth0'")
			h.sh(t, strings.ReplaceAll(tt.do, "HOST", link)+"; rm "+h.dir+"/*")
			h.run(t, func() error {
				store, err := OpenStore(t.Context(), filepath.Join(h.dir, StoreFile), patience)
				if err != nil {
					return err
				}
				return store.Close()
			})
			leases := h.leases(t)
			if len(leases) != 1 || leases[0].Attachment != tt.want(attachmentOf(c)) || leases[0].Addrs[0].String() != strings.Split(had[0], "/")[0] {
				t.Fatalf("found %+v, want %v", leases, tt.want(attachmentOf(c)))
			}
			if tt.freed && leases[0].Pod.String() != "default/till-1" {
				t.Errorf("pod %v", leases[0].Pod)
			}
			h.must(t, call{verb: "GC", conf: h.conf("1.1.0", `"cni.dev/valid-attachments":[]`)})
			if got := len(h.leases(t)) == 0; got != tt.freed {
				t.Errorf("freed by GC: %v, want %v", got, tt.freed)
			}
			h.end(t, c)
			if leases := h.leases(t); len(leases) > 0 {
				t.Errorf("leases: %v", leases)
			}
		})
	}
}

// What an alias says is read back, as far as it fits.
func TestAlias(t *testing.T) {
	a := ipam.Attachment{ContainerID: "64dfdb43a7f2", IfName: "eth0"}
	long := strings.Repeat("x", 250)
	till := ipam.Pod{Namespace: "default", Name: "till-1"}
	for _, tt := range []struct {
		lease       ipam.Lease
		store, want string
	}{
		{ipam.Lease{Attachment: a, Network: "lan", Pod: till}, "/x/lan", "pod default/till-1 network lan attachment 64dfdb43a7f2/eth0 store /x/lan"},
		{ipam.Lease{Attachment: a, Network: "lan", Pod: till}, "", "pod default/till-1 network lan attachment 64dfdb43a7f2/eth0"},
		{ipam.Lease{Attachment: a, Network: "lan"}, "/x", "network lan attachment 64dfdb43a7f2/eth0 store /x"},
		{ipam.Lease{Attachment: a, Network: "lan", Pod: ipam.Pod{Namespace: "default", Name: "a network b"}}, "/x", "network lan attachment 64dfdb43a7f2/eth0 store /x"},
		{ipam.Lease{Attachment: a, Network: "lan", Pod: ipam.Pod{Namespace: "default", Name: long}}, "/x", "network lan attachment 64dfdb43a7f2/eth0 store /x"},
		{ipam.Lease{Attachment: ipam.Attachment{ContainerID: long, IfName: "eth0"}, Network: long}, "/x", ""},
		{ipam.Lease{Attachment: a, Network: "lan"}, "/a b", ""},
	} {
		got := aliasOf(tt.lease, tt.store)
		if got != tt.want || len(got) > maxAlias {
			t.Errorf("alias of %v: %q, want %q", tt.lease, got, tt.want)
		}
		l, ok := named(HostLink(tt.lease.Attachment), got)
		if ok != (tt.want != "") || ok && (l.Attachment != a || l.Network != "lan") {
			t.Errorf("%q reads as %v, %v", got, l, ok)
		}
	}
}

// A pool full of leases whose pods went away without DEL makes room.
func TestFullPoolOfTheDead(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	conf := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.98.0.0/30"}]]}`)
	for i := range 2 {
		pod := newSpace(t)
		h.must(t, call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: conf})
		pod.file.Close()
	}
	until(t, "the links of the closed namespaces go", func() bool {
		links, _ := h.wired(t)
		return len(links) == 0
	})
	h.must(t, call{verb: "STATUS", conf: conf})
	c := call{verb: "ADD", id: "next", ifName: "eth0", netns: newSpace(t).path, conf: conf}
	h.must(t, c)
	h.end(t, c)
}

// Full names the pool that has no address left. Leases of pods that went away without DEL are room.
func TestFull(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	if err := n.Store.SetPool(t.Context(), ipam.Pool{Sets: []ipam.RangeSet{{{Subnet: netip.MustParsePrefix("10.98.0.0/30")}}}}); err != nil {
		t.Fatal(err)
	}
	full := func() string {
		t.Helper()
		text, err := n.Full(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	pods := []*space{newSpace(t), newSpace(t)}
	for i, pod := range pods {
		if text := full(); text != "" {
			t.Errorf("full with %d pods: %s", i, text)
		}
		(call{verb: "ADD", id: fmt.Sprint("c", i), ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0", `"ipam":{}`)}).does(t, n)
	}
	if got, want := full(), "2 of 2 addresses of 10.98.0.0/30 are used"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	pods[0].file.Close()
	until(t, "the first pod's address is room", func() bool { return full() == "" })
	if _, err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	(call{verb: "DEL", id: "c1", ifName: "eth0", conf: h.conf("1.1.0")}).does(t, n)
}
