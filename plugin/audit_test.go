package plugin

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/ipam"
)

// audited are the findings as text, for a comparison.
func audited(t testing.TB, look func(context.Context) ([]Finding, error)) []Finding {
	t.Helper()
	found, err := look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What an operator may find broken on a node, one by one: check names it, repair mends it, and a
// second check finds nothing.
func TestAuditFindsAndRepairs(t *testing.T) {
	kernelTest(t)
	h := newHost(t)
	n := h.node(t)
	pods := []*space{newSpace(t), newSpace(t)}
	for i, p := range pods {
		c := call{verb: "ADD", id: []string{"c1", "c2"}[i], ifName: "eth0", netns: p.path, conf: h.conf("1.1.0"),
			args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=till-" + []string{"1", "2"}[i]}
		c.does(t, n)
	}
	if found := audited(t, n.Audit); len(found) > 0 {
		t.Fatalf("of what ADD made: %+v", found)
	}
	link := HostLink(ipam.Attachment{ContainerID: "c1", IfName: "eth0"})
	unowned := HostLink(ipam.Attachment{ContainerID: "x", IfName: "eth0"})
	for _, tt := range []struct{ name, breaks, got string }{
		{"route deleted", "ip route del 10.99.0.1 dev " + link, "missing: 10.99.0.1"},
		{"IPv6 route deleted", "ip -6 route del fd00:99::1 dev " + link, "missing: fd00:99::1"},
		{"next hop's address deleted", "ip addr del 169.254.1.1/32 dev " + link, "missing: 169.254.1.1/32 scope host"},
		{"made by version 0.1", "ip neigh change 10.99.0.1 nud permanent dev " + link, "want 10.99.0.1"},
		{"neighbour leads elsewhere", "ip neigh replace 10.99.0.1 lladdr 02:00:00:00:00:01 nud permanent dev " + link, "want 10.99.0.1"},
		{"link down", "ip link set down dev " + link, "want " + link},
		{"forwarding off", "sysctl -qw net.ipv4.ip_forward=0", "net/ipv4/ip_forward is not 1"},
		{"router advertisements accepted", "sysctl -qw net.ipv6.conf." + link + ".accept_ra=1", "/accept_ra is not 0: the pod can change the routes of this node"},
		{"a route that leads to no pod", "ip route add 10.99.7.7 dev " + link + " proto 101", "no address of pod default/till-1"},
		{"a link that no lease owns", "ip link add " + unowned + " type veth peer name ewpeer; ip link set " + unowned + " alias 'network net attachment x/eth0 store " + h.dir + "'", "no lease owns it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.sh(t, tt.breaks)
			found := audited(t, n.Audit)
			if len(found) == 0 || !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.Got, tt.got) && f.Repair != "" && !f.Done }) {
				t.Errorf("want %q, found %+v", tt.got, found)
			}
			if again := audited(t, n.Audit); !slices.Equal(found, again) {
				t.Errorf("a check changed something: %+v, then %+v", found, again)
			}
			for _, f := range audited(t, n.Repair) {
				if !f.Done {
					t.Errorf("left by repair: %+v", f)
				}
			}
			if found := audited(t, n.Audit); len(found) > 0 {
				t.Errorf("after repair: %+v", found)
			}
			for i, a := range []string{"10.99.0.1", "fd00:99::1", "10.99.0.2", "fd00:99::2"} {
				if out, err := h.try(t, "ping -c1 -W2 "+a); err != nil {
					t.Errorf("pod %d does not answer: %s", i, out)
				}
			}
		})
	}
	for _, id := range []string{"c1", "c2", "c2"} {
		if err := n.Remove(t.Context(), ipam.Attachment{ContainerID: id, IfName: "eth0"}); err != nil {
			t.Error(err)
		}
	}
}

// The pod's end is the pod's: repair leaves it alone and says who can mend it.
func TestAuditOfThePodsEnd(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	c.does(t, n)
	pod.sh(t, "ip neigh replace fe80::1 lladdr 02:00:00:00:00:01 nud permanent dev eth0; ip addr del 10.99.0.1/32 dev eth0")
	found := audited(t, n.Repair)
	var got []string
	for _, f := range found {
		if f.Done || f.Repair != "" || f.Next == "" {
			t.Errorf("want what repair cannot mend: %+v", f)
		}
		got = append(got, f.Got)
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{"lacks its address 10.99.0.1", "lost its routes through 169.254.1.1", "a neighbour entry that leads fe80::1 elsewhere"} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in:\n%s", want, text)
		}
	}
	// The audit does not undo what the pod has.
	if out := pod.sh(t, "ip -6 addr show dev eth0"); !strings.Contains(out, "fd00:99::1") {
		t.Errorf("IPv6 address lost: %s", out)
	}
	if err := n.Remove(t.Context(), attachmentOf(c)); err != nil {
		t.Error(err)
	}
}

