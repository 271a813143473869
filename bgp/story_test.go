package bgp

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

func nodeOf(sw *router) swconf {
	return swconf{asn: 65000, neighbours: []neighbour{{addr: "10.0.0.10", asn: 65001}}}
}

// Each kind of session tells a switch all paths with the next hops of their nodes.
func TestThirdPartyNextHop(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		l.ip("addr add 10.1.255.10/32 dev lo")
		l.ip(fmt.Sprintf("route add 10.1.255.1/32 via %s", sw.addr4))
		ip(t, sw.Machine, "addr add 10.1.255.1/32 dev lo")
		ip(t, sw.Machine, "route add 10.1.255.10/32 via 10.0.0.10")
		far := map[string]string{"bird": " local 10.1.255.1 as 65000;\n", "frr": " neighbor 10.1.255.10 update-source 10.1.255.1\n"}[sw.kind]
		for _, tt := range []struct {
			name string
			conf swconf
			peer func(*Peer)
		}{
			{"external", nodeOf(sw), func(*Peer) {}},
			{"internal", swconf{asn: 4200000001, neighbours: []neighbour{{addr: "10.0.0.10", asn: 4200000001}}},
				func(p *Peer) { p.ASN, p.LocalASN = 4200000001, 4200000001 }},
			{"four octets, other port, TTL security", swconf{asn: 4200000000, port: 1790, neighbours: []neighbour{{addr: "10.0.0.10", asn: 4200000001, ttlSec: true}}},
				func(p *Peer) { p.ASN, p.LocalASN, p.Port, p.TTLSecurity = 4200000000, 4200000001, 1790, true }},
			{"IPv6, password", swconf{asn: 65000, neighbours: []neighbour{{addr: "fd00:10::10", asn: 65001, password: "s3cret"}}},
				func(p *Peer) { p.Address, p.LocalAddress, p.Password = sw.addr6, addr("fd00:10::10"), "s3cret" }},
			{"multihop", swconf{asn: 65000, neighbours: []neighbour{{addr: "10.1.255.10", asn: 65001, multihop: 3, extra: far}}},
				func(p *Peer) { p.Address, p.LocalAddress, p.MultihopTTL = addr("10.1.255.1"), addr("10.1.255.10"), 3 }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				sw.start(tt.conf)
				want := Session{Peer: peerOf(sw), Paths: pods(5)}
				tt.peer(&want.Peer)
				s := l.speaker(t)
				mustSync(t, s, want)
				sw.hears(want.Paths)
				if st := becomes(t, s, "Established", ""); !st.Restart || len(st.Advertised) != 10 || len(st.Lacks) != 0 {
					t.Errorf("status %+v", st)
				}
				if again := mustSync(t, s, want); len(again) != 0 {
					t.Errorf("second Sync: %v", again)
				}
			})
		}
	})
}

func TestTwoSwitchesHearDifferentPaths(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := l.router("bird", 1), l.router("frr", 2)
	bird.start(nodeOf(bird))
	frr.start(nodeOf(frr))
	s := l.speaker(t)
	mustSync(t, s, Session{Peer: peerOf(bird), Paths: pods(4)}, Session{Peer: peerOf(frr), Paths: pods(9)[8:]})
	bird.hears(pods(4))
	frr.hears(pods(9)[8:])
	for _, st := range s.Status(t.Context()) {
		if st.State != "Established" || st.Flaps != 0 {
			t.Errorf("%+v", st)
		}
	}
	// We are no transit between the two, and no port is open.
	if out := l.run("ss", "-Hltn"); out != "" {
		t.Errorf("listening sockets:\n%s", out)
	}
}

