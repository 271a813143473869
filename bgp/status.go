package bgp

import (
	"fmt"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

func (t *talk) status() Status {
	j := t.journal
	j.mu.Lock()
	st := Status{State: stateName(j.state), Since: j.since, Flaps: j.flaps, LastReset: j.reset, Reason: j.last.reason, Detail: j.last.detail}
	up := j.state == bgp.BGP_FSM_ESTABLISHED
	j.mu.Unlock()
	if !up {
		return st
	}
	var untold [2]int // IPv4, IPv6
	for _, p := range t.told.paths() {
		switch {
		case t.offer.takes(p.Prefix):
			st.Advertised = append(st.Advertised, p)
		case p.Prefix.Addr().Is4():
			untold[0]++
		default:
			untold[1]++
		}
	}
	st.Restart = t.peer.RestartTime > 0 && t.offer.restart
	if st.Restart {
		st.RestartTime = t.peer.RestartTime
		if t.offer.longLived {
			st.LongLived = t.peer.LongLivedTime
		}
	}
	if t.offer.known {
		st.Detail = shortcomings(t.peer, t.offer, untold)
	}
	return st
}

// shortcomings says what an established session lacks.
func shortcomings(p Peer, o offer, untold [2]int) string {
	var out []string
	for i, family := range []string{"IPv4", "IPv6"} {
		if untold[i] > 0 {
			out = append(out, fmt.Sprintf("%d %s paths are not advertised: activate %s unicast for this neighbour on the switch", untold[i], family, family))
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

// view is the part of a session's status whose change is news.
type view struct {
	up    bool
	state bgp.FSMState
	flaps int
	why   cause
	offer offer
	heard int
}

// in returns v in another state, to compare two views that may differ in state: the steps of an attempt
// to connect are not news at once.
func (v view) in(state bgp.FSMState) view {
	v.state = state
	return v
}

func (t *talk) view() view {
	j := t.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	return view{j.state == bgp.BGP_FSM_ESTABLISHED, j.state, j.flaps, j.last, t.offer, t.heard.edition}
}
