package plugin

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/ipam"
)

// A pod was refused for ever, under each new container ID, because its address led elsewhere on the
// host. The host's own address was leased. Another store's pod lost its packets to the new one.
func TestAddressThatIsElsewhereOnTheHost(t *testing.T) {
	kernelTest(t)
	for _, tt := range []struct {
		name string
		make func(t *testing.T, h *host)
	}{
		{"route of another agent", func(t *testing.T, h *host) {
			h.sh(t, "ip link add cali1 type veth peer name cali2; ip link set cali1 up; ip route add 10.88.0.1/32 dev cali1 scope link")
		}},
		{"blackhole of another agent", func(t *testing.T, h *host) { h.sh(t, "ip route add blackhole 10.88.0.1/32") }},
		{"unreachable route of another agent", func(t *testing.T, h *host) { h.sh(t, "ip route add unreachable 10.88.0.1/32") }},
		{"machine beside the host", func(t *testing.T, h *host) {
			h.sh(t, "ip addr add 10.88.0.200/24 dev up0; ip neigh add 10.88.0.1 lladdr 02:00:00:00:00:99 dev up0 nud permanent")
		}},
		{"address of the host", func(t *testing.T, h *host) { h.sh(t, "ip addr add 10.88.0.1/24 dev up0") }},
		{"pod of another store", func(t *testing.T, h *host) {
			other := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.88.0.0/24"}]]}`)
			other = strings.Replace(other, h.dir+`",`, filepath.Join(h.dir, "other")+`",`, 1)
			c := call{verb: "ADD", id: "o1", ifName: "eth0", netns: newSpace(t).path, conf: other}
			h.must(t, c)
			t.Cleanup(func() { c.verb = "DEL"; h.must(t, c) })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, pod := newHost(t), newSpace(t)
			tt.make(t, h)
			conf := h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.88.0.0/24"}]]}`)
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: conf, args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=till-1"}
			if got := parseResult(t, h.must(t, c)).addrs(); fmt.Sprint(got) != "[10.88.0.2]" {
				t.Errorf("got %v, want 10.88.0.2", got)
			}
			asked := c
			asked.id, asked.netns, asked.conf = "c3", newSpace(t).path, with(conf, "runtimeConfig", `{"ips":["10.88.0.1"]}`)
			if out, status := h.exec(t, asked); status == 0 || !strings.Contains(out, "10.88.0.1") {
				t.Errorf("10.88.0.1 asked for by name: status %d: %s", status, out)
			}
			store := h.store(t)
			memories, err := store.Remembered()
			if err = errors.Join(err, store.Close()); err != nil || slices.ContainsFunc(memories, func(m ipam.Memory) bool { return m.Addr == netip.MustParseAddr("10.88.0.1") }) {
				t.Errorf("a failed ADD left a memory: %v, %v", memories, err)
			}
			for _, id := range []string{"c1", "c3"} {
				c.verb, c.id = "DEL", id
				h.must(t, c)
			}
		})
	}
}

// The pool lay inside a LAN of the host, and a pod got the address of a machine of that LAN. The host had spoken with
// the machine, so it had a neighbour entry. The entry alone proves nothing: a machine that is gone leaves one, too.
func TestPodGetsTheAddressOfAMachineOfTheLAN(t *testing.T) {
	kernelTest(t)
	for _, served := range []bool{true, false} {
		t.Run(fmt.Sprintf("by a daemon %v", served), func(t *testing.T) {
			h, machine, pod := newHost(t), newSpace(t), newSpace(t)
			h.sh(t, "ip link add lan0 type veth peer name lan1 netns "+machine.path+"; ip addr add 10.88.0.200/24 dev lan0; ip addr add fd00:88::200/64 dev lan0 nodad; ip link set lan0 up")
			machine.sh(t, "ip link set lo up; ip addr add 10.88.0.1/24 dev lan1; ip addr add fd00:88::1/64 dev lan1 nodad; ip link set lan1 up")
			for _, a := range []string{"10.88.0.1", "fd00:88::1"} {
				until(t, "the machine answers "+a, func() bool { _, err := h.try(t, "ping -c1 -W1 "+a); return err == nil })
			}
			until(t, "the link has a link-local address, from which the kernel asks", func() bool {
				return !strings.Contains(h.sh(t, "ip -6 addr show dev lan0"), "tentative")
			})
			c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path,
				conf: h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.88.0.0/24"}],[{"subnet":"fd00:88::/64"}]]}`)}
			var n *Node
			if served {
				n, _ = h.serve(t, handler)
			}
			if got := parseResult(t, h.must(t, c)).addrs(); fmt.Sprint(got) != "[10.88.0.2 fd00:88::2]" {
				t.Errorf("beside a machine with 10.88.0.1 and fd00:88::1 the pod got %v", got)
			}
			h.end(t, c)
			if served {
				if taken, err := n.Taken(t.Context()); err != nil || fmt.Sprint(taken) != "[neighbour 10.88.0.1 dev lan0 neighbour fd00:88::1 dev lan0]" {
					t.Errorf("taken: %v, %v", taken, err)
				}
			}

			machine.sh(t, "ip addr del 10.88.0.1/24 dev lan1; ip addr del fd00:88::1/64 dev lan1")
			for _, a := range []string{"10.88.0.1", "fd00:88::1"} {
				h.sh(t, "ip neigh replace "+a+" lladdr 02:00:00:00:00:99 dev lan0 nud stale")
			}
			if served { // who is silent is said no more
				if taken, err := n.Taken(t.Context()); err != nil || len(taken) > 0 {
					t.Errorf("taken by a machine that is gone: %v, %v", taken, err)
				}
			}
			for _, a := range []string{"10.88.0.1", "fd00:88::1"} {
				h.sh(t, "ip neigh replace "+a+" lladdr 02:00:00:00:00:99 dev lan0 nud reachable")
			}
			c.conf = with(c.conf, "runtimeConfig", `{"ips":["10.88.0.1","fd00:88::1"]}`)
			h.must(t, c)
			h.end(t, c)
		})
	}
}

