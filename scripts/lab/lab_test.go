package lab_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// flavours are the switches with which every story runs.
var flavours = []lab.Flavour{lab.BIRD, lab.FRR} // read only

func need(t *testing.T) {
	t.Helper()
	lab.Need(t, lab.Tools(flavours...)...)
}

const twoSwitches = `
switches:
- name: sw-a
  flavour: FLAVOUR
  asn: 65002
  links: [{lan: a, addrs: [10.0.10.1/24, "fd00:10:0:10::1/64"]}, {lan: trunk, addrs: [10.255.0.1/30, "fd00:255::1/64"]}]
  neighbors: [{name: sw-b, address: 10.255.0.2, asn: 65003, password: PASSWORD, announce: true}]
- name: sw-b
  flavour: FLAVOUR
  asn: 65003
  links: [{lan: b, addrs: [10.0.20.1/24, "fd00:10:0:20::1/64"]}, {lan: trunk, addrs: [10.255.0.2/30, "fd00:255::2/64"]}]
  neighbors: [{name: sw-a, address: 10.255.0.1, asn: 65002, password: secret, announce: true}]
  routes: [{to: 192.168.0.0/16, via: 10.0.20.5}]
hosts:
- name: a
  links: [{lan: a, addrs: [10.0.10.5/24, "fd00:10:0:10::5/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.0.10.1}, {to: "::/0", via: "fd00:10:0:10::1"}]
- name: b
  links: [{lan: b, addrs: [10.0.20.5/24, "fd00:10:0:20::5/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.0.20.1}, {to: "::/0", via: "fd00:10:0:20::1"}]
`

