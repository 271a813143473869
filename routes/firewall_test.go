package routes

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tcp is the first packet of a connection from a pod to a pod of another node, or back if out is empty.
func tcp(src, in, dst, out string) Packet {
	return Packet{Src: addr(src), In: in, Dst: addr(dst), Out: out, Protocol: unix.IPPROTO_TCP, SrcPort: 40000, DstPort: 8080}
}

func udp(p Packet, port uint16) Packet {
	p.Protocol, p.DstPort = unix.IPPROTO_UDP, port
	return p
}

func ping(p Packet) Packet {
	p.Protocol = unix.IPPROTO_ICMP
	return p
}

// fromPod goes out to another node's pod, toPod comes in from there, and tunnel ends on this machine.
var (
	fromPod = tcp("10.10.1.5", "ew0", "10.10.2.5", "eth0")
	toPod   = tcp("10.10.2.5", "eth0", "10.10.1.5", "ew0")
	tunnel  = udp(tcp("10.0.0.12", "eth0", "10.0.0.11", ""), 8472)
)

func TestJudge(t *testing.T) {
	reply := fromPod
	reply.Reply = true
	for _, tt := range []struct {
		name, load string
		packet     Packet
		want       string // all findings, without the numbers of rules
		policy     bool
	}{
		{"no firewall", "", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"Docker", "iptables-restore docker.iptables", fromPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"Docker, from outside", "iptables-restore docker.iptables", toPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"Docker's container", "iptables-restore docker.iptables", tcp("172.17.0.2", "docker0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; chain ip nat POSTROUTING of nftables, rule with handle N: masquerade (0 packets so far)", false},
		{"Docker's tunnel", "iptables-restore docker.iptables", tunnel, "prerouting: accepts; input: accepts", false},
		{"Docker with legacy iptables", "iptables-legacy-restore docker.iptables", fromPod, "prerouting: accepts; chain FORWARD of iptables-legacy -t filter, policy drop; postrouting: accepts", true},
		{"Docker's container with legacy iptables", "iptables-legacy-restore docker.iptables", tcp("172.17.0.2", "docker0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; chain POSTROUTING of iptables-legacy -t nat, rule N: masquerade (0 packets so far)", false},
		{"ufw", "iptables-restore ufw.iptables", fromPod, "prerouting: accepts; chain ip filter FORWARD of nftables, policy drop; postrouting: accepts", true},
		{"ufw lets echo requests pass", "iptables-restore ufw.iptables", ping(fromPod), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"ufw and the tunnel", "iptables-restore ufw.iptables", tunnel, "prerouting: accepts; chain ip filter INPUT of nftables, policy drop", true},
		{"ufw with legacy iptables", "iptables-legacy-restore ufw.iptables", tunnel, "prerouting: accepts; chain INPUT of iptables-legacy -t filter, policy drop", true},
		{"ufw with legacy iptables lets echo requests pass", "iptables-legacy-restore ufw.iptables", ping(fromPod), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld", "nft -f firewalld.nft", fromPod, "prerouting: accepts; chain inet firewalld filter_FWD_public of nftables, rule with handle N: reject; postrouting: accepts", true},
		{"firewalld's trusted zone", "nft -f firewalld.nft", tcp("10.10.1.5", "trust0", "10.10.2.5", "eth0"), "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld and an answer", "nft -f firewalld.nft", reply, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"firewalld and the tunnel", "nft -f firewalld.nft", tunnel, "prerouting: accepts; chain inet firewalld filter_IN_public of nftables, rule with handle N: reject", true},
		{"firewalld's iptables", "iptables-restore firewalld.iptables", toPod, "prerouting: accepts; chain ip filter FWD_public of nftables, rule with handle N: reject (0 packets so far); postrouting: accepts", true},
		{"firewalld's legacy iptables", "iptables-legacy-restore firewalld.iptables", toPod, "prerouting: accepts; chain FWD_public of iptables-legacy -t filter, rule N: reject (0 packets so far); postrouting: accepts", true},
		{"a set", "nft -f plain.nft", tcp("10.10.1.5", "ew0", "10.10.3.7", "eth0"), `prerouting: accepts; chain inet guard forward of nftables, rule with handle N ("block list"): drop (0 packets so far); chain inet guard post of nftables, rule with handle N: masquerade`, false},
		{"a masquerade", "nft -f plain.nft", tcp("10.10.1.5", "ew0", "10.10.4.7", "eth0"), "prerouting: accepts; forward: accepts; chain inet guard post of nftables, rule with handle N: masquerade", false},
		{"a masquerade with an exception", "nft -f plain.nft", fromPod, "prerouting: accepts; forward: accepts; postrouting: accepts", false},
		{"a service", "nft -f plain.nft", Packet{Src: addr("10.10.1.5"), In: "ew0", Dst: addr("10.96.0.1"), Out: "eth0", Protocol: unix.IPPROTO_TCP, DstPort: 443}, "prerouting: accepts; chain ip kube forward of nftables, rule with handle N: drop; chain inet guard post of nftables, rule with handle N: masquerade", false},
		{"a rate", "nft -f plain.nft", tcp("10.10.1.66", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a rate that a chain returns at", "nft -f plain.nft", tcp("10.10.1.70", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard flood of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a rate that a chain goes on at", "nft -f plain.nft", tcp("10.10.1.71", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard calm of nftables, rule with handle N: drop, depending on limit; postrouting: accepts", false},
		{"a mark by a rate", "nft -f plain.nft", tcp("10.10.1.72", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop, depending on a mark, or something else that is not in the packet; postrouting: accepts", false},
		{"a mark", "nft -f plain.nft", tcp("10.10.1.68", "ew0", "10.10.2.5", "eth0"), "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: drop; postrouting: accepts", false},
		{"a port", "nft -f plain.nft", Packet{Src: addr("10.10.1.5"), In: "ew0", Dst: addr("10.10.2.5"), Out: "eth0", Protocol: unix.IPPROTO_TCP, DstPort: 6005}, "prerouting: accepts; chain inet guard forward of nftables, rule with handle N: reject; postrouting: accepts", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			if tt.load != "" {
				f := strings.Fields(tt.load)
				f[len(f)-1] = filepath.Join("testdata", "firewall", f[len(f)-1])
				s.run(strings.Join(f, " "))
			}
			all, err := s.k.Judge(t.Context(), tt.packet)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			policy, program := false, ""
			for _, f := range all[0] {
				text := f.String()
				if f.Handle != 0 {
					policyless := f
					policyless.Handle = 7
					text = strings.NewReplacer("handle 7", "handle N", "rule 7", "rule N").Replace(policyless.String())
				}
				got = append(got, text)
				policy = policy || f.Policy && f.Outcome == Drops
				if f.Outcome == Drops {
					program = f.Program
				}
			}
			if tt.policy != (program != "") || !strings.HasPrefix(tt.name, program) {
				t.Errorf("the program is %q", program)
			}
			if g := strings.Join(got, "; "); g != tt.want || policy != tt.policy {
				t.Errorf("got  %s, policy %v\nwant %s, policy %v", g, policy, tt.want, tt.policy)
			}
		})
	}
}

// A firewall's generation changes with each rule, and a look changes nothing: neither nftables nor the tables of
// legacy iptables, which exist from the first question about them.
func TestJudgeChangesNothing(t *testing.T) {
	s := newSpace(t)
	before, err := s.k.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.k.Judge(t.Context(), fromPod, tunnel); err != nil {
		t.Fatal(err)
	}
	if after, err := s.k.Generation(t.Context()); err != nil || after != before {
		t.Errorf("generation %d, then %d, %v", before, after, err)
	}
	s.lacks("cat /proc/thread-self/net/ip_tables_names", "filter")
	s.nft("add table inet other")
	if after, err := s.k.Generation(t.Context()); err != nil || after == before {
		t.Errorf("generation %d, then %d, %v", before, after, err)
	}
}

// FuzzLegacy: a blob of legacy iptables that the kernel would never write must not crash the reader.
func FuzzLegacy(f *testing.F) {
	f.Add(make([]byte, 400), uint32(4))
	logs := make([]byte, 152) // a policy that only logs: no verdict
	logs[88], logs[90] = 112, 152
	copy(logs[114:], "LOG")
	f.Add(logs, uint32(4))
	f.Fuzz(func(t *testing.T, blob []byte, hooks uint32) {
		for _, fam := range xtFamilies() {
			info := make([]byte, xtInfoBytes)
			info[32] = byte(hooks)
			r := &reader{legacy: map[Place][]fwRule{}, names: map[Place]bool{}}
			r.addLegacy(fam, "filter", info, blob)
			_, _ = judge(r, fromPod)
		}
	})
}
