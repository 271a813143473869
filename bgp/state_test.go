package bgp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func goodPeer() Peer {
	return Peer{Name: "BGPPeer/peer-a", Address: addr("10.0.10.1"), ASN: 65002, LocalASN: 65010, LocalAddress: addr("10.0.10.11"), RouterID: addr("10.0.10.11")}
}

func goodPath() Path { return Path{Prefix: pfx("10.10.2.0/24"), NextHop: addr("10.0.10.12")} }

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Session)
		want   string // "" means valid
	}{
		{"plain", func(*Session) {}, ""},
		{"longest restart time", func(s *Session) { s.Peer.RestartTime = MaxRestartTime }, ""},
		{"no restart", func(s *Session) { s.Peer.RestartTime = 0 }, ""},
		{"mapped addresses", func(s *Session) { s.Peer.Address = addr("::ffff:10.0.10.1") }, ""},
		{"no paths", func(s *Session) { s.Paths = nil }, ""},
		{"restart time too long", func(s *Session) { s.Peer.RestartTime = MaxRestartTime + time.Second }, "restart time 1h8m16s is out of range; set 0 to 1h8m15s"},
		{"negative restart time", func(s *Session) { s.Peer.RestartTime = -time.Second }, "restart time -1s is out of range"},
		{"restart time of half a second", func(s *Session) { s.Peer.RestartTime = time.Second / 2 }, "not a whole number of seconds"},
		{"no local address", func(s *Session) { s.Peer.LocalAddress = addr("0.0.0.0") }, "no local address; set the node's own address"},
		{"zero local address", func(s *Session) { s.Peer.LocalAddress = Peer{}.Address }, "no local address; set"},
		{"families differ", func(s *Session) { s.Peer.LocalAddress = addr("fd00::1") }, "different families; give the node an address of the peer's family"},
		{"no address", func(s *Session) { s.Peer.Address = Peer{}.Address }, "not a unicast address; set the switch's address"},
		{"multicast", func(s *Session) { s.Peer.Address = addr("224.0.0.5") }, "not a unicast address"},
		{"link-local without a zone", func(s *Session) { s.Peer.Address, s.Peer.LocalAddress = addr("fe80::1"), addr("fd00::2") }, "link-local address; use global"},
		{"link-local", func(s *Session) { s.Peer.Address, s.Peer.LocalAddress = addr("fe80::1%eth0"), addr("fe80::2%eth0") }, "link-local address; use global"},
		{"itself", func(s *Session) { s.Peer.Address = s.Peer.LocalAddress }, "are both 10.0.10.11"},
		{"AS 0", func(s *Session) { s.Peer.ASN = 0 }, "peer AS 0 is reserved"},
		{"AS_TRANS", func(s *Session) { s.Peer.LocalASN = 23456 }, "local AS 23456 is reserved"},
		{"last AS", func(s *Session) { s.Peer.ASN = 4294967295 }, "reserved"},
		{"IPv6 router ID", func(s *Session) { s.Peer.RouterID = addr("fd00::1") }, "router ID fd00::1 is not an IPv4 address"},
		{"hold time too short", func(s *Session) { s.Peer.HoldTime = 2 * time.Second }, "hold time 2s is out of range"},
		{"long password", func(s *Session) { s.Peer.Password = strings.Repeat("s3", 41) }, "password has 82 octets; TCP MD5 takes at most 80"},
		{"host bits", func(s *Session) { s.Paths[0].Prefix = pfx("10.10.2.1/24") }, "host bits set; write 10.10.2.0/24"},
		{"no prefix", func(s *Session) { s.Paths[0].Prefix = Path{}.Prefix }, "no prefix"},
		{"no next hop", func(s *Session) { s.Paths[0].NextHop = Path{}.NextHop }, "next hop is not a unicast address"},
		{"next hop of other family", func(s *Session) { s.Paths[0].NextHop = addr("fd00::1") }, "next hop is not of the prefix's family"},
		{"prefix twice", func(s *Session) {
			s.Paths = append(s.Paths, Path{Prefix: s.Paths[0].Prefix, NextHop: addr("10.0.10.13")})
		}, "also has the next hop 10.0.10.12"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Session{Peer: goodPeer(), Paths: []Path{goodPath()}}
			tt.change(&s)
			err := State{Sessions: []Session{s}}.Validate()
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			if text := err.Error(); !strings.Contains(text, tt.want) || !strings.HasPrefix(text, "BGPPeer/peer-a: peer ") || strings.Contains(text, "s3s3") {
				t.Errorf("got %q, want it to name the session and say %q", text, tt.want)
			}
		})
	}
}