func buildLab(t *testing.T, topology string) *lab.Lab {
	t.Helper()
	spec, err := lab.ParseTopology([]byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Options{Bin: "../../bin"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob(filepath.Join("/run/netns", l.Prefix+"-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("after Close: namespaces %v, %v", left, err)
		}
	})
	if err := l.Build(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSwitchesPeer(t *testing.T) {
	need(t)
	for _, flavour := range flavours {
		t.Run(string(flavour), func(t *testing.T) {
			t.Parallel()
			l := buildLab(t, strings.NewReplacer("FLAVOUR", string(flavour), "PASSWORD", "secret").Replace(twoSwitches))
			a := l.Switch("sw-a")
			waitLearned(t, a, "10.0.20.0/24 via 10.255.0.2", "192.168.0.0/16 via 10.255.0.2", "fd00:10:0:20::/64 via fd00:255::2")
			waitLearned(t, l.Switch("sw-b"), "10.0.10.0/24 via 10.255.0.1", "fd00:10:0:10::/64 via fd00:255::1")
			sessions, err := a.Sessions(t.Context())
			if err != nil || len(sessions) != 1 || sessions[0].String() != "10.255.0.2 as 65003 Established" {
				t.Errorf("sessions: %v, %v", sessions, err)
			}
			pingAll(t, l.Machine("a"), l.Machine("b"))
		})
	}
}

func waitLearned(t *testing.T, s *lab.Switch, want ...string) {
	t.Helper()
	err := lab.Wait(t.Context(), 30*time.Second, func() error {
		routes, err := s.Learned(t.Context())
		if err != nil {
			return err
		}
		var got []string
		for _, r := range routes {
			got = append(got, r.String())
		}
		return differ(want, got)
	})
	if err != nil {
		t.Fatalf("%s: routes learned: %v", s.Name, err)
	}
}

func pingAll(t *testing.T, from, to *lab.Machine) {
	t.Helper()
	mirror, err := to.Serve()
	if err != nil {
		t.Fatal(err)
	}
	defer mirror.Close()
	for _, addr := range to.Addrs {
		if _, err := from.Ping(t.Context(), addr); err != nil {
			t.Error(err)
		}
		saw, err := from.Seen(t.Context(), netip.AddrPortFrom(addr, mirror.Port()))
		if err != nil || saw != from.Addr(addr) {
			t.Errorf("TCP from %s to %s: saw %s, want %s: %v", from.Name, addr, saw, from.Addr(addr), err)
		}
	}
}

func TestWrongPasswordHoldsTheSessionDown(t *testing.T) {
	need(t)
	for _, flavour := range flavours {
		t.Run(string(flavour), func(t *testing.T) {
			t.Parallel()
			l := buildLab(t, strings.NewReplacer("FLAVOUR", string(flavour), "PASSWORD", "wrong").Replace(twoSwitches))
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			err := lab.Wait(ctx, time.Minute, func() error {
				sessions, err := l.Switch("sw-a").Sessions(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return differ("10.255.0.2 as 65003 Established", sessions[0].String())
			})
			if err == nil {
				t.Error("the session is established though the passwords differ")
			}
		})
	}
}

func TestFlowCountsWhatIsLost(t *testing.T) {
	need(t)
	t.Parallel()
	l := buildLab(t, `
hosts:
- {name: a, links: [{lan: x, addrs: [10.0.0.1/24, "fd00::1/64"]}]}
- {name: b, links: [{lan: x, addrs: [10.0.0.2/24, "fd00::2/64"]}]}
`)
	a, b := l.Machine("a"), l.Machine("b")
	for _, to := range b.Addrs {
		f, err := a.StartFlow(to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		waitSent(t, f, 20)
		if lost := f.Stop(); lost.Lost != 0 || lost.Sent < 20 {
			t.Errorf("to %s: %s", to, lost)
		}
	}
	f, err := a.StartFlow(b.Addrs[0], 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	waitSent(t, f, 10)
	if err := b.IP(t.Context(), "link set eth0 down\n"); err != nil {
		t.Fatal(err)
	}
	waitSent(t, f, f.Sent()+20)
	if lost := f.Stop(); lost.Lost < 15 || lost.Longest == 0 {
		t.Errorf("with the link down: %s", lost)
	}
}

func waitSent(t *testing.T, f *lab.Flow, n int) {
	t.Helper()
	err := lab.Wait(t.Context(), 10*time.Second, func() error {
		if f.Sent() < n {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMonitorSeesEachChange(t *testing.T) {
	need(t)
	t.Parallel()
	l := buildLab(t, `hosts: [{name: a, links: [{lan: x, addrs: [10.0.0.1/24]}]}]`)
	a := l.Machine("a")
	mon, err := a.Monitor(t.Context(), "bird")
	if err != nil {
		t.Fatal(err)
	}
	script := "route add 10.9.0.0/24 via 10.0.0.2 proto bird\nroute add 10.8.0.0/24 via 10.0.0.2 proto static\nroute del 10.9.0.0/24\n"
	if err := a.IP(t.Context(), script); err != nil {
		t.Fatal(err)
	}
	events, err := mon.Stop(t.Context())
	if err != nil || len(events) != 2 {
		t.Errorf("%d events, want 2: %q, %v", len(events), events, err)
	}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	need(t)
	l, err := lab.New(lab.Options{Bin: "../../bin"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Build(t.Context(), lab.Topology{Hosts: []lab.HostSpec{{Name: "a"}}}); err != nil {
		t.Fatal(err)
	}
	p, err := l.Machine("a").Spawn(filepath.Join(l.Dir, "log"), "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := lab.Sweep(); err != nil || cmp.Equal(gone, []string{l.Prefix}) {
		t.Fatalf("Sweep took down a laboratory whose owner lives: %v, %v", gone, err)
	}
	l.Abandon() // as the kernel does for a dead owner
	if _, err := lab.Sweep(); err != nil {
		t.Fatal(err)
	}
	if p.Err() == nil {
		t.Error("its process still runs")
	}
	if _, err := os.Stat(l.Machine("a").Path); !os.IsNotExist(err) {
		t.Errorf("its namespace is still there: %v", err)
	}
}

// A test that began while another process swept failed: "lock /tmp/ew-0313/lock: resource temporarily unavailable".
func TestNewLaboratoryBesideASweep(t *testing.T) {
	need(t)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if _, err := lab.Sweep(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	defer wg.Wait()
	defer close(done)
	for range 200 {
		l, err := lab.New(lab.Options{Bin: "../../bin"})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// OpenBGPD and BIRD advertise their networks to each other, OpenBGPD only networks of the session's family.
func TestOpenBGPDPeersWithBIRD(t *testing.T) {
	lab.Need(t, lab.Tools(lab.BIRD, lab.OpenBGPD)...)
	t.Parallel()
	topology := strings.NewReplacer("PASSWORD", "secret").Replace(twoSwitches)
	topology = strings.Replace(topology, "FLAVOUR", "openbgpd", 1)
	l := buildLab(t, strings.Replace(topology, "FLAVOUR", "bird", 1))
	waitLearned(t, l.Switch("sw-a"), "10.0.20.0/24 via 10.255.0.2", "192.168.0.0/16 via 10.255.0.2", "fd00:10:0:20::/64 via fd00:255::2")
	waitLearned(t, l.Switch("sw-b"), "10.0.10.0/24 via 10.255.0.1")
}
