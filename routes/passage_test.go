package routes

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// passagesScope owns the rules of passages alone.
var passagesScope = Scope{Passages: Netfilter{}}

// podPackets are two connections of pods in each family, the tunnel's packet, and the answer of a switch.
func podPackets() []Packet {
	answer := Packet{Src: addr("10.0.0.1"), In: "eth0", Dst: addr("10.0.0.11"), Protocol: TCP, SrcPort: 179, DstPort: 40000, Reply: true}
	return []Packet{fromPod, toPod, tcp("fd00:10:1::5", "ew0", "fd00:10:2::5", "eth0"), tcp("fd00:10:2::5", "eth0", "fd00:10:1::5", "ew0"), tunnel, answer}
}

// wanted are the passages that policy wants: what stands in the way of each packet.
func wanted(s *space, packets []Packet) (out []Passage) {
	s.t.Helper()
	all, err := s.k.Judge(s.t.Context(), packets...)
	if err != nil {
		s.t.Fatal(err)
	}
	by := map[Place]*Passage{}
	var order []Place
	for i, findings := range all {
		for _, f := range findings {
			if !f.Passable() {
				continue
			}
			if by[f.Place] == nil {
				by[f.Place] = &Passage{Place: f.Place}
				order = append(order, f.Place)
			}
			p := by[f.Place]
			switch {
			case packets[i].Out != "":
				for _, cidr := range []string{"10.10.1.0/24", "fd00:10:1::/64"} {
					p.Accepts = append(p.Accepts, Accept{In: true, Src: pfx(cidr)}, Accept{Out: true, Dst: pfx(cidr)})
				}
			case packets[i].Protocol == UDP:
				p.Accepts = append(p.Accepts, Accept{Protocol: UDP, DstPort: 8472})
			default:
				p.Accepts = append(p.Accepts, Accept{Src: pfx("10.0.0.1/32"), Protocol: TCP, SrcPort: 179, Answers: true})
			}
		}
	}
	for _, at := range order {
		out = append(out, *by[at])
	}
	return out
}

// dropped are the hooks that drop packets, with what drops.
func dropped(s *space, packets []Packet) (out []string) {
	s.t.Helper()
	all, err := s.k.Judge(s.t.Context(), packets...)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, findings := range all {
		for _, f := range findings {
			if f.Outcome == Drops {
				out = append(out, fmt.Sprintf("%v to %v: %v", packets[i].Src, packets[i].Dst, f))
			}
		}
	}
	return out
}

// plain is a ruleset without numbers, and the tables of legacy iptables that exist.
func plain(s *space) string {
	text := regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(s.run("nft list ruleset"), "N")
	return text + legacyRules(s)
}

// legacyRules are the tables of legacy iptables, byte for byte but for the counters of traffic.
func legacyRules(s *space) (text string) {
	s.t.Helper()
	if err := s.k.eachTable(func(xtFamily, string) bool { return true }, func(t xtTable) {
		t.each(t.blob, func(_, _ int, e []byte) { clear(e[t.count:t.size]) })
		text += fmt.Sprintf("%s: %x %x%s\n", t.name, t.info, t.blob, strings.Repeat(", "+passageMark, bytes.Count(t.blob, []byte(passageMark))))
	}); err != nil {
		s.t.Fatal(err)
	}
	return text
}