func TestPathsChangeWithoutFlap(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(5)})
		sw.hears(pods(5))
		before := becomes(t, s, "Established", "")

		moved := pods(6)[2:]                 // the first node is gone, a sixth is new
		moved[0].NextHop = addr("10.0.0.77") // the second has another address
		w := sw.watch()
		changes := mustSync(t, s, Session{Peer: peerOf(sw), Paths: moved})
		got := map[string]int{}
		for _, c := range changes {
			got[c.Op]++
		}
		if got["add"] != 2 || got["replace"] != 1 || got["delete"] != 2 || len(changes) != 5 {
			t.Errorf("changes:\n%v", changes)
		}
		sw.hears(moved)
		if e := w.events(t); len(e) < 5 || len(e) > 8 {
			t.Errorf("%d route events for 5 changes: %q", len(e), e)
		}
		// A cancelled Sync does half of nothing: no session ends for it.
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		other := peerOf(sw)
		other.HoldTime = 60 * time.Second
		for range 20 {
			if _, err := s.Sync(cancelled, State{Sessions: []Session{{Peer: other, Paths: moved}}}); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want context.Canceled", err)
			}
		}
		if now := becomes(t, s, "Established", ""); now.Flaps != 0 || !now.Since.Equal(before.Since) {
			t.Errorf("session flapped: %+v", now)
		}
	})
}

// A session that is no longer desired ends at once, with a text for the switch's operator (RFC 9003).
func TestRemovedPeerIsWithdrawnAtOnce(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := l.router("bird", 1), l.router("frr", 2)
	bird.start(nodeOf(bird))
	logs := nodeOf(frr)
	logs.extra = " bgp log-neighbor-changes\n"
	frr.start(logs)
	s := l.speaker(t)
	both := []Session{{Peer: peerOf(bird), Paths: pods(3)}, {Peer: peerOf(frr), Paths: pods(3)}}
	mustSync(t, s, both...)
	bird.hears(pods(3))
	frr.hears(pods(3))
	atOnce := func(sw *router, removed time.Time) {
		t.Helper()
		sw.hears(nil)
		promised(t, sw.kind+": withdrawn", removed, time.Now(), 0, farewellTimeout) // not 600 s, nor 90 s
	}
	removed := time.Now()
	changes := mustSync(t, s, both[1])
	if len(changes) != 1 || changes[0].Op != "delete" {
		t.Errorf("changes %v", changes)
	}
	atOnce(bird, removed)
	bird.logged("n0: Received: Administrative shutdown: \"BGPPeer/bird asks for no session with this speaker any more\"")
	if err := frr.compare(pods(3)); err != nil {
		t.Error(err)
	}
	held := Held{Key: both[1].Peer.Key(), Why: "the password of BGPPeer/frr is missing"}
	removed = time.Now()
	if _, err := s.Sync(t.Context(), State{Sessions: both[:1], Held: []Held{held}}); err != nil {
		t.Error(err)
	}
	atOnce(frr, removed)
	frr.says("show bgp neighbors 10.0.0.10", `Notification received \(Cease/Administrative Shutdown/Hard Reset\)`) // RFC 8538
	frr.logged(`NOTIFICATION\(Hard Reset\): received from neighbor 10.0.0.10 6/2 .* "the password of BGPPeer/frr is missing"`)
	bird.hears(pods(3))
	if st := s.Status(t.Context())[0]; st.Flaps != 1 || st.LastReset.Reason != reasonEnded || time.Since(st.LastReset.At) > time.Minute {
		t.Errorf("the past of a session that came back: %+v", st)
	}
	removed = time.Now()
	mustSync(t, s)
	atOnce(bird, removed)
	// Without graceful restart there is nothing to reset the hard way.
	both[1].Peer.RestartTime = 0
	mustSync(t, s, both[1])
	frr.hears(pods(3))
	removed = time.Now()
	mustSync(t, s)
	atOnce(frr, removed)
	frr.logged(`NOTIFICATION: received from neighbor 10.0.0.10 6/2 .* "BGPPeer/frr asks for no session with this speaker any more"`)
	if all := s.Status(t.Context()); len(all) != 0 {
		t.Errorf("status %v", all)
	}
}

