package bgp

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"

	api "github.com/osrg/gobgp/v3/api"
)

const (
	// learnEvery is how often a session that learns looks at what the switch has sent.
	learnEvery = 2 * time.Second
	// quietFor is how long a switch must have sent no UPDATE to count as having sent all it has,
	// where no End-of-RIB says so.
	quietFor = 8 * time.Second
	// learnMost bounds what one switch can make this process remember beside GoBGP's own table.
	learnMost = 10000
)

// LearnedPath is a path that a switch announces.
type LearnedPath struct {
	Path
	From netip.Addr // the switch
	// Kept: the session is down, or has just come back, and the switch has not said again what
	// it said before; its restart time is not over yet (RFC 4724, section 4.2).
	Kept bool
}

// Compare orders by prefix, then as they are to be preferred: a live session's before a kept one,
// the lower switch address before the higher.
func (p LearnedPath) Compare(other LearnedPath) int {
	kept := func(p LearnedPath) int {
		if p.Kept {
			return 1
		}
		return 0
	}
	return cmp.Or(p.Prefix.Compare(other.Prefix), cmp.Compare(kept(p), kept(other)), p.From.Compare(other.From), p.NextHop.Compare(other.NextHop))
}

// hearing is what a session knows of its switch's own paths. Its slices are never changed.
//
//	lost: told -> kept       back: told anew, kept stays       End-of-RIB, or the time is over: kept is dropped
type hearing struct {
	told  []LearnedPath // in this session
	kept  []LearnedPath // in the one before
	whole bool          // nothing that the switch wants known is missing in both

	session int       // number of the session, by its losses; -1: none
	all     bool      // the switch has told all it has in this session
	since   time.Time // since when it has not
	updates uint64    // messages received in this session
	quiet   time.Time // since when there was none
	looked  time.Time // last
	edition int       // grows with each change of paths or whole
}

func newHearing(since time.Time) hearing { return hearing{session: -1, since: since} }

// paths are the told ones and, of the others, the kept ones.
func (h hearing) paths() []LearnedPath {
	if len(h.kept) == 0 {
		return h.told
	}
	again := make(map[netip.Prefix]bool, len(h.told))
	for _, p := range h.told {
		again[p.Prefix] = true
	}
	out := slices.Clone(h.told)
	for _, p := range h.kept {
		if !again[p.Prefix] {
			p.Kept = true
			out = append(out, p)
		}
	}
	return out
}

// lost notes that the session ended.
func (h *hearing) lost(now time.Time) {
	if h.session >= 0 && h.all {
		h.since = now
	}
	h.kept, h.told, h.session, h.all = h.paths(), nil, -1, false
}

// forget drops what is kept: the switch has withdrawn it, or its time is over.
func (h *hearing) forget() { h.kept, h.whole = nil, true }

// listen sets what the session wants to learn.
func (t *talk) listen(prefixes []netip.Prefix) {
	if slices.Equal(t.learn, prefixes) {
		return
	}
	t.learn = prefixes
	t.heard.updates, t.heard.quiet, t.heard.looked = 0, time.Now(), time.Time{}
	t.poke()
}

// hear looks at what the switch has told so far. It reads the table only while it changes: a switch may
// send a hundred thousand paths.
func (t *talk) hear() {
	now, h, was := time.Now(), &t.heard, t.heard
	if len(t.learn) == 0 || now.Sub(h.looked) < learnEvery {
		return
	}
	h.looked = now
	session, up := t.journal.session()
	if h.session >= 0 && (!up || h.session != session) {
		h.lost(now)
	}
	if h.session < 0 && t.journal.takeFarewell() { // not before the session it belongs to has ended
		h.forget()
	}
	if up && t.offer.known {
		t.hearMore(session, now)
	}
	if !h.all && now.Sub(h.since) >= t.peer.RestartTime {
		h.forget()
	}
	if h.whole != was.whole || !slices.Equal(h.paths(), was.paths()) {
		h.edition++
	}
}

