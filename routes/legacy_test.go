package routes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// legacyTable has what a blob can have: jumps forwards and back, a goto, a rule without a target, an empty chain, chains
// that end in our way, other matches and targets, and counters. PROTO is icmp or ipv6-icmp.
const legacyTable = `*filter
:INPUT DROP [11:1100]
:FORWARD DROP [22:2200]
:OUTPUT ACCEPT [33:3300]
:empty - [0:0]
:last - [0:0]
:first - [0:0]
[1:100] -A INPUT -i lo -j ACCEPT
[2:200] -A INPUT -p PROTO -j first
[3:300] -A INPUT -j last
[4:400] -A FORWARD -i docker0 -j first
[5:500] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[6:600] -A FORWARD -m comment --comment "only counts"
[7:700] -A FORWARD -o docker0 -g last
[8:800] -A FORWARD -p tcp -m tcp --dport 22 -m limit --limit 5/min -j LOG --log-prefix "ssh "
[9:900] -A FORWARD -j empty
[10:1000] -A OUTPUT -o docker0 -j last
[11:1100] -A last -p udp -m udp --dport 53 -j RETURN
[12:1200] -A last
[13:1300] -A first -j last
[14:1400] -A first -p tcp -m multiport --dports 80,443 -j DROP
COMMIT
`

// programs of legacy iptables, and packets of pods that legacyTable drops.
var legacyFamilies = map[string]struct {
	proto   string
	packets []Packet
	is6     bool
}{
	"iptables-legacy":  {"icmp", []Packet{fromPod, tunnel, podPackets()[5]}, false},
	"ip6tables-legacy": {"ipv6-icmp", []Packet{tcp("fd00:10:1::5", "ew0", "fd00:10:2::5", "eth0"), udp(tcp("fd00::12", "eth0", "fd00::11", ""), 8472)}, true},
}

// restore loads a table as iptables-restore reads it.
func (s *space) restore(program, table string) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run(program + "-restore -c " + file)
}

// saved is the filter table as iptables-save prints it with counters: the rules of others, and those of edgeway.
func (s *space) saved(program string) (others, ours string) {
	s.t.Helper()
	for line := range strings.Lines(s.run(program + "-save -c -t filter")) {
		switch {
		case strings.Contains(line, passageMark):
			ours += line
		case !strings.HasPrefix(line, "#"): // the time
			others += line
		}
	}
	return others, ours
}

// The rules of others, where they lead and what they counted stay as they were around the rules of edgeway. Without those,
// the table is byte for byte what it was.
func TestLegacyPassageLeavesTheRest(t *testing.T) {
	for program, f := range legacyFamilies {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.restore(program, strings.ReplaceAll(legacyTable, "PROTO", f.proto))
			before, _ := s.saved(program)
			blob := legacyRules(s)
			want := State{Passages: wanted(s, f.packets)}
			s.sync(passagesScope, want)
			if left := dropped(s, f.packets); len(left) > 0 {
				t.Errorf("still dropped:\n%s", strings.Join(left, "\n"))
			}
			others, ours := s.saved(program)
			if others != before {
				t.Errorf("before\n%s\nwith the rules of edgeway\n%s", before, others)
			}
			rules := `[0:0] -A INPUT -p udp -m udp --dport 8472 -m comment --comment "edgeway accepts: udp dport 8472" -j ACCEPT
[0:0] -A INPUT -s 10.0.0.1/32 -p tcp -m tcp --sport 179 --tcp-flags ACK ACK -m comment --comment "edgeway accepts: saddr 10.0.0.1/32 tcp sport 179 ack" -j ACCEPT
[0:0] -A FORWARD -s 10.10.1.0/24 -i ew+ -m comment --comment "edgeway accepts: in ew* saddr 10.10.1.0/24" -j ACCEPT
[0:0] -A FORWARD -d 10.10.1.0/24 -o ew+ -m comment --comment "edgeway accepts: out ew* daddr 10.10.1.0/24" -j ACCEPT
`
			if f.is6 {
				rules = `[0:0] -A INPUT -p udp -m udp --dport 8472 -m comment --comment "edgeway accepts: udp dport 8472" -j ACCEPT
[0:0] -A FORWARD -s fd00:10:1::/64 -i ew+ -m comment --comment "edgeway accepts: in ew* saddr fd00:10:1::/64" -j ACCEPT
[0:0] -A FORWARD -d fd00:10:1::/64 -o ew+ -m comment --comment "edgeway accepts: out ew* daddr fd00:10:1::/64" -j ACCEPT
`
			}
			if ours != rules {
				t.Errorf("rules of edgeway\n%s\nwant\n%s", ours, rules)
			}
			s.sync(passagesScope, State{})
			if others, ours := s.saved(program); others != before || ours != "" {
				t.Errorf("before\n%s\nafter\n%s%s", before, others, ours)
			}
			if after := legacyRules(s); after != blob {
				t.Errorf("before\n%s\nafter\n%s", blob, after)
			}
		})
	}
}