// Each firewall as its program writes it: the rules of a passage let the packets through, and their program still lists
// its tables. A second Sync changes nothing. The rules of others stay as they were, and nothing is left at the end.
func TestPassage(t *testing.T) {
	for _, tt := range []struct {
		name, load string
		list       []string // what prints a table of iptables, and has our rules
		chains     int
	}{
		{"Docker", "iptables-restore docker.iptables", []string{"iptables -S FORWARD"}, 1},
		{"Docker, IPv6", "ip6tables-restore docker.ip6tables", []string{"ip6tables -S FORWARD"}, 1},
		{"ufw", "iptables-restore ufw.iptables", []string{"iptables -S FORWARD", "iptables -S INPUT", "iptables -L -nv", "iptables-save"}, 2},
		{"firewalld", "nft -f firewalld.nft", nil, 2},
		{"firewalld's iptables", "iptables-restore firewalld.iptables", []string{"iptables -S FWD_public"}, 1},
		{"by hand, two families", "nft -f hand.nft", nil, 4},
		{"Docker with legacy iptables", "iptables-legacy-restore docker.iptables", []string{"iptables-legacy -S FORWARD"}, 1},
		{"Docker with legacy iptables, IPv6", "ip6tables-legacy-restore docker.ip6tables", []string{"ip6tables-legacy -S FORWARD"}, 1},
		{"ufw with legacy iptables", "iptables-legacy-restore ufw.iptables", []string{"iptables-legacy -S FORWARD", "iptables-legacy -S INPUT", "iptables-legacy -L -nv", "iptables-legacy-save"}, 2},
		{"firewalld's legacy iptables", "iptables-legacy-restore firewalld.iptables", []string{"iptables-legacy -S FWD_public"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			f := strings.Fields(tt.load)
			f[len(f)-1] = filepath.Join("testdata", "firewall", f[len(f)-1])
			s.run(strings.Join(f, " "))
			before := plain(s)
			packets := podPackets()
			if len(dropped(s, packets)) == 0 {
				t.Fatal("the firewall drops nothing")
			}
			want := State{Passages: wanted(s, packets)}
			if len(want.Passages) != tt.chains {
				t.Errorf("%d chains, want %d: %v", len(want.Passages), tt.chains, want.Passages)
			}
			s.sync(passagesScope, want)
			if left := dropped(s, packets); len(left) > 0 {
				t.Errorf("still dropped:\n%s", strings.Join(left, "\n"))
			}
			if again := (State{Passages: wanted(s, packets)}); again.String() != want.String() {
				t.Errorf("wanted then %v\nand now     %v", want, again)
			}
			for _, list := range tt.list {
				if out := s.run(list); !strings.Contains(out, "edgeway accepts: ") {
					t.Errorf("%s has no rule of ours:\n%s", list, out)
				}
			}
			if s.sync(Scope{}, State{}); !strings.Contains(plain(s), passageMark) {
				t.Error("a Sync without the scope deleted the rules")
			}
			s.sync(passagesScope, State{})
			if after := plain(s); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// An administrator's rules that drop stay in force: those that were there before, those that are appended later, and those
// in a chain to which more than one rule leads.
func TestPassageBypassesNoRule(t *testing.T) {
	s := newSpace(t)
	s.run("iptables -P FORWARD DROP")
	s.run("iptables -A FORWARD -d 10.10.3.5 -j DROP")
	s.sync(passagesScope, State{Passages: wanted(s, podPackets())})
	to := func(dst string) []string { return dropped(s, []Packet{tcp("10.10.1.5", "ew0", dst, "eth0")}) }
	if len(to("10.10.2.5")) != 0 || len(to("10.10.3.5")) != 1 {
		t.Errorf("dropped: %v, %v", to("10.10.2.5"), to("10.10.3.5"))
	}
	s.run("iptables -A FORWARD -d 10.10.3.6 -j DROP")
	want := State{Passages: wanted(s, podPackets())}
	if c := s.sync(passagesScope, want); len(c) != 1 || c[0].Op != Replace {
		t.Errorf("the rules do not go to the end: %v", c)
	}
	if len(to("10.10.2.5")) != 0 || len(to("10.10.3.6")) != 1 {
		t.Errorf("dropped: %v, %v", to("10.10.2.5"), to("10.10.3.6"))
	}
	s.run("iptables -A FORWARD -j REJECT") // in place of the policy
	if c := s.sync(passagesScope, want); len(c) != 0 {
		t.Errorf("before the last rule they are right: %v", c)
	}
	s.run("iptables -F FORWARD")
	s.run("iptables -N LOGDROP")
	s.run("iptables -A LOGDROP -j DROP")
	s.run("iptables -A FORWARD -d 10.10.3.5 -j LOGDROP")
	s.run("iptables -A FORWARD -j LOGDROP")
	if p := wanted(s, podPackets()); len(p) != 0 {
		t.Errorf("rules in a chain that drops for others: %v", p)
	}
}

// The administrator shut pods off by a policy of firewalld's, by a rule of a zone, or in a chain whose name looks like
// firewalld's. edgeway wrote its rules into these chains, and so let the packets pass.
func TestPassageBypassesNoPolicyOfFirewalld(t *testing.T) {
	nft := func(chain string) []string {
		return []string{"nft -f FIREWALL/firewalld.nft", "nft add chain inet firewalld " + chain, "nft add rule inet firewalld " + chain + " drop",
			"nft insert rule inet firewalld filter_FWD_public ip daddr 10.10.2.0/24 jump " + chain}
	}
	iptables := func(from, chain string) []string {
		return []string{"iptables -N " + chain, "iptables -A " + chain + " -j DROP", "iptables -I " + from + " -d 10.10.2.0/24 -j " + chain}
	}
	restore := []string{"iptables-restore FIREWALL/firewalld.iptables"}
	for name, setup := range map[string][]string{
		"a policy":                 nft("filter_FWD_policy_apart"),
		"the last rule of a zone":  nft("filter_FWD_public_post"),
		"a policy of iptables":     append(restore, iptables("FWD_public", "FWD_apart")...),
		"a rule of a zone":         append(restore, "iptables -A FWD_public_deny -j DROP"),
		"another program's chains": append(iptables("FORWARD", "FWD_apart"), iptables("INPUT", "IN_apart")...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			for _, command := range setup {
				s.run(strings.ReplaceAll(command, "FIREWALL", filepath.Join("testdata", "firewall")))
			}
			if len(dropped(s, []Packet{fromPod})) != 1 {
				t.Fatal("the packet passes")
			}
			if p := wanted(s, []Packet{fromPod}); len(p) != 0 {
				t.Errorf("rules in a chain that drops for others: %v", p)
			}
		})
	}
}

// A flush takes our rules, and the next Sync puts them back. A chain that is gone is no error.
func TestPassageAfterFlush(t *testing.T) {
	s := newSpace(t)
	s.run("iptables -P FORWARD DROP")
	want := State{Passages: wanted(s, podPackets())}
	s.sync(passagesScope, want)
	s.run("iptables -F")
	if c := s.sync(passagesScope, want); len(c) != 1 || c[0].Op != Add {
		t.Errorf("changes: %v", c)
	}
	s.contains("iptables -S FORWARD", "edgeway accepts: in ew* saddr 10.10.1.0/24")
	saved := s.run("iptables-save")
	s.run("nft flush ruleset")
	if c := s.sync(passagesScope, want); len(c) != 0 {
		t.Errorf("changes without a chain: %v", c)
	}
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("iptables-restore " + file)
	if c := s.sync(passagesScope, want); len(c) != 0 {
		t.Errorf("the rules that iptables-restore wrote are not taken as ours: %v", c)
	}
}

// A table with an owner cannot be changed: the finding says so, and the error of a Sync names the cause.
func TestPassageInOwnedTable(t *testing.T) {
	s := newSpace(t)
	owner, err := dial(s.k.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(owner.close)
	const inet = unix.NFPROTO_INET
	err = owner.transact(
		nftMessageFor(inet, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE).attrString(unix.NFTA_TABLE_NAME, "firewalld").attr(unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, tableOwner}),
		nftMessageFor(inet, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE).attrString(unix.NFTA_CHAIN_TABLE, "firewalld").attrString(unix.NFTA_CHAIN_NAME, "filter_FORWARD").
			nest(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, func(m message) message {
				return m.attr(unix.NFTA_HOOK_HOOKNUM, []byte{0, 0, 0, byte(Forward)}).attr(unix.NFTA_HOOK_PRIORITY, make([]byte, 4))
			}).attrString(unix.NFTA_CHAIN_TYPE, "filter").attr(unix.NFTA_CHAIN_POLICY, make([]byte, 4)))
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.k.Judge(t.Context(), fromPod)
	if err != nil {
		t.Fatal(err)
	}
	if f := all[0][1]; f.Outcome != Drops || !f.Policy || !f.Owned || f.Passable() {
		t.Errorf("finding %+v", f)
	}
	want := State{Passages: []Passage{{Place: Place{Family: unix.NFPROTO_INET, Table: "firewalld", Chain: "filter_FORWARD"}, Accepts: []Accept{{In: true, Src: pfx("10.10.1.0/24")}}}}}
	if _, err := s.k.Sync(t.Context(), passagesScope, want); err == nil || !strings.Contains(err.Error(), "keeps it for itself; let the packets pass by the commands") {
		t.Errorf("error %v", err)
	}
}