// If a session ends while GoBGP still sends and the switch still reads, the switch gets our Cease, and not in the
// middle of another message.
func TestRemovedWhileTelling(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		s := l.speaker(t)
		paths := manyPaths()
		for i := range paths {
			paths[i].MED = uint32(i) // a message of its own for each path
		}
		for range 3 {
			mustSync(t, s, Session{Peer: peerOf(sw), Paths: paths})
			eventually(t, func() error {
				if len(sw.routes()) == 0 {
					return errors.New("the switch has heard nothing yet")
				}
				return nil
			})
			begun := time.Now()
			mustSync(t, s)
			if took := time.Since(begun); took > 3*farewellTimeout {
				t.Errorf("ended after %v", took)
			}
			sw.hears(nil)
		}
		for _, line := range sw.complaints() {
			if !strings.Contains(line, "Received: Administrative shutdown") && !strings.Contains(line, "Received: Peer de-configured") {
				t.Error(line)
			}
		}
	})
}

func TestReasons(t *testing.T) {
	type row struct {
		name, reason, detail string
		change               func(*Peer)
	}
	from := func(a string) func(*Peer) { return func(p *Peer) { p.LocalAddress = addr(a) } }
	group := func(t *testing.T, l *lan, sw *router, name string, rows ...row) {
		t.Run(name, func(t *testing.T) {
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					t.Parallel()
					p := peerOf(sw)
					row.change(&p)
					s := l.speaker(t)
					mustSync(t, s, Session{Peer: p, Paths: pods(1)})
					if st := s.Status(t.Context())[0]; st.Reason != reasonConnecting {
						t.Errorf("at first: %q %q", st.Reason, st.Detail)
					}
					if st := becomes(t, s, "", row.reason); !strings.Contains(st.Detail, row.detail) {
						t.Error(st.Detail)
					}
				})
			}
		})
	}
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		for _, a := range []string{"10.0.0.20", "10.0.0.21"} {
			l.ip("addr add " + a + "/24 dev eth0")
		}
		group(t, l, sw, "no switch",
			row{"no BGP there", reasonRefused, "refuses the connection", func(*Peer) {}},
			row{"no route", reasonNoRoute, "no route to 203.0.113.1", func(p *Peer) { p.Address = addr("203.0.113.1") }},
			row{"nobody there", reasonNoNeighbour, "answers no ARP", func(p *Peer) { p.Address = addr("10.0.0.200") }},
			row{"not our address", reasonNoLocalAddress, "10.0.0.55", from("10.0.0.55")})
		c := nodeOf(sw)
		c.neighbours = append(c.neighbours, neighbour{addr: "10.0.0.21", asn: 65001})
		sw.start(c)
		run(t, sw.Machine, "nft", "add table inet f; add chain inet f in { type filter hook input priority 0; }; add rule inet f in tcp dport 179 ip saddr 10.0.0.11 drop")
		l.ip("addr add 10.0.0.11/24 dev eth0")
		group(t, l, sw, "switch",
			row{"other peer ASN", reasonASNMismatch, "the switch has AS number 65000, not 64999", func(p *Peer) { p.ASN = 64999 }},
			row{"other local ASN", reasonASNMismatch, "another AS number than 64999", func(p *Peer) { p.LocalAddress, p.LocalASN = addr("10.0.0.21"), 64999 }},
			row{"unknown to the switch", reasonUnknownToSwitch, "10.0.0.20 as 65001", from("10.0.0.20")},
			row{"filtered", reasonTimeout, "a filter drops TCP", from("10.0.0.11")})
	})
}

func TestCeased(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(1)})
		sw.hears(pods(1))
		switch sw.kind {
		case "bird":
			sw.ask(`disable n0 "cabling till six"`)
		case "openbgpd":
			if _, err := sw.Console(t.Context(), "neighbor", "10.0.0.10", "down", "cabling till six"); err != nil {
				t.Fatal(err)
			}
		default:
			sw.configure("router bgp 65000", "neighbor 10.0.0.10 shutdown message cabling till six")
		}
		st := becomes(t, s, "", reasonCeased)
		if !strings.Contains(st.Detail, `administrative shutdown, saying "cabling till six"`) || st.Flaps != 1 {
			t.Errorf("%+v", st)
		}
		enabled := time.Now()
		switch sw.kind {
		case "bird":
			sw.ask("enable n0")
		case "openbgpd":
			sw.ask("neighbor 10.0.0.10 up")
		default:
			sw.configure("router bgp 65000", "no neighbor 10.0.0.10 shutdown")
		}
		// When it is up again, it is still known why it was not.
		again := becomes(t, s, "Established", "")
		promised(t, sw.kind+": back", enabled, again.Since, 0, redial)
		if r := again.LastReset; r.Reason != reasonCeased || r.Detail != st.Detail || r.At.After(again.Since) || again.Flaps != 1 {
			t.Errorf("%+v", again)
		}
	})
}

