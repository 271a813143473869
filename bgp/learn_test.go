package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// announcing is a switch that announces these prefixes.
func announcing(r *router, prefixes ...string) swconf {
	c := nodeOf(r)
	if r.kind == "frr" {
		c.extra = " no bgp network import-check\n"
	}
	for i, p := range prefixes {
		if r.kind == "openbgpd" {
			c.extra += "network " + p + "\n"
			continue
		}
		family := "ipv4"
		if pfx(p).Addr().Is6() {
			family = "ipv6"
		}
		if r.kind == "bird" {
			c.extra += fmt.Sprintf("protocol static s%d { %s; route %s blackhole; }\n", i, family, p)
		} else {
			c.extra += fmt.Sprintf(" address-family %s unicast\n  network %s\n exit-address-family\n", family, p)
		}
	}
	return c
}

// withdraws takes the i-th of the prefixes back.
func (r *router) withdraws(i int, prefix string) {
	r.t.Helper()
	if r.kind == "bird" {
		r.ask(fmt.Sprintf("disable s%d", i))
		return
	}
	r.configure("router bgp 65000", "address-family ipv4 unicast", "no network "+prefix)
}

// told prints the learned paths: "192.168.1.0/24 via 10.0.0.1 from 10.0.0.1".
func told(s *Speaker, t *testing.T) (out []string, complete bool) {
	paths, complete := s.Learned(t.Context())
	for _, p := range paths {
		line := fmt.Sprintf("%s from %s", p.Path, p.From)
		if p.Kept {
			line += " kept"
		}
		out = append(out, line)
	}
	return out, complete
}

// learns waits until s has learned exactly these paths, and knows that there are no others.
func learns(t *testing.T, s *Speaker, want ...string) {
	t.Helper()
	eventually(t, func() error {
		got, complete := told(s, t)
		if diff := cmp.Diff(got, want); diff != "" || !complete {
			return fmt.Errorf("complete %v (-got +want):\n%s", complete, diff)
		}
		return nil
	})
}

var learnList = []netip.Prefix{pfx("192.168.0.0/16"), pfx("0.0.0.0/0"), pfx("fd99::/32")} // read only

