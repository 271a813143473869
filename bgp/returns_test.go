package bgp

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// FRR sends back what it keeps. One path is filtered there; the user sees which one.
func TestSwitchKeepsFewerRoutesThanSent(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	sw := l.router("frr", 1)
	sw.start(nodeOf(sw))
	sw.configure("ip prefix-list IN seq 5 deny 10.100.1.0/24", "ip prefix-list IN seq 10 permit any",
		"router bgp 65000", "address-family ipv4 unicast", "neighbor 10.0.0.10 prefix-list IN in")
	s := l.speaker(t)
	session := Session{Peer: peerOf(sw), Paths: pods(3), Sole: true}
	mustSync(t, s, session)
	lack := func() (Lack, error) {
		st := s.Status(t.Context())[0]
		if len(st.Lacks) == 0 {
			return Lack{}, errors.New("lacks nothing")
		}
		return st.Lacks[0], nil
	}
	var got Lack
	waitFor(t, returnsFor+patience, func() (err error) { got, err = lack(); return err })
	if got.Reason != lackPaths || !strings.Contains(got.Detail, "but not 10.100.1.0/24: look for an inbound filter") {
		t.Errorf("%+v", got)
	}
	sw.configure("router bgp 65000", "address-family ipv4 unicast", "no neighbor 10.0.0.10 prefix-list IN in")
	sw.ask("clear bgp ipv4 unicast 10.0.0.10 soft in")
	eventually(t, func() error {
		if got, err := lack(); err == nil {
			return errors.New("still " + got.Detail)
		}
		return nil
	})
}

func TestReturns(t *testing.T) {
	now := time.Now()
	later := now.Add(returnsFor)
	peer := Peer{ASN: 65002, LocalASN: 65010}
	both := offer{ipv4: true, ipv6: true, refresh: true}
	paths := pods(3) // each an IPv4 and an IPv6 path
	from := func(asPath ...uint32) func(i ...int) update {
		return func(i ...int) (u update) {
			u.asPath = asPath
			for _, i := range i {
				u.reach = append(u.reach, paths[i].Prefix)
			}
			return u
		}
	}
	ours := from(65002, 65010)
	for _, tt := range []struct {
		name    string
		offer   offer
		updates []update
		want    string
	}{
		{"none comes back", both, nil, ""},
		{"all come back", both, []update{ours(0, 1, 2, 3, 4, 5)}, ""},
		{"one stays away", both, []update{ours(0, 1, 3, 4, 5)}, "10.100.1.0/24"},
		{"one is withdrawn", both, []update{ours(0, 1, 2, 3, 4, 5), {gone: ours(2).reach}}, "10.100.1.0/24"},
		{"one is the switch's own", both, []update{ours(0, 1, 2, 3, 4, 5), from(65002)(2)}, "10.100.1.0/24"},
		{"prepended", both, []update{from(65002, 65002, 65010)(0, 4)}, "10.100.1.0/24"},
		{"by another AS", both, []update{from(65002, 65003, 65010)(0, 4)}, ""},
		{"IPv6 never comes back", both, []update{ours(0, 2, 4)}, ""},
		{"IPv6 is not activated", offer{ipv4: true}, []update{ours(0, 2)}, "10.100.2.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r returns
			r.ask(true, false, true, paths, now)
			r.begin(now)
			for _, u := range tt.updates {
				r.update(peer, u, now)
			}
			if r.tick(tt.offer, later.Add(-time.Second)) {
				t.Error("too early:", r.lack())
			}
			got := r.tick(tt.offer, later)
			if got != (tt.want != "") || !strings.Contains(r.lack(), tt.want) {
				t.Errorf("%v, %q; want %q", got, r.lack(), tt.want)
			}
		})
	}

	t.Run("another speaker", func(t *testing.T) {
		var r returns
		r.ask(true, false, true, paths, now)
		r.begin(now)
		r.update(peer, ours(0, 4), now)
		r.ask(false, true, true, paths, now) // what comes back may be the other speaker's
		if r.tick(both, later) {
			t.Error(r.lack())
		}
		if r.ask(true, true, false, paths, later) || r.tick(both, later.Add(returnsFor)) {
			t.Error("judged by paths that were not read", r.lack())
		}
		if !r.ask(true, true, true, paths[:4], later) {
			t.Error("the switch was not asked to send its paths again")
		}
	})
}