// A second BGP daemon on this node takes the session away again and again, or gets none. Each switch treats it in
// another way, and few say so.
func TestSecondDaemonOnThisNode(t *testing.T) {
	for name, noRestart := range map[string]bool{"graceful restart": false, "no graceful restart": true} {
		t.Run(name, func(t *testing.T) {
			eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
				c := nodeOf(sw)
				c.noRestart = noRestart
				sw.start(c)
				one, other := l.speaker(t), l.speaker(t)
				mustSync(t, one, Session{Peer: peerOf(sw), Paths: pods(1)})
				becomes(t, one, "Established", "")
				mustSync(t, other, Session{Peer: peerOf(sw), Paths: pods(1)})
				eventually(t, func() error {
					a, b := one.Status(t.Context())[0], other.Status(t.Context())[0]
					for _, reason := range []string{a.Reason, a.LastReset.Reason, b.Reason, b.LastReset.Reason} {
						if reason == reasonCollision {
							return nil
						}
					}
					return fmt.Errorf("one %+v, other %+v", a, b)
				})
			})
		})
	}
}

// The first cause stays the headline while the switch refuses connections afterwards.
func TestFirstCauseStays(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		switch sw.kind {
		case "bird":
			c.neighbours[0].channel = "import limit 2 action disable;"
		case "frr":
			c.neighbours[0].channel = "  neighbor 10.0.0.10 maximum-prefix 2\n"
		default:
			c.neighbours[0].extra = " max-prefix 2\n"
		}
		sw.start(c)
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(6)})
		becomes(t, s, "", reasonPrefixLimit)
		eventually(t, func() error {
			st := s.Status(t.Context())[0]
			if st.Reason != reasonPrefixLimit {
				t.Fatalf("%+v", st)
			}
			if !strings.Contains(st.Detail, "advertise fewer prefixes; since then: ") {
				return errors.New(st.Detail)
			}
			return nil
		})
		t.Log(s.Status(t.Context())[0].Detail)
	})
}

// Each setting of the switch that this node cannot meet has its own reason.
func TestTermsThatDoNotFit(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		for _, tt := range []struct {
			name, reason, detail string
			bird, frr, openbgpd  string // lines of the neighbour
		}{
			{"role", reasonRole, "remove the strict role", " local role provider;\n require roles on;\n", " neighbor 10.0.0.10 local-role provider strict-mode\n", ""},
			{"no keepalives", reasonHoldTime, "the switch offers a hold time of 0s", " hold time 0;\n", " neighbor 10.0.0.10 timers 0 0\n", ""},
			{"least hold time", reasonHoldTime, "does not accept our hold time of 1m30s", "", " bgp minimum-holdtime 100\n", " holdtime min 100\n"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				c := nodeOf(sw)
				c.neighbours[0].extra = map[string]string{"bird": tt.bird, "frr": tt.frr, "openbgpd": tt.openbgpd}[sw.kind]
				if c.neighbours[0].extra == "" {
					t.Skipf("%s has no such setting", sw.kind)
				}
				sw.start(c)
				s := l.speaker(t)
				mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(1)})
				if st := becomes(t, s, "", tt.reason); !strings.Contains(st.Detail, tt.detail) {
					t.Error(st.Detail)
				}
			})
		}
	})
}

