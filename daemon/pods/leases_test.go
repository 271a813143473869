package pods

import (
	"net/netip"
	"testing"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
	"github.com/edgeway-cni/edgeway/plugin"
)

// An operator may name a lease in several ways.
func TestNamed(t *testing.T) {
	a := plugin.Attached{Link: "ew0123456789a", Lease: ipam.Lease{
		Attachment: ipam.Attachment{ContainerID: "64dfdb43a7f2", IfName: "eth0"}, Pod: ipam.Pod{Namespace: "default", Name: "till-1"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.10.1.2"), netip.MustParseAddr("fd00::2")},
	}}
	for word, want := range map[string]bool{
		"default/till-1": true, "till-1": true, "10.10.1.2": true, "fd00:0::2": true, "64df": true, "64dfdb43a7f2/eth0": true, "ew0123456789a": true,
		"": false, "till": false, "other/till-1": false, "10.10.1.20": false, "4dfd": false, "ew01": false, "64dfdb43a7f2/eth1": false,
	} {
		if got := named(a, word); got != want {
			t.Errorf("%q: named %v, want %v", word, got, want)
		}
	}
}

// An import says who gets each address, and which addresses it leaves alone and why.
func TestImportDecides(t *testing.T) {
	addr := netip.MustParseAddr
	lease := func(id, pod, netns string, addrs ...string) ipam.Lease {
		l := ipam.Lease{Attachment: ipam.Attachment{ContainerID: id, IfName: "eth0"}, Netns: netns}
		if pod != "" {
			l.Pod = ipam.Pod{Namespace: "d", Name: pod}
		}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, addr(a))
		}
		return plugin.Adopted(l, "edgeway")
	}
	const lives, gone = "/proc/self/ns/net", "/nonexistent/ns"
	p := importPlan{
		own:    map[ipam.Attachment]ipam.Lease{},
		held:   map[netip.Addr]ipam.Lease{},
		memory: map[netip.Addr]ipam.Memory{addr("10.1.0.7"): {Addr: addr("10.1.0.7"), Network: "edgeway", Pod: ipam.Pod{Namespace: "d", Name: "m"}, IfName: "eth0"}},
		pods:   map[podOn]netip.Addr{{"edgeway", "d/moved", "eth0"}: addr("10.1.0.8")},
		inside: func(a netip.Addr) bool { return netip.MustParsePrefix("10.1.0.0/24").Contains(a) },
	}
	for _, l := range []ipam.Lease{lease("have", "have", lives, "10.1.0.2"), lease("taker", "taker", lives, "10.1.0.3")} {
		p.own[l.Attachment] = l
		p.held[l.Addrs[0]] = l
	}
	for _, tt := range []struct {
		name   string
		l      ipam.Lease
		action string
		why    string
	}{
		{"a pod that runs", lease("c1", "a", lives, "10.1.0.10"), api.Hold, ""},
		{"imported before", lease("have", "have", lives, "10.1.0.2"), api.Known, ""},
		{"imported before, another address since", lease("have", "have", lives, "10.1.0.11"), api.Skip, "the store has [10.1.0.2] for it"},
		{"two pods with one address", lease("c2", "b", lives, "10.1.0.3"), api.Skip, "pod d/taker has 10.1.0.3 too: two pods answer for it; delete one of them"},
		{"gone, address taken", lease("c2", "b", gone, "10.1.0.3"), api.Skip, "pod d/taker has 10.1.0.3 since"},
		{"gone", lease("c3", "c", gone, "10.1.0.12"), api.Remember, ""},
		{"gone, an older container of the same pod", lease("c4", "c", gone, "10.1.0.13"), api.Skip, "the pod has 10.1.0.12 since"},
		{"gone, remembered already", lease("c5", "m", gone, "10.1.0.7"), api.Known, ""},
		{"gone, the address remembers another", lease("c6", "x", gone, "10.1.0.7"), api.Skip, "10.1.0.7 remembers pod d/m since"},
		{"gone, the pod has another", lease("c7", "moved", gone, "10.1.0.14"), api.Skip, "the pod has 10.1.0.8 since"},
		{"gone, pod not known", lease("c8", "", gone, "10.1.0.15"), api.Skip, "the container is gone, and its pod is not known"},
		{"namespace not known", lease("c9", "y", "", "10.1.0.16"), api.Hold, "its namespace is not known: held until DEL, release or the next boot"},
		{"pod not known", lease("c10", "", lives, "10.1.0.17"), api.Hold, "its pod is not known: the pod gets another address when it is recreated"},
		{"outside of the pod CIDR", lease("c11", "z", lives, "10.9.0.1"), api.Hold, "outside the node's pod CIDRs: its next pod gets another"},
		{"gone, outside of the pod CIDR", lease("c12", "z", gone, "10.9.0.2"), api.Skip, "the pod is gone, and 10.9.0.2 is outside the node's pod CIDRs"},
	} {
		action, why := p.decide(tt.l, plugin.Gone(tt.l))
		if action != tt.action || why != tt.why {
			t.Errorf("%s: %s %q, want %s %q", tt.name, action, why, tt.action, tt.why)
		}
	}
}
