package routes

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// The kernel that runs the tests has all features, and a try leaves nothing behind.
func TestFeatures(t *testing.T) {
	lab.Need(t, "ip")
	all, err := Features(t.Context())
	if err != nil || len(all) != 7 {
		t.Fatal(all, err)
	}
	for _, f := range all {
		if f.Err != nil && !f.Beside {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}

// Another machine on the LAN took this node's address while the node was off: nothing shows it, until it is asked.
func TestClaimed(t *testing.T) {
	s := newSpace(t)
	lan := s.wire()
	if mac, err := s.k.Claimed(t.Context(), "eth0", addr("10.0.0.11")); err != nil || mac != "" {
		t.Errorf("got %q, %v; nobody else has the address", mac, err)
	}
	lan.run("ip addr add 10.0.0.11/24 dev lan0")
	want := lan.k
	links, err := want.Links(t.Context(), "lan0")
	if err != nil || len(links) != 1 {
		t.Fatal(links, err)
	}
	if mac, err := s.k.Claimed(t.Context(), "eth0", addr("10.0.0.11")); err != nil || mac != links[0].MAC {
		t.Errorf("got %q, %v, want %s", mac, err, links[0].MAC)
	}
}

// Way is what the kernel does to a packet: a strict reverse path filter drops what comes by another link than the
// answer leaves by.
func TestWay(t *testing.T) {
	s := newSpace(t)
	s.wire()
	s.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
	s.sync(Scope{Protocol: ProtoPod}, State{
		Links:  []Link{{Name: "ew0", Kind: "veth", Up: true, Peer: &Peer{Name: "pod0"}}},
		Routes: []Route{{Dst: pfx("10.10.1.5/32"), Link: "ew0", Protocol: ProtoPod}, {Dst: pfx("10.10.2.0/24"), Via: addr("10.0.0.12"), Link: "eth0", Protocol: ProtoPod}},
	})
	s.run("ip link set pod0 up")
	s.carrier("ew0")
	r, err := s.k.Way(t.Context(), toPod)
	if err != nil || r.Link != "ew0" {
		t.Errorf("to the pod: %v, %v", r, err)
	}
	out := fromPod
	r, err = s.k.Way(t.Context(), out)
	if err != nil || r.Via != addr("10.0.0.12") {
		t.Errorf("from the pod: %v, %v", r, err)
	}
	wrong := toPod
	wrong.Src = addr("10.10.7.7") // no route back
	if _, err := s.k.Way(t.Context(), wrong); !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want a refusal by the reverse path filter", err)
	}
}
