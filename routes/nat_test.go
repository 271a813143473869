package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

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
	for _, rule := range []string{"ip daddr @exclude4 return", "ip saddr @sources4 masquerade", "ip6 saddr @pods6 masquerade", "ip daddr 224.0.0.0/4 return"} {
		if !strings.Contains(squeeze(out), rule) {
			t.Errorf("no rule %q", rule)
		}
	}
	for range 2 {
		if err := s.k.AddMasq(t.Context(), addr("10.10.1.5")); err != nil {
			t.Fatal(err)
		}
	}
	want.NAT = &NAT{Sources: prefixes("10.20.0.0/16"), Exclude: prefixes("0.0.0.0/1", "128.0.0.0/1")}
	s.sync(scope, want)
	s.contains("nft list set inet edgeway pods4", "10.10.1.5")

	s.run("nft flush chain inet edgeway postrouting")
	s.sync(scope, want)
	s.contains("nft list chain inet edgeway postrouting", "ip saddr @sources4 masquerade")

	s.sync(scope, State{})
	s.contains("nft list set inet edgeway pods4", "10.10.1.5")
	s.lacks("nft list set inet edgeway sources4", "10.20")
	for range 2 {
		if err := s.k.DelMasq(t.Context(), addr("10.10.1.5")); err != nil {
			t.Fatal(err)
		}
	}
	s.sync(scope, State{})
	s.lacks("nft list ruleset", "edgeway")
	if err := s.k.DelMasq(t.Context(), addr("10.10.1.5")); err != nil {
		t.Fatal(err)
	}
	if err := s.k.AddMasq(t.Context(), addr("fd00::5")); err != nil {
		t.Fatal(err)
	}
	s.contains("nft list set inet edgeway pods6", "fd00::5")
}

func TestMasqueraded(t *testing.T) {
	s := newSpace(t)
	a := addr("10.10.1.5")
	want := func(what string, want bool) {
		t.Helper()
		if got, err := s.k.Masqueraded(t.Context(), a); err != nil || got != want {
			t.Errorf("%s: masqueraded %v, %v; want %v", what, got, err, want)
		}
	}
	want("no table", false)
	if err := s.k.AddMasqOutside(t.Context(), a, pfx("10.10.0.0/16")); err != nil {
		t.Fatal(err)
	}
	want("added", true)
	s.run("nft flush chain inet edgeway postrouting")
	want("rules flushed", false)
}

// A DEL may be killed at any point: its elements go together, and what it asks tells the next DEL
// whether they went. Each DEL asks, whether the pod was masqueraded or not.
func TestDelMasqIsWholeAndCheap(t *testing.T) {
	s := newSpace(t)
	for _, text := range []string{"10.10.1.5", "fd00::5"} {
		a, other := addr(text), addr(text).Next()
		if err := s.k.DelMasq(t.Context(), a); err != nil {
			t.Fatalf("without a table: %v", err)
		}
		for _, add := range []netip.Addr{a, other} {
			if err := s.k.AddMasqOutside(t.Context(), add, prefixes("10.10.0.0/16", "fd00::/64")...); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := s.k.DelMasq(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		// Somebody else's hand: half of it is found, too.
		if err := s.k.AddMasqOutside(t.Context(), a, prefixes("10.10.0.0/16", "fd00::/64")...); err != nil {
			t.Fatal(err)
		}
		s.run(fmt.Sprintf("nft delete element inet edgeway %s { %v }", podSet(natPods, a).Name, a))
		if err := s.k.DelMasq(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		sets := s.run("nft list table inet edgeway")
		if strings.Contains(sets, text) || strings.Count(sets, other.String()) != 2 {
			t.Errorf("after the end of %v: %s", a, sets)
		}
		if err := s.k.DelMasq(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeletingTheTableLosesNoPod: a transaction between the look and the deletion refuses it.
func TestDeletingTheTableLosesNoPod(t *testing.T) {
	s := newSpace(t)
	s.sync(Scope{NAT: true}, State{NAT: &NAT{Sources: prefixes("10.10.0.0/16")}})
	c, err := dial(s.k.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	seen, err := c.generation()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.k.AddMasq(t.Context(), addr("10.10.1.5")); err != nil {
		t.Fatal(err)
	}
	if err := c.deleteTable(seen); !errors.Is(err, unix.ERESTART) {
		t.Fatalf("delete after another transaction: %v, want ERESTART", err)
	}
	s.sync(Scope{NAT: true}, State{})
	s.contains("nft list set inet edgeway pods4", "10.10.1.5")
	if err := s.k.DelMasq(t.Context(), addr("10.10.1.5")); err != nil {
		t.Fatal(err)
	}
	s.sync(Scope{NAT: true}, State{})
	s.lacks("nft list ruleset", "edgeway")
}

// While a pod's DEL looks for its elements the daemon deletes the table that nobody needs any more:
// the DEL must not fail for that.
func TestDelMasqBesideTheTablesEnd(t *testing.T) {
	s := newSpace(t)
	a := addr("10.10.1.5")
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// So often does the table change under it that it may give up for this time, and says so.
			if _, err := s.k.Sync(t.Context(), Scope{NAT: true}, State{}); err != nil && !strings.Contains(err.Error(), "it is tried again by the next sync") {
				t.Error(err)
				return
			}
		}
	})
	for range 80 {
		if err := s.k.AddMasqOutside(t.Context(), a, pfx("10.10.0.0/16")); err != nil {
			t.Error(err)
			break
		}
		if err := s.k.DelMasq(t.Context(), a); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wait.Wait()
	s.sync(Scope{NAT: true}, State{})
	s.lacks("nft list ruleset", "edgeway")
}
