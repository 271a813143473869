package bgp

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

const (
	// quietFor is how long a switch that sends no End-of-RIB must be silent before all its paths count
	// as received.
	quietFor = 6 * time.Second
	// learnMost bounds the number of paths that are learned from one switch.
	learnMost = 10000
)

// LearnedPath is a path that a switch announces.
type LearnedPath struct {
	Path
	From netip.Addr // the switch
	// Kept: the path is from an earlier session. The switch has not sent it again, and the restart time
	// is not over (RFC 4724, section 4.2).
	Kept bool
	// Leaving: the switch is about to withdraw the path (community GRACEFUL_SHUTDOWN, RFC 8326).
	Leaving bool
}

// Compare orders paths by prefix, then by preference: a path that is about to be withdrawn comes after the
// others, and a kept path last; a lower switch address comes before a higher one.
func (p LearnedPath) Compare(other LearnedPath) int {
	rank := func(p LearnedPath) int {
		switch {
		case p.Kept:
			return 2
		case p.Leaving:
			return 1
		}
		return 0
	}
	return cmp.Or(p.Prefix.Compare(other.Prefix), cmp.Compare(rank(p), rank(other)), p.From.Compare(other.From), p.NextHop.Compare(other.NextHop))
}

// hearing holds the switch's own paths that the session learns.
//
//	session lost: told -> kept       session back: told grows, kept stays       End-of-RIB, or restart time over: kept is dropped
type hearing struct {
	learn []netip.Prefix
	told  map[netip.Prefix]LearnedPath // in this session
	kept  map[netip.Prefix]LearnedPath // of earlier sessions
	whole bool                         // told and kept together hold all paths of the switch

	up         bool      // the session is up
	all        bool      // the switch has sent all its paths in this session
	since      time.Time // since when all has not been true
	updates    int       // UPDATEs received in this session
	quiet      time.Time // when the last UPDATE came
	eor4, eor6 bool      // the End-of-RIB of the family came
	edition    int       // grows with each change of paths, whole or returns.missing

	returns returns
}

// paths returns the paths of this session, and paths of earlier sessions for other prefixes. They are
// sorted, at most the first learnMost.
func (h *hearing) paths() []LearnedPath {
	out := slices.Collect(maps.Values(h.told))
	for prefix, p := range h.kept {
		if _, again := h.told[prefix]; !again {
			p.Kept = true
			out = append(out, p)
		}
	}
	slices.SortFunc(out, LearnedPath.Compare)
	return slices.Clip(out[:min(len(out), learnMost)])
}

func (h *hearing) begin(now time.Time) {
	h.up, h.all, h.updates, h.quiet, h.eor4, h.eor6 = true, false, 0, now, false, false
	h.told = make(map[netip.Prefix]LearnedPath)
	h.returns.begin(now)
}

func (h *hearing) end(now time.Time) {
	if h.all {
		h.since = now
	}
	if h.kept == nil {
		h.kept = make(map[netip.Prefix]LearnedPath)
	}
	maps.Copy(h.kept, h.told)
	h.told, h.up, h.all = nil, false, false
	h.edition++
}

// forget drops the kept paths: the switch has withdrawn them, or their time is over.
func (h *hearing) forget() {
	if len(h.kept) > 0 || !h.whole {
		h.edition++
	}
	h.kept, h.whole = nil, true
}

// tick checks whether the time of the kept paths is over.
func (h *hearing) tick(p Peer, o offer, now time.Time) {
	// A switch that restarts sends nothing until it knows its own paths.
	if h.up && !h.all && now.Sub(h.quiet) >= quietFor && (h.updates > 0 || !o.restart) {
		h.all = true
		h.forget()
	}
	if !h.all && now.Sub(h.since) >= p.RestartTime {
		h.forget()
	}
	if h.all && h.returns.tick(o, now) {
		h.edition++
	}
}

// ask sets the prefixes to learn. It reports whether the switch must send its paths again.
func (h *hearing) ask(learn []netip.Prefix) (again bool) {
	if slices.Equal(h.learn, learn) {
		return false
	}
	again = h.up && slices.ContainsFunc(learn, func(p netip.Prefix) bool { return !within(p, h.learn) })
	h.learn, h.quiet = learn, time.Now()
	for _, paths := range []map[netip.Prefix]LearnedPath{h.told, h.kept} {
		maps.DeleteFunc(paths, func(p netip.Prefix, _ LearnedPath) bool { return !within(p, learn) })
	}
	h.edition++
	return again
}

// within reports whether one of the prefixes contains p. A default route contains only itself.
func within(p netip.Prefix, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(w netip.Prefix) bool {
		return w == p || w.Bits() > 0 && w.Bits() <= p.Bits() && w.Contains(p.Addr())
	})
}

// update reads an UPDATE. If the session learns no prefix, and what comes back need not be its own, update reads no paths.
func (h *hearing) update(p Peer, o offer, m message, now time.Time) error {
	h.updates++
	h.quiet = now
	if eor4, eor6 := m.endOfRIB(); eor4 || eor6 {
		h.eor4, h.eor6 = h.eor4 || eor4, h.eor6 || eor6
		if !h.all && o.restart && (h.eor4 || !o.ipv4) && (h.eor6 || !o.ipv6) {
			h.all = true
			h.forget()
		}
		return nil
	}
	if len(h.learn) == 0 && h.returns.own == nil {
		return nil
	}
	u, err := readUpdate(m[bgp.BGP_HEADER_LENGTH:], o.as4)
	if err != nil {
		return err
	}
	if h.returns.update(p, u, now) {
		h.edition++
	}
	for _, prefix := range u.gone {
		h.drop(prefix)
	}
	loop := slices.Contains(u.asPath, p.LocalASN) // RFC 4271, section 9
	for _, prefix := range u.reach {
		hop := u.hop4
		if prefix.Addr().Is6() {
			hop = u.hop6
		}
		if u.withdraw || loop || !hop.IsValid() {
			h.drop(prefix)
		} else if within(prefix, h.learn) {
			h.told[prefix] = LearnedPath{Path: Path{Prefix: prefix, NextHop: hop}, From: p.Address, Leaving: u.leaving}
			h.edition++
		}
	}
	return nil
}

func (h *hearing) drop(prefix netip.Prefix) {
	if _, ok := h.told[prefix]; ok {
		delete(h.told, prefix)
		h.edition++
	}
}

// ask sets what to look for in the switch's UPDATEs. It reports whether the switch must send its paths again.
func (j *journal) ask(s Session) (again bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	h := &j.heard
	learn := h.ask(s.Learn)
	h.edition++
	return h.returns.ask(s.Sole, h.up, j.offer.refresh, s.Paths, time.Now()) || learn
}

// learned returns this session's part of Speaker.Learned.
func (j *journal) learned() (paths []LearnedPath, complete bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.heard.paths(), j.heard.whole
}

func (j *journal) tick(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.heard.tick(j.peer, j.offer, now)
}