// A silent link ends the session. FRR, which knows RFC 8538, keeps the routes; BIRD 2.0 drops them.
func TestHoldTimer(t *testing.T) {
	each(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		s := l.speaker(t)
		p := peerOf(sw)
		p.HoldTime = 9 * time.Second // a busy machine is late
		want := manyPaths()
		mustSync(t, s, Session{Peer: p, Paths: want})
		sw.hears(want)
		sw.settled()
		w := sw.watch()
		cut := time.Now()
		l.cable("down")
		becomes(t, s, "", reasonHoldTimer)
		mended := time.Now()
		l.cable("up")
		st := becomes(t, s, "Established", "")
		if st.LastReset.Reason != reasonHoldTimer {
			t.Errorf("%+v", st.LastReset)
		}
		promised(t, sw.kind+": noticed", cut, st.LastReset.At, 0, p.HoldTime)
		promised(t, sw.kind+": back", mended, st.Since, 0, redial)
		sw.hears(want)
		sw.settled()
		if sw.kind == "frr" {
			w.still(t, "after the hold time")
		}
	})
}

// A dead switch does not delay the paths to another switch.
func TestDeadSwitchDelaysNobody(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	frr := l.router("frr", 2)
	frr.start(nodeOf(frr))
	dead := peerOf(frr)
	dead.Address = addr("10.0.0.1")
	s := l.speaker(t)
	mustSync(t, s, Session{Peer: dead, Paths: pods(2)}, Session{Peer: peerOf(frr), Paths: pods(2)})
	frr.hears(pods(2))
	frr.settled() // GoBGP alone would wait 6 minutes for the dead switch
}

func TestSwitchWithoutGracefulRestart(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		c := nodeOf(sw)
		c.noRestart = true
		c.neighbours[0].only4 = true
		sw.start(c)
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(1)})
		sw.hears(pods(1)[:1])
		st := becomes(t, s, "Established", "")
		eventually(t, func() error {
			if st = s.Status(t.Context())[0]; len(st.Lacks) == 0 {
				return errors.New("lacks nothing")
			}
			return nil
		})
		if st.Restart || len(st.Advertised) != 1 || len(st.Lacks) != 2 || st.Lacks[0].Reason != lackFamily || !strings.Contains(st.Lacks[0].Detail, "1 IPv6 paths are not advertised") || st.Lacks[1].Reason != lackRestart {
			t.Errorf("%+v", st)
		}
	})
}

// Paths of a switch are not installed, and not advertised to any switch.
func TestLearnsNothing(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := l.router("bird", 1), l.router("frr", 2)
	c := nodeOf(bird)
	c.extra = "protocol static s4 { ipv4; route 198.51.100.0/24 blackhole; }\n"
	bird.start(c)
	frr.start(nodeOf(frr))
	s := l.speaker(t)
	mustSync(t, s, Session{Peer: peerOf(bird), Paths: pods(1)}, Session{Peer: peerOf(frr), Paths: pods(1)})
	bird.hears(pods(1))
	frr.hears(pods(1))
	bird.settled()
	if err := frr.compare(pods(1)); err != nil {
		t.Error(err)
	}
	if out := l.run("ip", "route", "show", "198.51.100.0/24"); out != "" {
		t.Error(out)
	}
}