func TestValidateSameKey(t *testing.T) {
	a, b := goodPeer(), goodPeer()
	b.Name, b.Port = "BGPClusterConfig/bgp", DefaultPort
	err := State{Sessions: []Session{{Peer: a}, {Peer: b}}}.Validate()
	want := "BGPClusterConfig/bgp: peer 10.0.10.1: invalid session: BGPPeer/peer-a and BGPClusterConfig/bgp both ask for the session 10.0.10.1 local as 65010; remove one of them"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	b.Port = 1179
	if err := (State{Sessions: []Session{{Peer: a}, {Peer: b}}}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestPrintsAsATable(t *testing.T) {
	b := goodPeer()
	b.Name, b.Address, b.Port, b.MultihopTTL, b.TTLSecurity, b.Password = "BGPPeer/peer-b", addr("10.0.9.1"), 1179, 3, true, "s3cret"
	b.HoldTime, b.RestartTime = 90*time.Second, 600*time.Second
	state := State{Sessions: []Session{
		{Peer: goodPeer(), Paths: []Path{{Prefix: pfx("fd01:2::/64"), NextHop: addr("fd00:10::12")}, {Prefix: pfx("10.10.10.0/24"), NextHop: addr("10.0.10.20")}, goodPath()}},
		{Peer: b},
	}}
	want := `peer 10.0.9.1:1179 as 65002 local as 65010 source 10.0.10.11 router-id 10.0.10.11 hold 1m30s restart 10m0s multihop 3 ttl-security md5 # BGPPeer/peer-b
peer 10.0.10.1 as 65002 local as 65010 source 10.0.10.11 router-id 10.0.10.11 # BGPPeer/peer-a
	10.10.2.0/24 via 10.0.10.12
	10.10.10.0/24 via 10.0.10.20
	fd01:2::/64 via fd00:10::12
`
	if diff := cmp.Diff(want, state.String()); diff != "" {
		t.Error(diff)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{b, state, Status{Peer: b}, []Session{{Peer: b}}} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "s3cret") {
				t.Errorf("password in %s of %T: %s", verb, v, text)
			}
		}
	}
	c := Change{Op: "replace", Object: "path 10.10.2.0/24 via 10.0.10.13 to 10.0.10.1", Why: "was via 10.0.10.12"}
	if got, want := c.String(), "replace path 10.10.2.0/24 via 10.0.10.13 to 10.0.10.1 (was via 10.0.10.12)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An invalid session changes no other session, and no running session with its Key.
func TestSyncInvalidSessionLeavesOthers(t *testing.T) {
	s := newTestSpeaker(t)
	a, b := goodPeer(), goodPeer()
	a.Address, a.LocalAddress = addr("127.0.0.2"), addr("127.0.0.1")
	b.Address, b.LocalAddress = addr("127.0.0.3"), addr("127.0.0.1")
	state := State{Sessions: []Session{{Peer: a, Paths: []Path{goodPath()}}, {Peer: b, Paths: []Path{goodPath()}}}}
	changes, err := s.Sync(t.Context(), state)
	if err != nil || len(changes) != 4 {
		t.Fatalf("changes %v, error %v", changes, err)
	}
	var text []string
	for _, c := range changes {
		text = append(text, c.String())
	}
	want := []string{
		"add peer 127.0.0.2 as 65002", "add path 10.10.2.0/24 via 10.0.10.12 to 127.0.0.2",
		"add peer 127.0.0.3 as 65002", "add path 10.10.2.0/24 via 10.0.10.12 to 127.0.0.3",
	}
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
	state.Sessions[0].Peer.RestartTime = 2 * MaxRestartTime
	state.Sessions[1].Paths = nil
	changes, err = s.Sync(t.Context(), state)
	if !errors.Is(err, ErrInvalid) || len(changes) != 1 || changes[0].Op != "delete" {
		t.Errorf("changes %v, error %v", changes, err)
	}
	if all := s.Status(t.Context()); len(all) != 2 {
		t.Errorf("%d sessions, want both", len(all))
	}
	changes, err = s.Sync(t.Context(), State{})
	if err != nil || len(changes) != 2 {
		t.Errorf("changes %v, error %v", changes, err)
	}
}

func TestDialCause(t *testing.T) {
	for _, tt := range []struct {
		err      error
		password string
		silent   time.Duration
		reply    replyKind
		reason   string
		detail   string
	}{
		{syscall.ECONNREFUSED, "", 0, unasked, reasonRefused, "start BGP on the switch"},
		{syscall.ENETUNREACH, "", 0, unsent, reasonNoRoute, "no route to 10.0.10.1"},
		{syscall.EHOSTUNREACH, "", 0, unsent, reasonNoNeighbour, "answers no ARP"},
		{syscall.EHOSTUNREACH, "", 0, rejected, reasonFiltered, "10.0.10.254 rejects the connection to 10.0.10.1 port 179"},
		{syscall.EADDRNOTAVAIL, "", 0, unasked, reasonNoLocalAddress, "10.0.10.11"},
		{syscall.ENOPROTOOPT, "", 0, unasked, reasonDial, "check the addresses"},
		{syscall.ETIMEDOUT, "", time.Second, unasked, reasonTimeout, "expects a password from 10.0.10.11, a filter drops TCP, or the address is wrong"},
		{os.ErrDeadlineExceeded, "", time.Minute, unanswered, reasonTimeout, "10.0.10.1 answers ARP, but 10.0.10.1 port 179 does not answer: the switch expects a password from 10.0.10.11, or a filter"},
		{os.ErrDeadlineExceeded, "s3cret", time.Second, unasked, reasonTimeout, "the password differs from the switch's, a filter drops TCP, or the address is wrong"},
		{os.ErrDeadlineExceeded, "s3cret", time.Second, unanswered, reasonTimeout, "answers neither with our password nor without one: the password differs from the switch's, a filter drops TCP, or the address is wrong"},
		{os.ErrDeadlineExceeded, "s3cret", time.Minute, unanswered, reasonTimeout, "10.0.10.1 answers ARP, but 10.0.10.1 port 179 answers neither with our password nor without one: the password differs from the switch's, or a filter"},
		{os.ErrDeadlineExceeded, "s3cret", time.Minute, accepted, reasonPasswordNotWanted, "no password for neighbour 10.0.10.11 as 65010, or no such neighbour"},
		{os.ErrDeadlineExceeded, "s3cret", time.Minute, refused, reasonRefused, "start BGP on the switch"},
		{os.ErrDeadlineExceeded, "s3cret", time.Minute, unsent, reasonTimeout, "does not answer: the password differs"},
	} {
		p := goodPeer().normal()
		p.Password = tt.password
		e := evidence{err: &net.OpError{Op: "dial", Net: "tcp", Err: tt.err}, silent: tt.silent, reply: reply{kind: tt.reply}}
		if tt.reply == rejected {
			e.reply.by = addr("10.0.10.254")
		}
		got := dialCause(p, e)
		if got.reason != tt.reason || !strings.Contains(got.detail, tt.detail) || !strings.ContainsAny(got.detail, ":;") || strings.Contains(got.detail, "s3cret") {
			t.Errorf("%v %v %s:\n got %+v\nwant %s: %s", tt.err, tt.silent, tt.reply, got, tt.reason, tt.detail)
		}
	}
	// More than one hop away, ARP says nothing of the switch.
	p := goodPeer().normal()
	p.MultihopTTL = 3
	if got := dialCause(p, evidence{err: os.ErrDeadlineExceeded, silent: time.Hour}); !strings.Contains(got.detail, "or a route is missing on the way there or back") || strings.Contains(got.detail, "ARP") {
		t.Errorf("got %+v", got)
	}
}

// A switch that does not answer is probed at once, and then rarely. A switch that answers is not probed.
func TestProbesAreRare(t *testing.T) {
	p, now := goodPeer().normal(), time.Now()
	p.Password = "s3cret"
	j := newJournal(p, now, func() {})
	if j.takeProbe(now) {
		t.Error("probed before any dial failed")
	}
	count := func(err error) (n int) {
		for range int(time.Hour / connectRetry) {
			j.dialFailed(err)
			if j.takeProbe(now) {
				n++
				if j.takeProbe(now.Add(time.Hour)) {
					t.Fatal("two probes at once")
				}
				j.probed(reply{kind: unanswered})
			}
			now = now.Add(connectRetry)
		}
		return n
	}
	if n := count(os.ErrDeadlineExceeded); n < 6 || n > 11 {
		t.Errorf("%d probes in an hour of silence", n)
	}
	if n := count(syscall.ECONNREFUSED); n != 0 {
		t.Errorf("%d probes of a switch that refuses", n)
	}
	j.dialFailed(os.ErrDeadlineExceeded)
	j.begun()
	if j.takeProbe(now.Add(time.Hour)) {
		t.Error("probed while a connection is there")
	}
	p.Password = ""
	j = newJournal(p, now, func() {})
	if n := count(os.ErrDeadlineExceeded); n != 0 {
		t.Errorf("%d probes that say no more than the dials", n)
	}
}

// A session that lasted is dialled again at once. A session that is lost at once is dialled again after pauses that
// grow. A switch that does not answer is dialled every few seconds.
func TestPausesBetweenDials(t *testing.T) {
	j, backoff := newJournal(goodPeer().normal(), time.Now(), func() {}), time.Duration(0)
	for _, tt := range []struct {
		lifetime    time.Duration
		least, most time.Duration
	}{
		{steady, 0, 0},
		{time.Second, time.Second, time.Second},
		{0, connectRetry * 3 / 4, connectRetry}, // this does not shorten the next pause
		{time.Second, 2 * time.Second, 2 * time.Second},
		{steady - 1, 4 * time.Second, 4 * time.Second},
		{steady, 0, 0},
		{time.Second, time.Second, time.Second},
	} {
		j.lifetime = tt.lifetime
		if got := j.wait(&backoff); got < tt.least || got > tt.most {
			t.Errorf("up for %v: pause %v, want %v to %v", tt.lifetime, got, tt.least, tt.most)
		}
	}
	for range 10 {
		if j.lifetime = time.Second; j.wait(&backoff) > maxBackoff {
			t.Errorf("pause %v", backoff)
		}
	}
}

func TestHardResetTellsWhatItStandsFor(t *testing.T) {
	for _, tt := range []struct {
		code, subcode uint8
		data          string
		want          string
		leaves        bool
	}{
		{6, 9, "\x06\x02", "the switch sent Cease, administrative shutdown: enable the neighbour on the switch", true},
		{6, 9, "\x06\x02\x04moveXX", `the switch sent Cease, administrative shutdown, saying "move": enable`, true},
		{6, 9, "\x06\x02\xffmove", `saying "move"`, true},
		{6, 9, "\x06\x02\x00", "shutdown: enable", true},
		{6, 9, "\x06\x03\x04move", "the switch sent Cease, peer de-configured: configure", true},
		{6, 9, "\x04\x00", "the switch heard nothing from 10.0.10.11", false},
		{6, 9, "\x06", "the switch sent Cease, hard reset:", false},
		{6, 9, "", "the switch sent Cease, hard reset:", false},
		{6, 2, "\x0btill\x1b[31m \xff8", `saying "till\x1b[31m \xff": enable`, true},
		{6, 4, "\x07upgrade", `administrative reset, saying "upgrade": nothing to do`, false},
	} {
		n := notificationOf(notification{tt.code, tt.subcode, []byte(tt.data)}.message()).inner()
		if got := receivedCause(goodPeer(), n); !strings.Contains(got.detail, tt.want) || n.leaves() != tt.leaves {
			t.Errorf("%d/%d %q: got %q, leaves %v; want %q, %v", tt.code, tt.subcode, tt.data, got.detail, n.leaves(), tt.want, tt.leaves)
		}
	}
}

func TestFreshness(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name string
		time time.Time
	}{
		{"never", time.Time{}}, {"2019", now.AddDate(-7, 0, 0)}, {"now", now}, {"a second later", now.Add(time.Second)},
		{"2155", now.AddDate(129, 0, 0)}, {"2300", now.AddDate(274, 0, 0)},
	} {
		if Freshness(tt.time) == 0 {
			t.Errorf("%s: 0 means none", tt.name)
		}
	}
	if Freshness(now) <= Freshness(now.Add(time.Second)) {
		t.Error("later is not lower")
	}
}