// Packets that were counted just before a change of edgeway's are counted after it.
func TestLegacyPassageForgetsNoCount(t *testing.T) {
	s := newSpace(t)
	s.run("iptables-legacy -P FORWARD DROP")
	s.run("iptables-legacy -A INPUT -i lo -p icmp")
	want := State{Passages: wanted(s, podPackets())}
	for range 3 {
		s.run("ping -c 1 127.0.0.1")
		s.sync(passagesScope, want)
		s.sync(passagesScope, State{})
	}
	s.contains("iptables-legacy-save -c -t filter", "[6:504] -A INPUT -i lo -p icmp")
}

// After a flush, a restore of a saved file and a restart of Docker, the rules are back, at the end of the chain.
func TestLegacyPassageAfterFlush(t *testing.T) {
	s := newSpace(t)
	docker := "iptables-legacy-restore " + filepath.Join("testdata", "firewall", "docker.iptables")
	s.run(docker)
	want := State{Passages: wanted(s, podPackets())}
	s.sync(passagesScope, want)
	file := filepath.Join(t.TempDir(), "saved")
	if err := os.WriteFile(file, []byte(s.run("iptables-legacy-save")), 0o600); err != nil {
		t.Fatal(err)
	}
	ruled := "iptables-legacy -S FORWARD"
	right := s.run(ruled)
	for _, tt := range []struct {
		command string
		want    string // the change that repairs it
	}{
		{"iptables-legacy -F FORWARD", "[add]"},
		{docker, "[add]"},
		{"iptables-legacy -D FORWARD -o ew+ -d 10.10.1.0/24 -m comment --comment COMMENT -j ACCEPT", "[replace]"},
		{"iptables-legacy -A FORWARD -d 10.10.3.6 -j DROP", "[replace]"},
		{"iptables-legacy -P FORWARD ACCEPT", "[]"},
		{"iptables-legacy-restore " + file, "[]"},
	} {
		before, err := s.k.Generation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		args := strings.Fields(tt.command)
		for i, a := range args {
			if a == "COMMENT" {
				args[i] = passageMark + "out ew* daddr 10.10.1.0/24"
			}
		}
		if out, err := s.exec(args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		if after, err := s.k.Generation(t.Context()); err != nil || after == before {
			t.Errorf("%s: generation %d, then %d, %v", tt.command, before, after, err)
		}
		var ops []string
		for _, c := range s.sync(passagesScope, want) {
			ops = append(ops, fmt.Sprint(c.Op))
		}
		if got := fmt.Sprint(ops); got != tt.want {
			t.Errorf("%s: changes %s, want %s", tt.command, got, tt.want)
		}
		rules := strings.Split(strings.TrimSpace(s.run(ruled)), "\n")
		if n := len(rules); n < 3 || !strings.Contains(rules[n-2], passageMark+"in ew*") || !strings.Contains(rules[n-1], passageMark+"out ew*") {
			t.Errorf("%s: rules\n%s", tt.command, strings.Join(rules, "\n"))
		}
	}
	if got := s.run(ruled); got != right {
		t.Errorf("got\n%s\nwant\n%s", got, right)
	}
}

// An administrator's rules that drop come first, and a chain that drops for others gets no rule of edgeway's.
func TestLegacyPassageBypassesNoRule(t *testing.T) {
	s := newSpace(t)
	s.run("iptables-legacy -P FORWARD DROP")
	s.run("iptables-legacy -A FORWARD -d 10.10.3.5 -j DROP")
	s.sync(passagesScope, State{Passages: wanted(s, podPackets())})
	to := func(dst string) int { return len(dropped(s, []Packet{tcp("10.10.1.5", "ew0", dst, "eth0")})) }
	if to("10.10.2.5") != 0 || to("10.10.3.5") != 1 {
		t.Errorf("dropped: %d, %d", to("10.10.2.5"), to("10.10.3.5"))
	}
	s.run("iptables-legacy -A FORWARD -j REJECT") // in place of the policy
	s.run("iptables-legacy -P FORWARD ACCEPT")
	if c := s.sync(passagesScope, State{Passages: wanted(s, podPackets())}); len(c) != 0 {
		t.Errorf("before the last rule they are right: %v", c)
	}
	s.run("iptables-legacy -F FORWARD")
	s.run("iptables-legacy -A FORWARD -j REJECT")
	if c := s.sync(passagesScope, State{Passages: wanted(s, podPackets())}); len(c) != 1 || to("10.10.2.5") != 0 {
		t.Errorf("changes %v, dropped %d", c, to("10.10.2.5"))
	}
	if rules := s.run("iptables-legacy -S FORWARD"); !strings.HasSuffix(rules, "-j REJECT --reject-with icmp-port-unreachable\n") {
		t.Errorf("the last rule is not the last one:\n%s", rules)
	}
	s.run("iptables-legacy -F FORWARD")
	s.run("iptables-legacy -N LOGDROP")
	s.run("iptables-legacy -A LOGDROP -j DROP")
	s.run("iptables-legacy -A FORWARD -d 10.10.3.5 -j LOGDROP")
	s.run("iptables-legacy -A FORWARD -j LOGDROP")
	if p := wanted(s, podPackets()); len(p) != 0 {
		t.Errorf("rules in a chain that drops for others: %v", p)
	}
}

// A table that does not exist is not made, also when a rule in it was wanted a moment ago.
func TestLegacyPassageMakesNoTable(t *testing.T) {
	s := newSpace(t)
	at := Place{unix.NFPROTO_IPV4, "filter", "FORWARD", true}
	want := Passage{Place: at, Accepts: []Accept{{In: true, Src: pfx("10.10.1.0/24")}}}
	if c := s.sync(passagesScope, State{Passages: []Passage{want}}); len(c) != 0 {
		t.Errorf("changes %v", c)
	}
	if err := s.k.setLegacy(t.Context(), Add, want); err != nil {
		t.Error(err)
	}
	s.lacks("cat /proc/thread-self/net/ip_tables_names", "filter")
	s.run("iptables-legacy -L")
	want.Place.Chain = "gone"
	if err := s.k.setLegacy(t.Context(), Add, want); err != nil {
		t.Error(err)
	}
	s.lacks("iptables-legacy-save", "edgeway")
}

// Without the lock of iptables nothing is changed: in a container that lacks it, and while another program holds it.
func TestLegacyPassageNeedsTheLock(t *testing.T) {
	s := newSpace(t)
	s.run("iptables-legacy -P FORWARD DROP")
	want := State{Passages: wanted(s, podPackets())}
	if len(want.Passages) != 1 {
		t.Fatalf("wanted %v", want)
	}
	unlock, err := s.k.lockXT(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.k.lockXT(short); !errors.Is(err, unix.EWOULDBLOCK) || !strings.Contains(err.Error(), "another program holds "+s.lock) {
		t.Errorf("error %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.k.Sync(t.Context(), passagesScope, want)
		done <- err
	}()
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.contains("iptables-legacy -S FORWARD", passageMark)
	if p := wanted(s, podPackets()); len(p) != 1 {
		t.Errorf("wanted %v", p)
	}

	old := -1 // iptables 1.4
	if err := s.lab.Do(func() (err error) {
		if old, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(old, &unix.SockaddrUnix{Name: "@xtables"})
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	short, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.k.lockXT(short); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
	unix.Close(old)

	s.k.xtLock = filepath.Join(t.TempDir(), "none")
	if p := wanted(s, podPackets()); len(p) != 1 {
		t.Errorf("the rules that are there are no longer wanted: %v", p)
	}
	s.sync(passagesScope, want)
	for range 2 {
		if _, err := s.k.Sync(t.Context(), passagesScope, State{}); err == nil || !strings.Contains(err.Error(), "delete rules in chain FORWARD") {
			t.Errorf("rules that cannot be deleted: %v", err)
		}
	}
	s.run("iptables-legacy -F")
	if p := wanted(s, podPackets()); len(p) != 0 || len(dropped(s, podPackets())) == 0 {
		t.Errorf("rules that cannot be written: %v", p)
	}
	if _, err := s.k.Sync(t.Context(), passagesScope, want); err == nil || !strings.Contains(err.Error(), "open "+s.k.xtLock+", the lock of iptables: no such file") {
		t.Errorf("error %v", err)
	}
}

// A program that ignores the lock has changed the table since edgeway read it. The kernel refuses edgeway's table.
func TestLegacyPassageOverwritesNobody(t *testing.T) {
	s := newSpace(t)
	s.run("iptables-legacy -P FORWARD DROP")
	want := wanted(s, podPackets())[0]
	var stale xtTable
	if err := s.k.eachTable(filters, func(found xtTable) { stale = found }); err != nil {
		t.Fatal(err)
	}
	s.run("iptables-legacy -A FORWARD -d 10.10.3.5 -j DROP")
	if err := inside(s.k.ns, func() error { return stale.set(Add, want) }); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("error %v", err)
	}
	if rules := s.run("iptables-legacy -S FORWARD"); !strings.Contains(rules, "10.10.3.5") || strings.Contains(rules, "edgeway") {
		t.Errorf("rules\n%s", rules)
	}
}

// A kernel without a match of iptables says so, and the table stays as it is.
func TestLegacyPassageNeedsTheMatches(t *testing.T) {
	s := newSpace(t)
	s.run("iptables-legacy -P FORWARD DROP")
	before := legacyRules(s)
	if err := s.k.eachTable(filters, func(found xtTable) {
		rule, err := found.entry(Accept{In: true})
		if err != nil {
			t.Fatal(err)
		}
		copy(rule[found.size+2:], "nothing") // for comment
		next, from, err := found.with(int(found.u32(56+4*int(Forward))), [][]byte{rule}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := found.replace(next, from); err == nil || absent(err) || !strings.Contains(err.Error(), "the kernel lacks a match") {
			t.Errorf("error %v", err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if after := legacyRules(s); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// While another program adds and deletes rules all the time, neither side loses one.
func TestLegacyPassageBesideIptables(t *testing.T) {
	const rounds = 60
	for program, f := range legacyFamilies {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			for _, command := range []string{"-P FORWARD DROP", "-N other", "-I FORWARD -j other"} {
				s.run(program + " " + command)
			}
			want := [2]State{{Passages: wanted(s, f.packets)}, {Passages: wanted(s, f.packets)}}
			if len(want[0].Passages) != 1 || len(want[0].Passages[0].accepts()) != 2 {
				t.Fatalf("wanted %v", want)
			}
			want[1].Passages[0].Accepts = want[1].Passages[0].accepts()[:1]
			s.sync(passagesScope, want[0])
			done := make(chan error, 1)
			go func() {
				for i := range rounds {
					rule := fmt.Sprintf("other -p tcp -m tcp --dport %d -j DROP", 1000+i)
					commands := []string{"-A " + rule}
					if i%2 != 0 {
						commands = append(commands, "-D "+rule)
					}
					for _, c := range commands {
						if out, err := s.exec(strings.Fields(program + " -w 60 " + c)...); err != nil {
							done <- fmt.Errorf("%s: %w: %s", c, err, out)
							return
						}
					}
				}
				done <- nil
			}()
			changes := 0
			for ends := false; !ends; {
				select {
				case err := <-done:
					if ends = true; err != nil {
						t.Error(err)
					}
				default:
				}
				// The program has lost no rule of edgeway's if there is one to replace each time.
				c, err := s.k.Sync(t.Context(), passagesScope, want[(changes+1)%2])
				if errors.Is(err, unix.EWOULDBLOCK) {
					continue // it had the lock for too long
				}
				if err != nil || len(c) != 1 || c[0].Op != Replace {
					t.Fatalf("round %d: changes %v, %v", changes, c, err)
				}
				changes++
			}
			rules := "-N other\n"
			for i := 0; i < rounds; i += 2 {
				rules += fmt.Sprintf("-A other -p tcp -m tcp --dport %d -j DROP\n", 1000+i)
			}
			if got := s.run(program + " -S other"); got != rules {
				t.Errorf("got\n%s\nwant\n%s", got, rules)
			}
			t.Logf("%d changes beside %d of %s", changes, rounds*3/2, program)
		})
	}
}

// sample is a table as the kernel has it: FORWARD with two rules, one of which jumps to a chain that jumps to the next.
func sample(f xtFamily) xtTable {
	t := xtTable{f, "filter", make([]byte, xtInfoBytes), nil}
	n := 0
	add := func(target string, data []byte) (at int) {
		e := append(make([]byte, f.size), xtPart(target, data)...)
		binary.NativeEndian.PutUint16(e[f.sizes:], uint16(f.size))
		binary.NativeEndian.PutUint16(e[f.sizes+2:], uint16(len(e)))
		at = len(t.blob)
		t.blob, n = append(t.blob, e...), n+1
		return at
	}
	standard := func(v int) int { return add("", binary.NativeEndian.AppendUint32(nil, uint32(int32(v)))) }
	chain := func(name string) { add("ERROR", append([]byte(name), make([]byte, 30-len(name))...)) }
	size := f.size + xtVerdict
	hook := standard(4 * size) // below the first chain's name, which is 3 entries on and longer
	first := standard(2 * size)
	policy := standard(-nfDrop - 1)
	chain("one")
	one := standard(0)
	standard(-5)
	chain("two")
	two := standard(-nfAccept - 1)
	standard(-5)
	chain("ERROR")
	set := func(at, to int) { binary.NativeEndian.PutUint32(t.verdict(t.blob[at:]), uint32(to)) }
	set(hook, one)
	set(first, policy) // a rule without a target
	set(one, two)
	for at, v := range map[int]int{32: 1 << Forward, 36 + 4*int(Forward): hook, 56 + 4*int(Forward): policy, 76: n, 80: len(t.blob)} {
		binary.NativeEndian.PutUint32(t.info[at:], uint32(v))
	}
	return t
}

// FuzzLegacyPassage: a table that edgeway does not understand is refused. In any other table the rules of edgeway leave
// the rest as it is, and the table without them is the one before, byte for byte.
func FuzzLegacyPassage(f *testing.F) {
	for _, fam := range xtFamilies() {
		s := sample(fam)
		f.Add(fam.family == unix.NFPROTO_IPV6, s.info, s.blob, uint8(2), uint8(0))
	}
	f.Fuzz(func(t *testing.T, is6 bool, info, blob []byte, at, also uint8) {
		fam := xtFamilies()[0]
		accept := Accept{In: true, Src: pfx("10.10.1.0/24"), Protocol: TCP, SrcPort: 179, Answers: true}
		if is6 {
			fam, accept.Src = xtFamilies()[1], pfx("fd00:10:1::/64")
		}
		before := xtTable{fam, "filter", append(make([]byte, 0, xtInfoBytes), info...), blob}
		before.info = append(before.info, make([]byte, max(0, xtInfoBytes-len(info)))...)
		starts, err := before.entries()
		if err != nil {
			if _, _, err := before.with(0, nil, nil); err == nil {
				t.Error("a table that is not understood is changed")
			}
			return
		}
		rule, err := fam.entry(accept)
		if err != nil {
			t.Fatal(err)
		}
		here := starts[int(at)%len(starts)]
		with, from, err := before.with(here, [][]byte{rule, rule}, nil)
		if err != nil || len(from) != len(starts)+2 {
			t.Fatalf("%d entries, then %d: %v", len(starts), len(from), err)
		}
		if n := bytes.Count(with.blob, []byte(passageMark)) - bytes.Count(blob, []byte(passageMark)); n != 2 {
			t.Errorf("%d rules of edgeway", n)
		}
		if again, _, err := with.with(-1, nil, []int{here, here + len(rule)}); err != nil || !bytes.Equal(again.blob, blob) || !bytes.Equal(again.info, before.info) {
			t.Errorf("before\n%x\n%x\nafter, %v\n%x\n%x", before.info, blob, err, again.info, again.blob)
		}
		// Any entries may go, if no policy is among them: what led to them leads to what follows.
		gone := starts[int(also)%len(starts)]
		for h := range 5 {
			if before.u32(32)&(1<<h) != 0 && int(before.u32(56+4*h)) == gone {
				return
			}
		}
		if gone != starts[len(starts)-1] {
			if _, _, err := before.with(here, [][]byte{rule}, []int{gone}); err != nil {
				t.Error(err)
			}
		}
	})
}

// BenchmarkLegacyPassage measures a change of edgeway's rules beside 5,000 rules, and a look at them.
func BenchmarkLegacyPassage(b *testing.B) {
	s := newSpace(b)
	table := "*filter\n:FORWARD DROP [0:0]\n:many - [0:0]\n-A FORWARD -j many\n"
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		table += fmt.Sprintf("-A many -s %v/32 -p tcp -m tcp --dport 80 -m comment --comment \"rule %d\" -j DROP\n", a, i)
	}
	s.restore("iptables-legacy", table+"COMMIT\n")
	want := State{Passages: wanted(s, podPackets())}
	b.Run("change", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			state := []State{want, {}}[i%2]
			if c, err := s.k.Sync(b.Context(), passagesScope, state); err != nil || len(c) != 1 {
				b.Fatal(c, err)
			}
		}
	})
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.k.Generation(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