// A path whose prefix is in the list, or lies within it, is learned with the switch's next hop. All other paths
// are not. A default route in the list selects only the default route.
func TestLearns(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		all := []string{"192.168.5.0/24", "192.168.0.0/16", "192.169.0.0/24", "192.0.0.0/8", "0.0.0.0/0", "198.51.100.0/24", "fd99:0:1::/48", "fd98::/32"}
		sw.start(announcing(sw, all...))
		s := l.speaker(t)
		if _, complete := s.Learned(t.Context()); complete {
			t.Error("complete before any Sync")
		}
		session := Session{Peer: peerOf(sw), Paths: pods(2), Learn: learnList}
		mustSync(t, s, session)
		if _, complete := s.Learned(t.Context()); complete {
			t.Error("complete before the session is up")
		}
		from := fmt.Sprintf(" from %s", sw.addr4)
		via := fmt.Sprintf(" via %s", sw.addr4) + from
		begun := time.Now()
		learns(t, s, "0.0.0.0/0"+via, "192.168.0.0/16"+via, "192.168.5.0/24"+via, "fd99:0:1::/48 via "+sw.addr6.String()+from)
		t.Logf("%s: after %v", sw.kind, time.Since(begun))
		sw.withdraws(0, all[0])
		learns(t, s, "0.0.0.0/0"+via, "192.168.0.0/16"+via, "fd99:0:1::/48 via "+sw.addr6.String()+from)

		for _, shorter := range []struct {
			learn []netip.Prefix
			want  []string
		}{{learnList[1:2], []string{"0.0.0.0/0" + via}}, {nil, nil}} {
			session.Learn = shorter.learn // this needs no new session, and nothing of the switch
			mustSync(t, s, session)
			if got, complete := told(s, t); !slices.Equal(got, shorter.want) || !complete {
				t.Errorf("complete %v, got %q, want %q at once", complete, got, shorter.want)
			}
		}
		if st := s.Status(t.Context())[0]; st.Flaps != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// The paths of one switch are not advertised to another switch, and the paths of each switch for a prefix are
// known.
func TestLearnsFromTwoAndTellsNobody(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := l.router("bird", 1), l.router("frr", 2)
	bird.start(announcing(bird, "192.168.5.0/24", "192.168.6.0/24"))
	frr.start(announcing(frr, "192.168.5.0/24", "192.168.7.0/24"))
	s := l.speaker(t)
	mustSync(t, s, Session{Peer: peerOf(frr), Paths: pods(2), Learn: learnList}, Session{Peer: peerOf(bird), Paths: pods(2), Learn: learnList})
	a, b := " via 10.0.0.1 from 10.0.0.1", " via 10.0.0.2 from 10.0.0.2"
	learns(t, s, "192.168.5.0/24"+a, "192.168.5.0/24"+b, "192.168.6.0/24"+a, "192.168.7.0/24"+b)
	for _, sw := range []*router{bird, frr} {
		sw.hears(pods(2)) // just those
	}
	bird.withdraws(0, "192.168.5.0/24")
	learns(t, s, "192.168.5.0/24"+b, "192.168.6.0/24"+a, "192.168.7.0/24"+b)
	for _, sw := range []*router{frr, bird} {
		if err := sw.compare(pods(2)); err != nil {
			t.Error(err)
		}
	}
}

// Learned paths stay while a session is lost and while the switch restarts.
func TestLearnedStays(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		conf := announcing(sw, "192.168.5.0/24", "192.168.6.0/24", "0.0.0.0/0")
		sw.start(conf)
		s := l.speaker(t)
		p := peerOf(sw)
		p.RestartTime = 40 * time.Second
		mustSync(t, s, Session{Peer: p, Paths: pods(2), Learn: learnList})
		via := fmt.Sprintf(" via %s from %s", sw.addr4, sw.addr4)
		want := []string{"0.0.0.0/0" + via, "192.168.5.0/24" + via, "192.168.6.0/24" + via}
		learns(t, s, want...)

		stays := func(what string, back func() bool) {
			t.Helper()
			eventually(t, func() error {
				got, complete := told(s, t)
				for i := range got {
					got[i] = strings.TrimSuffix(got[i], " kept")
				}
				if diff := cmp.Diff(got, want); diff != "" || !complete {
					t.Fatalf("%s: complete %v (-got +want):\n%s", what, complete, diff)
				}
				if !back() {
					return errors.New("not back")
				}
				return nil
			})
		}
		fresh := func() bool {
			paths, _ := s.Learned(t.Context())
			return !slices.ContainsFunc(paths, func(p LearnedPath) bool { return p.Kept })
		}
		flaps := func(n int) func() bool {
			return func() bool {
				st := s.Status(t.Context())[0]
				return st.Flaps == n && st.State == "Established" && fresh()
			}
		}
		l.cut(sw.addr4.String())
		stays("connection cut", flaps(1))
		sw.start(conf)
		stays("switch restarted", flaps(2))

		changed := announcing(sw, "192.168.5.0/24", "192.168.8.0/24", "0.0.0.0/0")
		sw.start(changed)
		learns(t, s, "0.0.0.0/0"+via, "192.168.5.0/24"+via, "192.168.8.0/24"+via)
		if lost := s.Status(t.Context())[0].LastReset.At; time.Since(lost) > p.RestartTime {
			t.Errorf("the old path went %v after the session: with the restart time, not with the End-of-RIB", time.Since(lost))
		}

		down := time.Now()
		sw.kill()
		eventually(t, func() error {
			if got, _ := told(s, t); len(got) != 3 || !strings.HasSuffix(got[0], " kept") {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
		learns(t, s)
		promised(t, sw.kind+": forgotten", down, time.Now(), p.RestartTime, p.RestartTime+lookEvery)
	})
}

// A switch that shuts the neighbour down has withdrawn its paths.
func TestLearnedEndsWithFarewell(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(announcing(sw, "192.168.5.0/24"))
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(1), Learn: learnList})
		learns(t, s, fmt.Sprintf("192.168.5.0/24 via %s from %s", sw.addr4, sw.addr4))
		if sw.kind == "bird" {
			sw.ask("disable n0")
		} else {
			sw.configure("router bgp 65000", "neighbor 10.0.0.10 shutdown")
		}
		learns(t, s)
	})
}

// A switch that sends far too much, again and again, costs little while nothing is learned, and no more than
// the listed paths while something is.
func TestFlood(t *testing.T) {
	each(t, flooded)
}

