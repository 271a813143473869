package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// masqOf is the Scope of a DEL: the masquerade of one address.
func masqOf(addrs ...netip.Addr) (s Scope) {
	for _, a := range addrs {
		s.Masq = append(s.Masq, netip.PrefixFrom(a, a.BitLen()))
	}
	return s
}

func TestNAT(t *testing.T) {
	s := newSpace(t)
	scope := Scope{NAT: true}
	s.sync(scope, State{})
	want := State{NAT: &NAT{
		Sources: prefixes("10.10.0.0/24", "10.10.1.0/24", "fd00:10::/48"),
		Exclude: prefixes("10.0.0.0/8", "192.168.0.0/16", "fd00::/8"),
	}}
	s.sync(scope, want)
	out := s.run("nft list table inet edgeway")
	for _, rule := range []string{"ip daddr @exclude4 return", "ip saddr @sources4 masquerade", "ip daddr 224.0.0.0/4 return", "ip6 saddr . ip6 daddr @kept6 return"} {
		if !strings.Contains(squeeze(out), rule) {
			t.Errorf("the table has no rule %q", rule)
		}
	}
	s.lacks("nft list table inet edgeway", "chain pods")
	pod := State{Masq: []Masq{{Addr: addr("10.10.1.5")}}}
	s.sync(Scope{}, pod)
	want.NAT = &NAT{Sources: prefixes("10.20.0.0/16"), Exclude: prefixes("0.0.0.0/1", "128.0.0.0/1")}
	s.sync(scope, want)
	s.contains("nft list set inet edgeway pods4", "10.10.1.5")

	s.run("nft flush chain inet edgeway postrouting")
	s.sync(scope, want)
	s.contains("nft list chain inet edgeway postrouting", "ip saddr @sources4 masquerade")

	s.sync(scope, State{})
	s.quiet(Scope{}, pod)
	s.lacks("nft list set inet edgeway sources4", "10.20")
	s.lacks("nft list table inet edgeway", "chain postrouting")
	s.sync(masqOf(addr("10.10.1.5")), State{})
	s.quiet(scope, State{})
	s.sync(Scope{NAT: true, Masq: Everywhere()}, State{})
	s.lacks("nft list ruleset", "edgeway")
	s.quiet(masqOf(addr("10.10.1.5")), State{})

	s.sync(scope, want)
	s.sync(scope, State{})
	s.lacks("nft list ruleset", "edgeway")
	s.sync(Scope{}, State{Masq: []Masq{{Addr: addr("fd00::5")}}})
	s.contains("nft list set inet edgeway pods6", "fd00::5")
}

// Sync repairs a damaged masquerade, and reads networks back unchanged.
func TestMasq(t *testing.T) {
	s := newSpace(t)
	for _, text := range []string{"10.10.1.5", "fd00::5"} {
		a := addr(text)
		want := State{Masq: []Masq{{a, prefixes("10.10.0.0/16", "fd00::/64", "172.16.0.0/12")}}}
		s.sync(Scope{}, want)
		for _, damage := range []string{
			"flush chain inet edgeway pods", "delete chain inet edgeway pods", "delete table inet edgeway",
			fmt.Sprintf("delete element inet edgeway %s { %v }", podSet(natPods, a).Name, a), "flush set inet edgeway " + podSet(natKept, a).Name,
		} {
			s.run("nft " + damage)
			if changes := s.sync(Scope{}, want); len(changes) != 1 {
				t.Errorf("after %s: %v", damage, texts(changes))
			}
		}
		got, err := s.k.Observe(t.Context(), Scope{Masq: Everywhere()}, State{})
		if err != nil {
			t.Fatal(err)
		}
		networks := Masq{a, want.Masq[0].Networks}.networks()
		if len(got.Masq) != 1 || got.Masq[0].Addr != a || !samePrefixes(got.Masq[0].Networks, networks) {
			t.Errorf("read back %v, want %v outside of %v", got.Masq, a, networks)
		}
		s.quiet(Scope{}, State{Masq: []Masq{{Addr: a}}}) // any networks
		want.Masq[0].Networks = prefixes("192.168.0.0/16", "fd01::/64")
		s.sync(Scope{}, want)
		s.sync(Scope{Masq: Everywhere()}, State{})
	}
}

// A transaction of which the kernel refuses one request changes nothing, and says why.
func TestMasqTransactionIsWhole(t *testing.T) {
	s := newSpace(t)
	a := addr("10.10.1.5")
	s.sync(Scope{}, State{Masq: []Masq{{Addr: a.Next()}}}) // makes the table
	c, err := s.k.netfilter()
	if err != nil {
		t.Fatal(err)
	}
	add := func(set string) message {
		return elementMessage(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set, element{key: a.AsSlice()})
	}
	good, bad := podSet(natPods, a).Name, "none"
	for _, order := range [][]message{{add(good), add(bad)}, {add(bad), add(good)}, {add(bad)}} {
		if err := c.transact(order...); !errors.Is(err, unix.ENOENT) {
			t.Errorf("got %v, want ENOENT", err)
		}
		if there, err := s.k.hasElement(natPods, a, a.AsSlice()); there || err != nil {
			t.Errorf("half of a transaction is there: %v, %v", there, err)
		}
	}
	if err := c.transact(add(good), add(good)); err != nil { // an element that exists is not an error
		t.Error(err)
	}
	if there, err := s.k.hasElement(natPods, a, a.AsSlice()); !there || err != nil {
		t.Errorf("got %v, %v", there, err)
	}
}