// New pods passed over an address that something else had, and nobody said so.
func TestAddressThatIsPassedOverIsSaid(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	says := func(want string) {
		t.Helper()
		taken, err := n.Taken(t.Context())
		if err != nil || fmt.Sprint(taken) != want {
			t.Errorf("taken: %v, %v, want %s", taken, err, want)
		}
	}
	c := call{verb: "ADD", ifName: "eth0", conf: h.conf("1.1.0", `"ipam":{"ranges":[[{"subnet":"10.88.0.0/29"}]]}`)}
	add := func(id string) {
		c.id, c.netns = id, newSpace(t).path
		c.does(t, n)
	}
	says("[]")
	h.sh(t, "ip link add cali1 type veth peer name cali2; ip link set cali1 up; ip route add 10.88.0.1/32 dev cali1 scope link; "+
		"ip addr add 10.88.0.3/32 dev up0; ip route add prohibit 10.88.0.5/32")
	add("c1")
	add("c2")
	add("c3")
	taken, err := n.Taken(t.Context())
	if err != nil || len(taken) != 3 || taken[0].Link != "cali1" || taken[1].Type != "local" || taken[2].Type != "prohibit" {
		t.Errorf("taken: %v, %v", taken, err)
	}
	h.sh(t, "ip addr del 10.88.0.3/32 dev up0; ip route del prohibit 10.88.0.5/32")
	says(fmt.Sprint(taken[:1]))
	h.sh(t, "ip route del 10.88.0.1/32")
	for i := range 3 {
		add(fmt.Sprint("d", i))
	}
	says("[]") // a pod has it
	h.endAll(t, n, "c1", "c2", "c3", "d0", "d1", "d2")
}

// Two networks with stores of their own: GC of one deleted the living links of the other, and the
// start of a daemon swept them. A call that names another directory than the daemon's is refused.
func TestGCDeletesLinksOfAnotherStore(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	in := func(name string, n int) call {
		conf := h.conf("1.1.0", fmt.Sprintf(`"ipam":{"ranges":[[{"subnet":"10.88.%d.0/24"}]]}`, n))
		conf = strings.Replace(conf, h.dir+`",`, filepath.Join(h.dir, name)+`",`, 1)
		return call{verb: "ADD", id: name, ifName: "eth0", netns: newSpace(t).path, conf: strings.Replace(conf, `"name":"net"`, fmt.Sprintf(`"name":%q`, name), 1)}
	}
	lan, storage := in("lan", 1), in("storage", 2)
	h.must(t, lan)
	h.must(t, storage)
	h.sh(t, "ip link add ewan-bridge02 type bridge; ip link add ewan-backup01 type veth peer name user")
	gc := lan
	gc.verb, gc.conf = "GC", with(lan.conf, "cni.dev/valid-attachments", `[{"containerID":"lan","ifname":"eth0"}]`)
	h.must(t, gc)
	n, _ := h.serve(t, handler) // its store is empty, in h.dir
	if did, err := n.Sweep(t.Context()); err != nil || len(did) > 0 {
		t.Errorf("sweep of a third store: %q, %v", did, err)
	}
	h.sh(t, "ip link show ewan-bridge02; ip link show ewan-backup01; ping -c1 -W5 10.88.1.1; ping -c1 -W5 10.88.2.1")
	late := storage
	late.id, late.netns = "late", newSpace(t).path
	if text := h.refused(t, late, codeConfig); !strings.Contains(text, h.dir) || !strings.Contains(text, "dataDir") {
		t.Errorf("the directories are not named: %s", text)
	}
	h.end(t, lan, storage)
}
