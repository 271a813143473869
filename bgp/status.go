package bgp

import "fmt"

func (t *talk) status() Status {
	st, offer := t.journal.status()
	if st.State != stateEstablished {
		return st
	}
	var untold [2]int // IPv4, IPv6
	for _, p := range t.told.paths() {
		switch {
		case offer.takes(p.Prefix):
			st.Advertised = append(st.Advertised, p)
		case p.Prefix.Addr().Is4():
			untold[0]++
		default:
			untold[1]++
		}
	}
	st.Restart = t.peer.RestartTime > 0 && offer.restart
	if st.Restart {
		st.RestartTime = t.peer.RestartTime
		if offer.longLived {
			st.LongLived = t.peer.LongLivedTime
		}
	}
	st.Lacks = append(lacks(t.peer, offer, untold), st.Lacks...)
	return st
}

// lacks returns the shortcomings of an Established session.
func lacks(p Peer, o offer, untold [2]int) (out []Lack) {
	for i, family := range []string{"IPv4", "IPv6"} {
		if untold[i] > 0 {
			out = append(out, Lack{lackFamily, fmt.Sprintf("%d %s paths are not advertised: activate %s unicast for this neighbour on the switch", untold[i], family, family)})
		}
	}
	if p.RestartTime > 0 && !o.restart {
		out = append(out, Lack{lackRestart, "the switch drops the paths when this daemon restarts: enable graceful restart for this neighbour there"})
	}
	if p.LongLivedTime > 0 && o.restart && !o.longLived {
		out = append(out, Lack{lackLongLived, fmt.Sprintf("the switch drops the paths %s after this daemon is gone: enable long-lived graceful restart there (RFC 9494)", p.RestartTime)})
	}
	return out
}
