package bgp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// paths returns what the RIB holds, sorted.
func (s *session) paths() []Path {
	s.mu.Lock()
	paths := make([]Path, 0, len(s.told))
	for _, p := range s.told {
		paths = append(paths, p)
	}
	s.mu.Unlock()
	slices.SortFunc(paths, Path.Compare)
	return paths
}

func (s *session) status() Status {
	s.mu.Lock()
	peer, offer := s.peer, s.offer
	s.mu.Unlock()
	j := s.journal
	j.mu.Lock()
	st := Status{Peer: peer, State: stateName(j.state), Since: j.since, Flaps: j.past.flaps, LastReset: j.past.reset, Reason: j.last.reason, Detail: j.last.detail}
	up := j.state == bgp.BGP_FSM_ESTABLISHED
	j.mu.Unlock()
	if !up {
		return st
	}
	var untold [2]int
	for _, p := range s.paths() {
		switch {
		case offer.takes(p.Prefix):
			st.Advertised = append(st.Advertised, p)
		case p.Prefix.Addr().Is4():
			untold[0]++
		default:
			untold[1]++
		}
	}
	st.Restart = peer.RestartTime > 0 && offer.restart
	if st.Restart {
		st.RestartTime = peer.RestartTime
		if offer.longLived {
			st.LongLived = peer.LongLivedTime
		}
	}
	if offer.known {
		st.Detail = shortcomings(peer, offer, untold)
	}
	return st
}

// shortcomings says what an established session lacks.
func shortcomings(p Peer, o offer, untold [2]int) string {
	var out []string
	for i, family := range []string{"IPv4", "IPv6"} {
		if untold[i] > 0 {
			out = append(out, fmt.Sprintf("%d %s paths are not told: activate %s unicast for this neighbour on the switch", untold[i], family, family))
		}
	}
	if p.RestartTime > 0 && !o.restart {
		out = append(out, "the switch drops the paths when this daemon restarts: enable graceful restart for this neighbour there")
	}
	if p.LongLivedTime > 0 && o.restart && !o.longLived {
		out = append(out, fmt.Sprintf("the switch drops the paths %s after this daemon is gone: enable long-lived graceful restart there (RFC 9494)", p.RestartTime))
	}
	return strings.Join(out, "; ")
}

// view is what of a Status is worth a look: not each step of an attempt to connect.
type view struct {
	up    bool
	flaps int
	why   cause
	offer offer
	heard int
}

func (s *session) view() view {
	s.mu.Lock()
	offer, heard := s.offer, s.heard.edition
	s.mu.Unlock()
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return view{s.journal.state == bgp.BGP_FSM_ESTABLISHED, s.journal.past.flaps, s.journal.last, offer, heard}
}
