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

// Learned returns what the switches announce of that which the sessions want to learn, sorted.
// They are what the wire says: whether they make sense is the caller's to decide. None is told to
// another switch.
//
// As long as complete is false there may be paths of an earlier process that a switch has not
// repeated yet: a caller that finds such routes must not delete them. It is true at the latest
// when the restart time of each session is over.
func (s *Speaker) Learned(ctx context.Context) (paths []LearnedPath, complete bool) {
	s.mu.Lock()
	complete = s.synced
	s.mu.Unlock()
	for _, session := range s.all() {
		session.mu.Lock()
		h := session.heard
		wanted := len(session.learn) > 0
		session.mu.Unlock()
		if wanted {
			paths = append(paths, h.paths()...)
			complete = complete && h.whole
		}
	}
	slices.SortFunc(paths, LearnedPath.Compare)
	return paths, complete
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
	edition int       // grows with each change of paths or whole
}

func newHearing() hearing { return hearing{session: -1, since: time.Now()} }

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

// listen sets what the session wants to learn. Callers hold sem.
func (s *session) listen(prefixes []netip.Prefix) {
	if slices.Equal(s.learn, prefixes) {
		return
	}
	s.remember(func() {
		s.learn = slices.Clone(prefixes)
		s.heard.updates, s.heard.quiet = 0, time.Now()
	})
	s.poke()
}

// hear looks at what the switch has told so far, and returns when to look again; 0 means never.
// It reads the table only while it changes: a switch may send a hundred thousand paths.
func (s *session) hear(ctx context.Context) time.Duration {
	if len(s.learn) == 0 || ctx.Err() != nil {
		return 0
	}
	now, h, was := time.Now(), s.heard, s.heard
	session, up := s.journal.session()
	if h.session >= 0 && (!up || h.session != session) {
		h.lost(now)
	}
	if h.session < 0 && s.journal.takeFarewell() { // not before the session it belongs to has ended
		h.forget()
	}
	if up && s.offer.known {
		s.hearMore(ctx, &h, session, now)
	}
	if !h.all && now.Sub(h.since) >= s.peer.RestartTime {
		h.forget()
	}
	if h.whole != was.whole || !slices.Equal(h.paths(), was.paths()) {
		h.edition++
	}
	s.remember(func() { s.heard = h })
	return learnEvery
}

// hearMore reads what an established session has received.
func (s *session) hearMore(ctx context.Context, h *hearing, session int, now time.Time) {
	if h.session != session {
		h.session, h.updates, h.quiet = session, 0, now
	}
	if s.received.updates != h.updates {
		h.updates, h.quiet = s.received.updates, now
	}
	// GoBGP counts an UPDATE before it puts it into its table: read until all is quiet.
	if now.Sub(h.quiet) < quietFor {
		var told []LearnedPath
		err := s.server.do(func() (err error) {
			told, err = s.server.adjIn(ctx, s.peer, s.learn)
			return err
		})
		if err != nil {
			return
		}
		h.told = told
	}
	if !h.all && s.received.all(s.offer, now.Sub(h.quiet)) {
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
func (s *server) adjIn(ctx context.Context, p Peer, within []netip.Prefix) ([]LearnedPath, error) {
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
		err := s.bgp.ListPath(ctx, &api.ListPathRequest{TableType: api.TableType_ADJ_IN, Name: p.Address.String(), Family: family, Prefixes: lookups},
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
	return slices.Clip(out[:min(len(out), learnMost)]), ctx.Err()
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
