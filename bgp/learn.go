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
	// learnEvery is how often a session that learns reads what the switch has sent.
	learnEvery = 2 * time.Second
	// quietFor is how long a switch that sends no End-of-RIB must be silent before all its paths count
	// as received.
	quietFor = 8 * time.Second
	// learnMost bounds the paths that are learned from one switch.
	learnMost = 10000
)

// LearnedPath is a path that a switch announces.
type LearnedPath struct {
	Path
	From netip.Addr // the switch
	// Kept: the path is of an earlier session. The switch has not sent it again, and the restart time
	// is not over yet (RFC 4724, section 4.2).
	Kept bool
}

// Compare orders paths by prefix, then by preference: the path of a live session before a kept one, the
// lower switch address before the higher.
func (p LearnedPath) Compare(other LearnedPath) int {
	kept := func(p LearnedPath) int {
		if p.Kept {
			return 1
		}
		return 0
	}
	return cmp.Or(p.Prefix.Compare(other.Prefix), cmp.Compare(kept(p), kept(other)), p.From.Compare(other.From), p.NextHop.Compare(other.NextHop))
}

// hearing holds the switch's own paths. The contents of its slices never change.
//
//	session lost: told -> kept       session back: told grows, kept stays       End-of-RIB, or restart time over: kept is dropped
type hearing struct {
	told  []LearnedPath // in this session
	kept  []LearnedPath // in the one before
	whole bool          // told and kept together hold all paths of the switch

	session int       // number of the session, by its losses; -1: none
	all     bool      // the switch has sent all its paths in this session
	since   time.Time // since when it has not
	updates uint64    // UPDATEs received in this session
	quiet   time.Time // when the last one was noticed
	looked  time.Time // when hear last read
	edition int       // grows with each change of paths or whole
}

func newHearing(since time.Time) hearing { return hearing{session: -1, since: since} }

// paths returns the paths of this session, and those of earlier sessions whose prefix is not among them.
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

// lost records that the session ended.
func (h *hearing) lost(now time.Time) {
	if h.session >= 0 && h.all {
		h.since = now
	}
	h.kept, h.told, h.session, h.all = h.paths(), nil, -1, false
}

// forget drops the kept paths: the switch has withdrawn them, or their time is over.
func (h *hearing) forget() { h.kept, h.whole = nil, true }

// listen sets which prefixes the session learns.
func (t *talk) listen(prefixes []netip.Prefix) {
	if slices.Equal(t.learn, prefixes) {
		return
	}
	t.learn = prefixes
	t.heard.updates, t.heard.quiet, t.heard.looked = 0, time.Now(), time.Time{}
	t.poke()
}

// hear reads the switch's paths. It reads the table only while the table changes, as a switch may send a
// hundred thousand paths.
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
	if h.session < 0 && t.journal.takeFarewell() { // not before its session has ended
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

// hearMore reads the paths of an established session.
func (t *talk) hearMore(session int, now time.Time) {
	h := &t.heard
	if h.session != session {
		h.session, h.updates, h.quiet = session, 0, now
	}
	if t.received.updates != h.updates {
		h.updates, h.quiet = t.received.updates, now
	}
	// GoBGP counts an UPDATE before its paths are in the table: read until the switch has been quiet.
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

// received is what GoBGP counts in a session.
type received struct {
	updates    uint64
	eor4, eor6 bool // End-of-RIB of the family
}

// all reports whether the switch has sent all its paths. GoBGP's word on the End-of-RIB of a switch that
// itself restarts is not used: GoBGP counts it as received before it is.
func (r received) all(o offer, quiet time.Duration) bool {
	if o.restart && !o.restarting && (r.eor4 || !o.ipv4) && (r.eor6 || !o.ipv6) {
		return true
	}
	// A switch that restarts sends nothing until it knows its own paths.
	return quiet >= quietFor-learnEvery && (r.updates > 0 || !o.restart)
}

// adjIn lists the paths that the switch advertises within the given prefixes, sorted, and at most the
// first learnMost. It leaves out paths that have passed through our autonomous system (RFC 4271,
// section 9).
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