// A session's process that ends by itself is replaced; its session comes back with the same paths, and
// the other session does not notice.
func TestCrashCostsOneSession(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	bird, frr := bothSwitches(l)
	s := l.speaker(t)
	both := []Session{{Peer: peerOf(bird), Paths: manyPaths()}, {Peer: peerOf(frr), Paths: manyPaths()}}
	mustSync(t, s, both...)
	bird.hears(manyPaths())
	frr.hears(manyPaths())
	bird.settled()
	w := bird.watch()
	if err := s.all()[0].proc.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if st := becomes(t, s, "Idle", reasonCrashed); st.Flaps != 1 || st.LastReset.Reason != reasonCrashed || !strings.Contains(st.Detail, "signal: killed") {
		t.Errorf("%+v", st)
	}
	var changes []Change
	eventually(t, func() error {
		changes = append(changes, mustSync(t, s, both...)...)
		if st := s.Status(t.Context())[0]; st.State != "Established" {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if len(changes) != 1 || changes[0].Op != "reset" || changes[0].Why != "its process ended: signal: killed" {
		t.Errorf("changes %v", changes)
	}
	bird.settled()
	w.still(t, "after a crash")
	if err := bird.compare(manyPaths()); err != nil {
		t.Error(err)
	}
	all := s.Status(t.Context())
	if all[0].Flaps != 1 || all[0].LastReset.Reason != reasonCrashed {
		t.Errorf("%+v", all[0])
	}
	if all[1].Flaps != 0 || all[1].State != "Established" {
		t.Errorf("the other session: %+v", all[1])
	}
}

func TestSwitchRestarts(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		sw.start(nodeOf(sw))
		s := l.speaker(t)
		mustSync(t, s, Session{Peer: peerOf(sw), Paths: pods(3)})
		sw.hears(pods(3))
		sw.start(nodeOf(sw))
		started := time.Now()
		sw.hears(pods(3))
		promised(t, sw.kind+": heard again", started, time.Now(), 0, redial)
	})
}

// A session that is lost again and again leaves nothing behind in its process.
func TestNoLeakOverFlaps(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for pauses between dials")
	}
	if !alone(t) {
		return
	}
	var p Peer
	ready, cut := make(chan struct{}), make(chan struct{})
	p = newImposter(t, func(c net.Conn) {
		<-ready
		greet(c, p)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		<-cut
	}).peer()
	close(ready)
	link, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- ServeSession(theirs) }()
	answers := make(chan answer, 100)
	go func() {
		for in := gob.NewDecoder(link); ; {
			var a answer
			if in.Decode(&a) != nil {
				return
			}
			answers <- a
		}
	}()
	if err := gob.NewEncoder(link).Encode(order{Number: 1, Session: Session{Peer: p.normal(), Paths: pods(2)}}); err != nil {
		t.Fatal(err)
	}
	up := func(flaps int) {
		t.Helper()
		for deadline := time.After(30 * time.Second); ; {
			select {
			case a := <-answers:
				if a.Status.Flaps == flaps && a.Status.State == "Established" && (flaps == 0 || a.Status.LastReset.Reason == reasonConnectionLost) {
					return
				}
			case <-deadline:
				t.Fatalf("not up after %d flaps", flaps)
			}
		}
	}
	up(0)
	cut <- struct{}{}
	up(1)
	before := steadyGoroutines()
	for n := range 3 {
		cut <- struct{}{}
		up(n + 2)
	}
	eventually(t, func() error {
		if after := steadyGoroutines(); after > before+1 {
			return fmt.Errorf("%d goroutines, were %d", after, before)
		}
		return nil
	})
	link.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func steadyGoroutines() int {
	runtime.GC()
	return runtime.NumGoroutine()
}

// TTL security on one side only is named, and the switch is left without a connection that waits for us.
func TestTTLSecurityOnOneSide(t *testing.T) {
	eachOfThree(t, func(t *testing.T, l *lan, sw *router) {
		for _, ours := range []bool{true, false} {
			t.Run(fmt.Sprintf("ours %v", ours), func(t *testing.T) {
				c := nodeOf(sw)
				c.neighbours[0].ttlSec = !ours
				sw.start(c)
				p := peerOf(sw)
				p.TTLSecurity = ours
				s := l.speaker(t)
				mustSync(t, s, Session{Peer: p, Paths: pods(1)})
				want := map[bool]string{true: "remove ttlSecurity here", false: "set ttlSecurity here"}[ours]
				if st := becomes(t, s, "", reasonTTLSecurity); !strings.Contains(st.Detail, want) {
					t.Error(st.Detail)
				}
				first := run(t, sw.Machine, "ss", "-Htn", "sport = :179 dst 10.0.0.10")
				eventually(t, func() error { // the same reason, and other connections
					st := s.Status(t.Context())[0]
					now := run(t, sw.Machine, "ss", "-Htn", "sport = :179 dst 10.0.0.10")
					if st.Reason != reasonTTLSecurity {
						t.Fatalf("%+v", st)
					}
					if strings.Count(now, "\n") > 1 || now == first {
						return errors.New(now)
					}
					return nil
				})
				p.TTLSecurity = !ours // the remedy
				mustSync(t, s, Session{Peer: p, Paths: pods(1)})
				sw.hears(pods(1))
			})
		}
	})
}