// A pod whose namespace died without DEL: its link is gone with it, the lease is not.
func TestAuditOfADeadPod(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	c := call{verb: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0"), args: "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p"}
	c.does(t, n)
	h.sh(t, "ip link del "+HostLink(attachmentOf(c)))
	// As long as the namespace exists the pod may use the address.
	if found := audited(t, n.Repair); len(found) != 1 || found[0].Done || found[0].Next == "" || len(h.leases(t)) != 1 {
		t.Errorf("with the namespace: found %+v", found)
	}
	pod.file.Close()
	all, err := n.Attachments(t.Context())
	if err != nil || len(all) != 1 || all[0].Standing != Dead || all[0].Linked {
		t.Errorf("attachments %+v, %v", all, err)
	}
	found := audited(t, n.Audit)
	if len(found) != 1 || found[0].Object != "pod d/p (10.99.0.1, fd00:99::1)" || !strings.Contains(found[0].Got, "does not exist") {
		t.Errorf("found %+v", found)
	}
	if found = audited(t, n.Repair); len(found) != 1 || !found[0].Done || len(h.leases(t)) != 0 {
		t.Errorf("repair %+v, leases %v", found, h.leases(t))
	}
	remembered, err := n.Store.Remembered()
	if err != nil || len(remembered) != 2 || remembered[0].Pod.Name != "p" {
		t.Errorf("remembered %v, %v", remembered, err)
	}
}

// An adopted attachment is made by another plugin: it stays as long as its namespace, DEL of it
// takes the interface away before the address is free, and its pod gets the address again.
func TestAdoptedLease(t *testing.T) {
	kernelTest(t)
	h, pod := newHost(t), newSpace(t)
	n := h.node(t)
	pod.sh(t, "ip link add eth0 type veth peer name old1; ip addr add 10.99.0.77/16 dev eth0; ip link set eth0 up")
	l := Adopted(ipam.Lease{Attachment: ipam.Attachment{ContainerID: "old", IfName: "eth0"}, Pod: ipam.Pod{Namespace: "d", Name: "p"},
		Addrs: addrsOf(t, "10.99.0.77"), Netns: pod.path}, "net")
	if err := n.Store.Import(t.Context(), []ipam.Lease{l}); err != nil {
		t.Fatal(err)
	}
	if did, err := n.Sweep(t.Context()); err != nil || len(did) > 0 {
		t.Errorf("sweep: %v, %v", did, err)
	}
	next := newSpace(t)
	add := call{verb: "ADD", id: "new", ifName: "eth0", netns: next.path, conf: h.conf("1.1.0"), args: "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p"}
	reply := add.do(t, n)
	if got := parseResult(t, string(reply.Output)).addrs(); got[0] == "10.99.0.77" {
		t.Fatalf("the address of a pod that runs was given away: %v", got)
	}
	add.verb = "DEL"
	add.do(t, n)
	for _, a := range parseResult(t, string(reply.Output)).addrs() { // the later one would count
		if err := n.Store.Forget(t.Context(), addrsOf(t, a)[0]); err != nil {
			t.Fatal(err)
		}
	}
	del := call{verb: "DEL", id: "old", ifName: "eth0", netns: pod.path, conf: h.conf("1.1.0")}
	del.does(t, n)
	if links := pod.sh(t, "ip -br link"); strings.Contains(links, "eth0") {
		t.Errorf("the old pod still has its interface: %s", links)
	}
	add.verb, add.id = "ADD", "newer"
	reply = add.do(t, n)
	if got := parseResult(t, string(reply.Output)).addrs(); got[0] != "10.99.0.77" {
		t.Errorf("the pod that came back has %v", got)
	}
	if err := n.Remove(t.Context(), attachmentOf(add)); err != nil {
		t.Error(err)
	}
}

func addrsOf(t *testing.T, texts ...string) (out []netip.Addr) {
	t.Helper()
	for _, s := range texts {
		a, err := netip.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}