func TestDiffers(t *testing.T) {
	a := goodPeer().normal()
	if why := a.differs(goodPeer().normal()); why != "" {
		t.Errorf("same peer differs: %s", why)
	}
	b := a
	b.Name = "another"
	if why := a.differs(b); why != "" {
		t.Errorf("name: %s", why)
	}
	b.Password, b.HoldTime = "s3cret", 30*time.Second
	if got, want := a.differs(b), "another password, hold time 30s, was 1m30s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// docs/operations.md has a line for each reason, and for no other.
func TestReasonsAreDocumented(t *testing.T) {
	found := func(file, pattern string) (out []string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, part, _ := strings.Cut(string(text), "| `connecting`")
		if strings.HasSuffix(file, ".go") {
			part = string(text)
		} else {
			part, _, _ = strings.Cut("| `connecting`"+part, "\n\n")
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(part, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff(found("reason.go", `\n\treason\w+ += "(\w+)"`), found("../docs/operations.md", "(?m)^\\| `(\\w+)` ")); diff != "" {
		t.Errorf("reason.go and the table (-code +docs):\n%s", diff)
	}
	docs, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, lack := range found("reason.go", `\n\tlack\w+ += "(\w+)"`) {
		if !strings.Contains(string(docs), "\n| `"+lack+"` |") {
			t.Errorf("docs/operations.md has no line for %s", lack)
		}
	}
}

func TestConnects(t *testing.T) {
	p := Peer{Address: addr("10.0.0.1"), Port: 179, LocalAddress: addr("10.0.0.10")}
	p6 := Peer{Address: addr("fd00:10::1"), Port: 1790, LocalAddress: addr("fd00:10::10")}
	for _, tt := range []struct {
		line string
		peer Peer
		want bool
	}{ // of a machine with little-endian numbers
		{"   0: 0A00000A:A2C4 0100000A:00B3 01 00000000:00000000 02:000A7D8C 00000000     0        0 112233 2", p, true},
		{"   0: 0A00000A:A2C4 0100000A:00B3 08 00000000:00000000 02:000A7D8C 00000000     0        0 112233 2", p, false}, // CLOSE_WAIT
		{"   0: 0B00000A:A2C4 0100000A:00B3 01 00000000:00000000 02:000A7D8C 00000000     0        0 112233 2", p, false},
		{"   0: 0A00000A:A2C4 0100000A:06FE 01 00000000:00000000 02:000A7D8C 00000000     0        0 112233 2", p, false},
		{"   1: 0000000000000000FFFF00000A00000A:A2C4 0000000000000000FFFF00000100000A:00B3 01", p, true},
		{"   2: 100000FD000000000000000010000000:A2C4 100000FD000000000000000001000000:06FE 01", p6, true},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", p, false},
		{"", p, false},
	} {
		if got := connects(tt.line, tt.peer); got != tt.want {
			t.Errorf("%q: %v", tt.line, got)
		}
	}
}
