package routes

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// When Delete returns, the link, its other end and all objects on both ends are gone. The name and the
// addresses can be used at once. The kernel acknowledges the deletion later: Close waits for the
// acknowledgement.
func TestDeletions(t *testing.T) {
	s, pod := newSpace(t), newSpace(t)
	d, err := OpenDeletions(s.f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	early := 0
	for i := range 20 {
		link := fmt.Sprintf("ew%d", i%2)
		if _, err := s.k.Sync(t.Context(), Scope{}, State{
			Links: []Link{{Name: link, Kind: "veth", Up: true, Peer: &Peer{Name: "eth0", Netns: pod.f}}},
		}); err != nil {
			t.Fatalf("link %d: %v", i, err)
		}
		pod.run("ip addr add 10.9.0.1/32 dev eth0")
		pod.run("ip link set eth0 up")
		s.run("ip route add 10.9.0.1 dev " + link)
		existed, err := d.Delete(t.Context(), link)
		if !existed || err != nil {
			t.Fatalf("link %d: existed %v, %v", i, existed, err)
		}
		early += len(d.dying)
		if links, err := s.k.Links(t.Context(), "ew"); err != nil || len(links) > 0 {
			t.Errorf("link %d still exists: %v, %v", i, links, err)
		}
		if out := pod.run("ip addr"); strings.Contains(out, "eth0") {
			t.Errorf("the other end still exists: %s", out)
		}
		if out := s.run("ip route"); strings.Contains(out, "10.9.0.1") {
			t.Errorf("the route over the link still exists: %s", out)
		}
	}
	t.Logf("%d of 20 deletions were not acknowledged when Delete returned", early)
	if existed, err := d.Delete(t.Context(), "ew0"); existed || err != nil {
		t.Errorf("absent link: existed %v, %v", existed, err)
	}
}

// Deletions do not wait for each other's acknowledgement.
func TestDeletionsSideBySide(t *testing.T) {
	s := newSpace(t)
	d, err := OpenDeletions(s.f)
	if err != nil {
		t.Fatal(err)
	}
	const links = maxDying + 16
	var want State
	for i := range links {
		want.Links = append(want.Links, Link{Name: fmt.Sprintf("ew%d", i), Kind: "veth", Peer: &Peer{Name: fmt.Sprintf("peer%d", i)}})
	}
	if _, err := s.k.Sync(t.Context(), Scope{}, want); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for _, l := range want.Links {
		for range 2 { // only one of the two calls finds the link
			wait.Go(func() {
				if _, err := d.Delete(t.Context(), l.Name); err != nil {
					t.Errorf("%s: %v", l.Name, err)
				}
			})
		}
	}
	wait.Wait()
	if left, err := s.k.Links(t.Context(), "ew"); err != nil || len(left) > 0 {
		t.Errorf("%d links still exist: %v", len(left), err)
	}
	d.Close()
	if len(d.dying) > 0 {
		t.Errorf("%d deletions were not acknowledged when Close returned", len(d.dying))
	}
}