// hearMore reads what an established session has received.
func (t *talk) hearMore(session int, now time.Time) {
	h := &t.heard
	if h.session != session {
		h.session, h.updates, h.quiet = session, 0, now
	}
	if t.received.updates != h.updates {
		h.updates, h.quiet = t.received.updates, now
	}
	// GoBGP counts an UPDATE before it puts it into its table: read until all is quiet.
	if now.Sub(h.quiet) < quietFor {
		told, err := t.server.adjIn(t.peer, t.learn)
		if err != nil {
			return
		}
		h.told = told
	}
	if !h.all && t.received.all(t.offer, now.Sub(h.quiet)) {
		h.all = true
		h.forget()
	}
}

// received is what GoBGP counts of a session.
type received struct {
	updates    uint64
	eor4, eor6 bool // End-of-RIB of the family
}

// all reports whether the switch has sent all it has. GoBGP takes the End-of-RIB of a switch that
// itself restarts for received when it is not.
func (r received) all(o offer, quiet time.Duration) bool {
	if o.restart && !o.restarting && (r.eor4 || !o.ipv4) && (r.eor6 || !o.ipv6) {
		return true
	}
	// A switch that restarts sends nothing as long as it does not know its own paths.
	return quiet >= quietFor-learnEvery && (r.updates > 0 || !o.restart)
}

// adjIn lists what the switch has announced and not withdrawn of what lies within the prefixes,
// at most learnMost, the first ones in their order. Paths that have been through our autonomous
// system are left out (RFC 4271, section 9).
func (s *server) adjIn(p Peer, within []netip.Prefix) ([]LearnedPath, error) {
	var out []LearnedPath
	for _, family := range []*api.Family{ipv4, ipv6} {
		var lookups []*api.TableLookupPrefix
		for _, w := range within {
			if w.Addr().Is4() != (family == ipv4) {
				continue
			}
			lookup := &api.TableLookupPrefix{Prefix: w.String(), Type: api.TableLookupPrefix_LONGER}
			if w.Bits() == 0 {
				lookup.Type = api.TableLookupPrefix_EXACT
			}
			lookups = append(lookups, lookup)
		}
		if len(lookups) == 0 {
			continue
		}
		err := s.bgp.ListPath(context.Background(), &api.ListPathRequest{TableType: api.TableType_ADJ_IN, Name: p.Address.String(), Family: family, Prefixes: lookups},
			func(d *api.Destination) {
				for _, path := range d.Paths {
					if l, ok := learnedPath(p, d.Prefix, path); ok {
						out = append(out, l)
					}
				}
			})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, LearnedPath.Compare)
	out = slices.CompactFunc(out, func(a, b LearnedPath) bool { return a.Prefix == b.Prefix })
	return slices.Clip(out[:min(len(out), learnMost)]), nil
}

func learnedPath(p Peer, prefix string, path *api.Path) (LearnedPath, bool) {
	l := LearnedPath{From: p.Address}
	var err error
	if l.Prefix, err = netip.ParsePrefix(prefix); err != nil {
		return l, false
	}
	attrs, err := apiutil.GetNativePathAttributes(path)
	if err != nil {
		return l, false
	}
	for _, a := range attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			l.NextHop, _ = netip.AddrFromSlice(a.Value)
		case *bgp.PathAttributeMpReachNLRI:
			l.NextHop, _ = netip.AddrFromSlice(a.Nexthop)
		case *bgp.PathAttributeAsPath:
			for _, segment := range a.Value {
				if slices.Contains(segment.GetAS(), p.LocalASN) {
					return l, false
				}
			}
		}
	}
	l.Prefix, l.NextHop = l.Prefix.Masked(), l.NextHop.Unmap()
	return l, l.NextHop.IsValid() && l.NextHop.Is4() == l.Prefix.Addr().Is4()
}