func flooded(t *testing.T, l *lan, sw *router) {
	c := nodeOf(sw)
	const flood = 100000
	form := map[string]string{"bird": "route %d.%d.%d.0/24 blackhole;\n", "frr": "  network %d.%d.%d.0/24\n"}[sw.kind]
	var routes strings.Builder
	for i := range flood {
		fmt.Fprintf(&routes, form, 20+i/65536, i/256%256, i%256)
	}
	if sw.kind == "bird" {
		c.extra = "protocol static s0 { ipv4;\nroute 192.168.5.0/24 blackhole;\n" + routes.String() + "}\n"
	} else {
		c.extra = " no bgp network import-check\n no bgp suppress-duplicates\n"
		c.neighbours[0].channel = "  network 192.168.5.0/24\n" + routes.String()
	}
	sw.start(c)
	s := l.speaker(t)
	session := Session{Peer: peerOf(sw), Paths: pods(1)}
	mustSync(t, s, session)
	becomes(t, s, "Established", "")
	pid := fmt.Sprint(s.all()[0].proc.cmd.Process.Pid)
	exported := func(n int) {
		t.Helper()
		command, pattern := "show protocols all n0", "(?s)Channel ipv4.* %d exported.*Channel ipv6"
		if sw.kind == "frr" {
			command, pattern = "show bgp ipv4 unicast summary", `(?m)^10.0.0.10 .* %d N/A$`
		}
		sw.says(command, fmt.Sprintf(pattern, n+1)) // BIRD has the link's prefix, FRR sends our path back
	}
	again := func() { // sends all of it again
		if sw.kind == "frr" {
			sw.ask("clear bgp ipv4 unicast 10.0.0.10 soft out")
			return
		}
		sw.ask("disable s0")
		exported(0)
		sw.ask("enable s0")
	}
	used := func(d time.Duration) time.Duration {
		before := cpuOf(t, pid)
		time.Sleep(d) // what it uses when left alone
		return cpuOf(t, pid) - before
	}
	exported(flood + 1)
	for range 3 {
		again()
		exported(flood + 1)
	}
	eventually(t, func() error {
		if busy := used(time.Second); busy > 100*time.Millisecond {
			return fmt.Errorf("%v of CPU in a second", busy)
		}
		return nil
	})
	all, resident, idle := cpuOf(t, pid), residentOf(t, pid), used(3*time.Second)
	session.Learn = learnList
	mustSync(t, s, session)
	learns(t, s, fmt.Sprintf("192.168.5.0/24 via %v from %v", sw.addr4, sw.addr4))
	learning := used(3 * time.Second)
	session.Learn = []netip.Prefix{pfx("20.0.0.0/8"), pfx("21.0.0.0/8")}
	mustSync(t, s, session)
	eventually(t, func() error {
		if paths, _ := s.Learned(t.Context()); len(paths) != learnMost {
			return fmt.Errorf("%d paths", len(paths))
		}
		return nil
	})
	t.Logf("%d routes, then three times more: %v CPU, %d MiB; CPU in 3 s: %v, learning %v", flood, all, resident, idle, learning)
	if all > 10*time.Second || resident > 64 || idle > 250*time.Millisecond || learning > 250*time.Millisecond {
		t.Error("this is too much")
	}
	session.Paths = pods(2)
	mustSync(t, s, session)
	sw.hears(pods(2))
}

// A path with the community GRACEFUL_SHUTDOWN is learned, and comes after the path of another switch.
func TestLearnsFromSwitchThatIsLeaving(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := l.router("bird", 1), l.router("frr", 2)
	c := nodeOf(bird)
	c.extra = "protocol static s0 { ipv4; route 192.168.5.0/24 blackhole { bgp_community.add((65535, 0)); }; }\n"
	bird.start(c)
	frr.start(announcing(frr, "192.168.5.0/24"))
	s := l.speaker(t)
	mustSync(t, s, Session{Peer: peerOf(bird), Learn: learnList}, Session{Peer: peerOf(frr), Learn: learnList})
	learns(t, s, "192.168.5.0/24 via 10.0.0.2 from 10.0.0.2", "192.168.5.0/24 via 10.0.0.1 from 10.0.0.1")
	if paths, _ := s.Learned(t.Context()); !paths[1].Leaving || paths[0].Leaving {
		t.Errorf("%+v", paths)
	}
}

// IPv4 paths with an IPv6 next hop (RFC 8950) are not asked for: over an IPv6 session a switch that could
// send them sends IPv4 next hops.
func TestLearnsIPv4OverIPv6(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		c := announcing(sw, "192.168.5.0/24")
		c.neighbours[0].addr = "fd00:10::10"
		if c.neighbours[0].channel = "extended next hop on;"; sw.kind == "frr" {
			c.neighbours[0].channel, c.neighbours[0].extra = "", " neighbor fd00:10::10 capability extended-nexthop\n"
		}
		sw.start(c)
		p := peerOf(sw)
		p.Address, p.LocalAddress = sw.addr6, addr("fd00:10::10")
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: p, Paths: pods(2), Learn: learnList})
		sw.hears(pods(2))
		learns(t, s, fmt.Sprintf("192.168.5.0/24 via %s from %s", sw.addr4, sw.addr6))
	})
}