// A DEL may be killed at any point. It deletes all elements of the address together, so the next DEL can see
// whether the elements are deleted. Each DEL looks, whether the pod was masqueraded or not.
func TestMasqEndsAsAWhole(t *testing.T) {
	s := newSpace(t)
	for _, text := range []string{"10.10.1.5", "fd00::5"} {
		a, other := addr(text), addr(text).Next()
		networks := prefixes("10.10.0.0/16", "fd00::/64")
		s.sync(masqOf(a), State{}) // without a table, or without the address in the table
		s.sync(Scope{}, State{Masq: []Masq{{a, networks}, {other, networks}}})
		s.sync(masqOf(a), State{})
		// If somebody deleted one element, the DEL still finds the other elements.
		s.sync(Scope{}, State{Masq: []Masq{{a, networks}}})
		s.run(fmt.Sprintf("nft delete element inet edgeway %s { %v }", podSet(natPods, a).Name, a))
		s.sync(masqOf(a), State{})
		sets := s.run("nft list table inet edgeway")
		if strings.Contains(sets, text) || strings.Count(sets, other.String()) != 2 {
			t.Errorf("after the end of %v: %s", a, sets)
		}
		s.sync(masqOf(other), State{})
	}
}

// Running pods keep the masquerade of a table of version 1 after an upgrade of the daemon, or of the plugin
// alone.
func TestUpgradeKeepsMasquerade(t *testing.T) {
	const old = `add table inet edgeway
		add set inet edgeway sources4 { type ipv4_addr; flags interval; }
		add set inet edgeway exclude4 { type ipv4_addr; flags interval; }
		add set inet edgeway pods4 { type ipv4_addr; }
		add set inet edgeway kept4 { type ipv4_addr . ipv4_addr; flags interval; }
		add set inet edgeway sources6 { type ipv6_addr; flags interval; }
		add set inet edgeway exclude6 { type ipv6_addr; flags interval; }
		add set inet edgeway pods6 { type ipv6_addr; }
		add set inet edgeway kept6 { type ipv6_addr . ipv6_addr; flags interval; }
		add chain inet edgeway postrouting { type nat hook postrouting priority srcnat; }
		add rule inet edgeway postrouting ip daddr @pods4 return comment "edgeway 1/1"
		add rule inet edgeway postrouting ip saddr . ip daddr @kept4 return comment "edgeway 1/2"
		add rule inet edgeway postrouting ip saddr @pods4 masquerade comment "edgeway 1/3"
		add element inet edgeway pods4 { 10.10.1.5 }
		add element inet edgeway kept4 { 10.10.1.5 . 10.10.0.0/16 }`
	pod := State{Masq: []Masq{{addr("10.10.1.5"), prefixes("10.10.0.0/16")}}}
	for _, tt := range []struct {
		name    string
		scope   Scope
		desired State
		rules   bool // the new chain must have its rules
	}{
		{"the daemon, without source NAT", Scope{NAT: true}, State{}, true},
		{"the daemon, with source NAT", Scope{NAT: true}, State{NAT: &NAT{Sources: prefixes("10.20.0.0/16")}}, true},
		{"another pod's ADD, without a daemon", Scope{}, State{Masq: []Masq{{Addr: addr("10.10.1.6")}}}, true},
		{"another pod's DEL, without a daemon", masqOf(addr("10.10.1.6")), State{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSpace(t)
			for line := range strings.Lines(old) {
				s.nft(line)
			}
			s.sync(tt.scope, tt.desired)
			s.contains("nft list set inet edgeway pods4", "10.10.1.5")
			s.contains("nft list set inet edgeway kept4", "10.10.1.5 . 10.10.0.0/16")
			chain := "postrouting"
			if tt.rules {
				chain = "pods"
				s.quiet(Scope{}, pod)
			}
			s.contains("nft list chain inet edgeway "+chain, "ip saddr @pods4 masquerade")
			s.sync(masqOf(addr("10.10.1.5")), State{})
			s.lacks("nft list table inet edgeway", "10.10.1.5")
		})
	}
}

// nft runs one command line, with its quotes and braces.
func (s *space) nft(line string) {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "nft")
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run("nft -f " + path)
}

// TestDeletingTheTableLosesNoPod: the daemon ends its source NAT while pods start and end. Each pod that was
// added must have its masquerade afterwards, and neither the daemon nor a pod may fail because of the other.
func TestDeletingTheTableLosesNoPod(t *testing.T) {
	s := newSpace(t)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			want := State{}
			if n%2 == 0 {
				want.NAT = &NAT{Sources: prefixes("10.20.0.0/16")}
			}
			if _, err := s.k.Sync(t.Context(), Scope{NAT: true}, want); err != nil {
				t.Error(err)
				return
			}
		}
	})
	k, err := OpenNetns(s.f) // as another process
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for i := range 80 {
		a := netip.AddrFrom4([4]byte{10, 10, 1, byte(i)})
		want := State{Masq: []Masq{{a, prefixes("10.10.0.0/16")}}}
		if _, err := k.Sync(t.Context(), Scope{}, want); err != nil {
			t.Fatal(err)
		}
		got, err := k.Observe(t.Context(), Scope{}, want)
		if diff := cmp.Diff(want.Masq, got.Masq, cmp.Comparer(func(x, y netip.Prefix) bool { return x == y }), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); err != nil || diff != "" {
			t.Fatalf("pod %v: %v, %s", a, err, diff)
		}
		if i%8 != 0 {
			continue
		}
		// After this, only the daemon uses the table, so the table may be deleted at any moment.
		if _, err := k.Sync(t.Context(), Scope{NAT: true, Masq: Everywhere()}, State{}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wait.Wait()
}
